"""The Parquet writer: one row group per block, zstd, page checksums, and a hash of the bytes as they are written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from datakit.output.disk import HashedFile
from datakit.schema import ID, MIXED, ROW, SIDE, SOURCE


class ShardWriter:
    """Writes one shard; the file appears complete or is discarded."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.rows = 0
        self.file = HashedFile(path)
        try:
            self._writer: Any = pq.ParquetWriter(
                cast(Any, self.file),
                schema,
                compression="zstd",
                use_dictionary=cast(Any, _repeating(schema)),
                write_statistics=[ID, SOURCE, ROW],
                write_page_checksum=True,
            )
        except BaseException:
            self.file.discard()
            raise

    def write(self, batch: pa.RecordBatch) -> None:
        """Add a batch as one row group; JSON columns come as strings."""
        arrays = [
            pa.ExtensionArray.from_storage(field.type, column) if isinstance(field.type, pa.JsonType) else column
            for field, column in zip(self.schema, batch.columns, strict=True)
        ]
        table = pa.Table.from_arrays(arrays, schema=self.schema)
        self._writer.write_table(table, row_group_size=max(1, batch.num_rows))
        self.rows += batch.num_rows

    def close(self) -> tuple[int, str]:
        """Finish the file; its bytes and SHA-256."""
        self._writer.close()
        self.file.close()
        return self.file.bytes, self.file.sha256

    def discard(self) -> None:
        self.file.discard()


def _repeating(schema: pa.Schema) -> list[str]:
    """Columns that hold few values over and over, token ids among them: smaller and faster as a dictionary."""
    names = [name for name in (SOURCE, MIXED, SIDE) if name in schema.names]
    return [*names, *(f"{field.name}.list.element" for field in schema if field.type == pa.list_(pa.int32()))]


def fingerprint(schema: pa.Schema) -> str:
    """A hash of names and types, in order."""
    text = "\n".join(f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in schema)
    return hashlib.sha256(text.encode()).hexdigest()


def rows_in(path: Path) -> int:
    """The rows that a shard's footer declares."""
    metadata: Any = pq.read_metadata(path)
    return int(metadata.num_rows)
