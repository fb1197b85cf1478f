"""`unpair`: every pair as two labelled answers, for KTO and its kin.

The two rows keep every other column of the pair, its dk_id as `dk_pair_id`, and which side they were as `dk_side`, so
that `pair` gives the pairs back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
from orjson import dumps, loads

from datakit.checks.kto import in_blocks, weight_bounds
from datakit.errors import UsageError
from datakit.findings import BadRow
from datakit.formats.declare import Record
from datakit.formats.reshape import reshape
from datakit.pairing.contents import (
    Keys,
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
from datakit.pairing.relation import Relation
from datakit.pairing.rows import Opened, Rows
from datakit.report import Report, check_gate
from datakit.rewrite import Piece, Work, account, rejected, write
from datakit.run import Progress
from datakit.schema import ARROW, ID, LENGTH, PAIR_ID, ROW, SIDE, SOURCE, Layout, layout
from datakit.tally import PLACES, Tally
from datakit.whole import SetFinding

ORDERS: Final = ("pair", "blocked", "shuffle")
SIDES: Final = ("chosen", "rejected")

LABELLED: Final[Mapping[tuple[str, str], tuple[str, str]]] = {
    ("preference", "strings"): ("kto", "strings"),
    ("preference", "messages"): ("kto", "messages"),
    ("preference", "implicit"): ("kto", "messages"),
    ("tokenized", "preference"): ("tokenized", "kto"),
    ("tokenized", "easydel_preference"): ("tokenized", "easydel_kto"),
}
"""Layout of pairs -> layout of labelled answers."""

PAIRED: Final = {labelled: pairs for pairs, labelled in LABELLED.items() if pairs[1] != "implicit"}
"""The way back."""


def unpair(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    order: str = "pair",
    seed: int = 0,
    fail_on: str = "error",
    severity: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Turn pairs into labelled answers: each pair into a desirable and an undesirable row.

    Args:
        inputs: shard folders of preferences, formatted or not, of one form. Splits stay apart.
        output: the folder of the new shards; whole or absent.
        order: pair (chosen, rejected, chosen, rejected, ...), blocked (all chosen, then all rejected) or shuffle, which
            holds 8 bytes per new row and reads the input once per 128 MiB of them.
        seed: for shuffle.
        fail_on, severity, overwrite, progress: as in `convert`.

    Returns:
        The report. `facts["unpaired"]` has the counts of both classes and the weights that TRL recommends for them.

    Raises:
        UsageError: the rows are no pairs, or have no prompt of their own.
        UnreadableInput, NotWritten, Locked: as in `convert`.
    """
    if order not in ORDERS:
        raise UsageError(f"--order {order}", f"One of {', '.join(ORDERS)}.")
    check_gate(severity, fail_on)
    opened = Opened(inputs)
    made = labelled_layout(opened.layout)
    pairs = sum(map(len, opened.splits.values()))
    work = Work(
        "unpair",
        {"order": order, "seed": seed, "severity": dict(severity or {}), "fail_on": fail_on},
        opened.sources,
        made,
        _schema(opened, made),
        list(opened.splits),
        facts={**opened.prepared, **({"method": "kto"} if opened.prepared else {}), "unpaired": _facts(pairs)},
        severity=severity or {},
        fail_on=fail_on,
    )
    relation = Relation(pairs)

    def finish(tally: Tally) -> list[SetFinding]:
        found = relation.findings(opened.place, labels=True)
        note = in_blocks(tally.counts)
        return [*found, *([SetFinding("DK505", note)] if note else [])]

    pieces = _pieces(opened, work, relation, order, seed)
    return write(work, pieces, output, overwrite=overwrite, finish=finish, progress=progress)


