"""The plan of a mix as arithmetic: which source gives which of its rows at which place. No row is read for it.

The plan is a table with one line per block: the first row of the block, and how many rows each source has given before
it. Within a block the places are shuffled by (seed, block). So the origin of any row is known from two lines and one
shuffle, however many rows come before: that is what makes a stream resume at any row.

A block is as large as the recipe says, except where it is the last, or where a source has no rows left.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np

from datakit.errors import UsageError
from datakit.mixing.apportion import SCALE, ByRows, ByTokens, Lengths, Shares, exact, positive, rounded
from datakit.mixing.order import BLOCK, Longs, permutation
from datakit.mixing.recipe import Recipe
from datakit.terminal import plural

MAX_BLOCKS: Final = 4_000_000
ENDLESS: Final = 2**62


@dataclass(frozen=True, slots=True)
class Size:
    """What a plan has to know of a source.

    Attributes:
        name: in the recipe.
        rows: that may be used.
        lengths: their tokens in the order in which they are given, where known.
    """

    name: str
    rows: int
    lengths: Lengths | None = None


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The table of blocks.

    Attributes:
        recipe: that it follows from.
        sizes: of the sources.
        starts: the first row of each block and the end, int64[blocks + 1].
        taken: rows that each source has given before each block and at the end, int64[blocks + 1, sources].
        asked: the weight of each source over the whole mix, with a sum of 1; None where a schedule changes it.
    """

    recipe: Recipe
    sizes: Sequence[Size]
    starts: Longs
    taken: Longs
    asked: Sequence[float] | None

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def places(self) -> list[float]:
        """Where each block begins on the axis of the schedule."""
        schedule, begins = self.recipe.schedule, self.starts[:-1]
        if schedule is None or schedule.axis == "rows":
            return [float(row) for row in begins]
        if schedule.axis == "steps":
            return [float(row) / schedule.rows_per_step for row in begins]
        sums = [[s.lengths.tokens(int(n)) for n in self.taken[:-1, i]] for i, s in enumerate(self.sizes) if s.lengths]
        return [float(sum(tokens)) for tokens in zip(*sums, strict=True)]

    @property
    def rows(self) -> list[int]:
        """Rows that each source gives."""
        return [int(count) for count in self.taken[-1]]

    @property
    def tokens(self) -> list[int | None]:
        """Tokens that each source gives, where known."""
        return [s.lengths.tokens(n) if s.lengths else None for s, n in zip(self.sizes, self.rows, strict=True)]

    def origins(self, start: int, stop: int) -> tuple[Longs, Longs]:
        """The origins of the rows from `start` to before `stop`.

        Returns:
            The number of the source of each row, and its number among all rows that this source gives, epoch after
            epoch.
        """
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        last = int(np.searchsorted(self.starts, stop, side="left"))
        blocks = [self._block(block) for block in range(first, last)]
        if not blocks:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        sources, numbers = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        begin = int(self.starts[first])
        return sources[start - begin : stop - begin], numbers[start - begin : stop - begin]

    def _block(self, block: int) -> tuple[Longs, Longs]:
        before, after = self.taken[block], self.taken[block + 1]
        counts = after - before
        places = permutation(int(counts.sum()), self.recipe.seed, BLOCK, block)
        sources, numbers = np.empty_like(places), np.empty_like(places)
        sources[places] = np.repeat(np.arange(len(counts)), counts)
        own = np.argsort(sources, kind="stable")  # the places of each source, in order
        first = np.cumsum(counts) - counts
        numbers[own] = np.arange(len(places)) + np.repeat(before - first, counts)
        return sources, numbers


def arrange(recipe: Recipe, sizes: Sequence[Size]) -> Arrangement:
    """The plan of a recipe.

    Args:
        recipe: read.
        sizes: of its sources, in order; with lengths where the recipe counts tokens.

    Raises:
        UsageError: the sources cannot give what the recipe asks for.
    """
    for size in sizes:
        if not size.rows:
            raise UsageError(f"the source {size.name!r} has no rows", "Leave it out, or look at its filter.")
        if recipe.needs_tokens and size.lengths is not None and not size.lengths.total:
            raise UsageError(f"the source {size.name!r} has no tokens", "Leave it out.")
    maker = _Maker(recipe, sizes)
    maker.run()
    table = np.frombuffer(maker.table, np.int64).reshape(-1, len(sizes))
    return Arrangement(recipe, sizes, table.sum(axis=1), table, maker.asked)


