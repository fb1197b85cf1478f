"""`decontaminate`: rows that hold a text of an evaluation go to the rejects, with the words that both share.

A text of an evaluation is found by its runs of words, 13 by default. Texts too short for that are found where a whole
message or column is the same. A run lies inside one text of a row: one content, one thought, one argument of a call. Of
an evaluation the texts of a row are joined, since the parts of a question may stand in one message. All is compared in
the normal form of `words`. What many rows of an evaluation share, such as an instruction before every question, tells
nothing and is not looked for.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datakit.cleaning.evaluation import HEADER, Evaluation, evaluations
from datakit.cleaning.rows import Rows, Verdict, at_least, deal, empty_splits, text_of, told
from datakit.cleaning.texts import need_texts, segments, strings
from datakit.cleaning.words import Hashes, Offsets, Words, runs, words
from datakit.errors import UsageError
from datakit.plan import FailOn, parse_size
from datakit.reading.limits import SHARD_SIZE
from datakit.report import Report
from datakit.rewrite import Work, write
from datakit.run import Progress
from datakit.terminal import plural

SHORTEST: Final = 5
"""Words that a short text needs to tell anything; `Paris` and `None of the above` do not."""
COMMON: Final = 10
"""Rows of evaluations from which on a run of words, or a short text, is no longer their own."""
TOGETHER: Final = 2000
"""Rows of an evaluation that are taken apart at once."""


def decontaminate(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    ngram: int = 13,
    min_overlap: str = "0%",
    severity: Mapping[str, str] | None = None,
    fail_on: FailOn = "error",
    shard_size: str | int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Leave out rows that hold a text of an evaluation, and list each with the words that both share.

    Args:
        inputs: shard folders of one kind.
        output: the folder of the new shards; whole or absent.
        against: evaluation files (JSON Lines, JSON, CSV, text, Parquet, Arrow), folders of them, or shard folders. All
            texts of a row count.
        ngram: words in a row that have to be shared.
        min_overlap: the share of an evaluation row's runs of words that has to be in a row, such as "50%". By default
            one run is enough.
        severity, fail_on, shard_size, overwrite, progress: as in `convert`.

    Returns:
        The report; `facts["against"]` has what was taken from every evaluation file; after a
        run that wrote, `facts["rows with a text of"]` has the rows that went by file.

    Raises:
        UsageError: the call is wrong, the rows are token ids, or an output of another plan exists.
        NoManifest, UnreadableInput, NotWritten, Locked: as in `convert`.
    """
    at_least("--ngram", ngram, SHORTEST, f"{SHORTEST} words or more; fewer are shared by chance. 13 is customary.")
    least = _share(min_overlap)
    rows = Rows.open(inputs, "decontaminate")
    need_texts(rows.layout, "decontaminate")
    names = [against] if isinstance(against, str | os.PathLike) else against
    files = evaluations([os.fspath(name) for name in names])
    wanted = _Wanted.of(files, ngram)
    if wanted.is_empty:
        texts, short = (sum(own[name] for own in wanted.facts.values()) for name in ("texts", "too short"))
        raise UsageError(
            f"--against {' '.join(file.path for file in files)}: nothing to look for; "
            f"{plural(texts, 'text')}, {short:,} of them under {SHORTEST} words",
            f"Name files with texts of {SHORTEST} words or more that are not shared by {COMMON} rows.",
        )
    work = Work(
        command="decontaminate",
        request={
            "against": [{"path": file.path, "sha256": file.sha256} for file in files],
            "ngram": ngram,
            "min_overlap": min_overlap,
        },
        sources=rows.sources,
        layout=rows.layout,
        columns=rows.schema,
        splits=rows.splits,
        facts={"against": wanted.facts},
        severity=severity or {},
        fail_on=fail_on,
        shard_size=parse_size(shard_size) if isinstance(shard_size, str) else shard_size,
    )
    side = rows.side(rows.splits)
    found = Counter[str]()

    def judge(start: int, table: pa.Table) -> Verdict:
        own = segments(table, rows.layout)
        hits = wanted.hits(words(own.texts), own.offsets, least)
        found.update(wanted.places[doc][0] for doc, _ in hits.values())
        return Verdict(side[start : start + table.num_rows], {at: ("DK806", note) for at, (_, note) in hits.items()})

    report = write(
        work,
        deal(rows, rows.splits, judge),
        output,
        overwrite=overwrite,
        finish=lambda tally: empty_splits(tally, rows.splits),
        progress=progress,
    )
    if found:
        report.facts["rows with a text of"] = dict(sorted(found.items()))
    return report


