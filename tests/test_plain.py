"""The short way of plain rows gives what the long way gives: same rows, same counts, same findings."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit import plain
from datakit.checks import severities
from datakit.formats import FORMATS
from datakit.reading.blocks import Block
from datakit.step import SourcePlan, StepPlan, convert_block

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", " ", "\u3000", "\u200b x", "你好", "é", "<think>", "<think>a</think>b", "a: b", "\x00", "x\u007f"]
    ),
)
WORDS = st.sampled_from(
    ["human", "gpt", "user", "assistant", "system", "tool", "function_call", "humn", "human", "gpt"]
)
ODD: st.SearchStrategy[Any] = st.sampled_from([None, 3, [], {}, True])


@st.composite
def turns(draw, role, text):
    turn = {role: draw(WORDS), text: draw(TEXTS)}
    if draw(st.integers(0, 15)) == 0:
        turn[draw(st.sampled_from(["weight", "name", role, text, "id"]))] = draw(ODD)
    if draw(st.booleans()):
        turn = dict(reversed(turn.items()))
    return turn


@st.composite
def rows(draw, name):
    column, turn = FORMATS[name].columns["messages"], FORMATS[name].turn
    row = {column: draw(st.lists(turns(turn.role, turn.content), max_size=5))}
    extras = ["id", "system", "tools", "images", "audio", "chat_template_kwargs", "dk_source", "source"]
    for key in draw(st.lists(st.sampled_from(extras), max_size=2)):
        row[key] = draw(st.one_of(ODD, TEXTS))
    if draw(st.integers(0, 15)) == 0:
        row[column] = draw(st.one_of(ODD, TEXTS))
    return row


def converted(name: str, data: list[dict[str, Any]], reasoning: str):
    return converted_text(name, b"".join(orjson.dumps(row) + b"\n" for row in data), reasoning)


def converted_text(name: str, payload: bytes, reasoning: str = "keep"):
    source = SourcePlan("in.jsonl", name)
    layout = FORMATS[name].layout
    optional = ["tools", "images", "chat_template_kwargs"]
    plan = StepPlan(
        [source], layout.kind, layout.form, True, optional=optional, reasoning=reasoning, severities=severities()
    )
    found = convert_block(Block(0, 1, 0, len(payload), payload), plan)
    rows = found.batch.to_pylist() if found.batch is not None else None
    return rows, found.rejects, found.tally.to_json(), found.digests, list(found.rows), found.wanted


@pytest.mark.parametrize("name", ["sharegpt", "openai", "chat-in-conversations"])
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_both_ways_agree(name, data):
    many = data.draw(st.lists(rows(name), max_size=4))
    short = converted(name, many, "keep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "reader", lambda *_: None)
        assert converted(name, many, "keep") == short


TURN = st.sampled_from(
    [
        '{"from":"human","value":"a"}',
        '{"from":"gpt","value":"a: b"}',
        '{"from":"gpt","value":"a\\u003a b"}',
        '{"from":"gpt","from":"human","value":"a"}',
        '{"from":"human","value":"a","value":"b: c"}',
        '{"from":"human","value":"a","value":"b\\u003a"}',
        '{"from":"human","value":"\\u001f \\b \\f"}',
    ]
)
PAIR = st.sampled_from(
    [
        '"id":1',
        '"id":2',
        '"id":"x: y"',
        '"id":"x\\u003a"',
        '"a:b":1',
        '"n":123456789012345678901',
        '"n":1e30',
        '"n":9.3e18',
        '"deep":{"id":1,"id":2}',
        '"list":["a: b"]',
        '"n":0.5',
        '"x":null',
        '"source":"s"',
        '"source":"t"',
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.lists(PAIR, max_size=4), st.lists(TURN, min_size=1, max_size=3)), min_size=1, max_size=3))
def test_both_ways_see_keys_that_stand_twice_and_numbers_that_do_not_fit(many):
    lines = [",".join([*pairs, f'"conversations":[{",".join(turns)}]']) for pairs, turns in many]
    payload = "".join(f"{{{line}}}\n" for line in lines).encode()
    short = converted_text("sharegpt", payload)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "reader", lambda *_: None)
        assert converted_text("sharegpt", payload) == short


def test_plain_rows_go_the_short_way(monkeypatch):
    taken = []
    reader = plain.reader

    def watched(format, kind):
        read = reader(format, kind)
        assert read is not None

        def noted(*given):
            taken.append(read(*given))
            return taken[-1]

        return noted

    monkeypatch.setattr(plain, "reader", watched)
    turns = [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "a: b"}]
    converted("sharegpt", [{"id": 1, "conversations": turns}], "keep")
    assert taken == [[{"role": "user", "content": "你好"}, {"role": "assistant", "content": "a: b"}]]


@pytest.mark.parametrize("name", ["alpaca", "kto-conversation", "rlvr", "hh-rlhf"])
def test_formats_of_other_rows_have_no_short_way(name):
    assert plain.reader(FORMATS[name], FORMATS[name].layout.kind) is None
