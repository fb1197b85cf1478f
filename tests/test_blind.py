"""Blind templates: one that is read as blind prints the same around any text; one that looks is never read as blind."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import InternalError
from datakit.templates.blind import Sight, sight
from datakit.templates.environment import Environment, Refused
from datakit.templates.spans import Unproven
from datakit.templates.template import Template
from tests.conversations import SPECIAL, templates

NOW = datetime(2026, 1, 2, 3, 4, 5)
ALL = dict(templates())

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
)
PRINTS = {
    "chatml": CHATML,
    "dots": "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}\n{% endfor %}",
    "get": "{% for m in messages %}{{ m.get('role') }}{{ m.get('content') }}{% endfor %}",
    "system apart": "{% if messages[0].role == 'system' %}{% set said = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if said and loop.first %}{{ said }}{% endif %}"
    "[{{ m.content }}]{% endfor %}",
    "namespace": "{% set ns = namespace(last=none) %}{% for m in messages %}{% set ns.last = m.content %}({{ ns.last }})"
    "{% endfor %}",
    "macro": "{% macro show(t) %}<{{ t }}>{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}",
    "types": "{% for m in messages %}{% if m.content is string and m.content %}{{ m.content }}{% else %}!{% endif %}{% endfor %}",
    "keys": "{% for m in messages %}{% if 'tool_calls' in m or m.tool_calls is defined %}!{% endif %}{{ m.content }}{% endfor %}",
    "nothing": "{% for m in messages %}{% if m.content != none and m.content != '' %}{{ m.content }}{% endif %}{% endfor %}",
    "places": "{% for m in messages %}{{ loop.index0 % 2 }}{{ m.content }}{{ messages | length }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}
TRIMS = {
    "filter": "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
    "method": "{% for m in messages %}{{ m['content'].strip() + '\n' }}{% endfor %}",
}
LOOKS = {
    "begins": "{% for m in messages %}{% if m.content.startswith('a') %}!{% endif %}{{ m.content }}{% endfor %}",
    "holds": "{% for m in messages %}{% if 'a' in m.content %}!{% endif %}{{ m.content }}{% endfor %}",
    "equals": "{% for m in messages %}{% if m.content == 'a' %}!{% endif %}{{ m.content }}{% endfor %}",
    "by a variable": "{% for m in messages %}{% set c = m.content %}{% if c == 'a' %}!{% endif %}{{ m.content }}{% endfor %}",
    "by a later one": "{% for m in messages %}{% if c == 'a' %}!{% endif %}{% set c = m.content %}{{ c }}{% endfor %}",
    "by a namespace": "{% set ns = namespace(c='') %}{% for m in messages %}{% if ns.c == 'a' %}!{% endif %}{% set ns.c = m.content %}"
    "{{ m.content }}{% endfor %}",
    "by a join": "{% for m in messages %}{% if ('x' ~ m.content) == 'xa' %}!{% endif %}{{ m.content }}{% endfor %}",
    "by a macro": "{% macro f(t) %}{% if t == 'a' %}!{% endif %}{% endmacro %}{% for m in messages %}{{ f(m.content) }}{{ m.content }}"
    "{% endfor %}",
    "by a macro's name": "{% macro f() %}{{ messages[0].content }}{% endmacro %}{% set g = f %}{% for m in messages %}"
    "{% if g() == 'a' %}!{% endif %}{{ m.content }}{% endfor %}",
    "by what a macro says": "{% macro f() %}{{ messages[0].content }}{% endmacro %}{% for m in messages %}"
    "{% if f() == 'a' %}!{% endif %}{{ m.content }}{% endfor %}",
    "counts": "{% for m in messages %}{% if m.content | length > 1 %}!{% endif %}{{ m.content }}{% endfor %}",
    "repeats": "{% for m in messages %}{{ m.content }}{% for c in m.content %}.{% endfor %}{% endfor %}",
    "cuts": "{% for m in messages %}{{ m.content[:1] }}{{ m.content }}{% endfor %}",
    "splits": "{% for m in messages %}{{ m.content.split('a')[0] }}{{ m.content }}{% endfor %}",
    "changes": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "quotes": "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
    "sorts": "{% for m in messages | sort(attribute='content') %}{{ m.content }}{% endfor %}",
    "groups": "{% for m in messages %}{% if messages | map(attribute='content') | join == 'aa' %}!{% endif %}{{ m.content }}{% endfor %}",
    "selects": "{% for m in messages %}{{ m.content }}{% if messages | selectattr('content', 'equalto', 'a') | list %}!{% endif %}{% endfor %}",
    "looks back": "{% for m in messages %}{% if loop.previtem and loop.previtem.content == 'a' %}!{% endif %}{{ m.content }}{% endfor %}",
    "values": "{% for m in messages %}{{ m.content }}{% for v in m.values() %}{% if v == 'a' %}!{% endif %}{% endfor %}{% endfor %}",
    "any key": "{% for m in messages %}{{ m.content }}{% for k in m %}{% if m[k] == 'a' %}!{% endif %}{% endfor %}{% endfor %}",
    "a block": "{% for m in messages %}{% set b %}{{ m.content }}{% endset %}{% if b == 'a' %}!{% endif %}{{ m.content }}{% endfor %}",
    "hashes": "{% for m in messages %}{{ {'a': '!'}.get(m.content, '') }}{{ m.content }}{% endfor %}",
    "formats": "{% for m in messages %}{{ m.content }}{% if '%s' % m.content == 'a' %}!{% endif %}{% endfor %}",
    "in a list": "{% for m in messages %}{{ m.content }}{% if m.content in ['a'] %}!{% endif %}{% endfor %}",
    "attr": "{% set ns = namespace(c='') %}{% for m in messages %}{% set ns.c = m.content %}{{ m.content }}"
    "{% if ns | attr('c') == 'a' %}!{% endif %}{% endfor %}",
}  # fmt: skip

words = st.text(st.sampled_from("aAb <>|'\"{%é\n\u2028\u3000"), min_size=1, max_size=6).filter(
    lambda text: not text.isspace()
)


@cache
def template(source: str) -> Template:
    return Template(source, SPECIAL, NOW)


def of(source: str) -> Sight:
    return sight(Environment(NOW).parse(source), pinned=True)


@pytest.mark.parametrize("name", PRINTS)
def test_what_only_prints_is_blind(name):
    assert of(PRINTS[name]) is Sight.PRINTS


@pytest.mark.parametrize("name", TRIMS)
def test_what_trims_is_blind_but_for_white_space(name):
    assert of(TRIMS[name]) is Sight.TRIMS


@pytest.mark.parametrize("name", LOOKS)
def test_what_looks_is_not_blind(name):
    assert of(LOOKS[name]) is Sight.LOOKS
    around = {template(LOOKS[name]).render(_said("user", text, text)).replace(text, "") for text in ("a", "bb")}
    assert len(around) > 1 or name in ("sorts", "quotes", "splits", "cuts", "by a later one"), "it does not look at all"


def _said(role: str, *texts: str):
    return [{"role": role, "content": text} for text in texts]


def test_the_day_is_no_secret_unless_it_is_pinned():
    source = "{{ strftime_now('%d') }}" + CHATML
    tree = Environment().parse(source)
    assert sight(tree) is Sight.LOOKS
    assert sight(tree, pinned=True) is Sight.PRINTS


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=25, deadline=None)
@given(roles=st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=5), data=st.data())
def test_a_prediction_is_what_the_template_prints(name, roles, data):
    """For every template at hand that is read as blind: learn a row, then predict another of its shape."""
    made = template(ALL[name])
    if made.sight is Sight.LOOKS:
        return
    for _ in range(2):
        row = [{"role": role, "content": data.draw(words)} for role in roles]
        try:
            text, proof = made.prove(row)
        except (Refused, Unproven):
            return
        assert text == made.render(row)
        fresh = Template(ALL[name], SPECIAL, NOW)
        assert proof == fresh.prove(row)[1]


def test_the_common_templates_are_blind():
    blind = [name for name, source in ALL.items() if template(source).sight is not Sight.LOOKS]
    assert any("qwen2_5" in name for name in blind)
    assert len(blind) > 10


def test_rows_with_white_space_around_a_text_are_rendered_where_it_may_be_trimmed():
    made = template(TRIMS["filter"] + "{# other #}")
    for first, second in product(("a", " a", "a\n"), repeat=2):
        row = [{"role": "assistant", "content": first}, {"role": "assistant", "content": second}]
        assert made.prove(row)[0] == first.strip() + second.strip()


def test_a_wrong_reading_is_found_and_ends_the_run():
    made = Template(LOOKS["begins"], SPECIAL, NOW)
    made.sight = Sight.PRINTS  # as if the reader had a gap
    made.prove([{"role": "assistant", "content": "b"}])
    with pytest.raises(InternalError, match="blind"):
        made.prove([{"role": "assistant", "content": "a"}])
