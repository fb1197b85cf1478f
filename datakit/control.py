"""Control tokens inside data: text that a tokenizer would read as the end of a turn or the start of another.

`<|im_end|>` in a user's text becomes the real token in the rendered conversation, so data can close its own turn and
open one with another role. The tokens looked for are the tokenizer's special ones, its other added tokens that the
template prints, and the well-known ones of other families, which a later template may read. They are looked for in
every text and every key of a row.

The tags of a thought are the assistant's own in its own text: there they are neither found nor escaped.

A search through the stored JSON of a whole block says first that there is nothing to find; it is the cheap part. Only a
row with a hit is looked at text by text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from orjson import dumps

KNOWN: Final = (
    "<|im_start|> <|im_end|> <|im_sep|> <|endoftext|> <|eot_id|> <|eom_id|> <|start_header_id|> <|end_header_id|> "
    "<|begin_of_text|> <|end_of_text|> <start_of_turn> <end_of_turn> [INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] "
    "[/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] <|start|> <|end|> <|message|> "
    "<|channel|> <|return|> <|call|> <|user|> <|assistant|> <|system|> <|observation|> <｜User｜> <｜Assistant｜> "
    "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|tool_call|>"
).split()
"""Control tokens of common families."""

ESCAPE: Final = "\\"
"""What `escape` puts behind the first character of a control token."""

THOUGHT: Final = frozenset({"<think>", "</think>"})
"""Tags that an assistant writes itself."""

ANSWERS: Final = frozenset({"completion", "completions", "chosen", "rejected"})
"""Columns whose plain texts are the assistant's."""

Visit = Callable[[str, str, re.Pattern[str]], str]
"""Given a text, its place and the tokens looked for, what becomes of the text."""


class ControlTokens:
    """The control tokens of one tokenizer and template.

    Args:
        special: special tokens of the tokenizer.
        added: its other added tokens.
        template: the chat template; added tokens count where it prints them.
    """

    def __init__(self, special: Iterable[str], added: Iterable[str], template: str) -> None:
        printed = {token for token in added if token in template}
        known = {token for token in {*special, *printed, *KNOWN} if len(token.strip()) > 1}
        self.tokens = tuple(sorted(known, key=lambda token: (-len(token), token)))
        self._all = _any(self.tokens)
        self._foreign = _any([token for token in self.tokens if token not in THOUGHT])
        by_first: dict[bytes, set[bytes]] = {}
        for token in self.tokens:
            for form in (token.encode(), dumps(token)[1:-1]):  # as a text column holds it, and as JSON does
                by_first.setdefault(form[:1], set()).add(form[1:])
        self._quick = {
            first: re.compile(re.escape(first) + b"(?:" + b"|".join(map(re.escape, sorted(rests))) + b")")
            for first, rests in by_first.items()
        }

    def may_hold(self, data: bytes) -> bool:
        """Whether stored text or JSON holds a control token somewhere."""
        return any(_stands(first, pattern, data) for first, pattern in self._quick.items())

    def found(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(place, token) for every control token in the texts and keys of a row, once per text."""
        seen: list[tuple[str, str]] = []

        def note(text: str, path: str, tokens: re.Pattern[str]) -> str:
            seen.extend((path, token) for token in dict.fromkeys(tokens.findall(text)))
            return text

        self._row(record, note)
        return seen

    def escaped(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The same row with a backslash behind the first character of every control token: `<\\|im_end|>`."""
        return self._row(record, lambda text, _, tokens: tokens.sub(lambda m: m[0][0] + ESCAPE + m[0][1:], text))

    def _row(self, record: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
        return {name: self._column(value, name, visit) for name, value in record.items()}

    def _column(self, value: Any, name: str, visit: Visit) -> Any:
        if isinstance(value, list) and all(isinstance(item, Mapping) and "role" in item for item in value):
            return [self._message(message, f"{name}[{number}]", visit) for number, message in enumerate(value)]
        return _walk(value, name, self._foreign if name in ANSWERS else self._all, visit)

    def _message(self, message: Mapping[str, Any], path: str, visit: Visit) -> dict[str, Any]:
        own = message["role"] == "assistant"
        return {
            visit(key, f"{path} (key)", self._all): _walk(
                item, f"{path}.{key}", self._foreign if own and key == "content" else self._all, visit
            )
            for key, item in message.items()
        }


def _stands(first: bytes, pattern: re.Pattern[bytes], data: bytes) -> bool:
    """Whether a pattern that begins with this byte stands in the data; the byte alone is found ten times as fast."""
    at = data.find(first)
    for _ in range(len(data) >> 10):  # where it is frequent, the pattern is faster
        if at < 0 or pattern.match(data, at):
            break
        at = data.find(first, at + 1)
    return at >= 0 and pattern.search(data, at) is not None


def _any(tokens: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def _walk(value: Any, path: str, tokens: re.Pattern[str], visit: Visit) -> Any:
    """A JSON value with every text and key visited."""
    if isinstance(value, str):
        return visit(value, path, tokens)
    if isinstance(value, Mapping):
        return {
            visit(key, f"{path} (key)", tokens): _walk(item, f"{path}.{key}", tokens, visit)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_walk(item, f"{path}[{index}]", tokens, visit) for index, item in enumerate(value)]
    return value
