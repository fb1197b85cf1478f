"""What split, dedup and decontaminate report. They raise these themselves; there is no function to run."""

from __future__ import annotations

from typing import Final

from datakit.checks.declare import Check

CLEANING: Final = (
    Check("DK802", "row-again", "note", "A row is there once. `datakit dedup` keeps the first and puts the others into rejects/.", "Nothing: the output is without it, and rejects/ names the row that each repeats. If --severity made it an error, a run without that writes both.", "format"),
    Check("DK803", "prompt-again", "note", "With --by prompt, a prompt is there once. The first stays.", "Nothing: the output is without it, and rejects/ names the row that each repeats. If --severity made it an error, a run without that writes both.", "format"),
    Check("DK804", "near-duplicate", "note", "With --by near, no row is nearly an earlier one. The first stays.", "Look at some of them in rejects/; a higher --threshold keeps more.", "format"),
    Check("DK805", "held-out-row-in-train", "warning", "No row of train repeats a row of a held-out split. The held-out one stays.", "Nothing for these shards; models that were trained on the old ones were measured too well.", "format"),
    Check("DK806", "eval-text-in-row", "warning", "No row holds a text of the --against files. Such a row goes to rejects/ with the words that both share.", "Look at some of them in rejects/; --min-overlap and --ngram decide what counts.", "format"),
    Check("DK807", "split-leak", "warning", "No prompt is on both sides of a split.", "Take --group-by prompt; or, where a split was there before, run datakit dedup --by prompt on the result.", "format"),
    Check("DK808", "group-missing", "note", "A row has a value for --group-by. One without is a group of its own content.", "Nothing, or choose another --group-by.", "format"),
    Check("DK809", "split-empty", "error", "Every split of an output has a row.", "For `split`: a larger share, more rows, another --seed, or a --group-by with more groups. `dedup` and `decontaminate` have left all its rows out: see the places of the other findings, and what decides there (--by, --threshold, --ngram, --min-overlap).", "format", raised=True),
    Check("DK810", "stratum-off-share", "warning", "With --stratify, every value has between half and twice the share that was asked for.", "Take another --seed or a larger share, or look whether few groups hold most of its rows.", "format"),
)  # fmt: skip
