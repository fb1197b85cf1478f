"""What a template looks for in texts: the constants that decide, or None where something else does."""

from __future__ import annotations

from typing import Any

import pytest

from datakit.templates.environment import Environment
from datakit.templates.looks import looked_for


def constants(source: str) -> Any:
    return looked_for(Environment().parse(source))


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
        "{% if m.content == messages[0].content %}!{% endif %}",
        "{% if m.content == m.name %}!{% endif %}",
        "{% if m == messages[0] %}!{% endif %}",
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
        "{% if ('!' ~ m.content) == '!stop' %}!{% endif %}",
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
        "{% set t %}<{{ m.content }}>{% endset %}{% if '<a' in t %}!{% endif %}",
        "{% macro f(x) %}<{{ x.content }}>{% endmacro %}{% set t = f(m) %}{% if '<a' in t %}!{% endif %}",
        "{% with c = m.content %}{% if 'x' in c %}!{% endif %}{% endwith %}",
        "{% if messages | selectattr('content', 'equalto', 'stop') | list %}!{% endif %}",
        "{% if loop.changed(m.content) %}!{% endif %}",
        "{% set tools = tools or [m.content] %}{% if tools[0] == 'stop' %}!{% endif %}",
    ],
)
def test_what_no_constant_says(body):
    assert constants(loop(body)) is None


def test_two_templates_look_for_what_either_does():
    parse = Environment().parse
    one, other = (parse(loop("{% if '" + word + "' in m.content %}!{% endif %}")) for word in ("a", "b"))
    assert looked_for(one, other) == frozenset({"a", "b"})
    assert looked_for(one, parse(loop("{{ m.content[1:] }}"))) is None
