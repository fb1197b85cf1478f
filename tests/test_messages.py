"""The message reader and the reshaping of rows, as properties: what is canonical stays, what is split comes together."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.findings import BadRow
from datakit.formats.reshape import inline_reasoning, reshape, split_reasoning
from datakit.messages import OPENAI, ROLE_WORDS, SHAREGPT, Context, Message, read_messages, read_tools
from datakit.schema import ROLES, layout

settings.register_profile("messages", deadline=None, derandomize=True)
quick = settings(settings.get_profile("messages"), max_examples=100)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    [
        "",
        " ",
        "\n\n",
        "\r\n",
        "\tx ",
        "null",
        "[]",
        '{"name": "f"}',
        "<think>",
        "</think>",
        "<|im_end|>",
        "\u2028",
        "🦉é",
        "\x00",
    ]
)
names = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
objects = st.dictionaries(texts, values, max_size=4)

calls = st.builds(
    lambda key, name, arguments: {"id": key, "type": "function", "function": {"name": name, "arguments": arguments}},
    names, names, objects,
)  # fmt: skip
parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, texts),
    st.builds(lambda text: {"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": None}}, texts),
    st.builds(lambda url: {"type": "image_url", "image_url": {"url": url, "detail": None}}, texts),
    st.just({"type": "image"}),
    st.builds(lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}, texts),
    st.builds(lambda key: {"type": "file", "file": {"file_id": key}}, names),
)
contents = texts | st.lists(parts, max_size=3) | st.none()
weights = st.sampled_from([0, 1]) | st.floats(0, 1)

plain = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user"]), "content": contents}, optional={"name": names}
)
answers = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": contents},
    optional={
        "reasoning_content": texts,
        "tool_calls": st.lists(calls, min_size=1, max_size=3),
        "name": names,
        "refusal": texts,
        "weight": weights,
    },
)
bare_calls = st.fixed_dictionaries(
    {"role": st.just("assistant"), "tool_calls": st.lists(calls, min_size=1, max_size=2)}
)
results = st.fixed_dictionaries(
    {"role": st.just("tool"), "content": contents, "tool_call_id": names}, optional={"name": names, "weight": weights}
)
messages = st.lists(plain | answers | bare_calls | results, max_size=6)
questions = st.fixed_dictionaries({"role": st.just("user"), "content": texts})


def read(turns: Any, turn: Any = OPENAI) -> list[Message]:
    context = Context()
    found = read_messages(turns, turn, context, "messages")
    assert context.left == {}, "a known key was left over"
    assert context.notes == []
    return found


def same(one: Any, other: Any) -> bool:
    """Equal where types are equal too: 1, 1.0 and true are three things."""
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)


def identical(one: Any, other: Any) -> bool:
    """With the keys in the same order, since that decides the bytes that are written."""
    return orjson.dumps(one) == orjson.dumps(other)


def refusal(function: Callable[..., Any], *words: Any) -> str | None:
    """The rule by which a function refuses, if it does."""
    try:
        function(*words)
    except BadRow as bad:
        return bad.finding.id
    return None


# ---------------------------------------------------------------- the reader


@quick
@given(messages)
def test_reading_keeps_canonical_messages(given_messages: list[Message]) -> None:
    before = orjson.dumps(given_messages)
    assert same(read(given_messages), given_messages)
    assert orjson.dumps(given_messages) == before, "the input was changed"


@quick
@given(messages)
def test_reading_twice_is_reading_once(given_messages: list[Message]) -> None:
    once = read(given_messages)
    assert identical(read(once), once)


@quick
@given(messages, st.data())
def test_absent_and_null_are_one_for_optional_keys(given_messages: list[Message], data: st.DataObject) -> None:
    optional = ("reasoning_content", "tool_calls", "name", "refusal", "weight", "function_call")
    padded = []
    for message in given_messages:
        nulls = data.draw(st.lists(st.sampled_from(optional), unique=True))
        padded.append({**dict.fromkeys(nulls), **message})
    assert same(read(padded), given_messages)


@quick
@given(objects, names, names)
def test_arguments_are_the_same_as_text_and_as_object(arguments: dict[str, Any], id: str, name: str) -> None:
    def called(arguments: Any) -> list[Message]:
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        return [{"role": "assistant", "content": None, "tool_calls": [call]}]

    wanted = called(arguments)
    assert same(read(called(orjson.dumps(arguments).decode())), wanted)
    assert same(read(called(arguments)), wanted)


@pytest.mark.parametrize("arguments", ["[1]", "5", "null", "{", "nope", [1], 5, True, '"text"'])
def test_arguments_that_are_no_object_are_refused(arguments: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(BadRow) as caught:
        read([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert caught.value.finding.id == "DK302"


@pytest.mark.parametrize(("arguments", "noted"), [("", True), (None, True), ({}, False), ("{}", False)])
def test_no_arguments_are_an_empty_object(arguments: Any, noted: bool) -> None:
    context = Context()
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    found = read_messages([{"role": "assistant", "content": None, "tool_calls": [call]}], OPENAI, context, "messages")
    assert found[0]["tool_calls"][0]["function"]["arguments"] == {}
    assert [note.id for note in context.notes] == ["DK313"] * noted


SPOKEN_WORDS = sorted(word for word, role in ROLE_WORDS.items() if role in ("system", "developer", "user", "assistant"))


@quick
@given(st.lists(st.tuples(st.sampled_from(SPOKEN_WORDS), texts), max_size=8))
def test_sharegpt_keeps_every_text(turns: list[tuple[str, str]]) -> None:
    found = read([{"from": word, "value": text} for word, text in turns], SHAREGPT)
    assert same(found, [{"role": ROLE_WORDS[word], "content": text} for word, text in turns])
    assert {message["role"] for message in found} <= set(ROLES)


@quick
@given(st.lists(st.tuples(st.lists(st.tuples(names, objects), min_size=1, max_size=3), texts), max_size=3))
def test_sharegpt_calls_and_results_pair_in_order(rounds: list[tuple[list[tuple[str, dict[str, Any]]], str]]) -> None:
    turns: list[Message] = []
    wanted: list[Message] = []
    made = 0
    for asked, text in rounds:
        written = [{"name": name, "arguments": arguments} for name, arguments in asked]
        one_or_all: Any = written[0] if len(written) == 1 else written
        turns.append({"from": "function_call", "value": orjson.dumps(one_or_all).decode()})
        ids = [f"call_{made + n}" for n in range(1, len(asked) + 1)]
        made += len(asked)
        calls = [{"id": id, "type": "function", "function": call} for id, call in zip(ids, written, strict=True)]
        wanted.append({"role": "assistant", "content": "", "tool_calls": calls})
        for id in ids:
            turns.append({"from": "observation", "value": text})
            wanted.append({"role": "tool", "content": text, "tool_call_id": id})
    assert read(turns, SHAREGPT) == wanted


def test_results_without_ids_find_the_call_of_their_tool() -> None:
    asked: list[Any] = [{"name": name, "arguments": {}} for name in ("a", "b", "a")]
    turns: list[Message] = [{"role": "assistant", "content": "", "tool_calls": asked}]
    turns += [{"role": "tool", "name": name, "content": name} for name in ("b", "a", "a")]
    assert [m.get("tool_call_id") for m in read(turns)] == [None, "call_2", "call_1", "call_3"]


def test_a_question_closes_calls_that_nobody_answered() -> None:
    asked = {"from": "function_call", "value": '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]'}
    turns = [
        asked,
        {"from": "tool", "value": "1"},
        {"from": "human", "value": "and?"},
        asked,
        {"from": "tool", "value": "3"},
    ]
    assert [m["tool_call_id"] for m in read(turns, SHAREGPT) if m["role"] == "tool"] == ["call_1", "call_3"]


@quick
@given(messages, st.dictionaries(st.sampled_from(["mood", "id", "ts", "labels"]), values, min_size=1))
def test_unknown_keys_are_left_with_their_place(given_messages: list[Message], unknown: dict[str, Any]) -> None:
    context = Context()
    turns = [{**message, **unknown} for message in given_messages]
    assert read_messages(turns, OPENAI, context, "messages") == given_messages
    assert context.left == {f"messages[{index}]": unknown for index in range(len(turns))}


def test_unknown_keys_of_calls_are_left_too() -> None:
    context = Context()
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {}, "strict": True}, "seen": 1}
    legacy = {"name": "g", "arguments": "{}", "why": "w"}
    turns = [{"role": "assistant", "content": None, "tool_calls": [call], "function_call": legacy}]
    read_messages(turns, OPENAI, context, "messages")
    assert context.left == {
        "messages[0].tool_calls[0]": {"function": {"strict": True}, "seen": 1},
        "messages[0].function_call": {"why": "w"},
    }
    context = Context()
    value = orjson.dumps([{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}, "thought": "t"}]).decode()
    read_messages([{"from": "function_call", "value": value}], SHAREGPT, context, "conversations")
    assert context.left == {"conversations[0].tool_calls[1]": {"thought": "t"}}


@quick
@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "type", "text", "weight", "id"]), inner, max_size=5), max_leaves=12))  # fmt: skip
def test_anything_is_read_or_refused(value: Any) -> None:
    for turns in (
        value,
        [value],
        [{"role": "assistant", "content": value}],
        [{"role": "assistant", "tool_calls": value}],
    ):
        for turn in (OPENAI, SHAREGPT):
            rule = refusal(read_messages, turns, turn, Context(), "messages")
            assert rule in (None, "DK104", "DK201", "DK209", "DK302")
    assert refusal(read_tools, value) in (None, "DK301")


functions = st.fixed_dictionaries(
    {"name": names}, optional={"description": texts, "parameters": st.just({"type": "object", "properties": {"a": {"default": None}}}), "strict": st.booleans()}
)  # fmt: skip


@quick
@given(st.lists(functions, min_size=1, max_size=3))
def test_tools_of_all_dialects_are_one(flat: list[dict[str, Any]]) -> None:
    wanted = [{"type": "function", "function": function} for function in flat]
    flat_with_type = [{"type": "function", **function} for function in flat]
    unwrapped = [{"function": function} for function in flat]
    for spelling in (wanted, flat, flat_with_type, unwrapped, [{"functionDeclarations": flat}]):
        assert read_tools(spelling) == wanted
        assert read_tools(orjson.dumps(spelling).decode()) == wanted
    assert read_tools(flat[0]) == wanted[:1]


@pytest.mark.parametrize("nothing", [None, "", " \n", [], "[]", "null"])
def test_no_tools_are_null(nothing: Any) -> None:
    assert read_tools(nothing) is None


# ---------------------------------------------------------------- reasoning


@quick
@given(answers | plain | results)
def test_splitting_and_inlining_again_changes_nothing(message: Message) -> None:
    message.pop("reasoning_content", None)
    assert identical(inline_reasoning(split_reasoning(message)), message)


@quick
@given(texts, texts, st.dictionaries(st.sampled_from(["weight", "name", "tool_calls"]), values))
def test_inlined_reasoning_is_split_off_as_it_was(reasoning: str, answer: str, more: dict[str, Any]) -> None:
    message = {"role": "assistant", "content": answer, "reasoning_content": reasoning, **more}
    inlined = inline_reasoning(message)
    if "</think>" in reasoning:
        assert inlined is message
    else:
        assert "reasoning_content" not in inlined
        assert identical(split_reasoning(inlined), message)


@quick
@given(texts, texts)
def test_a_think_block_is_split_at_its_end(reasoning: str, answer: str) -> None:
    content = f"<think>{reasoning}</think>{answer}"
    found = split_reasoning({"role": "assistant", "content": content})
    assert f"<think>{found['reasoning_content']}</think>{found['content']}" == content
    assert "</think>" not in found["reasoning_content"]
    for message in ({"role": "user", "content": content}, {"role": "assistant", "content": " " + content}):
        assert split_reasoning(message) is message


# ---------------------------------------------------------------- reshaping

COLUMNS: dict[tuple[str, str], dict[str, st.SearchStrategy[Any]]] = {
    ("sft", "prompt_completion"): {"prompt": texts, "completion": texts},
    ("preference", "strings"): {"prompt": texts, "chosen": texts, "rejected": texts},
    ("kto", "strings"): {"prompt": texts, "completion": texts, "label": st.booleans()},
    ("prompt", "strings"): {"prompt": texts},
    ("ranked", "strings"): {
        "prompt": texts,
        "completions": st.lists(texts, min_size=1, max_size=3),
        "scores": st.just([1.0]),
    },
}
SIDE = {"tools": [{"type": "function", "function": {"name": "f"}}], "images": ["a.png"], "answer": None}


@pytest.mark.parametrize(("kind", "form"), COLUMNS, ids=[kind for kind, _ in COLUMNS])
@quick
@given(st.data())
def test_strings_become_messages_and_strings_again(kind: str, form: str, data: st.DataObject) -> None:
    record = data.draw(st.fixed_dictionaries(COLUMNS[kind, form])) | SIDE
    strings = layout(kind, form, conversational=False)
    chat = layout(kind, "prompt_completion" if kind == "sft" else "messages", conversational=True)
    there = reshape(record, strings, chat)
    assert same(reshape(there, chat, strings), record)
    roles = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
    for name, role in roles.items():
        if name in record:
            assert there[name] == [{"role": role, "content": record[name]}]
    assert {name: there[name] for name in SIDE} == SIDE


@quick
@given(texts, texts)
def test_sft_strings_become_whole_conversations_and_strings_again(prompt: str, completion: str) -> None:
    strings, chat = layout("sft", "prompt_completion", conversational=False), layout("sft", "messages")
    record = {"prompt": prompt, "completion": completion, **SIDE}
    there = reshape(record, strings, chat)
    assert there["messages"] == [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    assert same(reshape(there, chat, strings), record)


@quick
@given(messages, answers)
def test_conversations_are_cut_before_the_last_answer_and_joined_again(before: list[Message], last: Message) -> None:
    whole, cut = layout("sft", "messages"), layout("sft", "prompt_completion", conversational=True)
    record = {"messages": [*before, last], **SIDE}
    there = reshape(record, whole, cut)
    assert same(reshape(there, cut, whole), record)
    assert {message["role"] for message in there["completion"]} <= {"assistant", "tool"}
    assert not there["prompt"] or there["prompt"][-1]["role"] not in ("assistant", "tool")


@quick
@given(messages, questions)
def test_conversations_that_end_on_a_question_are_not_cut(before: list[Message], last: Message) -> None:
    whole, cut = layout("sft", "messages"), layout("sft", "prompt_completion", conversational=True)
    with pytest.raises(BadRow) as caught:
        reshape({"messages": [*before, last]}, whole, cut)
    assert caught.value.finding.id == "DK203"


@quick
@given(messages, questions, answers, answers)
def test_preferences_become_whole_conversations_and_pairs_again(
    before: list[Message], question: Message, chosen: Message, rejected: Message
) -> None:
    pairs, implicit = layout("preference", "messages"), layout("preference", "implicit", conversational=True)
    record = {"prompt": [*before, question], "chosen": [chosen], "rejected": [rejected], **SIDE}
    there = reshape(record, pairs, implicit)
    assert "prompt" not in there
    assert same(reshape(there, implicit, pairs), record)


@quick
@given(messages)
def test_what_has_more_than_two_texts_is_refused_rather_than_joined(given_messages: list[Message]) -> None:
    chat, strings = layout("sft", "messages"), layout("sft", "prompt_completion", conversational=False)
    simple = [m["role"] for m in given_messages] == ["user", "assistant"] and all(
        m.keys() == {"role", "content"} and isinstance(m["content"], str) for m in given_messages
    )
    rule = refusal(reshape, {"messages": given_messages}, chat, strings)
    assert rule is None if simple else rule in ("DK120", "DK203")
