"""Strings that know where every one of their characters came from.

A `Tracked` string carries pieces `(length, origin)` that cover it; pieces of length 0 are marks, or the place of an
empty text. It behaves as the plain string does in comparisons, lookups and conditions, so a template takes the same
branches. The world is closed: an operation that is not written here gives a plain string, and a plain string that
reaches the output has the origin `UNKNOWN`, for which a row is refused. So a gap in this file costs coverage, never
correctness.

Origins are tuples, told apart by their first entry:

    ("literal",)                    text of the template itself
    (message, field, part)          text of a message: its number, `content`, `reasoning`, `calls` or another key, and
                                    the number of the content part or tool call
    ("tools",), ("kwargs",)         text of tool definitions and template arguments
    ("token", name)                 a special token such as `eos_token`
    ("value",)                      a printed number, boolean or null, or the date
    ("mark", kind, loop, message)   a mark: begin or end of a pass of a loop, or of a generation block
    ("unknown",)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Self, SupportsIndex

Origin = tuple[Any, ...]
Pieces = tuple[tuple[int, Origin], ...]

LITERAL: Final[Origin] = ("literal",)
TOOLS: Final[Origin] = ("tools",)
KWARGS: Final[Origin] = ("kwargs",)
VALUE: Final[Origin] = ("value",)
UNKNOWN: Final[Origin] = ("unknown",)


class Tracked(str):
    """A string with the origin of its characters. Make one with `tracked` or `of`."""

    __slots__ = ("_pieces",)
    _pieces: Pieces

    def __new__(cls, text: str = "") -> Tracked:
        """Of unknown origin, for those who make a string of the type that they were given."""
        return tracked(text, UNKNOWN)

    # ---- what a template can do with a string

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> Tracked:
        return _made(str.__add__(self, other), self._pieces + pieces_of(other))

    def __radd__(self, other: str) -> Tracked:
        return _made(str.__add__(other, self), pieces_of(other) + self._pieces)

    def __mul__(self, count: SupportsIndex) -> Tracked:
        return _made(str.__mul__(self, count), self._pieces * int(count))

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        given = values if isinstance(values, tuple) else (values,)
        parts = self.split("%s")
        if "%" in "".join(parts) or len(parts) != len(given) + 1 or isinstance(values, Mapping):
            return str.__mod__(self, values)
        mixed: list[Any] = [parts[0]]
        for value, part in zip(given, parts[1:], strict=True):
            mixed += [printed(value), part]
        return concat(mixed)

    def __getitem__(self, key: SupportsIndex | slice) -> Tracked:
        text = str.__getitem__(self, key)
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1:
                return self._cut(start, max(start, stop))
            return _made(text, tuple((1, self._at(i)) for i in range(start, stop, step)))
        index = int(key) % len(self)
        return _made(text, ((1, self._at(index)),))

    def __iter__(self) -> Iterator[Tracked]:
        for index in range(len(self)):
            yield self[index]

    def strip(self, chars: str | None = None, /) -> Tracked:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Tracked:
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self), keep_marks=True)

    def rstrip(self, chars: str | None = None, /) -> Tracked:
        return self._cut(0, len(str.rstrip(self, chars)), keep_marks=True)

    def removeprefix(self, prefix: str, /) -> Tracked:
        return self._cut(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> Tracked:
        return self._cut(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Tracked]:  # type: ignore[override]
        return self._located(str.split(self, sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Tracked]:  # type: ignore[override]
        return self._located(str.rsplit(self, sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[Tracked]:  # type: ignore[override]
        parts, at = [], 0
        for whole, part in zip(str.splitlines(self, True), str.splitlines(self, keepends), strict=True):
            parts.append(self._cut(at, at + len(part)))
            at += len(whole)
        return parts

    def partition(self, sep: str, /) -> tuple[Tracked, Tracked, Tracked]:
        head, found, _ = str.partition(self, sep)
        a, b = len(head), len(head) + len(found)
        return self._cut(0, a), self._cut(a, b), self._cut(b, len(self))

    def rpartition(self, sep: str, /) -> tuple[Tracked, Tracked, Tracked]:
        head, found, _ = str.rpartition(self, sep)
        a, b = len(head), len(head) + len(found)
        return self._cut(0, a), self._cut(a, b), self._cut(b, len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Tracked:
        if not old:
            return tracked(str.replace(self, old, new, count), UNKNOWN)
        parts = self.split(old, count)
        return parts[0] if len(parts) == 1 else _join(new, parts)

    def lower(self) -> Tracked:
        return self._same_length(str.lower(self))

    def upper(self) -> Tracked:
        return self._same_length(str.upper(self))

    def title(self) -> Tracked:
        return self._same_length(str.title(self))

    def capitalize(self) -> Tracked:
        return self._same_length(str.capitalize(self))

    def casefold(self) -> Tracked:
        return self._same_length(str.casefold(self))

    def swapcase(self) -> Tracked:
        return self._same_length(str.swapcase(self))

    def join(self, parts: Iterable[str], /) -> Tracked:
        return _join(self, list(parts))

    # ---- how it is done

    def _at(self, index: int) -> Origin:
        for length, origin in self._pieces:
            if index < length:
                return origin
            index -= length
        return UNKNOWN

    def _cut(self, start: int, stop: int, keep_marks: bool = False) -> Tracked:
        """Characters start to stop. Marks on a border stay; those beyond it only where `keep_marks` says so."""
        kept: list[tuple[int, Origin]] = []
        at = 0
        for length, origin in self._pieces:
            end = at + length
            if not length:
                if start <= at <= stop or (keep_marks and origin[0] == "mark"):
                    kept.append((0, origin))
            elif end > start and at < stop:
                kept.append((min(end, stop) - max(at, start), origin))
            at = end
        return _made(str.__getitem__(self, slice(start, stop)), tuple(kept))

    def _located(self, parts: list[str], gap: int) -> list[Tracked]:
        """The pieces of a split, found again from left to right."""
        found: list[Tracked] = []
        at = 0
        for part in parts:
            start = at if gap and found else str.find(self, part, at)
            if gap and not found:
                start = 0
            found.append(self._cut(start, start + len(part)))
            at = start + len(part) + gap
        return found

    def _same_length(self, text: str) -> Tracked:
        return _made(text, self._pieces) if len(text) == len(self) else tracked(text, UNKNOWN)


def _made(text: str, pieces: Pieces) -> Tracked:
    made = str.__new__(Tracked, text)
    made._pieces = pieces
    return made


def tracked(text: str, origin: Origin) -> Tracked:
    """A string of one origin; an empty one keeps its place."""
    return _made(text, ((len(text), origin),))


def mark(*origin: Any) -> Tracked:
    """An empty string that marks a place in the output."""
    return _made("", ((0, ("mark", *origin)),))


def pieces_of(value: str) -> Pieces:
    if type(value) is Tracked:
        return value._pieces
    return ((len(value), UNKNOWN),) if value else ()


def printed(value: Any) -> Tracked:
    """What `{{ value }}` prints."""
    if type(value) is Tracked:
        return value
    text = str(value)
    if value is None or isinstance(value, bool | int | float) or not text:
        return tracked(text, VALUE)
    if isinstance(value, dict | list):  # printed as Python writes it: fine for tools, a mistake for a list of parts
        origin = owner(value)
        return tracked(text, UNKNOWN if origin[-2:-1] == ("content",) else origin)
    return _made(text, pieces_of(text))


def concat(parts: Iterable[Any]) -> Tracked:
    """Printed parts as one string."""
    done = [printed(part) for part in parts]
    return _made("".join(done), tuple(piece for part in done for piece in part._pieces))


_FIELD: Final = re.compile(r"\{(\w*)\}", re.ASCII)


def formatted(text: Tracked, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tracked | None:
    """What `text.format(*args, **kwargs)` makes; None where it holds braces other than `{}`, `{0}` and `{name}`."""
    if re.search("[{}]", _FIELD.sub("", text)):
        return None
    mixed: list[Any] = []
    at = 0
    for number, field in enumerate(_FIELD.finditer(text)):
        name = field[1] or str(number)
        mixed += [text[at : field.start()], args[int(name)] if name.isdigit() else kwargs[name]]
        at = field.end()
    return concat([*mixed, text[at:]])


def _join(glue: str, parts: Sequence[Any]) -> Tracked:
    mixed: list[Any] = []
    for index, part in enumerate(parts):
        mixed += [glue, part] if index else [part]
    return concat(mixed)


class Message(dict[str, Any]):
    """A message that knows its number."""

    __slots__ = ("_number",)

    _number: int  # a name that templates cannot read

    @classmethod
    def of(cls, number: int, values: Mapping[str, Any]) -> Self:
        made = cls(values)
        made._number = number
        return made


_FIELDS: Final = {"reasoning_content": "reasoning", "thinking": "reasoning", "tool_calls": "calls"}


def message(number: int, values: Mapping[str, Any]) -> Message:
    """A message as a template sees it, every text in it with its origin."""
    made = {}
    for key, value in values.items():
        field = _FIELDS.get(key, key)
        if isinstance(value, list):
            made[key] = [of(item, (number, field, part)) for part, item in enumerate(value)]
        else:
            made[key] = of(value, (number, field, 0))
    return Message.of(number, made)


def of(value: Any, origin: Origin) -> Any:
    """A JSON value with every text in it, keys included, of one origin."""
    if isinstance(value, str):
        return tracked(value, origin)
    if isinstance(value, Mapping):
        return {tracked(key, origin): of(item, origin) for key, item in value.items()}
    if isinstance(value, list):
        return [of(item, origin) for item in value]
    return value


def owner(value: Any) -> Origin:
    """The one origin of all texts in a JSON value; UNKNOWN where there are several, VALUE where there is none."""
    found: set[Origin] = set()
    level = [value]
    while level:
        below: list[Any] = []
        for item in level:
            if type(item) is Tracked:
                found.update(origin for _, origin in item._pieces if origin[0] != "mark")
            elif isinstance(item, str):
                found.add(UNKNOWN)
            elif isinstance(item, Mapping):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                below += item
        level = below
    if len(found) > 1:
        found.discard(LITERAL)
    if len(found) > 1 and all(isinstance(origin[0], int) for origin in found):
        places = {origin[:2] for origin in found}
        return (*places.pop(), 0) if len(places) == 1 else UNKNOWN
    return found.pop() if len(found) == 1 else UNKNOWN if found else VALUE


def tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> Tracked:
    """The filter, with the owner of what it prints."""
    text = json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return tracked(text, owner(x))
