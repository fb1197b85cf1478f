"""The writer of shards: row groups one after the other, and a hash of the bytes as they are written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datakit.output.disk import HashedFile
from datakit.output.footer import merge
from datakit.output.rowgroup import MAGIC, RowGroup


class ShardWriter:
    """Writes one shard; the file appears complete or is discarded."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self.file = HashedFile(path)
        self._footers: list[tuple[int, bytes]] = []

    def write(self, group: RowGroup) -> None:
        if not self._footers:
            self.file.write(MAGIC)
        self._footers.append((self.file.bytes - len(MAGIC), group.footer))
        self.file.write(group.pages)
        self.rows += group.rows

    def close(self) -> tuple[int, str]:
        """Finish the file, which has at least one row group; its bytes and SHA-256."""
        footer = merge(self._footers)
        self.file.write(footer + len(footer).to_bytes(4, "little") + MAGIC)
        self.file.close()
        return self.file.bytes, self.file.sha256

    def discard(self) -> None:
        self.file.discard()


def fingerprint(schema: pa.Schema) -> str:
    """A hash of names and types, in order."""
    text = "\n".join(f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in schema)
    return hashlib.sha256(text.encode()).hexdigest()


def rows_in(path: Path) -> int:
    """The rows that a shard's footer declares."""
    metadata: Any = pq.read_metadata(path)
    return int(metadata.num_rows)