def labelled_layout(pairs: Layout) -> Layout:
    """The layout of the answers of pairs.

    Raises:
        UsageError: they are no pairs, or it is not known where their prompt ends.
    """
    if (pairs.kind, pairs.form) in LABELLED and (pairs.form != "implicit" or pairs.conversational):
        return layout(*LABELLED[pairs.kind, pairs.form])
    if pairs.kind == "preference":
        raise UsageError(
            f"{pairs.name}: whole texts have no turns at which the prompt could be split off",
            "Convert the source with a map that names the prompt.",
        )
    if pairs.form.endswith("reward"):
        raise UsageError(f"{pairs.name}: ids do not say where the prompt ends", "Unpair first, then format --for kto.")
    raise UsageError(f"{pairs.name} rows are no pairs", "unpair takes preference shards, formatted or not.")


def _facts(pairs: int) -> dict[str, Any]:
    desirable, undesirable = weight_bounds(pairs, pairs) if pairs else ((1.0, 1.33), (0.75, 1.0))
    return {
        "desirable": pairs,
        "undesirable": pairs,
        "desirable_weight": list(desirable),
        "undesirable_weight": list(undesirable),
    }


def _schema(opened: Opened, made: Layout) -> pa.Schema:
    """The columns of the new rows: those of their layout, what pairs had besides, and where they come from."""
    gone = {column.name for column in opened.layout.columns} | {PAIR_ID, SIDE}
    gone |= {LENGTH} if made.kind != "tokenized" else set()
    fields = [pa.field(c.name, ARROW[c.type], nullable=c.nullable) for c in made.columns]
    fields += [field for field in opened.schema if field.name not in gone]
    return pa.schema([*fields, pa.field(PAIR_ID, pa.string()), pa.field(SIDE, pa.string())])


# ---------------------------------------------------------------- the loop


def _pieces(opened: Opened, work: Work, relation: Relation, order: str, seed: int) -> Iterator[Piece]:
    """New rows in their order. A pair is counted where its chosen row lies."""
    base = 0
    for number, (split, rows) in enumerate(opened.splits.items()):
        for positions, sides, at, pairs in _ordered(rows, order, (seed, number)):
            read = rows.read_by(positions[sides == 0])
            rejects = []
            if opened.layout.form == "implicit":
                pairs, bad = _explicit(pairs)
                rejects = [_reject(pairs, row, bad[row]) for row in at[sides == 0].tolist() if row in bad]
                good = ~np.isin(at, list(bad))
                positions, sides, at = positions[good], sides[good], at[good]
            keys, ids, length = _judged(pairs, work)
            relation.put(base + positions, sides, keys[sides, at], length[sides, at])
            table = _labelled(pairs, at, sides, ids, work)
            yield Piece(split, table, _counted(sides, rejects), rejects, read)
        base += len(rows)


Step = tuple[Numbers, Numbers, Numbers, pa.Table]
"""Of new rows: the positions of their pairs, their sides (0 chosen, 1 rejected), their places in a table of pairs."""


