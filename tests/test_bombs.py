"""Templates that want more than text: each is refused in time and in memory, and the process lives on or ends at once.

Every payload runs in a process of its own kind: one that may grow by 1 GiB, and that a single operation of C which does
not come back ends. That is how workers run templates.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import count

import pytest

from datakit.templates.environment import GRACE, SECONDS, Environment, Refused, TooLong, deadline
from datakit.templates.template import Template

GIB = 1 << 30
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")

RUNNER = """
import json, resource, sys
from datakit.limit import limit_memory
from datakit.templates.environment import Refused, deadline
from datakit.templates.template import Template

limit_memory(1 << 30)
deadline.lethal = True
for source in json.loads(sys.stdin.read()):
    try:
        said = Template(source, {}).render([{"role": "user", "content": "x"}])
    except Refused as refused:
        said = None
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([said, grown]), flush=True)
"""


def run(sources):
    """What each source printed, None where it was refused; and how the process ended."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        timeout=60 + 5 * len(sources),
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(grown << 10 < GIB + (300 << 20) for _, grown in lines), "it has taken more than it may"
    return [said for said, _ in lines], done.returncode, done.stderr


def growing(step, start="'ab'", times=40):
    """A template whose value grows with every pass of a loop."""
    return f"{{% set ns = namespace(t={start}) %}}{{% for i in range({times}) %}}{step}{{% endfor %}}{{{{ ns.t | length }}}}"


# ---------------------------------------------------------------- refused by what they are

FORBIDDEN = {
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a helper": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of a namespace": "{% set n = namespace() %}{{ n.__init__.__globals__['sys'] }}",
    "underscore in a namespace": "{% set n = namespace(__class__=1) %}",
    "underscore set later": "{% set n = namespace() %}{% set n.__x = 1 %}",
    "globals of an exception": "{{ raise_exception.__globals__.os }}",
    "a change of the row": "{% for i in range(9) %}{% set _ = messages.append(1) %}{% endfor %}",
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "nested brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "a long sum": "{{ " + "1 + " * 30_000 + "1 }}",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_a_sandbox_forbids_is_refused(name):
    with pytest.raises(Refused):
        Template(FORBIDDEN[name], {}).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ '' | attr('__class__') }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ strftime_now.__self__ }}",
        "{{ messages[0]['_number'] }}{{ messages[0]._number }}",
    ],
)
def test_what_is_hidden_is_undefined(source):
    row = [{"role": "user", "content": "x"}]
    assert Template(source, {}).render(row) == Template(source, {}).tracked(row).text == ""


# ---------------------------------------------------------------- refused by what they would make

TOO_MUCH = {
    "repeated text": "{{ 'a' * 1000000000 }}",
    "repeated text that never runs": "{% if false %}{{ 'a' * 500000000 }}{% endif %}x",
    "repeated content": "{{ messages[0].content * 1000000000 }}",
    "repeated the other way": "{{ 1000000000 * messages[0].content }}",
    "repeated list": "{{ (messages * 300000000) | length }}",
    "repeated tuple": "{{ ((1,) * 300000000) | length }}",
    "a wide number": "{{ '%900000000d' % 1 }}",
    "a wide number, gathered": "{{ (messages[0].content ~ '%900000000d') % 1 }}",
    "a width given apart": "{{ '%*d' % (900000000, 1) }}",
    "a long fraction": "{{ '%.900000000f' % 1 }}",
    "a power": "{{ 10 ** (10 ** 8) }}",
    "a power of content": "{% set n = messages | length + 8 %}{{ n ** n ** n ** n ** n ** n ** n ** n }}",
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_an_operator_that_would_make_too_much_is_refused_before_it_does(name):
    source = TOO_MUCH[name]
    if "never" in name:
        assert Template(source, {}).render([]) == "x", "it is not folded when the template is compiled"
    else:
        with pytest.raises(Refused, match="would make too much"):
            Template(source, {}).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ '=' * 60 }}", "=" * 60),
        ("{{ 3 * 'ab' }}{{ [1] * 3 }}", "ababab[1, 1, 1]"),
        ("{{ 7 % 4 }}{{ 2 ** 10 }}{{ 6 * 7 }}{{ 2.5 * 2 }}{{ 2 ** -1 }}{{ 'x' * -1 }}", "31024425.00.5"),
        ("{{ '%s: %5d %.2f %%' % ('a', 3, 0.5) }}", "a:     3 0.50 %"),
        ("{{ 'a' * 1048576 }}", "a" * (1 << 20)),
    ],
)
def test_operators_of_ordinary_size_do_what_they_do(source, text):
    assert Template(source, {}).render([]) == text
    assert Template(source, {}).tracked([]).text == text


# ---------------------------------------------------------------- stopped by the limits of the process

