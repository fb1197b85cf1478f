"""From scored answers to pairs.

    best-worst    the best answer and the worst
    best-random   the best answer, and one of the others drawn at random
    all           every two answers
    adjacent      every two answers that follow one another by score

The first of equally good answers counts as the best, the last of equally bad ones as the worst. Two answers with equal
scores are a tie, and never a pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from datakit.pairing.contents import Numbers

STRATEGIES: Final = ("best-worst", "best-random", "all", "adjacent")

Scores = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(slots=True)
class Selected:
    """Pairs of answers by their numbers, group by group, and what was looked at and left.

    Attributes:
        better, worse: the two answers of each pair.
        ties: candidates with equal scores.
        close: candidates with different scores that are less than the margin apart.
    """

    better: Numbers
    worse: Numbers
    ties: int
    close: int


def select(groups: Numbers, scores: Scores, strategy: str, min_margin: float, seed: int | tuple[int, int]) -> Selected:
    """Pairs within groups.

    Args:
        groups: the group of each answer.
        scores: the score of each answer; higher is better.
        strategy: one of `STRATEGIES`.
        min_margin: by how much the better one has to be better at least.
        seed: for `best-random`.
    """
    order = np.lexsort((-scores, groups))
    ordered = groups[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))[: len(order)]
    ends = np.append(starts[1:], len(order))[: len(starts)]
    if strategy == "all":
        firsts, seconds = _all(np.repeat(ends, ends - starts) - np.arange(len(order)) - 1)
    elif strategy == "adjacent":
        firsts = np.setdiff1d(np.arange(len(order)), ends - 1)
        seconds = firsts + 1
    else:
        several = ends - starts > 1
        firsts, lasts = starts[several], ends[several] - 1
        seconds = lasts if strategy == "best-worst" else _random(scores[order], firsts, lasts, min_margin, seed)
    margin = scores[order[firsts]] - scores[order[seconds]]
    good = (margin > 0) & (margin >= min_margin)
    ties = int((margin == 0).sum())
    return Selected(order[firsts[good]], order[seconds[good]], ties, len(margin) - int(good.sum()) - ties)


def _all(after: Numbers) -> tuple[Numbers, Numbers]:
    """Every two places of every group, given how many places of its group come after each."""
    firsts = np.repeat(np.arange(len(after)), after)
    within = np.arange(len(firsts)) - np.repeat(np.cumsum(after) - after, after)
    return firsts, firsts + 1 + within


def _random(scores: Scores, firsts: Numbers, lasts: Numbers, min_margin: float, seed: int | tuple[int, int]) -> Numbers:
    """For each group one of the places whose score is low enough; the last one where none is."""
    chosen = lasts.copy()
    draws = np.random.default_rng(seed).random(len(firsts))
    for at, (first, last) in enumerate(zip(firsts.tolist(), lasts.tolist(), strict=True)):
        margins = scores[first] - scores[first + 1 : last + 1]
        low = int(((margins > 0) & (margins >= min_margin)).sum())
        if low:
            chosen[at] = last - int(draws[at] * low)
    return chosen
