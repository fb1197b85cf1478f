"""The command line: the twin of the library, exit codes, and what a person or a machine reads."""

from __future__ import annotations

import inspect
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import datakit
from datakit.cli import main

ROOT = Path(__file__).resolve().parent.parent
VERBS = (
    "convert",
    "validate",
    "verify",
    "stats",
    "export",
    "detect",
    "format",
    "lengths",
    "show",
    "split",
    "dedup",
    "decontaminate",
    "pair",
    "unpair",
)

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def _lines(path, *rows):
    path.write_text("".join(json.dumps({**row, "n": n}) + "\n" for n, row in enumerate(rows)), "utf-8")
    return str(path)


def _distinct(count):
    return [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}
        for n in range(count)
    ]


def run(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "datakit", *map(str, words)], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("verb", VERBS)
def test_command_and_verb_are_twins(verb):
    command = main.commands[verb]
    signature = inspect.signature(getattr(datakit, verb))
    own = {name: p for name, p in signature.parameters.items() if name != "progress"}
    theirs = {p.name: p for p in command.params if p.name != "as_json"}
    assert own.keys() == theirs.keys()
    for name, parameter in own.items():
        default = theirs[name].get_default(click.Context(command), call=True)
        default = None if "UNSET" in repr(default) else default
        if parameter.default is inspect.Parameter.empty or theirs[name].required:
            continue
        assert (default or None) == (parameter.default or None), (verb, name)


def test_convert_and_what_follows(tmp_path):
    source = _lines(tmp_path / "chat.jsonl", *_distinct(5))
    out = tmp_path / "shards"
    done = run("convert", source, "-o", out)
    assert done.returncode == 0, done.stderr
    assert "openai" in done.stdout
    assert "5 rows in" in done.stdout
    assert "PASS" in done.stdout
    for verb in ("validate", "verify", "stats"):
        assert run(verb, out).returncode == 0
    done = run("export", out, "--jsonl", tmp_path / "out.jsonl")
    assert done.returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert rows == _distinct(5)
    again = run("convert", tmp_path / "out.jsonl", "-o", tmp_path / "again")
    assert again.returncode == 0
    assert list(datakit.load(tmp_path / "again")) == rows


def test_json_is_one_object_on_stdout(tmp_path):
    source = _lines(tmp_path / "chat.jsonl", *_distinct(2))
    for words in (["convert", source, "-o", tmp_path / "o"], ["validate", source], ["detect", source]):
        done = run(*words, "--json")
        report = json.loads(done.stdout)
        assert report["exit_code"] == done.returncode == 0
        assert {"rows_in", "rows_out", "rows_rejected", "rejected", "format", "kind", "form"} <= report.keys()
    assert json.loads(run("formats", "--json").stdout)["formats"][0]["name"]
    assert json.loads(run("checks", "--json").stdout)["checks"][0]["id"] == "DK101"
    assert json.loads(run("explain", "DK302", "--json").stdout)["name"] == "arguments-not-object"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["convert", "missing.jsonl", "-o", "o"], 3, "no such file"),
        (["convert", "good.jsonl"], 2, "no output"),
        (["convert", "-o", "o"], 2, "no input"),
        (["convert", "good.jsonl", "-o", "o", "--format", "opennai"], 2, "Did you mean openai"),
        (["convert", "good.jsonl", "-o", "o", "--to", "stf"], 2, "sft:messages"),
        (["convert", "good.jsonl", "-o", "o", "--on-bad-row", "quarantine"], 2, "--max-bad"),
        (["convert", "good.jsonl", "-o", "o", "--on-bad-row", "quarantine", "--max-bad", "1"], 2, "with its unit"),
        (["convert", "good.jsonl", "-o", "o", "--max-bad", "1 row"], 2, "without --on-bad-row quarantine"),
        (["convert", "good.jsonl", "-o", "o", "--shard-size", "big"], 2, "256MiB"),
        (["convert", "good.jsonl", "-o", "s3://bucket/x"], 2, "local"),
        (["convert", "good.jsonl", "-o", "o", "--severity", "DK202"], 2, "CHECK=SEVERITY"),
        (["convert", "good.jsonl", "-o", "o", "--severity", "DK999=error"], 2, "datakit checks"),
        (["convert", "good.jsonl", "-o", "o", "--split", "a-b"], 2, "split name"),
        (["convert", "good.jsonl", "good.jsonl", "-o", "o"], 2, "given twice"),
        (["convert", "good.jsonl", "-o", "o", "--wrong"], 2, "--help"),
        (["convert", "bad.jsonl", "-o", "o"], 1, "bad.jsonl:2"),
        (["validate", "bad.jsonl"], 1, "DK101"),
        (["validate", "empty.jsonl"], 1, "no rows"),
        (["validate", "unknown.jsonl"], 3, "--map"),
        (["verify", "."], 3, "manifest.json"),
        (["explain", "DK999"], 2, "datakit checks"),
    ],
)
def test_exit_codes_and_words(tmp_path, words, code, said):
    _lines(tmp_path / "good.jsonl", *_distinct(3))
    (tmp_path / "bad.jsonl").write_text(json.dumps(_distinct(1)[0]) + "\n{oops\n", "utf-8")
    (tmp_path / "empty.jsonl").write_text("", "utf-8")
    (tmp_path / "unknown.jsonl").write_text('{"foo": 1, "bar": 2}\n', "utf-8")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".datakit")]
    if words[0] != "explain":
        report = json.loads(run(*words, "--json", cwd=tmp_path).stdout)
        assert report["exit_code"] == code


