"""A shard folder opened for reading: by its manifest, verified, so that a mix of versions is never read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from datakit.errors import UnreadableInput, UsageError
from datakit.output import manifest as manifests
from datakit.reading.columnar import plain_rows
from datakit.schema import OPTIONAL

if TYPE_CHECKING:
    import datasets
    import polars

PROVENANCE_PREFIX = "dk_"


class Shards:
    """The rows of a shard folder.

    Iterating gives plain dicts with the columns that trainers read, in file order. JSON columns are parsed; keys that
    were absent are absent.

    Attributes:
        manifest: what the folder says about itself.
        paths: the Parquet files that are read.
    """

    def __init__(self, manifest: Mapping[str, Any], paths: list[Path], rows: int) -> None:
        self.manifest, self.paths, self._rows = manifest, paths, rows

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
        return cls(manifest, [Path(folder) / s["path"] for s in shards], sum(s["rows"] for s in shards))

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
