"""What a template looks for in texts: the constants that decide, or None where something else does."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.templates.environment import Environment, Refused
from datakit.templates.looks import Wanted, looked_for
from datakit.templates.spans import Unproven
from datakit.templates.template import Template
from tests.conversations import SPECIAL, installed


def constants(source: str) -> Any:
    wanted = looked_for(Environment().parse(source))
    return None if wanted is None else wanted.constants


def loop(body: str) -> str:
    return "{% for m in messages %}" + body + "{% endfor %}"


GUARDED = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
)
MACRO = (
    "{% macro shown(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}<image>{% endfor %}{% endif %}{% endmacro %}"
    "{% set text = shown(m.content) | trim %}{% if '</think>' in text %}!{% endif %}"
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{{ m.role }}{{ m.content | trim }}", set()),
        ("{% if m.role == 'user' and m.content is string and m.content != '' %}{{ m.content }}{% endif %}", set()),
        ("{% if '</think>' in m.content %}!{% endif %}", {"</think>"}),
        ("{% if m['content'].startswith('<Tool>') %}!{% endif %}", {"<Tool>"}),
        ("{{ m.content.split('</think>')[-1] | trim }}", {"</think>"}),
        ("{% set parts = m.content.split('|') %}{% if parts | length > 1 %}{{ parts[0] }}{% endif %}", {"|"}),
        ("{{ m.content.strip('*') }}{{ m.content.lstrip('\\n') }}", {"*"}),
        ("{{ m.content | replace('a', 'b') }}", {"a"}),
        ("{% set text = m.get('content') %}{% if text == 'stop' %}!{% endif %}", {"stop"}),
        ("{% if m.content | length > 0 %}!{% endif %}", set()),
        (GUARDED, set()),
        (MACRO, {"</think>"}),
        ("{% if 'content' in m and 'tool_calls' in m %}{{ m.tool_calls | length > 9 }}{% endif %}", set()),
        ("{% if tools %}{% for t in tools %}{{ t.name[0] }}{% endfor %}{% endif %}{{ m.content }}", set()),
        ("{% if messages[loop.index0 - 1].role == 'user' %}!{% endif %}", set()),
        ("{% if loop.previtem and 'x' in loop.previtem.content %}!{% endif %}", {"x"}),
        ("{% set ns = namespace(t=m.content) %}{% if 'x' in ns.t %}!{% endif %}", {"x"}),
        ("{% macro f(t) %}{% if 'x' in t %}!{% endif %}{% endmacro %}{{ f(m.content) }}", {"x"}),
    ],
)
def test_constants(body, expected):
    assert constants(loop(body)) == expected


@pytest.mark.parametrize(
    "body",
    [
        "{% if m.content | length > 100 %}!{% endif %}",
        "{% if m in messages[:1] %}!{% endif %}",
        "{% if m.content[0] == 'x' %}!{% endif %}",
        "{{ m.content[3:] }}",
        "{{ m.content | first }}",
        "{{ m.content | truncate(9) }}",
        "{% if m.content is upper %}!{% endif %}",
        "{% if m.content | lower == 'yes' %}!{% endif %}",
        "{% if m.content is in('stop halt') %}!{% endif %}",
        "{% if m.content in 'stop halt' %}!{% endif %}",
        "{% if m.content > 'm' %}!{% endif %}",
        "{% if 'x stop'.endswith(m.content) %}!{% endif %}",
        "{{ m.content.split(eos_token)[0] }}",
        "{% if m.content.isdigit() %}!{% endif %}",
        "{% if m.content.split() | length > 3 %}!{% endif %}",
        "{% for line in m.content.split('|') %}{% if line | length > 9 %}!{% endif %}{% endfor %}",
        "{% filter length %}{{ m.content }}{% endfilter %}",
        "{{ 'x' * (m.content | length) }}",
        "{% for letter in m.content %}{{ loop.length }}{% endfor %}",
        "{% for k, v in m.items() %}{% if v == 'stop' %}!{% endif %}{% endfor %}",
        "{% for k in ['role', 'content'] %}{% if m[k] == 'stop' %}!{% endif %}{% endfor %}",
        "{% if m['con' ~ 'tent'] == 'stop' %}!{% endif %}",
        "{% set t %}<{{ m.content | tojson }}>{% endset %}{% if '<a' in t %}!{% endif %}",
        "{% set t = '<' ~ m.content %}{% if '<a' in t %}!{% endif %}{{ {'a': m.content} | tojson }}",
        "{% if ('<' ~ m.content) == ('<' ~ messages[0].content) %}!{% endif %}",
        "{% if m.content | tojson == messages[0].content %}!{% endif %}",
        "{% if c is string %}{% else %}{{ m.content[0] }}{% endif %}{% set c = m.content %}",
        "{% if loop.last %}{% set c = m.content %}{% endif %}{% if c is not string %}{{ m.content[0] }}{% endif %}",
        "{% set c = m.content %}{% if loop.last %}{% set c = m.x %}{% endif %}"
        "{% if c is not string %}{{ m.content[0] }}{% endif %}",
        "{% for x in [] %}{% set c = m.content %}{% else %}{% if c is not string %}{{ m.content[0] }}{% endif %}{% endfor %}",
        "{% macro f(x) %}{% if x.content is not string %}{{ m.content[0] }}{% endif %}{% endmacro %}{{ f(m) }}{{ f(0) }}",
        "{% with c = m.content %}{% if 'x' in c %}!{% endif %}{% endwith %}",
        "{% if messages | selectattr('content', 'equalto', 'stop') | list %}!{% endif %}",
        "{% if loop.changed(m.content) %}!{% endif %}",
        "{% set tools = tools or [m.content] %}{% if tools[0] == 'stop' %}!{% endif %}",
    ],
)
def test_what_no_constant_says(body):
    assert constants(loop(body)) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{% if ('!' ~ m.content) == '!stop' %}!{% endif %}", Wanted(frozenset({"!stop"}), frozenset({"!stop"}))),
        ("{% set t = '<' ~ m.content %}{{ t.split('<a')[-1] }}", Wanted(frozenset({"<a"}), frozenset({"<a"}))),
        (
            "{% set t %}<{{ m.content }}{% endset %}{{ t | replace('<a', '') }}",
            Wanted(frozenset({"<a"}), frozenset({"<a"})),
        ),
        ("{% set t %}<{{ m.content }}{% endset %}{% if t | trim | length > 0 %}!{% endif %}", Wanted()),
        ("{% if m.content == messages[0].content %}!{% endif %}", Wanted(apart=True)),
        ("{% if m == messages[-1] %}!{% endif %}", Wanted(apart=True)),
        ("{% set c = m.get('content') %}{% if c is not string %}{{ c[0] }}{% endif %}", Wanted()),
        ("{% set c = 'a' + m.content | default('', true) %}{% if c is not string %}{{ c[0] }}{% endif %}", Wanted()),
        ("{% if m.content is string and m.content != '' %}{% elif m.content %}{{ m.content[0] }}{% endif %}", Wanted()),
        ("{% if m.content | length == 0 %}{{ m.content[0] }}{% endif %}", Wanted()),
        ("{% if m.content.parts is defined %}{{ m.content[0] }}{% endif %}", Wanted()),
        ("{{ {'output': m.content} | tojson }}", Wanted()),
        (
            "{% macro f(x) %}{% if x.content is not string %}{{ x.content[0] }}{% endif %}{% endmacro %}{{ f(m) }}",
            Wanted(),
        ),
    ],
)
def test_what_else_is_told(body, expected):
    found = looked_for(Environment().parse(loop(body)))
    assert found is not None
    assert found._replace(sight=expected.sight) == expected


def test_rows_that_go_the_same_way():
    border = Wanted(frozenset({"</think>"}), frozenset({"</think>"}))
    assert border.allows(["a", "b < c", "think", "x>"], True) is False  # "think" is a part of it
    assert border.allows(["a", "b < c", "x>"], True)
    assert not border.allows(["</think"], True)
    assert not border.allows([">"], True)
    assert not border.allows(["k> a"], True)
    assert not border.allows(["a <"], True)
    assert not border.allows([" a"], False)
    assert Wanted(frozenset({"</think>"})).allows([" a <"], False)
    assert Wanted(apart=True).allows(["a", "b"], True)
    assert not Wanted(apart=True).allows(["a", "a"], True)
    assert not Wanted(apart=True).allows(["a", "a "], False)


TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
END = "<|im_end|>\n{% endfor %}"
FIRST = "{{ messages[0].content }}"
SLY = {
    "cut": TURN + "{% set c = '<a></a>' ~ m.content %}{{ c.split('</a>')[-1] }}" + END,
    "cut and printed": TURN + "{% set c = m.content ~ '</a>' %}{{ c.split('</a>')[0] }}" + END,
    "first by a border": TURN + "{% set c = '<' ~ m.content ~ '>' %}{% if '<a>' in c %}" + FIRST
    + "{% else %}{{ m.content }}{% endif %}" + END,
    "first by equal texts": TURN + "{% if m.content == messages[0].content %}" + FIRST
    + "{% else %}{{ m.content }}{% endif %}" + END,
    "first by equal messages": TURN + "{% if m == messages[-1] %}" + FIRST + "{% else %}{{ m.content }}{% endif %}" + END,
    "first by two texts": TURN + "{% if 'ab' in messages[0].content ~ m.content %}" + FIRST
    + "{% else %}{{ m.content }}{% endif %}" + END,
    "first by the end": TURN + "{% set c = '<' ~ m.content %}{% if c.endswith('<a') %}" + FIRST
    + "{% else %}{{ m.content }}{% endif %}" + END,
}  # fmt: skip
WIDER = {
    name: path.read_text("utf-8")
    for name, path in installed().items()
    if name in ("trl/gemma4_v5", "trl/nemotron_3_nano", "trl/cohere2", "trl/lfm2_v2")
}
"""Real templates that compare texts with each other, or split them with some of their own beside them."""


def rows_of(source: str) -> st.SearchStrategy[list[dict[str, str]]]:
    """Rows of few words, of parts of the constants above all, so that texts are often alike."""
    wanted = looked_for(Environment().parse(source))
    assert wanted is not None
    parts = {constant[at:to] for constant in wanted.constants for at in (0, 1) for to in (-1, len(constant))} | {
        constant[-2:] for constant in wanted.constants
    }
    words = st.sampled_from(sorted({"a", "b", *parts} - {""}))
    text = st.lists(words, min_size=1, max_size=2).map("".join).filter(str.strip)
    turn = st.tuples(text, text).map(
        lambda pair: [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    )
    return st.lists(turn, min_size=1, max_size=2).map(lambda turns: [message for two in turns for message in two])


def proven(template: Template, row: list[dict[str, str]]) -> Any:
    try:
        return template.prove(row)
    except (Refused, Unproven):
        return None


@cache
def twice(source: str) -> tuple[Template, Template]:
    return Template(source, SPECIAL), Template(source, SPECIAL)


@pytest.mark.parametrize("source", [pytest.param(text, id=name) for name, text in (SLY | WIDER).items()])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_is_let_through_is_proven_as_it_is_alone(source, data):
    used, alone = twice(source)
    assert used.looked_for is not None
    rows = data.draw(st.lists(rows_of(source), min_size=2, max_size=6))
    expected = []
    for row in rows:
        alone.skeletons._known.clear()
        expected.append(proven(alone, row))
        assert proven(used, row) == expected[-1]
    for foreseen, known in zip(used.foresee(rows), expected, strict=True):
        if foreseen is not None:
            text, proof = known
            assert foreseen == (text, [(start, end) for _, start, end in proof.spans])


def test_two_templates_look_for_what_either_does():
    parse = Environment().parse
    one, other = (parse(loop("{% if '" + word + "' in m.content %}!{% endif %}")) for word in ("a", "b"))
    assert looked_for(one, other) == Wanted(frozenset({"a", "b"}))
    assert looked_for(one, parse(loop("{{ m.content[1:] }}"))) is None
