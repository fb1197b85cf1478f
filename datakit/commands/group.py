"""What all commands share: errors and exit codes, options that several have, progress, and how a report is shown."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
import orjson

import datakit
from datakit import startup
from datakit.errors import CannotJudge, DatakitError, InternalError, UsageError
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
    """Turns errors into one message on stderr, one JSON object on stdout where asked for, and an exit code.

    Attributes:
        interrupted: what is said after a signal.
        program: its name.
        defect: what to do about an exception that nobody has foreseen.
    """

    interrupted = "interrupted; run the same command again to go on"
    defect = "Please report this."
    program = "datakit"

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        startup.collect_rarely()
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
            code = _fail(UsageError(error.format_message(), self._hint(error)), arguments)
        except Interrupted as error:
            click.echo(self.interrupted, err=True)
            code = error.exit_code
        except BrokenPipeError:
            sys.stderr.close()
            code = 0
        except DatakitError as error:
            code = _fail(error, arguments)
        except Exception as error:  # a defect of ours, told as such
            import traceback

            click.echo(safe(traceback.format_exc(), 4000).replace("\\x0a", "\n"), err=True)
            code = _fail(InternalError(f"{type(error).__name__}: {error}", self.defect), arguments)
        sys.exit(code if isinstance(code, int) else 0)

    def _hint(self, error: click.ClickException) -> str:
        context = getattr(error, "ctx", None)
        return f"Try: {context.command_path if context is not None else self.program} --help"


def _fail(error: DatakitError, arguments: list[str]) -> int:
    from datakit import screen
    from datakit.report import Report

    if "--json" in arguments:
        report = Report(next((a for a in arguments if not a.startswith("-")), "datakit"), exit_code=error.exit_code)
        path = error.path if isinstance(error, CannotJudge) else None
        report.error = {"type": type(error).__name__, "path": path, "message": error.message, "hint": error.hint}
        report.verdict = "not judged"
        print_json(report.to_json())
    screen.error(error)
    return error.exit_code


def print_json(value: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


def done(report: Report, as_json: bool, show: Callable[[Report], None] | None = None) -> None:
    from datakit import screen

    if as_json:
        print_json(report.to_json())
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

as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on stdout (schemas/report.json)."
)
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
