"""`pair`: labelled or scored answers to pairs.

    labelled rows that were a pair      --by pair_id    back to what `unpair` was given
    labelled rows                       --by prompt     every desirable answer with every undesirable one of its prompt
    rows with scores                    --by score      by a strategy, see `selection`
    ranked rows                         (their scores)  by a strategy, see `selection`

Pairs lie in the order of their better rows. All but the answers is that of the better row.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from orjson import Fragment, dumps, loads

from datakit.errors import UsageError
from datakit.pairing.contents import (
    Numbers,
    as_ids,
    cells,
    extras,
    hashes,
    names_of,
    quick_keys,
    row_length,
    sizes,
    stored,
    with_extras,
)
from datakit.pairing.matching import Plan, of_ranked, of_rows
from datakit.pairing.relation import Relation
from datakit.pairing.rows import Opened, Rows
from datakit.pairing.selection import STRATEGIES
from datakit.pairing.unpairing import PAIRED, SIDES
from datakit.report import Report, check_gate
from datakit.rewrite import Piece, Work, rejected, write
from datakit.run import Progress
from datakit.schema import ARROW, ID, LENGTH, META, PAIR_ID, ROW, SIDE, SOURCE, Layout, layout
from datakit.tally import PLACES, Tally
from datakit.whole import SetFinding

BY: Final = ("pair_id", "prompt", "score")

OF: Final = PAIRED | {
    ("ranked", "strings"): ("preference", "strings"),
    ("ranked", "messages"): ("preference", "messages"),
}
"""Layout of answers -> layout of pairs."""

WHY: Final = {
    "DK413": "no other side to it",
    "DK410": "all its scores are equal",
    "DK414": "no two scores are far enough apart",
    "DK415": "no score",
}
"""Why a row is in no pair."""


def pair(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    by: str | None = None,
    score: str | None = None,
    strategy: str | None = None,
    min_margin: float = 0.0,
    seed: int = 0,
    fail_on: str = "error",
    severity: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Make pairs of labelled, scored or ranked answers.

    Args:
        inputs: shard folders of labelled answers (formatted or not) or of ranked ones, of one form. Splits stay apart.
        output: the folder of the new shards; whole or absent.
        by: which labelled rows belong together: pair_id (those that `unpair` made of one pair; the default where they
            have dk_pair_id), prompt (every desirable answer with every undesirable one of the same prompt; else the
            default) or score (answers to the same prompt, by their scores). Ranked rows have theirs in one row.
        score: for `by="score"`, a column, or a key of dk_meta.
        strategy: which scored answers become pairs: best-worst (the default), best-random, all or adjacent.
        min_margin: by how much the better score is higher at least. Equal scores are a tie and never a pair.
        seed: for best-random.
        fail_on, severity, overwrite, progress: as in `convert`.

    Returns:
        The report. `facts["paired"]` has the numbers of pairs, of ties, and of rows that are in no pair; these rows are
        listed in rejects/.

    Raises:
        UsageError: the rows are neither labelled nor ranked, or an option does not go with them.
        UnreadableInput, NotWritten, Locked: as in `convert`.
    """
    opened = Opened(inputs)
    found = opened.layout
    if (found.kind, found.form) not in OF:
        raise UsageError(f"{found.name} rows cannot be paired", "pair takes kto shards, formatted or not, and ranked.")
    check_gate(severity, fail_on)
    score = score.removeprefix(f"{META}.") if isinstance(score, str) else score
    by, strategy = _settled(opened, by, score, strategy, min_margin)
    made = layout(*OF[found.kind, found.form])
    plans = [
        of_ranked(rows, strategy, min_margin, (seed, number))
        if found.kind == "ranked"
        else of_rows(rows, found, by, score, strategy, min_margin, (seed, number))
        for number, rows in enumerate(opened.splits.values())
    ]
    asked = {"by": by, "score": score, "strategy": strategy, "min_margin": min_margin, "seed": seed}
    work = Work(
        "pair",
        {**asked, "severity": dict(severity or {}), "fail_on": fail_on},
        opened.sources,
        made,
        _schema(opened, made),
        list(opened.splits),
        facts={**opened.prepared, **({"method": "dpo"} if opened.prepared else {}), "paired": _facts(plans)},
        severity=severity or {},
        fail_on=fail_on,
    )
    relation = Relation(sum(len(plan.better) for plan in plans))

    def place(pair: int) -> tuple[Any, Any]:
        start = 0
        for plan, rows in zip(plans, opened.splits.values(), strict=True):
            if pair < len(plan.better):
                return opened.place(start + int(plan.better[pair]))
            pair, start = pair - len(plan.better), start + len(rows)
        raise IndexError(pair)

    def finish(tally: Tally) -> list[SetFinding]:
        return relation.findings(place, labels=False)

    pieces = _pieces(opened, work, plans, relation, by)
    return write(work, pieces, output, overwrite=overwrite, finish=finish, progress=progress)


