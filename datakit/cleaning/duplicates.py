"""`dedup`: every row once. The first stays, in the order of the inputs; rows of a held-out split come before train."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datakit.cleaning import keys
from datakit.cleaning.minhash import PERMUTATIONS, bands, near_duplicates
from datakit.cleaning.rows import TRAIN, Places, Rows, Verdict, at_least, deal, empty_splits, split_of
from datakit.cleaning.texts import need_prompts, need_texts, prompts, text_columns
from datakit.errors import UsageError
from datakit.plan import FailOn, parse_size
from datakit.reading.limits import SHARD_SIZE
from datakit.report import Report
from datakit.rewrite import Piece, Work, write
from datakit.run import Progress
from datakit.schema import ROW, SOURCE

By = Literal["row", "prompt", "near"]

ANSWERS: Final = frozenset({"preference", "kto", "ranked", "stepwise"})
"""Kinds that have several answers to one prompt on purpose."""

THRESHOLD: Final = 0.8
NGRAM: Final = 3


def dedup(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    by: By = "row",
    any_answer: bool = False,
    threshold: float | None = None,
    ngram: int | None = None,
    severity: Mapping[str, str] | None = None,
    fail_on: FailOn = "error",
    shard_size: str | int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Leave out rows that repeat an earlier one, and list each with what it repeats.

    Args:
        inputs: shard folders of one kind.
        output: the folder of the new shards; whole or absent.
        by: row: what trainers read is the same, byte by byte. prompt: what is asked is the same; for preference, KTO,
            ranked and stepwise rows the answers too. near: texts are nearly the same; see `cleaning.minhash`.
        any_answer: with prompt, rows of those kinds are the same whatever their answers.
        threshold: with near, the Jaccard similarity from which two rows are the same, above 0 to 1; 0.8 by default.
        ngram: with near, words per run; 3 by default.
        severity, fail_on, shard_size, overwrite, progress: as in `convert`.

    Returns:
        The report. Rows left out are rejects with a reason; the run passes.

    Raises:
        UsageError: the call is wrong, the rows cannot be compared so, or an output of another plan exists.
        NoManifest, UnreadableInput, NotWritten, Locked: as in `convert`.
    """
    threshold, ngram = _settled(by, any_answer, threshold, ngram)
    rows = Rows.open(inputs, "dedup")
    splits = rows.splits
    rows = replace(rows, sources=sorted(rows.sources, key=lambda source: split_of(source) == TRAIN))
    if by == "prompt":
        need_prompts(rows.layout, "--by prompt")
    elif by == "near":
        need_texts(rows.layout, "--by near")
    facts = {}
    if by == "near":
        count, width = bands(threshold)
        facts = {"near": {"permutations": PERMUTATIONS, "bands": count, "rows per band": width}}
    work = Work(
        command="dedup",
        request={"by": by, "any_answer": any_answer, "threshold": threshold, "ngram": ngram},
        sources=rows.sources,
        layout=rows.layout,
        columns=rows.schema,
        splits=splits,
        facts=facts,
        severity=severity or {},
        fail_on=fail_on,
        shard_size=parse_size(shard_size) if isinstance(shard_size, str) else shard_size,
    )

    def pieces() -> Iterator[Piece]:
        found = _Repeats(rows, by, any_answer, threshold, ngram, splits)
        yield from deal(rows, splits, found.judge)

    return write(
        work, pieces(), output, overwrite=overwrite, finish=lambda tally: empty_splits(tally, splits), progress=progress
    )


def _settled(by: str, any_answer: bool, threshold: float | None, ngram: int | None) -> tuple[float, int]:
    """How near rows have to be.

    Raises:
        UsageError: an unknown word, a number that is none, or an option that goes with another `by`.
    """
    if by not in get_args(By):
        raise UsageError(f"--by {by}", f"One of {', '.join(get_args(By))}.")
    if any_answer and by != "prompt":
        raise UsageError("--any-answer without --by prompt", "Leave it out, or add --by prompt.")
    for name, value in (("--threshold", threshold), ("--ngram", ngram)):
        if value is not None and by != "near":
            raise UsageError(f"{name} without --by near", "Leave it out, or add --by near.")
    threshold, ngram = THRESHOLD if threshold is None else threshold, NGRAM if ngram is None else ngram
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold!r}", "A number above 0, to 1. 0.8 is customary.")
    return threshold, at_least("--ngram", ngram, 1, "Words per run, one or more.")


class _Repeats:
    """Which rows repeat which."""

    def __init__(
        self, rows: Rows, by: By, any_answer: bool, threshold: float, ngram: int, splits: Sequence[str]
    ) -> None:
        self.splits, self.side = splits, rows.side(splits)
        self.places = Places(len(rows))
        self.same, self.first = _same(rows, "row" if by == "near" else by, any_answer, self.places)
        self.near: dict[int, tuple[int, float]] = {}
        if by == "near":
            columns = text_columns(rows.layout)
            gone = self.first != np.arange(len(self.first))

            def tables() -> Iterator[tuple[int, pa.Table]]:
                return ((start, table) for _, start, table in rows.tables(columns))

            self.near = near_duplicates(tables, rows.layout, gone, threshold, ngram)

    def judge(self, start: int, table: pa.Table) -> Verdict:
        """What becomes of the rows of a table."""
        positions = np.arange(start, start + table.num_rows)
        again = np.flatnonzero(self.first[positions] != positions).tolist()
        out = {at: self._told(start + at, int(self.first[start + at]), *self.same) for at in again}
        for at, (other, alike) in self._near_in(start, table.num_rows):
            out[at] = self._told(start + at, other, "DK804", f"{100 * alike:.0f} % of the word runs of")
        return Verdict(self.side[start : start + table.num_rows], out)

    def _near_in(self, start: int, count: int) -> Iterator[tuple[int, tuple[int, float]]]:
        return (
            ((at, self.near[start + at]) for at in range(count) if start + at in self.near) if self.near else iter(())
        )

    def _told(self, position: int, other: int, rule: str, words: str) -> tuple[str, str]:
        """(check, message) of a row that repeats another."""
        message = f"{words} {self.places.told(other)}"
        if self.side[position] == self.side[other]:
            return rule, message
        split = self.splits[self.side[other]]
        if self.splits[self.side[position]] != TRAIN:
            return rule, f"{message} in split {split}, which comes first"
        return "DK805", f"{message} in split {split}; the held-out row stays"


def _same(rows: Rows, by: str, any_answer: bool, places: Places) -> tuple[tuple[str, str], npt.NDArray[np.int64]]:
    """((check, words), for every row the first that is the same)."""
    asked = by == "prompt"
    columns = text_columns(rows.layout) if asked else rows.contents
    with_answers = rows.layout.kind in ANSWERS and not any_answer
    found = keys.empty(len(rows))
    for _, start, table in rows.tables([*columns, SOURCE, ROW]):
        places.add(start, table)
        own = found[start : start + table.num_rows]
        if not asked:
            own[:] = keys.of_contents(table, columns)
        elif with_answers:
            own[:] = keys.of_contents(table, [c.name for c in rows.layout.columns])
        else:
            own[:] = keys.digests(text.encode() for text in prompts(table, rows.layout))
    return (("DK803", "the same prompt as") if asked else ("DK802", "the same as")), keys.firsts(found)
