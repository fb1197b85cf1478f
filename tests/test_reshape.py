"""From one layout to another: what is lost on no way, and what is refused instead."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datakit
from datakit.errors import UsageError
from datakit.findings import BadRow
from datakit.formats.declare import Record
from datakit.formats.parse import common_prompt
from datakit.formats.reshape import reaches, reshape
from datakit.messages import Message
from datakit.schema import LAYOUTS, Layout, layout

quick = settings(deadline=None, derandomize=True, max_examples=200)

STRINGS = layout("preference", "strings")
MESSAGES = layout("preference", "messages")
IMPLICIT = layout("preference", "implicit", True)
WHOLE_TEXTS = layout("preference", "implicit", False)


def chat(text: str) -> list[Message]:
    """`u:hi a:good_day` as messages; a bare letter stands for itself, and _ for a space."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "d": "developer"}
    words = [word.partition(":") for word in text.split()]
    return [{"role": roles[role], "content": content.replace("_", " ") or role} for role, _, content in words]


# ---------------------------------------------------------------- the shared prompt of two conversations


@pytest.mark.parametrize(
    ("chosen", "rejected", "cut"),
    [
        ("u a:1", "u a:2", 1),
        ("s u a:1", "s u a:2", 2),
        ("d u a:1", "d u a:2", 2),
        ("u a u a:1", "u a u a:2", 3),
        # answers that begin with the same words, or that are the beginning of one another, are still whole
        ("u a:The_cat_sat", "u a:The_car_stood", 1),
        ("u a:The", "u a:The_cat", 1),
        ("u:Name a:x u:y a:1", "u:Named a:x u:y a:2", None),
        # they part at a user turn, so the answer before it belongs to both answers
        ("u a u:1 a", "u a u:2 a", 1),
        ("u a u a u:1 a", "u a u a u:2 a", 3),
        # one ends where the other goes on
        ("u a", "u a u a", 1),
        ("u a u a", "u a", 1),
        # calls and results of tools
        ("u a:call t a:1", "u a:call t a:2", 3),
        ("u a:call t:1 a", "u a:call t:2 a", 1),
        # the same conversation twice: all but the last turn
        ("u a", "u a", 1),
        ("u a u a", "u a u a", 3),
        # no shared prompt
        ("u:1 a", "u:2 a", None),
        ("s u:1 a", "s u:2 a", None),
        ("s:1 u a", "s:2 u a", None),
        ("a:1", "a:2", None),
        ("a u a:1", "a u a:2", 2),
        ("u", "u a", None),
        ("", "", None),
    ],
)
def test_common_prompt(chosen: str, rejected: str, cut: int | None) -> None:
    pair = chat(chosen), chat(rejected)
    if cut is None:
        with pytest.raises(BadRow) as caught:
            common_prompt(*pair)
        assert caught.value.finding.id == "DK403"
    else:
        assert common_prompt(*pair) == common_prompt(*reversed(pair)) == cut


def test_a_turn_is_shared_only_if_all_of_it_is() -> None:
    one: list[Message] = [{"role": "user", "content": "q", "name": "ann"}, {"role": "assistant", "content": "1"}]
    two: list[Message] = [{"role": "user", "content": "q", "name": "bob"}, {"role": "assistant", "content": "2"}]
    with pytest.raises(BadRow, match="DK403"):
        common_prompt(one, two)


# ---------------------------------------------------------------- there and back

texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)


def message(role: str) -> st.SearchStrategy[Message]:
    plain = st.builds(lambda content: {"role": role, "content": content}, texts)
    parts = st.builds(lambda text: {"role": role, "content": [{"type": "text", "text": text}]}, texts)
    return st.one_of(plain, plain, parts)


@st.composite
def prompts(draw: st.DrawFn) -> list[Message]:
    """Perhaps a system message, then turns that end on a user turn."""
    made = draw(st.lists(message("system"), max_size=1))
    for _ in range(draw(st.integers(0, 2))):
        made += [draw(message("user")), draw(message("assistant"))]
    return [*made, draw(message("user"))]


@st.composite
def answers(draw: st.DrawFn) -> list[Message]:
    made = [draw(message("assistant"))]
    for _ in range(draw(st.integers(0, 2))):
        made += [draw(message("user")), draw(message("assistant"))]
    return made


