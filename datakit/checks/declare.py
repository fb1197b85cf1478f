"""What a check is: an id that never changes its meaning, a severity, one line of rule, a way out, and a function.

`on` says what the function looks at, and with that how often it runs:

    read      the readers and the normaliser raise it; no function
    roles     the roles of a conversation as letters (`suat`: system, user, assistant, tool; d: developer); cached
    message   one message that is more than a role and a plain text
    tools     tool definitions and calls; only where a row has some
    row       the trainer columns of one row
    texts     the same, but only where they are texts or tokens instead of messages
    odd       the same, but only where a message is more than a role and a plain text
    media     the same, but only where the row has images, audio or video
    left      the same, but only where a column was left over that may be a part of the prompt
    format    `datakit format` raises it where rows are rendered and tokenised; no function
    set       the counts over all rows; such a finding rejects no row
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from datakit.findings import Severity
from datakit.messages import Message
from datakit.schema import Kind

Seen = Iterable[tuple[str, str]]
"""(path inside the thing looked at, what was found)"""

Row = Mapping[str, Any]
On = Literal["read", "roles", "message", "tools", "row", "texts", "odd", "media", "left", "format", "set"]

RolesCheck = Callable[[str], Iterable[tuple[int, str]]]
MessageCheck = Callable[[Message], Seen]
ToolsCheck = Callable[[list[dict[str, Any]] | None, list[Message]], Seen]
RowCheck = Callable[[Row, Row], Seen]
"""Called with the trainer columns and with what no column took."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check. See the module for `on`; `run` has the type that goes with it."""

    id: str
    name: str
    severity: Severity
    rule: str
    fix: str
    on: On = "read"
    run: Any = None
    kinds: tuple[Kind, ...] = ()
    """The kinds it applies to; empty for all."""
    raised: bool = False
    """Whether readers raise it too, where a row cannot be carried on; such an error stays one."""

    @property
    def stays(self) -> bool:
        """Whether it is an error whatever a user asks for."""
        return self.severity == "error" and (self.on == "read" or self.raised)
