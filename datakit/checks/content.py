"""Content that was damaged on its way: text decoded wrongly, and control characters.

These look at the encoded columns of a whole batch: a few substring searches over megabytes say that nothing is there,
and only a hit is traced to its row.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import orjson

from datakit.checks.declare import Check
from datakit.terminal import plural

# UTF-8 read as Latin-1 or Windows-1252: a lead byte shown as a letter, then continuation bytes shown as signs. Some of
# these signs also follow a word that ends in such a letter, as in AMANHÃ» or HÂLÂ…, so a pair alone does not say it all.
_C1: Final = "\u0080-\u009f"
_HIGH: Final = f"{_C1}\u00a0-¿€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"  # bytes 80 to BF
_UPPER: Final = "A-ZÀ-ÖØ-ÞĐ"
_LETTER: Final = r"[^\W\d_]"
_MOJIBAKE: Final = re.compile(
    "|".join(
        (
            f"[Â-ß][{_C1}]|[à-ï](?:[{_C1}][{_HIGH}]|[{_HIGH}][{_C1}])",
            "Ã[¡-©¬¯±´-¶¸¼-¿€‚ƒ„‡ˆ‰ŠŒŽ˜šœžŸ]",  # é as Ã©, É as Ã‰
            f"(?<![{_UPPER}]{{2}})Ã[\u00a0ª\u00ad®°²³·¹º]",  # ê as Ãª
            f"(?<![{_UPPER}«»‹›“„])Ã[«»‹†]|Ã[»†](?=[a-zß-ÿ])",
            f"(?:Ã[‘“”•–™›]|(?<!{_LETTER})Ã’)(?={_LETTER})",  # Ö as Ã–
            f"(?<![{_UPPER}])Ã[…—](?=[a-zß-ÿ])",
            f"Â[\u00a0-ª¬-±´-¸º¼-¿]|(?<![{_UPPER}«»“„])Â[«»]",  # ° as Â°
            "(?<=[\\w)\\]])Â[¹²³]",  # but not the square of an operator Â
            f"â[€‚ƒ„‡ˆ‰Š‹ŒŽ˜™šœžŸ][{_HIGH}]|â†[‘’“”•–—˜™š›œžŸ]",  # ’ as â€™, → as â†’
            f"(?<!{_LETTER})â[…‘’“”•–—›][{_HIGH}]",
            f"áº[{_HIGH}]|á»[¢-©¬¯±´-¶¸¼-¾€‚ƒ„†‡ˆ‰Š‹ŒŽ˜™š›œžŸ]",  # ệ as á»‡
            "ð[\u009fŸ]",  # an emoji
            f"(?<=[a-z])[Â-ÖØ-Þ][{_HIGH}]|(?<!{_LETTER})[ÄÅ][¡-¿€‚ƒ„†‡ˆ‰Š‹ŒŽ˜™š›œžŸ](?=[a-z])",  # ł as Å‚
            f"(?:[Â-ß][{_HIGH}]|[à-ï][{_HIGH}]{{2}}|[ð-ô][{_HIGH}]{{3}}){{2}}",  # other alphabets
            "ï¿½|ï»¿|\ufffd",
        )
    )
)
_ANY_ESCAPE: Final = re.compile(r"\\(?:u[0-9a-f]{4}|.)")  # of JSON
# A letter that can stand for a lead byte before a sign that can stand for another byte, in UTF-8.
_SUSPECT: Final = re.compile(
    rb"\xc3[\x82-\xb4](?:\xc2|\xc5[\x92\x93\xa0\xa1\xb8\xbd\xbe]|\xc6\x92|\xcb[\x86\x9c]|\xe2[\x80\x82\x84])"
)
_REPLACED: Final = re.compile("\ufffd".encode())  # faster than `in`

# Control characters other than tab, line feed, carriage return and next line (U+0085). JSON escapes the first of them;
# a \b or \f is often what a LaTeX command such as \frac became.
_ESCAPED: Final = re.compile(rb"\\(?:u00[01][0-9a-f]|[bf])")
_RAW: Final = re.compile(rb"\xc2[\x80-\x84\x86-\x9f]")
_CONTROL: Final = re.compile(_ESCAPED.pattern + rb"|\x7f|" + _RAW.pattern)


def damaged(whole: bytes, rows: Sequence[bytes], controls: bool = True) -> Iterator[tuple[int, str, str]]:
    """(row, check id, note) for every damaged row of one encoded column.

    Args:
        whole: the rows joined.
        rows: their texts.
        controls: False where it is known that there is no escaped control character.
    """
    ascii = whole.isascii()
    if not ascii and (_SUSPECT.search(whole) or _REPLACED.search(whole)):
        for index, row in enumerate(rows):
            if _SUSPECT.search(row) or _REPLACED.search(row):
                text = _ANY_ESCAPE.sub(" ", row.decode())
                found = _MOJIBAKE.findall(text)
                if found:
                    yield index, "DK901", f"{plural(len(found), 'place')} such as {found[0]!r}"
    escaped = controls and _ESCAPED.search(whole) and _ESCAPED.search(_without_backslashes(whole))
    if escaped or b"\x7f" in whole or (not ascii and _RAW.search(whole)):
        for index, row in enumerate(rows):
            signs = _CONTROL.findall(_without_backslashes(row))
            if signs:
                yield index, "DK909", f"{plural(len(signs), 'control character')} such as {_code(signs[0])}"


_TAG: Final = re.compile(rb"<(?:image|img|audio|video)>")  # with attributes they are HTML
_HTML: Final = {b"<audio>": b"</audio>", b"<video>": b"</video>"}  # and so they are where they are closed
_COLUMNS: Final[Mapping[bytes, frozenset[str]]] = {
    b"<image>": frozenset({"images", "image"}),
    b"<img>": frozenset({"images", "image"}),
    b"<audio>": frozenset({"audios", "audio"}),
    b"<video>": frozenset({"videos", "video"}),
}


def media_tags(whole: bytes, rows: Sequence[bytes]) -> Iterator[tuple[int, str, frozenset[str], str]]:
    """(row, check id, columns that would do, note) for every row with tags that stand for media in one column."""
    if b"<" not in whole or not _TAG.search(whole):  # the first is free where no text has markup
        return
    for index, row in enumerate(rows):
        for tag, count in Counter(_TAG.findall(row)).items():
            if tag not in _HTML or _HTML[tag] not in row:
                columns = _COLUMNS[tag]
                note = f"{plural(count, f'{tag.decode()} tag')}, and no column {' or '.join(sorted(columns))}"
                yield index, "DK124", columns, note


def _without_backslashes(data: bytes) -> bytes:
    """JSON text without the backslashes of its strings, so that each one left begins an escape."""
    return data.replace(b"\\\\", b"")


def _code(control: bytes) -> str:
    """The code point of a control character, as it is or escaped."""
    quoted: bytes = b'"%b"' % control
    return f"U+{ord(orjson.loads(quoted)):04X}"


CONTENT: Final = (
    Check("DK711", "tokenised-integrity", "error", "The lists of a tokenised row have one length.", "Tokenise the row again.", kinds=("tokenized",)),
    Check("DK801", "exact-duplicate", "warning", "No two rows have the same content.", "Remove the copies, or keep them on purpose.", "set"),
    Check("DK901", "mojibake", "warning", "Text was decoded with the right encoding.", "Repair the text, for example with ftfy, and convert again."),
    Check("DK909", "control-character", "warning", "Text has no control characters but tabs and line breaks.", "Remove them."),
)  # fmt: skip
