"""Blocks are a function of the bytes: not of the chunks they come in, nor of who reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datakit.errors import UnreadableInput
from datakit.reading import blocks
from datakit.reading.blocks import Block

LINE = st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b""))


def _chunks(data: bytes, sizes: list[int]):
    at, turn = 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        yield data[at : at + size]
        at, turn = at + size, turn + 1


def _facts(made: Block) -> tuple[Any, ...]:
    made.load()
    return (made.first, made.offset, made.size, made.payload, made.long, made.notes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("blocks")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINE, max_size=30),
    last=st.booleans(),
    bom=st.booleans(),
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    target=st.integers(1, 120),
    more=st.sampled_from([0, 7, 10_000]),
)
def test_lines(folder, lines, last, bom, sizes, target, more):
    limit = target + more  # a block is never larger than a line may be
    data = (blocks.BOM if bom else b"") + b"\n".join(lines) + (b"\n" if last else b"")
    path: Path = folder / "lines"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "MAX_LINE", limit)
        whole = [_facts(b) for b in blocks.line_blocks([data], 0, "p", target)]
        pieces = [_facts(b) for b in blocks.line_blocks(_chunks(data, sizes), 0, "p", target)]
        places = [_facts(b) for b in blocks.file_blocks(_chunks(data, sizes), 0, "p", str(path), target)]
    assert pieces == whole
    assert places == whole
    start = len(blocks.BOM) if data.startswith(blocks.BOM) else 0
    expected = data[start:].split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    seen: dict[int, bytes] = {}
    for first, offset, _, payload, long, _ in whole:
        for number, line in enumerate(payload.removesuffix(b"\n").split(b"\n") if payload else [], start=first):
            seen[number] = line
        assert data[offset : offset + len(payload)] == payload
        for number, at, size in long:
            assert size > limit
            seen[number] = data[at : at + size].rstrip(b"\n")
    assert [seen[number] for number in sorted(seen)] == expected
    assert sorted(seen) == list(range(1, len(expected) + 1))


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(['"', "\\", '\\"', "]}{[,:"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(VALUE, max_size=6), st.sampled_from([None, 1]), st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_elements_of_an_array(values, indent, sizes):
    data = json.dumps(values, indent=indent).encode()
    found = list(blocks.elements(_chunks(data, sizes), "p"))
    assert [json.loads(text) for text, _, _ in found] == values
    for text, offset, line in found:
        assert data[offset : offset + len(text)] == text
        assert data[:offset].count(b"\n") + 1 == line


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUE, max_size=4), st.data())
def test_a_cut_array_is_refused(values, data):
    text = json.dumps(values).encode()
    cut = data.draw(st.integers(1, len(text) - 1))
    with pytest.raises(UnreadableInput):
        list(blocks.elements([text[:cut]], "p"))


A, B = '{"a": 1}', '{"b": [2, "]"]}'


@pytest.mark.parametrize(
    ("text", "line", "found", "allowed"),
    [
        (f"[{A}, 3 rows omitted {B}]", 1, "rows omitted", "a comma or ]"),
        (f"[{A}, rows omitted {B}]", 1, "rows omitted", "a JSON value"),
        (f"[{A},\nomitted,\n{B}]", 2, "omitted", "a JSON value"),
        (f"[{A},\n{B}\n// {B}\n]", 3, "// {", "a comma or ]"),
        (f"[{A}, // {B}\n{B}]", 1, "// {", "a JSON value"),
        (f"[{A},\n<<<<<<< HEAD\n{B},\n=======\n{B}\n>>>>>>> x\n]", 2, "<<<<<<< HEAD'", "a JSON value"),
        (f"[{A}\n{B}]", 2, '{"b": [2,', "a comma or ]"),
        (f"[{A},, {B}]", 1, ", {", "a JSON value"),
        (f"[{A}, {B},\n]", 2, "]", "a JSON value"),
        (f"[,{A}]", 1, ",{", "a JSON value"),
        (f"[{A}, {B}}}]", 1, "}]", "a comma or ]"),
        (f'[{A}, "x" {B}]', 1, '{"b"', "a comma or ]"),
        (f"[{A}, 1 2]", 1, "2]", "a comma or ]"),
        (f"[{A}]\n\n[{B}]", 3, "[{", "white space"),
        (f"<html>Rate limit</html>{A}", 1, "<html>Rate limit</html>", "a JSON value"),
        (f"data: {A}", 1, "data: {", "a JSON value"),
        (f"{A} trailing\n{B}", 1, "trailing'", "a JSON value"),
        (f"{A}\n,{B}", 2, ",{", "a JSON value"),
        (f"{A}\n}}", 2, "}", "a JSON value"),
        (f"{A}\n\x1b[31m\0", 2, "\\x1b[31m\\x00", "a JSON value"),
        (f"{A}\n" + "x" * 10_000, 2, "x" * 30, "a JSON value"),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_nothing_but_values_is_passed_over(text, line, found, allowed, size):
    with pytest.raises(UnreadableInput) as caught:
        list(blocks.elements(_chunks(text.encode(), [size]), "p.json"))
    message = caught.value.message
    assert message.startswith(f"p.json:{line}: ")
    assert found in message
    assert allowed in message
    assert len(message) < 200
    assert message.isprintable()
    assert caught.value.hint


@settings(max_examples=300, deadline=None)
@given(
    values=st.lists(VALUE, min_size=2, max_size=5),
    noise=st.text(min_size=1, max_size=6),
    at=st.integers(0, 5),
    array=st.booleans(),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
def test_text_between_values_is_passed_over_only_where_it_is_json(values, noise, at, array, sizes):
    pieces = [json.dumps(value) for value in values]
    at = min(at, len(pieces))
    between = ", " if array else " "
    text = between.join([*pieces[:at], noise, *pieces[at:]])
    data = (f"[{text}]" if array else "{} " + text).encode("utf-8", "surrogatepass")
    try:
        found = [text for text, _, _ in blocks.elements(_chunks(data, sizes), "p")]
    except UnreadableInput:
        return
    rest = b"".join(data.split()).removeprefix(b"[").removesuffix(b"]") if array else b"".join(data.split())
    kept = (b"," if array else b"").join(b"".join(text.split()) for text in found)
    assert kept == rest


@pytest.mark.parametrize("bom", [b"", blocks.BOM])
@pytest.mark.parametrize(
    "text", [f"{A}\n{B}\n", f"{A}{B}", f" {A}\r\n\r\n\t{B} ", f"[{A},{B}]", f"\n[\n{A}\n,\n{B}]\n"]
)
def test_values_stand_where_their_offsets_say(text, bom):
    data = bom + text.encode()
    for size in (1, 3, 1000):
        found = list(blocks.elements(_chunks(data, [size]), "p"))
        assert [text.decode() for text, _, _ in found] == [A, B]
        for text_, offset, line in found:
            assert data[offset:].startswith(text_)
            assert data[:offset].count(b"\n") + 1 == line


@pytest.mark.parametrize(
    "text", ["[", f"[{A}", f"[{A},", f"[{A}, ", f'[{A}, "x', f"[{A}, {B[:-1]}", f"{A} {B[:-1]}", f'{A}"']
)
def test_a_text_that_ends_too_early_is_told(text):
    with pytest.raises(UnreadableInput, match="p: the text ends inside a value that began at line 1"):
        list(blocks.elements([text.encode()], "p"))


def test_no_values_are_no_rows():
    for data in (b"", b" \n", blocks.BOM, b"[]", b" [ \n ] "):
        assert list(blocks.elements([data], "p")) == []
