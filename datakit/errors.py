"""What can go wrong in the *use* of datakit. Bad data is never one of these: it is a finding in a report.

DatakitError             exit code, one sentence, and a hint with the next step
├── UsageError        2  the call or its configuration is wrong
├── CannotJudge       3  the input could not be read or understood, so nothing was judged
│   ├── UnreadableInput      missing, truncated, damaged or changed while it was read
│   ├── UnknownFormat        no declared format explains the rows
│   ├── AmbiguousFormat      two formats explain the rows equally well
│   └── NoManifest           a shard folder without a manifest that can be trusted
├── DataFailed        1  raised only by `Report.raise_for_status()`
├── NotWritten        4  the output could not be written; an older output is intact
├── Locked           75  another process writes the same output
└── InternalError    70  a broken promise of this program, such as a ledger that does not balance
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DatakitError(Exception):
    """Base of every error that datakit raises on purpose.

    Args:
        message: what happened, where, and what was found.
        hint: what to do next, as a full sentence or a command.
    """

    exit_code = 70

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(DatakitError):
    """The call, an option or a configuration file is wrong."""

    exit_code = 2


class CannotJudge(DatakitError):
    """The input could not be read to its end or understood.

    Attributes:
        path: the input, where it is one file or folder.
    """

    exit_code = 3
    path: str | None = None


class UnreadableInput(CannotJudge):
    """A file is missing, truncated, damaged, or changed while it was read."""


class UnknownFormat(CannotJudge):
    """No declared format explains the rows."""


class AmbiguousFormat(CannotJudge):
    """More than one format, or more than one kind, explains the rows equally well."""


class NoManifest(CannotJudge):
    """A shard folder has no manifest, or one that does not match its own hash."""


class DataFailed(DatakitError):
    """The data was judged completely and failed."""

    exit_code = 1


class NotWritten(DatakitError):
    """The output could not be written; an output that was there before is intact."""

    exit_code = 4


class Locked(DatakitError):
    """Another process is writing the same output."""

    exit_code = 75


class InternalError(DatakitError):
    """A promise of this program does not hold. Nothing is committed when this is raised."""

    exit_code = 70


@contextmanager
def one_of_inputs(path: str, others: int) -> Iterator[None]:
    """While one input is read: an error names it, and says that it ended the judgement of the others.

    Args:
        others: how many other inputs there are.
    """
    try:
        yield
    except CannotJudge as error:
        if error.path is None:
            error.path = path
            if others:
                left = f"The other {f'{others:,} inputs were' if others > 1 else 'input was'} not judged"
                way = "to go on without this one, name only the others, or move it out of the folder."
                error.hint = f"{error.hint}\n{left}; {way}".lstrip("\n")
        raise