@quick
@given(prompts(), answers(), answers())
def test_implicit_to_explicit_and_back(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> None:
    implicit = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    explicit = reshape(implicit, IMPLICIT, MESSAGES)
    assert reshape(explicit, MESSAGES, IMPLICIT) == implicit
    assert explicit["chosen"][0]["role"] == explicit["rejected"][0]["role"] == "assistant"
    assert len(explicit["prompt"]) >= len(prompt)


@quick
@given(prompts(), answers(), answers())
def test_explicit_to_implicit_and_back(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> None:
    explicit = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    again = reshape(reshape(explicit, MESSAGES, IMPLICIT), IMPLICIT, MESSAGES)
    assert again["prompt"] + again["chosen"] == prompt + chosen
    assert again["prompt"] + again["rejected"] == prompt + rejected
    if chosen[0] != rejected[0] or 1 in (len(chosen), len(rejected)):
        assert again == explicit
    else:  # turns that both answers begin with are a prompt as well; only whole ones, and an answer is left to each
        assert again["prompt"][: len(prompt)] == prompt
        assert again["chosen"]
        assert again["rejected"]


@quick
@given(texts, texts, texts)
def test_strings_to_messages_and_back(prompt: str, chosen: str, rejected: str) -> None:
    record = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    as_messages = reshape(record, STRINGS, MESSAGES)
    assert as_messages == {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }
    assert reshape(as_messages, MESSAGES, STRINGS) == record
    assert reshape(reshape(record, STRINGS, IMPLICIT), IMPLICIT, STRINGS) == record


@pytest.mark.parametrize(
    ("source", "target", "record", "made"),
    [
        (
            layout("kto", "strings"),
            layout("kto", "messages"),
            {"prompt": " q", "completion": "a ", "label": False},
            {"prompt": chat("u:_q"), "completion": chat("a:a_"), "label": False},
        ),
        (layout("prompt", "strings"), layout("prompt", "messages"), {"prompt": " q"}, {"prompt": chat("u:_q")}),
        (
            layout("ranked", "strings"),
            layout("ranked", "messages"),
            {"prompt": " q", "completions": ["a ", "b"], "scores": [1.0, 0.5]},
            {"prompt": chat("u:_q"), "completions": [chat("a:a_"), chat("a:b")], "scores": [1.0, 0.5]},
        ),
        (
            layout("sft", "prompt_completion", False),
            layout("sft", "prompt_completion", True),
            {"prompt": " q", "completion": "a "},
            {"prompt": chat("u:_q"), "completion": chat("a:a_")},
        ),
        (
            layout("sft", "prompt_completion", False),
            layout("sft", "messages"),
            {"prompt": " q", "completion": "a "},
            {"messages": chat("u:_q a:a_")},
        ),
        (
            layout("sft", "prompt_completion", True),
            layout("sft", "messages"),
            {"prompt": chat("s u a u"), "completion": chat("a:call t a")},
            {"messages": chat("s u a u a:call t a")},
        ),
    ],
)
def test_pairs_of_layouts(source: Layout, target: Layout, record: Record, made: Record) -> None:
    extra = {"tools": [{"type": "function"}], "images": ["a.png"]}
    assert reshape(record | extra, source, target) == made | extra
    assert reshape(made | extra, target, source) == record | extra


def test_the_same_layout_is_the_same_row() -> None:
    record: Record = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert reshape(record, STRINGS, STRINGS) is record


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (chat("s u"), chat("a")),
        (chat("u a u"), chat("a")),
        (chat("a"), chat("a")),
        (chat("u"), chat("a u a")),
        (chat("u"), chat("t")),
        (chat("u"), [{"role": "assistant", "content": "a", "weight": 0}]),
        (chat("u"), [{"role": "assistant", "content": None}]),
        (chat("u"), [{"role": "assistant", "content": "", "reasoning_content": "r"}]),
        ([{"role": "user", "content": [{"type": "text", "text": "q"}]}], chat("a")),
        ([], chat("a")),
    ],
)
def test_what_a_text_cannot_hold_is_refused(prompt: list[Message], answer: list[Message]) -> None:
    for record, kind in (
        ({"prompt": prompt, "chosen": answer, "rejected": chat("a:other")}, "preference"),
        ({"prompt": prompt, "completion": answer, "label": True}, "kto"),
        ({"prompt": prompt, "completions": [answer, chat("a")], "scores": [1.0, 0.0]}, "ranked"),
    ):
        with pytest.raises(BadRow, match="DK120"):
            reshape(record, layout(kind, "messages"), layout(kind, "strings"))


