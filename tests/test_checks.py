"""Every check, against rows that must show it and rows as close to those as possible that must not.

`fixtures/checks/ID.json` holds

    format       what the rows are read as; "auto" detects it, for checks that look at whole files
    hit, clean   raw rows; for a check about the whole set, one set each
    hit_lines, clean_lines, hit_base64
                 the same as texts and as bytes, for rows that are no JSON objects
    paths        where each hit is to be seen; left out where that is the row as a whole
    hit_files, clean_files
                 for a check about inputs, the names of the files among which the rows are dealt in turn
    to, reasoning, others
                 the options of that name; `others` are formats for rows that drift
    as           "parquet" for rows of a Parquet file, "killed worker" for a worker that dies on them
    types        for such a file, the Arrow types of columns that JSON cannot show

In any list `{"repeat": N, "row": X}` stands for N times X with its number in place of `{i}`, and a line may be a list
of `[text, times]`.
"""

import base64
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datakit
from datakit import api, checks
from datakit.checks import CHECKS
from datakit.checks.cleaning import CLEANING
from datakit.checks.content import CONTENT
from datakit.checks.formatting import FORMATTING
from datakit.checks.kto import KTO
from datakit.checks.mixing import MIXING
from datakit.checks.pairing import PAIRING
from datakit.checks.preference import PREFERENCE
from datakit.checks.reasons import REASONS
from datakit.checks.structure import STRUCTURE
from datakit.checks.tools import TOOLS
from datakit.checks.turns import TURNS
from datakit.errors import UsageError
from datakit.findings import SEVERITIES
from datakit.formats import FORMATS
from datakit.formats.declare import Format
from datakit.reading.blocks import line_blocks
from datakit.report import Summary, summarise
from datakit.schema import Layout, layout
from datakit.step import Result, SourcePlan, StepPlan, convert_block
from datakit.workers import Pool

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "fixtures" / "checks"

OF_FILES = ("DK118", "DK119", "DK311")
BESIDE = OF_FILES
"""Seen in a file as a whole; such a finding fails a run and rejects no row."""

OF_PARQUET = ("DK125", "DK126", "DK311")
ROWS = [id for id, check in CHECKS.items() if check.on not in ("set", "format") and id not in ("DK121", *OF_PARQUET)]
SETS = [id for id, check in CHECKS.items() if check.on == "set"]


def expanded(value: Any) -> Any:
    """`{"repeat": N, "row": X}` as N rows."""
    if isinstance(value, dict):
        return {key: expanded(inner) for key, inner in value.items()}
    if not isinstance(value, list):
        return value
    made: list[Any] = []
    for inner in value:
        if isinstance(inner, dict) and inner.keys() == {"repeat", "row"}:
            text = json.dumps(inner["row"])
            made += [json.loads(text.replace("{i}", str(number))) for number in range(inner["repeat"])]
        else:
            made.append(expanded(inner))
    return made


@cache
def case(id: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((FOLDER / f"{id}.json").read_text("utf-8"))
    return value


def raw_rows(id: str, which: str) -> list[bytes]:
    """The hits or the clean rows of a check as lines."""
    own = case(id)
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in expanded(own.get(which, []))]
    for line in own.get(f"{which}_lines", []):
        text = line if isinstance(line, str) else "".join(text * times for text, times in line)
        lines.append(text.encode())
    return lines + [base64.b64decode(data) for data in own.get(f"{which}_base64", [])]


def plan(id: str, changes: dict[str, str] | None = None, encode: bool = False) -> StepPlan:
    own = case(id)
    format = FORMATS[own["format"]]
    target = layout(*own["to"].split(":")) if "to" in own else format.layout
    return step_plan(format, target, own.get("others", ()), own.get("reasoning", "keep"), changes, encode)


def step_plan(
    format: Format,
    target: Layout,
    others: Sequence[str] = (),
    reasoning: str = "keep",
    changes: dict[str, str] | None = None,
    encode: bool = False,
) -> StepPlan:
    return StepPlan(
        [SourcePlan("rows.jsonl", format.name, others, "line")],
        target.kind,
        target.form,
        target.conversational,
        reasoning=reasoning,
        severities=checks.severities(changes),
        encode=encode,
    )


