"""From the rows of a block that go on to columns: JSON texts, content hashes, keys of conflicts, and an Arrow batch.

Everything is done column by column: one pass over the rows per column costs half of what a call per row does.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate
from typing import Any, Final

import pyarrow as pa
from orjson import dumps

from datakit.checks.content import damaged, media_tags
from datakit.checks.preference import count_pair
from datakit.checks.structure import PROMPT, prompt_left
from datakit.formats.declare import Record, Row
from datakit.schema import ARROW, ID, IS_JSON, META, OPTIONAL, ROW, SOURCE, Layout, Type
from datakit.tally import PLACES, Tally

OPTIONAL_NAMES: Final = tuple(column.name for column in OPTIONAL)


@dataclass(slots=True)
class Kept:
    """The rows of a block that go on, in order.

    Attributes:
        records: their trainer columns, optional and side columns included.
        rests: what no column took.
        origins: the file and the row or line that each came from.
        rows: the row or line in the source that was read.
    """

    records: list[Record] = field(default_factory=list)
    rests: list[Row] = field(default_factory=list)
    origins: list[tuple[str, int]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of an output: the layout's own, then those that only some outputs have."""

    layout: Layout
    optional: Sequence[str]
    side: Mapping[str, Type]

    @property
    def extras(self) -> dict[str, Type]:
        return {c.name: c.type for c in OPTIONAL if c.name in self.optional} | dict(self.side)


def encode(kept: Kept, columns: Columns, severities: Mapping[str, str], tally: Tally, controls: bool = True) -> Encoded:
    """Turn rows into columns; what only the encoded text shows goes to the tally.

    Args:
        controls: False where it is known that no text holds an escaped control character.
    """
    records = kept.records
    texts = {column.name: [dumps(record[column.name]) for record in records] for column in columns.layout.columns}
    _see_rests(kept, tally)
    joined = _see_damage(texts, kept, columns.layout, severities, tally, controls)
    more = any(len(record) > len(texts) for record in records)
    extras = [_extra(record, columns.side) for record in records] if more else []
    keys = _conflicts(records, texts, columns.layout.kind, tally)
    return Encoded(kept, columns, texts, joined, _digests(texts, extras), keys)


@dataclass(slots=True)
class Encoded:
    """Rows as JSON texts by column, ready to become a batch."""

    kept: Kept
    columns: Columns
    texts: dict[str, list[bytes]]
    joined: dict[str, bytes]
    digests: list[bytes]
    conflicts: list[bytes]

    def batch(self) -> pa.RecordBatch:
        """The columns as Arrow; JSON columns as plain strings, which the writer declares as arrow.json."""
        records = self.kept.records
        arrays: dict[str, Any] = {}
        for column in self.columns.layout.columns:
            name = column.name
            if column.type in IS_JSON:
                arrays[name] = _strings(self.joined[name], self.texts[name])
            else:
                arrays[name] = pa.array([record[name] for record in records], ARROW[column.type])
        for name, type_ in self.columns.extras.items():
            values: list[Any] = [record.get(name) for record in records]
            if name == "chat_template_kwargs":
                values = [value or {} for value in values]
            if type_ in IS_JSON:
                values = [None if value is None else dumps(value) for value in values]
            arrays[name] = pa.array(values, pa.string() if type_ in IS_JSON else ARROW[type_])
        digests = b"".join(self.digests).hex().encode()
        arrays[ID] = _strings(digests, [digests[:32]] * len(records))
        arrays[SOURCE] = pa.array([source for source, _ in self.kept.origins], pa.string())
        arrays[ROW] = pa.array([row for _, row in self.kept.origins], pa.int64())
        arrays[META] = pa.array([dumps(rest) if rest else None for rest in self.kept.rests], pa.string())
        return pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))


def _see_rests(kept: Kept, tally: Tally) -> None:
    """Count the rows with keys that no column took, and name the first of them."""
    rows = zip(kept.records, kept.rests, strict=True)
    with_rest = [
        index
        for index, (record, rest) in enumerate(rows)
        if rest and (PROMPT.isdisjoint(rest) or names_left(record, rest))
    ]
    if with_rest:
        places = [[*kept.origins[at], "", names_left(kept.records[at], kept.rests[at])] for at in with_rest[:PLACES]]
        tally.see_many("DK107", len(with_rest), places)


