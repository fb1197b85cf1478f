"""A shard folder opened for reading: by its manifest, verified, so that a mix of versions is never read."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq

from datakit.errors import UnreadableInput, UsageError
from datakit.output import manifest as manifests
from datakit.reading.columnar import plain_rows
from datakit.schema import OPTIONAL, Layout, layout
from datakit.terminal import plural

if TYPE_CHECKING:
    import datasets
    import polars

PROVENANCE_PREFIX = "dk_"


class Group(NamedTuple):
    """One row group: its file, its number there, and the position of its first row among all rows."""

    path: Path
    number: int
    start: int
    rows: int


class Shards:
    """The rows of a shard folder.

    Iterating gives plain dicts with the columns that trainers read, in file order. JSON columns are parsed; keys that
    were absent are absent.

    Attributes:
        path: the folder, as it was named.
        split: the one split that is read, or None for all.
        manifest: what the folder says about itself.
        paths: the Parquet files that are read.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        paths: list[Path],
        rows: int,
        path: str = "",
        split: str | None = None,
    ) -> None:
        self.manifest, self.paths, self._rows, self.path, self.split = manifest, paths, rows, path, split
        self._held: tuple[tuple[int, tuple[str, ...]], pa.Table] | None = None

    def __repr__(self) -> str:
        split = f", split {self.split}" if self.split else ""
        return f"<Shards {self.layout.name}, {plural(len(self), 'row')}{split}, {self.path}>"

    @classmethod
    def open(cls, folder: str | os.PathLike[str], split: str | None = None) -> Self:
        """See `datakit.load`."""
        manifest = manifests.load(folder)
        wrong = manifests.mismatches(folder, manifest, rows_only=True)
        if wrong:
            path, what = wrong[0]
            raise UnreadableInput(f"{folder}/{path}: {what}", f"`datakit verify {folder}` lists everything.")
        if split is not None and split not in manifest["splits"]:
            raise UsageError(f"{folder}: no split named {split!r}", f"It has {', '.join(manifest['splits'])}.")
        shards = [s for s in manifest["shards"] if split in (None, s["split"])]
        paths = [Path(folder) / s["path"] for s in shards]
        return cls(manifest, paths, sum(s["rows"] for s in shards), os.fspath(folder), split)

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.rows()

    def rows(self, *, all: bool = False) -> Iterator[dict[str, Any]]:
        """The rows; with `all`, the dk_ columns too."""
        for batch in self.batches():
            names = [n for n in batch.schema.names if all or not n.startswith(PROVENANCE_PREFIX)]
            yield from plain_rows(batch.select(names))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Arrow batches, one row group at a time."""
        for path in self.paths:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    yield from file.read_row_group(group).to_batches()

    @property
    def layout(self) -> Layout:
        """Kind and form of the rows."""
        return layout(self.manifest["kind"], self.manifest["form"], self.manifest["conversational"])

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns with their types, JSON ones as `arrow.json`."""
        return pq.read_schema(self.paths[0]).remove_metadata() if self.paths else pa.schema([])

    @cached_property
    def groups(self) -> list[Group]:
        """All row groups, in order; their footers are read, no rows."""
        found: list[Group] = []
        start = 0
        for path in self.paths:
            metadata: Any = pq.read_metadata(path)
            for number in range(metadata.num_row_groups):
                rows = metadata.row_group(number).num_rows
                found.append(Group(path, number, start, rows))
                start += rows
        return found

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """(position of its first row, table) of every row group; JSON columns as plain strings.

        Args:
            columns: only these, in this order.
        """
        for index, group in enumerate(self.groups):
            yield group.start, self._group(index, tuple(columns or self.schema.names))

    def slice(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows by position, `start` to before `stop`; JSON columns as plain strings.

        Only the row groups that hold them are read, and the last one is kept, so that reading on costs nothing twice.
        """
        names = tuple(columns or self.schema.names)
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of {len(self)}")
        index = bisect_right([group.start for group in self.groups], start) - 1
        parts: list[pa.Table] = []
        while start < stop:
            group = self.groups[index]
            end = min(stop, group.start + group.rows)
            if end > start:
                parts.append(self._group(index, names).slice(start - group.start, end - start))
            start, index = max(start, end), index + 1
        return pa.concat_tables(parts) if parts else _stored(self.schema.empty_table().select(names))

    def _group(self, index: int, names: tuple[str, ...]) -> pa.Table:
        key = (index, names)
        held = self._held
        if held is None or held[0] != key:
            group = self.groups[index]
            with pq.ParquetFile(group.path, page_checksum_verification=True) as file:
                held = self._held = key, _stored(file.read_row_group(group.number, columns=list(names)).select(names))
        return held[1]

    def to_arrow(self) -> pa.Table:
        """Everything as one Arrow table, JSON columns as `arrow.json`."""
        return pa.concat_tables([pq.read_table(path) for path in self.paths])

    def to_polars(self) -> polars.DataFrame:
        """Everything as a polars frame, JSON columns as text."""
        import polars

        table = self.to_arrow()
        fields = [f.with_type(pa.string()) if isinstance(f.type, pa.JsonType) else f for f in table.schema]
        frame = polars.from_arrow(table.cast(pa.schema(fields)))
        if not isinstance(frame, polars.DataFrame):
            raise TypeError("a table became a series")
        return frame

    def to_datasets(self) -> datasets.Dataset:
        """Trainer columns as a `datasets.Dataset`; needs `pip install 'datakit-trainglue[hf]'`."""
        import datasets

        names = [c["name"] for c in self.manifest["columns"] if not c["name"].startswith(PROVENANCE_PREFIX)]
        loaded = datasets.Dataset.from_parquet([str(path) for path in self.paths], columns=names)
        if not isinstance(loaded, datasets.Dataset):
            raise TypeError("expected one dataset")
        return loaded

    @property
    def optional(self) -> list[str]:
        """Which of tools, template arguments and images the shards have."""
        names = {c["name"] for c in self.manifest["columns"]}
        return [c.name for c in OPTIONAL if c.name in names]


def _stored(table: pa.Table) -> pa.Table:
    """The table with JSON columns as the strings they are stored as; no bytes are copied."""
    for index, field in enumerate(table.schema):
        if isinstance(field.type, pa.JsonType):
            chunks = [cast(Any, chunk).storage for chunk in table.column(index).chunks]
            table = table.set_column(index, field.name, pa.chunked_array(chunks, type=cast(Any, pa.string())))
    return table.replace_schema_metadata(None)
