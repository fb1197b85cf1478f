"""The commands that read raw files and look at shards: convert, validate, verify, stats, export, detect and the lists."""

from __future__ import annotations

from typing import Any

import click

import datakit
from datakit import launch, startup
from datakit.commandline import as_json_option, done, print_json
from datakit.commands.group import (
    EPILOG,
    as_list_option,
    fail_on_option,
    format_option,
    inputs_argument,
    main,
    map_option,
    max_bad_option,
    on_bad_row_option,
    options_of,
    output_option,
    overwrite_option,
    progress_of,
    severity_option,
    shard_size_option,
    split_option,
    to_option,
    workers_option,
)


@main.command(epilog=EPILOG)
@inputs_argument
@output_option
@options_of(to_option, format_option, map_option, split_option)
@on_bad_row_option
@options_of(max_bad_option, fail_on_option, severity_option)
@click.option("--reasoning", type=click.Choice(["keep", "split", "inline"]), default="keep", show_default=True, help="<think> texts: keep, split to reasoning_content, or inline (the inverse).")  # fmt: skip
@click.option(
    "--from-rejects",
    metavar="DIR",
    help="Instead of inputs: a rejects folder whose `raw` texts you repaired. They are read as they were before.",
)
@workers_option
@shard_size_option
@overwrite_option
@as_json_option
def convert(as_json: bool, **options: Any) -> None:
    """Convert files to a folder of Parquet shards.

    INPUT is a file (.jsonl .json .csv .tsv .parquet .arrow, texts also .gz .zst .bz2), a folder, a glob, a shard
    folder, `hf:NAME`, or - for standard input. The format is detected from the values of many rows; where two explain
    them equally well you are asked. Every row ends in a shard or, with its reason, in rejects/.

    \b
    datakit convert raw/*.jsonl -o shards/
    datakit convert chat.jsonl -o shards/ --on-bad-row quarantine --max-bad "0.1 %"
    datakit convert --split train='raw/tr*.jsonl' --split test='raw/te*.jsonl' -o shards/
    """
    launch.start_ahead(launch.workers(options["workers"]))
    startup.lean_arrow(numpy=False)
    with progress_of("converting", options["inputs"], options["split"]) as progress:
        report = datakit.convert(**options, progress=progress)
    done(report, as_json)


@main.command(epilog=EPILOG)
@inputs_argument
@options_of(
    to_option,
    format_option,
    map_option,
    split_option,
    max_bad_option,
    fail_on_option,
    severity_option,
    workers_option,
    as_json_option,
)
def validate(as_json: bool, **options: Any) -> None:
    """Judge files or a shard folder, and write nothing.

    \b
    datakit validate raw/*.jsonl
    datakit validate shards/ --fail-on warning --json > report.json
    """
    launch.start_ahead(launch.workers(options["workers"]))
    startup.lean_arrow(numpy=False)
    with progress_of("validating", options["inputs"], options["split"]) as progress:
        report = datakit.validate(**options, progress=progress)
    done(report, as_json)


@main.command(epilog=EPILOG)
@click.argument("folder", metavar="DIR")
@as_json_option
def verify(folder: str, as_json: bool) -> None:
    """Compare a shard folder with its manifest, byte by byte."""
    done(datakit.verify(folder), as_json)


@main.command(epilog=EPILOG)
@click.argument("folder", metavar="DIR")
@as_json_option
def stats(folder: str, as_json: bool) -> None:
    """Lengths, turns, roles, tools, labels and sources of a shard folder."""
    done(datakit.stats(folder), as_json)


@main.command(epilog=EPILOG)
@click.argument("folder", metavar="DIR")
@click.option("--jsonl", required=True, metavar="FILE", help="The file to write.")
@click.option("--split", metavar="NAME", help="Only this split.")
@click.option("--all", is_flag=True, help="The dk_ columns too.")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@as_json_option
def export(as_json: bool, **options: Any) -> None:
    """Write the rows of a shard folder as JSON Lines."""
    done(datakit.export(**options), as_json)


@main.command(epilog=EPILOG)
@click.argument("inputs", nargs=-1, required=True, metavar="FILE...")
@options_of(to_option, as_json_option)
def detect(inputs: tuple[str, ...], to: str | None, as_json: bool) -> None:
    """Say what a file is, and why."""
    done(datakit.detect(inputs, to=to), as_json)


@main.command()
@as_list_option
def formats(as_json: bool) -> None:
    """List the source formats."""
    from datakit import api, screen

    entries = api.list_formats()
    print_json({"formats": entries}) if as_json else screen.formats(entries)


@main.command()
@as_list_option
def checks(as_json: bool) -> None:
    """List the checks."""
    from datakit import api, screen

    entries = api.list_checks()
    print_json({"checks": entries}) if as_json else screen.checks(entries)


@main.command()
@click.argument("name", metavar="ID")
@as_list_option
def explain(name: str, as_json: bool) -> None:
    """Explain a check, such as DK302 or arguments-not-object."""
    from datakit import screen

    entry = datakit.explain(name)
    print_json(entry) if as_json else screen.explain(entry)
