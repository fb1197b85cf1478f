"""split: nothing straddles, nothing moves, shares hold, and what leaks is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datakit
from datakit.cleaning import keys
from datakit.cleaning.division import told
from datakit.errors import UsageError

quick = settings(deadline=None, derandomize=True, max_examples=15)


def chat(question: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def shards(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl", **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    datakit.convert(folder / name, folder / "shards", workers=1, **options).raise_for_status()
    return folder / "shards"


def sides(folder: Path) -> dict[str, str]:
    """The split of every row by the text of its first user turn and its answer."""
    found = {}
    for split in datakit.load(folder).manifest["splits"]:
        for row in datakit.load(folder, split=split):
            turns = [m for m in row["messages"] if m["role"] != "system"]
            found[turns[0]["content"] + "|" + turns[1]["content"]] = split
    return found


def findings(report: datakit.Report) -> dict[str, Any]:
    return {summary.id: summary for summary in report.findings}


def test_shares_ledger_and_bytes(tmp_path):
    source = shards(tmp_path / "in", [chat(f"question {n}") for n in range(2000)])
    report = datakit.split(source, tmp_path / "a", test="10%", validation="5%")
    assert (report.exit_code, report.rows_in, report.rows_out) == (0, 2000, 2000)
    table = report.facts["by source"]["rows.jsonl"]
    assert sum(table.values()) == 2000
    assert 150 < table["test"] < 250
    assert 65 < table["validation"] < 140
    manifest = datakit.load(tmp_path / "a").manifest
    assert manifest["splits"] == ["train", "test", "validation"]
    assert manifest["plan"]["prepared"]["by source"]["rows.jsonl"] == table
    assert {s: len(datakit.load(tmp_path / "a", split=s)) for s in manifest["splits"]} == table
    again = datakit.split(source, tmp_path / "b", test="10%", validation="5%")
    assert again.content_id == report.content_id
    assert datakit.split(source, tmp_path / "a", test="10%", validation="5%").verdict.startswith("already")
    assert datakit.verify(tmp_path / "a").exit_code == 0


def test_seed_changes_the_assignment(tmp_path):
    source = shards(tmp_path / "in", [chat(f"question {n}") for n in range(300)])
    for seed in (0, 1):
        datakit.split(source, tmp_path / str(seed), test="20%", seed=seed)
    assert sides(tmp_path / "0") != sides(tmp_path / "1")


@quick
@given(st.integers(1, 40), st.integers(0, 5))
def test_rows_that_are_added_move_none(more, seed):
    """The law of the draw, on groups: a side depends on the group alone."""
    texts = [f"prompt {n}" for n in range(40 + more)]
    few, many = (keys.draws(keys.of_texts(own), seed) for own in (texts[:40], texts[::-1]))
    assert np.array_equal(few, many[::-1][:40])


def test_rows_that_are_added_move_none_in_shards(tmp_path):
    rows = [chat(f"question {n}") for n in range(400)]
    old = shards(tmp_path / "old", rows[100:300])
    new = shards(tmp_path / "new", rows, name="other.jsonl")
    datakit.split(old, tmp_path / "a", test="20%")
    datakit.split(new, tmp_path / "b", test="20%")
    before, after = sides(tmp_path / "a"), sides(tmp_path / "b")
    assert {"train", "test"} == set(before.values())
    assert before == {name: after[name] for name in before}


def test_a_larger_test_keeps_the_smaller_and_validation_moves_no_test_row(tmp_path):
    source = shards(tmp_path / "in", [chat(f"question {n}") for n in range(400)])
    datakit.split(source, tmp_path / "a", test="10%")
    datakit.split(source, tmp_path / "b", test="20%")
    datakit.split(source, tmp_path / "c", test="10%", validation="10%")
    small, large, three = (
        {name for name, split in sides(tmp_path / folder).items() if split == "test"} for folder in "abc"
    )
    assert small < large
    assert small == three


def test_prompts_stay_together_whatever_their_case_system_and_answers(tmp_path):
    rows = []
    for n in range(150):
        rows += [chat(f"What is {n}?", "a"), chat(f"what  is {n}", "b")]
        rows.append(chat(f"WHAT IS {n} ?!", "c"))
        rows[-1]["messages"].insert(0, {"role": "system", "content": f"Be brief {n}."})
    datakit.split(shards(tmp_path / "in", rows), tmp_path / "out", test="30%")
    by_number: dict[str, set[str]] = {}
    for name, split in sides(tmp_path / "out").items():
        by_number.setdefault("".join(filter(str.isdigit, name)), set()).add(split)
    assert len(by_number) == 150
    assert all(len(own) == 1 for own in by_number.values())
    assert {next(iter(own)) for own in by_number.values()} == {"train", "test"}


@pytest.mark.parametrize("group_by", ["gamefile", "task.id", "topic", "dk_meta.task.id"])
def test_groups_by_a_key_of_dk_meta_do_not_straddle(tmp_path, group_by):
    rows = [
        chat(
            f"question {n}",
            gamefile=f"/home/user{n % 7}/data/json/train/task-{n % 50}/trial-1/game.tw-pddl",
            task={"id": n % 50},
            topic=f"topic {n % 50}",
        )
        for n in range(500)
    ]
    report = datakit.split(shards(tmp_path / "in", rows), tmp_path / "out", test="20%", group_by=group_by)
    assert report.facts["groups"] == 50
    groups: dict[int, set[str]] = {}
    for name, split in sides(tmp_path / "out").items():
        groups.setdefault(int(name.split()[1].split("|")[0]) % 50, set()).add(split)
    assert all(len(own) == 1 for own in groups.values())
    assert set().union(*groups.values()) == {"train", "test"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/home/a/alf/train/task/trial/game.tw", "/mnt/b/train/task/trial/game.tw", True),
        ("C:\\data\\task\\trial\\game.tw", "/x/task/trial/game.tw", True),
        ("json/train/task/trial/game.tw", "/x/json/train/task/trial/game.tw", True),
        ("/a/task1/trial/game.tw", "/a/task2/trial/game.tw", False),
        ("true / false / maybe / one", "other / false / maybe / one", False),
        ("and/or", "or", False),
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}, True),
        (1, "1", True),
    ],
)
def test_group_values_do_not_depend_on_the_machine(one, other, same):
    assert (told(one) == told(other)) is same


def test_sources_are_file_names_and_stay_whole(tmp_path):
    folders = [
        shards(tmp_path / f"in{n}", [chat(f"q {n} {k}") for k in range(5)], name=f"part{n}.jsonl") for n in range(30)
    ]
    report = datakit.split(folders, tmp_path / "out", test="30%", group_by="source")
    table = report.facts["by source"]
    assert all(0 in own.values() for name, own in table.items() if name != "all")
    assert table["all"]["train"] + table["all"]["test"] == 150
    assert report.facts["groups"] == 30


def test_leaks_are_told_with_places(tmp_path):
    rows = [chat("the same question", f"answer {n}", topic=f"t{n}") for n in range(60)]
    report = datakit.split(shards(tmp_path / "in", rows), tmp_path / "out", test="30%", group_by="topic")
    leak = findings(report)["DK807"]
    assert (leak.severity, report.exit_code) == ("warning", 0)
    assert leak.count == len(datakit.load(tmp_path / "out", split="test"))
    first = leak.first[0]
    assert first["source"].endswith("rows.jsonl")
    train = {row["dk_row"] for row in datakit.load(tmp_path / "out", split="train").rows(all=True)}
    other = int(first["note"].split("rows.jsonl:")[1].split()[0])
    assert first["row"] not in train
    assert other in train
    assert "in test; the same prompt as" in first["note"]
    strict = datakit.split(
        tmp_path / "in" / "shards", tmp_path / "no", test="30%", group_by="topic", severity={"DK807": "error"}
    )
    assert strict.exit_code == 1
    assert not (tmp_path / "no").exists()


def test_no_leak_where_prompts_are_groups(tmp_path):
    rows = [chat(f"question {n % 80}", f"answer {n}") for n in range(400)]
    report = datakit.split(shards(tmp_path / "in", rows), tmp_path / "out", test="30%")
    assert "DK807" not in findings(report)


def test_a_split_that_is_there_stays(tmp_path):
    source = shards(tmp_path / "in", [chat(f"question {n}") for n in range(300)])
    datakit.split(source, tmp_path / "two", test="20%")
    datakit.split(tmp_path / "two", tmp_path / "three", validation="20%")
    two, three = sides(tmp_path / "two"), sides(tmp_path / "three")
    assert {k for k, v in two.items() if v == "test"} == {k for k, v in three.items() if v == "test"}
    assert set(three.values()) == {"train", "test", "validation"}
    with pytest.raises(UsageError, match="has a split test already"):
        datakit.split(tmp_path / "two", tmp_path / "four", test="5%")


def test_rows_without_a_group_are_counted(tmp_path):
    rows = [chat(f"q {n}", **({"topic": f"t{n}"} if n % 2 else {})) for n in range(100)]
    report = datakit.split(shards(tmp_path / "in", rows), tmp_path / "out", test="30%", group_by="topic")
    assert findings(report)["DK808"].count == 50
    assert report.rows_out == 100


def test_stratify_tells_values_that_are_off(tmp_path):
    rows = [chat(f"q {n}", topic="big" if n < 300 else "small") for n in range(302)]
    report = datakit.split(shards(tmp_path / "in", rows), tmp_path / "out", test="20%", stratify="topic")
    assert set(report.facts["by topic"]) == {"big", "small", "all"}
    notes = " ".join(entry["note"] for entry in findings(report)["DK810"].first)
    assert "small: " in notes
    assert "big: " not in notes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "nothing to split off"),
        ({"test": "200 rows"}, "moving old rows"),
        ({"test": "0.05"}, "with its unit"),
        ({"test": "0%"}, "with its unit"),
        ({"test": "60%", "validation": "40%"}, "leave nothing for train"),
        ({"test": 0.1}, "--test 0.1: a float"),
        ({"test": "5%", "validation": True}, "--validation True: a bool"),
        ({"test": "5%", "group_by": ["id"]}, "--group-by .*: a list"),
        ({"test": "5%", "seed": "1"}, "--seed '1'"),
        ({"test": "5%", "group_by": "nothing"}, "no row has it"),
        ({"test": "5%", "stratify": "nothing"}, "no row has it"),
    ],
)
def test_wrong_calls(tmp_path, options, said):
    source = shards(tmp_path / "in", [chat("q")])
    with pytest.raises(UsageError, match=said):
        datakit.split(source, tmp_path / "out", **options)


def test_an_empty_split_fails_and_writes_nothing(tmp_path):
    report = datakit.split(shards(tmp_path / "in", [chat("q"), chat("p")]), tmp_path / "out", test="0.001%")
    assert report.exit_code == 1
    assert findings(report)["DK809"].first[0]["note"] == "split test has no row"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("row", "group_by"),
    [
        ({"prompt": "p {n}", "chosen": " a", "rejected": " b"}, "prompt"),
        ({"prompt": "p {n}", "completion": " a", "label": True}, "prompt"),
        ({"text": "words {n}"}, "prompt"),
        ({"input_ids": "[1, 2, {n}]", "labels": "[1, 2, {n}]"}, None),
    ],
)
def test_kinds(tmp_path, row, group_by):
    rows = []
    for n in range(60):
        filled = {k: v.replace("{n}", str(n)) if isinstance(v, str) else v for k, v in row.items()}
        rows.append({k: json.loads(v) if isinstance(v, str) and v[0] == "[" else v for k, v in filled.items()})
    report = datakit.split(shards(tmp_path / "in", rows), tmp_path / "out", test="30%", group_by=group_by)
    assert report.rows_out == 60
    assert set(report.facts["by source"]["rows.jsonl"]) == {"train", "test"}


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    """Several shards in each of three splits, whose pieces lie between each other."""
    monkeypatch.setattr("datakit.cleaning.rows.BLOCK", 2000)
    folders = [shards(tmp_path / f"in{n}", [chat(f"q {n} {k}") for k in range(100)]) for n in range(4)]
    options: dict[str, Any] = {"test": "30%", "validation": "20%", "shard_size": 4000}
    whole = datakit.split(folders, tmp_path / "whole", **options)
    assert min(sum(s["split"] == name for s in whole.shards) for name in ("train", "test", "validation")) > 1

    def stop(size: int, rows: int) -> None:
        if rows > 250:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        datakit.split(folders, tmp_path / "out", **options, progress=stop)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out*"))
    assert datakit.split(folders, tmp_path / "out", **options).content_id == whole.content_id
    assert not list(tmp_path.glob(".out*"))


def test_the_two_rows_of_a_pair_stay_together(tmp_path):
    pairs = [{"prompt": "the same", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(100)]
    source = shards(tmp_path / "in", pairs)
    datakit.unpair(source, tmp_path / "kto").raise_for_status()
    report = datakit.split(tmp_path / "kto", tmp_path / "out", test="30%", group_by="pair_id")
    assert (report.rows_out, report.facts["groups"]) == (200, 100)
    own = {
        split: {row["dk_pair_id"] for row in datakit.load(tmp_path / "out", split=split).rows(all=True)}
        for split in ("train", "test")
    }
    assert own["test"]
    assert not own["train"] & own["test"]
