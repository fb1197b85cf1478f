"""KTO: single answers that are desirable or not."""

from __future__ import annotations

from collections import Counter
from typing import Final

from datakit.checks.declare import Check

LABELLED: Final = ("kto",)


Range = tuple[float, float]


def weight_bounds(desirable: int, undesirable: int) -> tuple[Range, Range]:
    """The ranges that TRL recommends for `desirable_weight` and `undesirable_weight`, the other one being 1.

    From the KTO paper (https://arxiv.org/abs/2402.01306), section 4.2: desirable_weight * n_desirable should be
    between 1 and 4/3 of undesirable_weight * n_undesirable. Rounded as TRL rounds before it warns.
    """
    ratio, inverse = undesirable / desirable, desirable / undesirable
    return (round(ratio, 2), round(1.33 * ratio, 2)), (round(inverse / 1.33, 2), round(inverse, 2))


def imbalance(counts: Counter[str]) -> str | None:
    good, bad = counts["label true"], counts["label false"]
    if not good or not bad:
        return None
    bounds = weight_bounds(good, bad)
    if any(low <= 1 <= high for low, high in bounds):
        return None
    (low, high), (inverse_low, inverse_high) = bounds
    return (
        f"{good} desirable to {bad} undesirable; TRL recommends desirable_weight between {low:.2f} and {high:.2f} "
        f"with undesirable_weight 1, or undesirable_weight between {inverse_low:.2f} and {inverse_high:.2f} "
        "with desirable_weight 1"
    )


def one_class(counts: Counter[str]) -> str | None:
    good, bad = counts["label true"], counts["label false"]
    if good + bad and not (good and bad):
        return f"all {good + bad} rows are {'desirable' if good else 'undesirable'}"
    return None


def in_blocks(counts: Counter[str]) -> str | None:
    """Said where labels change a tenth as often as they would in random order."""
    good, bad, changes = counts["label true"], counts["label false"], counts["label changes"]
    if good + bad < 50 or not (good and bad):
        return None
    expected = 2 * good * bad / (good + bad)
    if changes < 0.1 * expected:
        return f"labels change {changes} times in file order where about {expected:.0f} would be random"
    return None


KTO: Final = (
    Check("DK501", "label-not-bool", "error", "A label is a boolean, or a word that a map names.", "Name the words under [labels] in a --map file."),
    Check("DK502", "one-class", "warning", "There are desirable and undesirable rows.", "KTO needs both; add the other class.", "set", kinds=LABELLED),
    Check("DK503", "imbalance", "warning", "The classes are balanced, or weighted so.", "Set the weights that the finding names.", "set", kinds=LABELLED),
    Check("DK504", "label-conflict", "warning", "No answer is desirable in one row and undesirable in another.", "Decide which of the two holds.", "set", kinds=LABELLED),
    Check("DK505", "batch-order", "warning", "Labels are mixed in file order, since KTO compares within a batch.", "Shuffle the rows before or while training.", "set", kinds=LABELLED),
)  # fmt: skip
