"""What pairs say about one another: opposite preferences, cycles, answers that are both good and bad, and length.

Every pair is an arrow from a better answer to a worse one. An answer is known by 16 bytes, the hash of its prompt and
itself, and its length by four more, so a pair takes 40 bytes whatever it holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from datakit.checks.preference import length_bias
from datakit.pairing.contents import Keys, Numbers, all_differ, numbered
from datakit.tally import PLACES
from datakit.whole import SetFinding

Place = Callable[[int], tuple[Any, Any]]
"""The dk_source and dk_row of a pair, by its number."""


class Relation:
    """The pairs of one output, by number; `keys` and `sizes` have the better answer first."""

    def __init__(self, pairs: int) -> None:
        self.keys = np.zeros((pairs, 2, 2), np.uint64)
        self.sizes = np.zeros((pairs, 2), np.int32)

    def put(self, pairs: Any, sides: Any, keys: Keys, sizes: Numbers) -> None:
        """Note answers: the numbers of their pairs, and 0 for a better answer, 1 for a worse one."""
        self.keys[pairs, sides] = keys
        self.sizes[pairs, sides] = sizes

    def findings(self, place: Place, labels: bool) -> list[SetFinding]:
        """What the whole set shows.

        Args:
            place: called for the few pairs that are named.
            labels: whether the answers go on as labelled rows, so that one with both labels is of interest.
        """
        found: list[SetFinding] = []
        if not all_differ(self.keys.reshape(-1, 2)):  # an answer of one pair alone contradicts nothing
            answers = numbered(self.keys.reshape(-1, 2)).reshape(-1, 2)
            better, worse = answers[:, 0], answers[:, 1]
            found = [*_opposites(better, worse, place), *_cycles(better, worse, place)]
            found += _both_labels(better, worse, place) if labels else []
        counts = Counter[str]()
        for side, column in zip(("chosen", "rejected"), (0, 1), strict=True):
            counts[f"{side} chars"] = int(self.sizes[:, column].sum(dtype=np.int64))
            counts[f"{side} longer"] = int((self.sizes[:, column] > self.sizes[:, 1 - column]).sum())
        note = length_bias(counts)
        return [*found, *([SetFinding("DK406", note)] if note else [])]


def _opposites(better: Numbers, worse: Numbers, place: Place) -> Iterator[SetFinding]:
    """Pairs that prefer the opposite of another one."""
    low, high = np.minimum(better, worse), np.maximum(better, worse)
    order = np.lexsort((high, low))
    low, high, up = low[order], high[order], (better < worse)[order]
    starts = np.flatnonzero(np.concatenate(([True], (low[1:] != low[:-1]) | (high[1:] != high[:-1]))))[: len(order)]
    if not len(starts):
        return
    ends = np.append(starts[1:], len(order))
    ups = np.add.reduceat(up.astype(np.int64), starts)
    groups = np.flatnonzero((ups > 0) & (ups < ends - starts))
    if len(groups):
        places = []
        for group in groups[:PLACES]:
            pairs = np.sort(order[starts[group] : ends[group]])
            way = better[pairs] < worse[pairs]
            first, other = int(pairs[0]), int(pairs[np.argmax(way != way[0])])
            places.append([*place(other), "", f"the opposite preference of {_told(place(first))}"])
        yield SetFinding("DK404", f"{len(groups)} conflicts", len(groups), places)


def _cycles(better: Numbers, worse: Numbers, place: Place) -> Iterator[SetFinding]:
    """Cycles over three answers and more. Answers that arrows only leave, or only reach, are taken away first."""
    base = int(max(better.max(initial=0), worse.max(initial=0))) + 1
    opposite = np.isin(better * base + worse, worse * base + better)
    pairs = np.flatnonzero((better != worse) & ~opposite)
    inner = np.zeros(len(pairs), bool)
    while len(pairs) and not inner.all():
        inner = np.isin(better[pairs], worse[pairs]) & np.isin(worse[pairs], better[pairs])
        pairs, inner = pairs[inner], inner[inner]
    arrows = zip(better[pairs].tolist(), worse[pairs].tolist(), strict=True)
    cycles = [answers for answers in _strongly_connected(arrows) if len(answers) > 1]
    places = []
    for answers in cycles[:PLACES]:
        own = pairs[np.isin(better[pairs], answers) & np.isin(worse[pairs], answers)].tolist()
        others = ", ".join(_told(place(pair)) for pair in own[1:4])
        places.append([*place(own[0]), "", f"{len(answers)} answers in a circle, with {others}"])
    if cycles:
        yield SetFinding("DK412", f"{len(cycles)} cycles", len(cycles), places)


def _strongly_connected(arrows: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Groups of answers that all lead to one another (Tarjan's algorithm, without recursion)."""
    after: dict[int, list[int]] = {}
    for start, end in arrows:
        after.setdefault(start, []).append(end)
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    path: list[int] = []
    done: set[int] = set()
    calls: list[tuple[int, Iterator[int]]] = []

    def enter(answer: int) -> None:
        index[answer] = low[answer] = len(index)
        path.append(answer)
        calls.append((answer, iter(after.get(answer, ()))))

    for root in list(after):
        if root not in index:
            enter(root)
        while calls:
            answer, rest = calls[-1]
            new = None
            for following in rest:
                if following not in index:
                    new = following
                    break
                if following not in done:
                    low[answer] = min(low[answer], index[following])
            if new is not None:
                enter(new)
                continue
            calls.pop()
            if calls:
                low[calls[-1][0]] = min(low[calls[-1][0]], low[answer])
            if low[answer] == index[answer]:
                group = [path.pop()]
                while group[-1] != answer:
                    group.append(path.pop())
                done.update(group)
                yield group


def _both_labels(better: Numbers, worse: Numbers, place: Place) -> Iterator[SetFinding]:
    """Answers that win one pair and lose another: labelled rows of theirs contradict one another."""
    both = np.intersect1d(better, worse)
    if len(both):
        places = []
        for answer in both[:PLACES]:
            good, bad = int(np.argmax(better == answer)), int(np.argmax(worse == answer))
            places.append([*place(bad), "", f"undesirable here, desirable in {_told(place(good))}"])
        yield SetFinding("DK504", f"{len(both)} answers with both labels", len(both), places)


def _told(place: tuple[Any, Any]) -> str:
    return f"{place[0]} row {place[1]}"
