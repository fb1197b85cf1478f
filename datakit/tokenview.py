"""What people see of formatted rows: a row in colours, lengths as a histogram, and what a truncation would lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datakit.report import Report
from datakit.screen import near, open_console
from datakit.screen import report as print_report
from datakit.terminal import plural, safe

TRAINED: Final = "bold green"
MASKED: Final = "dim"
SPECIAL: Final = "reverse"
BAR: Final = 40
LINE_FEED: Final = "\u23ce"


def row(found: Report) -> None:
    """One formatted row: trained text in colour, or in brackets where there is none; special tokens reversed."""
    out = open_console()
    special = set(found.facts["special"])
    for name, tokens in found.facts["columns"].items():
        count = sum(trained for _, trained in tokens)
        out.print(Text(f"{name}: {plural(len(tokens), 'token')}, {count:,} trained", style="bold"))
        text, brackets, before = Text(), out.color_system is None, False
        for piece, trained in [*tokens, ["", False]]:
            if brackets and trained != before:
                text.append("[[" if trained else "]]")
            before = trained
            style = TRAINED if trained else MASKED
            if piece in special:
                style += f" {SPECIAL}"
            for at, line in enumerate(piece.split("\n")):
                if at:
                    text.append(f"{LINE_FEED}\n", style=style)
                text.append(safe(line, 10_000), style=style)
        out.print(text, soft_wrap=True)
    for name, value in found.facts["others"].items():
        out.print(Text(f"{name}: {safe(value)}", style=MASKED))
    if out.color_system is None:
        out.print(Text("[[trained]]  masked"))
        return
    out.print(Text.assemble(("trained", TRAINED), "  ", ("masked", MASKED), "  ", ("special", f"{MASKED} {SPECIAL}")))


def formatted(found: Report) -> None:
    """The report of `format`: as `convert` shows its own, and the share of trained tokens, and losses."""
    out = open_console()
    for note in found.facts.get("notes", ()):
        out.print(Text(f"note: {safe(note, 500)}", style="yellow"))
    supervised = found.facts.get("supervised", {})
    if supervised:
        table = _table("source", "tokens", "trained", "share")
        for source, entry in supervised.items():
            share = f"{100 * entry.get('share', 0):.1f} %"
            table.add_row(Text(safe(near(source))), f"{entry['tokens']:,}", f"{entry['trained']:,}", share)
        out.print(table)
    _losses(out, found.facts.get("losses", {}))
    print_report(replace(found, facts={}))
    engine = found.facts.get("prepared", {}).get("engine") or {}
    if engine.get("why"):
        out.print(Text(f"encoded by {engine['engine']}: {safe(engine['why'])}", style=MASKED))


def _losses(out: Console, losses: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    """What each truncation would lose, by source."""
    for source, policies in losses.items():
        rows = policies.get("rows", {}).get("rows", 0)
        over = policies.get("error", {}).get("over", 0)
        if not over:
            continue
        said = f"{over:,} of {plural(rows, 'row')} {'is' if over == 1 else 'are'} too long"
        out.print(Text(f"{safe(near(source))}: {said}. What each --truncation loses:"))
        table = _table("", "rows dropped", "cut", "left empty", "end cut", "trained tokens lost")
        for policy, counts in policies.items():
            if policy in ("rows", "error"):
                continue
            trained = max(1, counts.get("trained", 0))
            lost = f"{counts['trained_lost']:,} ({100 * counts['trained_lost'] / trained:.1f} %)"
            names = ("dropped", "cut", "emptied", "last_cut")
            table.add_row(policy, *(f"{counts[name]:,}" for name in names), lost)
        out.print(table)


def lengths(found: Report) -> None:
    """Percentiles, a histogram and a suggestion."""
    out = open_console()
    facts = found.facts
    for note in facts.get("notes", ()):
        out.print(Text(f"note: {safe(note, 500)}", style="yellow"))
    if facts.get("rows"):
        table = _table("", *facts["tokens"])
        for name in ("tokens", "trained"):
            table.add_row(name, *(f"{value:,}" for value in facts[name].values()))
        out.print(table)
        most = max(bin["rows"] for bin in facts["histogram"])
        for bin in facts["histogram"]:
            bar = "█" * max(1 if bin["rows"] else 0, round(BAR * bin["rows"] / most))
            out.print(Text(f"{bin['first']:>8,} to {bin['last']:<8,} {bin['rows']:>10,} {bar}"))
        _suggestion(out, facts)
    print_report(replace(found, facts={}))


def _suggestion(out: Console, facts: Mapping[str, Any]) -> None:
    length, padding = facts["length"], facts["padding"]
    kept = 100 * (1 - length["rows_over_share"])
    out.print(Text(f"--max-length {length['length']} keeps {kept:.2f} % of the rows whole; "
                   f"{length['trained_over']:,} trained tokens are in longer ones.", style="bold"))  # fmt: skip
    for entry in facts["batches"]:
        out.print(Text(f"{entry['budget']:,} tokens per batch: {plural(entry['rows'], 'row')} of that length, or about "
                       f"{entry['documents']:,.0f} packed ones", style=MASKED))  # fmt: skip
    shares = ", ".join(f"{100 * padding[name]:.0f} % {name}" for name in ("random", "grouped", "packed"))
    out.print(Text(f"padding in batches of {padding['batch']}: {shares}", style=MASKED))


def _table(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, name in enumerate(names):
        table.add_column(name, justify="left" if not at else "right", no_wrap=bool(at), overflow="fold")
    return table
