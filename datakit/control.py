"""Control tokens inside data: text that a tokenizer would read as the end of a turn or the start of another.

`<|im_end|>` in a user's text becomes the real token in the rendered conversation, so data can close its own turn and
open one with another role. The tokens looked for are the tokenizer's special ones, its other added tokens that the
template prints, and the well-known ones of other families, which a later template may read. They are looked for in
every text and every key of a row.

A search through the stored JSON of a whole block says first that there is nothing to find; it is the cheap part. Only a
row with a hit is looked at text by text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

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


class ControlTokens:
    """The control tokens of one tokenizer and template.

    Args:
        special: special tokens of the tokenizer.
        added: its other added tokens.
        template: the chat template; added tokens count where it prints them.
    """

    def __init__(self, special: Iterable[str], added: Iterable[str], template: str) -> None:
        printed = {token for token in added if token in template}
        self.tokens = tuple(
            sorted({t for t in {*special, *printed, *KNOWN} if len(t.strip()) > 1}, key=len, reverse=True)
        )
        self._text = re.compile("|".join(map(re.escape, self.tokens)) or "(?!)")
        by_first: dict[str, list[str]] = {}
        for token in self.tokens:
            by_first.setdefault(token[0], []).append(token)
        # a pattern that begins with one fixed character is searched for at the speed of memchr
        self._quick = [
            re.compile(re.escape(first.encode()) + b"(?:" + b"|".join(re.escape(t[1:].encode()) for t in tokens) + b")")
            for first, tokens in by_first.items()
        ]

    def may_hold(self, data: bytes | memoryview) -> bool:
        """Whether stored JSON holds a control token somewhere."""
        return any(pattern.search(data) for pattern in self._quick)

    def found(self, value: Any, path: str = "") -> Iterator[tuple[str, str]]:
        """(place, token) for every text and key of a JSON value that holds one."""
        if isinstance(value, str):
            if match := self._text.search(value):
                yield path, match.group()
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from self.found(key, f"{path} (key)")
                yield from self.found(item, f"{path}.{key}" if path else str(key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.found(item, f"{path}[{index}]")

    def escaped(self, value: Any) -> Any:
        """The same JSON value with a backslash behind the first character of every control token: `<\\|im_end|>`."""
        if isinstance(value, str):
            return self._text.sub(lambda match: match[0][0] + ESCAPE + match[0][1:], value)
        if isinstance(value, Mapping):
            return {self.escaped(key): self.escaped(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.escaped(item) for item in value]
        return value
