"""Roles and turns. Severities follow what trainers can use, not what is tidy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from datakit.checks.declare import Check, Row, Seen
from datakit.messages import Message

CHATS: Final = ("sft", "preference", "kto", "trajectory")

BLANK: Final = "".join(map(chr, (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0xAD, 0x1680, 0x180E, *range(0x2000, 0x2010),
                                 0x2028, 0x2029, 0x202F, *range(0x205F, 0x2065), 0x2800, 0x3000, 0x3164, 0xFEFF)))  # fmt: skip
"""White space, and characters that show nothing."""


def last_not_assistant(roles: str) -> Iterator[tuple[int, str]]:
    if roles and roles[-1] != "a" and "a" in roles:
        yield len(roles) - 1, "the last turns have no answer, so they are not trained"


def no_assistant(roles: str) -> Iterator[tuple[int, str]]:
    if "a" not in roles:
        yield -1, "no assistant turn, so there is nothing to train"


def system_misplaced(roles: str) -> Iterator[tuple[int, str]]:
    for match in re.finditer("[sd]", roles[1:]):
        if roles[: match.start() + 2] != "sd":
            yield match.start() + 1, "a system message after the start"


def same_role_twice(roles: str) -> Iterator[tuple[int, str]]:
    for match in re.finditer("(?<=u)u|(?<=a)a", roles):
        yield match.start(), "the role of the turn before again"


def assistant_first(roles: str) -> Iterator[tuple[int, str]]:
    if roles.lstrip("sd").startswith("a"):
        yield len(roles) - len(roles.lstrip("sd")), "the first turn is the assistant's"


def many_turns(roles: str) -> Iterator[tuple[int, str]]:
    if len(roles) > 500:
        yield -1, f"{len(roles)} turns"


def is_empty(message: Message) -> bool:
    content = message.get("content")
    if isinstance(content, str):
        return not content.strip(BLANK)
    if isinstance(content, list):
        return all(part.get("type") == "text" and not str(part.get("text", "")).strip(BLANK) for part in content)
    return True


def empty_turn(message: Message) -> Seen:
    if message["role"] in ("user", "assistant") and is_empty(message):
        if not (message.keys() & {"tool_calls", "refusal"}) and not message.get("reasoning_content"):
            yield "", f"an empty {message['role']} turn"


def empty_system(message: Message) -> Seen:
    if message["role"] in ("system", "developer") and is_empty(message):
        yield "", f"an empty {message['role']} message"


def weight_invalid(message: Message) -> Seen:
    weight = message.get("weight")
    if weight is not None and not 0 <= weight <= 1:
        yield ".weight", f"{weight} is not between 0 and 1"


def weight_elsewhere(message: Message) -> Seen:
    if message["role"] != "assistant" and message.get("weight"):
        yield ".weight", f"a {message['role']} turn with weight {message['weight']}"


def nothing_weighted(record: Row, rest: Row) -> Seen:
    column = "messages" if "messages" in record else "completion"
    answers = [m for m in record[column] if m["role"] == "assistant"]
    if answers and all(m.get("weight") == 0 for m in answers):
        yield column, "every assistant turn has weight 0, so nothing is trained"


def reasoning_inconsistent(message: Message) -> Seen:
    content = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, str):
        return
    opened, closed = content.count("<think>"), content.count("</think>")
    if opened != closed:
        yield ".content", f"{opened} <think> and {closed} </think>"
    elif opened and content.index("</think>") < content.index("<think>"):
        yield ".content", "</think> before <think>"
    elif opened and message.get("reasoning_content"):
        yield ".content", "reasoning both in the text and in reasoning_content"
    elif opened and not content.rpartition("</think>")[2].strip(BLANK) and "tool_calls" not in message:
        yield ".content", "reasoning without an answer"


TURNS: Final = (
    Check("DK201", "role-unknown", "error", "Every role is one that the format knows.", "Correct the word in the file; where it is your own, name it under [roles] in a --map file (docs/add-a-format.md)."),
    Check("DK202", "last-not-assistant", "warning", "A conversation ends on an assistant turn.", "Nothing if it is meant; the last turn is only not trained.", "roles", last_not_assistant, ("sft", "trajectory")),
    Check("DK203", "no-assistant", "error", "A conversation has an assistant turn to train.", "Remove the row, or convert --to prompt.", "roles", no_assistant, CHATS, raised=True),
    Check("DK204", "system-misplaced", "warning", "A system message stands at the start, once.", "Some chat templates refuse such rows; move the text into a user turn.", "roles", system_misplaced),
    Check("DK205", "consecutive-same-role", "warning", "User and assistant turns alternate.", "Some chat templates refuse such rows; merge the turns.", "roles", same_role_twice),
    Check("DK206", "assistant-first", "warning", "The first turn is not the assistant's.", "Some chat templates refuse such rows; add the question.", "roles", assistant_first),
    Check("DK207", "empty-turn", "error", "A user or assistant turn has a text, a call or an image.", "Fill or remove the turn.", "message", empty_turn, raised=True),
    Check("DK208", "turn-count-outlier", "note", "A conversation has at most 500 turns.", "Look whether conversations were joined by mistake.", "roles", many_turns),
    Check("DK209", "weight-invalid", "error", "A weight is a number between 0 and 1.", "Repair the weight.", "message", weight_invalid, raised=True),
    Check("DK210", "reasoning-inconsistent", "warning", "<think> is closed, and an answer follows it.", "Repair the text, or bring it to one form with --reasoning.", "message", reasoning_inconsistent),
    Check("DK211", "system-conflict", "error", "A system column and a first system message agree.", "Remove one of the two."),
    Check("DK212", "empty-system", "warning", "A system message has a text.", "Remove the message.", "message", empty_system),
    Check("DK213", "weight-elsewhere", "warning", "Only assistant turns have a weight above 0.", "Set it to 0 unless other turns are to be trained.", "message", weight_elsewhere),
    Check("DK214", "nothing-weighted", "error", "Some assistant turn has a weight above 0.", "Remove the row or raise a weight.", "odd", nothing_weighted, ("sft", "trajectory")),
    Check("DK215", "reasoning-not-inlined", "warning", "Every reasoning_content can be written as <think> text and read back.", "Nothing; such messages stay as they are."),
)  # fmt: skip
