"""Parquet and Arrow files: rows by position, decoded in a worker so that a damaged file costs no more than that.

Both formats may hold invalid data that readers hand on without a word (Arrow's own security notes), so every batch is
validated in full before a value is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from datakit.findings import Finding
from datakit.reading.foreign import as_json, holds_foreign
from datakit.reading.limits import BATCH_ROWS

Rows = tuple[str, int, int, int]
"""File, part (row group or record batch), first row and row after the last, both within the part."""

Columns = tuple[str, ...] | None

Told = dict[int, dict[str, list[str]]]
"""What became a text, by row of a batch and by check."""

STRUCT_NOTE: Final = "DK311"

_ALLOWED_EXTENSIONS: Final = ("arrow.json", "arrow.uuid", "arrow.bool8")


def layout_of(path: str) -> list[tuple[int, int]]:
    """(rows, decoded bytes) of every row group or record batch."""
    if _is_parquet(path):
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            return [(group.num_rows, group.total_byte_size) for group in groups]
    return [(batch.num_rows, batch.nbytes) for batch in _batches(path)]


def _is_parquet(path: str) -> bool:
    with open(path, "rb") as handle:  # noqa: PTH123
        return handle.read(4) == b"PAR1"


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(path) as source:
        yield from record_batches(source)


def record_batches(source: Any) -> Iterator[pa.RecordBatch]:
    """The batches of an opened Arrow file, of the file or the stream format."""
    try:
        reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


class _Cursor:
    """Goes forward through one part of one file, so that consecutive requests decode nothing twice.

    The first request says how many rows are decoded at once: a look at the head need not pay for the rest.
    """

    def __init__(self, path: str, part: int, columns: Columns, rows: int) -> None:
        self.key, self.at = (path, part, columns), 0
        if _is_parquet(path):
            file = pq.ParquetFile(path, page_checksum_verification=True)
            names = list(columns) if columns else None
            batches = file.iter_batches(batch_size=rows, row_groups=[part], columns=names, use_threads=False)
            self.batches = iter(batches)
        else:
            whole = next(batch for index, batch in enumerate(_batches(path)) if index == part)
            starts = range(0, max(1, whole.num_rows), rows)
            whole = whole.select(list(columns)) if columns else whole
            self.batches = iter([whole.slice(start, rows) for start in starts])
        self.held: pa.RecordBatch | None = None
        self.begin = self.end = 0

    def take(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        while self.at < stop:
            if self.held is None or self.at >= self.end:
                self.held = next(self.batches, None)
                if self.held is None:
                    return
                self.begin, self.end = self.at, self.at + self.held.num_rows
            low, high = max(start, self.begin), min(stop, self.end)
            if low < high:
                yield self.held.slice(low - self.begin, high - low)
            self.at = min(self.end, stop)


_cursor: _Cursor | None = None


def has_read() -> bool:
    """Whether this process has read rows, and so has Arrow's thread for that."""
    return _cursor is not None


def read_batches(rows: Rows, columns: Columns = None) -> Iterator[pa.RecordBatch]:
    """Rows as batches, validated in full; with the columns that are named, or all."""
    global _cursor  # noqa: PLW0603 - one open file per worker
    path, part, start, stop = rows
    if _cursor is None or _cursor.key != (path, part, columns) or _cursor.at > start:
        _cursor = _Cursor(path, part, columns, min(BATCH_ROWS, stop - start) or 1)
    for batch in _cursor.take(start, stop):
        batch.validate(full=True)
        yield batch


def read_rows(rows: Rows, first: int) -> Iterator[tuple[int, dict[str, Any], list[Finding]]]:
    """Numbered rows as JSON has them, each with what had to become a text for that.

    Struct fields that are null count as absent, as far as a struct can say.
    """
    number = first
    for batch in read_batches(rows):
        told: Told = {}
        for at, row in enumerate(_rows(batch, told)):
            yield number, row, [Finding(id, "", f"as text: {', '.join(x)}") for id, x in told.get(at, {}).items()]
            number += 1


def plain_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch as Python has them; arrow.json columns are parsed."""
    return _rows(batch, None)


def _rows(batch: pa.RecordBatch, told: Told | None) -> list[dict[str, Any]]:
    """The rows of a batch; with `told`, as JSON has them, and it gets what became a text, by row."""
    columns: dict[str, list[Any]] = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        type_ = field.type
        if isinstance(type_, pa.BaseExtensionType) and type_.extension_name not in _ALLOWED_EXTENSIONS:
            raise pa.ArrowInvalid(f"column {field.name} has the extension type {type_.extension_name}")
        if isinstance(type_, pa.JsonType):
            storage = cast(Any, column).storage  # five times as fast as the column itself
            values = [None if value is None else orjson.loads(value) for value in storage.to_pylist()]
        elif told is not None and holds_foreign(column):
            values = [_told(value, field.name, told.setdefault(at, {})) for at, value in enumerate(column)]
        else:
            values = column.to_pylist()
        if _has_struct(type_):
            values = [_without_padding(value) for value in values]
        columns[field.name] = values
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _told(value: Any, column: str, told: dict[str, list[str]]) -> Any:
    """A value as JSON has it; where that takes a text, its column and type are told."""
    texts: set[str] = set()
    odd: set[str] = set()
    made = as_json(value, texts, odd)
    for id, words in (("DK125", texts), ("DK126", odd)):
        if words:
            told.setdefault(id, []).append(f"{column} ({', '.join(sorted(words))})")
    return made


def _has_struct(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        return True
    return bool(
        (pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))
        and _has_struct(type_.value_type)
    )


def _without_padding(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_padding(inner) for key, inner in value.items() if inner is not None or key == "content"}
    return [_without_padding(inner) for inner in value] if isinstance(value, list) else value


def peek(path: str, count: int) -> list[dict[str, Any]]:
    """Rows for detection: from the head, and from the start of parts spread over the file."""
    parts = layout_of(path)
    wanted = sorted({0, *(i * (len(parts) - 1) // 7 for i in range(8))}) if parts else []
    rows: list[dict[str, Any]] = []
    for part in wanted:
        size = count // 2 if part == 0 else count // 16
        rows += [row for _, row, _ in read_rows((path, part, 0, min(size, parts[part][0])), 1)]
    return rows


def schema_of(path: str) -> pa.Schema:
    """The Arrow schema of a file."""
    if _is_parquet(path):
        return pq.read_schema(path)
    return next(_batches(path)).schema


def columns_of(path: str) -> list[tuple[str, str]]:
    """Names and types of the columns."""
    return [(field.name, str(field.type)) for field in schema_of(path)]


def has_structs(path: str) -> bool:
    """Whether a column nests objects as Arrow structs, which cannot say that a key is absent."""
    return any(_has_struct(field.type) for field in schema_of(path))
