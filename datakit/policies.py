"""What `--truncation` and `--pack` can be, by name. `fit` and `pack` do it, in workers; this imports nothing."""

from __future__ import annotations

from typing import Final, Literal, get_args

Policy = Literal["error", "drop", "keep_start", "keep_end", "per_part", "window"]
Cut = Literal["keep_start", "keep_end", "per_part"]
POLICIES: Final[tuple[Policy, ...]] = get_args(Policy)
CUTS: Final[tuple[Cut, ...]] = get_args(Cut)
ANSWER_POLICIES: Final[tuple[Policy, ...]] = ("error", "drop", "keep_start", "per_part")
"""Policies for a prompt with answers. `keep_end` could begin in the middle of an answer; `per_part` does not."""

Strategy = Literal["bfd", "bfd_split", "wrapped"]
STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)
