"""Near-duplicates: MinHash signatures find pairs that may be alike, and the sets of word runs themselves decide.

Two rows are near-duplicates where in every part (what was asked, what was answered, the rejected answer) the Jaccard
similarity of their sets of word runs reaches the threshold. So a long shared question does not make one of two short
answers disappear. A row goes where an earlier row that stays is near it; there are no chains.

Signatures and the sets of candidates lie in temporary files: memory holds a few numbers per row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datakit.cleaning.texts import segments
from datakit.cleaning.words import Hashes, Offsets, mixed, runs, words
from datakit.schema import Layout

PERMUTATIONS: Final = 128
RECALL: Final = 0.995
"""The share of pairs right at the threshold that the bands have to find; of pairs above it they find more."""
SLACK: Final = 0.15
"""How much lower than the threshold the estimate of a pair may be before it is not looked at: over three deviations."""

_NUMBERS: Final = np.random.Generator(np.random.Philox(key=0xDA7A)).integers(0, 2**64, (2, PERMUTATIONS), np.uint64)
_PART: Final = np.uint64(3)


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows per band): the most rows per band with which pairs at the threshold are found."""
    for rows in range(PERMUTATIONS // 2, 1, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= RECALL:
            return count, rows
    return PERMUTATIONS, 1


def shingles(table: pa.Table, layout: Layout, length: int) -> tuple[Hashes, Offsets]:
    """The runs of words of every row, each with its part in the last two bits; a short part is one run."""
    own = segments(table, layout)
    found = words(own.texts)
    order = np.lexsort((own.parts, np.repeat(np.arange(table.num_rows), np.diff(own.offsets))))  # parts together
    sizes = np.diff(found.offsets)[order]
    index = np.repeat(found.offsets[:-1][order] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    row = np.repeat(np.arange(table.num_rows), np.diff(own.offsets))
    group = row * 4 + own.parts[order]
    bounds = np.concatenate(([0], np.cumsum(np.bincount(group, sizes, table.num_rows * 4).astype(np.int64))))
    made = runs(found.hashes[index], bounds, length, short=True)
    parts = np.repeat(np.tile(np.arange(4, dtype=np.uint64), table.num_rows), np.diff(made.offsets))
    return (made.values & ~_PART) | parts, made.offsets[::4]


def signatures(values: Hashes, offsets: Offsets) -> npt.NDArray[np.uint32]:
    """The MinHash signature of every row; zeros for one without a word."""
    there = np.flatnonzero(np.diff(offsets))
    made = np.zeros((len(offsets) - 1, PERMUTATIONS), np.uint32)
    if len(there):
        starts, spread = offsets[:-1][there], mixed(values)
        for column, (factor, shift) in enumerate(_NUMBERS.T):
            smallest = np.minimum.reduceat(spread * (factor | np.uint64(1)) + shift, starts)
            made[there, column] = smallest >> np.uint64(32)
    return made


def jaccard(one: Hashes, other: Hashes) -> float:
    """The similarity of two sorted sets."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def near(one: Hashes, other: Hashes, threshold: float) -> bool:
    """Whether every part of two rows reaches the threshold."""
    for part in range(4):
        a, b = (x[x & _PART == part] for x in (one, other))
        if (len(a) or len(b)) and jaccard(a, b) < threshold:
            return False
    return True


Tables = Callable[[], Iterable[tuple[int, pa.Table]]]
"""The rows again from the first: position of its first row and table."""


def near_duplicates(
    tables: Tables, layout: Layout, skip: npt.NDArray[np.bool_], threshold: float, length: int
) -> dict[int, tuple[int, float]]:
    """Rows that are near an earlier one that stays: position -> (that one, similarity).

    Args:
        tables: read twice.
        layout: kind and form of the rows.
        skip: rows that are gone already.
        threshold: the similarity from which rows are near, above 0 to 1.
        length: words per run.
    """
    total = len(skip)
    if not total:
        return {}
    with tempfile.TemporaryFile(prefix="datakit-") as file, tempfile.TemporaryFile(prefix="datakit-") as spill:
        for _, table in tables():
            file.write(signatures(*shingles(table, layout, length)).tobytes())
        file.flush()
        signed = np.memmap(file, np.uint32, "r", shape=(total, PERMUTATIONS))
        rows, buckets, offsets = _candidates(signed, skip, threshold)
        if not len(rows):
            return {}
        sets = _Sets(spill, tables(), layout, length, rows)
        return _decide(rows, buckets, offsets, signed, sets, threshold)


def _candidates(
    signed: npt.NDArray[np.uint32], skip: npt.NDArray[np.bool_], threshold: float
) -> tuple[Offsets, Offsets, Offsets]:
    """Rows that share a bucket with another: their positions, and for each the buckets (flat, with offsets)."""
    count, width = bands(threshold)
    found_rows: list[Offsets] = []
    found_buckets: list[Offsets] = []
    used = 0
    alive = np.flatnonzero(~skip & (signed.max(axis=1) > 0))
    for band in range(count):
        own = np.zeros(len(alive), np.uint64)
        for column in range(band * width, (band + 1) * width):
            own = mixed(own * np.uint64(31) + signed[alive, column])
        order = np.argsort(own, kind="stable")
        ordered = own[order]
        same = ordered[1:] == ordered[:-1]
        shared = np.concatenate((same, [False])) | np.concatenate(([False], same))
        bucket = np.cumsum(np.concatenate(([True], ~same)))[shared] if len(alive) else np.zeros(0, np.int64)
        found_rows.append(alive[order[shared[: len(order)]]])
        found_buckets.append(bucket + used)
        used += len(alive)
    rows, buckets = np.concatenate(found_rows), np.concatenate(found_buckets)
    order = np.argsort(rows, kind="stable")
    positions, starts = np.unique(rows[order], return_index=True)
    return positions, buckets[order], np.append(starts, len(order))


class _Sets:
    """The sorted sets of word runs of some rows, in a file."""

    def __init__(
        self, file: IO[bytes], tables: Iterable[tuple[int, pa.Table]], layout: Layout, length: int, rows: Offsets
    ) -> None:
        sizes: list[int] = []
        for start, table in tables:
            low, high = np.searchsorted(rows, (start, start + table.num_rows))
            if low < high:
                own = table.take(rows[low:high] - start)
                values, offsets = shingles(own, layout, length)
                for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                    unique = np.unique(values[a:b])
                    sizes.append(len(unique))
                    file.write(unique.tobytes())
        file.flush()
        self.offsets = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        self.values: Any = np.memmap(file, np.uint64, "r")

    def __getitem__(self, index: int) -> Hashes:
        return np.asarray(self.values[self.offsets[index] : self.offsets[index + 1]])


def _decide(
    rows: Offsets,
    buckets: Offsets,
    offsets: Offsets,
    signed: npt.NDArray[np.uint32],
    sets: _Sets,
    threshold: float,
) -> dict[int, tuple[int, float]]:
    """Go through the candidates in their order; each is compared with those of its buckets that stay."""
    stays: dict[int, list[int]] = {}
    gone: dict[int, tuple[int, float]] = {}
    for index in range(len(rows)):
        own = buckets[offsets[index] : offsets[index + 1]].tolist()
        others = np.array(sorted({other for bucket in own for other in stays.get(bucket, ())}), np.int64)
        if len(others):
            alike = (signed[rows[others]] == signed[rows[index]]).mean(axis=1)
            for other in others[alike >= threshold - SLACK].tolist():
                if near(sets[index], sets[other], threshold):
                    gone[int(rows[index])] = int(rows[other]), jaccard(sets[index], sets[other])
                    break
        if int(rows[index]) not in gone:
            for bucket in own:
                stays.setdefault(bucket, []).append(index)
    return gone