LARGE = {
    "center": "{{ messages[0].content | center(1900000000) }}",
    "ljust": "{{ messages[0].content.ljust(1900000000) }}",
    "rjust": "{{ messages[0].content.rjust(1900000000) }}",
    "zfill": "{{ messages[0].content.zfill(1900000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(1900000000) }}",
    "format filter": "{{ '%1900000000d' | format(1) }}",
    "format method": "{{ '{:>1900000000}'.format(messages[0].content) }}",
    "format with a width given apart": "{{ '{:>{}}'.format('x', 1900000000) }}",
    "format_map": "{{ '{x:>1900000000}'.format_map({'x': 'y'}) }}",
    "indent": "{{ messages[0].content | indent(1900000000, true) }}",
    "tojson": "{{ messages | tojson(indent=1900000000) }}",
    "batch": "{{ messages[0].content | batch(1900000000, 'x') | list }}",
    "growing text": growing("{% set b %}{{ ns.t }}{{ ns.t }}{{ ns.t }}{{ ns.t }}{% endset %}{% set ns.t = b %}"),
    "growing by joining": growing("{% set ns.t = [ns.t] * 20 | join %}{% set ns.t = ns.t | join %}"),
    "growing by replacing": growing("{% set ns.t = ns.t.replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaa') %}", "'a'"),
    "growing list": growing("{% set ns.t = ns.t + ns.t + ns.t + ns.t %}", "[1]"),
}
LONG = {
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n > 1 %}{{ f(n-1) }}{{ f(n-2) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a list within a list": growing("{% set ns.t = [ns.t, ns.t] %}", "[]", 100).replace("ns.t | length", "ns.t"),
}


@LINUX
@pytest.mark.parametrize("name", LARGE)
def test_what_is_too_large_is_refused_and_the_process_goes_on(name):
    said, code, error = run([LARGE[name], "after"])
    assert (said, code) == ([None, "after"], 0), error


@LINUX
def test_what_is_too_large_to_be_folded_is_left_for_the_render():
    source = "{% if messages %}{{ 'x' | center(1900000000) }}{% else %}no{% endif %}"
    said, code, error = run([source, source.replace("messages", "tools"), "after"])
    assert (said, code) == ([None, "no", "after"], 0), error


@LINUX
@pytest.mark.parametrize("name", LONG)
def test_what_takes_too_long_is_refused_and_the_process_goes_on(name):
    said, code, error = run([LONG[name], "after"])
    assert (said, code) == ([None, "after"], 0), error


STUCK = {
    "JSON of a list within a list": growing("{% set ns.t = [ns.t, ns.t] %}", "[]", 100).replace("length", "tojson"),
    "a comparison": "{% set ns = namespace(t=[], u=[]) %}{% for i in range(60) %}{% set ns.t = [ns.t, ns.t] %}"
    "{% set ns.u = [ns.u, ns.u] %}{% endfor %}{{ ns.t == ns.u }}",
    "a sum of lists": "{% set ns = namespace(t=[messages]) %}{% for i in range(17) %}{% set ns.t = ns.t + ns.t %}"
    "{% endfor %}{{ ns.t | sum(start=[]) | length }}",
}


@pytest.mark.parametrize("name", STUCK)
def test_an_operation_that_does_not_come_back_ends_the_process(name):
    said, code, _ = run(["before", STUCK[name], "after"])
    assert (said, code) == (["before"], -signal.SIGVTALRM)


def test_a_busy_machine_is_no_reason_to_refuse_a_template():
    with deadline(0.1):
        time.sleep(0.3)
    with pytest.raises(TooLong), deadline(0.1):
        any(number < 0 for number in count())


def test_the_timers_are_off_between_renders():
    environment = Environment()
    environment.render_template(environment.compile_template("x"), {})
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert SECONDS + GRACE <= 2.5


# ---------------------------------------------------------------- the limit itself

LIMIT = """
import resource, sys
from datakit.limit import limit_memory

def takes(size):
    try:
        return len(bytearray(size)) == size
    except MemoryError:
        return False

{}
"""


def python(code):
    done = subprocess.run([sys.executable, "-c", LIMIT.format(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@LINUX
def test_a_process_may_grow_by_what_it_is_given_and_no_more():
    told = python("limit_memory(256 << 20); print(takes(200 << 20), takes(300 << 20), takes(200 << 20))")
    assert told == ["True", "False", "True"]


@LINUX
def test_the_limit_moves_when_it_is_set_again():
    assert python("limit_memory(64 << 20); limit_memory(256 << 20); print(takes(200 << 20))") == ["True"]


@LINUX
def test_a_hard_limit_stays():
    code = (
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)); limit_memory(1 << 50); "
        "print(resource.getrlimit(resource.RLIMIT_AS) == (1 << 40, 1 << 40))"
    )
    assert python(code) == ["True"]