def _settled(
    opened: Opened, by: str | None, score: str | None, strategy: str | None, min_margin: float
) -> tuple[str | None, str | None]:
    """How rows find together, and how scores become pairs.

    Raises:
        UsageError: options that do not go with the rows or with one another.
    """
    if by not in (None, *BY):
        raise UsageError(f"--by {by}", f"One of {', '.join(BY)}.")
    if strategy not in (None, *STRATEGIES):
        raise UsageError(f"--strategy {strategy}", f"One of {', '.join(STRATEGIES)}.")
    if isinstance(min_margin, bool) or not isinstance(min_margin, int | float) or not min_margin >= 0:
        raise UsageError(f"--min-margin {min_margin}", "A difference of scores: 0 or more.")
    ranked = opened.layout.kind == "ranked"
    if ranked and by is not None:
        raise UsageError(f"--by {by}: ranked rows hold the answers to one prompt each", "Leave it out.")
    if not ranked and by is None:
        by = "score" if score else "pair_id" if PAIR_ID in opened.schema.names else "prompt"
    if by == "pair_id" and PAIR_ID not in opened.schema.names:
        raise UsageError(f"--by pair_id: the rows have no {PAIR_ID}", "`datakit unpair` adds it. Or take --by prompt.")
    if (by == "score") != (score is not None):
        raise UsageError(
            "--by score needs --score" if by == "score" else f"--score {score} goes with --by score only",
            "Name a column, or a key of dk_meta: --by score --score rating",
        )
    scored = ranked or by == "score"
    if not scored and (strategy is not None or min_margin):
        raise UsageError(f"--strategy and --min-margin are about scores; --by {by} asks for none", "Leave them out.")
    return by, (strategy or "best-worst") if scored else None


def _facts(plans: Sequence[Plan]) -> dict[str, Any]:
    left = Counter[str]()
    for plan in plans:
        left.update({rule: len(rows) for rule, rows in plan.left.items() if len(rows)})
    counts = {name: sum(getattr(plan, name) for plan in plans) for name in ("ties", "close", "alike")}
    return {"pairs": sum(len(plan.better) for plan in plans), **counts, "left": dict(sorted(left.items()))}


# ---------------------------------------------------------------- the loop


def _schema(opened: Opened, made: Layout) -> pa.Schema:
    """The columns of the pairs: those of their layout, and what the rows had besides."""
    gone = {column.name for column in opened.layout.columns} | {PAIR_ID, SIDE}
    gone |= {LENGTH} if made.kind != "tokenized" else set()
    fields = [pa.field(c.name, ARROW[c.type], nullable=c.nullable) for c in made.columns]
    return pa.schema([*fields, *(field for field in opened.schema if field.name not in gone)])


def _pieces(opened: Opened, work: Work, plans: Sequence[Plan], relation: Relation, by: str | None) -> Iterator[Piece]:
    base = 0
    for plan, (split, rows) in zip(plans, opened.splits.items(), strict=True):
        yield Piece(split, None, _account(plan), [], _read(rows, plan))
        tables = _from_ranked(rows, plan, work) if plan.answers else _from_rows(rows, plan, work, by)
        for made in tables:
            yield Piece(split, _judged(made, work, relation, base), Tally())
            base += len(made)
        yield from _rejects(split, rows, plan)


def _judged(made: pa.Table, work: Work, relation: Relation, base: int) -> pa.Table:
    """The pairs with ids of their content where they have none, and noted in the relation."""
    names = (names_of(work.layout, "chosen")[0], *(names_of(work.layout, side)[1] for side in SIDES))
    prompts, chosen, rejected = (cells(made, name, work.layout) for name in names)
    extra = extras(made, work.columns, work.layout)
    for side, texts in enumerate((chosen, rejected)):
        keys, length = with_extras(quick_keys(prompts, texts), extra), sizes(made[names[1 + side]], work.layout)
        relation.put(slice(base, base + len(made)), side, keys, length)
    if work.layout.kind != "tokenized":
        ids = hashes(prompts, chosen, rejected, extra)
        made = made.set_column(made.schema.get_field_index(ID), ID, as_ids(ids))
    return made.select(work.columns.names)


def _read(rows: Rows, plan: Plan) -> dict[int, int]:
    left = np.concatenate([np.zeros(0, np.int64), *plan.left.values()])
    return rows.read_by(np.setdiff1d(np.arange(len(rows)), left))


