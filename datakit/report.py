"""The report: what a command found and did, for people and machines, and whether that passes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from datakit.checks import CHECKS, severities
from datakit.errors import DataFailed, UsageError
from datakit.findings import SEVERITIES
from datakit.tally import Tally
from datakit.terminal import plural, safe
from datakit.whole import SetFinding

VERSION: Final = 1

FAIL_ON: Final[Mapping[str, tuple[str, ...]]] = {"error": ("error",), "warning": ("error", "warning"), "never": ()}
"""Words of `--fail-on`, and the severities that fail a run."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How many bad rows are tolerated: `"0.1 %"` of the rows, or `"20 rows"`."""

    amount: float
    share: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a budget. A bare number is refused, since 1 could mean a row or all of them.

        Raises:
            UsageError: not of the form "N rows" or "N %".
        """
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|rows?)\s*", str(text))
        if not match or (match[2] != "%" and not match[1].isdigit()) or (match[2] == "%" and float(match[1]) > 100):
            raise UsageError(f'--max-bad "{text}"', 'Write a number with its unit: "0.1 %" or "20 rows".')
        return cls(float(match[1]), match[2] == "%")

    def allows(self, bad: int, rows: int) -> bool:
        return bad <= (math.floor(rows * self.amount / 100) if self.share else self.amount)

    def __str__(self) -> str:
        return f"{self.amount:g} %" if self.share else plural(int(self.amount), "row")


def check_budget(on_bad_row: str, max_bad: str | None) -> None:
    """Refuse a quarantine without a budget, and a budget without a quarantine.

    Raises:
        UsageError: with what to write instead.
    """
    if max_bad is not None:
        Budget.parse(max_bad)
    if on_bad_row == "quarantine" and max_bad is None:
        raise UsageError(
            "--on-bad-row quarantine needs --max-bad", 'For example --max-bad "0.1 %" or --max-bad "20 rows".'
        )
    if on_bad_row == "fail" and max_bad is not None:
        raise UsageError(
            f'--max-bad "{max_bad}" without --on-bad-row quarantine', "By default one bad row fails the run: add it."
        )


@dataclass(slots=True)
class Summary:
    """All findings of one check.

    Attributes:
        id, name, severity: of the check.
        count: rows with it; 1 for a finding about the whole set.
        share: of all input rows.
        first: up to ten places: source, row, path inside the row, note.
    """

    id: str
    name: str
    severity: str
    count: int
    share: float
    first: list[dict[str, Any]]


@dataclass(slots=True, repr=False)
class Report:
    """What a verb returns, and what `--json` prints; schema in `schemas/report.json`.

    `exit_code` is 0 where the data passes and 1 where it does not. A verb that could not judge raises instead.
    """

    command: str
    rows_in: int = 0
    rows_out: int = 0
    rows_rejected: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    format: str | None = None
    kind: str | None = None
    form: str | None = None
    conversational: bool | None = None
    findings: list[Summary] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False
    exit_code: int = 0
    verdict: str = ""
    failed_by: list[str] = field(default_factory=list)
    output: str | None = None
    content_id: str | None = None
    inputs: list[dict[str, Any]] = field(default_factory=list)
    detection: list[dict[str, Any]] = field(default_factory=list)
    ledger: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str | None] | None = None

    def __repr__(self) -> str:
        """What became of the rows, in a line; a report holds too much to be printed whole."""
        said = f"{plural(self.rows_in, 'row')} in, {self.rows_out:,} out, {self.rows_rejected:,} rejected"
        judged = self.verdict or ("failed" if self.exit_code else "passed")
        words = [f"{self.command}: {said}", judged, self.output or ""]
        return f"<Report {', '.join(word for word in words if word)}>"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the report's version."""
        value: dict[str, Any] = {"datakit_report": VERSION}
        for item in fields(self):
            value[item.name] = getattr(self, item.name)
        value["findings"] = [{f.name: getattr(s, f.name) for f in fields(s)} for s in self.findings]
        return value

    def fail_by(self, failed: Sequence[Summary], verdict: str = "") -> None:
        """The data fails by these findings."""
        self.exit_code, self.failed_by = 1, [summary.id for summary in failed]
        self.verdict = verdict or f"failed by {', '.join(f'{s.id} {s.name}' for s in failed)}"

    def raise_for_status(self) -> None:
        """Raise where the data failed.

        Raises:
            DataFailed: `exit_code` is not 0; the message names the first places.
        """
        if self.exit_code:
            seen = [_told(summary) for summary in self.decisive()]
            seen += [f"{safe(entry['path'])}: {entry['what']}" for entry in self.facts.get("mismatches", [])]
            message = "\n  ".join([f"{self.command}: {self.verdict}", *seen[:3]])
            raise DataFailed(message, "The report holds the rest.")

    def decisive(self) -> list[Summary]:
        """The findings that a failure is about."""
        return [summary for summary in self.findings if summary.id in self.failed_by]

    def errors(self) -> list[Summary]:
        return [summary for summary in self.findings if summary.severity == "error"]