def judged(id: str, raw: bytes, changes: dict[str, str] | None = None) -> tuple[dict[str, Summary], Result]:
    """The findings of one row, and what became of it."""
    return run(raw, plan(id, changes))


def run(raw: bytes, own: StepPlan) -> tuple[dict[str, Summary], Result]:
    (block,) = line_blocks([raw], 0, "rows.jsonl")
    result = convert_block(block, own)
    result.tally.balance()
    return {summary.id: summary for summary in summarise(result.tally, own.severities, [])}, result


def told(id: str, which: str) -> list[Any]:
    return [pytest.param(id, number, id=f"{id}-{number}") for number in range(len(raw_rows(id, which)))]


def of_rows(which: str) -> list[Any]:
    return [param for id in ROWS if (FOLDER / f"{id}.json").is_file() for param in told(id, which)]


# ---------------------------------------------------------------- the fixtures


ON_ROWS = [id for id, check in CHECKS.items() if check.on != "format"]
"""Checks on rows as they are; those of rendered rows need a tokenizer, see test_format.py."""


@pytest.mark.parametrize("id", ON_ROWS)
def test_every_check_has_hits_and_clean_rows(id: str) -> None:
    assert (FOLDER / f"{id}.json").is_file(), f"write fixtures/checks/{id}.json; see tests/test_checks.py"
    assert raw_rows(id, "hit")
    assert raw_rows(id, "clean")
    assert len(case(id).get("paths", raw_rows(id, "hit"))) == len(raw_rows(id, "hit"))


def test_there_is_no_fixture_without_a_check() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(ON_ROWS)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(("id", "number"), of_rows("hit"))
def test_hit(id: str, number: int) -> None:
    found, result = judged(id, raw_rows(id, "hit")[number])
    assert id in found
    seen, check = found[id], CHECKS[id]
    assert (seen.severity, seen.name, seen.count) == (check.severity, check.name, 1)
    place = seen.first[0]
    assert (place["source"], place["row"]) == ("rows.jsonl", 1)
    assert place["path"] == case(id).get("paths", [""] * 99)[number]
    assert 0 < len(place["note"]) < 300
    if check.severity == "error" or id == "DK410":
        (reject,) = result.rejects
        assert (reject["rule"], reject["name"], reject["path"]) == (id, check.name, place["path"])
        assert result.tally.rejected == {id: 1}
    else:
        assert result.rejects == []
        assert result.tally.rows_out == 1


@pytest.mark.parametrize(("id", "number"), of_rows("clean"))
def test_clean(id: str, number: int) -> None:
    found, result = judged(id, raw_rows(id, "clean")[number])
    assert id not in found
    assert result.rejects == []
    assert result.tally.rows_out == 1


CHANGEABLE = [
    id for id in ROWS if not (CHECKS[id].severity == "error" and (CHECKS[id].on == "read" or CHECKS[id].raised))
]


@pytest.mark.parametrize("id", CHANGEABLE)
def test_a_check_of_rows_raised_lowered_and_silenced(id: str) -> None:
    for raw in raw_rows(id, "hit"):
        found, result = judged(id, raw, {id: "error"})
        assert found[id].severity == "error"
        assert [reject["rule"] for reject in result.rejects] == ([] if id in BESIDE else [id])
        for severity in ("warning", "note"):
            found, result = judged(id, raw, {CHECKS[id].name: severity})
            assert found[id].severity == severity
            assert (result.rejects == []) == (id != "DK410")
        found, result = judged(id, raw, {id: "off"})
        assert id not in found
        assert (result.rejects == []) == (id != "DK410")


def test_all_hits_in_one_file(tmp_path: Path) -> None:
    """The lines that are read as they are; each is rejected by its own rule, and the others go on."""
    ids = [id for id in ROWS if CHECKS[id].severity == "error" and case(id)["format"] == "openai"]
    lines = [(id, raw) for id in ids for raw in raw_rows(id, "hit")]
    good = [raw for id in ids for raw in raw_rows(id, "clean")]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([*good, *(raw for _, raw in lines)]))
    report = datakit.validate(path, format="openai", workers=1)
    assert report.rejected == {id: sum(one == id for one, _ in lines) for id in sorted(ids)}
    assert report.rows_rejected == len(lines)
    assert report.rows_out == len(good)
    assert report.exit_code == 1
    assert all(summary.count >= report.rejected[summary.id] for summary in report.errors())


