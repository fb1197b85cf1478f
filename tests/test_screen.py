"""What people read: words in the right number, lines that fit, commands that can be copied, places in errors."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import datakit
from datakit.errors import DataFailed
from datakit.reading.sources import size_to_read
from datakit.screen import progress
from datakit.terminal import plural

GOOD: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
BAD: dict[str, Any] = {"messages": [{"role": "user", "content": "q"}, {"role": "asistant", "content": "a"}]}


def write(path: Path, *rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({**row, "n": n}) + "\n" for n, row in enumerate(rows)), "utf-8")
    return str(path)


def run(*words: object, columns: int | None = 80, **options: Any) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-m", "datakit", *words)
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    env |= {"COLUMNS": str(columns)} if columns else {}
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, env=env, **options)


def test_plural() -> None:
    assert [plural(n, "row") for n in (0, 1, 2, 1000)] == ["0 rows", "1 row", "2 rows", "1,000 rows"]


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("words", [["formats"], ["checks"], ["validate", "long.jsonl"], ["convert", "long.jsonl", "-o", "o"]])  # fmt: skip
def test_nothing_is_wider_than_the_terminal_and_no_word_is_cut(tmp_path: Path, words: list[str], columns: int) -> None:
    write(
        tmp_path / "long.jsonl", *[GOOD, BAD] * 4, {"messages": [*GOOD["messages"], {"role": "user", "content": "x"}]}
    )
    done = run(*words, columns=columns, cwd=tmp_path)
    copied = ("--on-bad-row", "--split")
    lines = [line for line in done.stdout.splitlines() if not line.strip().startswith(copied)]
    assert lines
    assert max(map(len, lines)) <= columns
    if words[0] == "checks":
        assert "DK202 last-not-assistant" in done.stdout
    if words[0] == "validate":
        assert "long.jsonl:2 messages[1].role" in re.sub(r"\s+", " ", done.stdout)


def test_where_a_pipe_reads_lines_are_long(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", GOOD, BAD)
    lines = run("validate", "a.jsonl", columns=None, cwd=tmp_path).stdout.splitlines()
    assert any("DK201" in line and "did you mean 'assistant'?" in line for line in lines)


def test_one_is_not_many(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", GOOD)
    done = run("convert", "a.jsonl", "-o", "o", cwd=tmp_path)
    assert "1 shard in o\nPASS\n" in done.stdout
    assert "ledger: 1 row in = 1 converted; 1 row out\n" in done.stdout
    assert "1 shard as the manifest says" in run("verify", "o", cwd=tmp_path).stdout
    for line in done.stdout.splitlines():
        assert not re.search(r"\b1 (rows|shards|places|files)\b", line)


def test_a_path_inside_the_current_folder_is_short(tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / "a.jsonl", GOOD, BAD)
    assert path not in run("validate", path, cwd=tmp_path).stdout
    assert "deep/a.jsonl:2" in run("validate", path, cwd=tmp_path).stdout
    assert path in run("validate", path, "--json", cwd=tmp_path).stdout


def test_what_to_do_with_bad_rows_can_be_typed(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", GOOD, BAD)
    done = run("convert", "a.jsonl", "-o", "o", cwd=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if "--max-bad" in line]
    assert line.strip() == '--on-bad-row quarantine --max-bad "1 row"'
    assert run("convert", "a.jsonl", "-o", "o", *shlex.split(line), cwd=tmp_path).returncode == 0


def test_the_split_command_stands_on_one_line(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / "a-rather-long-name-of-a-folder-of-data" / name / "part-of-it.jsonl", {**GOOD, "name": name})
    done = run("convert", "a-rather-long-name-of-a-folder-of-data", "-o", "o", cwd=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if "--split" in line]
    words = shlex.split(line.partition("apart: ")[2])
    done = run("convert", *words, "-o", "p", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "DK122" not in done.stdout


def test_explain_says_all_of_it() -> None:
    text = run("explain", "DK202").stdout
    entry = datakit.explain("DK202")
    flat = " ".join(text.split())
    for part in ("rule", "why", "fix"):
        assert entry[part] in flat
    assert "--severity last-not-assistant=LEVEL" in flat
    assert entry["example"] in text
    assert "it stays one" in run("explain", "DK101").stdout


def test_make_help_lists_every_target() -> None:
    root = Path(__file__).resolve().parent.parent
    targets = re.findall(r"^([a-z]+):", (root / "Makefile").read_text("utf-8"), re.M)
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[0] for line in shown.splitlines()] == targets


# ---------------------------------------------------------------- errors of the library


def test_raise_for_status_names_the_first_places(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, BAD, BAD)
    with pytest.raises(DataFailed) as caught:
        datakit.validate(path, workers=1).raise_for_status()
    text = str(caught.value)
    assert "validate: 2 of 3 rows are bad\n" in text
    assert f"DK201 role-unknown: {path}:2 messages[1].role: unknown role 'asistant'" in text
    assert "(and 1 more)" in text


def test_raise_for_status_names_warnings_where_they_fail(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": [*GOOD["messages"], {"role": "user", "content": "x"}]})
    with pytest.raises(DataFailed, match=r"DK202 last-not-assistant: .*a\.jsonl:1"):
        datakit.validate(path, workers=1, fail_on="warning").raise_for_status()


def test_raise_for_status_names_files_that_differ(tmp_path: Path) -> None:
    datakit.convert(write(tmp_path / "a.jsonl", GOOD), tmp_path / "o", workers=1)
    (tmp_path / "o" / "data" / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(DataFailed, match=r"1 file differs .*\n  data/train-00000-of-00001.parquet: missing"):
        datakit.verify(tmp_path / "o").raise_for_status()


# ---------------------------------------------------------------- progress


def test_sizes_are_known_of_plain_files_only(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.json", GOOD, GOOD)
    size = Path(one).stat().st_size + Path(two).stat().st_size
    assert size_to_read([one, two]) == size_to_read([], [f"a={one}", f"b={two}"]) == size
    (tmp_path / "c.csv").write_text("text\nx\n", "utf-8")
    for words in ([one, str(tmp_path / "c.csv")], ["-"], ["missing.jsonl"], ["hf:name.jsonl"], [one, one], []):
        assert size_to_read(words) is None


def test_the_whole_and_the_rest_are_shown_where_they_are_known(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    for total, shown in ((4_000_000, True), (None, False)):
        with progress("converting", total) as update:
            update(1_000_000, 1)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
        assert ("1 of 4 MB" in text and "left" in text) == shown
        assert "1 row  1" in text