class _Maker:
    """Adds blocks until the end of the recipe."""

    def __init__(self, recipe: Recipe, sizes: Sequence[Size]) -> None:
        self.recipe, self.sizes = recipe, sizes
        self.leaves = recipe.stop == "all_exhausted" or recipe.repeat is not None
        self.supply = [_supply(recipe, number, size) for number, size in enumerate(sizes)]
        self.weights, self.total = _weights(recipe, sizes)
        self.asked = None if recipe.schedule else [weight / sum(self.weights) for weight in self.weights]
        self.alive = tuple(range(len(sizes)))
        self.taken = [0] * len(sizes)
        self.table = array("q", self.taken)
        self.shares = lru_cache(maxsize=1 << 16)(self._shares)

    def run(self) -> None:
        apportion, step = self._apportion(), self._step()
        blocks, end = 0, ""
        while self.alive and not end:
            blocks += 1
            if blocks > MAX_BLOCKS:
                raise _too_many()
            size, counts, end = self._next(apportion, step)
            if counts != self.taken:
                self.table.extend(counts)
                self.taken = counts
            apportion.go(size, counts)
            if self.leaves and any(counts[i] == self.supply[i] for i in self.alive):
                self.alive = tuple(i for i in self.alive if counts[i] < self.supply[i])
                apportion = self._apportion() if self.alive else apportion
            clock = apportion.clock if self.alive else self._given()  # a clock goes on where no rows are left
            if self.total is not None and clock >= self.total:
                end = "budget"
        self._check_end(end)

    def _given(self) -> int:
        """What all sources have given, in the unit of the weights."""
        return sum(self.taken) if self.recipe.weigh_by == "rows" else self._tokens(self.taken)

    def _next(self, apportion: ByRows | ByTokens, step: int) -> tuple[int, list[int], str]:
        """How far the clock goes in the next block, what sources have given by then, and why it is the last."""
        size = step if self.total is None else min(step, self.total - apportion.clock)
        counts = self._within(apportion.counts(size))
        end = self._lacks(counts)
        if end:
            size = _largest(size, lambda n: not self._lacks(self._within(apportion.counts(n))))
            return size, self._filled(apportion, size) if end == "budget" else apportion.counts(size), end
        if self._all_exhausted(counts):
            size = 1 + _largest(size, lambda n: not self._all_exhausted(apportion.counts(n)))
            return size, apportion.counts(size), "exhausted"
        return size, counts, ""

    def _within(self, counts: list[int]) -> list[int]:
        """A source that leaves gives what it has, and the block is shorter."""
        return [min(n, most) for n, most in zip(counts, self.supply, strict=True)] if self.leaves else counts

    def _lacks(self, counts: Sequence[int]) -> str:
        """Why these counts cannot be given: they need more than the budget, or than a source has."""
        recipe = self.recipe
        if recipe.weigh_by == "tokens" and recipe.rows is not None and sum(counts) > recipe.rows:
            return "budget"
        if recipe.weigh_by == "rows" and recipe.tokens is not None and self._tokens(counts) > recipe.tokens:
            return "budget"
        return "supply" if any(n > most for n, most in zip(counts, self.supply, strict=True)) else ""

    def _filled(self, apportion: ByRows | ByTokens, size: int) -> list[int]:
        """The last block where a budget of rows ends a mix by tokens: exactly so many rows."""
        counts = self._within(apportion.counts(size))
        left = (self.recipe.rows or 0) - sum(counts) if self.recipe.weigh_by == "tokens" else 0
        for i, n in enumerate(self._within(apportion.counts(size + 1))):
            more = max(0, min(n - counts[i], left))
            counts[i], left = counts[i] + more, left - more
        return counts

    def _all_exhausted(self, counts: Sequence[int]) -> bool:
        every = all(n >= size.rows for n, size in zip(counts, self.sizes, strict=True))
        return self.recipe.stop == "all_exhausted_restart" and every

    def _tokens(self, counts: Sequence[int]) -> int:
        return sum(size.lengths.tokens(n) for n, size in zip(counts, self.sizes, strict=True) if size.lengths)

    def _apportion(self) -> ByRows | ByTokens:
        self.shares.cache_clear()
        if self.recipe.weigh_by == "tokens":
            lengths = [size.lengths for size in self.sizes if size.lengths is not None]
            return ByTokens(self.taken, self.shares, lengths)
        schedule = self.recipe.schedule
        settled = schedule.scheduler.last * schedule.rows_per_step if schedule and schedule.axis != "tokens" else 0
        return ByRows(self.taken, self.shares, settled, self.recipe.block_size)

    def _shares(self, row: int) -> Shares:
        """The shares at a row of those sources that are still there."""
        schedule = self.recipe.schedule
        if schedule is None:
            return tuple(weight if i in self.alive else 0 for i, weight in enumerate(self.weights))
        place = {"rows": float(row), "steps": row / schedule.rows_per_step}.get(schedule.axis)
        at = self._tokens(self.taken) if place is None else place
        weights = list(schedule.scheduler.get_weights(at).values())
        own = [weight if i in self.alive else 0.0 for i, weight in enumerate(weights)]
        never = at >= schedule.scheduler.last and self.recipe.stop == "all_exhausted_restart"
        waiting = [
            s.name for s, n, w in zip(self.sizes, self.taken, own, strict=True) if never and not w and n < s.rows
        ]
        if not sum(own) or waiting:
            left = waiting or [self.sizes[i].name for i in self.alive]
            raise UsageError(
                f"from row {row:,} on the schedule gives no weight to {', '.join(left)}, which still has rows",
                "Give it a weight there, or limit the mix with rows.",
            )
        return rounded(own)

    def _step(self) -> int:
        """How far the clock goes in a block: its rows, or the tokens that so many rows have on average."""
        size = self.recipe.block_size
        ends = [self.total]
        if self.recipe.weigh_by == "tokens":
            shares, lengths = self.shares(0), [s.lengths for s in self.sizes]
            rows = sum(w * own.rows / own.total for w, own in zip(shares, lengths, strict=True) if own)
            size = max(1, round(size * sum(shares) / rows))
        if self.recipe.stop == "all_exhausted_restart" and self.asked:
            ends += [int(_units(self.recipe, s) / weight) for s, weight in zip(self.sizes, self.asked, strict=True)]
        if max((end for end in ends if end), default=0) / size > MAX_BLOCKS:
            raise _too_many()
        return size

    def _check_end(self, end: str) -> None:
        """Refuse a mix that ended before it was as large as it was asked to be."""
        if end == "budget" or (self.total is None and self.recipe.rows is None and self.recipe.tokens is None):
            return
        unit: str = self.recipe.weigh_by
        asked = self.total
        if asked is None:
            unit, asked = ("rows", self.recipe.rows) if self.recipe.rows is not None else ("tokens", self.recipe.tokens)
        given = sum(self.taken) if unit == "rows" else self._tokens(self.taken)
        used = [
            s.name for s, n, most in zip(self.sizes, self.taken, self.supply, strict=True) if n >= min(most, s.rows)
        ]
        raise UsageError(
            f"the sources give {given:,} {unit} of the {asked:,} that are asked for; used up: {', '.join(used)}",
            f"Ask for less, use rows again with stop = 'restart'{_or_leave(self.recipe)}, or allow more epochs.",
        )


