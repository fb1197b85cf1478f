"""What divides the cells of a CSV file: told from its header and first records, since names say `.csv` for all of them.

A delimiter is possible if it gives the header several distinct names, and most records as many cells. The one that fits
more of them wins; where two fit equally well a person is asked.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from datakit.errors import AmbiguousFormat
from datakit.reading.blocks import text_lines, without_bom
from datakit.reading.limits import MAX_LINE

NAMES: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

RECORDS: Final = 50
_LINES: Final = 2000
"""Lines that are looked at; one record may take many."""

Record = list[str]


def told(chunks: Iterable[bytes], path: str, usual: str) -> str:
    """The delimiter of a CSV file.

    Args:
        chunks: the head of the file.
        path: for messages.
        usual: what the file's suffix says, for files of one column.

    Raises:
        AmbiguousFormat: two divide the header and the records equally well.
    """
    _, stream = without_bom(iter(chunks))
    lines = list(islice(text_lines(stream), _LINES))
    csv.field_size_limit(MAX_LINE)
    headers = {delimiter: next(_records(lines, delimiter), []) for delimiter in NAMES}
    fits = {delimiter: _fit(lines, delimiter, header) for delimiter, header in headers.items()}
    best = max(fits.values())
    possible = [delimiter for delimiter, fit in fits.items() if fit == best > 0.5]
    if len(lines) < 2 and usual in possible:
        return usual
    if len(possible) > 1:
        ways = " or ".join(f"{NAMES[d]} (columns {', '.join(map(repr, headers[d][:4]))})" for d in possible)
        raise AmbiguousFormat(
            f"{path}: its columns may be divided by {ways}; the first records fit both",
            "Take the sign that divides nothing out of the header, or write the file as JSON Lines.",
        )
    return possible[0] if possible else usual


def _fit(lines: list[str], delimiter: str, header: Record) -> float:
    """The share of the first records with as many cells as the header; 0 where that has but one, or a name twice."""
    if len(header) < 2 or len(set(header)) < len(header):
        return 0.0
    records = [record for record in islice(_records(lines, delimiter), 1, RECORDS + 1) if record]
    return sum(len(record) == len(header) for record in records) / len(records) if records else 1.0


def _records(lines: list[str], delimiter: str) -> Iterator[Record]:
    """The records by one delimiter; one that breaks the rules of quoting is of one cell and the last."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        yield from reader
    except csv.Error:
        if reader.line_num < len(lines):  # else it goes on where the head ends
            yield [""]