def _account(plan: Plan) -> Tally:
    """The ledger of all rows that are in a pair; their pairs follow, piece by piece."""
    tally = Tally(rows_out=len(plan.better), fanout=Counter(plan.fanout))
    groups = plan.fanout.total()
    if plan.answers:
        tally.rows_in = tally.single = groups
    else:
        tally.rows_in = tally.merged = plan.merged
        tally.groups = groups
    return tally


def _rejects(split: str, rows: Rows, plan: Plan) -> Iterator[Piece]:
    """The rows that are in no pair, with the reason."""
    for rule, left in plan.left.items():
        for start in range(0, len(left), rows.per_piece):
            positions = left[start : start + rows.per_piece]
            for (table,) in rows.gather(positions, columns=[SOURCE, ROW, ID]):
                places = list(zip(*(table[name].to_pylist() for name in (SOURCE, ROW, ID)), strict=True))
                tally = Tally(rows_in=len(places), rejected=Counter({rule: len(places)}))
                tally.see_many(rule, len(places), [[source, row, "", WHY[rule]] for source, row, _ in places[:PLACES]])
                rejects = [rejected(rule, WHY[rule], *place) for place in places]
                yield Piece(split, None, tally, rejects, rows.read_by(positions))


def _from_rows(rows: Rows, plan: Plan, work: Work, by: str | None) -> Iterator[pa.Table]:
    """Pairs of two rows each; all but the answers is that of the better row."""
    answers = {column.name for column in work.layout.columns if column.name.startswith(SIDES)}
    for better, worse in rows.gather(plan.better, plan.worse):
        made: dict[str, Any] = {}
        for name in work.columns.names:
            if name in answers:
                side, _, rest = name.partition("_")
                own = better if side == "chosen" else worse
                made[name] = own["completion" + (f"_{rest}" if rest else "")]
            else:
                made[name] = better[name]
        if META in made and by != "pair_id":
            made[META] = _two_metas(better, worse)
        if LENGTH in made:
            made[LENGTH] = row_length(pa.table(made), work.layout)
        if work.layout.kind == "tokenized":
            made[ID] = better[PAIR_ID] if by == "pair_id" else as_ids(hashes(stored(better[ID]), stored(worse[ID])))
        yield pa.table(made)


def _two_metas(better: pa.Table, worse: pa.Table) -> Any:
    """dk_meta of pairs: that of both rows, or where they differ, what each had and where it came from."""
    sides = [zip(*(table[name].to_pylist() for name in (SOURCE, ROW, META)), strict=True) for table in (better, worse)]
    made = []
    for one, other in zip(*sides, strict=True):
        if one == other:
            made.append(one[2])
            continue
        metas = {
            side: {SOURCE: source, ROW: row, META: Fragment(meta or "null")}
            for side, (source, row, meta) in zip(SIDES, (one, other), strict=True)
        }
        made.append(dumps(metas).decode())
    return pa.array(made, pa.string())


def _from_ranked(rows: Rows, plan: Plan, work: Work) -> Iterator[pa.Table]:
    """Pairs of two answers of one row, with both scores in dk_meta."""
    for start, table in rows.tables():
        low, high = np.searchsorted(plan.better, [start, start + len(table)])
        if low == high or plan.answers is None or plan.scores is None:
            continue
        at = plan.better[low:high] - start
        answers, firsts = _answers(table["completions"])
        made: dict[str, Any] = {
            name: table[name].take(pa.array(at, pa.int64()))
            for name in work.columns.names
            if name not in ("chosen", "rejected")
        }
        for side, numbers in zip(("chosen", "rejected"), plan.answers, strict=True):
            made[side] = answers.take(pa.array(firsts[at] + numbers[low:high], pa.int64()))
        if META in made:
            given = zip(made[META].to_pylist(), *(scores[low:high].tolist() for scores in plan.scores), strict=True)
            metas = [{**(loads(m) if m else {}), "score_chosen": a, "score_rejected": b} for m, a, b in given]
            made[META] = pa.array([dumps(meta) for meta in metas], pa.string())
        yield pa.table(made)


def _answers(column: Any) -> tuple[Any, Numbers]:
    """All answers of ranked rows one after the other, and the number of each row's first."""
    values = column.combine_chunks()
    if pa.types.is_list(values.type):
        counts = np.asarray(pc.list_value_length(values), np.int64)
        return values.flatten(), np.cumsum(counts) - counts
    rows = [loads(cell) for cell in stored(column)]
    counts = np.array([len(row) for row in rows], np.int64)
    return pa.array([dumps(answer) for row in rows for answer in row], pa.string()), np.cumsum(counts) - counts
