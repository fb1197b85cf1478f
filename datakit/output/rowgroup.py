"""How rows are encoded: one Parquet row group per batch, zstd, a checksum on every page.

That takes a good part of the time, so it is done where the rows were made, usually in a worker. The process that writes
the shard copies bytes; see `datakit.output.shards`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from datakit.schema import ID, MIXED, ROW, SIDE, SOURCE

MAGIC: Final = b"PAR1"


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows as they stand in a shard.

    Attributes:
        rows: how many.
        pages: their bytes.
        footer: the footer of a file that holds these pages alone.
    """

    rows: int
    pages: bytes | memoryview
    footer: bytes


def encode(batch: pa.RecordBatch, schema: pa.Schema) -> RowGroup:
    """A batch as one row group; JSON columns come as strings."""
    arrays = [
        pa.ExtensionArray.from_storage(field.type, column) if isinstance(field.type, pa.JsonType) else column
        for field, column in zip(schema, batch.columns, strict=True)
    ]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=cast(Any, _repeating(schema)),
        write_statistics=[ID, SOURCE, ROW],
        write_page_checksum=True,
    ) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=max(1, batch.num_rows))
    data = memoryview(sink.getvalue())
    end = len(data) - len(MAGIC) - 4
    start = end - int.from_bytes(data[end : end + 4], "little")
    return RowGroup(batch.num_rows, data[len(MAGIC) : start], bytes(data[start:end]))


def _repeating(schema: pa.Schema) -> list[str]:
    """Columns that hold few values over and over, token ids among them: smaller and faster as a dictionary."""
    names = [name for name in (SOURCE, MIXED, SIDE) if name in schema.names]
    return [*names, *(f"{field.name}.list.element" for field in schema if field.type == pa.list_(pa.int32()))]
