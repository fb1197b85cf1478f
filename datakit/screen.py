"""Reports for people: tables on stdout, errors and progress on stderr, nothing from data unescaped."""

from __future__ import annotations

import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from datakit.errors import DatakitError
from datakit.report import Report, Summary, place
from datakit.terminal import plural, safe

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
WRITING: Final = ("convert", "format", "pair", "unpair", "split", "dedup", "decontaminate", "mix")
"""Commands that write a folder of shards, or nothing."""
_DONE: Final = {"format": "formatted", "split": "kept", "dedup": "kept", "decontaminate": "kept", "mix": "looked at"}
"""What has become of the rows that go on, where they were not converted."""
WIDE: Final = 100
"""Columns from which tables are drawn; on fewer each entry is a line, and what it says stands below."""
ADVICE: Final = 5
"""Checks that failed a run and whose remedies are told."""


def open_console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else 160
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width)


def _indented(console: Console, text: str, indent: int = 2) -> None:
    """A text with every one of its lines indented."""
    space = " " * indent
    for line in textwrap.wrap(text, console.width - indent, break_long_words=False, break_on_hyphens=False):
        console.print(Text(space + line))


def error(problem: DatakitError) -> None:
    """An error and what to do next."""
    message = "\n".join(safe(line, 2000) for line in problem.message.splitlines())
    click.echo(f"error: {message}", err=True)
    for line in problem.hint.splitlines():
        click.echo(f"  {safe(line, 500)}", err=True)