def names_left(record: Record, rest: Row) -> str:
    """The keys that no column took and DK128 does not name; those of turns as in `messages[].mood`."""
    turns = rest.get("dk_turns")
    names = set(map(str, rest)).difference(prompt_left(record, rest))
    if isinstance(turns, dict) and all(isinstance(keys, dict) for keys in turns.values()):
        names.discard("dk_turns")
        names |= {f"{re.sub('[0-9]+', '', path)}.{key}" for path, keys in turns.items() for key in keys}
    return ", ".join(sorted(names))


def _strings(joined: bytes, values: list[bytes]) -> Any:
    """A string column from its texts and the same texts joined; orjson has seen to it that they are UTF-8."""
    offsets = array("i", accumulate(map(len, values), initial=0))
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(joined))


def _extra(record: Record, side: Mapping[str, Type]) -> bytes:
    """The optional and side columns of a row for its hash; null and absent are one in a column."""
    names = [name for name in (*OPTIONAL_NAMES, *side) if record.get(name) is not None]
    return b"".join(dumps([name, record[name]]) for name in names) if names else b""


def _digests(texts: Mapping[str, list[bytes]], extras: list[bytes]) -> list[bytes]:
    """16 bytes of the SHA-256 of the trainer columns of every row."""
    parts = list(texts.values())
    if any(extras):
        parts.append(extras)
    if len(parts) == 1:
        return [sha256(text).digest()[:16] for text in parts[0]]
    return [sha256(b"".join(row)).digest()[:16] for row in zip(*parts, strict=True)]


def _see_damage(
    texts: Mapping[str, list[bytes]],
    kept: Kept,
    layout: Layout,
    severities: Mapping[str, str],
    tally: Tally,
    controls: bool,
) -> dict[str, bytes]:
    """Look for damaged text and tags of media; a row with two counts once. The joined columns are of use later."""
    joined: dict[str, bytes] = {}
    found: dict[tuple[int, str], str] = {}
    for column in layout.columns:
        if column.type in IS_JSON or column.type in ("text", "texts"):
            rows = texts[column.name]
            whole = joined[column.name] = b"".join(rows)
            for index, id, note in damaged(whole, rows, controls):
                found.setdefault((index, id), note)
            for index, id, columns, note in media_tags(whole, rows):
                if columns.isdisjoint(kept.records[index]) and columns.isdisjoint(kept.rests[index]):
                    found.setdefault((index, id), note)
    for (index, id), note in sorted(found.items()):
        if severities[id] != "off":
            tally.see(id, [*kept.origins[index], "", note].copy)
    return joined


def _conflicts(records: list[Record], texts: Mapping[str, list[bytes]], kind: str, tally: Tally) -> list[bytes]:
    """For preferences and labels, 16 bytes per row: the question, and in the last bit the verdict.

    Counts what the checks of the whole set need on the way.
    """
    counts = tally.counts
    for index, record in enumerate(records):
        if "tools" in record:
            counts["rows with tools"] += 1
            counts["rows with calls"] += any(b'"tool_calls":' in rows[index] for rows in texts.values())
    if kind not in ("preference", "kto"):
        return []
    keys: list[bytes] = []
    for index, record in enumerate(records):
        shared = dumps([record[name] for name in OPTIONAL_NAMES if name in record])
        if kind == "preference":
            count_pair(record, counts)
            sides = (texts["chosen"][index], texts["rejected"][index])
            verdict = sides[0] < sides[1]
            question = (texts["prompt"][index] if "prompt" in texts else b"", *sorted(sides), shared)
        else:
            verdict = record["label"]
            counts["label true" if verdict else "label false"] += 1
            tally.step("label", verdict)
            question = (texts["prompt"][index], texts["completion"][index], shared)
        key = sha256(b"\0".join(question)).digest()[:16]
        keys.append(key[:15] + bytes([key[15] & 0xFE | verdict]))
    return keys
