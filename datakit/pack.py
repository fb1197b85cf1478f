"""Packing: several documents in one training sequence, with their boundaries.

A batch of rows of unequal length is padded to the longest, and the padding is paid for. A packed row holds several
documents end to end, and `seq_lengths` says where each ends, so that attention and positions can start anew there.

| strategy    | documents                                    | use                              |
|-------------|----------------------------------------------|----------------------------------|
| `bfd`       | stay whole; none may be longer than the row  | conversations                    |
| `bfd_split` | only those longer than a row are cut         | long documents, no token is lost |
| `wrapped`   | are cut wherever a row is full               | pretraining; every row is full   |

The results are those of `trl.pack_dataset` for the same order of rows, with three differences: `bfd` refuses a long
document where TRL truncates it; `wrapped` has `seq_lengths` too; and all rows given are packed together, where TRL
packs each 1000 apart. Best-fit decreasing is from Ding et al., "Fewer Truncations Improve Language Modeling"
(arXiv 2404.10830).

Planning needs lengths only, so one process can plan what many then gather. Documents of one length are placed together:
the longest come first, so the fullest row that fits takes as many of them as it can hold, and the rows that held
equally much before do the same. The work grows with the number of different lengths, not of documents, and a histogram
is enough to know how full the rows will be (`bins`).

Labels are moved, never changed. The first token of a piece is predicted from nothing in the same document, so a trainer
must not count its label; TRL's padding-free collator masks it. A document that was cut loses one token more per cut.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from datakit.errors import UsageError
from datakit.policies import STRATEGIES, Strategy

SEQ_LENGTHS: Final = "seq_lengths"

Longs = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packing:
    """Which piece of which document lies in which packed row.

    Attributes:
        size: tokens that a packed row can hold.
        document: per piece, in output order, the number of its document.
        start: per piece, its first token inside the document.
        length: per piece, its tokens.
        bounds: packed row r holds the pieces bounds[r] to bounds[r + 1]; one longer than there are rows.
    """

    size: int
    document: Longs
    start: Longs
    length: Longs
    bounds: Longs

    @property
    def rows(self) -> int:
        return len(self.bounds) - 1

    @property
    def tokens(self) -> int:
        return int(self.length.sum())

    @property
    def fill(self) -> float:
        """The share of the packed rows that is tokens; 1 minus it would be padding. 1.0 where there are no rows."""
        return self.tokens / (self.rows * self.size) if self.rows else 1.0

    @property
    def cuts(self) -> int:
        """How often a document was cut; each cut costs at most one trained token, the first after it."""
        return int(np.count_nonzero(self.start))

    def part(self, first: int, last: int) -> Packing:
        """The packed rows `first` to `last`, to gather a large set a slice at a time."""
        bounds = self.bounds[first : last + 1]
        pieces = slice(bounds[0], bounds[-1])
        return Packing(
            self.size, self.document[pieces], self.start[pieces], self.length[pieces], bounds - self.bounds[first]
        )

    def to_json(self) -> dict[str, int | float]:
        return {
            "size": self.size,
            "rows": self.rows,
            "pieces": len(self.length),
            "cuts": self.cuts,
            "tokens": self.tokens,
            "fill": round(self.fill, 6),
        }


def pack(table: pa.Table, size: int, strategy: Strategy = "bfd") -> pa.Table:
    """Pack all rows of a table of token lists.

    Args:
        table: list columns such as `input_ids` and `labels`, equally long in each row.
        size: tokens per packed row.

    Returns:
        The same columns with packed rows, and `seq_lengths`: list<int32>, the lengths of the pieces of each row.

    Raises:
        UsageError: a column is no list, columns disagree in length, the table is packed already, `size` is not
            positive, or `bfd` met a document longer than `size`.
    """
    return gather(table, plan(_lengths(table), size, strategy))


def plan(lengths: ArrayLike, size: int, strategy: Strategy = "bfd") -> Packing:
    """Where every document goes. Documents without a token take no place.

    Args:
        lengths: tokens per document, int[documents].
        size: tokens per packed row.

    Raises:
        UsageError: `size` is not positive, the strategy is unknown, or `bfd` met a document longer than `size`.
    """
    _require_size(size)
    counts = np.asarray(lengths, dtype=np.int64)
    if strategy == "wrapped":
        return _wrapped(counts, size)
    if strategy == "bfd":
        _require_whole(counts, size)
    elif strategy != "bfd_split":
        raise UsageError(f"unknown packing strategy {strategy!r}", f"Choose one of {', '.join(STRATEGIES)}.")
    return _best_fit_decreasing(counts, size)


def bins(counts: Mapping[int, int], size: int) -> int:
    """How many packed rows `bfd_split` makes of documents that are known only by a histogram, length to documents.

    Raises:
        UsageError: `size` is not positive.
    """
    _require_size(size)
    pieces: defaultdict[int, int] = defaultdict(int)
    for length, documents in counts.items():
        whole, rest = divmod(length, size)
        pieces[size] += whole * documents
        pieces[rest] += documents
    runs = [(length, pieces[length]) for length in sorted(pieces, reverse=True) if length and pieces[length]]
    return max((place.first + place.rows for place in _place(runs, size)), default=0)


def gather(table: pa.Table, packing: Packing) -> pa.Table:
    """Carry out a plan.

    Args:
        table: the rows that the plan numbers, as `pack` takes them.
        packing: a plan, or a part of one.

    Raises:
        UsageError: as `pack`.
    """
    _lengths(table)
    tokens = np.concatenate(([0], np.cumsum(packing.length)))[packing.bounds]
    columns = {name: _gather(_array(table[name]), packing, tokens) for name in table.column_names}
    columns[SEQ_LENGTHS] = lists(packing.bounds, packing.length.astype(np.int32))
    return pa.table(columns)


def lists(bounds: Longs, values: NDArray[np.int32]) -> Any:
    """An Arrow list array from int32 values and the offsets between rows."""
    array: Any = pa.ListArray  # the stubs know offsets as lists only
    return array.from_arrays(pa.array(bounds, pa.int32()), pa.array(values))


def _array(column: Any) -> Any:
    """A column as one array; a single chunk is taken as it is, for `combine_chunks` would copy it."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _gather(column: Any, packing: Packing, tokens: Longs) -> Any:
    """Copy the pieces of a list array together, each as a whole; no index per token is made."""
    begins = column.offsets.to_numpy()[packing.document] + packing.start
    views: Any = pa.LargeListViewArray  # the stubs do not know its sizes
    pieces = views.from_arrays(pa.array(begins, pa.int64()), pa.array(packing.length), column.values)
    return type(column).from_arrays(pa.array(tokens, column.offsets.type), pieces.flatten())


