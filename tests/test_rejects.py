"""Rejects that were repaired: read as they were read before, told of by the file that is being repaired."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import datakit
from datakit.errors import AmbiguousFormat, UsageError

OWN = {"name": "desk", "columns": {"messages": "log"}, "turn": {"role": "who", "content": "said"}, "roles": {"agent": "assistant", "guest": "user"}}  # fmt: skip


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def shards(source: Any, out: Path, **options: Any) -> Path:
    """Shards whose bad rows are set aside."""
    report = datakit.convert(source, out, on_bad_row="quarantine", max_bad="9 rows", workers=1, **options)
    assert report.exit_code == 0, report.verdict
    assert report.rows_rejected
    return out


def repaired(folder: Path, to: Path, old: str, new: str) -> str:
    shutil.copytree(folder, to)
    for path in to.rglob("*.jsonl"):
        path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    return str(to)


def talk(role: str = "agent") -> dict[str, Any]:
    return {"log": [{"who": "guest", "said": "q"}, {"who": role, "said": "a"}]}


def test_the_map_of_the_manifest_is_used_again(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", talk(), talk("aget"))
    out = shards(source, tmp_path / "out", map=OWN)
    folder = repaired(out, tmp_path / "copy", "aget", "agent") + "/rejects"
    report = datakit.convert(from_rejects=folder, output=tmp_path / "more", workers=1)
    assert (report.exit_code, report.format, report.rows_out) == (0, "desk", 1)
    assert next(iter(datakit.load(tmp_path / "more")))["messages"][1] == {"role": "assistant", "content": "a"}
    assert json.loads((tmp_path / "more" / "manifest.json").read_text("utf-8"))["plan"]["request"]["map"]["name"] == "desk"  # fmt: skip


def test_the_manifest_may_lie_in_the_folder(tmp_path: Path) -> None:
    out = shards(write(tmp_path / "a.jsonl", talk(), talk("aget")), tmp_path / "out", map=OWN)
    folder = repaired(out / "rejects", tmp_path / "copy", "aget", "agent")
    shutil.copy(out / "manifest.json", folder)
    report = datakit.convert(from_rejects=folder, output=tmp_path / "more", workers=1)
    assert (report.exit_code, report.format, report.rows_out) == (0, "desk", 1)


def test_words_of_the_manifest_are_used_again(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "guest", "content": "q"}, {"role": role, "content": "a"}]} for role in ("gpt", "gtp")
    ]
    out = shards(write(tmp_path / "a.jsonl", *rows), tmp_path / "out", map={"roles": {"guest": "user"}})
    folder = repaired(out, tmp_path / "copy", "gtp", "gpt") + "/rejects"
    report = datakit.convert(from_rejects=folder, output=tmp_path / "more", workers=1)
    assert (report.exit_code, report.rows_out) == (0, 1)


def test_a_copy_without_the_manifest_names_the_map(tmp_path: Path) -> None:
    out = shards(write(tmp_path / "a.jsonl", talk(), talk("aget")), tmp_path / "out", map=OWN)
    folder = repaired(out / "rejects", tmp_path / "copy", "aget", "agent")
    with pytest.raises(UsageError, match="the map 'desk'") as caught:
        datakit.convert(from_rejects=folder, output=tmp_path / "more", workers=1)
    assert "--map FILE" in caught.value.hint
    assert datakit.convert(from_rejects=folder, output=tmp_path / "more", map=OWN, workers=1).rows_out == 1


def test_a_copy_without_the_manifest_is_read_in_the_same_format(tmp_path: Path) -> None:
    """A question with a short answer alone would be a question to the person."""
    rows = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}, as anyone who counts on fingers sees."} for n in range(8)]  # fmt: skip
    out = shards(write(tmp_path / "a.jsonl", *rows, {"question": "2 + 2?", "answer": None}), tmp_path / "out")
    folder = repaired(out / "rejects", tmp_path / "copy", "null", '\\"4\\"')
    report = datakit.convert(from_rejects=folder, output=tmp_path / "more", workers=1)
    assert (report.exit_code, report.format, report.kind) == (0, "question-answer", "sft")
    assert report.detection[0]["evidence"] == ["read as question-answer when they were rejected"]


def test_what_the_run_was_asked_to_become_is_kept(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": role, "content": "a"}]} for role in ("assistant", "asistant")]  # fmt: skip
    out = shards(write(tmp_path / "a.jsonl", *rows), tmp_path / "out", to="sft:prompt_completion")
    folder = repaired(out, tmp_path / "copy", "asistant", "assistant") + "/rejects"
    report = datakit.convert(from_rejects=folder, output=tmp_path / "more", workers=1)
    assert (report.exit_code, report.form) == (0, "prompt_completion")
    both = datakit.convert([out, tmp_path / "more"], tmp_path / "all", workers=1)
    assert (both.exit_code, both.rows_out) == (0, 2)


def test_several_formats_of_one_layout(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    turns = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    bad = [json.loads(json.dumps(row).replace("assistant", "asist").replace("gpt", "gtp")) for row in (good, turns)]
    sources = [write(tmp_path / "a.jsonl", good, bad[0]), write(tmp_path / "b.jsonl", turns, bad[1])]
    out = shards(sources, tmp_path / "out")
    shutil.copytree(out / "rejects", tmp_path / "copy")
    path = tmp_path / "copy" / "train-00000.jsonl"
    path.write_text(path.read_text("utf-8").replace("asist", "assistant").replace("gtp", "gpt"), "utf-8")
    report = datakit.convert(from_rejects=str(tmp_path / "copy"), output=tmp_path / "more", workers=1)
    assert (report.exit_code, report.rows_out) == (0, 2)


def test_formats_of_several_layouts_are_to_be_parted(tmp_path: Path) -> None:
    lines = [
        {"source": "a", "line": n, "format": name, "raw": "{}"} for n, name in enumerate(("openai", "text"), start=1)
    ]
    lines += [{"source": "a", "line": 3, "format": "text", "raw": '{"text": "x"}'}]
    (tmp_path / "copy").mkdir()
    write(tmp_path / "copy" / "r.jsonl", *lines)
    with pytest.raises(AmbiguousFormat, match=r"text \(sft:text.*\) and openai"):
        datakit.convert(from_rejects=str(tmp_path / "copy"), output=tmp_path / "more", workers=1)


def test_each_split_stays_its_own(tmp_path: Path) -> None:
    good = {"text": "x"}
    paths = {name: write(tmp_path / f"{name}.jsonl", good, {"txt": "y"}) for name in ("train", "test")}
    out = shards((), tmp_path / "out", split=[f"{name}={path}" for name, path in paths.items()], format="text")
    folder = repaired(out / "rejects", tmp_path / "copy", "txt", "text")
    datakit.convert(from_rejects=folder, output=tmp_path / "more", workers=1)
    assert [len(datakit.load(tmp_path / "more", split=name)) for name in ("train", "test")] == [1, 1]


def test_a_row_that_is_still_bad_is_told_with_its_place_in_both_files(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    bad = json.loads(json.dumps(good).replace("assistant", "asistant"))
    out = shards(write(tmp_path / "a.jsonl", good, good, bad, bad), tmp_path / "out")
    path = tmp_path / "copy" / "r.jsonl"
    shutil.copytree(out / "rejects", path.parent)
    first, second = (path.parent / "train-00000.jsonl").read_text("utf-8").splitlines()
    (path.parent / "train-00000.jsonl").unlink()
    path.write_text(f"{first.replace('asistant', 'assistant')}\n\n{second}\n", "utf-8")
    report = datakit.validate(tmp_path / "a.jsonl", workers=1)
    assert "(now" not in report.errors()[0].first[0]["note"]
    report = datakit.convert(from_rejects=str(path.parent), output=tmp_path / "more", workers=1)
    (place,) = report.errors()[0].first
    assert (place["source"], place["row"]) == (str(tmp_path / "a.jsonl"), 4)
    assert place["note"].endswith(f"(now {path}:3)")


PLAIN = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "a"}]} for q in "xyx"]


def test_rejects_of_another_command_hold_no_texts(tmp_path: Path) -> None:
    datakit.convert(write(tmp_path / "a.jsonl", *PLAIN), tmp_path / "shards", workers=1)
    datakit.dedup(tmp_path / "shards", tmp_path / "less")
    folder = tmp_path / "less" / "rejects"
    with pytest.raises(UsageError, match="dedup wrote these rejects, and they hold no raw text") as caught:
        datakit.convert(from_rejects=str(folder), output=tmp_path / "more", workers=1)
    assert str(tmp_path / "shards") in caught.value.hint
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(UsageError, match="a reject without raw text"):
        datakit.convert(from_rejects=str(tmp_path / "copy"), output=tmp_path / "more", workers=1)


def test_rows_that_repeat_one_another_are_told_with_the_places_that_they_came_from(tmp_path: Path) -> None:
    bad = {"messages": [{"role": "user", "content": "q"}, {"role": "asistant", "content": "a"}]}
    good = json.loads(json.dumps(bad).replace("asistant", "assistant"))
    sources = [write(tmp_path / "a.jsonl", good, bad), write(tmp_path / "b.jsonl", good, good, bad)]
    out = shards(sources, tmp_path / "out")
    folder = repaired(out, tmp_path / "copy", "asistant", "assistant") + "/rejects"
    report = datakit.convert(from_rejects=folder, output=tmp_path / "more", workers=1)
    [found] = [summary for summary in report.findings if summary.id == "DK801"]
    [place] = found.first
    assert (place["source"], place["row"], place["note"]) == (sources[1], 3, f"the same as {sources[0]} row 2")