def test_a_conversation_without_a_last_answer_cannot_be_cut() -> None:
    with pytest.raises(BadRow, match="DK203"):
        reshape({"messages": chat("u a u")}, layout("sft", "messages"), layout("sft", "prompt_completion", True))


def test_conversations_that_share_no_prompt_cannot_be_cut() -> None:
    record = {"chosen": chat("u:1 a"), "rejected": chat("u:2 a")}
    for target in (MESSAGES, STRINGS):
        with pytest.raises(BadRow, match="DK403"):
            reshape(record, IMPLICIT, target)


# ---------------------------------------------------------------- which layouts reach which

GROUPS = [
    {"sft:messages", "sft:prompt_completion:strings", "sft:prompt_completion:messages"},
    {"sft:text"},
    {"preference:strings", "preference:messages", "preference:implicit:messages"},
    {"preference:implicit:strings"},
    {"kto:strings", "kto:messages"},
    {"prompt:strings", "prompt:messages"},
    {"ranked:strings", "ranked:messages"},
    {"trajectory:messages"},
    {"stepwise:strings"},
    {"tokenized:tokens"},
    *({f"tokenized:{form}"} for form in ("sft", "packed", "preference", "kto", "reward")),
    *({f"tokenized:easydel_{form}"} for form in ("sft", "preference", "kto", "reward")),
]


PROMPTS = {"prompt:strings", "prompt:messages"}
ONE_WAY = [(GROUPS[2], GROUPS[0] | PROMPTS), (GROUPS[0], PROMPTS)]
"""What pairs become besides, their chosen answers or their prompts; and conversations, their prompts."""


def test_reaches() -> None:
    def name(x: Layout) -> str:
        return ":".join((x.kind, x.form)) + (
            f":{'messages' if x.conversational else 'strings'}" if x.form in ("prompt_completion", "implicit") else ""
        )

    assert {name(x) for x in LAYOUTS} == set().union(*GROUPS)
    for source in LAYOUTS:
        found = {name(target) for target in LAYOUTS if reaches(source, target)}
        group = next(group for group in GROUPS if name(source) in group)
        assert found == group.union(*(more for begun, more in ONE_WAY if group is begun))


@pytest.mark.parametrize("source", LAYOUTS, ids=lambda x: x.name)
def test_what_is_out_of_reach_is_refused(source: Layout) -> None:
    for target in LAYOUTS:
        if not reaches(source, target):
            with pytest.raises(UsageError, match="without loss"):
                reshape({}, source, target)


# ---------------------------------------------------------------- --to


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
WHOLE = {"chosen": chat("s u a:1"), "rejected": chat("s u a:2")}


@pytest.mark.parametrize(
    ("to", "row"),
    [
        ("preference", PAIR),
        ("preference:messages", {"prompt": chat("u:q"), "chosen": chat("a"), "rejected": chat("a:b")}),
        ("preference:implicit", {"chosen": chat("u:q a"), "rejected": chat("u:q a:b")}),
    ],
)
def test_to_through_convert(tmp_path: Path, to: str, row: Record) -> None:
    report = datakit.convert(write(tmp_path / "rows.jsonl", PAIR), tmp_path / "out", to=to, workers=1)
    assert report.exit_code == 0
    assert list(datakit.load(tmp_path / "out")) == [row]
    # and shards are an input like any other
    again = datakit.convert(tmp_path / "out", tmp_path / "again", to="preference:strings", workers=1)
    assert again.exit_code == 0
    assert list(datakit.load(tmp_path / "again")) == [PAIR]


