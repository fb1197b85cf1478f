"""The command line: one command per verb; each parses, calls the verb of the same name, and prints what it returned.

Only what parsing needs is imported at the top: `--help` is quick, and workers start while the rest is imported.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
import orjson

import datakit
from datakit import launch
from datakit.errors import DatakitError, InternalError, UsageError
from datakit.reading.limits import SHARD_SIZE
from datakit.terminal import safe

if TYPE_CHECKING:
    from datakit.report import Report

EPILOG: Final = (
    "Exit codes: 0 passed, 1 the data fails, 2 wrong call, 3 could not judge, 4 not written, 70 internal, "
    "75 locked by another run, 130 and 143 interrupted."
)


class Interrupted(BaseException):
    """A signal asked for an end; what is finished is kept for the next run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


class Group(click.Group):
    """Turns errors into one message on stderr, one JSON object on stdout where asked for, and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        arguments = list(kwargs.get("args") or (args[0] if args and args[0] is not None else sys.argv[1:]))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)
        try:
            code = super().main(*args, **kwargs)
            sys.stdout.flush()
        except click.exceptions.Abort:
            code = 130
        except click.ClickException as error:
            code = _fail(UsageError(_click_message(error), _click_hint(error)), arguments)
        except Interrupted as error:
            click.echo("interrupted; run the same command again to go on", err=True)
            code = error.exit_code
        except BrokenPipeError:
            sys.stderr.close()
            code = 0
        except DatakitError as error:
            code = _fail(error, arguments)
        except Exception as error:  # a defect of ours, told as such
            import traceback

            click.echo(safe(traceback.format_exc(), 4000).replace("\\x0a", "\n"), err=True)
            code = _fail(InternalError(f"{type(error).__name__}: {error}", "Please report this."), arguments)
        sys.exit(code if isinstance(code, int) else 0)


def _click_message(error: click.ClickException) -> str:
    return error.format_message()


def _click_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"Try: {context.command_path} --help" if context is not None else "Try: datakit --help"


def _fail(error: DatakitError, arguments: list[str]) -> int:
    from datakit import screen
    from datakit.report import Report

    if "--json" in arguments:
        report = Report(next((a for a in arguments if not a.startswith("-")), "datakit"), exit_code=error.exit_code)
        report.error = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        report.verdict = "not judged"
        _print_json(report.to_json())
    screen.error(error)
    return error.exit_code


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


def _done(report: Report, as_json: bool, show: Callable[[Report], None] | None = None) -> None:
    from datakit import screen

    if as_json:
        _print_json(report.to_json())
    else:
        (show or screen.report)(report)
    if report.exit_code:
        raise click.exceptions.Exit(report.exit_code)


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

_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout (schemas/report.json).")
_to = click.option("--to", metavar="KIND[:FORM]", help="What to become: sft, sft:prompt_completion, preference:implicit, kto, prompt, ...")  # fmt: skip
_format = click.option(
    "--format", metavar="NAME", help="Read every input as this format. `datakit formats` lists them."
)
_map = click.option(
    "--map",
    metavar="FILE",
    help="What your columns, or only your words for roles, mean: a TOML file, or dataset_info.json:NAME.",
)
_split = click.option("--split", multiple=True, metavar="NAME[=GLOB]", help="A split and the inputs that belong to it; repeat for several.")  # fmt: skip
_max_bad = click.option("--max-bad", metavar="AMOUNT", help='Bad rows that are tolerated: "0.1 %" or "20 rows".')
_fail_on = click.option("--fail-on", type=click.Choice(["error", "warning", "never"]), default="error", show_default=True, help="The severity from which findings fail the run.")  # fmt: skip
_workers = click.option("--workers", type=click.IntRange(1), metavar="N", help="Parsing processes; one per core by default, at most 8. The output is the same for any number.")  # fmt: skip


def _severities(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    changes: dict[str, str] = {}
    for value in values:
        name, equals, severity = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not CHECK=SEVERITY, such as DK202=error")
        changes[name] = severity
    return changes


_severity = click.option("--severity", multiple=True, callback=_severities, metavar="CHECK=LEVEL", help="Judge a check as error, warning, note or off; repeat for several.")  # fmt: skip
_inputs = click.argument("inputs", nargs=-1, metavar="INPUT...")


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


@contextmanager
def _progress(words: str, inputs: Sequence[str], splits: Sequence[str]) -> Iterator[Callable[[int, int], None] | None]:
    """A progress line on stderr, where a person is looking at it."""
    if not sys.stderr.isatty():
        yield None
        return
    from datakit import screen
    from datakit.reading.sources import size_to_read

    with screen.progress(words, size_to_read(inputs, splits)) as update:
        yield update


# ---------------------------------------------------------------- the verbs


@main.command(epilog=EPILOG)
@_inputs
@click.option(
    "-o", "--output", default="", metavar="DIR", help="The folder of the shards; whole or absent, never half."
)
@_options(_to, _format, _map, _split)
@click.option("--on-bad-row", type=click.Choice(["fail", "quarantine"]), default="fail", show_default=True, help="fail: write nothing. quarantine: put bad rows into rejects/, within --max-bad.")  # fmt: skip
@_options(_max_bad, _fail_on, _severity)
@click.option("--reasoning", type=click.Choice(["keep", "split", "inline"]), default="keep", show_default=True, help="<think> texts: keep, split to reasoning_content, or inline (the inverse).")  # fmt: skip
@click.option(
    "--from-rejects",
    metavar="DIR",
    help="Instead of inputs: a rejects folder whose `raw` texts you repaired. They are read as they were before.",
)
@_workers
@click.option("--shard-size", default=SHARD_SIZE, show_default=True, metavar="SIZE", help="Decoded input bytes per shard.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an output that was made with other inputs or options.")
@_json
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
    with _progress("converting", options["inputs"], options["split"]) as progress:
        report = datakit.convert(**options, progress=progress)
    _done(report, as_json)


@main.command(epilog=EPILOG)
@_inputs
@_options(_to, _format, _map, _split, _max_bad, _fail_on, _severity, _workers, _json)
def validate(as_json: bool, **options: Any) -> None:
    """Judge files or a shard folder, and write nothing.

    \b
    datakit validate raw/*.jsonl
    datakit validate shards/ --fail-on warning --json > report.json
    """
    launch.start_ahead(launch.workers(options["workers"]))
    with _progress("validating", options["inputs"], options["split"]) as progress:
        report = datakit.validate(**options, progress=progress)
    _done(report, as_json)


@main.command(epilog=EPILOG)
@click.argument("folder", metavar="DIR")
@_json
def verify(folder: str, as_json: bool) -> None:
    """Compare a shard folder with its manifest, byte by byte."""
    _done(datakit.verify(folder), as_json)


@main.command(epilog=EPILOG)
@click.argument("folder", metavar="DIR")
@_json
def stats(folder: str, as_json: bool) -> None:
    """Lengths, turns, roles, tools, labels and sources of a shard folder."""
    _done(datakit.stats(folder), as_json)


@main.command(epilog=EPILOG)
@click.argument("folder", metavar="DIR")
@click.option("--jsonl", required=True, metavar="FILE", help="The file to write.")
@click.option("--split", metavar="NAME", help="Only this split.")
@click.option("--all", is_flag=True, help="The dk_ columns too.")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@_json
def export(as_json: bool, **options: Any) -> None:
    """Write the rows of a shard folder as JSON Lines."""
    _done(datakit.export(**options), as_json)


@main.command(epilog=EPILOG)
@click.argument("inputs", nargs=-1, required=True, metavar="FILE...")
@_options(_to, _json)
def detect(inputs: tuple[str, ...], to: str | None, as_json: bool) -> None:
    """Say what a file is, and why."""
    _done(datakit.detect(inputs, to=to), as_json)


@main.command()
@_json
def formats(as_json: bool) -> None:
    """List the source formats."""
    from datakit import api, screen

    entries = api.list_formats()
    _print_json({"formats": entries}) if as_json else screen.formats(entries)


@main.command()
@_json
def checks(as_json: bool) -> None:
    """List the checks."""
    from datakit import api, screen

    entries = api.list_checks()
    _print_json({"checks": entries}) if as_json else screen.checks(entries)


@main.command()
@click.argument("name", metavar="ID")
@_json
def explain(name: str, as_json: bool) -> None:
    """Explain a check, such as DK302 or arguments-not-object."""
    from datakit import screen

    entry = datakit.explain(name)
    _print_json(entry) if as_json else screen.explain(entry)


# ---------------------------------------------------------------- verbs that need a tokenizer

_tokenizer = click.option("--tokenizer", required=True, metavar="PATH|NAME", help="A folder, a tokenizer.json, or a name on the Hub.")  # fmt: skip
_for = click.option("--for", "method", metavar="METHOD", help="sft, dpo, orpo, cpo, kto, bco, reward, grpo or stepwise; by default by the kind of the rows.")  # fmt: skip
_template = click.option("--chat-template", metavar="FILE", help="A Jinja file instead of the tokenizer's own template.")  # fmt: skip
_train_on = click.option("--train-on", type=click.Choice(["all", "last", "tagged", "everything"]), default="all", show_default=True, help="all: every assistant turn but those of weight 0. last: the last of them. tagged: those with a weight above 0. everything: every token.")  # fmt: skip


def _local(tokenizer: str) -> str:
    """The tokenizer, if it lies here and workers can begin to load it."""
    return tokenizer if os.path.exists(tokenizer) else ""  # noqa: PTH110


@main.command(epilog=EPILOG)
@_inputs
@click.option("-o", "--output", default="", metavar="DIR", help="The folder of the new shards; whole or absent.")
@_options(_tokenizer, _for, _template)
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
@click.option("--on-bad-row", type=click.Choice(["fail", "quarantine"]), default="fail", show_default=True, help="fail: write nothing. quarantine: put bad rows into rejects/, within --max-bad.")  # fmt: skip
@_options(_max_bad, _fail_on, _severity, _workers)
@click.option("--shard-size", default=SHARD_SIZE, show_default=True, metavar="SIZE", help="Decoded input bytes per shard.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an output that was made with other inputs or options.")
@_json
def format(as_json: bool, **options: Any) -> None:
    """Render, mask, tokenise and fit shards, so that nothing is tokenised again at training time.

    INPUT is a folder that `datakit convert` wrote. What the assistant wrote is proven for every row from the template's
    own execution; a row for which that cannot be done is refused with the reason.

    \b
    datakit format shards/ -o ready/ --tokenizer Qwen/Qwen2.5-0.5B-Instruct --max-length 4096
    datakit format prefs/ -o ready/ --tokenizer ./model --for dpo --max-length 2048 --truncation per_part
    """
    launch.start_ahead(launch.workers(options["workers"]), arrays=True, tokenizer=_local(options["tokenizer"]))
    with _progress("formatting", options["inputs"], ()) as progress:
        report = datakit.format(**options, progress=progress)
    from datakit import tokenview

    _done(report, as_json, tokenview.formatted)


@main.command(epilog=EPILOG)
@_inputs
@_options(_tokenizer, _for, _template, _train_on)
@click.option("--control-tokens", type=click.Choice(["error", "escape", "quarantine", "allow"]), default="allow", show_default=True, help="As in `format`.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, metavar="N", help="Rows per batch, for the share of padding.")  # fmt: skip
@_options(_severity, _workers, _json)
def lengths(as_json: bool, **options: Any) -> None:
    """How long rows are in tokens, before a length is chosen.

    \b
    datakit lengths shards/ --tokenizer Qwen/Qwen2.5-0.5B-Instruct
    """
    launch.start_ahead(launch.workers(options["workers"]), arrays=True, tokenizer=_local(options["tokenizer"]))
    with _progress("measuring", options["inputs"], ()) as progress:
        report = datakit.lengths(**options, progress=progress)
    from datakit import tokenview

    _done(report, as_json, tokenview.lengths)


@main.command(epilog=EPILOG)
@click.argument("folder", metavar="DIR")
@click.option("--row", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Its number, from 0.")
@click.option("--split", metavar="NAME", help="Of this split.")
@click.option("--tokenizer", metavar="PATH", help="Where the tokenizer is now, if not where it was.")
@_json
def show(as_json: bool, **options: Any) -> None:
    """Show one formatted row: what is trained, what is masked, and the special tokens.

    \b
    datakit show ready/ --row 17
    """
    from datakit import tokenview

    _done(datakit.show(**options), as_json, tokenview.row)
