"""Blind templates: one that is read as blind prints the same around any text; one that looks is never read as blind."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import InternalError
from datakit.templates import blind
from datakit.templates.blind import Sight, sight
from datakit.templates.environment import Environment, Refused
from datakit.templates.looks import Wanted, looked_for
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

ASK = "{%% if %s == 'a' %%}!{%% endif %%}"
BACK = "{%% if %s.previtem and %s.previtem.content == 'a' %%}!{%% endif %%}"


def each(body: str, before: str = "") -> str:
    """A template that does something for each message."""
    return before + "{% for m in messages %}<{{ m.role }}>" + body + "{{ m.content }}{% endfor %}"


SLY = {  # ways to look at a text that were tried on the reader, or could be
    "the loop by another name": each("{% set outer = loop %}" + BACK % (("outer",) * 2)),
    "the loop in an inner one": each("{% set l = loop %}{% for k in [1] %}" + BACK % (("l",) * 2) + "{% endfor %}"),
    "the loop given to a macro": each("{{ f(loop) }}", "{% macro f(l) %}" + BACK % (("l",) * 2) + "{% endmacro %}"),
    "the loop in a namespace": each("{% set ns.l = loop %}" + BACK % (("ns.l",) * 2), "{% set ns = namespace() %}"),
    "the loop in a ternary": each(BACK % (("(loop if true else 0)",) * 2)),
    "the loop in a list": each(BACK % (("([loop] | first)",) * 2)),
    "the loop by a default": each(BACK % (("(loop | default(0))",) * 2)),
    "the loop with a made key": each("{% if not loop.first %}" + ASK % "loop['prev' + 'item'].content" + "{% endif %}"),
    "the loop in a loop": each("{% for x in loop %}" + ASK % "x[0]['con' + 'tent']" + "{% endfor %}"),
    "changes in a loop": each("{% if loop.changed(m.content) %}!{% endif %}"),
    "a method of the loop kept": each("{% set c = loop.changed %}{% if c(m.content) %}!{% endif %}"),
    "a cycle of texts": each(ASK % "loop.cycle(m.content, m.content)"),
    "a recursive loop": "{% for m in messages recursive %}" + ASK % "m.content" + "{{ m.content }}{% endfor %}",
    "a namespace by another name": each(
        "{% set ns.c = m.content %}" + ASK % "ns.c", "{% set n = namespace %}{% set ns = n() %}"
    ),
    "a namespace in a namespace": each(
        "{% set i = o.i %}{% set i.c = m.content %}" + ASK % "o.i.c", "{% set o = namespace(i=namespace()) %}"
    ),
    "a macro defined twice": each(
        "{{ g(m.content) }}",
        "{% macro f(one) %}{% endmacro %}{% macro g(t) %}{{ f(t) }}{% endmacro %}{% macro f(two) %}" + ASK % "two" + "{% endmacro %}",
    ),
    "a macro by condition": each(
        "{{ f(m.content) }}",
        "{% if messages %}{% macro f(one) %}" + ASK % "one" + "{% endmacro %}{% else %}{% macro f(two) %}{% endmacro %}{% endif %}",
    ),
    "an argument named loop": each("{{ f(m) }}", "{% macro f(loop) %}" + ASK % "loop.content" + "{% endmacro %}"),
    "an argument named as a macro": each(
        "{{ f(m.content) }}", "{% macro g() %}{% endmacro %}{% macro f(g) %}" + ASK % "g" + "{% endmacro %}"
    ),
    **{
        f"a macro named {name}": each(f"{{{{ {name}(m.content) }}}}", f"{{% macro {name}(t) %}}" + ASK % "t" + "{% endmacro %}")
        for name in ("raise_exception", "caller", "namespace", "range", "strftime_now")
    },
    "a macro with more arguments": each("{{ f(m.content) }}", "{% macro f() %}" + ASK % "varargs[0]" + "{% endmacro %}"),
    "a macro with other arguments": each("{{ f(t=m.content) }}", "{% macro f() %}" + ASK % "kwargs.t" + "{% endmacro %}"),
    "a macro with a key": each("{{ f(t=m.content) }}", "{% macro f(u=0, t=1) %}" + ASK % "t" + "{% endmacro %}"),
    "a macro given a list": each("{{ f(*[m.content]) }}", "{% macro f(t) %}" + ASK % "t" + "{% endmacro %}"),
    "a default that is an argument": each("{{ f(m.content) }}", "{% macro f(x, y=x) %}" + ASK % "y" + "{% endmacro %}"),
    "a default that is a text": each("{% macro f(t=m.content) %}" + ASK % "t" + "{% endmacro %}{{ f() }}"),
    "a macro that keeps a text": each(
        "{% if x is defined(*f(m.content)) %}{% endif %}" + ASK % "ns.c",
        "{% set ns = namespace(c='') %}{% macro f(t) %}{% set ns.c = t %}{% endmacro %}",
    ),
    "a call with a body": each("{% call f() %}{{ m.content }}{% endcall %}", "{% macro f() %}" + ASK % "caller()" + "{% endmacro %}"),
    "a call with arguments": each(
        "{% call(t) f(m.content) %}" + ASK % "t" + "{% endcall %}", "{% macro f(c) %}{{ caller(c) }}{% endmacro %}"
    ),
    "safe, then a text": each("{{ ('<turn>' | safe) + m.content }}"),
    "safe in a variable": each("{{ open + m.content }}", "{% set open = '<turn>' | safe %}"),
    "a safe text": each("{{ (messages[0].content | safe) + m.content }}"),
    "escapes": each("{{ '<' | e + m.content }}"),
    "escapes by force": each("{{ '<' | forceescape + m.content }}"),
    "a part that escapes": each("{% autoescape true %}{{ m.content }}{% endautoescape %}"),
    "a filter of a part": each("{% filter upper %}{{ m.content }}{% endfilter %}"),
    "a filter of a set block": each("{% set x | upper %}{{ m.content }}{% endset %}{{ x }}"),
    "a set block": each("{% set x %}{{ m.content }}{% endset %}" + ASK % "x"),
    "a with block": each("{% with c = m.content %}" + ASK % "c" + "{% endwith %}"),
    "a block of its own": "{% block b %}{% for m in messages %}" + ASK % "m.content" + "{{ m.content }}{% endfor %}{% endblock %}",
    "a test with an argument": each("{% if 'a' is eq(m.content) %}!{% endif %}"),
    "a test with a list of arguments": each("{% if 'a' is eq(*[m.content]) %}!{% endif %}"),
    "a filter with a list of arguments": each("{{ '' | default(*[m.content | upper, true]) }}"),
    "a call with a list of arguments": each("{{ '{}'.format(*[m.content | upper]) }}"),
    "a test of a list": each("{% if m.content is in(['a']) %}!{% endif %}"),
    "a test of a text": each("{% if m.content is lower %}!{% endif %}"),
    "a filter of messages": each("", "{% for m in messages if m.content != 'a' %}{{ m.content }}{% endfor %}"),
    "a key by a variable": each("{% set k = 'con' ~ 'tent' %}" + ASK % "m[k]"),
    "a key made on the spot": each(ASK % "m['con' ~ 'tent']"),
    "an attribute by a filter": each(ASK % "(m | attr('get'))('content')"),
    "an attribute of messages": each("{% if 'a' in messages | map(attribute='content') %}!{% endif %}"),
    "selected by a variable": each("{{ messages | selectattr(k, 'eq', 'a') | list | length }}", "{% set k = 'content' %}"),
    "selected by a tested text": each("{{ messages | selectattr('content', 'eq', 'a') | list | length }}"),
    "grouped": each("{{ messages | groupby('content') | length }}"),
    "unique": each("{{ messages | unique(attribute='content') | list | length }}"),
    "the greatest": each("{{ (messages | max(attribute='content')).role }}"),
    "in batches": each("{% for b in messages | batch(1) %}" + ASK % "b[0].content" + "{% endfor %}"),
    "in slices": each("{% for b in messages | slice(1) %}" + ASK % "b[0].content" + "{% endfor %}"),
    "in a list": each("{% set x = [m] %}" + ASK % "x[0].content"),
    "in a tuple": each("{% set x, y = m.content, 1 %}" + ASK % "x"),
    "in a dict": each(ASK % "{'k': m.content}.k"),
    "in a dict that is called": each(ASK % "dict(k=m.content).k"),
    "in a dict of a message": each(ASK % "dict(m).content"),
    "as a key": each("{{ {m.content: 1}['a'] }}"),
    "in a list that grows": each("{% set ns.l = ns.l + [m.content] %}" + ASK % "ns.l[0]", "{% set ns = namespace(l=[]) %}"),
    "as an item": each("{% for k, v in m.items() %}" + ASK % "v" + "{% endfor %}"),
    "as an item by a filter": each("{% for k, v in m | items %}" + ASK % "v" + "{% endfor %}"),
    "as a value": each("{{ 'a' in m.values() }}"),
    "unpacked": each("{% for k, v in [m.content[:1] * 2] %}{{ k | upper }}{% endfor %}"),
    "replaces": each("{{ 'a'.replace('a', m.content) | upper }}"),
    "joins": each("{{ ''.join([m.content, 'x']) | upper }}"),
    "formats": each("{{ ('%s' % m.content) | upper }}"),
    "formats by name": each("{{ '{}'.format(m.content) | upper }}"),
    "compares texts": each("{% if m.content == messages[0].content %}!{% endif %}"),
    "compares messages": each("{% if m == messages[-1] %}!{% endif %}"),
    "finds a message": each("{{ messages.index(m) }}"),
    "counts a message": each("{{ messages.count(m) }}"),
    "a message in messages": each("{{ m in messages[:1] }}"),
    "a text in a text": each("{% if m.content in 'abc' %}!{% endif %}"),
    "less than": each("{% if m.content < 'b' %}!{% endif %}"),
    "prints a message": each("{{ m | string | upper }}"),
    "quotes messages": each("{{ messages | tojson | length }}"),
    "one name in two scopes": each(
        "{% if loop.first %}{% set c = m.content %}" + ASK % "c" + "{% endif %}", "{% set c = 'x' %}"
    ),
    "a macro before its text": each("{% set ns.c = m.content %}{{ f() }}", "{% set ns = namespace(c='') %}{% macro f() %}" + ASK % "ns.c" + "{% endmacro %}"),
    "a macro's words": each(ASK % "f(m.content)", "{% macro f(t) %}{{ t }}{% endmacro %}"),
}  # fmt: skip
HARMLESS = {  # next to those, and to be read as blind
    "the loop's places": each("{{ loop.index }}{{ loop['last'] }}{{ loop.cycle('x', 'y') }}{{ (loop.previtem or m).role }}"),
    "the loop's messages": each("{{ (loop.nextitem or m).content ~ (loop.previtem or m).content }}"),
    "names that are there": each("{% if loop is defined and strftime_now is defined and f is defined %}!{% endif %}", "{% macro f() %}{% endmacro %}"),
    "functions": each("{{ range(3) | list }}{{ dict(a=1).a }}{{ strftime_now('%Y') }}"),
    "a macro with keys": each("{{ f(t=m.content) }}", "{% macro f(u=0, t='x') %}{{ u }}{{ t }}{% endmacro %}"),
    "a macro in itself": each("{{ f(m.content, 2) }}", "{% macro f(t, n) %}{{ t }}{% if n %}{{ f(t, n - 1) }}{% endif %}{% endmacro %}"),
    "roles": each("{% if m.role is eq('user') and m.role in ['user'] %}{{ m.role.upper() }}{% endif %}"),
    "messages of a role": each("{% for u in messages | selectattr('role', 'equalto', 'user') %}{{ u.content }}{% endfor %}"),
    "a refusal": each("{% if m.role == 'tool' %}{{ raise_exception('no ' ~ m.content | upper) }}{% endif %}"),
    "less white space": each("{% if (' ' ~ m.content).strip() %}{{ ('\n' ~ m.content) | trim }}{% endif %}"),
}  # fmt: skip
STRANGE = ("m.get()", "m.get(1)", "m.get(none)", "m.get(*[])", "loop()", "f(1)", "m.content()")

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


def shown(source: str, *texts: str) -> str | None:
    """What a template prints for a row of these texts; None if it refuses."""
    roles = ("user", "assistant")
    try:
        return template(source).render([{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)])
    except Refused:
        return None


def only_prints(source: str, *texts: str) -> bool:
    """Whether a template prints for these texts what it prints for any others, but for the texts themselves."""
    marks = [chr(0xE000 + number) for number in range(len(texts))]
    printed = shown(source, *marks)
    around = printed and printed.translate({ord(mark): text for mark, text in zip(marks, texts, strict=True)})
    return shown(source, *texts) == around


TEXTS = (("a", "b<c", "a"), ("b", "a", "b"), ("<a>", "a", "'&'"), ("a", "a", "a"))


@pytest.mark.parametrize("name", SLY)
def test_what_looks_in_a_sly_way_is_not_blind(name):
    assert of(SLY[name]) is Sight.LOOKS
    assert not all(only_prints(SLY[name], *texts) for texts in TEXTS), "it does not look at all"


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_harmless_is_blind(name):
    assert of(HARMLESS[name]) is not Sight.LOOKS
    assert shown(HARMLESS[name], "a", "b")
    assert all(only_prints(HARMLESS[name], *texts) for texts in TEXTS)


@pytest.mark.parametrize("said", STRANGE)
def test_what_makes_no_sense_is_a_look(said):
    assert of(each("{% if false %}{{ " + said + " }}{% endif %}")) is Sight.LOOKS


def test_every_function_that_a_template_knows_is_special():
    assert set(Environment().globals) <= blind.SPECIAL


def test_many_variables_that_wait_for_each_other_are_a_look():
    chain = "".join(f"{{% set v{n} = v{n + 1} %}}" for n in range(blind.PASSES + 1))
    assert of(each(chain + f"{{% set v{blind.PASSES + 1} = m.content %}}")) is Sight.LOOKS


NAMES = st.sampled_from(["x"] * 3 + ["y", "m", "f", "messages", "loop", "namespace", "caller", "raise_exception"])
SOURCES = st.sampled_from(["m.content", "m", "loop", "messages", "namespace", "namespace(c=m.content)", "'a'", "ns"])
CONTENT = ["@", "@.content", "@.previtem.content"]
WRAPS = st.sampled_from(
    [
        *CONTENT * 6,
        *("[@][0]", "([@]|first)", "(@ if true else 0)", "(@ or 0)", "(@ and 1)", "{'k':@}['k']", "(@,1)[0]", "dict(k=@).k"),
        *("@['content']", "@.get('content')", "@['con'~'tent']", "@.previtem", "@.c", "@().c", "@[0]", "@[-1]", "@[:1]"),
        *("(@~'')", "(@+'')", "('<'|safe)+@", "(@|safe)", "(@|string)", "(@|trim)", "@.strip()", "'%s'%@", "'{}'.format(@)"),
        *("(@|list)", "(@|last)", "(@|length)", "(@|default('a'))", "('a'|default(@))", "(@|upper)", "loop.cycle(@)", "f(@)"),
        *("namespace(c=@).c", "@()", "(@ in messages)", "('content' in @)", "(@ is eq('a'))", "('a' is eq(*[@]))", "not @"),
    ]
)  # fmt: skip
AROUND = st.sampled_from(
    [
        *("{% set $ = @ %}#", "{% set $ = @ %}#", "#{% set $ = @ %}", "{% set $ %}{{ @ }}{% endset %}#", "{% set y, $ = 1, @ %}#"),
        *("{% for $ in @ %}#{% endfor %}", "{% for $ in [@] %}#{% endfor %}", "{% for $ in messages if @ %}#{% endfor %}"),
        *("{% macro $(x) %}#{% endmacro %}{{ $(@) }}", "{% macro f($) %}#{% endmacro %}{{ f(@) }}", "{% if @ %}#{% endif %}"),
        *("{% macro f(x, $=@) %}#{% endmacro %}{{ f(1) }}", "{% macro f() %}{{ caller() }}#{% endmacro %}{% call f() %}{{ @ }}{% endcall %}"),
        *("{% macro f(y) %}{% endmacro %}{% macro g(t) %}{{ f(t) }}{% endmacro %}{% macro f(x) %}#{% endmacro %}{{ g(@) }}",),
        *("{% set n = $ %}{% set ns = n() %}{% set ns.c = @ %}#", "{% set ns.c = @ %}{% set $ = ns.c %}#"),
        *("{% with $ = @ %}#{% endwith %}", "{% generation %}#{% endgeneration %}", "{% filter trim %}#{% endfilter %}"),
    ]
)  # fmt: skip
PROBES = st.sampled_from(
    ["{{ @ }}", "{% if @ %}!{% endif %}", "{{ @ is string }}", *["{% if not loop.first and @ == 'a' %}!{% endif %}", ASK % "@"] * 2]
)  # fmt: skip


LOOKING = st.sampled_from(
    [
        *("{% if 'a' in @ %}!{% endif %}", "{{ @.split('a')[-1] }}", "{{ @ | replace('a', '!') }}", "{{ @.strip('a') }}"),
        *("{% if @ == m.content %}!{% endif %}", "{% if @ == 'a' %}!{% endif %}", "{% if @ | length > 0 %}!{% endif %}"),
        *("{% if ('<' ~ @).endswith('<a') %}!{% endif %}", "{% if '&a' in '&' ~ @ ~ 'a' %}!{% endif %}", "{{ @ | tojson }}"),
        *("{% for p in @.split('a') %}{{ p }}{{ loop.length }}{% endfor %}", "{% if @ is not string %}{{ @[0] }}{% endif %}"),
        *("{% if '<a' in @ ~ messages[0].content %}!{% endif %}", "{% if @ == messages[0] %}!{% endif %}", "{{ @.split('a')[1] }}"),
        *("{{ @ | default('', true) }}", "{% if @.c is defined %}!{% endif %}", "{% if @ != '' %}!{% endif %}{{ @ | trim }}"),
    ]
)  # fmt: skip


@st.composite
def programs(draw, probes=PROBES):
    """Templates that carry a text, a message or something near it through a few hands, and then ask or print it."""
    source, said = "#", draw(SOURCES)
    for around in [*draw(st.lists(AROUND, max_size=3)), draw(probes)]:
        said = draw(WRAPS).replace("@", said)
        name = draw(NAMES)
        source, said = source.replace("#", around).replace("@", said).replace("$", name), name
    return each(source, "{% set ns = namespace(c='') %}")


@settings(max_examples=400, deadline=None)
@given(source=programs(), texts=st.lists(st.sampled_from(["a", "b", "<", "&a"]), min_size=1, max_size=4))
def test_a_template_that_is_read_as_blind_only_prints(source, texts):
    try:
        Environment(NOW).compile_template(source)
    except Refused:
        return
    assert of(source) is Sight.LOOKS or only_prints(source, *texts)


@settings(max_examples=600, deadline=None)
@given(
    source=programs(LOOKING), texts=st.lists(st.sampled_from(["a", "b", "<", "&", ">a", "b "]), min_size=1, max_size=3)
)
def test_a_template_whose_looks_are_known_only_prints_what_holds_none(source, texts):
    try:
        Environment(NOW).compile_template(source)
    except Refused:
        return
    wanted = looked_for(Environment(NOW).parse(source), pinned=True)
    bare = texts == [text.strip() for text in texts]
    if wanted is not None and wanted.sight is not Sight.LOOKS and (bare or wanted.sight is Sight.PRINTS):
        assert not wanted.allows(texts, bare) or only_prints(source, *texts)


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
    known = [name for name, source in ALL.items() if template(source).sight is not Sight.LOOKS]
    assert all(any(family in name for name in known) for family in ("qwen2_5", "qwen3", "gemma4", "nemotron"))
    assert len([name for name in known if template(ALL[name]).looked_for == Wanted()]) > 10


def test_rows_with_white_space_around_a_text_are_rendered_where_it_may_be_trimmed():
    made = template(TRIMS["filter"] + "{# other #}")
    for first, second in product(("a", " a", "a\n"), repeat=2):
        row = [{"role": "assistant", "content": first}, {"role": "assistant", "content": second}]
        assert made.prove(row)[0] == first.strip() + second.strip()


def test_a_wrong_reading_is_found_and_ends_the_run():
    made = Template(LOOKS["begins"], SPECIAL, NOW)
    made.sight, made.looked_for = Sight.PRINTS, Wanted()  # as if the reader had a gap
    made.prove([{"role": "assistant", "content": "b"}])
    with pytest.raises(InternalError, match="otherwise"):
        made.prove([{"role": "assistant", "content": "a"}])
