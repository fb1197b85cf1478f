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
    payload = b"".join(orjson.dumps(row) + b"\n" for row in data)
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


def test_plain_rows_go_the_short_way(monkeypatch):
    taken = []
    reader = plain.reader

    def watched(format, kind):
        read = reader(format, kind)
        assert read is not None

        def noted(row, tags):
            taken.append(read(row, tags))
            return taken[-1]

        return noted

    monkeypatch.setattr(plain, "reader", watched)
    turns = [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "a: b"}]
    converted("sharegpt", [{"id": 1, "conversations": turns}], "keep")
    assert taken == [[{"role": "user", "content": "你好"}, {"role": "assistant", "content": "a: b"}]]


@pytest.mark.parametrize("name", ["alpaca", "kto-conversation", "rlvr", "hh-rlhf"])
def test_formats_of_other_rows_have_no_short_way(name):
    assert plain.reader(FORMATS[name], FORMATS[name].layout.kind) is None