_OVERLAP: Final = "A share of the evaluation's text with its unit, such as 50%."


def _share(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text_of("--min-overlap", text, _OVERLAP))
    if not match or float(match[1]) > 100:
        raise UsageError(f'--min-overlap "{text}"', _OVERLAP)
    return float(match[1]) / 100


@dataclass(slots=True)
class _Wanted:
    """What is looked for.

    Attributes:
        ngram: words per run.
        runs: all runs of words of all evaluation rows, sorted.
        docs: the evaluation row that each is of.
        sizes: distinct runs of every evaluation row: those inside one of its texts, or all where no text has one.
        short: short texts, as one number each, sorted.
        short_docs: the evaluation row that each is of.
        places: file and line of every evaluation row.
        facts: what was taken from each file.
    """

    ngram: int
    runs: Hashes
    docs: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int32]
    short: Hashes
    short_docs: npt.NDArray[np.int32]
    places: list[tuple[str, int, bool]]
    facts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not len(self.runs) and not len(self.short)

    @classmethod
    def of(cls, files: Sequence[Evaluation], ngram: int) -> _Wanted:
        """Read evaluation files.

        Raises:
            UnreadableInput: one cannot be read.
        """
        found: list[tuple[Hashes, npt.NDArray[np.int32]]] = []
        insides: list[tuple[Hashes, npt.NDArray[np.int32]]] = []
        shorts: list[tuple[Hashes, npt.NDArray[np.int32]]] = []
        places: list[tuple[str, int, bool]] = []
        facts: dict[str, dict[str, int]] = {}
        for file in files:
            by_line = file.by_line
            count = dict.fromkeys(("rows", "texts", "too short"), 0)
            texts: list[str] = []
            docs: list[int] = []

            def take(texts: list[str] = texts, docs: list[int] = docs, count: dict[str, int] = count) -> None:
                own = np.array(docs, np.int32)
                taken = words(texts)
                found.append(_runs_of(taken, own, ngram))
                inside = runs(taken.hashes, taken.offsets, ngram)
                insides.append((inside.values, np.repeat(own, np.diff(inside.offsets))))
                short, too_short = _short_of(taken, own, ngram)
                shorts.append(short)
                count["texts"] += len(texts)
                count["too short"] += too_short
                texts.clear()
                docs.clear()

            for number, row in file.rows():
                own = [text for text in strings(row) if text]
                texts += own
                docs += [len(places)] * len(own)
                places.append((file.path, number, by_line))
                count["rows"] += number != HEADER
                if len(places) % TOGETHER == 0:
                    take()
            take()
            facts[file.path] = count
        values, docs_of, sizes = _own(found, len(places))
        short, short_docs, _ = _own(shorts, len(places))
        for file in files:
            facts[file.path]["runs of words"] = 0
        for doc, size in enumerate(sizes.tolist()):
            facts[places[doc][0]]["runs of words"] += size
        inside = _own(insides, len(places))[2]
        sizes = np.where(inside > 0, inside, sizes)
        return cls(ngram, values, docs_of, sizes, short, short_docs, places, facts)

    def hits(self, own: Words, rows: Offsets, least: float) -> dict[int, tuple[int, str]]:
        """Rows that hold a wanted text -> (the evaluation row, what is shared with it).

        Args:
            own: the words of all texts of the rows.
            rows: the texts of row `i` are `rows[i]` to before `rows[i + 1]`.
            least: the share of an evaluation row's runs that has to be there.
        """
        found: dict[int, tuple[int, str]] = {}
        made = runs(own.hashes, own.offsets, self.ngram)
        there = np.flatnonzero(_among(made.values, self.runs))
        of_text = np.searchsorted(made.offsets, there, side="right") - 1
        of_row = np.searchsorted(rows, of_text, side="right") - 1
        for row in np.unique(of_row).tolist():
            shared = self._shared(own, made.values, made.starts, there[of_row == row], least)
            if shared is not None:
                found[row] = shared
        sizes = np.diff(own.offsets)
        whole = _whole(own, np.flatnonzero((sizes >= SHORTEST) & (sizes < self.ngram)))
        for text in np.flatnonzero(_among(whole, self.short)).tolist():
            at = np.flatnonzero((sizes >= SHORTEST) & (sizes < self.ngram))[text]
            row = int(np.searchsorted(rows, at, side="right")) - 1
            doc = int(self.short_docs[np.searchsorted(self.short, whole[text])])
            shown = own.told(int(own.offsets[at]), int(own.offsets[at + 1]))
            found.setdefault(row, (doc, f"the same text as {self._place(doc)}: {shown}"))
        return found

    def _shared(
        self, own: Words, values: Hashes, starts: Offsets, there: Offsets, least: float
    ) -> tuple[int, str] | None:
        """The evaluation row of which most runs are in a row, and the longest stretch of words that both share."""
        low = np.searchsorted(self.runs, values[there])
        high = np.searchsorted(self.runs, values[there], side="right")
        counts: dict[int, set[int]] = {}
        for at, a, b in zip(there.tolist(), low.tolist(), high.tolist(), strict=True):
            for doc in self.docs[a:b].tolist():
                counts.setdefault(doc, set()).add(int(values[at]))
        doc, shared = max(counts.items(), key=lambda item: (len(item[1]), -item[0]))
        if len(shared) < least * self.sizes[doc]:
            return None
        own_runs = [at for at in there.tolist() if int(values[at]) in shared]
        start, length = _longest([int(starts[at]) for at in own_runs])
        stop = start + length + self.ngram - 1
        return doc, f"{stop - start} words of {self._place(doc)}: {own.told(start, stop)}"

    def _place(self, doc: int) -> str:
        path, number, by_line = self.places[doc]
        if number == HEADER:
            return f"the first line of {path}"
        return f"{path}:{number}" if by_line else told(path, number)


