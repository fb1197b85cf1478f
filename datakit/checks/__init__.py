"""The registry of checks, and the one function that runs those of a row.

The roles of a conversation are turned into a short text such as `suaua`; what is wrong with a sequence of roles is
computed once per distinct text. Messages that are a role and a plain text pass without any check of their own. So the
cost of a clean row is one loop over its messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from datakit.checks.cleaning import CLEANING
from datakit.checks.content import CONTENT
from datakit.checks.declare import Check
from datakit.checks.formatting import FORMATTING
from datakit.checks.kto import KTO
from datakit.checks.mixing import MIXING
from datakit.checks.pairing import PAIRING
from datakit.checks.preference import PREFERENCE
from datakit.checks.structure import MEDIA, PROMPT, STRUCTURE
from datakit.checks.tools import TOOLS
from datakit.checks.turns import TURNS
from datakit.errors import UsageError
from datakit.findings import SEVERITIES, Finding
from datakit.messages import Message
from datakit.schema import Layout

CHECKS: Final[Mapping[str, Check]] = {
    check.id: check
    for check in (*STRUCTURE, *TURNS, *TOOLS, *PREFERENCE, *KTO, *CONTENT, *FORMATTING, *CLEANING, *PAIRING, *MIXING)
}

ENOUGH: Final = 10
"""Findings of one check about the roles of one conversation that are kept."""

LETTER: Final = {"system": "s", "developer": "d", "user": "u", "assistant": "a", "tool": "t"}


def find(name: str) -> Check:
    """A check by id or name.

    Raises:
        UsageError: there is no such check.
    """
    for check in CHECKS.values():
        if name.upper() == check.id or name.lower() == check.name:
            return check
    raise UsageError(f"no check named {name!r}", "`datakit checks` lists them.")


def severities(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The severity of every check, with the changes that a user asked for; `off` silences one.

    Raises:
        UsageError: a change names no check or no severity.
    """
    result: dict[str, str] = {check.id: check.severity for check in CHECKS.values()}
    for name, severity in (changes or {}).items():
        if severity not in (*SEVERITIES, "off"):
            raise UsageError(f"--severity {name}={severity}", f"A severity is one of {', '.join(SEVERITIES)}, off.")
        check = find(name)
        if check.stays and severity != "error":
            raise UsageError(
                f"--severity {name}={severity}", f"{check.id} rows cannot be carried on, so it stays an error."
            )
        result[check.id] = severity
    return result


def _applies(check: Check, kind: str) -> bool:
    return not check.kinds or kind in check.kinds


@lru_cache(maxsize=64)
def _of(on: str, kind: str) -> tuple[Check, ...]:
    return tuple(check for check in CHECKS.values() if check.on == on and _applies(check, kind))


@lru_cache(maxsize=4096)
def check_roles(roles: str, kind: str) -> tuple[tuple[str, int, str], ...]:
    return tuple(
        (check.id, index, note) for check in _of("roles", kind) for index, note in islice(check.run(roles), ENOUGH)
    )


def _scan(messages: list[Message]) -> tuple[str, list[int], bool]:
    """The letters of the roles, the messages that need a look of their own, and whether tools play a part."""
    roles, odd, tools = "", [], False
    for index, message in enumerate(messages):
        letter = LETTER[message["role"]]
        roles += letter
        content = message.get("content")
        if len(message) == 2 and type(content) is str and content and "!" <= content[0] < "\u00a0" and letter != "t":
            if letter != "a" or "think>" not in content:
                continue
        tools = tools or letter == "t" or "tool_calls" in message
        odd.append(index)
    return roles, odd, tools


@lru_cache(maxsize=32)
def _message_columns(layout: Layout) -> tuple[str, ...]:
    return tuple(column.name for column in layout.columns if column.type == "messages")


def _conversations(layout: Layout, record: Mapping[str, Any]) -> list[list[tuple[str, list[Message]]]]:
    """The conversations of a row, each as (column, messages) pieces in order."""
    if not layout.conversational:
        return []
    if layout.kind == "preference":
        prompt = [("prompt", record["prompt"])] if "prompt" in record else []
        return [[*prompt, (side, record[side])] for side in ("chosen", "rejected")]
    if layout.kind == "ranked":
        prompt = [("prompt", record["prompt"])]
        return [[*prompt, (f"completions[{i}]", answer)] for i, answer in enumerate(record["completions"])]
    return [[(column, record[column]) for column in _message_columns(layout)]]


def check_row(layout: Layout, record: Mapping[str, Any], rest: Mapping[str, Any], notes: list[Finding]) -> None:
    """Run the checks of one row; findings are added to `notes`.

    Args:
        layout: kind and form of the row.
        record: its trainer columns.
        rest: what no column took.
    """
    kind = layout.kind
    tools = record.get("tools")
    looked_at: set[int] = set()  # messages of a prompt that two answers share
    said: set[Finding] = set()  # about such messages
    any_odd = False
    for pieces in _conversations(layout, record):
        messages = pieces[0][1] if len(pieces) == 1 else [message for _, piece in pieces for message in piece]
        roles, odd, has_tools = _scan(messages)
        if not roles:
            _add(notes, said, Finding("DK106", pieces[0][0], "no messages"))
        for check_id, index, note in check_roles(roles, kind):
            _add(notes, said, Finding(check_id, "" if index < 0 else _path(pieces, index), note))
        any_odd = any_odd or bool(odd)
        for index in odd:
            message = messages[index]
            if id(message) in looked_at:
                continue
            looked_at.add(id(message))
            for check in _of("message", kind):
                for tail, note in check.run(message):
                    notes.append(Finding(check.id, _path(pieces, index) + tail, note))
        if tools or has_tools:
            for check in _of("tools", kind):
                for tail, note in check.run(tools, messages):
                    path = tail if tail.startswith("tools") else _joined(pieces, tail)
                    _add(notes, said, Finding(check.id, path, note))
    run = _of("row", kind)
    if not layout.conversational:
        run += _of("texts", kind)
    if any_odd:
        run += _of("odd", kind)
    if "images" in record or (rest and not MEDIA.isdisjoint(rest)):
        run += _of("media", kind)
    if not (PROMPT.isdisjoint(record) and PROMPT.isdisjoint(rest)):
        run += _of("left", kind)
    for check in run:
        for path, note in check.run(record, rest):
            notes.append(Finding(check.id, path, note))


def _add(notes: list[Finding], said: set[Finding], finding: Finding) -> None:
    """Add a finding that two conversations of one row may share."""
    if finding not in said:
        said.add(finding)
        notes.append(finding)


def _path(pieces: list[tuple[str, list[Message]]], index: int) -> str:
    for name, messages in pieces:
        if index < len(messages):
            return f"{name}[{index}]"
        index -= len(messages)
    return ""


def _joined(pieces: list[tuple[str, list[Message]]], tail: str) -> str:
    number, _, after = tail[1:].partition("]")
    return _path(pieces, int(number)) + after
