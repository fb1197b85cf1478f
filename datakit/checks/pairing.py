"""What only shows when answers are paired. `datakit pair` and `unpair` raise these; there is no function to run."""

from __future__ import annotations

from typing import Final

from datakit.checks.declare import Check
from datakit.checks.preference import PAIRS

PAIRING: Final = (
    Check("DK412", "preference-cycle", "warning", "Preferences have no cycle: where A is better than B and B than C, C is not better than A.", "Decide which of them holds.", "format", kinds=PAIRS),
    Check("DK413", "no-partner", "warning", "Every answer has another one to be paired with. One without goes to rejects/ and is counted.", "Nothing; or look why its partner is missing or has another prompt.", "format"),
    Check("DK414", "below-margin", "warning", "Two answers are at least --min-margin apart. Rows without such a pair go to rejects/ and are counted.", "Nothing; or lower --min-margin.", "format"),
    Check("DK415", "no-score", "warning", "Every row has a number as its score. One without goes to rejects/ and is counted.", "Name the right column or key of dk_meta with --score.", "format"),
)  # fmt: skip
