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