# ---------------------------------------------------------------- other formats than that of the fixture

Q: dict[str, Any] = {"role": "user", "content": "Name a fruit."}
A: dict[str, Any] = {"role": "assistant", "content": "Apple."}
B: dict[str, Any] = {"role": "assistant", "content": "Stone."}
EMPTY: dict[str, Any] = {"role": "assistant", "content": ""}
LOOK: dict[str, Any] = {"role": "user", "content": "<image> What is it?"}
LOOKS: dict[str, Any] = {"chosen": [LOOK, A], "rejected": [LOOK, B]}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "c1", "content": "x"}


def called(argument: Any) -> dict[str, Any]:
    function = {"name": "eat", "arguments": {"ripe": argument}}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


def calls(value: Any) -> dict[str, Any]:
    return {"messages": [Q, {"role": "assistant", "content": "", "tool_calls": value}]}


def calling(arguments: Any) -> dict[str, Any]:
    return calls([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}])


def said(call: str) -> dict[str, Any]:
    return {"conversations": [{"from": "function_call", "value": call}]}


def two(chosen: Any, rejected: Any, *prompt: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": list(prompt or [Q]), "chosen": [chosen], "rejected": [rejected], **more}


def thought(text: str) -> dict[str, Any]:
    return {**A, "reasoning_content": text}


@pytest.mark.parametrize(
    ("format", "row", "expected"),
    [
        ("text", {"text": ""}, "DK106 text"),
        ("text", {"text": " \u200b\n"}, "DK106 text"),
        ("prompt", {"prompt": "\u00a0"}, "DK106 prompt"),
        ("prompt", {"prompt": "?"}, ""),
        ("prompt-messages-only", {"prompt": []}, "DK106 prompt"),
        ("prompt-messages-only", {"prompt": [{"role": "user", "content": ""}]}, "DK207 prompt[0]"),
        ("tokenized", {"input_ids": []}, "DK106 input_ids"),
        ("prompt-completion", {"prompt": "The sky is", "completion": "\u200b"}, "DK411 completion"),
        ("prompt-completion", {"prompt": "", "completion": "The sky is blue."}, ""),
        ("kto", {"prompt": "Name a fruit.", "completion": "\u2003", "label": True}, "DK411 completion"),
        ("ranked", {"prompt": "Fruit?", "completions": ["Apple.", " "], "scores": [1, 0]}, "DK411 completions[1]"),
        ("stepwise", {"prompt": "q", "completions": ["", "b"], "labels": [True, False]}, ""),
        ("dpo-messages", two(A, EMPTY), "DK207 rejected[0]"),
        ("dpo-messages", two(A, B, {"role": "user", "content": " "}), "DK207 prompt[0]"),
        ("dpo-messages", two(A, B, Q, Q), "DK205 prompt[1]"),
        ("dpo-messages", {"prompt": [Q], "chosen": [A, A], "rejected": [B]}, "DK205 chosen[1]"),
        ("dpo-messages", {"prompt": [Q], "chosen": [A], "rejected": [B, Q]}, ""),
        ("dpo-messages", two(A, A), "DK401 "),
        ("dpo-messages", two(A, {**A, "content": " Apple. "}), "DK401 "),
        ("dpo-messages", two(thought("x"), A), ""),
        ("dpo-messages", two(thought("x"), thought("y")), ""),
        ("dpo-messages", two(called(True), called(False)), "DK310 chosen[0].tool_calls[0]"),
        ("dpo-messages", two(called(True), called(1)), "DK310 chosen[0].tool_calls[0]"),
        ("dpo-messages", two(called(True), called(True)), "DK310 chosen[0].tool_calls[0], DK401 "),
        ("dpo-messages", two(A, B, Q, {"role": "tool", "content": "x"}), "DK307 prompt[1]"),
        ("dpo-implicit", {**LOOKS, "images": ["a.png"]}, ""),
        ("dpo-implicit", {**LOOKS, "images": ["a.png", "b.png"]}, "DK111 images"),
        ("dpo-messages", two(A, B, LOOK, images=["a.png"]), ""),
        ("kto-messages", {"prompt": [LOOK], "completion": [A], "label": True, "images": ["a", "b"]}, "DK111 images"),
        ("kto-messages", {"prompt": [Q], "completion": [EMPTY], "label": True}, "DK207 completion[0]"),
        ("prompt-completion-messages", {"prompt": [Q], "completion": [{**A, "weight": 0}]}, "DK214 completion"),
        ("prompt-completion-messages", {"prompt": [Q, {**A, "weight": 0}, Q], "completion": [A]}, ""),
        ("prompt-completion-messages", {"prompt": [Q], "completion": [called(1)]}, "DK310 completion[0].tool_calls[0]"),
        ("kto-conversation", {"messages": [Q], "label": True}, "DK203 messages"),
        ("alpaca", {"instruction": "", "input": "", "output": "Apple."}, "DK207 instruction"),
        ("prompt-completion", {"prompt": "The sky is", "completion": " blue.", "system": "s"}, "DK128 system"),
        ("prompt-completion", {"prompt": "The sky is", "completion": " blue.", "input": "blue"}, "DK128 input"),
        ("anthropic", {"messages": [Q, A], "system_prompt": "s"}, "DK128 system_prompt"),
        ("anthropic", {"messages": [{"role": "system", "content": "Be brief."}, Q, A], "system_prompt": "Be brief."}, ""),
        ("dpo", {"prompt": "Fruit?", "chosen": "Apple.", "rejected": "Stone.", "context": "Apple."}, "DK128 context"),
        ("dpo-implicit", {"chosen": [Q, A], "rejected": [Q, B], "context": "Apple."}, "DK128 context"),
        ("dpo-implicit", {"chosen": [Q, A], "rejected": [Q, B], "context": "Name a fruit."}, ""),
        ("tokenized", {"input_ids": [1, 2], "context": "c"}, ""),
        ("openai", {"messages": [Q, A], "system": "s", "system_prompt": "t"}, "DK211 system_prompt"),
        ("openai", {"messages": [Q, A], "system_prompt": ["s"]}, "DK104 system_prompt"),
        ("instruction-response", {"instruction": "i", "input": [1], "response": "r"}, "DK104 input"),
        ("openai", calling('{"n": 1, "n": 2}'), "DK108 messages[1].tool_calls[0].function.arguments"),
        ("openai", calling('{"at": "12:30", "in": {"n": 1, "n": 2}}'), "DK108 messages[1].tool_calls[0].function.arguments"),
        ("openai", calling('{"n": 12345678901234567890123}'), "DK113 messages[1].tool_calls[0].function.arguments"),
        ("openai", calling('{"n": NaN}'), "DK109 messages[1].tool_calls[0].function.arguments"),
        ("openai", calling('{"n": "\\ud800"}'), "DK102 messages[1].tool_calls[0].function.arguments"),
        ("openai", calling('{"n": ' + "[" * 64 + "]" * 64 + "}"), "DK114 messages[1].tool_calls[0].function.arguments"),
        ("openai", calling('{"n": ' + "[" * 9999 + "]" * 9999 + "}"), "DK114 messages[1].tool_calls[0].function.arguments"),
        ("openai", calling('{"n": 1e30, "at": "12:30", "\\u006d": "a: {}"}'), "DK310 messages[1].tool_calls[0]"),
        ("openai", calls('[{"name": "f", "arguments": {"n": 1, "n": 2}}]'), "DK108 messages[1].tool_calls"),
        ("openai", calls([{"name": "f", "parameters": '{"n": 1, "n": 2}'}]), "DK108 messages[1].tool_calls[0].parameters"),
        ("sharegpt", said('{"name": "f", "arguments": {"n": 1, "n": 2}}'), "DK108 conversations[0].value"),
        ("sharegpt", said('{"name": "f", "name": "g"}'), "DK108 conversations[0].value"),
        ("sharegpt", said('{"name": "f", "arguments": {"n": -9223372036854775809}}'), "DK113 conversations[0].value"),
        ("openai", {"messages": [Q, A], "tools": '[{"name": "f", "name": "g"}]'}, "DK108 tools"),
        ("openai", {"messages": [Q, A], "tools": '[{"name": "f", "x": 18446744073709551616}]'}, "DK113 tools"),
        ("openai", {"messages": [Q, A], "chat_template_kwargs": '{"a": 1, "a": 2}'}, "DK108 chat_template_kwargs"),
        ("alpaca", {"instruction": "a", "output": "b", "history": '[{"a": 1, "a": 2}]'}, "DK108 history"),
    ],
)  # fmt: skip
def test_in_other_formats(format: str, row: dict[str, Any], expected: str) -> None:
    found, _ = run(json.dumps(row).encode(), step_plan(FORMATS[format], FORMATS[format].layout))
    shown = {id: summary.first[0]["path"] for id, summary in found.items() if id != "DK107"}
    assert ", ".join(f"{id} {path}" for id, path in sorted(shown.items())) == expected


@pytest.mark.parametrize(("more", "expected"), [({"context": "c"}, {}), ({"context": "c", "id": 1}, {"DK107": "id"}), ({"context": ""}, {"DK107": "context"})])  # fmt: skip
@pytest.mark.parametrize("raised", ["note", "error"])
def test_a_part_of_the_prompt_is_not_told_of_twice(more: dict[str, Any], expected: dict[str, str], raised: str) -> None:
    format = FORMATS["openai"]
    found, _ = run(
        json.dumps({"messages": [Q, A], **more}).encode(), step_plan(format, format.layout, changes={"DK107": raised})
    )
    assert {id: summary.first[0]["note"] for id, summary in found.items() if id == "DK107"} == expected
    assert ("DK128" in found) == bool(more["context"])


def test_a_prompt_that_two_answers_share_is_told_of_once() -> None:
    row = {"prompt": [Q, Q, {"role": "system", "content": ""}, EMPTY], "chosen": [A], "rejected": [B]}
    _, result = run(json.dumps(row).encode(), step_plan(FORMATS["dpo-messages"], FORMATS["dpo-messages"].layout))
    (reject,) = result.rejects
    assert sorted((id, path) for id, path, _ in reject["findings"]) == [
        ("DK204", "prompt[2]"),
        ("DK205", "chosen[0]"),
        ("DK205", "prompt[1]"),
        ("DK205", "rejected[0]"),
        ("DK207", "prompt[3]"),
        ("DK212", "prompt[2]"),
    ]


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("openai", {"messages": [Q] * 100_000 + [A]}),
        ("openai", {"messages": [Q, *[called(True)] * 30_000, *[RESULT] * 30_000, A]}),
        ("dpo", {"prompt": "q", "chosen": "\n" * 300_000, "rejected": "a" + " " * 300_000 + "b"}),
        ("dpo", {"prompt": "q", "chosen": "1" * 300_000, "rejected": "# " * 100_000}),
        ("text", {"text": "Ã" * 300_000 + "Ã©" * 100_000 + "\\" * 300_000}),
    ],
    ids=["turns", "calls", "spaces", "digits", "letters"],
)
def test_time_grows_with_the_row_and_not_faster(format: str, row: dict[str, Any]) -> None:
    """Each of these would take minutes if a check looked at its row once for every part of it."""
    _, result = run(json.dumps(row).encode(), step_plan(FORMATS[format], FORMATS[format].layout))
    assert result.tally.rows_in == 1


