"""Which rows become pairs. All keys are read first, 16 bytes a row, so what becomes of every row is known ahead."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from orjson import loads

from datakit.errors import UsageError
from datakit.pairing.contents import Numbers, cells, extras, hashes, names_of, numbered, stored
from datakit.pairing.rows import Rows
from datakit.pairing.selection import Selected, select
from datakit.schema import ID, LENGTH, META, PAIR_ID, ROW, SOURCE, Layout


@dataclass(slots=True)
class Plan:
    """What becomes of the rows of one split.

    Attributes:
        better, worse: positions of the rows of each pair; of ranked rows, the row twice.
        answers: of ranked rows, the numbers of the better and of the worse answer within the row.
        scores: the same for their scores.
        merged: rows that are part of a pair, or of a group of which there is one.
        fanout: groups by the number of their pairs.
        left: rows that are in no pair, by the check that says why.
        ties, close, alike: candidates with equal scores, too close ones, and those with one and the same answer.
    """

    better: Numbers
    worse: Numbers
    answers: tuple[Numbers, Numbers] | None = None
    scores: tuple[Any, Any] | None = None
    merged: int = 0
    fanout: Counter[str] = field(default_factory=Counter)
    left: dict[str, Numbers] = field(default_factory=dict)
    ties: int = 0
    close: int = 0
    alike: int = 0


def of_ranked(rows: Rows, strategy: str | None, min_margin: float, seed: tuple[int, int]) -> Plan:
    """Pairs within ranked rows."""
    counts, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
    for _, table in rows.tables(["scores"]):
        values: Any = table["scores"].combine_chunks()
        counts.append(np.asarray(pc.fill_null(pc.list_value_length(values), 0), np.int64))
        scores.append(np.asarray(values.flatten().cast(pa.float64()), np.float64))
    size, score = np.concatenate(counts), np.concatenate(scores)
    groups, starts = np.repeat(np.arange(len(size)), size), np.cumsum(size) - size
    chosen = select(groups, score, strategy or "best-worst", min_margin, seed)
    row = groups[chosen.better]
    order = np.argsort(row, kind="stable")
    better, worse, row = chosen.better[order], chosen.worse[order], row[order]
    plan = Plan(row, row, (better - starts[row], worse - starts[row]), (score[better], score[worse]))
    plan.ties, plan.close = chosen.ties, chosen.close
    used, each = np.unique(row, return_counts=True)
    plan.fanout = _fanout(each)
    plan.left = _left(np.setdiff1d(np.arange(len(size)), used), groups, score, np.arange(len(size)))
    return plan


def of_rows(
    rows: Rows,
    layout: Layout,
    by: str | None,
    score: str | None,
    strategy: str | None,
    min_margin: float,
    seed: tuple[int, int],
) -> Plan:
    """Pairs of labelled rows, or of scored ones."""
    keys, answers, labels, scores = _read_keys(rows, layout, by, score)
    groups = numbered(keys)
    usable = np.flatnonzero(~np.isnan(scores))
    if by == "score":
        chosen = select(groups[usable], scores[usable], strategy or "best-worst", min_margin, seed)
        chosen.better, chosen.worse = usable[chosen.better], usable[chosen.worse]
    else:
        match = _matched if by == "pair_id" else _crossed
        chosen = Selected(*match(groups, usable[labels[usable]], usable[~labels[usable]]), 0, 0)
    differ = (answers[chosen.better] != answers[chosen.worse]).any(axis=1) | (by == "pair_id")
    order = np.lexsort((chosen.worse[differ], chosen.better[differ]))
    plan = Plan(chosen.better[differ][order], chosen.worse[differ][order])
    plan.ties, plan.close, plan.alike = chosen.ties, chosen.close, int((~differ).sum())
    with_pair, counts = np.unique(groups[plan.better], return_counts=True)
    if by == "score":
        used = usable[np.isin(groups[usable], with_pair)]
        left = np.setdiff1d(usable, used)
        plan.left = _left(left, groups[usable], scores[usable], groups)
    else:
        used = np.union1d(plan.better, plan.worse)
        plan.left = {"DK413": np.setdiff1d(usable, used)}
    unusable = np.setdiff1d(np.arange(len(rows)), usable)
    if len(unusable):
        rule = "DK415" if by == "score" else "DK413"
        plan.left[rule] = np.union1d(plan.left.get(rule, unusable), unusable)
    plan.merged, plan.fanout = len(used), _fanout(counts)
    return plan


def _left(left: Numbers, groups: Numbers, scores: Any, group_of: Numbers) -> dict[str, Numbers]:
    """Rows without a pair by the reason: one score alone, all scores equal, or none far enough from another.

    Args:
        left: the rows.
        groups: the group of each score.
        scores: all scores.
        group_of: the group of each row.
    """
    count = int(max(groups.max(initial=-1), group_of.max(initial=-1))) + 1
    high, low, several = np.full(count, -np.inf), np.full(count, np.inf), np.bincount(groups, minlength=count)
    np.maximum.at(high, groups, scores)
    np.minimum.at(low, groups, scores)
    own = group_of[left]
    alone = several[own] < 2
    equal = ~alone & (high[own] == low[own])
    return {"DK413": left[alone], "DK410": left[equal], "DK414": left[~alone & ~equal]}


def _fanout(counts: Numbers) -> Counter[str]:
    sizes, groups = np.unique(counts, return_counts=True)
    return Counter({str(size): int(n) for size, n in zip(sizes.tolist(), groups.tolist(), strict=True)})


def _read_keys(rows: Rows, layout: Layout, by: str | None, score: str | None) -> tuple[Any, Any, Any, Any]:
    """Of every row: the key of its pair or prompt, that of its answer, its label, and its score.

    A row that cannot be paired has no number as its score.
    """
    prompt, answer = names_of(layout, "completion")
    keys, answers = np.zeros((len(rows), 2), np.uint64), np.zeros((len(rows), 2), np.uint64)
    labels, scores = np.zeros(len(rows), bool), np.zeros(len(rows))
    names = [n for n in rows.schema.names if n not in (LENGTH, ID) and (n != META or score is not None)]
    for start, table in rows.tables(names):
        at = slice(start, start + len(table))
        parts = [cells(table, prompt, layout), extras(table, rows.schema, layout, [score])]
        if by == "pair_id":
            parts += [stored(table[PAIR_ID]), stored(table[SOURCE]), [b"%d" % (n or 0) for n in table[ROW].to_pylist()]]
            scores[at] = np.where(np.asarray(table[PAIR_ID].is_null()), np.nan, 0)
        else:
            answers[at] = hashes(cells(table, answer, layout))
        if score is not None:
            scores[at] = _scores(table, score)
        keys[at] = hashes(*parts)
        labels[at] = np.asarray(table["label"])
    return keys, answers, labels, scores


def _scores(table: pa.Table, name: str) -> Any:
    """Numbers of a column, or of a key of dk_meta; no number where there is none."""
    if name in table.column_names:
        if not pa.types.is_integer(table[name].type) and not pa.types.is_floating(table[name].type):
            raise UsageError(f"--score {name}: the column is {table[name].type}", "Name a column of numbers.")
        return np.asarray(table[name].cast(pa.float64()).to_numpy(zero_copy_only=False))
    if META not in table.column_names:
        raise UsageError(f"--score {name}: there is no such column, and no {META}")
    values = [loads(meta).get(name) if meta else None for meta in table[META].to_pylist()]
    return np.array([value if type(value) in (int, float) else np.nan for value in values], np.float64)


def _matched(groups: Numbers, chosen: Numbers, rejected: Numbers) -> tuple[Numbers, Numbers]:
    """The first desirable row of a group with its first undesirable one, the second with the second, and so on."""

    def numbers(rows: Numbers) -> tuple[Numbers, Numbers]:
        rows = rows[np.argsort(groups[rows], kind="stable")]
        own = groups[rows]
        firsts = np.flatnonzero(np.concatenate(([True], own[1:] != own[:-1])))[: len(own)]
        within = np.arange(len(own)) - np.repeat(firsts, np.diff(np.append(firsts, len(own))))
        return rows, own * (len(groups) + 1) + within

    (a, of_a), (b, of_b) = numbers(chosen), numbers(rejected)
    _, at_a, at_b = np.intersect1d(of_a, of_b, assume_unique=True, return_indices=True)
    return a[at_a], b[at_b]


def _crossed(groups: Numbers, chosen: Numbers, rejected: Numbers) -> tuple[Numbers, Numbers]:
    """Every desirable row of a group with every undesirable one."""
    rejected = rejected[np.argsort(groups[rejected], kind="stable")]
    own = groups[rejected]
    start, end = np.searchsorted(own, groups[chosen]), np.searchsorted(own, groups[chosen], side="right")
    counts = end - start
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(chosen, counts), rejected[np.repeat(start, counts) + within]
