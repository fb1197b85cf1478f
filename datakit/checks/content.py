"""Content that was damaged on its way: text decoded wrongly, and control characters.

These look at the encoded columns of a whole batch: a few substring searches over megabytes say that nothing is there,
and only a hit is traced to its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from datakit.checks.declare import Check

# UTF-8 read as Latin-1 or Windows-1252: a lead byte shown as a letter, then a continuation byte shown as a sign.
_MOJIBAKE: Final = re.compile("Ã[\u0080-\u00bf]|Â[\u0080-\u00bf]|â€[\u0080-\u00bf™œ“”˜¦]|â\u0080[\u0080-\u00bf]|ï¿½|\ufffd")
_MOJIBAKE_BYTES: Final = tuple(x.encode() for x in ("Ã", "Â", "â", "ï¿½", "\ufffd"))

# JSON escapes of control characters other than tab, line feed and carriage return, as orjson writes them.
_CONTROL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u00[01][0-9a-f]|\x7f")
_CONTROL_BYTES: Final = (b"\\u00", b"\x7f")


def damaged(rows: Sequence[bytes]) -> Iterator[tuple[int, str, str]]:
    """(row, check id, note) for every damaged row of one encoded column."""
    whole = b"".join(rows)
    if not whole.isascii() and any(needle in whole for needle in _MOJIBAKE_BYTES):
        for index, row in enumerate(rows):
            if any(needle in row for needle in _MOJIBAKE_BYTES):
                found = _MOJIBAKE.findall(row.decode())
                if found:
                    yield index, "DK901", f"{len(found)} places such as {found[0]!r}"
    if any(needle in whole for needle in _CONTROL_BYTES):
        for index, row in enumerate(rows):
            controls = _CONTROL.findall(row)
            if controls:
                yield index, "DK909", f"{len(controls)} control characters such as {controls[0].decode()!r}"


CONTENT: Final = (
    Check("DK711", "tokenised-integrity", "error", "The lists of a tokenised row have one length.", "Tokenise the row again.", kinds=("tokenized",)),
    Check("DK801", "exact-duplicate", "warning", "No two rows have the same content.", "Remove the copies, or keep them on purpose.", "set"),
    Check("DK901", "mojibake", "warning", "Text was decoded with the right encoding.", "Repair the text, for example with ftfy, and convert again."),
    Check("DK909", "control-character", "warning", "Text has no control characters but tabs and line breaks.", "Remove them."),
)  # fmt: skip
