"""One row: from bytes to an object, refused where parsers would disagree, lose digits or crash.

orjson is strict and fast but keeps the last of two equal keys, turns integers beyond 64 bits into floats, and allows
1,024 levels. Colons in the bytes counted against keys and texts of the result say that no pair was lost; only where
that cannot be said is the row read a second time, by a slower parser that sees every pair.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from datakit.findings import BadRow, shown
from datakit.reading.limits import MAX_DEPTH, MAX_LINE

_BIG: Final = 2.0**63
_ESCAPE: Final = re.compile(rb"\\u003")  # three times as fast as `in`
_EITHER: Final = re.compile(rb"\\(?:u00[013]|[bf])")


def may_escape(data: bytes) -> bool:
    r"""Whether colons or angle brackets may be written as `\u003a` and `\u003e`; cheaper to ask once for many rows."""
    return _ESCAPE.search(data) is not None


def escapes_in(data: bytes) -> tuple[bool, bool]:
    """What `may_escape` says of many rows, and whether one may hold a control character; mostly by one search."""
    if _EITHER.search(data) is None:
        return False, False
    return may_escape(data), True


def parse_row(data: bytes, escapes: bool = True) -> dict[str, Any]:
    """A row as an object.

    Args:
        data: the text of one JSON object.
        escapes: False where `may_escape` has said so of this text.

    Raises:
        BadRow: with the reason.
    """
    value = load_row(data)
    check_keys(value, data, escapes)
    return value


def load_row(data: bytes) -> dict[str, Any]:
    """A row as an object that may have lost one of two equal keys; `check_keys` says whether.

    Raises:
        BadRow: with the reason.
    """
    if len(data) > MAX_LINE:
        raise BadRow("DK115", "", f"{len(data)} bytes, over {MAX_LINE}")
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _why(data, error) from None
    if type(value) is not dict:
        raise BadRow("DK112", "", f"{shown(value)} where an object is expected")
    return value


def load_text(text: str, path: str) -> Any:
    """JSON that stands as a text inside a row, such as the arguments of a call, held to the rules of rows.

    Args:
        path: of the text, for findings.

    Raises:
        BadRow: a parser would lose something of it, or crash.
        orjson.JSONDecodeError: it is not JSON.
    """
    try:
        value = orjson.loads(text)
        if type(value) is dict or type(value) is list:
            check_keys(value, text.encode(), True)
    except orjson.JSONDecodeError as error:
        id, _, note = _why(text.encode("utf-8", "replace"), error).finding
        if id in ("DK101", "DK116"):
            raise
        raise BadRow(id, path, note) from None
    except BadRow as bad:
        raise BadRow(bad.finding.id, path, bad.finding.note) from None
    return value


def check_keys(value: dict[str, Any] | list[Any], data: bytes, escapes: bool) -> None:
    """See that a row is what its text says: no key twice, no number rounded, not too deep.

    Raises:
        BadRow: with the reason.
    """
    # A pair costs one colon, and a colon that is no pair's stands inside a text. If keys and colons inside texts add up
    # to the colons in the bytes, no pair was lost; an escaped colon is in no bytes, so it must not be among them.
    colons, keys = data.count(b":"), _survey(value, data)
    if colons != keys and (colons != keys + _colons_inside(value) or (escapes and may_escape(data))):
        _no_key_twice(data)


def all_keys_kept(
    row: Mapping[str, Any], turns: Sequence[Any], texts: Sequence[str], data: bytes, escapes: bool
) -> bool:
    """The same for a row of scalars and one list of turns, each two keys with two texts; False where there is doubt.

    Args:
        turns: the list, a value of the row.
        texts: those of the turns that may hold colons.
    """
    others: list[str] = []
    for value in row.values():
        kind = type(value)
        if kind is str:
            others.append(value)
        elif kind is dict or (kind is list and value is not turns) or (kind is float and not -_BIG < value < _BIG):
            return False
    more = data.count(b":") - len(row) - 2 * len(turns)
    return not more or (not escapes and more == sum([text.count(":") for text in (*texts, *others)]))


def _colons_inside(value: Any) -> int:
    """The colons in the texts below a value; those in keys are left out, which only costs a second look."""
    count = 0
    level: list[Any] = [value]
    while level:
        below: list[Any] = []
        for outer in level:
            for inner in outer.values() if type(outer) is dict else outer:
                kind = type(inner)
                if kind is str:
                    count += inner.count(":")
                elif kind is dict or kind is list:
                    below.append(inner)
        level = below
    return count


def _survey(value: dict[str, Any] | list[Any], data: bytes) -> int:
    """The number of keys in a row; looks at depth and at numbers on the way."""
    count, depth, huge = 0, 0, False
    level: list[Any] = [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadRow("DK114", "", f"more than {MAX_DEPTH} levels")
        below: list[Any] = []
        for outer in level:
            if type(outer) is dict:
                count += len(outer)
                outer = outer.values()
            for inner in outer:
                kind = type(inner)
                if kind is str:
                    continue
                if kind is dict or kind is list:
                    below.append(inner)
                elif kind is float and not -_BIG < inner < _BIG:
                    huge = True
        level = below
    if huge:
        integers: list[str] = []
        json.loads(data, parse_int=integers.append)
        if long := _too_long(integers):
            raise long
    return count


def _too_long(integers: list[str]) -> BadRow | None:
    """The refusal of the first integer beyond 64 bits, which orjson reads as a float or refuses."""
    for text in integers:
        if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
            return BadRow("DK113", "", f"the integer {text[:40]} does not fit 64 bits")
    return None


def _no_key_twice(data: bytes) -> None:
    def look(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BadRow("DK108", "", f"the key {shown(key)} stands twice in one object")
            seen.add(key)

    json.loads(data, object_pairs_hook=look)


def _why(data: bytes, error: orjson.JSONDecodeError) -> BadRow:
    """Which rule a line that orjson refuses breaks."""
    message = error.msg
    if "enough memory" in message:
        raise MemoryError(message)
    at = f"at byte {len(error.doc[: error.pos].encode('utf-8', 'surrogatepass'))}" if error.doc else "at byte 0"
    if "recursion" in message.lower():
        return BadRow("DK114", "", f"more than {MAX_DEPTH} levels")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as bad:
        return BadRow("DK102", "", f"invalid UTF-8 at byte {bad.start}")
    if b"\0" in data:
        return BadRow("DK101", "", f"a NUL byte at byte {data.index(0)}")
    integers: list[str] = []
    try:
        decoder = json.JSONDecoder(parse_int=integers.append)
        value, end = decoder.raw_decode(text := data.decode("utf-8").lstrip(" \t\r\n"))
        surrogate = "surrogate" in message.lower() or _has_surrogate(value)
    except RecursionError:
        return BadRow("DK114", "", f"more than {MAX_DEPTH} levels")
    except (json.JSONDecodeError, ValueError):
        return BadRow("DK101", "", f"{message}, {at}: {_excerpt(data, error)}")
    if rest := text[end:].lstrip(" \t\r\n"):
        if rest[0] in "{[":
            return BadRow("DK116", "", f"a second value at byte {len(data) - len(rest.encode())}")
        return BadRow("DK101", "", f"unexpected text after the value, {at}: {shown(rest)}")
    # the lenient parser takes it, so it is NaN, Infinity, 1e999, half a surrogate pair, or an integer of 400 digits
    if surrogate:
        return BadRow("DK102", "", f"half a surrogate pair, {at}")
    return _too_long(integers) or BadRow("DK109", "", f"a number that is not finite, {at}: {_excerpt(data, error)}")


def _has_surrogate(value: Any) -> bool:
    return re.search(r"[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)) is not None


def _excerpt(data: bytes, error: orjson.JSONDecodeError) -> str:
    text = data.decode("utf-8", "replace")
    return repr(text[max(0, error.pos - 20) : error.pos + 20])
