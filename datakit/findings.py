"""A finding: one thing seen in the data, as a value. A row with a finding of severity error is a bad row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")


MISSING: Final = "missing or null"
"""The note of a column without a value, where no more is known."""


class Finding(NamedTuple):
    """What a check or a reader saw in one row.

    Attributes:
        id: the check, such as `DK302`; see `datakit checks`.
        path: where in the row, such as `messages[2].tool_calls[0]`; empty for the row as a whole.
        note: what was found, in few words, as plain text.
    """

    id: str
    path: str
    note: str


class BadRow(Exception):
    """Raised inside the normaliser where a row cannot be carried on; it becomes a finding at once."""

    def __init__(self, id: str, path: str, note: str) -> None:
        super().__init__(id, path, note)
        self.finding = Finding(id, path, note)


def decisive(findings: Sequence[Finding], severities: Mapping[str, str]) -> Finding:
    """The finding for which a row is rejected: the last error, else the last of all."""
    return next((f for f in reversed(findings) if severities[f.id] == "error"), findings[-1])


def shown(value: object, limit: int = 60) -> str:
    """A short form of a value for a note: its type, and its text where that helps."""
    if isinstance(value, str):
        return repr(value if len(value) <= limit else value[: limit - 1] + "…")
    if isinstance(value, dict):
        keys = ", ".join(map(str, list(value)[:8]))
        return f"an object with keys {keys}" if keys else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{type(value).__name__} {value}"
