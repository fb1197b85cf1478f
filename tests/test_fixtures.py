"""Every format has rows written by hand: what they become, which are refused and why.

A folder `fixtures/<format>/` holds

    good.jsonl      source rows
    expected.jsonl  what `datakit.load` gives for them, and `dk_meta` where something is to be kept there
    bad.jsonl       source rows that must be refused
    findings.json   {"bad": [rule of each line of bad.jsonl], "good": [other findings about the good rows, sorted]}

A format without such a folder fails. The step runs in this process; the files are real ones, written and read back.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from datakit import checks
from datakit import plan as plans
from datakit.detection import detect_rows
from datakit.findings import BadRow
from datakit.formats import FORMATS
from datakit.formats.declare import SYSTEM, Format
from datakit.formats.normalise import normalise
from datakit.messages import Context
from datakit.output.rowgroup import encode
from datakit.output.shards import ShardWriter
from datakit.plan import Plan, Request
from datakit.reading.blocks import Block
from datakit.reading.columnar import plain_rows
from datakit.report import Report
from datakit.run import ColumnsWanted, gather, judge
from datakit.step import Result, SourcePlan, StepPlan, convert_block
from datakit.worker import QUESTIONS

FIXTURES = Path(__file__).parent.parent / "fixtures"
FILES = ("good.jsonl", "expected.jsonl", "bad.jsonl", "findings.json")

every_format = pytest.mark.parametrize("format", FORMATS.values(), ids=list(FORMATS))


class InThisProcess:
    """An executor: what `datakit.workers.Pool` does in other processes."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def ask(self, question: str, *words: Any) -> Any:
        return QUESTIONS[question](*words)

    def map(self, blocks: Iterable[Block], step: StepPlan) -> Iterator[tuple[Block, list[Result]]]:
        for block in blocks:
            self.results.append(convert_block(block, step))
            yield block, self.results[-1:]


@dataclass
class Outcome:
    report: Report
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        return sorted(summary.id for summary in self.report.findings if summary.id != "DK107")


def convert(source: Path, name: str, folder: Path) -> Outcome:
    """As `datakit.convert` does it, up to the commit."""
    request = Request([str(source)], format=name, on_bad_row="quarantine", max_bad="100 rows")
    request.check()
    plan = plans.make(request, None, folder, InThisProcess().ask)
    try:
        return run(plan, folder)
    except ColumnsWanted as wanted:
        plan.step = replace(plan.step, optional=sorted({*plan.step.optional, *wanted.names}))
        return run(plan, folder)


def run(plan: Plan, folder: Path) -> Outcome:
    pool: Any = InThisProcess()
    outcome = Outcome(judge(plan, gather(plan, pool, None), "convert"))
    path = folder / "shard.parquet"
    for result in pool.results:
        outcome.rejects += result.rejects
    batches = [result.batch for result in pool.results if result.batch is not None]
    if not batches:
        return outcome
    writer = ShardWriter(path)
    for batch in batches:
        writer.write(encode(batch, plan.step.schema()))
    writer.close()
    for batch in pq.read_table(path).to_batches():
        outcome.rows += plain_rows(batch)
    return outcome


