"""The JSON Schemas are those of the code, and what the program writes fits them."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest
from jsonschema import Draft202012Validator

import datakit
from datakit.formats import FORMATS
from datakit.jsonschema import all_schemas

ROOT = Path(__file__).resolve().parent.parent


def test_the_folder_is_in_sync():
    made = {
        name: orjson.dumps(schema, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        for name, schema in all_schemas().items()
    }
    there = {path.name: path.read_bytes() for path in (ROOT / "schemas").iterdir() if path.name != "run.json"}
    assert there == made, (  # run.json is trainglue's
        "run: python -m datakit.jsonschema schemas/"
    )


@pytest.mark.parametrize("name", sorted(all_schemas()))
def test_each_is_a_schema(name):
    Draft202012Validator.check_schema(all_schemas()[name])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_fixtures_fit_the_schema_of_their_kind(name):
    path = ROOT / "fixtures" / name / "expected.jsonl"
    validator = Draft202012Validator(all_schemas()[f"{FORMATS[name].layout.kind}.json"])
    for line in path.read_text("utf-8").rstrip("\n").split("\n"):  # not splitlines: U+2028 is data
        row = json.loads(line)
        problems = [f"{list(e.absolute_path)}: {e.message[:200]}" for e in validator.iter_errors(row)]
        assert not problems, (name, problems)


def test_a_manifest_and_reports_fit(tmp_path):
    out = tmp_path / "shards"
    rows = ROOT / "fixtures" / "openai"
    report = datakit.convert(
        [rows / "good.jsonl", rows / "bad.jsonl"], out, format="openai", on_bad_row="quarantine", max_bad="50 rows"
    )
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    Draft202012Validator(all_schemas()["manifest.json"]).validate(manifest)
    judge = Draft202012Validator(all_schemas()["report.json"])
    for found in (report, datakit.validate(out), datakit.verify(out), datakit.stats(out), datakit.detect(out)):
        judge.validate(orjson.loads(orjson.dumps(found.to_json())))


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": [{"role": "user", "content": 1}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "narrator", "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", "weight": 2}]},
        {"messages": "x"},
        {"text": "x", "messages": []},
        {"prompt": "x", "completion": [{"role": "user", "content": "x"}]},
    ],
)
def test_the_schema_of_sft_refuses(wrong):
    assert not Draft202012Validator(all_schemas()["sft.json"]).is_valid(wrong)
