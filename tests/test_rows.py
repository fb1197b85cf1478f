"""`parse_row`: what a line must be, against a table and against a slow reader that sees every pair."""

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.findings import BadRow
from datakit.reading.limits import MAX_DEPTH, MAX_LINE
from datakit.reading.rows import load_text, parse_row

settings.register_profile("rows", deadline=None, derandomize=True)
quick = settings(settings.get_profile("rows"), max_examples=200)


def refused(data: bytes) -> tuple[str, str]:
    with pytest.raises(BadRow) as caught:
        parse_row(data)
    return caught.value.finding.id, caught.value.finding.note


def nested(levels: int, open_: bytes = b"[", close: bytes = b"]", inner: bytes = b"1") -> bytes:
    """A row that nests this many levels; the row itself is the first."""
    return b'{"a":' + open_ * (levels - 1) + inner + close * (levels - 1) + b"}"


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"{}", {}),
        (b' \t{"a": 1}\r\n', {"a": 1}),
        (rb'{"a": "\u0000"}', {"a": "\0"}),
        (rb'{"a": "\ud83d\ude00"}', {"a": "\U0001f600"}),
        ('{"a": "\u2028 \u2029 \x85"}'.encode(), {"a": "\u2028 \u2029 \x85"}),
        ('{"a": "\ufeff"}'.encode(), {"a": "\ufeff"}),
        (b'{"": 1}', {"": 1}),
        (b'{" ": {"": {"": 1}}}', {" ": {"": {"": 1}}}),
        (b'{"a": 1e300, "b": -1e300, "c": 1E-320}', {"a": 1e300, "b": -1e300, "c": 1e-320}),
        (b'{"a": 18446744073709551615}', {"a": 2**64 - 1}),
        (b'{"a": 9223372036854775807, "b": -9223372036854775808}', {"a": 2**63 - 1, "b": -(2**63)}),
        (b'{"a": 12345678901234567890.0}', {"a": 12345678901234567890.0}),
        (b'{"a": 123456789012345678901234567890e5}', {"a": 123456789012345678901234567890e5}),
        (b'{"a": "123456789012345678901234567890"}', {"a": "123456789012345678901234567890"}),
        (b'{"id": "123456789012345678901234567890", "a": 1e300}', {"id": "1234567890" * 3, "a": 1e300}),
        (b'{"a": "x\\": 1, \\"a\\": 2"}', {"a": 'x": 1, "a": 2'}),
        (b'{"a": ": :", "b": ":"}', {"a": ": :", "b": ":"}),
        (rb'{"a\\": 1, "b\\\\": 2, "c\"": 3}', {"a\\": 1, "b\\\\": 2, 'c"': 3}),
        (b'{"a" : 1, "b"\t:2, "c" \t : 3}', {"a": 1, "b": 2, "c": 3}),
        (b'{"a": {"x": 1}, "b": {"x": 1}}', {"a": {"x": 1}, "b": {"x": 1}}),
        (b'{"a": [{"x": 1}, {"x": 1}]}', {"a": [{"x": 1}, {"x": 1}]}),
        (b'{"a": 1, "A": 2, "a ": 3}', {"a": 1, "A": 2, "a ": 3}),
    ],
)
def test_accepted(data: bytes, value: dict[str, Any]) -> None:
    assert parse_row(data) == value


