"""The commands that need a tokenizer: format, lengths, show."""

from __future__ import annotations

import os
from typing import Any

import click

import datakit
from datakit import launch, startup
from datakit.commandline import as_json_option, done
from datakit.commands.group import (
    EPILOG,
    fail_on_option,
    inputs_argument,
    main,
    max_bad_option,
    on_bad_row_option,
    options_of,
    output_option,
    overwrite_option,
    progress_of,
    severity_option,
    shard_size_option,
    workers_option,
)

_tokenizer = click.option("--tokenizer", required=True, metavar="PATH|NAME", help="A folder, a tokenizer.json, or a name on the Hub.")  # fmt: skip
_for = click.option("--for", "method", metavar="METHOD", help="sft, dpo, orpo, cpo, kto, bco, reward, grpo or stepwise; by default by the kind of the rows.")  # fmt: skip
_template = click.option("--chat-template", metavar="FILE", help="A Jinja file instead of the tokenizer's own template.")  # fmt: skip
_train_on = click.option("--train-on", type=click.Choice(["all", "last", "tagged", "everything"]), default="all", show_default=True, help="all: every assistant turn but those of weight 0. last: the last of them. tagged: those with a weight above 0. everything: every token.")  # fmt: skip


def _local(tokenizer: str) -> str:
    """The tokenizer, if it lies here and workers can begin to load it."""
    return tokenizer if os.path.exists(tokenizer) else ""  # noqa: PTH110


@main.command(epilog=EPILOG)
@inputs_argument
@output_option
@options_of(_tokenizer, _for, _template)
@click.option("--max-length", type=click.IntRange(1), metavar="N", help="Tokens that a row may have.")
@click.option("--truncation", type=click.Choice(["error", "drop", "keep_start", "keep_end", "per_part", "window"]), default="error", show_default=True, help="What becomes of a longer row. With error, the report says what each would lose.")  # fmt: skip
@_train_on
@click.option("--leave-out", multiple=True, metavar="REGEX", help="An assistant turn whose whole text this matches is not trained; repeat for several.")  # fmt: skip
@click.option("--pack", type=click.Choice(["bfd", "bfd_split", "wrapped"]), help="Several rows in one sequence of --max-length.")  # fmt: skip
@click.option("--pad-multiple", type=click.IntRange(1), metavar="N", help="Recorded for the trainer's collator; shards hold no padding.")  # fmt: skip
@click.option("--control-tokens", type=click.Choice(["error", "escape", "quarantine", "allow"]), default="error", show_default=True, help="What becomes of rows whose data holds a control token such as <|im_end|>.")  # fmt: skip
@click.option("--now", metavar="TIME", help="The time that templates with a date are given, such as 2026-01-31.")
@click.option("--render-only", is_flag=True, help="Text columns instead of ids.")
@click.option("--layout", type=click.Choice(["trl", "easydel"]), default="trl", show_default=True, help="Names of token columns: those of TRL, or of EasyDeL.")  # fmt: skip
@on_bad_row_option
@options_of(max_bad_option, fail_on_option, severity_option, workers_option)
@shard_size_option
@overwrite_option
@as_json_option
def format(as_json: bool, **options: Any) -> None:
    """Render, mask, tokenise and fit shards, so that nothing is tokenised again at training time.

    INPUT is a folder that `datakit convert` wrote. What the assistant wrote is proven for every row from the template's
    own execution; a row for which that cannot be done is refused with the reason.

    \b
    datakit format shards/ -o ready/ --tokenizer Qwen/Qwen2.5-0.5B-Instruct --max-length 4096
    datakit format prefs/ -o ready/ --tokenizer ./model --for dpo --max-length 2048 --truncation per_part
    """
    launch.start_ahead(launch.workers(options["workers"]), arrays=True, tokenizer=_local(options["tokenizer"]))
    startup.lean_arrow(numpy=False)
    with progress_of("formatting", options["inputs"], ()) as progress:
        report = datakit.format(**options, progress=progress)
    from datakit import tokenview

    done(report, as_json, tokenview.formatted)


@main.command(epilog=EPILOG)
@inputs_argument
@options_of(_tokenizer, _for, _template, _train_on)
@click.option("--control-tokens", type=click.Choice(["error", "escape", "quarantine", "allow"]), default="allow", show_default=True, help="As in `format`.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, metavar="N", help="Rows per batch, for the share of padding.")  # fmt: skip
@options_of(severity_option, workers_option, as_json_option)
def lengths(as_json: bool, **options: Any) -> None:
    """How long rows are in tokens, before a length is chosen.

    \b
    datakit lengths shards/ --tokenizer Qwen/Qwen2.5-0.5B-Instruct
    """
    launch.start_ahead(launch.workers(options["workers"]), arrays=True, tokenizer=_local(options["tokenizer"]))
    with progress_of("measuring", options["inputs"], ()) as progress:
        report = datakit.lengths(**options, progress=progress)
    from datakit import tokenview

    done(report, as_json, tokenview.lengths)


@main.command(epilog=EPILOG)
@click.argument("folder", metavar="DIR")
@click.option("--row", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Its number, from 0.")
@click.option("--split", metavar="NAME", help="Of this split.")
@click.option("--tokenizer", metavar="PATH", help="Where the tokenizer is now, if not where it was.")
@as_json_option
def show(as_json: bool, **options: Any) -> None:
    """Show one formatted row: what is trained, what is masked, and the special tokens.

    \b
    datakit show ready/ --row 17
    """
    from datakit import tokenview

    done(datakit.show(**options), as_json, tokenview.row)
