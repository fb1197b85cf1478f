"""What a plan of a mix shows before a row is read. `datakit mix` raises these; there is no function to run."""

from __future__ import annotations

from typing import Final

from datakit.checks.declare import Check

MIXING: Final = (
    Check("DK820", "source-repeats", "note", "The rows of a source are used once.", "Nothing, if the repeats are wanted; `epochs` in the recipe sets a limit.", "format"),
    Check("DK821", "beyond-epochs", "error", "No source is used more often than its `epochs` say.", "Ask for fewer rows, lower the weight, or raise `epochs`.", "format"),
    Check("DK822", "rare-source", "warning", "Every source gives a row to each block on average.", "Take a larger --block-size, or a larger weight.", "format"),
    Check("DK823", "rows-not-used", "note", "Every row of a source is used.", "Nothing, if the rest is not wanted; --stop all_exhausted uses every row once.", "format"),
    Check("DK824", "schedule-unseen", "warning", "Every point of a schedule has a part in the weights of a block, which are those at its first row.", "Take a smaller --block-size, points farther apart, or a larger mix.", "format"),
)  # fmt: skip