@pytest.mark.parametrize(
    ("data", "id", "word"),
    [
        (b'{"a": "\xff"}', "DK102", "invalid UTF-8 at byte 7"),
        (b'{"a": "\xc3"}', "DK102", "invalid UTF-8 at byte 7"),
        (b'{"a": "\xc0\xaf"}', "DK102", "invalid UTF-8 at byte 7"),
        (b'{"a": "\xed\xa0\x80"}', "DK102", "invalid UTF-8 at byte 7"),
        (b'{"a": "\xf5\x80\x80\x80"}', "DK102", "invalid UTF-8 at byte 7"),
        ('{"a": "é"}'.encode("latin-1"), "DK102", "invalid UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "DK102", "invalid UTF-8 at byte 0"),
        ('{"a": 1}'.encode("utf-16-le"), "DK101", "a NUL byte at byte 1"),
        (rb'{"a": "\ud800"}', "DK102", "half a surrogate pair, at byte 7"),
        (rb'{"a": "\udc00\ud800"}', "DK102", "half a surrogate pair"),
        (rb'{"a": "\ud800\u0041"}', "DK102", "half a surrogate pair"),
        (rb'{"\ud800": 1}', "DK102", "half a surrogate pair"),
        (rb'{"a": "\ud800", "b": NaN}', "DK102", "half a surrogate pair"),
        (b'{"a": "\x00"}', "DK101", "a NUL byte at byte 7"),
        (b'{"a": 1}\x00', "DK101", "a NUL byte at byte 8"),
        (b'\xef\xbb\xbf{"a": 1}', "DK101", "byte order mark"),
        (b'{"a": NaN}', "DK109", "not finite, at byte 6"),
        (b'{"a": Infinity}', "DK109", "not finite"),
        (b'{"a": -Infinity}', "DK109", "not finite"),
        (b'{"a": [1e999]}', "DK109", "not finite"),
        (b'{"a": -1e999}', "DK109", "not finite"),
        (b'{"a": 1, "a": 2}', "DK108", "'a'"),
        (b'{"a": 1, "a": 1}', "DK108", "'a'"),
        (b'{"a":1,"b":2,"a":3}', "DK108", "'a'"),
        (b'{"a" :1,"a":2}', "DK108", "'a'"),
        (b'{"a"\t:1,"a"\t:2}', "DK108", "'a'"),
        (b'{"a"  :1,"b": ":", "a"  :2}', "DK108", "'a'"),
        (b'{"x": [1, {"y": {"a": 1, "a": 2}}]}', "DK108", "'a'"),
        (rb'{"a": 1, "\u0061": 2}', "DK108", "'a'"),
        (rb'{"a\\": 1, "a\\": 2}', "DK108", "'a"),
        (rb'{"a\\":1,"a\\":":"}', "DK108", "'a"),
        (rb'{"a\"": 1, "a\"": 2}', "DK108", "'a"),
        (rb'{"a\"":1,"b":"\":","a\"":":"}', "DK108", "'a"),
        (b'{"": 1, "": 2}', "DK108", "''"),
        (b'{":": 1, ":": 2}', "DK108", "':'"),
        (b'{"a": "x\\": 1", "a": 2}', "DK108", "'a'"),
        (b'{"a": 18446744073709551616}', "DK113", "18446744073709551616 does not fit"),
        (b'{"a": 99999999999999999999}', "DK113", "99999999999999999999"),
        (b'{"a": [123456789012345678901234567890]}', "DK113", "123456789012345678901234567890"),
        (b'{"a":-9223372036854775809}', "DK113", "-9223372036854775809"),
        (b'{"a": -123456789012345678901234567890}', "DK113", "-123456789012345678901234567890"),
        (b'{"b": 1e300, "s": "1", "a": 99999999999999999999}', "DK113", "99999999999999999999"),
        (b'{"a": ' + b"1" * 400 + b"}", "DK113", "does not fit"),
        (b'{"a": -' + b"1" * 5000 + b"}", "DK113", "does not fit"),
        (nested(65), "DK114", "64 levels"),
        (nested(65, b'{"a":', b"}"), "DK114", "64 levels"),
        (nested(65, inner=b"1e300"), "DK114", "64 levels"),
        (nested(1000, inner=b"1e300"), "DK114", "64 levels"),
        (nested(10_000), "DK114", "64 levels"),
        (nested(100_000), "DK114", "64 levels"),
        (nested(100_000, b'{"a":', b"}"), "DK114", "64 levels"),
        (b"[" * 100_000, "DK114", "64 levels"),
        (b"null", "DK112", "null"),
        (b"1", "DK112", "int 1"),
        (b"true", "DK112", "bool"),
        (b'"text"', "DK112", "'text'"),
        (b"[]", "DK112", "a list of 0"),
        (b'[{"a": 1}]', "DK112", "a list of 1"),
        (b'{"a": 1} {"b": 2}', "DK116", "a second value at byte 9"),
        (b'{"a": 1}{"b": 2}\r', "DK116", "a second value at byte 8"),
        ('{"a": "é"} [1]  '.encode(), "DK116", "a second value at byte 12"),
        (b'{"a": 1,}', "DK101", "at byte 7"),
        (b'{"a": [1, 2,]}', "DK101", "at byte"),
        (b'{"a": 1} trailing', "DK101", "'trailing'"),
        (b'{"a": 1}}', "DK101", "'}'"),
        (b'{"a": 1', "DK101", "at byte 7"),
        (b'{"a" 1}', "DK101", "at byte"),
        (b"{'a': 1}", "DK101", "at byte 1"),
        (b"{a: 1}", "DK101", "at byte 1"),
        (b'{"a": 01}', "DK101", "at byte"),
        (b'{"a": .5}', "DK101", "at byte"),
        (b'{"a": +1}', "DK101", "at byte"),
        (b'{"a": nan}', "DK101", "at byte"),
        (b'{"a": True}', "DK101", "at byte"),
        (b'{"a": "x\ty"}', "DK101", "at byte 8"),
        (b'{"a": "x\ny"}', "DK101", "at byte 8"),
        (b'{"a": "\\x41"}', "DK101", "at byte"),
        (b'{"a": 99999999999999999999,}', "DK101", "at byte"),
        (b'{"a": "\xc3\xa9", "b": x}', "DK101", "at byte 17"),
        (b"", "DK101", "empty"),
        (b" \t", "DK101", "empty"),
        (b"// comment", "DK101", "at byte 0"),
    ],
    ids=lambda x: x[:24].hex() + str(len(x)) if isinstance(x, bytes) else None,
)
def test_refused(data: bytes, id: str, word: str) -> None:
    found, note = refused(data)
    assert (found, word in note) == (id, True), note


def test_the_deepest_row() -> None:
    assert MAX_DEPTH == 64
    for open_, close in ((b"[", b"]"), (b'{"a":', b"}")):
        data = nested(64, open_, close)
        assert orjson.dumps(parse_row(data)) == data
        assert refused(nested(65, open_, close))[0] == "DK114"


@pytest.mark.parametrize("inner", [rb'"\ud800"', b"NaN", b"1", b"x", b"9" * 30, b'{"a":1,"a":2}'])
def test_no_depth_exhausts_the_stack(inner: bytes) -> None:
    ids = {refused(nested(levels, inner=inner))[0] for levels in range(900, 1040)}
    assert ids <= {"DK114", "DK101", "DK102", "DK109"}


def test_the_longest_line() -> None:
    start, end = b'{"text":"', b'"}'
    data = start + b"x" * (MAX_LINE - len(start) - len(end)) + end
    assert len(parse_row(data)["text"]) == MAX_LINE - 11
    assert refused(data + b" ")[0] == "DK115"


def test_a_refusal_names_its_place_and_stays_short() -> None:
    id, note = refused(b'{"text": "' + b"y" * 10_000 + b'", "n": 01}')
    assert id == "DK101"
    assert "at byte 10018" in note
    assert len(note) < 150


# ---------------------------------------------------------------- properties

# characters that the count of colons could stumble on
awkward = st.text('ab":\\ \n\t{}[],u0061', max_size=6)
keys = awkward | st.text(max_size=4)
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e300, -1e300, 2.0**63, 2.0**64, 1e19, -1e19])
    | awkward
    | st.text(max_size=8)
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=16
)
rows = st.dictionaries(keys, values, max_size=5)
white = st.text(" \t\r\n", max_size=2)


