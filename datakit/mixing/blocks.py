"""`block_mixture_interleave`: datasets of any kind, also endless ones, mixed in blocks while they are read.

It has the name and the arguments of EasyDeL's function, and the apportionment and the shuffles of `mix`. Since it does
not know how many rows there are, it has no plan and resumes as `datasets` does; `datakit.stream` resumes at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from datakit.errors import UsageError
from datakit.mixing.apportion import ByRows, Shares, exact, positive
from datakit.mixing.order import BLOCK, permutation

if TYPE_CHECKING:
    import datasets

STOPS: Final = ("restart", "first_exhausted", "all_exhausted", "all_exhausted_restart")

Rows = Iterable[Mapping[str, Any]]


def block_mixture_interleave(
    datasets: Mapping[str, Rows],
    weights: Mapping[str, float] | None = None,
    block_size: int = 1000,
    seed: int = 42,
    stop: str = "restart",
) -> datasets.IterableDataset:
    """Datasets mixed by weight, block by block. Needs the `datasets` package.

    Args:
        datasets: name -> a `datasets.Dataset`, an `IterableDataset`, `Shards`, or anything that can be iterated anew.
        weights: name -> weight; equal ones by default.
        block_size: rows of a block.
        seed: decides the order within blocks.
        stop: `restart` goes on for ever, `first_exhausted` ends where a dataset has no next row, `all_exhausted` lets
            exhausted ones leave, `all_exhausted_restart` ends when each has been read to its end.

    Raises:
        UsageError: names or weights do not fit, or the stop is unknown; while iterating, where a dataset is empty.
    """
    import datasets as library

    shares = _checked(datasets, weights, block_size, stop)
    sources = {"sources": dict(datasets), "shares": shares, "block_size": block_size, "seed": seed, "stop": stop}
    return library.IterableDataset.from_generator(_mixed, gen_kwargs=sources)


def _checked(datasets: Any, weights: Any, block_size: int, stop: str) -> Shares:
    if not isinstance(datasets, Mapping):
        raise UsageError(f"datasets must be a dict, got {type(datasets).__name__}", "Name each dataset.")
    if not datasets:
        raise UsageError("No datasets to mix", "Name at least one.")
    if weights is not None and not isinstance(weights, Mapping):
        raise UsageError(f"weights must be a dict or None, got {type(weights).__name__}", "Name each weight.")
    given = dict.fromkeys(datasets, 1.0) if weights is None else dict(weights)
    if given.keys() != datasets.keys():
        missing, extra = datasets.keys() - given.keys(), given.keys() - datasets.keys()
        raise UsageError(
            f"Weight keys must match dataset keys. Missing: {sorted(missing)}. Extra: {sorted(extra)}.",
            "Give one weight for each dataset.",
        )
    if block_size < 1:
        raise UsageError(f"block_size = {block_size}", "At least one row.")
    if stop not in STOPS:
        raise UsageError(f"stop = {stop!r}", f"One of {', '.join(STOPS)}.")
    positive(list(datasets), [given[name] for name in datasets])
    return exact([given[name] for name in datasets])


def _mixed(
    sources: Mapping[str, Rows], shares: Shares, block_size: int, seed: int, stop: str
) -> Iterator[Mapping[str, Any]]:
    rows = [iter(source) for source in sources.values()]
    once = [False] * len(rows)  # read to the end at least once
    alive = list(range(len(rows)))
    apportion = ByRows([0] * len(rows), lambda _: shares, 0, block_size)
    block = 0
    while alive:
        counts = apportion.counts(block_size)
        given = np.array(counts) - np.array(apportion.taken)
        apportion.go(block_size, counts)
        places = np.repeat(np.arange(len(rows)), given)[permutation(block_size, seed, BLOCK, block)]
        left: set[int] = set()
        for number in places.tolist():
            if number in left:
                continue
            row = next(rows[number], None)
            if row is None:
                once[number] = True
                if stop == "first_exhausted" or (stop == "all_exhausted_restart" and all(once)):
                    return
                if stop == "all_exhausted":
                    left.add(number)
                    continue
                rows[number], row = _again(sources, number)
            yield row
        block += 1
        if left:
            alive = [number for number in alive if number not in left]
            own = tuple(share if number in alive else 0 for number, share in enumerate(shares))
            if alive:
                apportion = ByRows([0] * len(rows), lambda _, own=own: own, 0, block_size)  # type: ignore[misc]


def _again(sources: Mapping[str, Rows], number: int) -> tuple[Iterator[Mapping[str, Any]], Mapping[str, Any]]:
    name = list(sources)[number]
    rows = iter(sources[name])
    row = next(rows, None)
    if row is None:
        raise UsageError(f"the dataset {name!r} is empty and cannot be restarted", "Leave it out.")
    return rows, row
