"""What a tracked render says about its text: where the data stands in it, and which stretch each message printed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from datakit.templates.tracked import KWARGS, TOOLS, UNKNOWN, Origin, Tracked

GENERATED: Final = frozenset({"content", "reasoning", "calls"})
"""Parts of an assistant message that the model writes."""


class Run(NamedTuple):
    """Characters start to end, of one origin."""

    start: int
    end: int
    origin: Origin


class Interval(NamedTuple):
    """The output of one pass of a loop over a message."""

    start: int
    end: int


@dataclass(slots=True)
class Output:
    """A rendered row.

    Attributes:
        text: what was printed.
        data: runs that come from the row: messages other than their roles, tools, template arguments; and unknown ones.
        tokens: runs that are special tokens, such as `eos_token`.
        empty: (message, field) -> where an empty text of it was printed.
        intervals: message -> the stretches that loops printed for it.
        blocks: generation blocks of the template, in order.
    """

    text: str
    data: list[Run] = field(default_factory=list)
    tokens: list[Run] = field(default_factory=list)
    empty: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    intervals: dict[int, list[Interval]] = field(default_factory=lambda: defaultdict(list))
    blocks: list[Interval] = field(default_factory=list)

    def unknown(self) -> str | None:
        """Text whose origin is not known, if there is any that says something."""
        for run in self.data:
            if run.origin == UNKNOWN:
                text = self.text[run.start : run.end].strip()
                if text:
                    return text
        return None

    def of(self, message: int) -> list[Run]:
        """The runs that the model writes in a message."""
        return [run for run in self.data if run.origin[0] == message and run.origin[1] in GENERATED]


def is_data(origin: Origin) -> bool:
    """Whether text of this origin comes from the row and is more than a role."""
    if isinstance(origin[0], int):
        return origin[1] != "role"
    return origin in (TOOLS, KWARGS, UNKNOWN)


def read(printed: Tracked) -> Output:
    """The pieces of a tracked render, sorted by what they say."""
    output = Output(str.__str__(printed))
    opened: dict[int, tuple[int, int]] = {}  # loop -> message, start
    blocks: list[int] = []
    at = 0
    for length, origin in printed._pieces:
        if length:
            if is_data(origin):
                _add(output.data, Run(at, at + length, origin))
            elif origin[0] == "token":
                _add(output.tokens, Run(at, at + length, origin))
            at += length
        elif origin[0] == "mark":
            _, kind, loop, message = origin
            if loop == "generation":
                if kind == "begin":
                    blocks.append(at)
                elif blocks:
                    output.blocks.append(Interval(blocks.pop(), at))
                continue
            # a pass that `continue` or `break` has cut short ends where the next begins, or behind the loop
            if loop in opened:
                number, start = opened.pop(loop)
                output.intervals[number].append(Interval(start, at))
            if kind == "begin":
                opened[loop] = (message, at)
        elif isinstance(origin[0], int) and origin[1] in GENERATED:
            output.empty[origin[0]].append(at)
    for number, start in opened.values():
        output.intervals[number].append(Interval(start, at))
    output.blocks.sort()
    return output


def _add(runs: list[Run], run: Run) -> None:
    if runs and runs[-1].end == run.start and runs[-1].origin == run.origin:
        run = Run(runs.pop().start, run.end, run.origin)
    runs.append(run)
