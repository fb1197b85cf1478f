"""Lengths: how long rows are, and the sequence length, batch and grouping that follow from it.

A `Lengths` counts rows by their exact length, so every number here is exact, whatever the number of rows. It holds one
entry per different length, adds up between workers, and is plain JSON on the way.

A sequence length is suggested as a multiple of 64: attention kernels work in tiles of 64 or 128 tokens and FP8 needs a
multiple of 16 or 32, so nothing in between costs less. The next power of two would reserve up to twice what is needed.

Padding is what a batch adds to its shorter rows. Three ways to make batches are compared:

- `random`: rows as they come; the expected longest of a batch, over all ways to draw it.
- `grouped`: sorted by length. A trainer that sorts within a window of the data comes close, and never below.
- `packed`: several rows in one sequence, by best fit (`datakit.pack`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datakit.errors import UsageError
from datakit.pack import bins

PERCENTILES: Final = ("50", "75", "90", "95", "99", "99.9")
BUDGETS: Final = (16_384, 32_768)
MULTIPLE: Final = 64
BINS: Final = 16

Longs = NDArray[np.int64]


@dataclass(slots=True)
class Lengths:
    """Rows counted by length.

    Attributes:
        rows: length in tokens to rows.
        trained: length in tokens to the trained tokens of all rows of that length.
        trained_rows: trained tokens of a row to rows.
    """

    rows: Counter[int] = field(default_factory=Counter)
    trained: Counter[int] = field(default_factory=Counter)
    trained_rows: Counter[int] = field(default_factory=Counter)

    def see(self, lengths: ArrayLike, trained: ArrayLike) -> None:
        """Count rows.

        Args:
            lengths: tokens per row, int[rows].
            trained: trained tokens per row, int[rows].
        """
        tokens, targets = np.asarray(lengths, np.int64), np.asarray(trained, np.int64)
        values, at, counts = np.unique(tokens, return_inverse=True, return_counts=True)
        sums = np.bincount(at, weights=targets, minlength=len(values)).astype(np.int64)
        self.rows.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        self.trained.update(dict(zip(values.tolist(), sums.tolist(), strict=True)))
        values, counts = np.unique(targets, return_counts=True)
        self.trained_rows.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def add(self, other: Lengths) -> None:
        """Add the rows of another part, in any order."""
        self.rows.update(other.rows)
        self.trained.update(other.trained)
        self.trained_rows.update(other.trained_rows)

    def to_json(self) -> dict[str, list[list[int]]]:
        return {
            name: [list(x) for x in sorted(getattr(self, name).items())] for name in ("rows", "trained", "trained_rows")
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Iterable[tuple[int, int]]]) -> Lengths:
        return cls(**{name: Counter(dict(pairs)) for name, pairs in value.items()})


def by_source(lengths: ArrayLike, trained: ArrayLike, source: ArrayLike) -> dict[int, Lengths]:
    """Count the rows of each source apart.

    Args:
        lengths: tokens per row, int[rows].
        trained: trained tokens per row, int[rows].
        source: the source of each row, int[rows].
    """
    tokens, targets, sources = (np.asarray(x, np.int64) for x in (lengths, trained, source))
    found: dict[int, Lengths] = {}
    for number in np.unique(sources).tolist():
        mine = sources == number
        found[number] = Lengths()
        found[number].see(tokens[mine], targets[mine])
    return found


def report(lengths: Lengths, batch: int = 8, budgets: Sequence[int] = BUDGETS, keep: float = 0.99) -> dict[str, Any]:
    """All that is said about the lengths of a set, as plain JSON; `{"rows": 0}` for a set without rows.

    Args:
        batch: rows per batch, for the padding.
        budgets: tokens per batch to suggest rows for.
        keep: the share of rows and of trained tokens that the suggested length must keep.

    Raises:
        UsageError: a batch or a budget is not positive, or `keep` is no share.
    """
    if not lengths.rows:
        return {"rows": 0}
    suggested = suggest_length(lengths, keep)
    length = int(suggested["length"])
    return {
        "rows": lengths.rows.total(),
        "tokens": summary(lengths.rows),
        "trained": summary(lengths.trained_rows),
        "histogram": histogram(lengths.rows),
        "length": suggested,
        "batches": [suggest_batch(lengths.rows, length, budget) for budget in budgets],
        "padding": padding(lengths.rows, length, batch),
    }


def summary(counts: Mapping[int, int]) -> dict[str, int | float]:
    """Total, mean, least, percentiles and most of counted lengths, in tokens.

    A percentile is the length of a row: the least that so many percent of the rows do not exceed.

    Raises:
        UsageError: there are no rows.
    """
    values, rows = _sorted(counts)
    upto = np.cumsum(rows)
    total, tokens = int(upto[-1]), int(values @ rows)
    result: dict[str, int | float] = {"total": tokens, "mean": round(tokens / total, 2), "min": int(values[0])}
    for name in PERCENTILES:
        rank = -(-round(float(name) * 10) * total // 1000)  # in thousandths: no rounding decides between two rows
        result[f"p{name}"] = int(values[np.searchsorted(upto, rank)])
    return result | {"max": int(values[-1])}


def histogram(counts: Mapping[int, int], limit: int = BINS) -> list[dict[str, int | float]]:
    """Bins for a terminal: equally wide ones, or doubling ones where the longest row is over 8 times the median.

    Args:
        counts: length to rows.
        limit: the most bins of equal width; doubling ones are never many.

    Returns:
        From the first bin with rows to the last: `first` and `last` length (both inside), `rows`, `share` of all rows.

    Raises:
        UsageError: there are no rows, or `limit` is not positive.
    """
    _require_positive("bins", limit)
    values, rows = _sorted(counts)
    upto = np.cumsum(rows)
    median, longest = int(values[np.searchsorted(upto, -(-upto[-1] // 2))]), int(values[-1])
    edges = _doubling(longest) if longest > 8 * max(1, median) else _equal(int(values[0]), longest, limit)
    sums, _ = np.histogram(values, bins=edges, weights=rows)
    bars = [(a, b - 1, int(n)) for (a, b), n in zip(pairwise(edges), sums, strict=True)]
    used = [at for at, (_, _, n) in enumerate(bars) if n]
    return [
        {"first": a, "last": b, "rows": n, "share": round(n / int(upto[-1]), 6)}
        for a, b, n in bars[used[0] : used[-1] + 1]
    ]


def suggest_length(lengths: Lengths, keep: float = 0.99, multiple: int = MULTIPLE) -> dict[str, int | float]:
    """The smallest sequence length that keeps enough rows and trained tokens whole, and what it would not keep.

    A row over the length counts as lost with all that it trains, as `drop` would have it; other policies lose less.

    Returns:
        `length`; `rows_over` and `rows_over_share`; `trained_over`, the trained tokens of those rows, and
        `trained_over_share`; `tokens_over`, the tokens behind the length.

    Raises:
        UsageError: there are no rows, `keep` is no share above 0, or `multiple` is not positive.
    """
    _require_positive("multiple", multiple)
    if not 0 < keep <= 1:
        raise UsageError(f"{keep:g} of the rows cannot be kept", "Give a share above 0 and at most 1, such as 0.99.")
    values, rows = _sorted(lengths.rows)
    trained = np.array([lengths.trained[length] for length in values.tolist()], np.int64)
    share = keep - 1e-12  # 0.99 is a little more than 99 of 100 in binary
    enough = (np.cumsum(rows) >= share * rows.sum()) & (np.cumsum(trained) >= share * trained.sum())
    length = max(1, -(-int(values[enough.argmax()]) // multiple)) * multiple
    over = values > length
    rows_over, trained_over = int(rows[over].sum()), int(trained[over].sum())
    return {
        "length": length,
        "rows_over": rows_over,
        "rows_over_share": round(rows_over / int(rows.sum()), 6),
        "trained_over": trained_over,
        "trained_over_share": round(trained_over / max(1, int(trained.sum())), 6),
        "tokens_over": int((values - length)[over] @ rows[over]),
    }


def suggest_batch(counts: Mapping[int, int], length: int, budget: int) -> dict[str, int | float]:
    """How many rows a batch of so many tokens holds.

    Returns:
        `budget`; `rows`, that fit even if all are as long as `length` (0: not one does); `documents`, how many rows are
        trained on with as many packed ones.

    Raises:
        UsageError: there are no rows, or the length or the budget is not positive.
    """
    _require_positive("token budget", budget)
    clipped = _clipped(counts, length)
    rows = budget // length
    return {
        "budget": budget,
        "rows": rows,
        "documents": round(rows * clipped.total() / max(1, bins(clipped, length)), 1),
    }


def padding(counts: Mapping[int, int], length: int, batch: int) -> dict[str, Any]:
    """The share of a batch that is padding, for rows cut to `length`.

    Returns:
        `batch`, and for `random`, `grouped` and `packed` the share of all tokens in a batch that are padding.

    Raises:
        UsageError: there are no rows, or the length or the batch is not positive.
    """
    _require_positive("batch", batch)
    clipped = _clipped(counts, length)
    values, rows = _sorted(clipped)
    tokens, upto = int(values @ rows), np.cumsum(rows)
    total = int(upto[-1])
    packed = bins(clipped, length) * length
    return {
        "batch": batch,
        "random": _share(tokens, total * _expected_longest(values, upto, min(batch, total))),
        "grouped": _share(tokens, _sorted_batches(values, upto, batch)),
        "packed": _share(tokens, packed),
    }


def _share(tokens: int, padded: float) -> float:
    return round(max(0.0, 1 - tokens / padded), 6) if padded else 0.0


def _expected_longest(values: Longs, upto: Longs, batch: int) -> float:
    """The mean of the longest of `batch` rows over all ways to choose them."""
    below = np.ones(len(values))  # the chance that no row of the batch is longer than this value
    for drawn in range(batch):
        below *= np.maximum(0, upto - drawn) / (upto[-1] - drawn)
    return float(values @ np.diff(below, prepend=0))


def _sorted_batches(values: Longs, upto: Longs, batch: int) -> int:
    """Tokens with padding when sorted rows are cut into batches; the last, smaller batch has the longest rows."""
    full = np.diff(upto // batch, prepend=0)  # batches whose last row has each length
    return int(values @ full) * batch + int(values[-1]) * int(upto[-1] % batch)


def _clipped(counts: Mapping[int, int], length: int) -> Counter[int]:
    _require_positive("length", length)
    clipped: Counter[int] = Counter()
    for tokens, rows in counts.items():
        clipped[min(tokens, length)] += rows
    return clipped


def _sorted(counts: Mapping[int, int]) -> tuple[Longs, Longs]:
    """Lengths ascending, and the rows of each."""
    pairs = sorted((length, rows) for length, rows in counts.items() if rows)
    if not pairs:
        raise UsageError("there are no rows, so they have no lengths", "Count some rows first.")
    values, rows = np.array(pairs, np.int64).T
    return values, rows


def _equal(least: int, most: int, limit: int) -> list[int]:
    """Edges of bins of one round width: 1, 2 or 5 times a power of ten."""
    width = next(w for w in _round_widths() if most // w - least // w < limit)
    return list(range(least // width * width, most + width + 1, width))


def _round_widths() -> Iterator[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def _doubling(most: int) -> list[int]:
    """Edges of bins that double: 0, 1, 2, 4, ..."""
    return [0, *(1 << power for power in range(most.bit_length() + 1))]


def _require_positive(what: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"a {what} of {value} is not possible", "Give a positive number.")
