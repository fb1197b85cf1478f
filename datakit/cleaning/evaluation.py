"""The texts of evaluation files: every string of every row, with the line it stands in."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from datakit.easydata.files import elements, lines, records
from datakit.errors import UnreadableInput, UsageError
from datakit.output import manifest as manifests
from datakit.reading.blocks import text_lines, without_bom
from datakit.reading.columnar import layout_of, read_rows
from datakit.reading.decode import File
from datakit.reading.sample import refine
from datakit.reading.sources import Source, expand, identify, is_unit
from datakit.shards import Shards

TEXT: Final = (".txt", ".text", ".md")
"""Files whose every line is a row."""

HEADER: Final = 0
"""The number of the first line of CSV, which is a row where a file has no header."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One file, or one folder of shards.

    Attributes:
        path: as it was typed.
        sha256: of its bytes; of shards, their content id.
    """

    path: str
    sha256: str

    @property
    def by_line(self) -> bool:
        return not is_unit(self.path) and _source(self.path).how == "jsonl"

    def rows(self) -> Iterator[tuple[int, Any]]:
        """(line or row number from 1, the row); of CSV also (HEADER, the cells of the first line).

        Raises:
            UnreadableInput: a line does not parse, or the file is damaged.
        """
        if is_unit(self.path):
            return enumerate(Shards.open(self.path).rows(), start=1)
        source = _source(self.path)
        if source.how in ("parquet", "arrow"):
            return _columnar(source)
        return _decoded(source)


def evaluations(names: Sequence[str]) -> list[Evaluation]:
    """Files, folders of files, folders of shards and globs as evaluations.

    Raises:
        UsageError: none is named, or a saved dataset is.
        UnreadableInput: a name matches nothing.
    """
    if not names:
        raise UsageError("no evaluation files", "Name them: --against evals/*.jsonl.")
    return [Evaluation(path, _hash(path)) for path in expand(list(names))]


def _hash(path: str) -> str:
    if is_unit(path):
        if not (Path(path) / manifests.NAME).is_file():
            raise UsageError(f"--against {path}: a saved dataset", f"Name its files: --against '{path}/*.arrow'.")
        return str(manifests.load(path)["content_id"])
    digest = hashlib.sha256()
    for chunk in File(path).raw():
        digest.update(chunk)
    return digest.hexdigest()


def _source(path: str) -> Source:
    if path.lower().endswith(TEXT):
        return Source(path, "jsonl")
    source = identify(path)
    refine(source)
    return source


def _columnar(source: Source) -> Iterator[tuple[int, Any]]:
    first = 1
    for part, (rows, _) in enumerate(layout_of(source.real)):
        yield from ((number, row) for number, row, _ in read_rows((source.real, part, 0, rows), first))
        first += rows


def _decoded(source: Source) -> Iterator[tuple[int, Any]]:
    chunks = source.file().decoded()
    if source.how == "jsonl":
        plain = source.path.lower().endswith(TEXT)
        for number, line in lines(chunks, source.path):
            yield number, line.decode("utf-8", "replace") if plain else _parsed(line, source.path, number)
        return
    found = elements(chunks, source.path)
    if source.how in ("csv", "tsv"):
        found = records(chunks, source.path, source.delimiter)
    for number, data in found:
        yield number, _parsed(data, source.path, number)
    if source.how in ("csv", "tsv"):
        yield HEADER, _header(source)  # last, when the file is known to be sound


def _header(source: Source) -> list[str]:
    """The cells of the first line."""
    _, chunks = without_bom(source.file().decoded())
    cells = next(csv.reader(text_lines(chunks), delimiter=source.delimiter, strict=True), [])
    return [cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for cell in cells]


def _parsed(data: bytes, path: str, number: int) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UnreadableInput(f"{path}:{number}: {error}", "Repair the line; nothing was compared.") from None