@contextmanager
def progress(words: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """A line that says how far a run is; and how far it has to go, where the bytes to be read are known."""
    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    columns += [TextColumn("{task.fields[done]}"), TimeElapsedColumn()]
    columns += [TextColumn("left"), TimeRemainingColumn()] if total else []
    of = f" of {total / 1e6:,.0f}" if total else ""
    with Progress(*columns, console=open_console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=total, done="")

        def update(size: int, rows: int) -> None:
            bar.update(task, completed=size, done=f"{plural(rows, 'row')}  {size / 1e6:,.0f}{of} MB")

        yield update


def report(found: Report) -> None:
    """A report as a person wants to read it: what it is, what is wrong and where, the ledger, the verdict."""
    console = open_console()
    for entry in found.detection:
        _detection(console, entry)
    if found.kind:
        values = "messages" if found.conversational else "strings"
        console.print(Text(f"kind {found.kind}, form {found.form} ({values}), format {found.format}"))
    _findings(console, found.findings)
    _facts(console, found.facts)
    if found.ledger and found.command in (*WRITING, "validate"):
        _ledger(console, found)
    if found.output and found.exit_code == 0 and found.command in WRITING:
        console.print(Text(f"{plural(len(found.shards), 'shard')} in {safe(found.output)}"))
    _verdict(console, found)
    _next(console, found)


def _detection(console: Console, entry: Mapping[str, Any]) -> None:
    evidence = "; ".join(safe(line) for line in entry.get("evidence", []))
    head = Text(f"{safe(near(entry['path']))}: {entry['format']}", style="bold")
    if console.width >= WIDE:
        console.print(head, end="")
        console.print(Text(f"  {evidence}"))
    else:
        console.print(head)
        _indented(console, evidence)
    if entry.get("runner_up"):
        console.print(Text(f"  next best: {entry['runner_up']['format']}", style="dim"))


def _verdict(console: Console, found: Report) -> None:
    style = "bold green" if found.exit_code == 0 else "bold red"
    word = "PASS" if found.exit_code == 0 else "FAIL"
    console.print(Text(word if found.verdict == "passed" else f"{word}: {safe(found.verdict, 500)}", style=style))


def near(path: str) -> str:
    """A path as seen from the current folder, where it lies in that."""
    inside = os.path.isabs(path) and Path(path).is_relative_to(Path.cwd())  # noqa: PTH117
    return str(Path(path).relative_to(Path.cwd())) if inside else path


def _findings(console: Console, findings: Sequence[Summary]) -> None:
    if not findings:
        return
    if console.width < WIDE:
        for summary in findings:
            counted = f"  {plural(summary.count, 'row')}, {100 * summary.share:.2f} %" if summary.share else ""
            head = Text(summary.severity, style=STYLES.get(summary.severity, ""))
            console.print(head.append(f" {summary.id} {summary.name}{counted}", style="default"))
            for line in _places(summary):
                _indented(console, line)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("severity", "left"), ("check", "left"), ("rows", "right"), ("share", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("first places", overflow="fold")
    for summary in findings:
        table.add_row(
            Text(summary.severity, style=STYLES.get(summary.severity, "")),
            f"{summary.id} {summary.name}",
            f"{summary.count:,}",
            f"{100 * summary.share:.2f} %",
            Text("\n".join(_places(summary))),
        )
    console.print(table)


def _places(summary: Summary) -> list[str]:
    """The first places of a finding, and how many more there are."""
    of_set = not any(entry["source"] for entry in summary.first)
    limit, count = (1 if summary.severity == "note" else 3), summary.count
    if of_set:
        limit, count = 3, len(summary.first)
    seen = [{**entry, "source": entry["source"] and near(entry["source"])} for entry in summary.first[:limit]]
    lines = [f"{place(entry)}: {safe(entry['note'], 1000)}".lstrip(": ") for entry in seen]
    if count > limit and len(summary.first) >= limit:
        lines.append(f"... and {count - limit:,} more")
    return lines


def _ledger(console: Console, found: Report) -> None:
    ledger = found.ledger
    parts = [f"{ledger['single']:,} {_DONE.get(found.command, 'converted')}"]
    if ledger["merged"]:
        parts.append(f"{ledger['merged']:,} merged into {plural(ledger['groups'], 'group')}")
    parts += [f"{count:,} rejected by {rule}" for rule, count in ledger["rejected"].items()]
    blank = f" ({plural(ledger['blank_lines'], 'blank line')})" if ledger["blank_lines"] else ""
    rows_in, rows_out = (plural(ledger[name], "row") for name in ("rows_in", "rows_out"))
    console.print(Text(f"ledger: {rows_in} in = {' + '.join(parts)}; {rows_out} out{blank}"))


def _facts(console: Console, facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        if isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values()):
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            table.add_column(safe(name))
            for column in next(iter(value.values())):
                table.add_column(safe(column), justify="right")
            for row, numbers in value.items():
                table.add_row(safe(row), *(f"{number:,.0f}" for number in numbers.values()))
            console.print(table)
        elif isinstance(value, dict):
            console.print(Text(f"{safe(name)}: " + ", ".join(f"{safe(k)} {v:,}" for k, v in value.items())))
        elif isinstance(value, list):
            for entry in value:
                console.print(Text(f"{safe(name)}: " + "  ".join(safe(v) for v in entry.values())))
        else:
            console.print(
                Text(f"{safe(name)}: {value:,}" if isinstance(value, int) else f"{safe(name)}: {safe(value)}")
            )


def _next(console: Console, found: Report) -> None:
    """What to do next. What one may copy stands on one line, however long."""
    for summary in found.findings:
        if summary.id == "DK122":
            console.print(Text(f"  {safe(summary.first[-1]['note'], 2000)}"), soft_wrap=True)
    if not found.exit_code:
        return
    told, more = found.decisive()[:ADVICE], found.decisive()[ADVICE:]
    for summary in told:
        entry = next(e for e in _check_entries() if e["id"] == summary.id)
        _indented(console, f"{summary.id}: {entry['fix']}  (datakit explain {summary.id})")
    if more:
        _indented(console, f"{', '.join(s.id for s in more)}: datakit explain {more[0].id}")
    severities = {summary.id: summary.severity for summary in found.findings}
    bad = sum(count for id, count in found.rejected.items() if severities.get(id) == "error")
    of_rows = not found.rejected.keys().isdisjoint(found.failed_by)
    if found.command in ("convert", "format") and of_rows and bad > 0 and found.rows_rejected < found.rows_in:
        amount = plural(bad, "row").replace(",", "") if found.complete else f"{math.ceil(100 * bad / found.rows_in)} %"
        so_far = "" if found.complete else " (the share so far)"
        _indented(console, f"Or set the bad rows aside{so_far}, then look at rejects/:")
        console.print(Text(f'  --on-bad-row quarantine --max-bad "{amount}"'), soft_wrap=True)
    if found.command in WRITING:
        console.print(Text("  Nothing was written."))


def _check_entries() -> list[dict[str, Any]]:
    from datakit import api

    return api.list_checks()


def formats(entries: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for entry in entries:
        columns = ", ".join(f"{name}: {shape}" for name, shape in entry["signature"].items())
        doubt = "" if entry["verified"] else " (not seen on a real row)"
        rows.append([Text(entry["name"]), entry["becomes"], columns, entry["doc"] + doubt])
    _list(("format", "becomes", "columns", ""), rows)


def checks(entries: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for entry in entries:
        severity = Text(entry["severity"], style=STYLES.get(entry["severity"], ""))
        rows.append([Text(f"{entry['id']} {entry['name']}"), severity, " ".join(entry["kinds"]), entry["rule"]])
    _list(("check", "severity", "kinds", "rule"), rows, head=3)


def _list(names: Sequence[str], rows: Sequence[Sequence[Any]], head: int = 2) -> None:
    """Rows as a table, or where that is too wide each as a head of some cells with the others below."""
    console = open_console()
    if console.width >= WIDE:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in names:
            table.add_column(name, overflow="fold", no_wrap=name == names[0])
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    for row in rows:
        console.print(Text("  ").join([Text(str(row[0]), style="bold"), *map(_text, row[1:head])]))
        for cell in row[head:]:
            _indented(console, cell)


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def explain(entry: Mapping[str, Any]) -> None:
    """A check as one reads it: the rule, why it matters, what to do, how its severity is changed, and an example."""
    console = open_console()
    console.print(Text(f"{entry['id']} {entry['name']}", style="bold"), Text(f"({', '.join(entry['kinds'])})"))
    change = f"--severity {entry['name']}=LEVEL makes it error, warning, note or off"
    severity = (
        f"{entry['severity']}; {'it stays one, since such rows cannot be carried on' if entry['stays'] else change}"
    )
    parts = {"rule": entry["rule"], "why": entry["why"], "do": entry["fix"], "severity": severity}
    for name, text in parts.items():
        if text:
            console.print(Text(f"{name}:", style="bold"))
            _indented(console, text)
    if entry["example"]:
        console.print(Text("example:", style="bold"))
        for line in entry["example"].split("\n"):
            console.print(Text(f"  {safe(line, 1000)}"), soft_wrap=True)