# ---------------------------------------------------------------- files


def as_parquet(folder: Path, id: str, which: str) -> Iterator[str]:
    for number, row in enumerate(expanded(case(id)[which])):
        path = folder / f"{which}-{number}.parquet"
        table = pa.Table.from_pylist([row])
        types = case(id).get("types", {})
        fields = [f.with_type(pa.type_for_alias(types[f.name])) if f.name in types else f for f in table.schema]
        pq.write_table(table.cast(pa.schema(fields)), path)
        yield str(path)


@pytest.mark.parametrize("id", OF_PARQUET)
def test_rows_of_parquet(id: str, tmp_path: Path) -> None:
    for which in ("hit", "clean"):
        for path in as_parquet(tmp_path, id, which):
            report = datakit.validate(path, workers=1)
            found = {summary.id: summary for summary in report.findings}
            assert (id in found) == (which == "hit")
            assert report.rows_rejected == 0
            if which == "hit":
                assert found[id].severity == CHECKS[id].severity
                assert found[id].first[0]["source"] == path


def test_a_row_that_no_worker_survives() -> None:
    own = plan("DK121")
    with Pool(1) as pool:
        for which in ("clean", "hit"):  # a worker that has served dies
            for raw in raw_rows("DK121", which):
                if which == "hit":
                    pool._all[0].process.kill()
                    pool._all[0].process.wait()
                (block,) = line_blocks([raw], 0, "rows.jsonl")
                (result,) = pool.run(block, own)
                assert result.tally.rejected == ({"DK121": 1} if which == "hit" else {})
                assert [reject["rule"] for reject in result.rejects] == list(result.tally.rejected)
                result.tally.balance()


