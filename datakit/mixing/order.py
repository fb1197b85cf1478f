"""Shuffles as pure functions: which row stands at a place follows from (seed, what, where), and from nothing else.

Every shuffle draws from a Philox stream of its own. The key is the seed and what is shuffled, the counter begins at
the place (source and epoch, or block), so no two streams share a number, whatever the seeds: block 1 of seed 42 has
nothing to do with block 0 of seed 43. Only the generator's raw bits are used, which are the same in every version of
numpy.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Longs = NDArray[np.int64]

BLOCK: Final = 1
"""What is shuffled: the places of a block among the sources."""
ROWS: Final = 2
"""The rows of a source."""


def permutation(count: int, seed: int, what: int, *where: int) -> Longs:
    """The numbers below `count` in random order.

    Args:
        seed: at most 64 bits.
        what: `BLOCK` or `ROWS`.
        where: up to three numbers.
    """
    counter = [0, *where, 0, 0][:4]
    bits = np.random.Philox(key=np.array([seed, what], np.uint64), counter=np.array(counter, np.uint64))
    return np.argsort(bits.random_raw(count), kind="stable")


class Order:
    """The rows of one source in the order in which they are given, epoch after epoch.

    Args:
        kind: source, window:N or shuffle.
        rows: of the source.
        seed: of the recipe.
        source: the number of the source in the recipe.
    """

    def __init__(self, kind: str, rows: int, seed: int, source: int) -> None:
        self.kind, self.rows, self.seed, self.source = kind, rows, seed, source
        word, _, number = kind.partition(":")
        self.window = {"source": 0, "shuffle": max(rows, 1)}.get(word) or int(number or 0)
        self._held: dict[tuple[int, int], Longs] = {}

    def at(self, numbers: Longs) -> Longs:
        """The rows with these numbers, which count on through all epochs and come in ascending order."""
        epochs, places = np.divmod(numbers, self.rows)
        if not self.window:
            return places
        found = np.empty_like(places)
        windows = epochs * (-(-self.rows // self.window)) + places // self.window
        starts = np.flatnonzero(np.diff(windows, prepend=-1))
        wanted: dict[tuple[int, int], Longs] = {}
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
            epoch, window = int(epochs[start]), int(places[start]) // self.window
            key = (epoch, window)
            wanted[key] = self._held[key] if key in self._held else self._shuffled(epoch, window)
            found[start:stop] = wanted[key][places[start:stop] - window * self.window]
        self._held = wanted
        return found

    def windows(self) -> list[tuple[int, int]]:
        """First row and end of each window that was looked at last."""
        starts = [window * self.window for _, window in self._held]
        return [(start, min(start + self.window, self.rows)) for start in starts]

    def _shuffled(self, epoch: int, window: int) -> Longs:
        start = window * self.window
        size = min(self.window, self.rows - start)
        return start + permutation(size, self.seed, ROWS, self.source, epoch, window)
