"""Rendering: the same text as `apply_chat_template(tokenize=False)` of the installed transformers, or both refuse."""

from __future__ import annotations

from datetime import datetime
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.templates.environment import MAX_TEXT, Environment, Refused, never_the_same
from datakit.templates.template import Template
from tests.conversations import SPECIAL, SUITE, TOOLS, Conversation, installed, templates

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
from tokenizers import Tokenizer, models  # noqa: E402
from transformers.utils import chat_template_utils  # noqa: E402

NOW = datetime(2026, 1, 2, 3, 4, 5)
ALL = dict(templates())
every = pytest.mark.parametrize("name", ALL)


class Clock(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return NOW


@pytest.fixture(autouse=True)
def still(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@cache
def tokenizer():
    return transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)


@cache
def template(source: str) -> Template:
    return Template(source, SPECIAL, NOW)


def theirs(source, conversation, prompt=False):
    """The text of transformers, or None where the template refuses."""
    try:
        return tokenizer().apply_chat_template(
            conversation.messages,
            tools=conversation.tools,
            chat_template=source,
            add_generation_prompt=prompt,
            tokenize=False,
            **(conversation.kwargs or {}),
        )
    except Exception:
        return None


def ours(source, conversation, prompt=False):
    try:
        return template(source).render(conversation.messages, conversation.tools, conversation.kwargs, prompt)
    except Refused:
        return None


# ---------------------------------------------------------------- the same text


@every
def test_every_conversation_gives_the_text_of_transformers(name):
    rendered = 0
    for title, conversation in SUITE.items():
        for prompt in (False, True):
            text = ours(ALL[name], conversation, prompt)
            assert text == theirs(ALL[name], conversation, prompt), title
            rendered += text is not None
    assert rendered, "a template that refuses everything shows nothing"


@every
def test_the_tracked_render_prints_the_same(name):
    for title, conversation in SUITE.items():
        text = ours(ALL[name], conversation)
        if text is not None:
            assert template(ALL[name]).tracked(*conversation).text == text, title


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["<think>\n", "</think>", "\n\n", "<|im_end|>", "[INST]", "</s>", " x ", "{{ x }}", "None", "0"]
)
contents = st.lists(words, max_size=4).map("".join)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.tuples(contents, contents, contents), min_size=1, max_size=3), st.booleans())
@pytest.mark.parametrize("name", ["trl/qwen3", "trl/llama3", "trl/gptoss", "trl/glm4moe", "trl/gemma4", "trl/cohere2"])
def test_any_text_gives_the_text_of_transformers(name, turns, tools):
    path = installed().get(name)
    if path is None:
        pytest.skip("TRL does not ship it")
    source = path.read_text("utf-8")
    messages = []
    for asked, thought, said in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        if thought:
            messages[-1]["reasoning_content"] = thought
    conversation = Conversation(messages, TOOLS if tools else None)
    assert ours(source, conversation) == theirs(source, conversation)


# ---------------------------------------------------------------- what a template can read


def test_a_template_reads_what_transformers_gives_it():
    source = (
        "{{ bos_token }}{{ messages[0] | tojson }}{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ mode }}"
        "{{ strftime_now('%d %b') }}{{ eos_token }}{{ other is defined }}"
    )
    message = {"role": "user", "content": "é", "name": None, "reasoning": "r"}
    conversation = Conversation([message], None, {"mode": 3, "eos_token": "<e>"})
    text = ours(source, conversation)
    assert text == theirs(source, conversation)
    assert text == (
        '<s>{"thinking": "r", "role": "user", "content": "é", "reasoning": "r", "reasoning_content": "r"}'
        "NoneNoneFalse302 Jan<e>False"
    )


def test_loss_weights_are_not_for_templates():
    source = "{{ messages | tojson }}"
    weighted = Conversation([{"role": "assistant", "content": "x", "weight": 0}])
    assert ours(source, weighted) == ours(source, Conversation([{"role": "assistant", "content": "x"}]))


@pytest.mark.parametrize("name", ["messages", "tools"])
def test_template_arguments_cannot_replace_the_row(name):
    conversation = Conversation([{"role": "user", "content": "x"}], None, {name: [{"role": "user", "content": "y"}]})
    with pytest.raises(Refused, match=name):
        template("{{ messages[0].content }}").render(*conversation)
    assert theirs("{{ messages[0].content }}", conversation) is None


def test_a_template_cannot_change_the_row():
    message = {"role": "user", "content": "x"}
    with pytest.raises(Refused, match="unsafe|not safely|immutable|SecurityError"):
        template("{% set _ = messages[0].update({'content': 'y'}) %}").render([message])
    assert message == {"role": "user", "content": "x"}


def test_generation_marks_print_their_body_and_nothing_else():
    source = "{% macro m(t) %}{% generation %}<{{ t }}>{% endgeneration %}{% endmacro %}{{ m(messages[0].content) }}"
    assert ours(source, Conversation([{"role": "assistant", "content": "x"}])) == "<x>"


# ---------------------------------------------------------------- refusals say why


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ none + 'x' }}", "TypeError"),
    ],
)
def test_a_refused_row_has_the_reason_of_the_template(source, reason):
    with pytest.raises(Refused, match=reason):
        Template(source, {}).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("source", "line"), [("{% if %}", 1), ("a\n{{ x", 2), ("\n\n{% endfor %}", 3), ("{{ x | nofilter }}", 1)]
)
def test_a_template_that_is_none_is_refused_with_its_line(source, line):
    with pytest.raises(Refused, match=f"line {line}: "):
        Template(source, {})


def test_a_row_of_too_many_characters_is_refused():
    source = "{{ messages[0].content }}"
    assert len(Template(source, {}).render([{"role": "user", "content": "x" * MAX_TEXT}])) == MAX_TEXT
    with pytest.raises(Refused, match="prints more than"):
        Template(source, {}).render([{"role": "user", "content": "x" * (MAX_TEXT + 1)}])


def test_names_that_change_the_text_are_told():
    assert never_the_same("{{ strftime_now('%Y') }}{{ messages | random }}") == ["strftime_now", "random"]
    assert never_the_same("strftime_now {# random #}{{ 'lipsum' }}") == []


def test_without_a_pinned_time_the_clock_runs():
    text = Template("{{ strftime_now('%Y') }}", {}).render([])
    assert text == datetime.now().strftime("%Y")


def test_one_environment_serves_many_templates():
    environment = Environment(NOW)
    made = [environment.compile_template("{{ x }}" * n) for n in range(3)]
    assert [environment.render_template(t, {"x": "y"}) for t in made] == ["", "y", "yy"]
