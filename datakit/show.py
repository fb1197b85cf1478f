"""Reports for people: tables on stdout, errors and progress on stderr, nothing from data unescaped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from datakit.errors import DatakitError
from datakit.report import Report, Summary
from datakit.terminal import safe

STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def _console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 160
    return Console(file=stream, markup=False, highlight=False, emoji=False, width=width)


def error(problem: DatakitError) -> None:
    """An error and what to do next."""
    message = "\n".join(safe(line, 2000) for line in problem.message.splitlines())
    click.echo(f"error: {message}", err=True)
    for line in problem.hint.splitlines():
        click.echo(f"  {safe(line, 500)}", err=True)


@contextmanager
def progress(words: str) -> Iterator[Callable[[int, int], None]]:
    """A line that says how far a run is."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"))
    with Progress(*columns, TimeElapsedColumn(), console=_console(stderr=True), transient=True) as bar:
        task = bar.add_task(words, total=None, done="")

        def update(size: int, rows: int) -> None:
            bar.update(task, done=f"{rows:,} rows  {size / 1e6:,.0f} MB")

        yield update


def report(found: Report) -> None:
    """A report as a person wants to read it: what it is, what is wrong and where, the ledger, the verdict."""
    console = _console()
    for entry in found.detection:
        console.print(Text(f"{safe(entry['path'])}: {entry['format']}", style="bold"), end="")
        console.print(Text(f"  {'; '.join(safe(line) for line in entry.get('evidence', []))}"))
        if entry.get("runner_up"):
            console.print(Text(f"  next best: {entry['runner_up']['format']}", style="dim"))
    if found.kind:
        values = "messages" if found.conversational else "strings"
        console.print(Text(f"kind {found.kind}, form {found.form} ({values}), format {found.format}"))
    _findings(console, found.findings)
    _facts(console, found.facts)
    if found.ledger and found.command in ("convert", "validate"):
        _ledger(console, found)
    if found.output and found.exit_code == 0 and found.command == "convert":
        console.print(Text(f"{len(found.shards)} shards in {safe(found.output)}"))
    style = "bold green" if found.exit_code == 0 else "bold red"
    console.print(Text(f"{'PASS' if found.exit_code == 0 else 'FAIL'}: {safe(found.verdict, 500)}", style=style))
    _next(console, found)


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


def _findings(console: Console, findings: Sequence[Summary]) -> None:
    if not findings:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("severity", "left"), ("check", "left"), ("rows", "right"), ("share", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("first places", overflow="fold")
    for summary in findings:
        limit = 1 if summary.severity == "note" else 3
        lines = [f"{place(p)}: {safe(p['note'])}".lstrip(": ") for p in summary.first[:limit]]
        if summary.count > limit and len(summary.first) >= limit:
            lines.append(f"... and {summary.count - limit} more")
        table.add_row(
            Text(summary.severity, style=STYLES.get(summary.severity, "")),
            f"{summary.id} {summary.name}",
            f"{summary.count:,}",
            f"{100 * summary.share:.2f} %",
            Text("\n".join(lines)),
        )
    console.print(table)


def _ledger(console: Console, found: Report) -> None:
    ledger = found.ledger
    parts = [f"{ledger['single']:,} converted"]
    if ledger["merged"]:
        parts.append(f"{ledger['merged']:,} merged into {ledger['groups']:,} groups")
    parts += [f"{count:,} rejected by {rule}" for rule, count in ledger["rejected"].items()]
    blank = f" ({ledger['blank_lines']:,} blank lines)" if ledger["blank_lines"] else ""
    console.print(
        Text(f"ledger: {ledger['rows_in']:,} rows in = {' + '.join(parts)}; {ledger['rows_out']:,} rows out{blank}")
    )


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
    """What to do about a failure."""
    if not found.exit_code:
        return
    for summary in [s for s in found.findings if s.severity == "error"][:3]:
        entry = next(e for e in _check_entries() if e["id"] == summary.id)
        console.print(Text(f"  {summary.id}: {entry['fix']}  (datakit explain {summary.id})"))
    if found.command == "convert" and found.rows_rejected:
        console.print(
            Text('  Or set the bad rows aside: --on-bad-row quarantine --max-bad "N rows", then look at rejects/.')
        )
    if found.command == "convert":
        console.print(Text("  Nothing was written."))


def _check_entries() -> list[dict[str, Any]]:
    from datakit import api

    return api.list_checks()


def formats(entries: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("format", "becomes", "columns", ""):
        table.add_column(name, overflow="fold")
    for entry in entries:
        columns = ", ".join(f"{name}: {shape}" for name, shape in entry["signature"].items())
        doubt = "" if entry["verified"] else " (not seen on a real row)"
        table.add_row(entry["name"], entry["becomes"], columns, entry["doc"] + doubt)
    _console().print(table)


def checks(entries: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("id", "name", "severity", "kinds", "rule"):
        table.add_column(name, overflow="fold", no_wrap=name in ("id", "severity"))
    for entry in entries:
        severity = Text(entry["severity"], style=STYLES.get(entry["severity"], ""))
        table.add_row(entry["id"], entry["name"], severity, " ".join(entry["kinds"]), entry["rule"])
    _console().print(table)


def explain(entry: Mapping[str, Any]) -> None:
    console = _console()
    console.print(
        Text(f"{entry['id']} {entry['name']} ({entry['severity']}; {', '.join(entry['kinds'])})", style="bold")
    )
    console.print(Text(f"rule: {entry['rule']}"))
    console.print(Text(f"fix:  {entry['fix']}"))
