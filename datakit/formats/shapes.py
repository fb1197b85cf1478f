"""Shapes of values: the small vocabulary in which formats say what their columns hold.

Detection looks at values, never at column names alone: `conversations` may hold from/value or role/content turns, and
`chosen` a text, an answer or a whole conversation. A shape's weight says how much evidence it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import orjson

from datakit.messages import ROLE_WORDS

MARKERS: Final = {
    "chatml": re.compile(r"<\|im_start\|>\w+\n"),
    "llama-3": re.compile(r"<\|start_header_id\|>\w+<\|end_header_id\|>"),
    "llama-2": re.compile(r"\[INST\].*\[/INST\]", re.S),
    "gemma": re.compile(r"<start_of_turn>(user|model)\n"),
    "phi": re.compile(r"<\|user\|>.*<\|assistant\|>", re.S),
    "alpaca": re.compile(r"### Instruction:.*### Response:", re.S),
}


def rendered_as(text: str) -> str | None:
    """The chat template whose markers a text carries, if any."""
    return next((name for name, marker in MARKERS.items() if marker.search(text)), None)


def _turn_list(value: object, *keys: str) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) for turn in value)
        and all(key in value[0] for key in keys)
    )


def is_chat(value: object) -> bool:
    """A list of role/content turns; a turn with tool calls may lack its content."""
    return _turn_list(value, "role") and all(
        "role" in turn and ("content" in turn or "tool_calls" in turn or "function_call" in turn)
        for turn in value  # type: ignore[attr-defined]
    )


def _role_of(value: object, index: int) -> str | None:
    if not isinstance(value, list) or not value or not isinstance(value[index], dict):
        return None
    word = value[index].get("role", value[index].get("from"))
    return ROLE_WORDS.get(word) if isinstance(word, str) else None


def _parts(value: object, wanted: Callable[[dict[str, Any]], bool]) -> bool:
    """Whether some content part of some turn is as wanted."""
    if not isinstance(value, list):
        return False
    contents = (turn.get("content") for turn in value if isinstance(turn, dict))
    return any(isinstance(p, dict) and wanted(p) for c in contents if isinstance(c, list) for p in c)


def _any_key(value: object, *keys: str) -> bool:
    return isinstance(value, list) and any(isinstance(t, dict) and any(k in t for k in keys) for t in value)


def is_turns(value: object) -> bool:
    return _turn_list(value, "from", "value")


def is_dialog(value: object) -> bool:
    return is_chat(value) or is_turns(value)


def is_message(value: object) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def is_flag(value: object) -> bool:
    words = ("true", "false", "0", "1")
    return isinstance(value, bool) or value in (0, 1) or (isinstance(value, str) and value.lower() in words)


def is_verdict(value: object) -> bool:
    """A short final answer to compare with, rather than a text to learn: a number, a letter, or GSM8K's ####."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return True
    if not isinstance(value, str):
        return False
    return "####" in value or re.fullmatch(r"\(?[A-Za-z]\)?|[-+$]?[\d.,/]+ ?\S{0,8}", value.strip()) is not None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list_of(kind: type) -> Callable[[object], bool]:
    return lambda v: isinstance(v, list) and bool(v) and all(isinstance(x, kind) for x in v)


def _transcript(value: object) -> bool:
    return isinstance(value, str) and "\n\nHuman:" in value and "\n\nAssistant:" in value


SHAPES: Final[dict[str, tuple[int, Callable[[object], bool]]]] = {
    "any": (1, lambda v: True),
    "given": (1, lambda v: v is not None),
    "text": (1, lambda v: isinstance(v, str)),
    "number": (1, _number),
    "id": (1, lambda v: isinstance(v, int | str) and not isinstance(v, bool)),
    "flag": (1, is_flag),
    "object": (1, lambda v: isinstance(v, dict)),
    "list": (1, lambda v: isinstance(v, list)),
    "texts": (2, _is_list_of(str)),
    "ids": (2, _is_list_of(int)),
    "flags": (2, lambda v: isinstance(v, list) and bool(v) and all(is_flag(x) for x in v)),
    "objects": (2, _is_list_of(dict)),
    "json": (1, lambda v: v is None or isinstance(v, str | list | dict)),
    "json list": (2, lambda v: isinstance(v, str) and v.lstrip()[:1] == "[" and _is_json(v)),
    "chat": (2, is_chat),
    "turns": (2, is_turns),
    "dialog": (2, is_dialog),
    "message": (2, is_message),
    "answer": (3, lambda v: is_dialog(v) and _role_of(v, 0) == "assistant"),
    "whole": (3, lambda v: is_dialog(v) and _role_of(v, 0) not in (None, "assistant") and _role_of(v, -1) is not None),
    "pairs": (3, lambda v: _turn_list(v, "human", "assistant")),
    "item list": (3, lambda v: _turn_list(v) and all("type" in t or "role" in t for t in v)),  # type: ignore[attr-defined]
    "gemini turns": (3, lambda v: _turn_list(v, "parts")),
    "message turns": (3, lambda v: _turn_list(v, "role", "message")),
    "transcript": (3, _transcript),
    "open transcript": (3, lambda v: isinstance(v, str) and "\n\nHuman:" in v and v.rstrip().endswith("Assistant:")),
    "rendered": (2, lambda v: isinstance(v, str) and rendered_as(v) is not None),
    "verdict": (1, is_verdict),
    # marks: what some row must show for a dialect to be considered
    "value parts": (1, lambda v: _parts(v, lambda p: "type" in p and "value" in p)),
    "blocks": (1, lambda v: _parts(v, lambda p: p.get("type") in ("tool_use", "tool_result", "thinking"))),
    "channels": (1, lambda v: _any_key(v, "channel", "recipient")),
    "stack calls": (
        1,
        lambda v: (
            isinstance(v, list)
            and any(
                isinstance(c, dict) and "tool_name" in c
                for t in v
                if isinstance(t, dict)
                for c in (t.get("tool_calls") or [])
            )
        ),
    ),
}


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def fits(value: object, shape: str) -> bool:
    """Whether a value has a shape; `"a|b"` means either."""
    return any(SHAPES[name][1](value) for name in shape.split("|"))


def weight(shape: str) -> int:
    return max(SHAPES[name][0] for name in shape.split("|"))
