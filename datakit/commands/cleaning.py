"""The commands that look for rows in the wrong place: split, dedup, decontaminate."""

from __future__ import annotations

from typing import Any

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
    shard_size_option,
)

_last = options_of(severity_option, fail_on_option, shard_size_option, overwrite_option, as_json_option)


@main.command(epilog=EPILOG)
@inputs_argument
@output_option
@click.option("--test", metavar="SHARE", help="The share that goes to test, such as 5%.")
@click.option("--validation", metavar="SHARE", help="The share that goes to validation, such as 5%.")
@click.option("--group-by", metavar="NAME", help="What stays together: prompt (default), conversation (default of formatted shards), source, pair_id, a column, or a key inside dk_meta such as gamefile (or dk_meta.gamefile).")  # fmt: skip
@click.option("--stratify", metavar="NAME", help="Report and judge the shares by the values of this: source, a column, or a key inside dk_meta.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Another one gives another assignment.")  # fmt: skip
@_last
def split(as_json: bool, **options: Any) -> None:
    """Divide rows into train, validation and test.

    INPUT is a folder of shards. No group is on two sides, and rows that you add later move no row that was there: the
    side follows from a hash of the group alone. Prompts that are on two sides all the same are told with their places.

    \b
    datakit split shards/ --test 5% -o parts/
    datakit split shards/ --test 5% --validation 5% --group-by gamefile -o parts/
    """
    with progress_of("splitting", options["inputs"], ()) as progress:
        report = datakit.split(**options, progress=progress)
    done(report, as_json)


@main.command(epilog=EPILOG)
@inputs_argument
@output_option
@click.option("--by", type=click.Choice(["row", "prompt", "near"]), default="row", show_default=True, help="row: what trainers read is the same. prompt: what is asked is the same. near: the texts are nearly the same.")  # fmt: skip
@click.option("--any-answer", is_flag=True, help="With --by prompt: preference, KTO, ranked and stepwise rows with one prompt are the same whatever their answers.")  # fmt: skip
@click.option("--threshold", type=float, metavar="X", help="With --by near: the Jaccard similarity from which two rows are the same. Default: 0.8.")  # fmt: skip
@click.option("--ngram", type=int, metavar="N", help="With --by near: words per run. Default: 3.")
@_last
def dedup(as_json: bool, **options: Any) -> None:
    """Leave out rows that repeat an earlier one.

    INPUT is a folder of shards. The first row stays, in the order of the inputs, and a row of test or validation before
    one of train. The others go to rejects/ with the row that each repeats.

    \b
    datakit dedup shards/ -o clean/
    datakit dedup shards/ --by near --threshold 0.8 -o clean/
    """
    with progress_of("comparing", options["inputs"], ()) as progress:
        report = datakit.dedup(**options, progress=progress)
    done(report, as_json)


@main.command(epilog=EPILOG)
@inputs_argument
@output_option
@click.option("--against", multiple=True, required=True, metavar="FILE", help="An evaluation: .jsonl .json .csv .txt .parquet .arrow, a folder, a glob in quotes, or shards; repeat for several.")  # fmt: skip
@click.option("--ngram", type=int, default=13, show_default=True, metavar="N", help="Words in a row that have to be shared. Shorter texts have to be a whole message.")  # fmt: skip
@click.option("--min-overlap", default="0%", show_default=True, metavar="SHARE", help="The share of an evaluation row's text that has to be there; by default one run of words is enough.")  # fmt: skip
@_last
def decontaminate(as_json: bool, **options: Any) -> None:
    """Leave out rows that hold a text of an evaluation.

    INPUT is a folder of shards. Texts are compared word by word, without case and punctuation. Rows that hold one go to
    rejects/ with the words that both share, and the file and line of the evaluation.

    \b
    datakit decontaminate shards/ --against 'evals/*.jsonl' -o clean/
    """
    with progress_of("comparing", options["inputs"], ()) as progress:
        report = datakit.decontaminate(**options, progress=progress)
    done(report, as_json)
