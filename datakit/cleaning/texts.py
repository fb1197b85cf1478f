"""The texts of a row, each with the part it plays: what was asked, and what was answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from datakit.errors import UsageError
from datakit.schema import IS_JSON, Layout

ASKED: Final = 0
ANSWERED: Final = 1
OTHER: Final = 2
"""The rejected answer of a pair."""
UNWANTED: Final = 3
"""The answer of a KTO row whose label is false."""

PARTS: Final[Mapping[str, int]] = {"prompt": ASKED, "rejected": OTHER}
NAMES: Final = frozenset({"role", "type", "id", "tool_call_id"})
"""Keys whose values are no text of the conversation."""


class Segments(NamedTuple):
    """The texts of some rows, in order.

    Attributes:
        texts: one behind the other.
        parts: the part of each: ASKED, ANSWERED, OTHER or UNWANTED.
        offsets: the texts of row `i` are `offsets[i]` to before `offsets[i + 1]`.
    """

    texts: list[str]
    parts: npt.NDArray[np.int8]
    offsets: npt.NDArray[np.int64]


def need_texts(layout: Layout, what: str) -> None:
    """Refuse rows of token ids.

    Raises:
        UsageError: they are formatted.
    """
    if layout.kind == "tokenized":
        raise UsageError(f"{what} needs texts, and these rows are token ids", "Do it before `datakit format`.")


def says_prompt(layout: Layout) -> bool:
    """Whether rows say what their prompt is: not token ids, and not pairs of two whole texts."""
    return layout.kind != "tokenized" and (layout.form, layout.conversational) != ("implicit", False)


def need_prompts(layout: Layout, what: str) -> None:
    """Refuse rows that do not say what their prompt is.

    Raises:
        UsageError: they are token ids, or pairs of two whole texts.
    """
    need_texts(layout, what)
    if not says_prompt(layout):
        raise UsageError(
            f"{what} needs prompts, and two whole texts do not say where theirs ends",
            "Convert them with a prompt column or as messages, or take --by row, --group-by conversation.",
        )


def strings(value: Any) -> Iterator[str]:
    """Every text inside a value: contents, thoughts, names and arguments of calls; no roles and ids."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in NAMES:
                yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def text_columns(layout: Layout) -> list[str]:
    """The columns that hold texts, and for KTO the label."""
    return [c.name for c in layout.columns if c.type in IS_JSON or c.type in ("text", "texts") or c.name == "label"]


def segments(table: pa.Table, layout: Layout) -> Segments:
    """The texts of the rows of a table that has `text_columns`."""
    columns = [_column(table, c.name, c.type in IS_JSON) for c in layout.columns if c.name in text_columns(layout)]
    names = text_columns(layout)
    texts: list[str] = []
    parts: list[int] = []
    counts: list[int] = []
    for row in zip(*columns, strict=True):
        before = len(texts)
        unwanted = "label" in names and row[names.index("label")] is False
        for name, value in zip(names, row, strict=True):
            for part, text in _said(name, value):
                texts.append(text)
                parts.append(UNWANTED if unwanted and part == ANSWERED else part)
        counts.append(len(texts) - before)
    return Segments(texts, np.array(parts, np.int8), np.concatenate(([0], np.cumsum(counts, dtype=np.int64))))


def _column(table: pa.Table, name: str, is_json: bool) -> list[Any]:
    values = table.column(name).to_pylist()
    return [None if value is None else orjson.loads(value) for value in values] if is_json else values


def _said(name: str, value: Any) -> Iterator[tuple[int, str]]:
    """The texts of one column with their parts. Turns of `messages` say themselves what they are."""
    if name in ("messages", "chosen", "rejected") and isinstance(value, list):
        answer = OTHER if name == "rejected" else ANSWERED
        for message in value:
            part = answer if message.get("role") == "assistant" else ASKED
            for text in strings(message):
                yield part, text
        return
    part = PARTS.get(name, ANSWERED)
    for text in strings(value):
        yield part, text


def openings(table: pa.Table, layout: Layout) -> list[str]:
    """What each row begins with: the turns before the first answer, without system and developer turns.

    Rows with the same opening belong to one split: two answers to a question, two ways on from a first turn.
    """
    names = layout.columns[0].name if layout.form != "implicit" else "chosen"
    values = _column(table, names, layout.columns[0].type in IS_JSON)
    return [value if isinstance(value, str) else _opening(value) for value in values]


def _opening(messages: Sequence[Mapping[str, Any]]) -> str:
    asked: list[Mapping[str, Any]] = []
    for message in messages:
        if message["role"] == "assistant":
            break
        asked.append(message)
    turns = [message for message in asked if message["role"] not in ("system", "developer")]
    return "\n".join(text for message in turns or asked or messages for text in strings(message))


def prompts(table: pa.Table, layout: Layout) -> list[str]:
    """Everything of each row that is not the model's: all turns but the assistant's, or the prompt."""
    own = segments(table, layout)
    made: list[str] = []
    for start, stop in zip(own.offsets[:-1].tolist(), own.offsets[1:].tolist(), strict=True):
        asked = [own.texts[i] for i in range(start, stop) if own.parts[i] == ASKED]
        made.append("\0".join(asked or own.texts[start:stop]))
    return made