# Checks of what was given


def _lengths(table: pa.Table) -> Longs:
    """Tokens per row of a table whose columns agree on them."""
    if not table.num_columns:
        raise UsageError("a table without columns cannot be packed", "Give input_ids, and labels where there are some.")
    if SEQ_LENGTHS in table.column_names:
        raise UsageError("the table has a column seq_lengths: it is packed already", "Pack the rows it was made of.")
    found: list[Longs] = []
    for field in table.schema:
        column = table[field.name]
        if not (pa.types.is_list(field.type) or pa.types.is_large_list(field.type)):
            raise UsageError(f"column {field.name} is {field.type}, not a list", "Select the columns of tokens first.")
        if column.null_count:
            raise UsageError(f"column {field.name} has {column.null_count} null rows", "Leave those rows out first.")
        found.append(pc.list_value_length(column).to_numpy().astype(np.int64))
        _require_offsets(field, int(found[-1].sum()))
        if not np.array_equal(found[0], found[-1]):
            row = int(np.flatnonzero(found[0] != found[-1])[0])
            raise UsageError(
                f"row {row} has {found[0][row]} tokens in {table.column_names[0]}, {found[-1][row]} in {field.name}",
                "The columns of a row must be equally long.",
            )
    return found[0]


def _require_offsets(field: Any, tokens: int) -> None:
    if pa.types.is_list(field.type) and tokens > np.iinfo(np.int32).max:
        raise UsageError(
            f"column {field.name} has {tokens:,} tokens, and a list array holds at most 2,147,483,647",
            "Cast it to large_list, or pack fewer rows at a time.",
        )


