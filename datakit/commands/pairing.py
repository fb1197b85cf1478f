"""The commands between pairs and labelled answers: unpair, pair."""

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
    options_of,
    output_option,
    overwrite_option,
    progress_of,
    severity_option,
)

if TYPE_CHECKING:
    from datakit.report import Report

_seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="For what is drawn at random.")  # fmt: skip


@main.command(epilog=EPILOG)
@inputs_argument
@output_option
@click.option("--order", type=click.Choice(["pair", "blocked", "shuffle"]), default="pair", show_default=True, help="pair: chosen, rejected, chosen, rejected, ... blocked: all chosen, then all rejected. shuffle: at random.")  # fmt: skip
@options_of(_seed, fail_on_option, severity_option, overwrite_option, as_json_option)
def unpair(as_json: bool, **options: Any) -> None:
    """Turn preference pairs into labelled answers, for KTO and BCO.

    INPUT is a folder of preference shards, from `datakit convert` or `datakit format`. Every pair becomes a desirable
    and an undesirable row, which keep its other columns and know each other by dk_pair_id.

    \b
    datakit unpair prefs/ -o kto/
    """
    with progress_of("unpairing", options["inputs"], ()) as progress:
        report = datakit.unpair(**options, progress=progress)
    done(report, as_json, _unpaired)


@main.command(epilog=EPILOG)
@inputs_argument
@output_option
@click.option("--by", type=click.Choice(["pair_id", "prompt", "score"]), help="Which labelled rows belong together: those of one dk_pair_id (default where they have it), desirable with undesirable ones of one prompt, or those of one prompt by --score.")  # fmt: skip
@click.option("--score", metavar="NAME", help="For --by score: a column, or a key of dk_meta.")
@click.option("--strategy", type=click.Choice(["best-worst", "best-random", "all", "adjacent"]), help="Which scored answers become pairs; best-worst by default.")  # fmt: skip
@click.option("--min-margin", type=float, default=0.0, metavar="X", help="By how much the better score is higher at least. Equal scores are never a pair.")  # fmt: skip
@options_of(_seed, fail_on_option, severity_option, overwrite_option, as_json_option)
def pair(as_json: bool, **options: Any) -> None:
    """Make preference pairs of labelled, scored or ranked answers.

    INPUT is a folder of kto shards, formatted or not, or of ranked ones. Rows that are in no pair go to rejects/ and
    are counted.

    \b
    datakit pair kto/ -o prefs/                               # back to what `unpair` was given
    datakit pair kto/ -o prefs/ --by prompt                   # every desirable with every undesirable answer
    datakit pair ranked/ -o prefs/ --strategy all --min-margin 1
    """
    with progress_of("pairing", options["inputs"], ()) as progress:
        report = datakit.pair(**options, progress=progress)
    done(report, as_json, _paired)


def _unpaired(report: Report) -> None:
    """The report of `unpair`: as others, and the classes with the weights that balance them."""
    from datakit import screen

    facts = report.facts.get("unpaired")
    screen.report(replace(report, facts={}))
    if facts and not report.exit_code:
        (low, high), (lower, upper) = facts["desirable_weight"], facts["undesirable_weight"]
        click.echo(f"{facts['desirable']:,} desirable, {facts['undesirable']:,} undesirable")
        click.echo(
            f"KTO: desirable_weight {low:g} to {high:g}, or undesirable_weight {lower:g} to {upper:g}; the other 1"
        )


def _paired(report: Report) -> None:
    """The report of `pair`: as others, and how many candidates were left out."""
    from datakit import screen
    from datakit.terminal import plural

    facts = report.facts.get("paired")
    screen.report(replace(report, facts={}))
    if facts:
        words = {"ties": "with equal scores", "close": "below the margin", "alike": "with one and the same answer"}
        left = [f"{facts[name]:,} {text}" for name, text in words.items() if facts[name]]
        click.echo(plural(facts["pairs"], "pair") + (f"; candidates left out: {', '.join(left)}" if left else ""))