def test_quarantine_and_repair(tmp_path):
    rows = [json.dumps(row) for row in _distinct(20)]
    rows[7] = rows[7].replace('"assistant"', '"asistant"')
    (tmp_path / "chat.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    within = ["--on-bad-row", "quarantine", "--max-bad"]
    assert run("convert", "chat.jsonl", "-o", "o", *within, "4 %", cwd=tmp_path).returncode == 1
    assert not (tmp_path / "o").exists()
    done = run("convert", "chat.jsonl", "-o", "o", *within, "5 %", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    rejects = tmp_path / "o" / "rejects" / "train-00000.jsonl"
    reject = json.loads(rejects.read_text("utf-8"))
    assert (reject["source"], reject["line"], reject["rule"], reject["raw"]) == ("chat.jsonl", 8, "DK201", rows[7])
    (tmp_path / "repair").mkdir()
    (tmp_path / "repair" / "r.jsonl").write_text(rejects.read_text("utf-8").replace("asistant", "assistant"), "utf-8")
    done = run("convert", "--from-rejects", "repair", "-o", "fixed", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    fixed = list(datakit.load(tmp_path / "fixed").rows(all=True))
    assert [(r["dk_source"], r["dk_row"]) for r in fixed] == [("chat.jsonl", 8)]
    assert fixed[0]["messages"] == _distinct(20)[7]["messages"]


def test_standard_input_and_splits(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in _distinct(4))
    done = run("convert", "-", "-o", "piped", cwd=tmp_path, input=text)
    assert done.returncode == 0, done.stderr
    assert len(datakit.load(tmp_path / "piped")) == 4
    assert json.loads(run("validate", "-", "--json", cwd=tmp_path, input=text).stdout)["rows_in"] == 4
    for name in ("train_a", "train_b", "test_a"):
        _lines(tmp_path / f"{name}.jsonl", *_distinct(2))
    done = run("convert", "--split", "train=train_*.jsonl", "--split", "test=test_*.jsonl", "-o", "both", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        len(datakit.load(tmp_path / "both", split="train")),
        len(datakit.load(tmp_path / "both", split="test")),
    ) == (4, 2)
    words = ["train_a.jsonl", "test_a.jsonl", "--split", "train=train*", "--split", "test=test*"]
    assert run("convert", *words, "-o", "chosen", cwd=tmp_path).returncode == 0
    done = run("convert", "train_a.jsonl", "--split", "a=train*", "--split", "b=*_a*", "-o", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert "a and b" in done.stderr


def test_nothing_from_data_reaches_the_terminal_unescaped(tmp_path):
    evil = "\x1b]0;owned\x07\x1b[31m\u202e\x9b"
    rows = [{"messages": [{"role": evil, "content": "x"}], evil: 1}]
    name = "evil\x1b[2J.jsonl"
    (tmp_path / name).write_text(json.dumps(rows[0]) + "\n" + json.dumps(GOOD) + "\n", "utf-8")
    (tmp_path / "odd.jsonl").write_text(json.dumps({evil: evil}) + "\n", "utf-8")
    for words in (["validate", name, "--format", "openai"], ["validate", "odd.jsonl"], ["detect", "odd.jsonl"]):
        done = subprocess.run([sys.executable, "-m", "datakit", *words], cwd=tmp_path, capture_output=True, check=False)
        text = (done.stdout + done.stderr).decode("utf-8")
        assert done.returncode in (1, 3)
        assert not set(text) & set("\x1b\x07\x9b\u202e"), text


def test_progress_only_where_a_person_looks(tmp_path):
    source = _lines(tmp_path / "chat.jsonl", *_distinct(3))
    assert run("validate", source).stderr == ""
    leader, follower = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "datakit", "validate", source], stdout=subprocess.DEVNULL, stderr=follower, check=False
    )
    os.close(follower)
    assert done.returncode == 0
    assert b"validating" in os.read(leader, 10_000)
    os.close(leader)


def test_a_closed_pipe_is_quiet(tmp_path):
    words = f"{sys.executable} -m datakit formats | head -1"
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_severities_and_thresholds(tmp_path):
    rows = _distinct(3)
    rows[1]["messages"].append({"role": "user", "content": "more"})
    source = _lines(tmp_path / "chat.jsonl", *rows)
    assert run("validate", source).returncode == 0
    assert run("validate", source, "--fail-on", "warning").returncode == 1
    assert run("validate", source, "--severity", "last-not-assistant=error").returncode == 1
    assert run("validate", source, "--severity", "DK202=error", "--fail-on", "never").returncode == 0
    assert run("validate", source, "--severity", "DK202=error", "--max-bad", "1 rows").returncode == 0
    assert run("validate", source, "--severity", "DK202=off", "--fail-on", "warning").returncode == 0


def test_advice_is_about_what_failed(tmp_path):
    rows = [*_distinct(60), {"messages": [{"role": "user", "content": "q"}, {"role": "asistant", "content": "a"}]}]
    _lines(tmp_path / "a.jsonl", *rows)
    (tmp_path / "b.jsonl").write_text("")
    words = ("convert", tmp_path, "-o", tmp_path / "out", "--severity", "empty-file=error")
    both = run(*words)
    assert "  DK201: " in both.stdout
    assert "--on-bad-row quarantine" in both.stdout
    aside = run(*words, "--on-bad-row", "quarantine", "--max-bad", "1 row")
    assert aside.returncode == 1
    assert "  DK118: " in aside.stdout
    assert "  DK201: " not in aside.stdout
    assert "--on-bad-row" not in aside.stdout
    report = json.loads(run(*words, "--on-bad-row", "quarantine", "--max-bad", "1 row", "--json").stdout)
    assert report["failed_by"] == ["DK118"]


@pytest.mark.parametrize("verb", ["split", "dedup", "unpair", "lengths"])
def test_a_folder_that_is_not_there(verb, tmp_path):
    extra = {"split": ["--test", "5%"], "lengths": ["--tokenizer", "x"]}.get(verb, [])
    out = [] if verb == "lengths" else ["-o", tmp_path / "out"]
    done = run(verb, tmp_path / "nope", *out, *extra)
    assert done.returncode in (2, 3)
    assert "no such file" in done.stderr


@pytest.mark.parametrize("kind", ["dict", "arrow", "polars"])
def test_tables_are_no_rows(kind, tmp_path):
    import polars
    import pyarrow

    columns = {"a": ["x"]}
    table: Any = {"dict": columns, "arrow": pyarrow.table(columns), "polars": polars.DataFrame(columns)}[kind]
    with pytest.raises(datakit.UsageError, match="where rows are expected") as caught:
        datakit.convert(table, tmp_path / "out")
    assert "data" in caught.value.hint
