"""Apportionment: how many rows each source gives in a block, so that weights hold over any number of whole blocks.

Weights are whole numbers here (`shares`), so nothing drifts. What a source is due is counted from the first block on,
and the part of a row that a block cannot give is carried into the next:

- By rows, a source has given the rows that it is due, rounded down or up. Rounded-down rows come first; the places
  that are left go to the sources whose next row is due soonest. That is the largest remainder with its error carried,
  made safe for weights of less than a row a block, and it is possible for any weights (Tijdeman's chairman assignment).
- By tokens, each source gives rows until it is as near to its due as whole rows allow, which is within half a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import lcm
from typing import Final

import numpy as np

from datakit.errors import UsageError
from datakit.mixing.order import Longs, Order

SCALE: Final = 10**12
"""The sum of shares that come from a calculation: they hold twelve digits."""

Shares = tuple[int, ...]
SharesAt = Callable[[int], Shares]
"""The shares at a row; always with the same sum."""


def exact(weights: Sequence[float | int]) -> Shares:
    """Weights as whole numbers in exactly the ratio that their decimal digits say."""
    fractions = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(fraction.denominator for fraction in fractions))
    return tuple(int(fraction * scale) for fraction in fractions)


def rounded(weights: Sequence[float]) -> Shares:
    """Weights as whole numbers with the sum `SCALE`."""
    total = sum(weights)
    ideal = [Fraction(weight) * SCALE / Fraction(total) for weight in weights]
    found = [int(value) for value in ideal]
    left = sorted(range(len(found)), key=lambda i: found[i] - ideal[i])
    for i in left[: SCALE - sum(found)]:
        found[i] += 1
    return tuple(found)


class Lengths:
    """The tokens of a source's rows in the order in which they are given, summed up, through all epochs."""

    def __init__(self, lengths: Longs, order: Order) -> None:
        self.lengths, self.order, self.rows = lengths, order, len(lengths)
        self.total = int(lengths.sum())
        self._held: dict[int, Longs] = {}

    def _sums(self, epoch: int) -> Longs:
        epoch = epoch if self.order.window else 0
        if epoch not in self._held:
            rows = self.order.at(np.arange(self.rows, dtype=np.int64) + epoch * self.rows)
            last = dict(list(self._held.items())[-1:])  # two, since a clock may go to and fro over an end
            self._held = {**last, epoch: np.concatenate([[0], np.cumsum(self.lengths[rows])])}
        return self._held[epoch]

    def tokens(self, rows: int) -> int:
        """The tokens of the first rows."""
        epoch, rest = divmod(rows, self.rows)
        return epoch * self.total + (int(self._sums(epoch)[rest]) if rest else 0)

    def nearest(self, tokens: Fraction) -> int:
        """The number of first rows whose tokens come nearest; fewer where two are as near."""
        epoch, rest = divmod(tokens, self.total)
        sums = self._sums(int(epoch))
        below = int(np.searchsorted(sums, int(rest), side="right")) - 1
        above = below < self.rows and 2 * rest > sums[below] + sums[below + 1]
        return int(epoch) * self.rows + below + int(above)


class ByRows:
    """Weights that count rows.

    Args:
        taken: rows that each source has given before.
        shares: the shares at a row.
        settled: the row from which they stay as they are.
        block_size: rows; shares change only where a block begins.
    """

    def __init__(self, taken: Sequence[int], shares: SharesAt, settled: int, block_size: int) -> None:
        self.taken, self.shares, self.settled, self.block_size = list(taken), shares, settled, block_size
        self.clock = sum(taken)
        self.scale = sum(shares(self.clock))
        self.due = [count * self.scale for count in taken]

    def counts(self, size: int) -> list[int]:
        shares = self.shares(self.clock)
        due = [d + share * size for d, share in zip(self.due, shares, strict=True)]
        counts = [max(count, d // self.scale) for count, d in zip(self.taken, due, strict=True)]
        left = self.clock + size - sum(counts)
        if left > 0:
            more = [i for i, d in enumerate(due) if d > counts[i] * self.scale]
            for i in sorted(more, key=lambda i: (self._deadline(i, counts[i] + 1), i))[:left]:
                counts[i] += 1
        for i in sorted(range(len(counts)), key=lambda i: due[i] - counts[i] * self.scale):
            back = min(max(-left, 0), counts[i] - self.taken[i])  # only where shares change without notice
            counts[i], left = counts[i] - back, left + back
        return counts

    def _deadline(self, source: int, count: int) -> float:
        """The row at which a source is due this many rows in full."""
        row, due = self.clock, self.due[source]
        while row < self.settled:
            share = self.shares(row)[source]
            if due + share * self.block_size >= count * self.scale:
                break
            row, due = row + self.block_size, due + share * self.block_size
        share = self.shares(row)[source]
        return row - (due - count * self.scale) // share if share else float("inf")

    def go(self, size: int, counts: Sequence[int]) -> None:
        self.due = [d + share * size for d, share in zip(self.due, self.shares(self.clock), strict=True)]
        self.taken, self.clock = list(counts), self.clock + size


class ByTokens:
    """Weights that count tokens.

    Args:
        taken: rows that each source has given before.
        shares: the shares at a row.
        lengths: of each source.
    """

    def __init__(self, taken: Sequence[int], shares: SharesAt, lengths: Sequence[Lengths]) -> None:
        self.taken, self.shares, self.lengths = list(taken), shares, lengths
        self.scale = sum(shares(sum(taken)))
        self.due = [own.tokens(count) * self.scale for own, count in zip(lengths, taken, strict=True)]
        self.clock = sum(self.due) // self.scale

    def _due(self, size: int) -> list[int]:
        return [d + share * size for d, share in zip(self.due, self.shares(sum(self.taken)), strict=True)]

    def counts(self, size: int) -> list[int]:
        each = zip(self.taken, self._due(size), self.lengths, strict=True)
        return [max(count, own.nearest(Fraction(due, self.scale))) for count, due, own in each]

    def go(self, size: int, counts: Sequence[int]) -> None:
        self.due = self._due(size)
        self.taken, self.clock = list(counts), self.clock + size


def positive(names: Sequence[str], weights: Sequence[float]) -> None:
    """Refuse weights that no mix can hold.

    Raises:
        UsageError: one is zero, negative, no number, or too small beside the others.
    """
    total = sum(weights)
    for name, weight in zip(names, weights, strict=True):
        if not weight > 0 or weight == float("inf"):
            raise UsageError(f"the weight of {name!r} is {weight}", "A weight is a number above 0.")
        if weight < total / SCALE:
            raise UsageError(f"the weight of {name!r} is less than 1e-12 of the whole", "Leave the source out.")
