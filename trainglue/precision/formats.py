"""What can be asked for, and what became of a model: plain values that load neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from datakit.errors import DatakitError, UsageError

if TYPE_CHECKING:
    from torch import nn

PRECISIONS: Final = ("fp32", "bf16", "fp16", "qlora", "fp8", "fp8_weights")

RECIPES: Final[Mapping[str, Mapping[str, int]]] = {
    "torchao": {"tensorwise": 16, "rowwise": 16, "rowwise_with_gw_hp": 16},
    "te": {"current": 16, "delayed": 16, "mxfp8": 32},
}
"""Backends and their recipes, the default first. The number is the block: both sizes of a layer and the tokens of a
batch should be a multiple of it."""


class PrecisionNotUsed(DatakitError):
    """A run asked for a precision and does not compute in it."""

    exit_code = 3


@dataclass(frozen=True)
class Fp8:
    """How a run computes in FP8.

    Args:
        backend: `torchao`, or `te` for Transformer Engine.
        recipe: how scales are found. torchao: `tensorwise`, `rowwise`, `rowwise_with_gw_hp`. te: `current` (from the
            tensor itself), `delayed` (from earlier steps), `mxfp8` (per 32 values). By default the first.
        fp8_format: te only: `HYBRID` (E4M3 forward, E5M2 backward) or `E4M3`. The formats of torchao follow from
            the recipe.
        amax_history_len: `delayed` only: steps that a scale looks back.
        amax_compute_algo: `delayed` only: `max` of these steps or the `most_recent`.
        emulate: compute the same numbers in fp32, on any device. For tests: it is slow. torchao only.

    Raises:
        UsageError: names that do not exist or do not go together.
    """

    backend: str = "torchao"
    recipe: str = ""
    fp8_format: str = ""
    amax_history_len: int | None = None
    amax_compute_algo: str = ""
    emulate: bool = False

    def __post_init__(self) -> None:
        backend = self.backend.lower()
        among("FP8 backend", backend, tuple(RECIPES))
        recipe = self.recipe or next(iter(RECIPES[backend]))
        among(f"recipe of {backend}", recipe, tuple(RECIPES[backend]))
        object.__setattr__(self, "backend", backend)
        object.__setattr__(self, "recipe", recipe)
        if self.fp8_format:
            among("FP8 format", self.fp8_format, ("HYBRID", "E4M3"))
            if backend != "te":
                raise UsageError(
                    "torchao has no fp8_format", "Its recipe decides: tensorwise is hybrid, rowwise is E4M3."
                )
        if self.amax_compute_algo:
            among("amax_compute_algo", self.amax_compute_algo, ("max", "most_recent"))
        if (self.amax_history_len is not None or self.amax_compute_algo) and recipe != "delayed":
            raise UsageError(
                f"recipe {recipe} of {backend} keeps no history of scales",
                "amax_history_len and amax_compute_algo belong to backend te with recipe delayed.",
            )
        if self.amax_history_len is not None and self.amax_history_len < 1:
            raise UsageError(f"amax_history_len is {self.amax_history_len}", "It is a number of steps, 1 or more.")
        if self.emulate and backend == "te":
            raise UsageError("Transformer Engine needs a GPU and emulates nothing", "Use backend torchao.")

    @property
    def block(self) -> int:
        """The number that sizes should be a multiple of."""
        return RECIPES[self.backend][self.recipe]

    def __str__(self) -> str:
        return f"fp8 ({self.backend}, {self.recipe}{', emulated' if self.emulate else ''})"


@dataclass(frozen=True)
class Conversion:
    """What `prepare` did to a model.

    Attributes:
        precision: as asked for.
        fp8: the settings of FP8, if that was asked for.
        layers: the converted layers by the names that they had, as they stand in the model now.
        skipped: the linear layers that were left alone, each with the reason.
    """

    precision: str
    fp8: Fp8 | None = None
    layers: Mapping[str, nn.Module] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def pad_multiple(self) -> int | None:
        """Pad batches to a multiple of this many tokens. Others compute the same, but copy first."""
        return self.fp8.block if self.fp8 else None

    def describe(self) -> str:
        """A few lines for people: how many layers, which not and why."""
        if self.fp8 is None:
            return self.precision
        reasons: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            reasons.setdefault(reason, []).append(name)
        lines = [f"{self.fp8}: {len(self.layers)} linear layers converted, {len(self.skipped)} left alone"]
        lines += [f"  {_few(names)}: {reason}" for reason, names in reasons.items()]
        return "\n".join(lines)


def among(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"no {what} {value!r}", f"Choose one of {', '.join(allowed)}.")


def _few(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} layers such as {names[0]}"