# ---------------------------------------------------------------- the whole set


def validated(folder: Path, id: str, which: str, **options: Any) -> tuple[dict[str, Summary], datakit.Report]:
    names = case(id).get(f"{which}_files", [f"{which}.jsonl"])
    for number, name in enumerate(names):
        path = folder / which / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\n".join(raw_rows(id, which)[number :: len(names)]))
    format = case(id)["format"]
    report = datakit.validate(folder / which, format=None if format == "auto" else format, workers=1, **options)
    return {summary.id: summary for summary in report.findings}, report


@pytest.mark.parametrize("id", SETS)
def test_a_set_with_the_finding(id: str, tmp_path: Path) -> None:
    found, report = validated(tmp_path, id, "hit")
    assert id in found
    assert (found[id].severity, found[id].name) == (CHECKS[id].severity, CHECKS[id].name)
    assert found[id].count >= 1
    assert found[id].first[0]["note"]
    assert report.rows_rejected == 0
    assert report.exit_code == (id == "DK118")
    assert CHECKS[id].kinds in ((), (report.kind,))


@pytest.mark.parametrize("id", SETS)
def test_a_set_without_the_finding(id: str, tmp_path: Path) -> None:
    found, report = validated(tmp_path, id, "clean")
    assert id not in found
    assert report.rows_rejected == report.exit_code == 0


