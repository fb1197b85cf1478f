"""Write the generated pages: formats.md, checks.md and cli.md. A test says when they are behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from datakit.api import list_checks, list_formats
from datakit.cli import main
from datakit.schema import LAYOUTS, OPTIONAL, PROVENANCE

HERE = Path(__file__).resolve().parent
NOTE = "<!-- written by docs/generate.py; do not edit -->\n"


def formats() -> str:
    lines = [NOTE, "# Source formats", ""]
    lines += [
        "What `datakit detect` knows. Detection goes by the shapes of values in many rows, not by column names alone;",
        "where two formats explain the rows equally well it asks. A format marked *unseen* was written from its",
        "documentation, without a real row to look at. How to add one: [add-a-format.md](add-a-format.md).",
        "",
        "| format | becomes | columns and shapes | |",
        "|---|---|---|---|",
    ]
    for entry in list_formats():
        columns = ", ".join(f"`{name}` {shape.replace('|', ' or ')}" for name, shape in entry["signature"].items())
        doubt = "" if entry["verified"] else " *(unseen)*"
        lines.append(
            f"| [{entry['name']}](#{entry['name']}) | `{entry['becomes']}` | {columns} | {entry['doc']}{doubt} |"
        )
    lines += ["", "## Examples", ""]
    for entry in list_formats():
        example = json.dumps(entry["example"], ensure_ascii=False)
        lines += [f"### {entry['name']}", "", entry["doc"] + ".", "", "```json", example, "```", ""]
        if entry["source"]:
            lines += [f"Source: <{entry['source']}>", ""]
    return "\n".join(lines).rstrip() + "\n"


def checks() -> str:
    lines = [NOTE, "# Checks", ""]
    lines += [
        "A row with a finding of severity error is a bad row. `--severity CHECK=LEVEL` changes one",
        "(error, warning, note, off); checks whose rows cannot be carried on stay errors.",
        "How to add one: [add-a-check.md](add-a-check.md).",
        "",
        "| id | name | severity | kinds | rule | what to do |",
        "|---|---|---|---|---|---|",
    ]
    for entry in list_checks():
        kinds = ", ".join(entry["kinds"])
        lines.append(
            f"| {entry['id']} | {entry['name']} | {entry['severity']} | {kinds} | {entry['rule']} | {entry['fix']} |"
        )
    lines += ["", "## Why", ""]
    for entry in filter(lambda entry: entry["why"], list_checks()):
        lines += [f"**{entry['id']} {entry['name']}.** {entry['why']}", ""]
        if entry["example"]:
            lines += ["```json", entry["example"].replace("\ufeff", "\\ufeff"), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: click.Group) -> Iterator[tuple[str, str]]:
    context = click.Context(group, info_name="datakit", max_content_width=100, terminal_width=100)
    yield "datakit", group.get_help(context)
    for name, command in sorted(group.commands.items()):
        inner = click.Context(command, info_name=name, parent=context, max_content_width=100, terminal_width=100)
        yield f"datakit {name}", command.get_help(inner)


def cli() -> str:
    lines = [NOTE, "# Command line", ""]
    for name, text in _commands(main):
        lines += [f"## {name}", "", "```", text, "```", ""]
    return "\n".join(lines).rstrip() + "\n"


FOREIGN = {
    "bytes, of any width": '`{"$base64": "..."}`',
    "decimal": 'its digits, such as `"12.50"`',
    "date, time, moment": "ISO 8601 with all digits of the column; a moment with a zone carries its offset",
    "duration, interval": 'ISO 8601, such as `"PT1.500S"`',
    "NaN, infinity": '`"NaN"`, `"Infinity"`, `"-Infinity"`',
}


def kinds() -> str:
    lines = [NOTE, "# Kinds, forms and columns", ""]
    lines += ["What a shard may hold. `--to` takes the names of the first column.", ""]
    lines += [
        "Rows take any form of their kind that holds all of them. Pairs also become sft rows or prompts; answers that",
        "are left over are kept in `dk_meta`. Sft rows become prompts, and their answer the column `solution`, which",
        "rewards such as `exact_match` read. `datakit unpair` and `pair` do the rest.",
        "",
    ]
    lines += ["| kind and form | texts are | trainer columns | |", "|---|---|---|---|"]
    for layout in LAYOUTS:
        values = "messages" if layout.conversational else "strings"
        columns = ", ".join(f"`{c.name}`{'?' if c.nullable else ''}" for c in layout.columns)
        lines.append(f"| `{layout.name}` | {values} | {columns} | {layout.doc} |")
    lines += ["", "Columns that exist only where a row has them, and the provenance that every shard has:", ""]
    lines += ["| column | |", "|---|---|"]
    lines += [f"| `{column.name}` | {column.doc} |" for column in (*OPTIONAL, *PROVENANCE)]
    lines += ["", "Values of Parquet and Arrow files that JSON lacks become texts (DK125, DK126):", ""]
    lines += ["| value | as JSON |", "|---|---|"]
    lines += [f"| {value} | {text} |" for value, text in FOREIGN.items()]
    return "\n".join(lines) + "\n"


PAGES = {"formats.md": formats, "checks.md": checks, "cli.md": cli, "kinds.md": kinds}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (HERE / page).write_text(make(), "utf-8")