@pytest.mark.parametrize("to", ["dpo", "preference:pairs", "sft:strings", "preference:messages:maybe", "a:b:c:d", ""])
def test_to_names_no_layout(tmp_path: Path, to: str) -> None:
    rows = write(tmp_path / "rows.jsonl", PAIR)
    if not to:
        assert datakit.convert(rows, tmp_path / "out", to=to, workers=1).exit_code == 0
        return
    with pytest.raises(UsageError) as caught:
        datakit.convert(rows, tmp_path / "out", to=to, workers=1)
    assert to.split(":")[0] in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_conversations_become_prompts_and_their_answers_solutions(tmp_path: Path) -> None:
    """GRPO asks again what supervised rows have an answer for; a reward compares with it."""
    rows = [chat("s u a u a:2"), chat("u a"), chat("s u")]
    raw = write(tmp_path / "rows.jsonl", *({"messages": row} for row in rows))
    made = datakit.convert(raw, tmp_path / "prompts", to="prompt", workers=1)
    assert (made.exit_code, made.findings) == (0, [])
    whole = [
        {"prompt": chat("s u a u"), "solution": "2"},
        {"prompt": chat("u"), "solution": "a"},
        {"prompt": chat("s u"), "solution": None},
    ]
    assert list(datakit.load(tmp_path / "prompts")) == whole
    # the same from shards, and from texts
    few: Any = {"on_bad_row": "quarantine", "max_bad": "1 row"}
    assert datakit.convert(raw, tmp_path / "sft", to="sft", workers=1, **few).exit_code == 0
    assert datakit.convert(tmp_path / "sft", tmp_path / "again", to="prompt", workers=1).exit_code == 0
    assert list(datakit.load(tmp_path / "again")) == whole[:2]
    texts = write(tmp_path / "texts.jsonl", {"prompt": "q", "completion": "a"})
    assert datakit.convert(texts, tmp_path / "texts", to="prompt:strings", workers=1).exit_code == 0
    assert list(datakit.load(tmp_path / "texts")) == [{"prompt": "q", "solution": "a"}]
    assert repr(datakit.load(tmp_path / "texts")) == f"<Shards prompt:strings, 1 row, {tmp_path / 'texts'}>"


def test_an_answer_that_is_no_text_or_has_no_place_is_kept_in_the_meta_column(tmp_path: Path) -> None:
    spoken = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    rows = [{"messages": [*chat("u"), spoken]}, {"messages": chat("u:2 a"), "solution": "own"}]
    raw = write(tmp_path / "rows.jsonl", *rows)
    assert datakit.convert(raw, tmp_path / "out", to="prompt", workers=1).exit_code == 0
    made = list(datakit.load(tmp_path / "out").rows(all=True))
    assert [row["solution"] for row in made] == [None, "own"]
    assert [row["dk_meta"]["completion"] for row in made] == [[spoken], chat("a")]


def test_to_another_kind_is_refused(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", PAIR)
    with pytest.raises(UsageError, match="is dpo, which is preference:strings; it cannot become kto"):
        datakit.convert(rows, tmp_path / "out", to="kto", workers=1)
    with pytest.raises(UsageError, match="preference:strings cannot become that without loss") as caught:
        datakit.convert(rows, tmp_path / "out", to="kto", format="dpo", workers=1)
    assert "preference:strings, preference:messages" in caught.value.hint


def test_to_a_form_that_whole_texts_do_not_reach(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", {"chosen": "Blue sky.", "rejected": "Green sky."})
    with pytest.raises(UsageError, match=r"preference:implicit:strings cannot become that") as caught:
        datakit.convert(rows, tmp_path / "out", to="preference:messages", format="dpo-implicit-strings", workers=1)
    assert caught.value.hint == f"It can become {WHOLE_TEXTS.name}."


def test_a_row_that_to_would_change_is_refused_alone(tmp_path: Path) -> None:
    plain = {"chosen": chat("u a:1"), "rejected": chat("u a:2")}
    rows = write(tmp_path / "rows.jsonl", WHOLE, plain)
    failed = datakit.convert(rows, tmp_path / "out", to="preference:strings", workers=1)
    assert failed.exit_code == 1
    assert failed.rejected == {"DK120": 1}
    assert not (tmp_path / "out").exists()
    report = datakit.convert(
        rows, tmp_path / "out", to="preference:strings", on_bad_row="quarantine", max_bad="1 row", workers=1
    )
    assert report.exit_code == 0
    assert list(datakit.load(tmp_path / "out")) == [{"prompt": "u", "chosen": "1", "rejected": "2"}]
    [reject] = [json.loads(line) for line in next((tmp_path / "out" / "rejects").iterdir()).read_text().splitlines()]
    assert (reject["line"], reject["rule"], reject["path"]) == (1, "DK120", "prompt")
    assert json.loads(reject["raw"]) == WHOLE
