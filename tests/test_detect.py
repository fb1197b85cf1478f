"""Detection: by values, over many rows, with evidence; and what is refused instead of guessed."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import datakit
from datakit.detection import Detection, detect_rows
from datakit.errors import AmbiguousFormat, UnknownFormat, UsageError
from datakit.formats import FORMATS
from datakit.formats.declare import Row
from datakit.schema import Target


def chat(question: str = "q", answer: str = "a") -> list[Row]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def turns(question: str = "q", answer: str = "a") -> list[Row]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def found(rows: Sequence[Row], to: str | None = None) -> Detection:
    return detect_rows(rows, "rows.jsonl", Target.parse(to) if to else None)


def name(rows: Sequence[Row], to: str | None = None) -> str:
    return found(rows, to).format.name


def candidates(rows: Sequence[Row]) -> list[str]:
    """The format, or the formats that a person is to choose from."""
    try:
        return [name(rows)]
    except AmbiguousFormat as error:
        return [line.split()[1] for line in error.hint.splitlines() if line.startswith("  --format ")]


def write(path: Path, rows: Sequence[Row]) -> str:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return str(path)


# ---------------------------------------------------------------- values, not column names


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"messages": chat()}, "openai"),
        ({"messages": turns()}, "sharegpt-in-messages"),
        ({"conversations": chat()}, "chat-in-conversations"),
        ({"conversations": turns()}, "sharegpt"),
        ({"conversation": chat()}, "chat-in-conversation"),
        ({"conversation": turns()}, "sharegpt-in-conversation"),
        ({"conversation": [{"human": "q", "assistant": "a"}]}, "sharegpt-pairs"),
        # roles of the other dialect's vocabulary
        (
            {"conversations": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]},
            "chat-in-conversations",
        ),
        ({"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}, "sharegpt"),
        # chosen and rejected: texts, answers, whole conversations, transcripts
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "dpo"),
        ({"prompt": "q", "chosen": chat(), "rejected": chat("q", "b")}, "dpo-answers"),
        ({"prompt": chat()[:1], "chosen": chat()[1:], "rejected": chat("q", "b")[1:]}, "dpo-messages"),
        ({"chosen": chat(), "rejected": chat("q", "b")}, "dpo-implicit"),
        ({"chosen": "q a", "rejected": "q b"}, "dpo-implicit-strings"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "hh-rlhf"),
        ({"system": None, "prompt": "q", "chosen": "a", "rejected": "b"}, "dpo-system"),
        # prompt and completion, with and without a label
        ({"prompt": "q", "completion": "a"}, "prompt-completion"),
        ({"prompt": "q", "completion": "a", "label": None}, "prompt-completion"),
        ({"prompt": "q", "completion": "a", "label": 0}, "kto"),
        ({"prompt": "q", "completion": "a", "label": "good"}, "kto"),
        ({"prompt": chat()[:1], "completion": chat()[1:]}, "prompt-completion-messages"),
        ({"prompt": chat()[:1], "completion": chat()[1:], "label": False}, "kto-messages"),
        ({"prompt": "q", "completions": ["s", "t"], "labels": [True, False]}, "stepwise"),
        ({"prompt": "q", "completions": ["s", "t"], "scores": [1, 0.5]}, "ranked"),
        ({"prompt": "q", "response": "a"}, "prompt-response"),
        ({"prompt": "q", "response": "a", "label": 1}, "kto-prompt-response"),
        ({"prompt": "q", "response": "a", "score": 1}, "scored-response"),
        ({"prompt": "q", "response": "a", "helpfulness": 3, "correctness": 3}, "helpsteer2"),
        # a target beside the prompt makes it one for online methods
        ({"prompt": "q", "answer": "42"}, "prompt"),
        ({"prompt": chat()[:1], "answer": "42"}, "prompt-messages-only"),
        ({"prompt": chat()[:1], "data_source": "d", "reward_model": {}}, "verl"),
        ({"messages": chat()[:1], "ground_truth": "42", "dataset": "d", "tools": ["python"]}, "rlvr"),
        ({"messages": chat()[:1], "reference_answer": {}, "tools": []}, "openai-rft"),
        ({"messages": chat()[:1], "solution": "42", "tools": "[]"}, "swift-solution"),
        ({"messages": chat(), "reward": 1.0}, "agentrl-record"),
        ({"text": "q", "label": None, "metadata": {}}, "slime"),
        ({"question": "q", "answer": 42}, "question-verdict"),
        ({"question": "q", "answer": "forty-two, I believe"}, "question-answer"),
        ({"text": "q"}, "text"),
        ({"text": "<|im_start|>user\nq<|im_end|>\n"}, "rendered-text"),
    ],
)
def test_one_row(row: Row, format: str) -> None:
    assert name([row]) == format
    assert name([row, row, row]) == format


def test_the_order_of_columns_and_rows_does_not_matter() -> None:
    rows: list[Row] = [{"prompt": "q", "chosen": chat(), "rejected": chat("q", "b"), "id": n} for n in range(5)]
    rows.append({"prompt": "q", "chosen": "a", "rejected": "b"})
    shuffled = [dict(reversed(row.items())) for row in reversed(rows)]
    assert found(rows).to_json() == found(shuffled).to_json()


# ---------------------------------------------------------------- many rows


def test_most_rows_decide_and_not_the_first() -> None:
    detection = found([{"conversations": chat()}] * 30 + [{"conversations": turns()}] * 170)
    assert detection.format.name == "sharegpt"
    assert (detection.rows, detection.explained) == (200, 170)
    assert list(detection.others) == ["chat-in-conversations"]
    assert detection.runner_up is not None
    assert detection.runner_up[0] == "chat-in-conversations"


def test_half_and_half_of_one_layout_are_read_each_by_its_own() -> None:
    detection = found([{"conversations": chat()}] * 100 + [{"conversations": turns()}] * 100)
    assert {detection.format.name, *detection.others} == {"chat-in-conversations", "sharegpt"}
    assert (detection.rows, detection.explained) == (200, 100)


def test_a_format_that_explains_few_rows_is_none() -> None:
    rows: list[Row] = [{"messages": chat()}] * 40 + [{"speech": "x"}] * 60
    with pytest.raises(UnknownFormat) as caught:
        found(rows)
    assert "openai explains some of the rows" in caught.value.hint


def test_nulls_and_broken_values_in_some_rows() -> None:
    rows: list[Row] = [{"instruction": "q", "input": None, "output": "a"}] * 90 + [
        {"instruction": "q", "output": None}
    ] * 10
    assert name(rows) == "alpaca"


def test_evidence() -> None:
    rows: list[Row] = [{"conversations": turns(), "system": "s", "id": n} for n in range(3)]
    value = found([*rows, {"conversations": []}]).to_json()
    assert value["format"] == "sharegpt"
    assert (value["kind"], value["form"], value["conversational"]) == ("sft", "messages", True)
    assert (value["rows_looked_at"], value["rows_explained"]) == (4, 3)
    assert value["evidence"] == [
        "conversations: turns in 3 of 4 rows",
        "system: present in 3 rows",
        "roles: human 3, gpt 3",
    ]
    assert json.loads(json.dumps(value)) == value


# ---------------------------------------------------------------- dialects with marks

THINKING = [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]
DIALECTS: dict[str, list[Row]] = {
    "anthropic": [{"role": "user", "content": "q"}, {"role": "assistant", "content": THINKING}],
    "harmony": [{"role": "user", "content": "q"}, {"role": "assistant", "channel": "final", "content": "a"}],
    "llamafactory-v1": [
        {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
        {"role": "assistant", "content": [{"type": "text", "value": "a"}], "loss_weight": 1.0},
    ],
    "llama-stack": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"call_id": "c", "tool_name": "f", "arguments": {}}]},
        {"role": "tool", "call_id": "c", "content": "sun"},
        {"role": "assistant", "content": "a"},
    ],
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("marked", [60, 200])
def test_marks_in_some_rows(dialect: str, marked: int) -> None:
    rows: list[Row] = [{"messages": chat()}] * (200 - marked) + [{"messages": DIALECTS[dialect]}] * marked
    detection = found(rows)
    assert detection.format.name == dialect
    assert detection.explained == 200
    assert f"messages: {FORMATS[dialect].marks['messages']} in {marked} rows" in detection.evidence


@pytest.mark.parametrize("dialect", DIALECTS)
def test_marks_in_few_rows_are_never_overlooked(dialect: str) -> None:
    rows: list[Row] = [{"messages": chat()}] * 199 + [{"messages": DIALECTS[dialect]}]
    assert dialect in candidates(rows)


def test_no_marks_no_dialect() -> None:
    detection = found([{"messages": chat()}] * 200)
    assert detection.format.name == "openai"
    assert detection.runner_up is None


def test_a_form_that_must_be_asked_for() -> None:
    rows: list[Row] = [{"text": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"}] * 3
    assert name(rows) == "rendered-text"
    assert name(rows, "sft:text") == "rendered-text"
    assert name(rows, "sft:messages") == "chatml-text"


# ---------------------------------------------------------------- questions for a person

MATH: list[Row] = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(20)]


def test_a_question_with_a_final_answer_is_ambiguous(tmp_path: Path) -> None:
    path = write(tmp_path / "math.jsonl", MATH)
    with pytest.raises(AmbiguousFormat) as caught:
        datakit.convert(path, tmp_path / "out", workers=1)
    assert caught.value.exit_code == 3
    assert caught.value.message == f"{path}: question-answer and question-verdict explain the rows equally well."
    assert "--format question-answer" in caught.value.hint
    assert "--format question-verdict" in caught.value.hint
    assert "sft:messages" in caught.value.hint
    assert "prompt:messages" in caught.value.hint
    assert "--to sft or --to prompt" in caught.value.hint
    assert not (tmp_path / "out").exists()
    with pytest.raises(AmbiguousFormat):
        datakit.detect(path)
    with pytest.raises(AmbiguousFormat):
        datakit.validate(path, workers=1)


@pytest.mark.parametrize(
    ("options", "kind", "column"),
    [
        ({"to": "prompt"}, "prompt", "answer"),
        ({"format": "question-verdict"}, "prompt", "answer"),
        ({"to": "sft"}, "sft", "messages"),
        ({"to": "sft:prompt_completion:strings"}, "sft", "completion"),
        ({"format": "question-answer"}, "sft", "messages"),
    ],
)
def test_to_or_format_settles_it(tmp_path: Path, options: dict[str, str], kind: str, column: str) -> None:
    path = write(tmp_path / "math.jsonl", MATH)
    report = datakit.convert(path, tmp_path / "out", workers=1, **options)  # type: ignore[arg-type]
    assert (report.exit_code, report.kind, report.rows_out) == (0, kind, 20)
    assert column in next(iter(datakit.load(tmp_path / "out")))


def test_a_few_final_answers_do_not_make_a_question(tmp_path: Path) -> None:
    essays: list[Row] = [{"question": f"Why {n}?", "answer": "For many reasons."} for n in range(20)]
    assert name(essays + MATH[:2]) == "question-answer"


def test_messages_beside_whole_conversations_are_a_question() -> None:
    row = {"messages": chat()[:1], "chosen": chat(), "rejected": chat("q", "b")}
    with pytest.raises(AmbiguousFormat) as caught:
        found([row])
    assert "--format messages-preference" in caught.value.hint
    assert "--format dpo-implicit" in caught.value.hint
    assert "--to" not in caught.value.hint  # both are preferences, so a kind would not tell them apart


# ---------------------------------------------------------------- unknown


def test_unknown_columns_name_the_closest_format() -> None:
    with pytest.raises(UnknownFormat) as caught:
        found([{"instruction": "Say hi", "respons": "hi"}] * 3)
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("rows.jsonl: no known format explains the rows.")
    assert "instruction ('Say hi'), respons ('hi')" in caught.value.message
    assert "instruction-response: column response is missing" in caught.value.hint
    assert "--map FILE" in caught.value.hint
    assert "--format" in caught.value.hint


def test_a_value_of_another_shape_is_named() -> None:
    with pytest.raises(UnknownFormat) as caught:
        found([{"prompt": "q", "chosen": 1, "rejected": "b"}])
    assert "dpo: chosen is int 1 where text is expected" in caught.value.hint


def test_nothing_in_common_with_any_format() -> None:
    with pytest.raises(UnknownFormat) as caught:
        found([{"lat": 48.1, "lon": 11.5}])
    assert "lat (float 48.1), lon (float 11.5)" in caught.value.message
    assert "Closest" not in caught.value.hint
    assert "--map" in caught.value.hint


def test_rows_inside_one_object_are_pointed_at() -> None:
    with pytest.raises(UnknownFormat) as caught:
        found([{"type": "pairs", "instances": [{"q": "a"}, {"q": "b"}]}])
    assert "jq -c '.instances[]' FILE" in caught.value.hint


def test_no_rows() -> None:
    with pytest.raises(UnknownFormat, match="no row could be read"):
        found([])


def test_what_cannot_become_the_target_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is openai, which is sft:messages; it cannot become kto"):
        found([{"messages": chat()}], "kto")
    with pytest.raises(UnknownFormat, match="no known format explains the rows"):
        found([{"what": 1}], "kto")
    with pytest.raises(UsageError, match="stepwise"):
        datakit.detect(write(tmp_path / "rows.jsonl", [{"messages": chat()}]), to="stepwise")


# ---------------------------------------------------------------- rows that drift


def test_drift_within_a_layout_is_converted_and_said(tmp_path: Path) -> None:
    rows: list[Row] = [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(20)]
    rows[7] = {"messages": chat("drift", "ing")}
    rows[13] = {"conversations": turns("in", "turn")}
    path = write(tmp_path / "rows.jsonl", rows)
    report = datakit.convert(path, tmp_path / "out", workers=1)
    assert (report.exit_code, report.format, report.rows_out) == (0, "alpaca", 20)
    [drift] = [summary for summary in report.findings if summary.id == "DK105"]
    assert (drift.severity, drift.count) == ("warning", 2)
    assert [place["row"] for place in drift.first] == [8, 14]
    assert drift.first[1]["note"] == "read as sharegpt, while the file is alpaca"
    made = [row["messages"] for row in datakit.load(tmp_path / "out")]
    assert made[7] == chat("drift", "ing")
    assert made[13] == chat("in", "turn")
    assert made[8] == chat("q8", "a8")
    strict = datakit.convert(path, tmp_path / "strict", fail_on="warning", workers=1)
    assert (strict.exit_code, strict.verdict) == (1, "failed by DK105 format-drift")
    assert not (tmp_path / "strict").exists()


def test_drift_to_another_layout_is_refused(tmp_path: Path) -> None:
    rows: list[Row] = [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(20)]
    rows[7] = {"prompt": "q", "chosen": "a", "rejected": "b"}
    report = datakit.validate(write(tmp_path / "rows.jsonl", rows), workers=1)
    assert (report.exit_code, report.rejected, report.rows_out) == (1, {"DK103": 1}, 19)


def test_a_format_that_was_named_allows_no_drift(tmp_path: Path) -> None:
    rows: list[Row] = [{"instruction": "q", "output": "a"}, {"messages": chat()}]
    report = datakit.validate(write(tmp_path / "rows.jsonl", rows), format="alpaca", workers=1)
    assert report.rejected == {"DK103": 1}


# ---------------------------------------------------------------- several inputs


def test_formats_of_one_kind_are_converted_together(tmp_path: Path) -> None:
    inputs = [
        write(tmp_path / "a.jsonl", [{"messages": chat("1", "one")}]),
        write(tmp_path / "b.jsonl", [{"conversations": turns("2", "two")}]),
        write(tmp_path / "c.jsonl", [{"instruction": "3", "output": "three"}]),
    ]
    report = datakit.convert(inputs, tmp_path / "out", workers=1)
    assert (report.exit_code, report.format, report.kind) == (0, "openai+sharegpt+alpaca", "sft")
    assert [entry["format"] for entry in report.inputs] == ["openai", "sharegpt", "alpaca"]
    assert [entry["format"] for entry in report.detection] == ["openai", "sharegpt", "alpaca"]
    rows = list(datakit.load(tmp_path / "out").rows(all=True))
    assert [row["messages"] for row in rows] == [chat("1", "one"), chat("2", "two"), chat("3", "three")]
    assert [row["dk_source"] for row in rows] == inputs


def test_inputs_of_different_kinds_are_refused(tmp_path: Path) -> None:
    chats = write(tmp_path / "chats.jsonl", [{"messages": chat()}])
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(AmbiguousFormat) as caught:
        datakit.convert([chats, pairs], tmp_path / "out", workers=1)
    assert "one output holds one kind and form" in caught.value.message
    assert f"{chats} is sft:messages" in caught.value.message
    assert f"{pairs} is preference:strings" in caught.value.message
    assert caught.value.hint.startswith("Ask for one with --to sft:messages or")
    assert not (tmp_path / "out").exists()


def test_inputs_of_different_forms_need_a_word(tmp_path: Path) -> None:
    texts = write(tmp_path / "texts.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    chats = write(tmp_path / "chats.jsonl", [{"chosen": chat("q", "c"), "rejected": chat("q", "d")}])
    with pytest.raises(AmbiguousFormat, match="one output holds one kind and form") as caught:
        datakit.convert([texts, chats], tmp_path / "out", workers=1)
    assert "--to preference:messages" in caught.value.hint
    assert "--to preference:strings" in caught.value.hint
    report = datakit.convert([texts, chats], tmp_path / "out", to="preference:strings", workers=1)
    assert report.exit_code == 0
    assert list(datakit.load(tmp_path / "out")) == [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "c", "rejected": "d"},
    ]


def test_one_unknown_input_among_others_is_named(tmp_path: Path) -> None:
    known = write(tmp_path / "known.jsonl", [{"messages": chat()}])
    unknown = write(tmp_path / "unknown.jsonl", [{"x": 1}])
    with pytest.raises(UnknownFormat, match=r"unknown\.jsonl: no known format"):
        datakit.convert([known, unknown], tmp_path / "out", workers=1)


# ---------------------------------------------------------------- the verb


def test_detect_says_what_each_input_is(tmp_path: Path) -> None:
    inputs = [
        write(tmp_path / "a.jsonl", [{"messages": chat()}] * 3),
        write(tmp_path / "b.jsonl", [{"conversations": turns()}] * 2),
    ]
    report = datakit.detect(inputs)
    assert (report.command, report.exit_code, report.verdict) == ("detect", 0, "detected")
    assert [(entry["path"], entry["format"]) for entry in report.detection] == [
        (inputs[0], "openai"),
        (inputs[1], "sharegpt"),
    ]
    assert datakit.detect([{"prompt": "q", "completion": "a", "label": True}]).format == "kto"


# ---------------------------------------------------------------- what a person may have meant


def test_half_and_half_of_two_layouts_is_to_be_split() -> None:
    rows: list[Row] = [{"messages": chat()}] * 10 + [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 10
    with pytest.raises(AmbiguousFormat, match="rows of two formats: ") as caught:
        found(rows)
    assert "10 are openai (sft:messages)" in caught.value.message
    assert caught.value.hint.startswith("Split the file by format")


def test_a_misspelt_column_of_all_rows_is_told() -> None:
    with pytest.raises(UnknownFormat) as caught:
        found([{"messges": chat()}])
    assert "openai: column messages is missing, did you mean it by 'messges'?" in caught.value.hint


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"outptu": "a", "instruction": "q"}, "missing in an object with keys outptu, instruction; did you mean it by 'outptu'?"),
        ({"output": None, "instruction": "q"}, "null"),
        ({"instruction": "q", "speech": "x"}, "missing in an object with keys instruction, speech"),
        (
            {"conversations": turns()},
            "missing in an object with keys conversations, a row of sharegpt while the file is alpaca",
        ),
    ],
)  # fmt: skip
def test_a_missing_column_is_explained(row: Row, note: str, tmp_path: Path) -> None:
    good: list[Row] = [{"instruction": "q", "output": f"a{n}"} for n in range(9)]
    path = write(tmp_path / "rows.jsonl", [*good, row])
    report = datakit.validate(path, format="alpaca", workers=1)
    assert [place["note"] for place in report.errors()[0].first] == [note]


def test_an_empty_cell_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("instruction,output\nq,a\nq,\n", "utf-8")
    report = datakit.validate(tmp_path / "a.csv", format="alpaca", workers=1)
    assert [place["note"] for place in report.errors()[0].first] == ["an empty cell"]


def test_inputs_of_different_kinds_are_named_by_kind(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"messages": chat()}])
    write(tmp_path / "b.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    write(tmp_path / "c.jsonl", [{"messages": chat()}])
    with pytest.raises(AmbiguousFormat) as caught:
        datakit.validate(tmp_path, workers=1)
    first, second = caught.value.hint.splitlines()[1:]
    assert first == f"  sft:messages: {tmp_path}/a.jsonl {tmp_path}/c.jsonl"
    assert second == f"  preference:strings: {tmp_path}/b.jsonl"
    assert "--to" not in caught.value.hint
