"""16 bytes per row: digests of contents and texts, and which rows have the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from datakit.cleaning.rows import KWARGS
from datakit.cleaning.words import Hashes, mixed, normal

Digests = npt.NDArray[np.uint64]
"""Two numbers per row."""

Cell = bytes | memoryview


def empty(count: int) -> Digests:
    """Room for so many rows."""
    return np.empty((count, 2), np.uint64)


def digests(values: Iterable[Cell]) -> Digests:
    """16 bytes of BLAKE2b of each value."""
    data = b"".join([blake2b(value, digest_size=16).digest() for value in values])
    return np.frombuffer(data, "<u8").reshape(-1, 2)


def draws(keys: Digests, seed: int) -> Hashes:
    """A number from 0 to 2**64 - 1 for each key, that follows from key and seed alone."""
    return mixed(keys[:, 0] ^ digests([str(seed).encode()])[0, 0])


def of_contents(table: pa.Table, names: Sequence[str]) -> Digests:
    """Digests of rows by what is stored in the named columns; no value and no column are the same."""
    heads, columns = [], []
    for name in sorted(names):
        own = cells(table.column(name))
        columns.append([None if cell == b"{}" else cell for cell in own] if name == KWARGS else own)
        heads.append(name.encode())
    if len(columns) == 1 and None not in columns[0]:
        return digests(cell for cell in columns[0] if cell is not None)
    return digests(_row(heads, row) for row in zip(*columns, strict=True))


def _row(heads: Sequence[bytes], row: Sequence[Cell | None]) -> bytes:
    parts: list[Cell] = []
    for head, cell in zip(heads, row, strict=True):
        if cell is not None:
            parts += (head, len(cell).to_bytes(8, "little"), cell)
    return b"".join(parts)


def cells(column: Any) -> list[Cell | None]:
    """The stored bytes of every value of a column, without a copy where Arrow allows; None for null."""
    array: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # pyarrow gives one chunk but for more than 2 GiB
        return [cell for chunk in array.chunks for cell in cells(chunk)]
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        width = np.int32 if pa.types.is_string(array.type) else np.int64
        _, offsets, data = array.buffers()
        bounds = np.frombuffer(offsets or b"", width)[array.offset : array.offset + len(array) + 1]
        texts = memoryview(data or b"")
        found: list[Cell | None] = [texts[a:b] for a, b in pairwise(bounds.tolist())]
    elif pa.types.is_list(array.type) and pa.types.is_integer(array.type.value_type):
        numbers: Any = np.ascontiguousarray(array.values.to_numpy(zero_copy_only=False))
        raw, size = memoryview(numbers.view(np.uint8)), numbers.itemsize
        found = [raw[a * size : b * size] for a, b in pairwise(array.offsets.to_pylist())]
    else:
        return [None if value is None else orjson.dumps(value) for value in array.to_pylist()]
    if array.null_count:
        found = [cell if there else None for cell, there in zip(found, array.is_valid().to_pylist(), strict=True)]
    return found


def of_texts(texts: Sequence[str]) -> Digests:
    """Digests of texts in their normal form; of the text itself where that is empty, as for `???`."""
    values = [cell or text.encode() for cell, text in zip(cells(normal(texts)), texts, strict=True) if cell is not None]
    return digests(values)


def firsts(keys: Digests) -> npt.NDArray[np.int64]:
    """For every row the first one with the same key; for that row itself, its own position."""
    result = np.arange(len(keys))
    some = _alike(keys[:, 0])
    if len(some):
        some = some[np.lexsort((keys[some, 1], keys[some, 0]))]  # stable: equal keys stay in the order of rows
        new = np.append(True, (keys[some[1:]] != keys[some[:-1]]).any(axis=1))
        result[some] = some[np.maximum.accumulate(np.where(new, np.arange(len(some)), 0))]
    return result


def _alike(numbers: Hashes) -> npt.NDArray[np.int64]:
    """The positions, ascending, of numbers that are there more than once."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    same = ordered[1:] == ordered[:-1]
    return np.sort(order[np.append(same, False) | np.append(False, same)]) if len(same) else order[:0]
