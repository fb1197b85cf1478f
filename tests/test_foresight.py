"""What is foreseen of many rows is what is proven of each, and nothing is foreseen that was not proven."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import InternalError
from datakit.findings import BadRow
from datakit.jobs import Jobs
from datakit.schema import layout
from datakit.templates import foresight
from datakit.templates.environment import Refused
from datakit.templates.spans import Unproven
from datakit.templates.template import LOOKED_AT, Template
from tests.conversations import SPECIAL

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TRIMS = CHATML.replace("m.content", "m.content | trim")
THINKS = (
    "{% for m in messages %}<{{ m.role }}>{% if '</think>' in m.content %}{{ m.content.split('</think>')[1] }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
EMPTY = CHATML.replace("{{ m.content }}", "{% if m.content %}{{ m.content }}{% else %}nothing{% endif %}")

TEXTS = st.sampled_from(["a", "bc", " a", "b\n", "", " ", "é€😀", "x</think>y", "</think>", "<|im_end|>", "0" * 300])
ROLES = st.sampled_from(["user", "assistant"])
MESSAGES = st.one_of(
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS}),
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS}, optional={"reasoning_content": TEXTS}),
    st.fixed_dictionaries({"role": ROLES, "content": st.one_of(st.none(), st.just([{"type": "text", "text": "a"}]))}),
)
CONVERSATIONS = st.lists(MESSAGES, max_size=5)


def proven(template: Template, row: list[dict[str, Any]]) -> Any:
    try:
        text, proof = template.prove(row)
    except (Refused, Unproven):
        return None
    return text, [(start, end) for _, start, end in proof.spans]


@pytest.mark.parametrize("source", [CHATML, TRIMS, THINKS, EMPTY], ids=["chatml", "trims", "thinks", "empty"])
@settings(max_examples=150, deadline=None)
@given(st.lists(CONVERSATIONS, max_size=12))
def test_it_is_what_is_proven_of_each_row(source, rows):
    used = Template(source, SPECIAL)
    assert used.foresee(rows) == [None] * len(rows)
    for row in rows:
        proven(used, row)
    for row, found in zip(rows, used.foresee(rows), strict=True):
        assert found is None or found == proven(Template(source, SPECIAL), row)


@pytest.mark.parametrize("windows", [None, 40])
@settings(max_examples=100, deadline=None)
@given(st.lists(CONVERSATIONS.filter(bool), max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_jobs_are_those_that_are_made_one_by_one(windows, conversations, with_tools):
    def jobs() -> Jobs:
        template = Template(CHATML, SPECIAL)
        return Jobs("sft", layout("sft", "messages", True), template, None, "all", [], "</s>", windows)

    rows = [
        {"messages": row, "tools": [{"type": "function"}] if tools else None}
        for row, tools in zip(conversations, with_tools, strict=False)
    ]
    used = jobs()
    for row in rows:
        with suppress(BadRow):
            used.make(row)
    for row, found in zip(rows, used.foresee(rows), strict=True):
        assert found is None or found == jobs().make(row)


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


def test_plain_rows_are_foreseen_once_their_shape_is_proven():
    template = Template(CHATML, SPECIAL)
    template.prove(turns("q", "a"))
    rows = [turns("1", "é"), turns("2", "b", "3", "c"), [], turns(" ", "a"), [{"role": "user"}], turns("4 ", "d")]
    found = template.foresee(rows)
    assert [row is not None for row in found] == [True, False, False, False, False, True]
    template.prove(rows[1])
    assert template.foresee([rows[1]]) != [None]


def test_of_rows_with_constants_only_those_are_left_out():
    template = Template(THINKS, SPECIAL)
    template.prove(turns("q", "a"))
    rows = [turns("1", "b"), turns("2", "x</think>y"), turns("3", "c")]
    assert [row is not None for row in template.foresee(rows)] == [True, False, True]


def test_white_space_that_a_template_may_take_off_is_left_to_it():
    template = Template(TRIMS, SPECIAL)
    template.prove(turns("q", "a"))
    rows = [turns("1", "b"), turns("2", " b"), turns("3", "c")]
    assert [row is not None for row in template.foresee(rows)] == [True, False, True]


def test_an_empty_text_is_left_to_the_template():
    template = Template(EMPTY, SPECIAL)
    template.prove(turns("q", "a"))
    assert [row is not None for row in template.foresee([turns("1", "b"), turns("2", "")])] == [True, False]


def test_a_template_that_prints_no_end_is_asked_about_every_row():
    template = Template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", SPECIAL)
    _, proof = template.prove(turns("q", "a"))
    assert proof.unended
    assert template.foresee([turns("1", "b")]) == [None]


def test_a_text_that_is_too_long_is_left_to_the_template(monkeypatch):
    template = Template(CHATML, SPECIAL)
    text, _ = template.prove(turns("q", "a"))
    monkeypatch.setattr(foresight, "MAX_TEXT", len(text))
    assert [row is not None for row in template.foresee([turns("1", "b"), turns("1", "bb")])] == [True, False]


@pytest.mark.parametrize("before", [0, 1, LOOKED_AT - 1, LOOKED_AT])
def test_one_of_so_many_rows_is_rendered_and_compared(before, monkeypatch):
    template = Template(CHATML, SPECIAL)
    template.prove(turns("q", "a"))
    template.foresee([turns("1", "b")] * before)
    looked: list[str] = []

    def render(row: list[dict[str, str]], *_: Any) -> str:
        looked.append(row[0]["content"])
        return "another text"

    monkeypatch.setattr(template, "render", render)
    first = -before % LOOKED_AT
    template.foresee([turns(str(number), "b") for number in range(first)])
    assert not looked
    with pytest.raises(InternalError, match="prints a row otherwise"):
        template.foresee([turns(str(number), "b") for number in range(first, first + 1)])
    assert looked == [str(first)]


def test_a_row_that_is_refused_when_it_is_rendered_is_refused_alone(monkeypatch):
    template = Template(CHATML, SPECIAL)
    template.prove(turns("q", "a"))
    rows = [turns(str(number), "b") for number in range(LOOKED_AT + 2)]

    def render(*_: Any) -> str:
        raise Refused("it takes too long")

    monkeypatch.setattr(template, "render", render)
    assert template.foresee(rows) == [None] * len(rows)
    assert [number for number, row in enumerate(rows) if proven(template, row) is None] == [0, LOOKED_AT]