def lines(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n"), f"{path} does not end on a line feed"
    return text[:-1].split("\n")


def parsed(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(path)]


def findings(format: Format) -> dict[str, list[str]]:
    value: dict[str, list[str]] = json.loads((FIXTURES / format.name / "findings.json").read_bytes())
    assert value.keys() == {"bad", "good"}
    return value


def exactly(value: Any) -> str:
    """A text that is equal only where types are equal too: 1, 1.0 and true are three things. Keys have no order."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2).decode()


def test_each_folder_is_a_format() -> None:
    assert {folder.name for folder in FIXTURES.iterdir()} <= FORMATS.keys() | {"checks"}


@every_format
def test_has_fixtures(format: Format) -> None:
    folder = FIXTURES / format.name
    assert folder.is_dir(), f"no fixtures for {format.name}"
    assert {path.name for path in folder.iterdir()} == set(FILES)


@every_format
def test_good_rows_are_detected(format: Format) -> None:
    if format.on_request:
        pytest.skip("is never detected")
    found = detect_rows(parsed(FIXTURES / format.name / "good.jsonl"), "good.jsonl")
    assert found.format is format


@every_format
def test_good_rows_become_what_is_expected(format: Format, tmp_path: Path) -> None:
    folder = FIXTURES / format.name
    outcome = convert(folder / "good.jsonl", format.name, tmp_path)
    assert outcome.rejects == []
    rows = []
    for row in outcome.rows:
        meta = row["dk_meta"]
        kept = {key: value for key, value in row.items() if not key.startswith("dk_")}
        rows.append(kept if meta is None else {**kept, "dk_meta": meta})
    expected = parsed(folder / "expected.jsonl")
    for row, wanted in zip(rows, expected, strict=False):
        assert exactly(row) == exactly(wanted)
    assert len(rows) == len(expected)
    assert outcome.findings == findings(format)["good"]
    ledger = outcome.report.ledger
    assert ledger["rows_in"] == ledger["single"] + ledger["merged"] == len(lines(folder / "good.jsonl"))
    assert ledger["rows_out"] == sum(int(each) * count for each, count in ledger["fanout"].items()) == len(expected)
    assert ledger["rows_rejected"] == 0


@every_format
def test_bad_rows_and_only_they_are_refused(format: Format, tmp_path: Path) -> None:
    folder = FIXTURES / format.name
    good, bad = lines(folder / "good.jsonl"), lines(folder / "bad.jsonl")
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_bytes((folder / "good.jsonl").read_bytes() + (folder / "bad.jsonl").read_bytes())
    outcome = convert(mixed, format.name, tmp_path)
    seen = [(reject["line"], reject["rule"], reject["raw"]) for reject in outcome.rejects]
    assert seen == [
        (number, rule, line)
        for number, (rule, line) in enumerate(zip(findings(format)["bad"], bad, strict=True), start=len(good) + 1)
    ]
    assert all(reject["source"] == str(mixed) and reject["message"] for reject in outcome.rejects)
    assert len(outcome.rows) == len(lines(folder / "expected.jsonl"))
    ledger = outcome.report.ledger
    assert ledger["rows_rejected"] == len(bad)
    assert ledger["rows_in"] == ledger["single"] + ledger["merged"] + len(bad) == len(good) + len(bad)
    assert outcome.report.exit_code == 0


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place inside a value, as the keys and indexes that lead there."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*before, key)
        yield from places(inner, (*before, key))


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = changed(value[place[0]], place[1:], new)
    return copy


@every_format
def test_no_value_anywhere_ends_the_run(format: Format) -> None:
    """A row with one value changed to another type is converted or refused, whatever the value."""
    junk: list[Any] = [None, True, -1, "", "x", [], {}, [["a"]], [{}], {"role": ["user"], "name": ["f"]}]
    good = parsed(FIXTURES / format.name / "good.jsonl")
    rows = [orjson.dumps(changed(row, place, new)) for row in good for place in places(row) for new in junk]
    plan = StepPlan(
        [SourcePlan("good.jsonl", format.name, numbering="line")],
        format.layout.kind,
        format.layout.form,
        format.layout.conversational,
        optional=["tools", "chat_template_kwargs", "images"],
        severities=checks.severities(),
    )
    data = b"\n".join(rows) + b"\n"
    result = convert_block(Block(0, 1, 0, len(data), data), plan)
    result.tally.balance()
    assert result.tally.rows_in == len(rows)
    for reject in result.rejects:
        assert reject["raw"].encode() == rows[reject["line"] - 1]


@every_format
def test_example_matches(format: Format) -> None:
    assert format.matches(format.example) > 0
    assert not format.marks or format.marked(format.example)


with_system = [format for format in FORMATS.values() if "system_prompt" in format.columns]


@pytest.mark.parametrize("format", with_system, ids=[format.name for format in with_system])
def test_a_system_text_has_two_names(format: Format) -> None:
    row = {name: value for name, value in format.example.items() if name not in SYSTEM}
    one, other = (normalise(format, {**row, name: "Be brief."}, Context()) for name in SYSTEM)
    assert one == other
    said: Any = one[0].get("messages", one[0].get("prompt"))
    assert {"role": "system", "content": "Be brief."} in said
    with pytest.raises(BadRow) as caught:
        normalise(format, {**row, "system": "Be brief.", "system_prompt": "Be long."}, Context())
    assert caught.value.finding[:2] == ("DK211", "system_prompt")