@quick
@given(rows, white, white, white, st.none() | st.integers(0, 2) | st.just("\t"), st.booleans())
def test_any_object_is_read_as_it_is(
    row: dict[str, Any], before: str, between: str, after: str, indent: int | str | None, ascii: bool
) -> None:
    separators = (before + "," + after, between + ":" + after)
    data = (before + json.dumps(row, separators=separators, indent=indent, ensure_ascii=ascii) + after).encode()
    parsed = parse_row(data)
    assert json.dumps(parsed) == json.dumps(row)  # the same types, and the same order


def spelt(key: str, escaped: bool) -> str:
    if not escaped:
        return json.dumps(key, ensure_ascii=False)
    units = key.encode("utf-16-be").hex()
    return '"' + "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)) + '"'


def objects_in(value: Any) -> list[dict[str, Any]]:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    own = [value] if isinstance(value, dict) and value else []
    return own + [found for one in inner for found in objects_in(one)]


@quick
@given(st.data(), rows.filter(bool), st.sampled_from([":", ": ", " :", "\t:", " \r\n : "]), st.booleans())
def test_any_key_given_twice_is_seen(data: st.DataObject, row: dict[str, Any], colon: str, escaped: bool) -> None:
    target = data.draw(st.sampled_from(objects_in(row)))
    key = data.draw(st.sampled_from(list(target)))
    place = data.draw(st.integers(0, len(target)))
    again = data.draw(leaves)

    def write(value: Any) -> str:
        if isinstance(value, list):
            return "[" + ",".join(map(write, value)) + "]"
        if not isinstance(value, dict):
            return json.dumps(value)
        pairs = [json.dumps(k) + colon + write(v) for k, v in value.items()]
        if value is target:
            pairs.insert(place, spelt(key, escaped) + colon + write(again))
        return "{" + ",".join(pairs) + "}"

    assert refused(write(row).encode())[0] == "DK108"
    with pytest.raises(BadRow) as caught:
        load_text(write(row), "text")
    assert caught.value.finding[:2] == ("DK108", "text")


