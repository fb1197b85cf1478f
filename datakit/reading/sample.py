"""Samples: rows for detection, from the head of a source and, where it can be sought in, spread over it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Any, Final

import orjson

from datakit.errors import UnreadableInput
from datakit.findings import BadRow
from datakit.reading import blocks, delimiter
from datakit.reading.decode import open_bytes
from datakit.reading.limits import CHUNK, MiB
from datakit.reading.rows import parse_row
from datakit.reading.sources import Source

HEAD: Final = 200
STRIDES: Final = 8
PER_STRIDE: Final = 25
_HEAD_BYTES: Final = 8 * MiB

Ask = Callable[..., Any]
"""How a worker is asked; damaged Parquet files are opened there."""


def sample(source: Source, ask: Ask) -> list[dict[str, Any]]:
    """At most 400 rows that parse. Rows that do not are left for the conversion to report."""
    if source.how in ("parquet", "arrow"):
        found: list[dict[str, Any]] = ask("peek", source.real, 2 * HEAD)
        return found
    chunks = _head_chunks(source) if source.how == "jsonl" else source.file().decoded()
    rows_ = _parsed(_cut(source, chunks))
    if source.how == "jsonl" and source.compression is None and os.path.isfile(source.real):  # noqa: PTH113
        rows_ += _strided(source.real)
    return rows_


def formats_of_rejects(source: Source) -> Counter[str]:
    """What the rows of a reject file were read as when they were rejected, as far as they say."""
    names: Counter[str] = Counter()
    for chunk in blocks.line_blocks(source.file().decoded(), 0, source.path):
        for line in chunk.payload.split(b"\n"):
            try:
                name = orjson.loads(line).get("format")
            except (ValueError, AttributeError):  # told when it is read as a reject
                continue
            if isinstance(name, str):
                names[name] += 1
    return names


def _head_chunks(source: Source) -> Iterable[bytes]:
    total = 0
    for chunk in source.file().decoded():
        yield chunk
        total += len(chunk)
        if total >= _HEAD_BYTES:
            return


def _cut(source: Source, chunks: Iterable[bytes]) -> Iterable[blocks.Block]:
    small = CHUNK // 16
    if source.how == "jsonl":
        return blocks.line_blocks(chunks, 0, source.path, small)
    if source.how == "rejects":
        return blocks.reject_blocks(chunks, 0, source.path, small)
    if source.how in ("csv", "tsv"):
        return blocks.csv_blocks(chunks, 0, source.path, source.delimiter, small)
    return blocks.element_blocks(chunks, 0, source.path, small)


def _parsed(made: Iterable[blocks.Block], limit: int = HEAD) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for block in made:
        spans = block.spans
        pieces = block.payload.split(b"\n") if spans is None else [block.payload[a:b] for a, b, _, _ in spans]
        for piece in pieces:
            if piece.strip():
                try:
                    rows.append(parse_row(piece))
                except BadRow:
                    continue
            if len(rows) >= limit:
                return rows
    return rows


def _strided(path: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    size = os.path.getsize(path)  # noqa: PTH202
    if size < 2 * MiB:
        return rows
    with open_bytes(path) as handle:
        for stride in range(1, STRIDES + 1):
            handle.seek(size * stride // (STRIDES + 1))
            piece = handle.read(CHUNK)
            start, end = piece.find(b"\n") + 1, piece.rfind(b"\n") + 1
            if 0 < start < end:
                rows += _parsed(blocks.line_blocks([piece[start:end]], 0, path), PER_STRIDE)
    return rows


def refine(source: Source) -> None:
    """Tell what a suffix does not say: the delimiter of CSV, and JSON Lines in a `.json` file from an array.

    Raises:
        AmbiguousFormat: two delimiters fit.
        UnreadableInput: a file of JSON Lines is one JSON document.
    """
    if source.how == "jsonl" and _is_document(source):
        hint = f"Rename it to {_renamed(source.path)}: this is one JSON document."
        raise UnreadableInput(f"{source.path}: rows do not stand on lines of their own, as the name says", hint)
    if source.how in ("csv", "tsv"):
        source.delimiter = delimiter.told(_head_chunks(source), source.path, "," if source.how == "csv" else "\t")
    if source.how != "json":
        return
    start = b""
    for chunk in source.file().decoded():
        start = (start + chunk).removeprefix(blocks.BOM).lstrip(b" \t\r\n")
        if b"\n" in start or len(start) > _HEAD_BYTES:
            break
    if not start.startswith(b"["):
        line, newline, _ = start.partition(b"\n")
        try:
            parse_row(line)
        except BadRow:
            return
        if newline:
            source.how = "jsonl"


def _is_document(source: Source) -> bool:
    """Whether lines are no rows, but hold some when they are read as one array, or as one object after another."""
    start = b""
    for chunk in source.file().decoded():
        start = (start + chunk).removeprefix(blocks.BOM).lstrip(b" \t\r\n")
        if b"\n" in start or len(start) > CHUNK:
            break
    if not (start.startswith(b"[") or start.partition(b"\n")[0].strip() == b"{"):
        return False
    try:
        return bool(_parsed(blocks.element_blocks(_head_chunks(source), 0, source.path, CHUNK // 16)))
    except UnreadableInput:
        return False


def _renamed(path: str) -> str:
    return re.sub(r"\.(jsonl|ndjson)", ".json", PurePath(path).name, flags=re.I)
