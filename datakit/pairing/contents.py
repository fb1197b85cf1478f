"""What rows hold, as 16-byte hashes: the dk_id of new rows, and keys by which equal questions and answers are found.

Values are hashed as `convert` hashes them, as JSON: messages as they are stored, texts encoded. So the dk_id of a row
is the same whichever verb made it. Token ids are hashed as they lie in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from orjson import dumps

from datakit.schema import IS_JSON, KEPT, LENGTH, OPTIONAL, PROVENANCE, TRAINED, Layout

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Keys = np.ndarray[Any, np.dtype[np.uint64]]
"""One row of two numbers per key."""

OWN: Final = frozenset(column.name for column in (*PROVENANCE, *KEPT)) | {LENGTH, TRAINED}
"""Columns that say where a row came from; they are no part of its content."""

FRAME: Final = len(dumps([{"role": "assistant", "content": ""}]))
"""Characters of a stored answer that are not its text."""


def hashes(*parts: Sequence[bytes]) -> Keys:
    """The first 16 bytes of the SHA-256 of each row, its parts joined."""
    return _keys([sha256(b"".join(row)).digest() for row in zip(*parts, strict=True)])


def quick_keys(prompts: Sequence[bytes], answers: Sequence[bytes]) -> Keys:
    """Keys of answers to prompts, for as long as this process lives: 64 bits of each, several times as fast."""
    both = [np.fromiter(map(hash, texts), np.int64, len(texts)) for texts in (prompts, answers)]
    return np.stack(both, axis=1).view(np.uint64)


def _keys(digests: list[bytes]) -> Keys:
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 4)[:, :2]


def as_ids(keys: Keys) -> Any:
    """Keys as the texts that stand in dk_id: 32 hexadecimal digits."""
    digits = keys.tobytes().hex().encode()
    offsets = np.arange(len(keys) + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets.tobytes()), pa.py_buffer(digits))


def all_differ(keys: Keys) -> bool:
    """Whether no key comes twice; now and then False where none does, since one number of each is compared."""
    mixed = np.sort(keys[:, 0] * np.uint64(0x9E3779B97F4A7C15) + keys[:, 1])
    return not (mixed[1:] == mixed[:-1]).any()


def numbered(keys: Keys) -> Numbers:
    """A number for each key, equal where keys are equal; in the order in which they first come."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    numbers = np.zeros(len(keys), np.int64)
    numbers[order[1:]] = np.cumsum((ordered[1:] != ordered[:-1]).any(axis=1))
    first = order[np.flatnonzero(np.diff(numbers[order], prepend=-1))]  # the sort is stable
    ranks = np.empty(len(first), np.int64)
    ranks[np.argsort(first)] = np.arange(len(first))
    return ranks[numbers]


# ---------------------------------------------------------------- from columns to bytes


def names_of(layout: Layout, side: str) -> tuple[str, str]:
    """The columns of the prompt and of an answer: `chosen`, `rejected` or `completion`."""
    prompt = layout.columns[0].name
    return prompt, side + prompt.removeprefix("prompt")


def cells(table: pa.Table, name: str, layout: Layout) -> list[bytes]:
    """The values of a trainer column, each in bytes that say where they end."""
    type_ = next(column.type for column in layout.columns if column.name == name)
    if type_ == "text":
        return list(map(dumps, table[name].to_pylist()))
    if type_ in IS_JSON:
        return stored(table[name])
    array: Any = table[name].combine_chunks()
    ids = _slices(np.asarray(array.values).tobytes(), np.asarray(array.offsets) * 4)
    return [len(row).to_bytes(8, "little") + row for row in ids]


def stored(column: Any) -> list[bytes]:
    """The texts of a column as they are stored; none where it is null."""
    _, offsets, data = (array := column.combine_chunks()).buffers()
    if data is None:
        return [b""] * len(array)
    return _slices(data.to_pybytes(), np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1])


def _slices(data: bytes, places: Any) -> list[bytes]:
    return [data[start:end] for start, end in pairwise(places.tolist())]


def extras(table: pa.Table, schema: pa.Schema, layout: Layout, without: Sequence[str | None] = ()) -> list[bytes]:
    """Per row, the optional and side columns that have a value; null and absent are one in a column.

    Args:
        table: rows, JSON columns as plain strings.
        schema: their columns, JSON ones as `arrow.json`.
        layout: its columns are none of them.
        without: nor are these.
    """
    order = [column.name for column in OPTIONAL]
    trained = {column.name for column in layout.columns}
    names = [n for n in table.column_names if n not in trained | OWN and n in schema.names and n not in without]
    made = [b""] * len(table)
    for name in sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name)):
        if table[name].null_count == len(table):
            continue
        json = isinstance(schema.field(name).type, pa.JsonType)
        for at, value in enumerate(table[name].to_pylist()):
            if value is not None and (name, value) != ("chat_template_kwargs", "{}"):
                made[at] += b'["%s",%s]' % (name.encode(), value.encode()) if json else dumps([name, value])
    return made


def with_extras(keys: Keys, extra: Sequence[bytes]) -> Keys:
    """Keys of answers that differ where the tools, images and arguments of their rows do."""
    if not any(extra):
        return keys
    return keys ^ np.where(np.array([[bool(e)] for e in extra]), hashes(extra), np.uint64(0))


# ---------------------------------------------------------------- lengths


def sizes(column: Any, layout: Layout) -> Numbers:
    """How long answers are: tokens, or characters as they are stored."""
    if layout.kind == "tokenized":
        return np.asarray(pc.list_value_length(column), np.int64)
    return np.asarray(pc.utf8_length(column), np.int64) - (FRAME if layout.conversational else 0)


def row_length(table: pa.Table, layout: Layout) -> Any:
    """dk_length: the tokens of the prompt with its longest answer."""
    columns = dict.fromkeys(names_of(layout, side)[1] for side in ("chosen", "rejected", "completion"))
    longest = np.max([sizes(table[name], layout) for name in columns if name in table.column_names], axis=0)
    if not layout.form.startswith("easydel"):  # there the answer has the prompt before it
        longest = longest + sizes(table[layout.columns[0].name], layout)
    return pa.array(longest, pa.int32())