def reference(data: bytes) -> Any:
    """The slow reader: the value, or ValueError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) < len(items):
            raise ValueError("twice")
        return dict(items)

    def integer(text: str) -> int:
        if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
            raise ValueError("long")
        return int(text)

    def number(text: str) -> float:
        if math.isinf(float(text)):
            raise ValueError("infinite")
        return float(text)

    def constant(text: str) -> None:
        raise ValueError(text)

    text = data.decode("utf-8")
    value = json.loads(text, object_pairs_hook=pairs, parse_int=integer, parse_float=number, parse_constant=constant)
    if not isinstance(value, dict):
        raise ValueError("no object")
    json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses half a surrogate pair
    return value


fragments = st.sampled_from(
    [*'{}[]:,"\\ \n\t\r', '"a"', '"a":', '"a" :', '"b":', '":', '\\"', '"\\\\"', "1", "-1", "0.5", "1e5", "1e400",
     "true", "null", "NaN", "9" * 19, "9" * 20, "-" + "9" * 19, "1" * 400, "\\u0061", "\\ud800", "\\udc00", "\\u0000",
     '{"a":1', ',"a":2}', '{"a":', "}", "é", "\u2028", "\0", "\ufeff"]
)  # fmt: skip


def text_of(data: bytes) -> dict[str, Any] | None:
    """The same object as a text inside a row, or None."""
    try:
        value = load_text(data.decode(), "text")
    except (BadRow, ValueError):
        return None
    return value if isinstance(value, dict) else None


def agrees(data: bytes) -> None:
    try:
        expected = reference(data)
    except ValueError:
        expected = None
    found, id = None, ""
    try:
        found = parse_row(data)
    except BadRow as bad:
        id = bad.finding.id
    assert json.dumps(found) == json.dumps(expected)
    assert text_of(data) == found
    assert id in ("", "DK101", "DK102", "DK108", "DK109", "DK112", "DK113", "DK116")


@quick
@given(st.lists(fragments, max_size=12).map("".join))
def test_fragments_are_judged_as_a_slow_reader_judges_them(text: str) -> None:
    agrees(text.encode())
    agrees(b'{"a":' + text.encode() + b"}")


@quick
@given(rows, st.integers(0), st.integers(0, 3), st.binary(max_size=3) | fragments.map(str.encode))
def test_damaged_rows_are_judged_as_a_slow_reader_judges_them(
    row: dict[str, Any], at: int, cut: int, put: bytes
) -> None:
    data = json.dumps(row, ensure_ascii=False).encode()
    at %= len(data)
    agrees(data[:at] + put + data[at + cut :])


@quick
@given(st.binary(max_size=64))
def test_any_bytes_are_a_row_or_a_bad_row(data: bytes) -> None:
    agrees(data)