def _ordered(rows: Rows, order: str, seed: tuple[int, int]) -> Iterator[Step]:
    if order == "shuffle":
        drawn = np.random.default_rng(seed).permutation(2 * len(rows))
        start = 0
        for (table,) in rows.gather(drawn // 2):
            piece = drawn[start : start + len(table)]
            yield piece // 2, piece % 2, np.arange(len(piece)), table
            start += len(table)
        return
    for sides in ([0, 1],) if order == "pair" else ([0], [1]):
        for start, table in rows.tables():
            at = np.repeat(np.arange(len(table)), len(sides))
            yield start + at, np.tile(sides, len(table)), at, table


def _explicit(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """Whole conversations as prompt and answers, as `convert --to preference:messages` splits them.

    Returns:
        The table, and the rows that cannot be split with the reason.
    """
    source, target = layout("preference", "implicit", True), layout("preference", "messages")
    made: dict[str, list[bytes]] = {column.name: [] for column in target.columns}
    bad: dict[int, str] = {}
    for row, sides in enumerate(zip(*(table[side].to_pylist() for side in SIDES), strict=True)):
        record: Record = dict.fromkeys(made)
        try:
            record = reshape({side: loads(text) for side, text in zip(SIDES, sides, strict=True)}, source, target)
        except BadRow as failure:
            bad[row] = failure.finding.note
        for name, values in made.items():
            values.append(dumps(record[name]))
    columns: dict[str, Any] = {name: pa.array(values, pa.string()) for name, values in made.items()}
    return pa.table({**columns, **{name: table[name] for name in table.column_names if name not in columns}}), bad


def _judged(pairs: pa.Table, work: Work) -> tuple[Keys, Keys, Numbers]:
    """By side and pair: the keys of the answers, the ids of the new rows, and the sizes of the answers.

    The id of a formatted row is the hash of the pair's id and of the side, since its text is not at hand.
    """
    formatted = work.layout.kind == "tokenized"
    paired = layout(*PAIRED[work.layout.kind, work.layout.form])
    prompts = cells(pairs, names_of(paired, "chosen")[0], paired)
    extra = extras(pairs, work.columns, paired)
    found = []
    for side, label in zip(SIDES, (b"true", b"false"), strict=True):
        answer = names_of(paired, side)[1]
        texts = cells(pairs, answer, paired)
        if formatted:
            ids = hashes(stored(pairs[ID]), [side.encode()] * len(pairs))
        else:
            ids = hashes(prompts, texts, [label + more for more in extra])
        keys = quick_keys(prompts, texts)
        found.append((with_extras(keys, extra), ids, sizes(pairs[answer], paired)))
    keys, ids, length = (np.stack(both) for both in zip(*found, strict=True))
    return keys, ids, length


def _labelled(pairs: pa.Table, at: Numbers, sides: Numbers, ids: Keys, work: Work) -> pa.Table:
    """The new rows.

    Args:
        pairs: with a prompt of their own.
        at: the pair of each new row.
        sides: the side of each new row.
        ids: by side and pair, see `_judged`.
    """
    rows, either = pa.array(at, pa.int64()), pa.array(at + sides * len(pairs), pa.int64())
    answers = {column.name for column in work.layout.columns if column.name.startswith("completion")}
    made: dict[str, Any] = {}
    for name in work.columns.names:
        if name in answers:
            both = [pairs[name.replace("completion", side, 1)] for side in SIDES]
            chunks = [chunk for column in both for chunk in column.chunks]
            made[name] = pa.chunked_array(chunks, type=both[0].type).take(either)
        elif name in pairs.column_names and name != ID:
            made[name] = pairs[name].take(rows)
        else:  # keeps its place among the columns
            made[name] = None
    made[ID], made[PAIR_ID] = as_ids(ids[sides, at]), pairs[ID].take(rows)
    made[SIDE] = pa.array(SIDES).take(pa.array(sides, pa.int64()))
    if "label" in made:
        made["label"] = pa.array(sides == 0)
    if LENGTH in made:
        made[LENGTH] = row_length(pa.table(made), work.layout)
    return pa.table(made)


def _reject(pairs: pa.Table, row: int, why: str) -> dict[str, Any]:
    return rejected("DK403", why, *(pairs[name][row].as_py() for name in (SOURCE, ROW, ID)))


def _counted(sides: Numbers, rejects: Sequence[Mapping[str, Any]]) -> Tally:
    labels = sides == 0
    chosen = int(labels.sum())
    tally = account(chosen, {"DK403": len(rejects)} if rejects else {}, fanout=2)
    if rejects:
        tally.see_many("DK403", len(rejects), [[r["source"], r["row"], "", r["message"]] for r in rejects[:PLACES]])
    if len(sides):
        tally.counts.update({"label true": chosen, "label false": len(sides) - chosen})
        tally.counts["label changes"] = int((labels[1:] != labels[:-1]).sum())
        tally.edges["label"] = [bool(labels[0]), bool(labels[-1])]
    return tally