def _or_leave(recipe: Recipe) -> str:
    return ", let sources leave with stop = 'all_exhausted'" if recipe.stop == "first_exhausted" else ""


def _too_many() -> UsageError:
    return UsageError(f"the mix has more than {MAX_BLOCKS:,} blocks", "Take a larger block_size, or limit its rows.")


def _largest(size: int, fits: Callable[[int], bool]) -> int:
    """The largest number below `size` that fits; 0 does."""
    low, high = 0, size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _supply(recipe: Recipe, number: int, size: Size) -> int:
    """The rows that a source may give before it counts as exhausted."""
    if recipe.stop in ("restart", "all_exhausted_restart"):
        return ENDLESS
    epochs = recipe.sources[number].epochs
    times: float = recipe.repeat or 1
    if epochs is not None:
        times = min(epochs, times) if recipe.repeat else epochs
    supply = int(Fraction(str(times)) * size.rows)
    if not supply:
        raise UsageError(
            f"{plural(size.rows, 'row')} of {size.name!r}, epochs = {epochs}: no row is left", "Allow more."
        )
    return supply


def _units(recipe: Recipe, size: Size) -> int:
    return size.lengths.total if recipe.weigh_by == "tokens" and size.lengths else size.rows


def _weights(recipe: Recipe, sizes: Sequence[Size]) -> tuple[Shares, int | None]:
    """The weights as whole numbers, and the end of the clock where there is one."""
    total = recipe.rows if recipe.weigh_by == "rows" else recipe.tokens
    if recipe.temperature is not None:
        logs = [math.log(_units(recipe, size)) / recipe.temperature for size in sizes]
        weights = [math.exp(value - max(logs)) for value in logs]
        for name, weight in zip(recipe.names, weights, strict=True):
            if not weight >= sum(weights) / SCALE:
                raise UsageError(
                    f"temperature = {recipe.temperature:g} leaves {name!r} less than 1e-12 of the whole",
                    "Take a higher temperature (1 is proportional to size), or weights.",
                )
        return rounded(weights), total
    budgets = [source.rows if recipe.weigh_by == "rows" else source.tokens for source in recipe.sources]
    weights = [source.weight or 1.0 for source, budget in zip(recipe.sources, budgets, strict=True) if budget is None]
    positive([s.name for s, budget in zip(recipe.sources, budgets, strict=True) if budget is None], weights)
    fixed = sum(budget or 0 for budget in budgets)
    if len(weights) == len(sizes):
        return exact(weights), total
    if (not weights and total not in (None, fixed)) or (weights and (total or 0) <= fixed):
        raise UsageError(
            f"budgets of {fixed:,} {recipe.weigh_by}, of {total:,} in all", "Leave the whole out, or make it fit."
        )
    total = fixed if total is None else total
    parts = iter(exact(weights))
    scale = sum(exact(weights)) or 1
    return tuple(next(parts) * (total - fixed) if b is None else b * scale for b in budgets), total
