"""Weights that change while rows are given: points, and how to get from one to the next."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from datakit.errors import UsageError

INTERPOLATIONS: Final = ("step", "linear", "cosine")
AXES: Final = ("rows", "tokens", "steps")
TOLERANCE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class WeightSchedulePoint:
    """Weights from a place on.

    Attributes:
        step: the place, in the unit of the schedule's axis.
        weights: source -> weight, with a sum of 1.

    Raises:
        UsageError: a weight is negative or no number, or the sum is another.
    """

    step: int
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        if not isinstance(self.step, int) or isinstance(self.step, bool) or self.step < 0:
            raise UsageError(f"schedule point at {self.step!r}", "A whole number, not negative.")
        for name, weight in self.weights.items():
            if not is_number(weight) or weight < 0:
                where = f"schedule point at {self.step}"
                raise UsageError(f"{where}: the weight of {name!r} is {weight!r}", "A number, not negative.")
        total = sum(self.weights.values())
        if abs(total - 1) > TOLERANCE:
            raise UsageError(f"schedule point at {self.step}: Weights must sum to 1.0, got {total}")


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True, slots=True)
class WeightScheduler:
    """The weights at any place.

    Before the first point the weights are those of the first, behind the last those of the last.

    Args:
        schedule: the points, in any order, with the same sources each.
        interpolation: `step` holds the weights of the point before, `linear` and `cosine` go over to the next.

    Raises:
        UsageError: no points, two at one place, different sources, or an unknown interpolation.
    """

    schedule: Sequence[WeightSchedulePoint]
    interpolation: str = "step"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation {self.interpolation!r}", f"One of {', '.join(INTERPOLATIONS)}.")
        if not self.schedule:
            raise UsageError("a schedule without points", "Give at least one.")
        points = sorted(self.schedule, key=lambda point: point.step)
        for before, after in pairwise(points):
            if before.step == after.step:
                raise UsageError(f"two schedule points at {after.step}", "Only one can hold; remove the other.")
            if before.weights.keys() != after.weights.keys():
                odd = ", ".join(sorted(before.weights.keys() ^ after.weights.keys()))
                raise UsageError(
                    f"schedule points at {before.step} and {after.step} name different sources: {odd}",
                    "Every point names every source; 0 is a weight.",
                )
        object.__setattr__(self, "schedule", tuple(points))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.schedule[0].weights)

    def unseen(self, steps: Sequence[float]) -> list[int]:
        """The points whose weights have no part in those at the given places, which ascend."""
        smooth = self.interpolation != "step"
        ends = [-math.inf, *(point.step for point in self.schedule), math.inf]
        found: list[int] = []
        for number, (before, point, after) in enumerate(zip(ends, self.schedule, ends[2:], strict=False)):
            since = before if smooth or not number else point.step
            if (bisect_right if smooth else bisect_left)(steps, since) == bisect_left(steps, after):
                found.append(point.step)
        return found

    @property
    def last(self) -> int:
        """The place from which the weights stay as they are."""
        return self.schedule[-1].step

    def get_weights(self, step: float) -> dict[str, float]:
        """The weights at a place, with a sum of 1."""
        at = bisect_right([point.step for point in self.schedule], step) - 1
        if at < 0 or at == len(self.schedule) - 1 or self.interpolation == "step":
            return dict(self.schedule[max(at, 0)].weights)
        left, right = self.schedule[at], self.schedule[at + 1]
        way = (step - left.step) / (right.step - left.step)
        if self.interpolation == "cosine":
            way = (1 - math.cos(math.pi * way)) / 2
        return {name: weight + (right.weights[name] - weight) * way for name, weight in left.weights.items()}