@pytest.mark.parametrize("id", SETS)
def test_a_check_of_the_set_raised_and_silenced(id: str, tmp_path: Path) -> None:
    found, report = validated(tmp_path, id, "hit", severity={CHECKS[id].name: "error"})
    assert found[id].severity == "error"
    assert report.exit_code == 1
    assert report.rows_rejected == 0
    found, report = validated(tmp_path, id, "hit", severity={id: "off"}, fail_on="never")
    assert id not in found


# ---------------------------------------------------------------- severities


@pytest.mark.parametrize("name", ["DK202", "dk202", "last-not-assistant", "Last-Not-Assistant"])
@pytest.mark.parametrize("severity", [*SEVERITIES, "off"])
def test_severities_change_by_id_and_name(name: str, severity: str) -> None:
    changed = checks.severities({name: severity})
    assert changed == {**checks.severities(), "DK202": severity}


@pytest.mark.parametrize("changes", [{"DK999": "error"}, {"no-such-check": "off"}, {"": "note"}, {"DK20": "error"}])
def test_unknown_checks_are_refused(changes: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="no check named") as caught:
        checks.severities(changes)
    assert "datakit checks" in caught.value.hint


@pytest.mark.parametrize("severity", ["fatal", "Error", "", "info"])
def test_unknown_severities_are_refused(severity: str) -> None:
    with pytest.raises(UsageError) as caught:
        checks.severities({"DK202": severity})
    assert "error, warning, note, off" in caught.value.hint


def raised_ids() -> set[str]:
    """What the program raises as BadRow, that is, where it cannot go on with a row."""
    texts = [path.read_text("utf-8") for path in (ROOT / "datakit").rglob("*.py")]
    return {id for text in texts for id in re.findall(r'BadRow\(\s*"(DK\d+)"', text)}


@pytest.mark.parametrize("id", sorted(raised_ids()))
def test_what_a_reader_cannot_carry_on_stays_an_error(id: str) -> None:
    assert id in CHECKS
    assert checks.severities({id: "error"})[id] == "error"
    if CHECKS[id].severity != "error":
        assert id == "DK410"  # a tie is set aside, and is no error
        return
    for severity in ("warning", "note", "off"):
        for name in (id, CHECKS[id].name):
            with pytest.raises(UsageError, match="--severity"):
                checks.severities({name: severity})


def test_the_readers_raise_what_they_should() -> None:
    assert {"DK101", "DK104", "DK201", "DK203", "DK302", "DK711"} <= raised_ids()


