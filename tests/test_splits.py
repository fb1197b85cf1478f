"""Splits in the names of files, and files given twice: nothing goes into one split without a word."""

from __future__ import annotations

import json
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import datakit
from datakit.reading.splits import options, told_by_names


def write(path: Path, *questions: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "a"}]} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def findings(report: datakit.Report) -> dict[str, list[dict[str, Any]]]:
    return {summary.id: summary.first for summary in report.findings}


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        ("data/train/a.jsonl data/test/a.jsonl", {"train": 1, "test": 1}),
        ("train.jsonl test.jsonl", {"train": 1, "test": 1}),
        ("raw/chat_train_v2.json.gz raw/chat_dev_v2.json.gz", {"train": 1, "validation": 1}),
        ("d/train-0.jsonl d/more.jsonl d/Validation.jsonl", {"train": 2, "validation": 1}),
        ("x/test/train.jsonl x/test/eval.jsonl", {"train": 1, "test": 1}),
        ("s3://b/train/a.parquet s3://b/test/b.parquet", {"train": 1, "test": 1}),
        ("x/test/a.jsonl x/test/b.jsonl", {}),
        ("train/a.jsonl train/latest.jsonl train/devices.jsonl", {}),
        ("a.jsonl test.jsonl", {}),
        ("train.jsonl", {}),
    ],
)
def test_what_names_tell(paths: str, told: dict[str, int]) -> None:
    assert {split: len(group) for split, group in told_by_names(paths.split()).items()} == told


parts = st.sampled_from(["train", "test", "val", "a", "b", "part-0", "part-1", "it's", "[x]", "train_2"])
names = st.builds(lambda folder, name, end: "/".join([*folder, name]) + end, st.lists(parts, max_size=2), parts, st.sampled_from([".jsonl", ".json.gz"]))  # fmt: skip


@given(st.lists(names, unique=True, max_size=8))
def test_the_options_divide_the_files_as_their_names_do(paths: list[str]) -> None:
    told = told_by_names(paths)
    assert sorted(path for group in told.values() for path in group) == (sorted(paths) if told else [])
    words = shlex.split(options(told)) if told else []
    for option in words[1::2]:
        split, _, pattern = option.partition("=")
        assert [p for p in paths if fnmatch(p, pattern) or fnmatch(Path(p).name, pattern)] == told[split]


def test_convert_says_so_and_the_command_that_it_names_works(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train/a", "train/b", "test/a"):
        write(tmp_path / "data" / f"{name}.jsonl", name)
    report = datakit.convert("data", "one", workers=1)
    assert (report.exit_code, {shard["split"] for shard in report.shards}) == (0, {"train"})
    said, *places, command = findings(report)["DK122"]
    assert said["note"] == "names of files tell test and train, and all go into train"
    assert [place["source"] for place in places] == ["data/test/a.jsonl", "data/train/a.jsonl"]
    words = shlex.split(command["note"].partition("apart: ")[2])
    assert words[::2] == ["--split", "--split"]
    report = datakit.convert("data", "two", split=words[1::2], workers=1)
    assert {split: len(datakit.load("two", split=split)) for split in ("train", "test")} == {"train": 2, "test": 1}
    assert "DK122" not in findings(report)


def test_one_split_of_several_that_was_asked_for_is_meant(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", name) for name in ("train", "test")]
    assert "DK122" in findings(datakit.validate(paths, workers=1))
    assert "DK122" not in findings(datakit.validate(paths, split=["all"], workers=1))


def test_the_same_bytes_in_two_splits_are_called_out(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.jsonl", "q"), write(tmp_path / "b.jsonl", "q")
    report = datakit.validate(split=[f"train={one}", f"test={other}"], workers=1)
    (place,) = findings(report)["DK123"]
    assert place["source"] == other
    assert place["note"] == f"the same bytes as {one}; that is in split train, this in test"
    assert next(s for s in report.findings if s.id == "DK123").severity == "warning"


def test_two_splits_of_one_shard_folder_are_not_copies(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.jsonl", "q"), write(tmp_path / "b.jsonl", "r")
    datakit.convert(output=tmp_path / "shards", split=[f"train={one}", f"test={other}"], workers=1)
    assert findings(datakit.validate(tmp_path / "shards", workers=1)) == {}
