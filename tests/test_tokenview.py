"""format, lengths and show on the command line: what a person reads, what a machine reads, and exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from datakit import api
from tests.small_tokenizers import chatml, shards, turns

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenview")
    chatml(place / "tok")
    long = " and some more of it" * 60
    rows = [{"messages": turns(f"question {n}", f"answer {n}" + (long if n == 3 else ""))} for n in range(8)]
    rows.append({"messages": turns("\x1b[31mred\u202e", "fine \x07 bell")})
    shards(place / "shards", rows)
    return place


def run(folder, *words, **options):
    command = [sys.executable, "-m", "datakit", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, **options)


def test_a_row_too_long_is_refused_with_what_each_policy_would_lose(folder):
    found = run(folder, "format", "shards", "-o", "refused", "--tokenizer", "tok", "--max-length", 100)
    assert found.returncode == 1
    assert not (folder / "refused").exists()
    assert "1 of 9 rows is too long" in found.stdout
    for policy in ("drop", "keep_start", "keep_end", "per_part", "window"):
        assert re.search(rf"^ {policy} .*\d+ \(\d", found.stdout, re.M), found.stdout
    assert "DK702 over-max-length" in found.stdout
    assert '--on-bad-row quarantine --max-bad "1 row"' in found.stdout
    assert "Nothing was written." in found.stdout
    assert "\x1b" not in found.stdout + found.stderr


def test_format_show_verify_stats(folder):
    done = run(folder, "format", "shards", "-o", "ready", "--tokenizer", "tok", "--json")
    report = json.loads(done.stdout)
    jsonschema.validate(report, json.loads((ROOT / "schemas" / "report.json").read_text()))
    assert (done.returncode, report["rows_in"], report["rows_out"], report["kind"]) == (0, 9, 9, "tokenized")
    (share,) = report["facts"]["supervised"].values()
    assert 0 < share["trained"] < share["tokens"]
    manifest = json.loads((folder / "ready" / "manifest.json").read_text())
    prepared = manifest["plan"]["prepared"]
    assert prepared["pad"]["token"] == "<|endoftext|>"
    assert prepared["engine"]["engine"] in ("fastokens", "tokenizers")
    assert prepared["chat_template"]["twin"] == "trl/qwen2_5_training.jinja"
    person = run(folder, "format", "shards", "-o", "other", "--tokenizer", "tok")
    assert "ledger: 9 rows in = 9 formatted; 9 rows out" in person.stdout
    assert "1 shard in other" in person.stdout
    again = run(folder, "format", "shards", "-o", "ready", "--tokenizer", "tok")
    assert "already complete" in again.stdout
    other = run(folder, "format", "shards", "-o", "ready", "--tokenizer", "tok", "--train-on", "last")
    assert other.returncode == 2
    assert "--overwrite" in other.stderr
    assert run(folder, "verify", "ready").returncode == 0
    assert run(folder, "validate", "ready").returncode == 0
    told = run(folder, "stats", "ready").stdout
    assert "input_ids" in told
    assert "tokens" in told
    assert "characters" not in told


def test_show_says_what_is_trained(folder):
    run(folder, "format", "shards", "-o", "ready", "--tokenizer", "tok", "--overwrite")
    shown = run(folder, "show", "ready", "--row", 2)
    assert "question 2" in shown.stdout
    assert "answer 2" in shown.stdout
    assert "[[answer 2<|im_end|>" in shown.stdout.replace("[[\u23ce\n", "[[")  # no colours here
    report = json.loads(run(folder, "show", "ready", "--row", 2, "--json").stdout)
    assert {"<|im_start|>", "<|im_end|>"} <= {*report["facts"]["special"]}
    tokens = report["facts"]["columns"]["input_ids"]
    assert (
        "".join(text for text, trained in tokens if trained) == "\nanswer 2<|im_end|>\n"
    )  # as the twin of TRL marks it
    hostile = run(folder, "show", "ready", "--row", 8)
    assert "\\x1b[31mred\\u202e" in hostile.stdout
    assert "\x1b" not in hostile.stdout
    assert run(folder, "show", "ready", "--row", 99).returncode == 2
    assert run(folder, "show", "shards").returncode == 2


def test_lengths_writes_nothing_and_suggests(folder):
    before = sorted(path.name for path in folder.iterdir())
    found = run(folder, "lengths", "shards", "--tokenizer", "tok", "--batch", 2)
    assert found.returncode == 0
    assert "p99" in found.stdout
    assert "--max-length" in found.stdout
    assert "█" in found.stdout
    assert sorted(path.name for path in folder.iterdir()) == before
    facts = json.loads(run(folder, "lengths", "shards", "--tokenizer", "tok", "--json").stdout)["facts"]
    assert facts["rows"] == 9
    assert facts["tokens"]["max"] > 200 > facts["tokens"]["p50"]


def test_wrong_calls_name_the_way_out(folder):
    for words, hint in (
        (("shards", "--tokenizer", "nowhere"), "nowhere"),
        (("shards", "--tokenizer", "tok", "--for", "dpo"), "sft"),
        (("shards", "--tokenizer", "tok", "--pack", "bfd"), "--max-length"),
        (("shards", "--tokenizer", "tok", "--truncation", "drop"), "--max-length"),
        (("shards.jsonl", "--tokenizer", "tok"), "datakit convert"),
        (("shards", "--tokenizer", "tok", "--now", "yesterday"), "2026-01-31"),
        (("shards", "--tokenizer", "tok", "--leave-out", "("), "--leave-out"),
    ):
        found = run(folder, "format", *words, "-o", "never")
        assert found.returncode in (2, 3), words
        assert hint in found.stderr, (words, found.stderr)
        assert not (folder / "never").exists()


def test_checks_of_rendered_rows_are_explained():
    for entry in api.list_checks():
        if entry["id"].startswith("DK70") or entry["id"] in ("DK710", "DK713", "DK714"):
            assert api.explain(entry["id"])["why"]
