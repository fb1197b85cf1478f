"""The short way of the commonest rows: a conversation whose turns are a known role and a text, and nothing to say.

Nine rows of ten in the wild are of this kind. Whether a row is one is decided by a handful of operations over all its
turns at once; any doubt sends it the long way, through `normalise` and `check_row`, which would give it the same
messages and no finding (tests/test_plain.py holds the two ways together).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

from datakit.checks import CHECKS, LETTER, check_roles
from datakit.checks.structure import MEDIA, PROMPT
from datakit.checks.turns import BLANK
from datakit.formats.declare import Format, Row
from datakit.messages import Message
from datakit.reading.rows import all_keys_kept

_TEXT: Final = {str}

Reader = Callable[[Row, bytes, bool, bool], list[Message] | None]
"""From a raw row to its messages, which are taken out of the row; None, and an untouched row, where there is doubt.

With the row come its text, if it was read from one and `check_keys` has not seen it; whether that text may escape
colons; and whether it may hold a `<think>` tag: one search through a whole block is cheaper than one per text.
"""


def reader(format: Format, kind: str) -> Reader | None:
    """The reader of plain rows of a format, or None where its rows are never plain."""
    simple = format.slot_of and not (format.parse or format.group or format.expand or format.copies)
    only_messages = [column.name for column in format.layout.columns] == ["messages"] == list(format.starts)
    checked = any(check.on == "row" and (not check.kinds or kind in check.kinds) for check in CHECKS.values())
    if not simple or not only_messages or "assistant" in format.columns or checked:
        return None
    column = format.columns["messages"]
    beside = (format.taken | MEDIA | PROMPT) - {column}
    role_of, text_of = itemgetter(format.turn.role), itemgetter(format.turn.content)
    first_of, words = itemgetter(0), format.turn.plain
    shows_nothing = frozenset(BLANK)

    def read(row: Row, data: bytes, escapes: bool, tags: bool) -> list[Message] | None:
        if not beside.isdisjoint(row):
            return None
        turns: Any = row.get(column)
        try:
            texts = list(map(text_of, turns))
            if set(map(type, texts)) != _TEXT or sum(map(len, turns)) != 2 * len(texts) or type(turns) is not list:
                return None
            roles = [words[role_of(turn)] for turn in turns]
        except (KeyError, TypeError):
            return None
        if "" in texts or not shows_nothing.isdisjoint(map(first_of, texts)) or not _fine(tuple(roles), kind):
            return None
        if tags and "think>" in "".join(texts):
            return None
        if data and not all_keys_kept(row, turns, texts, data, escapes):
            return None
        del row[column]
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]

    return read


@lru_cache(maxsize=4096)
def _fine(roles: tuple[str, ...], kind: str) -> bool:
    """Whether no check has anything to say about a sequence of roles."""
    return not check_roles("".join(LETTER[role] for role in roles), kind)
