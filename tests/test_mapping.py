"""Formats of one's own: TOML maps and entries of LLaMA-Factory's dataset_info.json."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

import datakit
from datakit.errors import UnknownFormat, UsageError
from datakit.formats import mapping
from datakit.formats.declare import Format, Row, leftover, look
from datakit.formats.normalise import normalise
from datakit.messages import Context


def write(path: Path, rows: list[Row]) -> str:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return str(path)


def toml(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text, "utf-8")
    return str(path)


def info(folder: Path, **entries: Any) -> str:
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(entries), "utf-8")
    return str(path)


def loaded(spec: mapping.Spec) -> Format:
    format = mapping.load(spec)
    assert isinstance(format, Format)
    return format


def read(format: Format, row: Row) -> tuple[dict[str, Any], Row]:
    return normalise(format, row, Context())


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# ---------------------------------------------------------------- TOML maps, end to end


def converted(folder: Path, map: str, rows: list[Row], **options: Any) -> list[dict[str, Any]]:
    out = folder / "out"
    report = datakit.convert(write(folder / "rows.jsonl", rows), out, map=map, workers=1, **options)
    assert report.exit_code == 0, report.verdict
    return list(datakit.load(out).rows(all=True))


def test_a_map_for_conversations(tmp_path: Path) -> None:
    map = toml(
        tmp_path,
        """
        to = "sft:messages"
        [columns]
        messages = "data.dialog"
        system = "briefing"
        tools = "data.functions"
        [turn]
        role = "speaker"
        content = "utterance"
        [roles]
        customer = "user"
        agent = "assistant"
        """,
    )
    function = {"name": "look_up", "parameters": {"type": "object", "properties": {}}}
    turns = [{"speaker": "customer", "utterance": " Grüß Gott\n"}, {"speaker": "agent", "utterance": "Hallo"}]
    calls = [
        {"speaker": "customer", "utterance": "Look it up."},
        {"speaker": "agent", "utterance": "", "tool_calls": [{"id": "c1", "name": "look_up", "arguments": "{}"}]},
        {"speaker": "tool", "utterance": "42", "tool_call_id": "c1"},
        {"speaker": "assistant", "utterance": "It is 42."},
    ]
    rows = converted(
        tmp_path,
        map,
        [
            {"data": {"dialog": turns, "shop": 7}, "briefing": "Be kind."},
            {"data": {"dialog": calls, "functions": [function]}, "briefing": None},
        ],
    )
    assert rows[0]["messages"] == [
        turn("system", "Be kind."),
        turn("user", " Grüß Gott\n"),
        turn("assistant", "Hallo"),
    ]
    assert rows[0]["dk_meta"] == {"data": {"shop": 7}}
    assert rows[0]["tools"] is None
    assert rows[1]["tools"] == [{"type": "function", "function": function}]
    assert [message["role"] for message in rows[1]["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert rows[1]["dk_meta"] is None
    manifest = datakit.load(tmp_path / "out").manifest
    assert manifest["plan"]["request"]["map"]["columns"]["messages"] == "data.dialog"
    assert manifest["inputs"][0]["format"] == "own"


def test_a_map_for_pairs_of_texts(tmp_path: Path) -> None:
    map = toml(tmp_path, 'to = "preference"\n[columns]\nprompt = "q"\nchosen = "good"\nrejected = "bad"\n')
    rows = converted(
        tmp_path, map, [{"q": "x", "good": " a", "bad": "b", "by": "me"}, {"q": "y", "good": "c", "bad": "d"}]
    )
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [("x", " a", "b"), ("y", "c", "d")]
    assert [row["dk_meta"] for row in rows] == [{"by": "me"}, None]


def test_a_map_for_comparisons(tmp_path: Path) -> None:
    map = toml(
        tmp_path,
        """
        to = "preference"
        [columns]
        user = "q"
        first = "left"
        second = "right"
        winner = "vote"
        [wins]
        L = "first"
        R = "second"
        both = "tie"
        2 = "second"
        """,
    )
    rows = converted(
        tmp_path,
        map,
        [
            {"q": "x", "left": "a", "right": "b", "vote": "L"},
            {"q": "x", "left": "c", "right": "d", "vote": "R"},
            {"q": "x", "left": "e", "right": "f", "vote": 2},
            {"q": "x", "left": "g", "right": "h", "vote": "both"},
        ],
    )
    assert [row["chosen"][0]["content"] for row in rows] == ["a", "d", "f"]
    assert [row["prompt"] for row in rows] == [[turn("user", "x")]] * 3


def test_a_map_for_labels(tmp_path: Path) -> None:
    map = toml(
        tmp_path,
        """
        to = "kto"
        [columns]
        user = "q"
        completion = "a"
        label = "thumb"
        [labels]
        up = true
        down = false
        "👍" = true
        """,
    )
    thumbs = ["up", "down", "👍", False]
    rows = converted(tmp_path, map, [{"q": "x", "a": f"a{n}", "thumb": thumb} for n, thumb in enumerate(thumbs)])
    assert [row["label"] for row in rows] == [True, False, True, False]
    assert rows[0]["completion"] == [turn("assistant", "a0")]


def test_labels_that_are_numbers_or_booleans_can_be_turned_round(tmp_path: Path) -> None:
    text = 'to = "kto"\n[columns]\nprompt = "q"\ncompletion = "a"\nlabel = "toxic"\n[labels]\n'
    inverted = loaded(toml(tmp_path, text + "true = false\nfalse = true\n"))
    assert read(inverted, {"q": "x", "a": "y", "toxic": True})[0]["label"] is False
    assert read(inverted, {"q": "x", "a": "y", "toxic": False})[0]["label"] is True
    stars = loaded(toml(tmp_path, text + "1 = false\n2 = false\n5 = true\n"))
    assert [read(stars, {"q": "x", "a": "y", "toxic": n})[0]["label"] for n in (1, 2, 5)] == [False, False, True]


def test_a_map_for_rankings(tmp_path: Path) -> None:
    map = toml(
        tmp_path,
        """
        to = "ranked:strings"
        lower_is_better = true
        [columns]
        prompt = "q"
        completions = "drafts"
        scores = "ranks"
        """,
    )
    [row] = converted(tmp_path, map, [{"q": "x", "drafts": ["a", " b"], "ranks": [1, 2]}])
    assert (row["prompt"], row["completions"], row["scores"]) == ("x", ["a", " b"], [-1.0, -2.0])


def test_a_key_with_a_dot_in_its_name_wins(tmp_path: Path) -> None:
    format = loaded(toml(tmp_path, 'to = "sft:text"\n[columns]\ntext = "a.b"\n'))
    assert read(format, {"a.b": "whole", "a": {"b": "inner", "c": 1}}) == (
        {"text": "whole"},
        {"a": {"b": "inner", "c": 1}},
    )
    assert read(format, {"a": {"b": "inner", "c": 1}}) == ({"text": "inner"}, {"a": {"c": 1}})
    assert read(format, {"a": {"b": "inner"}}) == ({"text": "inner"}, {})


def test_a_bad_row_names_the_columns_of_the_user(tmp_path: Path) -> None:
    map = toml(tmp_path, 'to = "kto"\n[columns]\nuser = "q"\ncompletion = "a"\nlabel = "thumb"\n[labels]\nup = true\n')
    rows = [{"q": "x", "a": "y", "thumb": "sideways"}, {"q": "x", "thumb": "up"}]
    report = datakit.validate(write(tmp_path / "rows.jsonl", rows), map=map, workers=1)
    places = {summary.id: summary.first[0] for summary in report.findings}
    assert report.exit_code == 1
    assert places["DK501"]["path"] == "thumb"
    assert "up" in places["DK501"]["note"]
    assert places["DK103"]["path"] == "a"


# ---------------------------------------------------------------- steps into lists


def test_a_number_in_a_path_is_a_step_into_a_list(tmp_path: Path) -> None:
    row = {"request": {"messages": [turn("user", "q")]}, "choices": [{"message": turn("assistant", "a"), "n": 1}, {"message": turn("assistant", "b")}]}  # fmt: skip
    map = toml(tmp_path, 'to = "sft:prompt_completion:messages"\n[columns]\nprompt = "request.messages"\ncompletion = "choices.0.message"\n')  # fmt: skip
    (made,) = converted(tmp_path, map, [row])
    assert made["completion"] == [turn("assistant", "a")]
    assert made["dk_meta"] == {"choices": [{"n": 1}, {"message": turn("assistant", "b")}]}


@pytest.mark.parametrize(
    ("row", "path", "value", "left"),
    [
        ({"a": ["x", "y"]}, "a.1", "y", {"a": ["x", None]}),
        ({"a": [{"b": ["x"]}]}, "a.0.b.0", "x", {}),
        ({"a": [{"b": 1, "c": 2}]}, "a.0.b", 1, {"a": [{"c": 2}]}),
        ({"a": ["x"]}, "a.1", None, {"a": ["x"]}),
        ({"a": ["x"]}, "a.-1", None, {"a": ["x"]}),
        ({"a": ["x"]}, "a.\u0661", None, {"a": ["x"]}),
        ({"a": []}, "a.0", None, {"a": []}),
        ({"a": [{}, 1]}, "a.0.b", None, {"a": [{}, 1]}),
        ({"a": {"0": "x"}}, "a.0", "x", {}),
        ({"a": {}}, "a.b", None, {"a": {}}),
    ],
)
def test_what_a_path_takes_and_leaves(row: Row, path: str, value: Any, left: Row) -> None:
    before = json.dumps(row)
    assert look(row, path) == (value is not None, value)
    assert leftover(row, frozenset({path})) == left
    assert json.dumps(row) == before


# ---------------------------------------------------------------- columns that no row has

TALKS: list[Row] = [{"dialog": [turn("user", "q"), turn("assistant", f"a{n}")], "meta": {"id": n}} for n in range(3)]


@pytest.mark.parametrize(
    ("columns", "message", "hint"),
    [
        ({"messages": "dialogue"}, "no row of ROWS has 'dialogue', the column for messages; did you mean dialog?", "Columns of the 3 rows looked at: dialog, meta, meta.id."),
        ({"messages": "turns"}, "no row of ROWS has 'turns', the column for messages", "dialog, meta"),
        ({"messages": "dialog", "system": "metta.id"}, "'metta.id', the column for system; did you mean meta.id?", "dialog"),
    ],
)  # fmt: skip
def test_a_column_that_no_row_has_is_bad_use(tmp_path: Path, columns: Any, message: str, hint: str) -> None:
    rows = write(tmp_path / "rows.jsonl", TALKS)
    with pytest.raises(UsageError) as caught:
        datakit.convert(rows, tmp_path / "out", map={"columns": columns}, on_bad_row="quarantine", max_bad="100 %")
    assert message.replace("ROWS", rows) in caught.value.message
    assert caught.value.message.startswith("map: ")
    assert hint in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_column_that_some_or_none_may_have_is_not(tmp_path: Path) -> None:
    columns = {"messages": "dialog", "system": "briefing", "tools": "tools"}
    assert datakit.validate(write(tmp_path / "a.jsonl", TALKS), map={"columns": columns}, workers=1).exit_code == 0
    late = write(tmp_path / "b.jsonl", [{"x": 1}, *TALKS])
    report = datakit.validate(late, map={"columns": columns}, workers=1)
    assert report.rejected == {"DK103": 1}


# ---------------------------------------------------------------- words beside those of a format

SHARE: Row = {
    "conversations": [{"from": "guest", "value": "q"}, {"from": "gpt", "value": "a"}],
    "tools": "[]",
    "system": "Be brief.",
}
DIALECT: Row = {"messages": [turn("guest", "q"), turn("desk", "a")], "tools": [{"name": "f", "parameters": {}}]}


@pytest.mark.parametrize("head", ["", 'format = "sharegpt"\n'])
def test_roles_alone_extend_a_format(tmp_path: Path, head: str) -> None:
    rows = [SHARE] if head else [SHARE, SHARE | {"tools": '[{"name": "f", "parameters": {}}]'}]
    made = converted(tmp_path, toml(tmp_path, head + '[roles]\nguest = "user"\n'), rows)
    assert [row["messages"] for row in made] == [[turn("system", "Be brief."), turn("user", "q"), turn("assistant", "a")]] * len(rows)  # fmt: skip
    assert not any(row["dk_meta"] for row in made)
    if not head:
        assert made[1]["tools"][0]["function"]["name"] == "f"
        report = datakit.validate(tmp_path / "rows.jsonl", map=tmp_path / "own.toml", workers=1)
        assert (report.format, report.detection[0]["evidence"][-1]) == (
            "own",
            "read as sharegpt, with the words of own",
        )


def test_roles_reach_rows_that_drift(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [SHARE] * 5 + [DIALECT])
    report = datakit.validate(path, map={"roles": {"guest": "user", "desk": "assistant"}}, workers=1)
    assert (report.exit_code, report.rows_out) == (0, 6)
    assert "DK105" in {summary.id for summary in report.findings}


def test_labels_alone_extend_a_format(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "label": word} for word in ("good", "bad")]
    map = {"format": "kto", "labels": {"good": True, "bad": False}}
    report = datakit.convert(write(tmp_path / "rows.jsonl", rows), tmp_path / "out", map=map, workers=1)
    assert report.exit_code == 0, report.verdict
    assert [row["label"] for row in datakit.load(tmp_path / "out")] == [True, False]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"format": "sharegpt", "columns": {"messages": "m"}, "roles": {"a": "user"}}, "format names the columns, so columns cannot"),
        ({"format": "sharegtp", "roles": {"a": "user"}}, "no format named 'sharegtp'"),
        ({"format": "text", "roles": {"a": "user"}}, "map: text has no use for words under [roles]"),
        ({"format": "alpaca", "roles": {"a": "user"}}, "map: alpaca has no use for words under [roles]"),
        ({"format": "openai", "labels": {"a": True}}, "map: openai has no use for words under [labels]"),
        ({"format": "openai", "wins": {"a": "tie"}}, "map: openai has no use for words under [wins]"),
        ({"roles": {"a": "robot"}}, "map: no role named robot"),
        ({"roles": {1: "user"}}, "map: [roles] must be a table of texts"),
        ({}, "map: [columns] must name"),
    ],
)  # fmt: skip
def test_words_that_nothing_could_use(value: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        mapping.load(value)
    assert message in caught.value.message


def test_words_there_and_back() -> None:
    words = {"name": "w", "roles": {"guest": "user"}, "labels": {"3": True}, "wins": {"a": "tie"}}
    assert mapping.to_json(mapping.load(words)) == words
    assert mapping.load(mapping.to_json(mapping.load(words))) == mapping.load(words)
    format = mapping.from_json({"name": "w", "format": "sharegpt", "roles": {"guest": "user", "gpt": "assistant"}})
    assert mapping.to_json(format) == {"name": "w", "format": "sharegpt", "roles": {"guest": "user"}, "labels": {}, "wins": {}}  # fmt: skip
    assert mapping.from_json(mapping.to_json(format)) == format


# ---------------------------------------------------------------- maps of the library


def test_a_mapping_says_what_a_file_says(tmp_path: Path) -> None:
    text = 'name = "own"\nto = "sft:messages"\n[columns]\nmessages = "dialog"\n'
    rows = write(tmp_path / "rows.jsonl", TALKS)
    maps: list[mapping.Spec] = [toml(tmp_path, text), Path(toml(tmp_path, text)), tomllib.loads(text)]
    ids = {datakit.convert(rows, tmp_path / str(n), map=map, workers=1).content_id for n, map in enumerate(maps)}
    assert len(ids) == 1


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="map: a list"):
        datakit.validate(write(tmp_path / "rows.jsonl", TALKS), map=["dialog"])  # type: ignore[arg-type]


# ---------------------------------------------------------------- which layout a map asks for


@pytest.mark.parametrize(
    ("to", "slots", "layout"),
    [
        (None, "messages", "sft:messages"),
        ("sft", "user assistant", "sft:messages"),
        ("sft:prompt_completion", "prompt completion", "sft:prompt_completion:strings"),
        ("sft:prompt_completion", "user completion", "sft:prompt_completion:messages"),
        ("sft:prompt_completion:messages", "prompt completion", "sft:prompt_completion:messages"),
        ("sft:text", "text", "sft:text"),
        ("preference", "prompt chosen rejected", "preference:strings"),
        ("preference", "prompt system chosen rejected", "preference:messages"),
        ("preference", "messages chosen rejected", "preference:messages"),
        ("preference:implicit", "chosen rejected", "preference:implicit:messages"),
        ("preference:implicit:strings", "chosen rejected", "preference:implicit:strings"),
        ("kto", "messages label", "kto:messages"),
        ("kto:strings", "prompt completion label", "kto:strings"),
        ("prompt", "prompt", "prompt:messages"),
        ("prompt:strings", "prompt", "prompt:strings"),
        ("trajectory", "messages reward", "trajectory:messages"),
        ("ranked", "user completions scores", "ranked:messages"),
        ("stepwise", "prompt completions labels", "stepwise:strings"),
        ("tokenized", "input_ids labels", "tokenized:tokens"),
    ],
)
def test_layout_of_a_map(to: str | None, slots: str, layout: str) -> None:
    value: dict[str, Any] = {"columns": {slot: f"my_{slot}" for slot in slots.split()}}
    format = mapping.from_json(value if to is None else {**value, "to": to})
    assert format.layout.name.startswith(layout)
    assert mapping.from_json(mapping.to_json(format)) == format


# ---------------------------------------------------------------- there and back


def test_to_json_and_from_json_are_inverse(tmp_path: Path) -> None:
    text = """
        name = "everything"
        to = "preference:messages"
        lower_is_better = true
        [columns]
        messages = "a.b"
        first = "x"
        second = "y"
        winner = "w"
        images = "pictures"
        [turn]
        role = "who"
        content = "what"
        [roles]
        op = "system"
        exec = "call"
        [wins]
        1 = "first"
        -1 = "second"
        draw = "tie"
        true = "first"
        [labels]
        good = true
        3 = false
        """
    format = loaded(toml(tmp_path, text))
    value = mapping.to_json(format)
    assert json.loads(json.dumps(value)) == value
    assert mapping.from_json(value) == format
    assert mapping.to_json(mapping.from_json(value)) == value
    assert value["name"] == "everything"
    assert value["roles"] == {"op": "system", "exec": "call"}
    assert format.wins[1] == format.wins["1"] == format.wins[True] == "first"
    assert format.wins[-1] == "second"
    assert format.labels[3] is False


# ---------------------------------------------------------------- what is wrong with a map

SFT = '[columns]\nmessages = "m"\n'
PAIR = 'to = "preference"\n[columns]\nuser = "q"\nfirst = "a"\nsecond = "b"\nwinner = "w"\n'


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("columns = [", "not TOML", ""),
        ('kind = "sft"\n' + SFT, "unknown kind", "A map has columns"),
        ('columns = "messages"\n', "[columns] must be a table of texts", ""),
        ("[columns]\nmessages = 1\n", "[columns] must be a table of texts", ""),
        ('[columns]\ndialog = "m"\n', "no slot named dialog", "messages"),
        (SFT + '[roles]\nbot = "robot"\n', "no role named robot", "assistant"),
        (SFT + "[roles]\nbot = true\n", "[roles] must be a table of texts", ""),
        (SFT + '[turn]\nspeaker = "who"\n', "[turn] has no speaker", "role and content"),
        ('to = "sft:chat"\n' + SFT, "no such kind and form: sft:chat", "sft:messages"),
        ('to = "sft:text:chat:more"\n' + SFT, "not of the form", "For example"),
        ("to = 3\n" + SFT, "no such kind and form: 3", "sft:messages"),
        ('to = "sft"\n[columns]\nuser = "q"\n', "must name messages or assistant + user for sft:messages", ""),
        ('to = "sft:text"\n' + SFT, "must name text for sft:text", ""),
        (
            'to = "kto"\n[columns]\nlabel = "l"\n',
            "must name completion + label or label + messages for kto:messages",
            "",
        ),
        ('to = "kto"\n[columns]\nlabel = "l"\ncompletion = "a"\n', "must name prompt or messages or user", ""),
        (
            'to = "kto:strings"\n[columns]\nlabel = "l"\ncompletion = "a"\nuser = "q"\n',
            "must name prompt for kto:str",
            "",
        ),
        ('to = "preference"\n[columns]\nchosen = "c"\n', "must name chosen + rejected or first + second + winner", ""),
        ('to = "preference"\n[columns]\nchosen = "c"\nrejected = "r"\n', "must name prompt", "preference:implicit"),
        ('to = "ranked"\n[columns]\ncompletions = "c"\nprompt = "q"\n', "must name completions + scores", ""),
        ('to = "ranked"\n[columns]\ncompletions = "c"\nscores = "s"\n', "must name prompt or messages or user", ""),
        ('to = "prompt"\n[columns]\nsystem = "s"\n', "must name prompt or messages or user for prompt:messages", ""),
        ('to = "stepwise"\n[columns]\ncompletions = "c"\nlabels = "l"\n', "must name prompt for stepwise", ""),
        ('to = "tokenized"\n[columns]\nlabels = "l"\n', "must name input_ids for tokenized", ""),
        ('to = "trajectory"\n[columns]\nreward = "r"\n', "must name messages for trajectory", ""),
        (PAIR, "[wins] must say what each value of winner means", "first"),
        (PAIR + '[wins]\na = "left"\n', "every word under [wins] must be first or second or tie", ""),
        (PAIR + "[wins]\na = 1\n", "every word under [wins] must be first or second or tie", ""),
        ('labels = ["good"]\n' + SFT, "every word under [labels] must be true or false", ""),
        (SFT + '[labels]\nbad = "false"\n', "every word under [labels] must be true or false", ""),
        (SFT + "[labels]\nbad = 0\n", "every word under [labels] must be true or false", ""),
        ('lower_is_better = "no"\n' + SFT, "lower_is_better must be true or false, not 'no'", ""),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str, hint: str) -> None:
    path = toml(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        mapping.load(path)
    assert caught.value.message.startswith(f"--map {path}: ")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_map_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        mapping.load(str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match="Is a directory"):
        mapping.load(str(tmp_path))
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"\n')
    with pytest.raises(UsageError, match="not TOML"):
        mapping.load(str(tmp_path / "latin.toml"))


def test_convert_refuses_a_wrong_map_before_it_reads(tmp_path: Path) -> None:
    map = toml(tmp_path, '[columns]\ndialog = "m"\n')
    rows = write(tmp_path / "rows.jsonl", [{"m": []}])
    with pytest.raises(UsageError, match="no slot named dialog"):
        datakit.convert(rows, tmp_path / "out", map=map)
    with pytest.raises(UsageError, match="exclude each other"):
        datakit.convert(rows, tmp_path / "out", map=map, format="openai")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- dataset_info.json


def test_the_entry_of_a_file_is_named_where_its_format_is_unknown(tmp_path: Path) -> None:
    said = info(tmp_path, mine={"file_name": "rows.jsonl", "columns": {"prompt": "q", "response": "a"}}, other=3)
    rows = write(tmp_path / "rows.jsonl", [{"q": "1 + 1?", "a": "2"}] * 3)
    with pytest.raises(UnknownFormat) as caught:
        datakit.convert(rows, tmp_path / "out", workers=1)
    assert f"--map {said}:mine" in caught.value.hint
    assert datakit.convert(rows, tmp_path / "out", map=f"{said}:mine", workers=1).rows_out == 3
    with pytest.raises(UnknownFormat) as caught:
        datakit.convert(said, tmp_path / "no", workers=1)
    assert f"--map {said}:NAME" in caught.value.hint
    for text in ("[1]", "{", "[" * 100_000):
        Path(said).write_text(text, "utf-8")
        assert mapping.told_by(rows) == ""


def test_alpaca_by_default(tmp_path: Path) -> None:
    format = loaded(info(tmp_path, mine={"file_name": "mine.json"}) + ":mine")
    assert (format.name, format.layout.name) == ("mine", "sft:messages")
    record, rest = read(format, {"instruction": "Add", "input": "1 2", "output": "3", "id": 1})
    assert record == {"messages": [turn("user", "Add\n1 2"), turn("assistant", "3")]}
    assert rest == {"id": 1}


def test_alpaca_with_columns_has_no_others(tmp_path: Path) -> None:
    entry = {"columns": {"prompt": "input", "response": "target", "system": "sys", "history": "before"}}
    format = loaded(info(tmp_path, mine=entry) + ":mine")
    row = {
        "input": "b",
        "target": "B",
        "sys": "s",
        "before": [["a", "A"]],
        "output": "not taken",
        "instruction": "nor this",
    }
    record, rest = read(format, row)
    assert record["messages"] == [
        turn("system", "s"),
        turn("user", "a"),
        turn("assistant", "A"),
        turn("user", "b"),
        turn("assistant", "B"),
    ]
    assert rest == {"output": "not taken", "instruction": "nor this"}


def test_sharegpt_by_default(tmp_path: Path) -> None:
    entry = {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}}
    format = loaded(info(tmp_path, mine=entry) + ":mine")
    turns = [
        {"from": "human", "value": "w?"},
        {"from": "function_call", "value": '{"name": "w", "arguments": {"c": 1}}'},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "sunny"},
    ]
    record, _ = read(format, {"conversations": turns, "tools": '[{"name": "w", "parameters": {}}]'})
    assert [message["role"] for message in record["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert record["messages"][1]["tool_calls"][0]["function"] == {"name": "w", "arguments": {"c": 1}}
    assert record["tools"] == [{"type": "function", "function": {"name": "w", "parameters": {}}}]


def test_sharegpt_with_tags(tmp_path: Path) -> None:
    tags = {
        "role_tag": "wer",
        "content_tag": "was",
        "user_tag": "Frage",
        "assistant_tag": "Antwort",
        "system_tag": "Regel",
    }
    tags |= {"observation_tag": "Ergebnis", "function_tag": "Aufruf"}
    entry = {"formatting": "sharegpt", "columns": {"messages": "verlauf"}, "tags": tags}
    format = loaded(info(tmp_path, mine=entry) + ":mine")
    words = ["Regel", "Frage", "Aufruf", "Ergebnis", "Antwort"]
    texts = ["s", "q", '{"name": "f", "arguments": {}}', "r", "a"]
    record, _ = read(format, {"verlauf": [{"wer": w, "was": t} for w, t in zip(words, texts, strict=True)]})
    assert [m["role"] for m in record["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert record["messages"][3]["tool_call_id"] == record["messages"][2]["tool_calls"][0]["id"]
    assert mapping.from_json(mapping.to_json(format)) == format


def test_rankings(tmp_path: Path) -> None:
    pairs = {
        "chat": {
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        },
        "plain": {"ranking": True, "columns": {"prompt": "question", "chosen": "a", "rejected": "b", "system": "s"}},
        "bare": {"ranking": True},
    }
    path = info(tmp_path, **pairs)
    wanted = {"prompt": [turn("user", "q")], "chosen": [turn("assistant", "A")], "rejected": [turn("assistant", "B")]}
    chat = {"conversations": [{"from": "human", "value": "q"}]}
    chat |= {side: {"from": "gpt", "value": text} for side, text in (("chosen", "A"), ("rejected", "B"))}  # type: ignore[misc]
    assert read(loaded(f"{path}:chat"), chat)[0] == wanted
    assert read(loaded(f"{path}:plain"), {"question": "q", "a": "A", "b": "B", "s": ""})[0] == wanted
    assert read(loaded(f"{path}:bare"), {"instruction": "q", "chosen": "A", "rejected": "B"})[0] == wanted
    assert {loaded(f"{path}:{name}").layout.name for name in pairs} == {"preference:messages"}


def test_kto_tags(tmp_path: Path) -> None:
    chat = {"formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "label"}}
    chat["tags"] = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    plain = {"columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"}}
    path = info(tmp_path, chat=chat, plain=plain)
    wanted = {"prompt": [turn("user", "q")], "completion": [turn("assistant", "a")], "label": False}
    assert (
        read(loaded(f"{path}:chat"), {"messages": [turn("user", "q"), turn("assistant", "a")], "label": False})[0]
        == wanted
    )
    assert read(loaded(f"{path}:plain"), {"prompt": "q", "completion": "a", "label": False})[0] == wanted


def test_pretraining_names_only_a_prompt(tmp_path: Path) -> None:
    format = loaded(info(tmp_path, c4={"columns": {"prompt": "raw"}}) + ":c4")
    assert format.layout.name == "sft:text"
    assert read(format, {"raw": " text\n", "url": "u"}) == ({"text": " text\n"}, {"url": "u"})


@pytest.mark.parametrize(
    ("entry", "message", "hint"),
    [
        ({"columns": {"prompt": "q", "query": "x"}}, "must name messages or assistant + user", ""),
        ({"columns": {"prompt": 3}}, "[columns] must be a table of texts", ""),
        ({"columns": ["prompt"]}, "[columns] must be a table of texts", ""),
        ({"formatting": "sharegpt", "tags": {"role_tag": None}}, "[tags] must be a table of texts", ""),
        ({"formatting": "chatml"}, "no formatting named 'chatml'", "sharegpt"),
    ],
)
def test_an_entry_that_says_too_little(tmp_path: Path, entry: Any, message: str, hint: str) -> None:
    path = info(tmp_path, mine=entry)
    with pytest.raises(UsageError) as caught:
        mapping.load(f"{path}:mine")
    assert caught.value.message.startswith(f"--map {path}:mine: ")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_entry_that_is_not_there(tmp_path: Path) -> None:
    path = info(tmp_path, alpaca_de={}, dialogs={}, words="no entry")
    for name in ("dialog", "words", ""):
        with pytest.raises(UsageError) as caught:
            mapping.load(f"{path}:{name}")
        assert f"no entry named {name!r}" in caught.value.message
        assert "alpaca_de, dialogs" in caught.value.hint
    with pytest.raises(UsageError, match="which entry") as caught:
        mapping.load(path)
    assert f"{path}:NAME" in caught.value.hint
    with pytest.raises(UsageError, match="No such file"):
        mapping.load(str(tmp_path / "other.json") + ":mine")
    (tmp_path / "broken.json").write_text("{", "utf-8")
    with pytest.raises(UsageError, match="not JSON"):
        mapping.load(str(tmp_path / "broken.json") + ":mine")
    (tmp_path / "list.json").write_text("[]", "utf-8")
    with pytest.raises(UsageError, match="no entry named 'mine'"):
        mapping.load(str(tmp_path / "list.json") + ":mine")


def test_an_entry_end_to_end(tmp_path: Path) -> None:
    entry = {"columns": {"prompt": "frage", "response": "antwort"}}
    path = info(tmp_path, faq=entry)
    rows = converted(tmp_path, f"{path}:faq", [{"frage": "Wo?", "antwort": " Hier.", "nr": 1}])
    assert rows[0]["messages"] == [turn("user", "Wo?"), turn("assistant", " Hier.")]
    assert rows[0]["dk_meta"] == {"nr": 1}


def test_the_map_is_part_of_the_plan(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"a": "x", "b": "y"}])
    map = toml(tmp_path, 'to = "sft:text"\n[columns]\ntext = "a"\n')
    datakit.convert(rows, tmp_path / "out", map=map, workers=1)
    toml(tmp_path, 'to = "sft:text"\n[columns]\ntext = "b"\n')
    with pytest.raises(UsageError, match="other inputs or options"):
        datakit.convert(rows, tmp_path / "out", map=map, workers=1)
    datakit.convert(rows, tmp_path / "out", map=map, workers=1, overwrite=True)
    assert [row["text"] for row in datakit.load(tmp_path / "out")] == ["y"]


def test_to_can_ask_for_more_than_the_map_says(tmp_path: Path) -> None:
    map = toml(tmp_path, '[columns]\nuser = "q"\nassistant = "a"\n')
    [row] = converted(tmp_path, map, [{"q": "x", "a": "y"}], to="sft:prompt_completion:strings")
    assert (row["prompt"], row["completion"]) == ("x", "y")