def _longest(positions: Sequence[int]) -> tuple[int, int]:
    """(start, length) of the longest stretch of successive numbers in a sorted list."""
    best = (positions[0], 1)
    start = positions[0]
    for last, here in pairwise(positions):
        start = start if here == last + 1 else here
        best = max(best, (start, here - start + 1), key=lambda span: span[1])
    return best


def _among(values: Hashes, ordered: Hashes) -> npt.NDArray[np.bool_]:
    """Which numbers are in a sorted array."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.asarray(ordered[at] == values)


def _runs_of(taken: Words, docs: npt.NDArray[np.int32], ngram: int) -> tuple[Hashes, npt.NDArray[np.int32]]:
    """The runs of rows, whose texts are read as one text, and the row of each."""
    heads = np.flatnonzero(np.concatenate(([True], docs[1:] != docs[:-1]))) if len(docs) else np.zeros(0, np.int64)
    made = runs(taken.hashes, taken.offsets[np.append(heads, len(docs))], ngram)
    return made.values, np.repeat(docs[heads], np.diff(made.offsets))


def _short_of(
    taken: Words, docs: npt.NDArray[np.int32], ngram: int
) -> tuple[tuple[Hashes, npt.NDArray[np.int32]], int]:
    """Short texts as numbers with the row of each, and how many are too short to tell anything."""
    sizes = np.diff(taken.offsets)
    at = np.flatnonzero((sizes >= SHORTEST) & (sizes < ngram))
    return (_whole(taken, at), docs[at]), int(np.count_nonzero(sizes < SHORTEST))


def _whole(taken: Words, at: Offsets) -> Hashes:
    """Each of some texts as one number."""
    sizes = np.diff(taken.offsets)[at]
    bounds = np.concatenate(([0], np.cumsum(sizes)))
    index = np.repeat(taken.offsets[:-1][at] - bounds[:-1], sizes) + np.arange(bounds[-1])
    return runs(taken.hashes[index], bounds, int(sizes.max(initial=0)), short=True).values


def _own(
    found: Sequence[tuple[Hashes, npt.NDArray[np.int32]]], count: int
) -> tuple[Hashes, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """(numbers, rows, numbers per row) without repeats inside a row and without what COMMON rows share; sorted."""
    values = np.concatenate([np.zeros(0, np.uint64), *(value for value, _ in found)])
    docs = np.concatenate([np.zeros(0, np.int32), *(doc for _, doc in found)])
    order = np.lexsort((docs, values))
    values, docs = values[order], docs[order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (docs[1:] != docs[:-1])
    values, docs = values[new], docs[new]
    heads = (
        np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1]))) if len(values) else np.zeros(0, np.int64)
    )
    sizes = np.diff(np.append(heads, len(values)))
    keep = np.repeat(sizes < COMMON, sizes)
    values, docs = values[keep], docs[keep]
    return values, docs, np.bincount(docs, minlength=count).astype(np.int32)
