"""How much of an untrusted input is ever held or unpacked at once."""

from __future__ import annotations

from typing import Final

MiB: Final = 1 << 20

BLOCK: Final = 4 * MiB
"""Decoded bytes of a block: the unit of parallel work, and one row group of a shard."""

SHARD_SIZE: Final = "256MiB"
"""Decoded bytes of a shard, unless asked for otherwise."""

CHUNK: Final = 1 * MiB
"""Bytes read from a file at once."""

MAX_LINE: Final = 64 * MiB
"""A longer row is rejected; in JSON Lines without ever being held."""

MAX_DEPTH: Final = 64
"""Nesting of a row; JSON parsers recurse."""

MAX_RATIO: Final = 500
"""Decoded to packed bytes, looked at once `RATIO_FROM` bytes were decoded."""

RATIO_FROM: Final = 256 * MiB

TOKENIZER: Final = 256 * MiB
"""A larger tokenizer.json is refused; the largest known has 34 MB."""

ZSTD_WINDOW: Final = 128 * MiB
ZSTD_FEED: Final = 16 * 1024
"""A zstd block of 4 bytes can stand for 128 KiB, so packed bytes are fed in small pieces."""

BATCH_ROWS: Final = 4096
"""Rows of a Parquet or Arrow file that are decoded at once."""