def _require_size(size: int) -> None:
    if size < 1:
        raise UsageError(f"packed rows of {size} tokens are not possible", "Give the length as a positive number.")


def _require_whole(lengths: Longs, size: int) -> None:
    long = np.flatnonzero(lengths > size)
    if len(long):
        raise UsageError(
            f"{len(long):,} of {len(lengths):,} documents are longer than a packed row of {size} tokens; the first is "
            f"number {long[0]} with {lengths[long[0]]:,}; bfd would truncate them",
            "Fit the rows first (--truncation), take a longer row, or split long documents with bfd_split.",
        )


# The strategies


def _wrapped(lengths: Longs, size: int) -> Packing:
    """All documents as one stream, cut at every multiple of `size`."""
    begins = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    edges = np.union1d(begins[lengths > 0], np.arange(0, total, size))
    # An empty document begins where the next begins, and the last of equal begins is the one that has tokens.
    document = np.searchsorted(begins, edges, side="right") - 1
    bounds = np.append(np.searchsorted(edges, np.arange(0, total, size)), len(edges))
    return Packing(size, document, edges - begins[document], np.diff(edges, append=total), bounds)


def _best_fit_decreasing(lengths: Longs, size: int) -> Packing:
    """The longest first, each into the fullest row that still has room for it; of equally full ones the oldest."""
    pieces = -(-lengths // size)
    document = np.repeat(np.arange(len(lengths)), pieces)
    start = (np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * size
    length = np.minimum(lengths[document] - start, size)

    order = np.argsort(-length, kind="stable")
    ordered = length[order]
    turns = np.flatnonzero(np.diff(ordered, prepend=0))  # no piece has length 0, so the first is always one
    runs = list(zip(ordered[turns].tolist(), np.diff(turns, append=len(ordered)).tolist(), strict=True))
    row = _rows(_place(runs, size))
    order = order[np.argsort(row, kind="stable")]
    bounds = np.concatenate(([0], np.cumsum(np.bincount(row))))
    return Packing(size, document[order], start[order], length[order], bounds)


class _Placed(NamedTuple):
    """Pieces of one length went into the rows `first`, `first + 1`, ...: `each` of them into every one of `rows`."""

    first: int
    rows: int
    each: int


def _place(runs: list[tuple[int, int]], size: int) -> list[_Placed]:
    """Best fit for runs of (length, pieces), the longest first.

    While one length is placed, a row that takes a piece stays the fullest that fits until it has no room for another:
    so it takes `space // length` at once, and every other row with the same space follows in its turn.
    """
    placed: list[_Placed] = []
    queues: defaultdict[int, deque[tuple[int, int]]] = defaultdict(deque)  # space left: ranges of rows, oldest first
    spaces: list[int] = []  # those with a queue, ascending
    opened = 0

    def queue(space: int) -> deque[tuple[int, int]]:
        if space not in queues:
            insort(spaces, space)
        return queues[space]

    for length, pieces in runs:
        while pieces:
            at = bisect_left(spaces, length)
            space = spaces[at] if at < len(spaces) else size
            each = space // length
            if at < len(spaces):
                first, rows = queues[space].popleft()
                if not queues[space]:
                    del queues[space], spaces[at]
            else:
                first, rows = opened, -(-pieces // each)
                opened += rows
            full = min(rows, pieces // each)
            rest = min(pieces - full * each, each) if full < rows else 0
            pieces -= full * each + rest
            # What takes all it can, what takes the rest of the run, and what takes none.
            for begin, count, taken in ((first, full, each), (first + full, int(rest > 0), rest)):
                if count:
                    placed.append(_Placed(begin, count, taken))
                    if space > taken * length:
                        queue(space - taken * length).append((begin, count))
            untouched = full + (rest > 0)
            if untouched < rows:
                queue(space).appendleft((first + untouched, rows - untouched))
    return placed


def _rows(placed: list[_Placed]) -> Longs:
    """The row of every piece, in the order in which they were placed."""
    first, rows, each = np.array(placed, dtype=np.int64).reshape(-1, 3).T
    totals = rows * each
    inside = np.arange(totals.sum()) - np.repeat(np.cumsum(totals) - totals, totals)
    return np.repeat(first, totals) + inside // np.repeat(each, totals)
