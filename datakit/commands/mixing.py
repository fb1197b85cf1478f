"""The command that mixes: mix, and how its plan is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

import datakit
from datakit.commandline import as_json_option, done
from datakit.commands.group import (
    EPILOG,
    fail_on_option,
    inputs_argument,
    main,
    output_option,
    overwrite_option,
    progress_of,
    severity_option,
    workers_option,
)

if TYPE_CHECKING:
    from datakit.report import Report


def _weights(context: click.Context, option: click.Parameter, value: str | None) -> list[float] | None:
    try:
        return None if value is None else [float(word) for word in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers with commas, such as 0.7,0.3") from None


@main.command(epilog=EPILOG)
@inputs_argument
@output_option
@click.option("--weights", callback=_weights, metavar="W,W,...", help="One weight per source, in order; equal ones by default.")  # fmt: skip
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Rows of the mix; weights count rows.")
@click.option("--tokens", type=click.IntRange(1), metavar="N", help="Tokens of the mix, to within a row; weights count tokens.")  # fmt: skip
@click.option("--tokenizer", metavar="PATH|NAME", help="Measures rows without dk_length: a folder, a tokenizer.json, or a name on the Hub.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), metavar="N", help="Decides every shuffle. Default: the recipe's, else 0.")  # fmt: skip
@click.option("--stop", metavar="WHEN", help="first_exhausted (default), all_exhausted (exhausted sources leave), restart (with --rows or --tokens), all_exhausted_restart, or repeat:N.")  # fmt: skip
@click.option("--block-size", type=click.IntRange(1), metavar="N", help="Rows of a block, each of which holds the weights. Default: 1000.")  # fmt: skip
@click.option("--order", metavar="ORDER", help="Rows of a source as they lie (source, default), shuffled within N rows (window:N), or all (shuffle).")  # fmt: skip
@click.option("--plan-only", is_flag=True, help="Show the plan and write nothing.")
@severity_option
@fail_on_option
@workers_option
@overwrite_option
@as_json_option
def mix(as_json: bool, **options: Any) -> None:
    """Mix sources by weight, in blocks that hold the weights exactly.

    INPUT is a recipe, or the sources themselves: shard folders or a glob over them, files, hf:NAME. The plan is shown before anything is
    written; options replace what the recipe says.

    \b
    datakit mix mix.toml -o mixed/
    datakit mix a/ b/ --weights 0.7,0.3 --rows 100000 --stop restart -o mixed/
    datakit mix a/ b/ --weights 0.7,0.3 --plan-only
    """
    words = options.pop("inputs")
    plan_only = options["plan_only"]
    with progress_of("mixing", (), ()) as progress:
        show = None if as_json or plan_only else _plan
        report = datakit.mix(words, **options, planned=show, progress=progress)
    done(report, as_json, _plan_alone if plan_only else _made)


def _plan(found: Report) -> None:
    """The table of the plan."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from datakit.screen import open_console
    from datakit.terminal import plural, safe

    out, facts = open_console(), found.facts
    tokens = "" if facts["tokens"] is None else f", {plural(facts['tokens'], 'token')}"
    out.print(
        Text(
            f"plan: {plural(facts['rows'], 'row')}{tokens} in {plural(facts['blocks'], 'block')}; weights count "
            f"{facts['weigh_by']}, stop {facts['stop']}, order {facts['order']}, seed {facts['seed']}",
            style="bold",
        )
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = ["source", "has", *(["filtered"] if _any(facts, "left_out_by_filter") else []), "rows"]
    names += [*(["tokens"] if facts["tokens"] is not None else []), "epochs", "asked", "given"]
    for name in names:
        table.add_column(name, justify="left" if name == "source" else "right", overflow="fold")
    for name, entry in facts["sources"].items():
        asked = "varies" if entry["asked"] is None else f"{100 * entry['asked']:.3f} %"
        cells = {
            "source": safe(name),
            "has": f"{entry['available']:,}",
            "filtered": f"{entry['left_out_by_filter']:,}",
            "rows": f"{entry['rows']:,}",
            "tokens": f"{entry['tokens'] or 0:,}",
            "epochs": f"{entry['epochs']:.2f}",
            "asked": asked,
            "given": f"{100 * entry['given']:.3f} %",
        }
        table.add_row(*(Text(cells[name]) for name in names))
    out.print(table)


def _any(facts: dict[str, Any], name: str) -> bool:
    return any(entry[name] for entry in facts["sources"].values())


def _plan_alone(found: Report) -> None:
    _plan(found)
    _made(found)


def _made(found: Report) -> None:
    from datakit import screen

    screen.report(replace(found, facts={}))
