"""Words for people. Text from data on a terminal: `safe` shows what could move the cursor, hide text or forge a line.

Neither `rich.Text` nor `click.echo` removes escape sequences, so every string that stems from data, file names
included, passes here once before it is printed.
"""

from __future__ import annotations

import re
from typing import Final

# C0 and C1 controls, DEL, zero-width and bidirectional marks, line and paragraph separators, surrogates, BOM.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def plural(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _shown(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def first_line(error: object) -> str:
    """The first line of what an error says; empty where it says nothing."""
    return next(iter(str(error).splitlines()), "")


def safe(text: object, limit: int = 200) -> str:
    """`text` on one line with every control character spelled out, and at most `limit` characters of it."""
    shown = _UNSAFE.sub(_shown, str(text)[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
