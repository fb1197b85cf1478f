"""Files as sharded sources: one shard per file, local or wherever fsspec reaches, plain or packed."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, ClassVar, Final, Literal

import fsspec
import pyarrow as pa

from datakit.easydata.sources import Row, ShardedDataSource, ShardInfo
from datakit.errors import UnreadableInput, UsageError
from datakit.findings import BadRow
from datakit.reading import blocks
from datakit.reading.columnar import plain_rows, record_batches
from datakit.reading.decode import File
from datakit.reading.limits import BATCH_ROWS, CHUNK
from datakit.reading.rows import parse_row
from datakit.reading.sources import PACKED

SUFFIXES: Final[Mapping[str, str]] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "txt",
}

DataFiles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Options = Mapping[str, Any]


def type_of(path: str) -> str | None:
    """What a file is by its suffix: parquet, json, csv, arrow, txt, or None."""
    name = PurePosixPath(path.lower())
    suffix = PurePosixPath(name.stem).suffix if name.suffix in PACKED else name.suffix
    return SUFFIXES.get(suffix)


def expand_data_files(data_files: DataFiles, storage_options: Options | None = None) -> list[str]:
    """Names, folders and globs as file names, sorted, each once.

    Args:
        data_files: one or several. A folder stands for all files of a known suffix in it, at any depth.
        storage_options: for fsspec, to list files as well as to open them.

    Raises:
        UnreadableInput: a name matches nothing.
    """
    names = [data_files] if isinstance(data_files, str | os.PathLike) else data_files
    found: set[str] = set()
    for name in [os.fspath(name) for name in names]:
        system, path = fsspec.core.url_to_fs(name, **(storage_options or {}))
        if system.isdir(path):
            inside = [own for own in system.find(path) if type_of(own) and not _hidden(own, path)]
        elif system.exists(path):
            inside = [path]
        else:
            inside = [own for own in system.glob(path) if not system.isdir(own)]
        if not inside:
            raise UnreadableInput(f"{name}: no file matches", f"Known suffixes are {' '.join(SUFFIXES)}.")
        local = "://" not in name
        found.update(own if local else str(system.unstrip_protocol(own)) for own in inside)
    return sorted(found)


def _hidden(path: str, folder: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path.removeprefix(folder)).parts)


@dataclass(slots=True)
class _Stored(File):
    """A file that is opened with storage options."""

    options: Options = field(default_factory=dict)

    def raw(self, size: int = CHUNK) -> Iterator[bytes]:
        with fsspec.open(self.path, "rb", **self.options) as handle:
            while chunk := handle.read(size):
                self.size += len(chunk)
                yield chunk


class _FilesSource(ShardedDataSource):
    """One shard per file, named by its path."""

    type: ClassVar[str]

    def __init__(self, data_files: DataFiles, storage_options: Options | None = None) -> None:
        """Find the files.

        Args:
            data_files: as in `expand_data_files`.
            storage_options: for fsspec.

        Raises:
            UnreadableInput: nothing is there.
            UsageError: a folder holds files of other kinds too.
        """
        self.storage_options = dict(storage_options or {})
        self.files = expand_data_files(data_files, storage_options)
        others = [name for name in self.files if type_of(name) not in (self.type, None)]
        if others:
            raise UsageError(
                f"{others[0]} is no {self.type} file",
                "Name the files with a glob, or take create_source for all kinds.",
            )
        self._counts: dict[str, int] = {}

    @property
    def shard_names(self) -> Sequence[str]:
        return self.files

    def get_shard_info(self, shard_name: str) -> ShardInfo:
        """What is known of a file; the rows of a text file only once `len` has counted them."""
        number = self._number(shard_name)
        system, path = fsspec.core.url_to_fs(shard_name, **self.storage_options)
        return ShardInfo(number, shard_name, self._counts.get(shard_name), system.size(path))

    def open_shard(self, shard_name: str) -> Iterator[Row]:
        self._number(shard_name)
        return self._rows(shard_name, 0)

    def open_shard_at_row(self, shard_name: str, row: int) -> Iterator[Row]:
        if row < 0:
            raise UsageError(f"row {row} of shard {shard_name}", "Rows are counted from 0.")
        self._number(shard_name)
        return self._rows(shard_name, row)

    def __len__(self) -> int:
        """All rows; of texts they are counted by reading them once."""
        for name in self.files:
            if name not in self._counts:
                self._counts[name] = self._count(name)
        return sum(self._counts.values())

    def _count(self, name: str) -> int:
        return sum(1 for _ in self._rows(name, 0))

    @abstractmethod
    def _rows(self, name: str, start: int) -> Iterator[Row]:
        """The rows of a file from a number on."""

    def _handle(self, name: str) -> Any:
        return fsspec.open(name, "rb", **self.storage_options)

    def _chunks(self, name: str) -> Iterator[bytes]:
        """The decoded bytes of a text file; truncated and damaged ones are refused."""
        suffix = PurePosixPath(name.lower()).suffix
        return _Stored(name, PACKED.get(suffix), options=self.storage_options).decoded()


class ParquetShardedSource(_FilesSource):
    """Parquet files. Rows are found by row group, and columns of JSON type are parsed."""

    type = "parquet"

    def __init__(
        self, data_files: DataFiles, storage_options: Options | None = None, columns: Sequence[str] | None = None
    ) -> None:
        """Find the files; `columns` are the only ones that are read."""
        super().__init__(data_files, storage_options)
        self.columns = None if columns is None else list(columns)

    def get_shard_info(self, shard_name: str) -> ShardInfo:
        info = super().get_shard_info(shard_name)
        return ShardInfo(info.shard_id, shard_name, self._count(shard_name), info.byte_size)

    def _count(self, name: str) -> int:
        import pyarrow.parquet as pq

        if name not in self._counts:
            with self._handle(name) as handle:
                self._counts[name] = pq.read_metadata(handle).num_rows
        return self._counts[name]

    def _rows(self, name: str, start: int) -> Iterator[Row]:
        import pyarrow.parquet as pq

        with self._handle(name) as handle, pq.ParquetFile(handle, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if start >= rows:
                    start -= rows
                    continue
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=self.columns):
                    yield from _from(batch, start)
                    start = max(0, start - batch.num_rows)


class ArrowShardedSource(_FilesSource):
    """Arrow files, of the file and of the stream format."""

    type = "arrow"

    def _rows(self, name: str, start: int) -> Iterator[Row]:
        with self._handle(name) as handle:
            for batch in record_batches(handle):
                yield from _from(batch, start)
                start = max(0, start - batch.num_rows)

    def _count(self, name: str) -> int:
        with self._handle(name) as handle:
            return sum(batch.num_rows for batch in record_batches(handle))


def _from(batch: pa.RecordBatch, start: int) -> Iterator[Row]:
    if start < batch.num_rows:
        batch.validate(full=True)
        yield from plain_rows(batch.slice(start))


class JsonShardedSource(_FilesSource):
    """JSON Lines and JSON arrays. Blank lines are no rows, wherever reading begins.

    Attributes:
        bad_lines: with `on_bad_line="skip"`, (file, line, reason) of every line that was passed over.
    """

    type = "json"

    def __init__(
        self,
        data_files: DataFiles,
        storage_options: Options | None = None,
        jsonl: bool | None = None,
        on_bad_line: Literal["error", "skip"] = "error",
    ) -> None:
        """Find the files.

        Args:
            data_files, storage_options: as in `expand_data_files`.
            jsonl: whether every line is a row; by default the first bytes of each file say so.
            on_bad_line: error ends reading at a line that is no row, with its place; skip passes over it and lists it.
        """
        super().__init__(data_files, storage_options)
        self.jsonl, self.on_bad_line = jsonl, on_bad_line
        self._bad: dict[tuple[str, int], str] = {}

    @property
    def bad_lines(self) -> list[tuple[str, int, str]]:
        return [(*place, reason) for place, reason in self._bad.items()]

    def _rows(self, name: str, start: int) -> Iterator[Row]:
        by_line, chunks = as_lines(self._chunks(name), self._by_line(name))
        for number, data in lines(chunks, name) if by_line else elements(chunks, name):
            try:
                row = parse_row(data)
            except BadRow as bad:
                if self.on_bad_line == "error":
                    message = f"{name}:{number}: {bad.finding.note}"
                    raise UnreadableInput(
                        message, 'Repair it, or pass over such lines with on_bad_line="skip".'
                    ) from None
                self._bad[name, number] = bad.finding.note
                continue
            if start:
                start -= 1
            else:
                yield row

    def _by_line(self, name: str) -> bool | None:
        named_so = any(part in (".jsonl", ".ndjson") for part in PurePosixPath(name.lower()).suffixes)
        return True if self.jsonl is None and named_so else self.jsonl


class CsvShardedSource(_FilesSource):
    """CSV files with a header. Values are texts, and an empty cell is an absent field."""

    type = "csv"

    def __init__(self, data_files: DataFiles, storage_options: Options | None = None, delimiter: str = ",") -> None:
        """Find the files; `delimiter` is what divides the cells."""
        super().__init__(data_files, storage_options)
        self.delimiter = delimiter

    def _rows(self, name: str, start: int) -> Iterator[Row]:
        for number, data in records(self._chunks(name), name, self.delimiter):
            try:
                row = parse_row(data)
            except BadRow as bad:
                raise UnreadableInput(f"{name} row {number}: {bad.finding.note}", "Repair the row.") from None
            if number > start:
                yield row


class TextShardedSource(_FilesSource):
    """Text files. Every line but blank ones is a row with one field."""

    type = "txt"

    def __init__(self, data_files: DataFiles, storage_options: Options | None = None, text_field: str = "text") -> None:
        """Find the files; `text_field` is the name of the field."""
        super().__init__(data_files, storage_options)
        self.text_field = text_field

    def _rows(self, name: str, start: int) -> Iterator[Row]:
        for number, data in lines(self._chunks(name), name):
            if start:
                start -= 1
                continue
            try:
                yield {self.text_field: data.rstrip(b"\r").decode()}
            except UnicodeDecodeError as error:
                raise UnreadableInput(f"{name}:{number}: no UTF-8: {error.reason}", "Write it as UTF-8.") from None


# ---------------------------------------------------------------- texts as pieces


def as_lines(chunks: Iterator[bytes], jsonl: bool | None = None) -> tuple[bool, Iterator[bytes]]:
    """(whether each line is a row, the same chunks): an array begins with a bracket; an object may go over lines."""
    if jsonl is not None:
        return jsonl, chunks
    taken: list[bytes] = []
    start = b""
    for chunk in chunks:
        taken.append(chunk)
        start = (start + chunk).removeprefix(blocks.BOM).lstrip(b" \t\r\n")
        if b"\n" in start or len(start) > CHUNK:
            break
    first, _, rest = start.partition(b"\n")
    by_line = not start.startswith(b"[") and (not rest.strip() or _parses(first))
    return by_line, chain(taken, chunks)


def _parses(line: bytes) -> bool:
    try:
        parse_row(line)
    except BadRow as bad:
        return bad.finding.id != "DK101"
    return True


def lines(chunks: Iterator[bytes], path: str) -> Iterator[tuple[int, bytes]]:
    """(line, its bytes) of every line but blank ones.

    Raises:
        UnreadableInput: a line is longer than a row may be.
    """
    for block in blocks.line_blocks(chunks, 0, path):
        if block.long:
            raise UnreadableInput(f"{path}:{block.first}: a line without end", "Is it a file with one row per line?")
        for number, line in enumerate(block.payload.split(b"\n"), start=block.first):
            if line.strip():
                yield number, line


def elements(chunks: Iterator[bytes], path: str) -> Iterator[tuple[int, bytes]]:
    """(row, its bytes) of every element of a JSON array, or value of a JSON stream."""
    for number, (data, _, _) in enumerate(blocks.elements(chunks, path), start=1):
        yield number, data


def records(chunks: Iterator[bytes], path: str, delimiter: str) -> Iterator[tuple[int, bytes]]:
    """(row, its bytes as a JSON object) of every record of a CSV file."""
    for block in blocks.csv_blocks(chunks, 0, path, delimiter):
        for start, stop, number, _ in block.spans or ():
            yield number, block.payload[start:stop]
