"""Spans: the law, checked from outside.

Nothing here asks the engine where it believes a text to come from. Contents are made recognisable and looked for in the
rendered text; masks are compared with those of transformers; small templates have their spans written by hand; and where
an operation on tracked strings is broken on purpose, a row may be refused, but its spans may not change.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from functools import cache
from itertools import count
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datakit.templates import compiler
from datakit.templates import tracked as tracking
from datakit.templates.environment import Refused
from datakit.templates.spans import Proof, Unproven
from datakit.templates.template import Template
from datakit.templates.tracked import LITERAL, UNKNOWN, Tracked, tracked
from tests.conversations import (
    ORDINARY,
    SPECIAL,
    SUITE,
    TOOLS,
    Conversation,
    characters,
    installed,
    marks,
    templates,
    twins,
)

pytest.importorskip("transformers")
from transformers.utils import chat_template_utils

NOW = datetime(2026, 1, 2)
ALL = dict(templates())
every = pytest.mark.parametrize("name", ALL)
quick = settings(deadline=None, derandomize=True, max_examples=40)


@cache
def template(source: str, twin: str | None = None) -> Template:
    return Template(source, SPECIAL, NOW, twin)


def proven(made: Template, conversation: Conversation) -> tuple[str, Proof] | None:
    try:
        return made.prove(*conversation)
    except (Refused, Unproven):
        return None


def shown(text: str, proof: Proof) -> str:
    """The text with its spans in double brackets."""
    made, at = "", 0
    for span in proof.spans:
        made += text[at : span.start] + "[[" + text[span.start : span.end] + "]]"
        at = span.end
    return made + text[at:]


# ---------------------------------------------------------------- every text is inside its own span, or outside of all


class Salted:
    """A conversation whose texts each hold a word that occurs nowhere else, and who said which."""

    def __init__(self, conversation: Conversation, around: Callable[[], str]) -> None:
        self.words: dict[int, list[str]] = defaultdict(list)
        self.around, self.numbers = around, count()
        messages = [self.message(number, message) for number, message in enumerate(conversation.messages)]
        tools = self.value(-1, conversation.tools) if conversation.tools else None
        self.conversation = Conversation(messages, tools, conversation.kwargs)

    def message(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        made = dict(message)
        for key in {"content", "reasoning_content"} & message.keys():
            made[key] = self.value(number, message[key])
        for call in message.get("tool_calls", ()):
            function = call["function"]
            arguments = self.value(number, function["arguments"])
            made["tool_calls"] = [*made["tool_calls"][1:], {**call, "function": {**function, "arguments": arguments}}]
        return made

    def value(self, number: int, value: Any) -> Any:
        """A JSON value with words in all its texts but those that say what it is."""
        if isinstance(value, str) and value.strip():
            return self.around() + self.word(number) + self.around()
        if isinstance(value, list):
            return [self.value(number, item) for item in value]
        if isinstance(value, dict):
            return {
                key: item if key in ("type", "name", "required") else self.value(number, item)
                for key, item in value.items()
            }
        return value

    def word(self, number: int) -> str:
        self.words[number].append(f"Q{next(self.numbers):03}Z")
        return self.words[number][-1]


def literals(source: str) -> list[str]:
    """Texts that a template prints or looks for, and some that others do."""
    found = re.findall(r"'([^'\n]{1,40})'|\"([^\"\n]{1,40})\"|\}([^{}]{1,40})\{", source)
    common = [
        "<think>",
        "</think>",
        "\n\n",
        "<|im_end|>\n",
        "<|im_start|>assistant\n",
        "[/INST]",
        "</s>",
        "assistant",
        " ",
    ]
    return [text for texts in found for text in texts if text] + common


def keeps_the_law(salted: Salted, text: str, proof: Proof) -> None:
    owner = [-2] * len(text)
    for span in proof.spans:
        owner[span.start : span.end] = [span.message] * (span.end - span.start)
    for number, words in salted.words.items():
        said = number >= 0 and salted.conversation.messages[number]["role"] == "assistant"
        lost = {n for n, _ in proof.lost}
        for word in words:
            places = [match.start() for match in re.finditer(word, text)]
            assert places or number in lost or not said, f"{word} is lost, and nobody says so"
            for at in places:
                assert set(owner[at : at + len(word)]) == {number if said else -2}, (word, shown(text, proof))


@every
def test_a_word_is_in_the_span_of_who_said_it(name):
    for title, conversation in SUITE.items():
        salted = Salted(conversation, lambda: "")
        found = proven(template(ALL[name]), salted.conversation)
        if found:
            keeps_the_law(salted, *found)
        assert bool(found) == bool(proven(template(ALL[name]), conversation)), title


@every
def test_so_it_is_among_texts_that_imitate_the_template(name):
    chance, around = Random(name), literals(ALL[name])
    for conversation in SUITE.values():
        salted = Salted(conversation, lambda: "".join(chance.choices(around, k=chance.randrange(3))))
        if found := proven(template(ALL[name]), salted.conversation):
            keeps_the_law(salted, *found)


@every
def test_what_was_seen_before_changes_nothing(name):
    fresh, used = Template(ALL[name], SPECIAL, NOW), template(ALL[name])
    for title, conversation in SUITE.items():
        fresh.skeletons._known.clear()
        fresh.prover._openings.clear()
        fresh.prover._endings.clear()
        assert proven(fresh, conversation) == proven(used, conversation), title


# ---------------------------------------------------------------- the masks of transformers


class Clock(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return NOW


@pytest.fixture(autouse=True)
def still(monkeypatch):
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.parametrize("name", twins() or [pytest.param("", marks=pytest.mark.skip(reason="no TRL"))])
def test_spans_are_those_of_the_training_twin(name):
    twin = twins()[name]
    made, compared = template(installed()[name].read_text("utf-8"), twin), 0
    for title, conversation in SUITE.items():
        found, theirs = proven(made, conversation), marks(twin, conversation)
        if found and theirs and found[0] == theirs[0]:
            compared += 1
            assert characters(found[1].spans) == characters(theirs[1]), title
            assert found[1].marked
    assert compared, "nothing was compared"


@pytest.mark.parametrize("name", [name for name in installed() if "_training" in name])
def test_spans_are_those_of_the_template_s_own_marks(name):
    source, compared = installed()[name].read_text("utf-8"), 0
    for title, conversation in SUITE.items():
        found, theirs = proven(template(source), conversation), marks(source, conversation)
        if found and theirs:
            compared += 1
            assert found[0] == theirs[0]
            assert characters(found[1].spans) == characters(theirs[1]), title
    assert compared, "nothing was compared"


# ---------------------------------------------------------------- spans written by hand

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% set c = '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + "
    "'<|eot|>' %}{{ c }}{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
THINKS = (
    "{% for m in messages %}{% set text = m.content %}{% set thought = '' %}"
    "{% if '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set text = text.split('</think>')[-1].lstrip() %}{% endif %}"
    "<{{ m.role }}>{% if thought %}<think>{{ thought }}</think>{% endif %}{{ text }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NEXT_CLOSES = (
    "{% for m in messages %}{% if not loop.first %}<end>{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if messages[-1].role == 'assistant' %}<end>{% endif %}"
)
MACRO = (
    "{% macro turn(who, what) %}<{{ who }}>{{ caller() if caller else what }}<end>{% endmacro %}"
    "{% for m in messages %}{{ turn(m.role, m.content) }}{% endfor %}"
)
SET_BLOCK = "{% for m in messages %}{% set one %}<{{ m.role }}>{{ m.content }}<end>{% endset %}{{ one }} {% endfor %}"
NAMESPACE = (
    "{% set ns = namespace(all='') %}{% for m in messages %}{% set ns.all = ns.all ~ '<' ~ m.role ~ '>' ~ m.content ~ "
    "'<end>' %}{% endfor %}{{ ns.all }}"
)
INDEX = "{% for i in range(messages | length) %}<{{ messages[i].role }}>{{ messages[i].content }}<end>{% endfor %}"
RESULTS_INSIDE = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% elif m.role == 'assistant' %}"
    "{% if loop.index0 and messages[loop.index0 - 1].role == 'user' %}<assistant>{% endif %}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "{{ m.content }}{% if loop.last or messages[loop.index0 + 1].role == 'user' %}<end>{% endif %}"
    "{% else %}<result>{{ m.content }}</result>{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role == 'user' %}<assistant>{% endif %}"
)
NO_END = "{% for m in messages %}{{ '\n' ~ m.role | title }}: {{ m.content }}{% endfor %}"
EOS_AFTER = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ eos_token }}"
EOS_IN_TURN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' }}\n{% endfor %}"
)
GENERATION = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<end>\n"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
PAIRS = (
    "{% for i in range(0, messages | length, 2) %}[INST]{{ messages[i].content }}[/INST]{{ messages[i + 1].content }}"
    "{{ eos_token }}{% endfor %}"
)
NO_QUESTION_LAST = (
    "{% for i in range(messages | length) %}{% set m = messages[i] %}{% if m.role == 'user' and i == messages | length - 1 "
    "and i %}{{ raise_exception('ends on the user') }}{% endif %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
)
PROMPT_IN_LAST_PASS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% if loop.last %}<|assistant|>\n{% endif %}{% endfor %}"
NO_END_BUT_A_PROMPT = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}<|start|>assistant\n"
PARTS_THEN_A_TASK = (
    "{% for m in messages %}{% for part in m.content | selectattr('type', 'equalto', 'text') %}"
    "{{ m.role }}: {{ part.text }}{{ '\n' }}{% endfor %}{% endfor %}<task>\nRate the answer:"
)
CALLS_OPENED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.tool_calls %}<|call|>{{ m.content }}<|name|>"
    "{{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
OLDER_THOUGHTS_LEFT_OUT = (
    "{% for i in range(messages | length) %}{% set m = messages[i] %}<{{ m.role }}>"
    "{% if m.reasoning_content and i + 1 == messages | length %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
THREE_OPENINGS = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.reasoning_content %}<|think|>{{ m.reasoning_content }}<|/think|>"
    "{% endif %}{% if m.role == 'assistant' %}<|say|>{% endif %}{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><|think|><|/think|>{% endif %}"
)
NEXT_PASS_CLOSES = (
    "{% for m in messages %}{% if not loop.first and loop.previtem.role == 'assistant' %}<|end|>{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}{% if m.role == 'user' %}<|asked|>{% endif %}{% endfor %}"
)
CALLS_CLOSED_LATER = (
    "{% for m in messages %}{% if not loop.first %}<|end|>{% endif %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}{% endfor %}<|end|>"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS_AROUND_ALL = (
    "{% generation %}"
    + INDEX.replace("i in range(messages | length)", "m in messages").replace("messages[i]", "m")
    + "{% endgeneration %}"
)
GENERATION_WITHOUT_END = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<end>{% endfor %}"
)
TWO: list[dict[str, Any]] = [
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": " 1"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "2"},
]


@pytest.mark.parametrize(
    ("source", "messages", "expected"),
    [
        pytest.param(
            CHATML + PROMPT,
            TWO,
            "<|im_start|>user\none?<|im_end|>\n<|im_start|>assistant\n[[ 1<|im_end|>]]\n"
            "<|im_start|>user\ntwo?<|im_end|>\n<|im_start|>assistant\n[[2<|im_end|>]]\n",
            id="chatml",
        ),
        pytest.param(
            LLAMA,
            TWO[:2],
            "<s><|head|>user<|/head|>\n\none?<|eot|><|head|>assistant<|/head|>\n\n[[1<|eot|>]]",
            id="one string per turn",
        ),
        pytest.param(
            NEXT_CLOSES,
            TWO,
            "<user>one?<end><assistant>[[ 1<end>]]<user>two?<end><assistant>[[2<end>]]",
            id="the next turn closes this one",
        ),
        pytest.param(
            INDEX,
            TWO,
            "<user>one?<end><assistant>[[ 1<end>]]<user>two?<end><assistant>[[2<end>]]",
            id="a loop over numbers",
        ),
        pytest.param(
            NAMESPACE,
            TWO,
            "<user>one?<end><assistant>[[ 1<end>]]<user>two?<end><assistant>[[2<end>]]",
            id="all turns gathered in one string",
        ),
        pytest.param(MACRO, TWO[:2], "<user>one?<end><assistant>[[ 1<end>]]", id="macro"),
        pytest.param(
            SET_BLOCK,
            TWO,
            "<user>one?<end> <assistant>[[ 1<end>]] <user>two?<end> <assistant>[[2<end>]] ",
            id="set block",
        ),
        pytest.param(
            THINKS,
            [TWO[0], {"role": "assistant", "content": "<think>hm</think>\n1"}, *TWO[2:]],
            "<user>one?<end><assistant>[[<think>hm</think>1<end>]]<user>two?<end><assistant>[[2<end>]]",
            id="a thought cut out of the text and printed again",
        ),
        pytest.param(
            RESULTS_INSIDE,
            [
                TWO[0],
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": "f"}}}],
                },
                {"role": "tool", "content": "f"},
                {"role": "assistant", "content": "f"},
                *TWO[2:],
            ],
            '<user>one?<assistant>[[<call>f {"x": "f"}</call>]]<result>f</result>[[f<end>]]<user>two?<assistant>[[2<end>]]',
            id="tool results inside the turn",
        ),
        pytest.param(NO_END, TWO, "\nUser: one?\nAssistant: [[ 1]]\nUser: two?\nAssistant: [[2]]", id="no end of turn"),
        pytest.param(EOS_AFTER, TWO[:2], "<user>one?<assistant>[[ 1</s>]]", id="end of sequence behind the loop"),
        pytest.param(
            EOS_IN_TURN,
            TWO,
            "user: one?\nassistant: [[ 1</s>]]\nuser: two?\nassistant: [[2</s>]]\n",
            id="end of sequence, then a line feed",
        ),
        pytest.param(
            GENERATION,
            TWO,
            "<user>one?<assistant>[[ 1<end>\n]]<user>two?<assistant>[[2<end>\n]]",
            id="generation marks",
        ),
        pytest.param(
            GENERATION_WITHOUT_END,
            TWO[:2],
            "<user>one?<end><assistant>[[ 1<end>]]",
            id="generation marks that leave out the end of the turn",
        ),
        pytest.param(PAIRS, TWO[:2], "[INST]one?[/INST][[ 1</s>]]", id="pairs: no question can follow alone"),
        pytest.param(
            NO_QUESTION_LAST, TWO[:2], "<user>one?<end><assistant>[[ 1<end>]]", id="a question last is refused"
        ),
        pytest.param(
            PROMPT_IN_LAST_PASS,
            TWO[:2],
            "<|user|>one?<|end|>\n<|assistant|>[[ 1<|end|>]]\n<|assistant|>\n",
            id="a prompt in the last pass, asked for or not",
        ),
        pytest.param(
            NO_END_BUT_A_PROMPT,
            TWO[:2],
            "<|start|>user\none?\n<|start|>assistant\n[[ 1]]\n<|start|>assistant",
            id="what begins the next turn is no end",
        ),
        pytest.param(
            NO_END_BUT_A_PROMPT,
            [{"role": "system", "content": "Be brief."}, *TWO],
            "<|start|>system\nBe brief.\n<|start|>user\none?\n<|start|>assistant\n[[ 1]]\n"
            "<|start|>user\ntwo?\n<|start|>assistant\n[[2]]\n<|start|>assistant",
            id="what begins the next turn is no end, and no question stands first",
        ),
        pytest.param(
            NO_END_BUT_A_PROMPT,
            [*TWO[:2], TWO[3]],
            "<|start|>user\none?\n<|start|>assistant\n[[ 1]]\n<|start|>assistant\n[[2]]\n<|start|>assistant",
            id="the header of another answer is no end",
        ),
        pytest.param(
            PARTS_THEN_A_TASK,
            [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in TWO],
            "user: one?\nassistant: [[ 1]]\nuser: two?\nassistant: [[2]]\n<task>\nRate the answer:",
            id="text behind the loop is no end where only parts are printed",
        ),
        pytest.param(
            CALLS_OPENED,
            [
                TWO[0],
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
                TWO[2],
                {"role": "assistant", "content": "2", "tool_calls": [{"function": {"name": "g", "arguments": {}}}]},
            ],
            "<user>one?<end><assistant>[[<|call|><|name|>f<end>]]<user>two?<end><assistant>[[<|call|>2<|name|>g<end>]]",
            id="what opens a call, with a text or without",
        ),
        pytest.param(
            CALLS_OPENED.replace("<|call|>", "  ").replace(
                "{% if add_generation_prompt %}<assistant>", "{% if add_generation_prompt %}<assistant> "
            ),
            [TWO[0], TWO[3] | {"tool_calls": [{"function": {"name": "g", "arguments": {}}}]}],
            "<user>one?<end><assistant>  [[2<|name|>g<end>]]",
            id="white space before a text and its call",
        ),
        pytest.param(
            OLDER_THOUGHTS_LEFT_OUT,
            [message | {"reasoning_content": "hm"} if message["role"] == "assistant" else message for message in TWO],
            "<user>one?<end><assistant>[[ 1<end>]]<user>two?<end><assistant>[[<think>hm</think>2<end>]]",
            id="a thought that is printed in the last turn only",
        ),
        pytest.param(
            THREE_OPENINGS,
            [TWO[0], TWO[3] | {"reasoning_content": "hm"}],
            "<|user|>one?<|end|><|assistant|>[[<|think|>hm<|/think|><|say|>2<|end|>]]",
            id="a thought, a plain answer and the prompt begin in three ways",
        ),
        pytest.param(
            "{% for m in messages %}{{ '<{}>{text}'.format(m.role, text=m.content) + '{0}<end>'.format('') }}{% endfor %}",
            TWO,
            "<user>one?<end><assistant>[[ 1<end>]]<user>two?<end><assistant>[[2<end>]]",
            id="formatted",
        ),
        pytest.param(
            NEXT_PASS_CLOSES,
            TWO,
            "<|user|>one?<|asked|><|assistant|>[[ 1]]<|end|><|user|>two?<|asked|><|assistant|>[[2]]",
            id="what only another turn prints may be its beginning",
        ),
        pytest.param(
            CALLS_CLOSED_LATER,
            [
                TWO[0],
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            ],
            "<|user|>one?<|end|><|assistant|>[[<call>f</call><|end|>]]",
            id="a call is closed as any answer",
        ),
        pytest.param(
            CALLS_CLOSED_LATER,
            [TWO[0], {"role": "assistant", "content": ""}, *TWO[2:]],
            "<|user|>one?<|end|><|assistant|>[[<|end|>]]<|user|>two?<|end|><|assistant|>[[2<|end|>]]",
            id="an empty answer is closed as any other",
        ),
        pytest.param(
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}<tc>{{ m.tool_calls[0].function.name"
            " | tojson }}{% if not loop.last %}, {{ m.tool_calls[0].id | tojson }}{% endif %}</tc>{% endif %}<|end|>"
            "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
            [TWO[0], {"role": "assistant", "content": "", "tool_calls": [{"id": "7", "function": {"name": "f"}}]}],
            '<|user|>one?<|end|><|assistant|>[[<tc>"f"</tc><|end|>]]',
            id="a last call that is printed otherwise",
        ),
        pytest.param(
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ '<|return|><|stop|>' if loop.last else '<|end|>' }}"
            "{% endfor %}",
            TWO,
            "<user>one?<|end|><assistant>[[ 1<|end|>]]<user>two?<|end|><assistant>[[2<|return|><|stop|>]]",
            id="another end where nothing follows",
        ),
        pytest.param(
            MARKS_AROUND_ALL,
            [{"role": "user", "content": ""}, TWO[3]],
            "<user><end><assistant>[[2<end>]]",
            id="marks around an empty question",
        ),
    ],
)
def test_spans_by_hand(source, messages, expected):
    text, proof = template(source).prove(messages)
    assert shown(text, proof) == expected


def test_the_same_text_has_the_same_spans_however_the_thought_was_written():
    path = installed().get("trl/qwen3")
    if path is None:
        pytest.skip("no TRL")
    made = template(path.read_text("utf-8"))
    apart = [TWO[0], {"role": "assistant", "content": "1", "reasoning_content": "hm"}]
    text, proof = made.prove(apart)
    assert shown(text, proof).endswith("<|im_start|>assistant\n[[<think>\nhm\n</think>\n\n1<|im_end|>]]\n")
    for content in ("<think>\nhm\n</think>\n\n1", "hm\n</think>\n\n1"):
        assert made.prove([TWO[0], {"role": "assistant", "content": content}]) == (text, proof)


THOUGHT = "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
CUT = (  # a thought is cut out of the text and printed again
    "{% for m in messages %}<{{ m.role }}>{% if '</think>' in m.content %}<think>"
    "{{ m.content.split('</think>')[0].split('<think>')[-1] }}</think>{{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<end>{% endfor %}{% if add_generation_prompt %}<assistant><think>{% endif %}"
)
TOGGLED = (  # the prompt depends on what was said
    "{% set ns = namespace(think=true) %}{% for m in messages %}{% if '/no_think' in m.content %}"
    "{% set ns.think = false %}{% endif %}<{{ m.role }}>" + THOUGHT + "{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if ns.think %}<think>{% endif %}{% endif %}"
)
SOME_MARKED = (  # the marks depend on what was said
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and 'code' not in m.content %}{% generation %}"
    "{{ m.content }}<end>{{ '\n' }}{% endgeneration %}{% else %}{{ m.content }}<end>{{ '\n' }}{% endif %}{% endfor %}"
)
UNMARKED = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{{ '\n' }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "twin", "before", "after", "expected"),
    [
        (CUT, None, ["q", "x"], ["q", "<think>r</think>x"], "<user>q<end><assistant><think>[[r</think>x<end>]]"),
        (TOGGLED, None, ["q", "x", "hm"], ["q /no_think", "x", "hm"], "<assistant>[[<think>hm</think>x<end>]]"),
        (SOME_MARKED, None, ["q", "x"], ["q", "code"], "<user>q<end>\n<assistant>[[code<end>]]\n"),
        (UNMARKED, SOME_MARKED, ["q", "x"], ["q", "code"], "<user>q<end>\n<assistant>[[code<end>]]\n"),
    ],
    ids=["cut and printed again", "another prompt", "marks by text", "the twin's marks by text"],
)
def test_a_row_that_holds_what_the_template_looks_for_is_no_row_like_others(source, twin, before, after, expected):
    def row(question: str, answer: str, thought: str | None = None) -> list[dict[str, Any]]:
        said = {"role": "assistant", "content": answer}
        return [{"role": "user", "content": question}, said | ({"reasoning_content": thought} if thought else {})]

    made = Template(source, SPECIAL, NOW, twin)
    for _ in range(2):
        made.prove(row(*before))
    assert shown(*made.prove(row(*after))).endswith(expected)


@pytest.mark.parametrize(
    ("source", "spans", "unended"),
    [(CHATML, 2, []), (NO_END, 2, [1, 3]), (EOS_AFTER, 2, [1])],
)
def test_turns_without_an_end_are_told(source, spans, unended):
    _, proof = template(source).prove(TWO)
    assert (len(proof.spans), proof.unended) == (spans, unended)


def test_the_end_of_a_call_is_no_end_of_a_turn():
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}<call>"
        "{{ m.tool_calls[0].function.name }}</call>{% endif %}{{ eos_token if ended }}{% endfor %}"
    )
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    ended = source.replace("eos_token if ended", "eos_token if not loop.last")
    assert template(ended).prove([TWO[0], call, *TWO])[1].unended == [5]
    for messages in ([TWO[0], call], [TWO[0], call, *TWO[:1], call]):
        unended = template(source).prove(messages)[1].unended
        assert unended == [number for number, message in enumerate(messages) if message is call]
        assert template(source).prove(messages, None, {"ended": True})[1].unended == []


# ---------------------------------------------------------------- refusals name a reason


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"


@pytest.mark.parametrize(
    ("source", "message", "reason"),
    [
        pytest.param(
            INDEX,
            {"content": ""},
            "nothing of assistant message 1 is printed",
            id="nothing said in a loop over numbers",
        ),
        pytest.param("{% for m in messages %}{{ m.role }}{% endfor %}", {}, "is printed", id="nothing printed"),
        pytest.param(
            "{% for m in messages %}{{ m.content | reverse }}{% endfor %}", {}, "rewrites the text", id="reversed"
        ),
        pytest.param(
            "{% for m in messages %}{{ '<{:s}>'.format(m.content) }}{% endfor %}",
            {},
            "origin is not known",
            id="formatted with a specification",
        ),
        pytest.param(
            "{% for m in messages %}{{ '<{!s}>'.format(m.content) }}{% endfor %}",
            {},
            "origin is not known",
            id="formatted with a conversion",
        ),
        pytest.param(
            "{% for m in messages %}{{ '<{0.content}>'.format(m) }}{% endfor %}",
            {},
            "origin is not known",
            id="formatted with an attribute",
        ),
        pytest.param(
            "{% for m in messages %}{{ '{{}}'.format() + m.content }}{% endfor %}",
            {},
            "origin is not known",
            id="formatted with braces",
        ),
        pytest.param(
            "{% for m in messages %}{{ m.content | urlencode }}{% endfor %}", {}, "origin is not known", id="encoded"
        ),
        pytest.param(
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            {"content": [{"type": "text", "text": "x"}]},
            "origin is not known",
            id="a list printed as Python writes it",
        ),
        pytest.param(
            "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
            {"content": [{"type": "text", "text": "x"}]},
            "rewrites the text of assistant message 1",
            id="a list printed as JSON",
        ),
        pytest.param(
            "{% for m in messages %}<{{ m.content }}>{% endfor %}{{ messages[1].reasoning_content }}",
            {"content": "x", "reasoning_content": "because"},
            "outside its turn",
            id="printed behind the loop",
        ),
        pytest.param(
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{{ messages[1].reasoning_content }}",
            {"content": "because", "reasoning_content": "because"},
            "outside its turn",
            id="printed behind the loop, and a part of the text",
        ),
        pytest.param(
            "# {{ messages[1].content }}\n" + TURNS,
            {},
            "outside its turn",
            id="an answer as the title",
        ),
        pytest.param(
            "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }} ({{ loop.nextitem.content }})"
            "{% else %}<assistant>{{ m.content }}{% endif %}<end>{% endfor %}",
            {},
            "in the turns of others",
            id="an answer quoted in the question",
        ),
        pytest.param(
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}"
            "<end of='{{ messages[0].content }}'>{% endif %}{% endfor %}",
            {},
            "other data behind the text",
            id="a question in the end of an answer",
        ),
        pytest.param(
            "<|start|>user\n{% for m in messages %}{{ m.content }}<|end|>\n<|start|>"
            "{{ 'assistant' if m.role == 'user' else 'user' }}\n{% endfor %}",
            {},
            "together with its end",
            id="the header of the next turn in this one",
        ),
        pytest.param(
            "{% for m in messages %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>"
            "{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content }}<|end|>\n{% endfor %}",
            {"reasoning_content": "hm"},
            "own prompt ends",
            id="a thought, and no prompt",
        ),
        pytest.param(
            "{% for m in messages %}{% if not loop.first and m.role == loop.previtem.role %}{{ raise_exception('turns') }}"
            "{% endif %}<|start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think>{{ m.reasoning_content or '' }}</think>"
            "{% endif %}{{ m.content }}<|end|>\n{% endfor %}",
            {"reasoning_content": "hm"},
            "own prompt ends",
            id="a thought, no prompt, and no two questions",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(source, message, reason):
    messages: list[dict[str, Any]] = [TWO[0], {**TWO[1], **message}]
    with pytest.raises(Unproven, match=reason):
        template(source).prove(messages)


# ---------------------------------------------------------------- what a template leaves out


@pytest.mark.parametrize(
    ("source", "lost"),
    [
        (CHATML, [(-1, "tools"), (2, "reasoning"), (2, "calls")]),
        (
            "{{ tools | tojson }}{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}"
            "{{ m.reasoning_content }}{{ m.tool_calls | tojson if m.tool_calls }}<end>{% endif %}{% endfor %}",
            [(0, "content")],
        ),
        (
            "{{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{{ m.content[:3] }}{{ m.thinking }}"
            "{{ m.tool_calls | tojson(ensure_ascii=true) if m.tool_calls }}<end>{% endfor %}",
            [(0, "content"), (1, "content"), (2, "content")],
        ),
    ],
)
def test_what_is_not_printed_is_told(source, lost):
    calls: Any = [{"type": "function", "function": {"name": "get", "arguments": {"q": "é \"'\n"}}}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "Look.", "reasoning_content": "hm", "tool_calls": calls},
    ]
    assert template(source).prove(messages, TOOLS)[1].lost == lost


@pytest.mark.parametrize("name", ["reasoning", "text and tool call", "system", "arguments of all types"])
def test_a_template_that_prints_everything_loses_nothing(name):
    source = (
        "{{ tools | tojson }}{% for m in messages %}<{{ m.role }}>{{ m.reasoning_content }}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<end>{% endfor %}"
    )
    assert template(source).prove(*SUITE[name])[1].lost == []


# ---------------------------------------------------------------- skeletons

pieces = st.sampled_from(
    [
        "<think>",
        "</think>",
        "\n",
        " ",
        "x",
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<end>",
        "yes",
        "[/INST]",
        "é",
        "</s>",
    ]
)
contents = st.lists(pieces, min_size=1, max_size=5).map("".join)
SKELETONS = [
    *(pytest.param(source, id=name) for name, source in {"chatml": CHATML, "thinks": THINKS, "llama": LLAMA}.items()),
    *(
        pytest.param(path.read_text("utf-8"), id=name)
        for name, path in installed().items()
        if name
        in (
            "trl/qwen3",
            "trl/qwen3_8",
            "trl/glm4moe",
            "trl/nemotron_3_nano",
            "trl/gptoss",
            "trl/deepseekv3",
            "trl/gemma3",
        )
    ),
]


@quick
@example([("x", "x")], ("<think>x</think>", "x"))
@given(st.lists(st.tuples(contents, contents), min_size=1, max_size=3), st.tuples(contents, contents))
@pytest.mark.parametrize("source", SKELETONS)
def test_a_skeleton_says_what_the_whole_proof_says(source, turns, last):
    made, slow = template(source), Template(source, SPECIAL, NOW)
    plain = [({"role": "user", "content": a}, {"role": "assistant", "content": b}) for a, b in [*turns, last]]
    ordinary = Conversation([message for turn in plain for message in turn])
    proven(made, Conversation([{**m, "content": "plain"} for m in ordinary.messages]))  # so that there is a skeleton
    slow.skeletons._known.clear()
    assert proven(made, ordinary) == proven(slow, ordinary)


def test_skeletons_are_hit_and_rows_that_differ_are_not():
    made = Template(CHATML, SPECIAL)
    for said in ("1", "22", "<|im_end|>\n<|im_start|>user\n"):
        text, proof = made.prove([TWO[0], {"role": "assistant", "content": said}])
        assert shown(text, proof).endswith(f"assistant\n[[{said}<|im_end|>]]\n")
    assert (made.skeletons.hits, made.skeletons.misses) == (2, 1)
    made.prove([TWO[0], {"role": "assistant", "content": "1"}], TOOLS)
    made.prove(TWO)
    assert made.skeletons.hits == 2


# ---------------------------------------------------------------- broken on purpose


def broken(kind: Callable[[Tracked], Tracked], value: Any) -> Any:
    if type(value) is Tracked:
        return kind(value)
    return type(value)(broken(kind, item) for item in value) if isinstance(value, list | tuple) else value


def unknown(text: Tracked) -> Tracked:
    return tracked(str.__str__(text), UNKNOWN)


def literal(text: Tracked) -> Tracked:
    return tracked(str.__str__(text), LITERAL)


def of_the_first(text: Tracked) -> Tracked:
    origin = next((origin for length, origin in text._pieces if length), LITERAL)
    return tracked(str.__str__(text), origin)


CUTTING = (
    "__getitem__ __iter__ strip lstrip rstrip removeprefix split rsplit splitlines partition rpartition replace lower upper "
    "title capitalize"
).split()
JOINING = "__add__ __radd__ __mod__ join".split()
FUNCTIONS = ["printed", "concat", "tojson"]
BROKEN = [
    *((operation, kind) for operation in CUTTING + JOINING + FUNCTIONS for kind in (unknown, literal)),
    *(
        (operation, of_the_first) for operation in [*CUTTING, "tojson"]
    ),  # joining, it would make a text say what it did not
]
HARD = [
    name
    for name in (
        "qwen3",
        "qwen3_5_think",
        "gptoss",
        "glm4moe",
        "gemma4",
        "deepseekv3",
        "llama3_1",
        "cohere2",
        "phi3",
        "lfm2",
    )
    if f"trl/{name}" in installed()
]
OWN = {
    "thinks": THINKS,
    "llama": LLAMA,
    "macro": MACRO,
    "set": SET_BLOCK,
    "closes": NEXT_CLOSES,
    "inside": RESULTS_INSIDE,
}


def results(rows: dict[str, Conversation]) -> dict[tuple[str, str], Proof | None]:
    sources = {**OWN, **{name: installed()[f"trl/{name}"].read_text("utf-8") for name in HARD}}
    found = {}
    for name, source in sources.items():
        made = Template(source, SPECIAL, NOW)
        for title, conversation in rows.items():
            proof = proven(made, conversation)
            found[name, title] = proof and proof[1]
    return found


ROWS = {
    name: SUITE[name]
    for name in (
        "three turns",
        "thinking inside the text",
        "outer space",
        "an empty turn",
        "content in parts",
        "reasoning, two turns",
        "reasoning and tool call",
        "text and tool call",
        "two calls at once",
        "ends on a call",
    )
}


@cache
def whole() -> dict[tuple[str, str], Proof | None]:
    return results(ROWS)


def same(right: Proof | None, wrong: Proof) -> bool:
    return right is not None and right.spans == wrong.spans


def told(right: Proof | None, wrong: Proof) -> bool:
    """Whether a proof says of more texts than before that they are not printed."""
    return right is not None and set(right.lost) < set(wrong.lost)


@pytest.mark.parametrize(("operation", "kind"), BROKEN)
def test_a_broken_operation_refuses_rows_and_changes_no_span(operation, kind, monkeypatch):
    right = whole()
    if operation not in FUNCTIONS:
        method = getattr(Tracked, operation)
        if operation == "__iter__":
            monkeypatch.setattr(Tracked, operation, lambda self: iter([kind(one) for one in method(self)]))
        else:
            monkeypatch.setattr(Tracked, operation, lambda self, *a, **k: broken(kind, method(self, *a, **k)))
    else:
        function = getattr(tracking, operation)
        monkeypatch.setattr(compiler, operation, lambda *a, **k: kind(function(*a, **k)))
        if operation == "concat":
            monkeypatch.setattr(
                compiler.TrackedEnvironment, "concat", staticmethod(lambda parts: kind(function(parts)))
            )
    wrong = {row: proof for row, proof in results(ROWS).items() if proof is not None}
    differ = {row for row, proof in wrong.items() if not same(right[row], proof)}
    if kind is not unknown:  # a wrong origin, not a missing one: what was said then counts as not printed
        differ = {row for row in differ if not told(right[row], wrong[row])}
    assert differ == set()


def test_breaking_an_operation_is_felt(monkeypatch):
    right = whole()
    join, strip = Tracked.__add__, Tracked.strip
    monkeypatch.setattr(Tracked, "__add__", lambda self, other: unknown(join(self, other)))
    monkeypatch.setattr(Tracked, "strip", lambda self, *a: unknown(strip(self, *a)))
    refused = [row for row, spans in results(ROWS).items() if spans is None and right[row] is not None]
    assert len(refused) > len(right) / 5


# ---------------------------------------------------------------- how much is proven


@every
def test_ordinary_conversations_are_proven(name):
    made = template(ALL[name])
    refused = []
    for title, conversation in ORDINARY.items():
        try:
            made.prove(*conversation)
        except Refused:
            pass
        except Unproven as reason:
            refused.append((title, str(reason)))
    in_parts_only = proven(made, SUITE["content in parts"]) and not proven(made, SUITE["one turn"])
    assert len(refused) <= 1 or in_parts_only, refused