def test_a_wrong_severity_is_refused_by_the_verbs(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n')
    for severity in ({"DK999": "error"}, {"DK202": "fatal"}, {"DK104": "warning"}):
        with pytest.raises(UsageError):
            datakit.validate(path, severity=severity)
        with pytest.raises(UsageError):
            datakit.convert(path, tmp_path / "out", severity=severity)


# ---------------------------------------------------------------- the registry


def test_ids_and_names() -> None:
    entries = api.list_checks()
    assert [entry["id"] for entry in entries] == list(CHECKS)
    assert len({entry["name"] for entry in entries}) == len(entries)
    declared = (STRUCTURE, TURNS, TOOLS, PREFERENCE, KTO, CONTENT, FORMATTING, PAIRING, CLEANING, MIXING)
    assert sum(map(len, declared)) == len(CHECKS)
    for entry in entries:
        assert re.fullmatch(r"DK\d{3}", entry["id"])
        assert re.fullmatch(r"[a-z]+[0-9]*(-[a-z0-9]+)*", entry["name"])
        assert entry["severity"] in SEVERITIES
        assert entry["kinds"]
        for text in (entry["rule"], entry["fix"]):
            assert text[0].isupper() or text[0] in "<`"
            assert text.endswith(".")
            assert text == text.strip()


@pytest.mark.parametrize("id", CHECKS)
def test_explain(id: str) -> None:
    entry = datakit.explain(id)
    assert entry in api.list_checks()
    assert entry["id"] == id
    for name in (entry["name"], entry["name"].upper(), id.lower()):
        assert datakit.explain(name) == entry


EXPLAINED = [id for id, check in CHECKS.items() if check.on != "format"]
SHOWN = [id for id in EXPLAINED if REASONS[id].example]


@pytest.mark.parametrize("id", EXPLAINED)
def test_every_check_says_why(id: str) -> None:
    why = datakit.explain(id)["why"]
    assert why[0].isupper()
    assert why.endswith(".")
    assert len(why) < 130


def test_reasons_are_of_checks() -> None:
    assert set(REASONS) <= set(CHECKS)
    assert set(ROWS) - set(SHOWN) == {"DK114", "DK115", "DK208"}


@pytest.mark.parametrize("id", [id for id in SHOWN if id in ROWS])
def test_an_example_shows_its_check(id: str) -> None:
    found, _ = judged(id, REASONS[id].example.encode())
    assert id in found


@pytest.mark.parametrize("id", [id for id in SHOWN if id in SETS])
def test_an_example_of_a_set_shows_its_check(id: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(REASONS[id].example, "utf-8")
    assert id in {summary.id for summary in datakit.validate(tmp_path / "a.jsonl", workers=1).findings}


def test_explain_refuses_what_there_is_not() -> None:
    with pytest.raises(UsageError, match="no check named 'DK000'"):
        datakit.explain("DK000")


def test_a_check_has_a_function_or_a_reader() -> None:
    for check in CHECKS.values():
        assert (check.run is None) == (check.on in ("read", "format", "set"))


# ---------------------------------------------------------------- whatever a row holds

junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([*"user assistant tool <think> c1 {} [] <image> é text".split(), "", " \n"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("role content type text name id function x".split()), inner, max_size=3)
    ),
    max_leaves=6,
)


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside a value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield value, key
        yield from nodes(inner)


FUZZED = [
    (id, which, number)
    for id in ROWS
    if (FOLDER / f"{id}.json").is_file()
    for which in ("hit", "clean")
    for number in range(len(case(id).get(which, [])))
    if id != "DK208"
]


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.sampled_from(FUZZED), st.data())
def test_a_row_with_anything_in_it_is_judged(which: tuple[str, str, int], data: st.DataObject) -> None:
    """Any value in any place gives findings, never a crash, and the row is accounted for."""
    id, side, number = which
    row = json.loads(raw_rows(id, side)[number])
    for _ in range(data.draw(st.integers(1, 2))):
        places = list(nodes(row))
        if not places:
            break
        container, key = data.draw(st.sampled_from(places))
        container[key] = data.draw(junk)
    (block,) = line_blocks([json.dumps(row).encode()], 0, "rows.jsonl")
    result = convert_block(block, plan(id, encode=True))
    result.tally.balance()
    assert result.tally.rows_in == 1
    assert len(result.rejects) + result.tally.rows_out >= 1
    for summary in summarise(result.tally, checks.severities(), []):
        assert summary.count == 1 or summary.id in ("DK901", "DK909")
