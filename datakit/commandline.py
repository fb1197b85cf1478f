"""What every command line of this project shares: errors as one message and an exit code, signals, and JSON."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
import orjson

from datakit import startup
from datakit.errors import CannotJudge, DatakitError, InternalError, UsageError
from datakit.terminal import safe

if TYPE_CHECKING:
    from datakit.report import Report

as_json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on stdout (schemas/report.json)."
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