def place(entry: Mapping[str, Any]) -> str:
    """`file:line` or `file row N`, and the path inside the row."""
    source, row, path = entry["source"], entry["row"], entry["path"]
    if source is None:
        return ""
    text = safe(source)
    if row is not None:
        by_line = source in ("-", "<objects>") or any(mark in source for mark in (".jsonl", ".ndjson"))
        text += f":{row}" if by_line else f" row {row}"
    return text + (f" {safe(path)}" if path else "")


def _told(summary: Summary) -> str:
    """A finding with its first place, in one line."""
    first = summary.first[0] if summary.first else {"source": None, "note": ""}
    more = f" (and {summary.count - 1:,} more)" if summary.count > 1 else ""
    told = f"{place(first)}: {safe(first['note'], 500)}" if first["source"] else safe(first["note"], 500)
    return f"{summary.id} {summary.name}: {told}{more}"


def summarise(tally: Tally, severities: Mapping[str, str], whole: Sequence[SetFinding]) -> list[Summary]:
    """Findings by severity and id: those of rows, and those about the whole set."""
    found: dict[str, Summary] = {}
    for id, count in tally.seen.items():
        if severities[id] == "off":
            continue
        places = [_place(seen) for seen in tally.places.get(id, [])]
        share = _share(count, max(tally.rows_in, tally.rows_out))
        found[id] = Summary(id, CHECKS[id].name, severities[id], count, share, places)
    for finding in whole:
        id = finding.id
        if severities[id] == "off":
            continue
        summary = found.setdefault(id, Summary(id, CHECKS[id].name, severities[id], 0, 0.0, []))
        summary.first.extend(_place(seen) for seen in finding.places or [[None, None, "", finding.note]])
        summary.count += max(1, finding.rows)
        summary.share = round(summary.share + _share(finding.rows, tally.rows_in), 6)
    order: dict[str, int] = {severity: rank for rank, severity in enumerate(SEVERITIES)}
    return sorted(found.values(), key=lambda s: (order.get(s.severity, 9), s.id))


def _share(count: int, rows: int) -> float:
    return round(count / rows, 6) if rows else 0.0


def _place(place: Sequence[Any]) -> dict[str, Any]:
    source, row, path, note = place
    return {"source": source, "row": row, "path": path, "note": note}


def check_gate(severity: Mapping[str, str] | None, fail_on: str) -> None:
    """Refuse words that set no gate.

    Raises:
        UsageError: no such check, severity or threshold.
    """
    severities(severity)
    if fail_on not in FAIL_ON:
        raise UsageError(f"--fail-on {fail_on}", f"One of {', '.join(FAIL_ON)}.")


def failing(findings: Sequence[Summary], fail_on: str) -> list[Summary]:
    """The findings that a threshold of `error`, `warning` or `never` does not let pass."""
    return [summary for summary in findings if summary.severity in FAIL_ON[fail_on]]
