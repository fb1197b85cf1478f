"""What all commands share: their group, options that several have, and progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click

import datakit
from datakit import startup
from datakit.commandline import Group
from datakit.reading.limits import SHARD_SIZE

EPILOG: Final = (
    "Exit codes: 0 passed, 1 the data fails, 2 wrong call, 3 could not judge, 4 not written, 70 internal, "
    "75 locked by another run, 130 and 143 interrupted."
)


@click.group(cls=Group, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(datakit.__version__, prog_name="datakit")
def main() -> None:
    """Post-training data in any common shape, as Parquet shards that account for every row.

    \b
    datakit convert raw/*.jsonl -o shards/     detect the format, say why, convert
    datakit validate shards/                   judge any file or shard folder
    datakit verify shards/                     are the shards what the manifest says
    """


# ---------------------------------------------------------------- options that several commands share

as_list_option = click.option("--json", "as_json", is_flag=True, help="The same as JSON on stdout.")
to_option = click.option("--to", metavar="KIND[:FORM]", help="What to become: sft, sft:prompt_completion, preference:implicit, kto, prompt, ...")  # fmt: skip
format_option = click.option(
    "--format", metavar="NAME", help="Read every input as this format. `datakit formats` lists them."
)
map_option = click.option(
    "--map",
    metavar="FILE",
    help="What your columns, or only your words for roles, mean: a TOML file, or dataset_info.json:NAME.",
)
split_option = click.option("--split", multiple=True, metavar="NAME[=GLOB]", help="A split and the inputs that belong to it; repeat for several.")  # fmt: skip
max_bad_option = click.option("--max-bad", metavar="AMOUNT", help='Bad rows that are tolerated: "0.1 %" or "20 rows".')
fail_on_option = click.option("--fail-on", type=click.Choice(["error", "warning", "never"]), default="error", show_default=True, help="The severity from which findings fail the run.")  # fmt: skip
workers_option = click.option("--workers", type=click.IntRange(1), metavar="N", help="Parsing processes; one per core by default, at most 8. The output is the same for any number.")  # fmt: skip


def _severities(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    changes: dict[str, str] = {}
    for value in values:
        name, equals, severity = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not CHECK=SEVERITY, such as DK202=error")
        changes[name] = severity
    return changes


severity_option = click.option("--severity", multiple=True, callback=_severities, metavar="CHECK=LEVEL", help="Judge a check as error, warning, note or off; repeat for several.")  # fmt: skip
output_option = click.option("-o", "--output", default="", metavar="DIR", help="The folder to write; whole or absent.")
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace an output that was made with other inputs or options."
)
shard_size_option = click.option("--shard-size", default=SHARD_SIZE, show_default=True, metavar="SIZE", help="Bytes of rows per shard, before compression.")  # fmt: skip
on_bad_row_option = click.option("--on-bad-row", type=click.Choice(["fail", "quarantine"]), default="fail", show_default=True, help="fail: write nothing. quarantine: put bad rows into rejects/, within --max-bad.")  # fmt: skip
inputs_argument = click.argument("inputs", nargs=-1, metavar="INPUT...")


def options_of(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


@contextmanager
def progress_of(
    words: str, inputs: Sequence[str], splits: Sequence[str]
) -> Iterator[Callable[[int, int], None] | None]:
    """What is around long work: a progress line on stderr, where a person is looking at it."""
    startup.lean_arrow()
    if not sys.stderr.isatty():
        yield None
        return
    from datakit import screen
    from datakit.reading.sources import size_to_read

    with screen.progress(words, size_to_read(inputs, splits)) as update:
        yield update
