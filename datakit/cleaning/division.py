"""`split`: rows to train, validation and test by the hash of their group.

A group's hash is a number between 0 and 1. From 0 up lies the share of test, from 1 down that of validation, and train
between them. Nothing else decides, so rows that are added later move no old row, and either share can be asked for
later without a change of the other.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from datakit.cleaning import keys
from datakit.cleaning.rows import TRAIN, Places, Rows, Verdict, at_least, deal, empty_splits, text_of
from datakit.cleaning.texts import need_prompts, openings, says_prompt, segments, text_columns
from datakit.cleaning.words import Hashes
from datakit.errors import UsageError
from datakit.plan import FailOn, parse_size
from datakit.reading.limits import SHARD_SIZE
from datakit.report import Report
from datakit.rewrite import Work, write
from datakit.run import Progress
from datakit.schema import ID, META, PAIR_ID, ROW, SOURCE, Layout
from datakit.tally import PLACES, Tally
from datakit.whole import SetFinding

HELD_OUT: Final = ("test", "validation")
"""The splits that take a share from train."""

NONE: Final = "(none)"
"""What rows without a value are counted under."""

Grouping = Callable[[pa.Table], tuple[keys.Digests, list[int]]]
"""The digests of the groups of a table's rows, and the rows that have none."""

Values = Callable[[pa.Table], list[str | None]]
"""One value per row of a table."""


def split(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    test: str | None = None,
    validation: str | None = None,
    group_by: str | None = None,
    stratify: str | None = None,
    seed: int = 0,
    severity: Mapping[str, str] | None = None,
    fail_on: FailOn = "error",
    shard_size: str | int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Divide rows into splits so that no group is on two sides and rows that are added later move none.

    Args:
        inputs: shard folders of one kind. Rows of split train are divided; rows of other splits stay in those.
        output: the folder of the new shards; whole or absent.
        test, validation: shares such as "5%".
        group_by: what stays together: prompt, conversation, source, pair_id, a column, or a key inside dk_meta
            (a.b for one inside another; dk_meta.a is a). By default prompt, and for formatted shards conversation.
        stratify: source, a column or a key inside dk_meta by whose values the shares are reported and judged.
        seed: another one gives another assignment.
        severity, fail_on, shard_size, overwrite, progress: as in `convert`.

    Returns:
        The report; `facts` has the number of groups and the rows of each split by source.

    Raises:
        UsageError: the call is wrong, a column is not there, or an output of another plan exists.
        NoManifest, UnreadableInput, NotWritten, Locked: as in `convert`.
    """
    shares = _shares(test, validation)
    for option, value in (("--group-by", group_by), ("--stratify", stratify)):
        if value is not None:
            text_of(option, value, "The name of a column, or of a key inside dk_meta.")
    at_least("--seed", seed, -(2**63), "A whole number.")
    rows = Rows.open(inputs, "split")
    taken = [name for name in shares if name in rows.splits]
    if taken:
        raise UsageError(
            f"--{taken[0]}: the input has a split {taken[0]} already",
            "Leave the option out and it stays as it is. Or join all splits first:\n"
            f"datakit convert {rows.sources[0].path} -o joined/ --split train",
        )
    splits = [TRAIN, *(name for name in rows.splits if name != TRAIN), *shares]
    own = group_by or ("conversation" if rows.layout.kind == "tokenized" else "prompt")
    looked = _look(rows, own, stratify, seed)
    side = _sides(rows, looked.draws, splits, shares)
    table = _table(looked, side, splits)
    work = Work(
        command="split",
        request={"test": test, "validation": validation, "group_by": own, "stratify": stratify, "seed": seed},
        sources=rows.sources,
        layout=rows.layout,
        columns=rows.schema,
        splits=splits,
        facts={"groups": len(np.unique(looked.draws)), f"by {stratify or 'source'}": table},
        severity=severity or {},
        fail_on=fail_on,
        shard_size=parse_size(shard_size) if isinstance(shard_size, str) else shard_size,
    )

    def finish(tally: Tally) -> list[SetFinding]:
        found = [*empty_splits(tally, splits), *_leaks(looked, side, splits), *looked.missing()]
        return found + (_off_share(table, shares) if stratify else [])

    def judge(start: int, table: pa.Table) -> Verdict:
        return Verdict(side[start : start + table.num_rows])

    return write(work, deal(rows, splits, judge), output, overwrite=overwrite, finish=finish, progress=progress)


def _shares(test: str | None, validation: str | None) -> dict[str, Decimal]:
    """The shares that were asked for, as fractions."""
    found: dict[str, Decimal] = {}
    for name, text in zip(HELD_OUT, (test, validation), strict=True):
        if text is None:
            continue
        text_of(f"--{name}", text, 'Write a share with its unit, such as "5%".')
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
        if re.fullmatch(r"\s*\d+\s*rows?\s*", text):
            raise UsageError(
                f'--{name} "{text}"',
                "A number could only be held by moving old rows when new ones come. Write a share, such as 5%.",
            )
        if not match or not Decimal(match[1]):
            raise UsageError(f'--{name} "{text}"', "Write a share with its unit, such as 5%.")
        found[name] = Decimal(match[1]) / 100
    if not found:
        raise UsageError("nothing to split off", "Name a share: --test 5%, --validation 5%, or both.")
    if sum(found.values()) >= 1:
        raise UsageError("the shares leave nothing for train", "Together they have to be below 100%.")
    return found


# ---------------------------------------------------------------- what is looked at


@dataclass(slots=True)
class _Looked:
    """What one pass over the rows gave.

    Attributes:
        draws: the number that each row's group drew.
        prompts: digests of the prompts, for leaks.
        places: where rows came from.
        labels, label_of: the values that shares are counted by, and the number of its own for each row.
        lacking: positions of the first rows without a group, and how many there are.
    """

    draws: Hashes
    prompts: keys.Digests
    places: Places
    labels: list[str]
    label_of: npt.NDArray[np.int32]
    lacking: list[int]
    lacks: int

    def missing(self) -> list[SetFinding]:
        places = [[*self.places.at(at), "", "no value; a group of its own content"] for at in self.lacking]
        return [SetFinding("DK808", "rows without a group", self.lacks, places)] if self.lacks else []


def _look(rows: Rows, group_by: str, stratify: str | None, seed: int) -> _Looked:
    """Read what decides, row group by row group."""
    by, group_columns = _grouping(rows, group_by)
    by_label, label_columns = _values(rows, stratify or "source", "--stratify")
    same = _Contents(rows)
    prompts, draws, label_of = keys.empty(len(rows)), np.empty(len(rows), np.uint64), np.empty(len(rows), np.int32)
    places, labels = Places(len(rows)), dict[str, int]()
    lacking: list[int] = []
    lacks = 0
    for _, start, table in rows.tables([*group_columns, *label_columns, *same.columns, SOURCE, ROW]):
        here = slice(start, start + table.num_rows)
        prompts[here] = same.prompts(table)
        own, missing = (prompts[here], []) if group_by == "prompt" else by(table)
        if missing:
            lacks += len(missing)
            lacking += [start + at for at in missing][: PLACES - len(lacking)]
        draws[here] = keys.draws(own, seed)
        places.add(start, table)
        label_of[here] = [labels.setdefault(v or NONE, len(labels)) for v in by_label(table)]
    if lacks and lacks == len(rows):
        raise UsageError(f"--group-by {group_by}: no row has it", _there(rows))
    if list(labels) == [NONE] and stratify:
        raise UsageError(f"--stratify {stratify}: no row has it", _there(rows))
    return _Looked(draws, prompts, places, list(labels), label_of, lacking, lacks)


class _Contents:
    """What rows are compared by for leaks: their prompt, or all that is stored where they do not say it."""

    def __init__(self, rows: Rows) -> None:
        self.layout = rows.layout
        self.ask = says_prompt(rows.layout)
        self.columns = text_columns(rows.layout) if self.ask else rows.contents

    def prompts(self, table: pa.Table) -> keys.Digests:
        if self.ask:
            return keys.of_texts(openings(table, self.layout))
        return keys.of_contents(table, self.columns)


def _grouping(rows: Rows, name: str) -> tuple[Grouping, list[str]]:
    """(digests of a table's groups and the rows that have none, the columns that it needs)."""
    layout = rows.layout
    if name == "prompt":
        need_prompts(layout, "--group-by prompt")
        return lambda table: (keys.of_texts(openings(table, layout)), []), text_columns(layout)
    if name in ("conversation", "row"):
        if layout.kind == "tokenized":
            return lambda table: (keys.digests(_known(table, ID)), []), [ID]
        return lambda table: (keys.of_texts(_whole(table, layout)), []), text_columns(layout)
    values, columns = _values(rows, name, "--group-by")

    def by(table: pa.Table) -> tuple[keys.Digests, list[int]]:
        found = values(table)
        missing = [at for at, value in enumerate(found) if value is None]
        own = keys.of_contents(table, rows.contents) if missing else None
        cells = [
            own[at].tobytes() if own is not None and v is None else (v or "").encode() for at, v in enumerate(found)
        ]
        return keys.digests(cells), missing

    return by, [*columns, *rows.contents]


def _known(table: pa.Table, name: str) -> list[keys.Cell]:
    return [cell or b"" for cell in keys.cells(table.column(name))]


def _whole(table: pa.Table, layout: Layout) -> list[str]:
    own = segments(table, layout)
    bounds = own.offsets.tolist()
    return ["\n".join(own.texts[a:b]) for a, b in pairwise(bounds)]


def _values(rows: Rows, name: str, option: str) -> tuple[Values, list[str]]:
    """(the texts of a table's values of that name, or None where there is none; the columns that it needs)."""
    names = rows.schema.names
    column = {"source": SOURCE, "pair_id": PAIR_ID}.get(name, name)
    if column in names:
        shown = _file_name if column == SOURCE else told
        return lambda table: [shown(value) for value in table.column(column).to_pylist()], [column]
    name = name.removeprefix(f"{META}.")
    if META not in names:
        raise UsageError(f"{option} {name}: no such column", _there(rows))
    return lambda table: [told(_inside(cell, name)) for cell in table.column(META).to_pylist()], [META]


def _there(rows: Rows) -> str:
    return f"There are: prompt, conversation, source, {', '.join(rows.schema.names)}, and the keys inside dk_meta."


def _inside(cell: str | None, name: str) -> Any:
    """The value of a key inside `dk_meta`, or of a.b inside that."""
    value = None if cell is None else orjson.loads(cell)
    if isinstance(value, dict) and name in value:
        return value[name]
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _file_name(path: str | None) -> str | None:
    return None if path is None else re.split(r"[/\\]", path)[-1]


def told(value: Any) -> str | None:
    """A value as text. Of the path of a file only the last three parts count: the others differ per machine."""
    if value is None:
        return None
    if not isinstance(value, str):
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    path = re.match(r"(/|~|[A-Za-z]:[\\/])", value) or re.fullmatch(r"[^\s/\\]+([/\\][^\s/\\]+){3,}", value)
    return "/".join(re.split(r"[/\\]+", value)[-3:]) if path and "\n" not in value else value.strip()


# ---------------------------------------------------------------- what follows


def _sides(rows: Rows, draw: Hashes, splits: Sequence[str], shares: Mapping[str, Decimal]) -> npt.NDArray[np.int8]:
    """The number of its split for every row: drawn for those of train, as it was for others."""
    old = rows.side(splits)
    side = old.copy()
    for name, share in shares.items():
        taken = draw < _bound(share) if name == "test" else draw >= _bound(1 - share)
        side[(old == 0) & taken] = splits.index(name)
    return side


def _bound(share: Decimal) -> np.uint64:
    return np.uint64(int(share * 2**64))


def _table(looked: _Looked, side: npt.NDArray[np.int8], splits: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows of every split by label, and of all."""
    counts = Counter(zip(looked.label_of.tolist(), side.tolist(), strict=True))
    made = {
        label: {name: counts[number, code] for code, name in enumerate(splits)}
        for number, label in sorted(enumerate(looked.labels), key=lambda item: item[1])
    }
    whole = Counter(side.tolist())
    return {**made, "all": {name: whole[code] for code, name in enumerate(splits)}} if len(made) != 1 else made


def _off_share(table: Mapping[str, Mapping[str, int]], shares: Mapping[str, Decimal]) -> list[SetFinding]:
    """Labels whose share of a split is far from the one that was asked for."""
    notes = []
    for label, counts in table.items():
        whole = sum(counts.values())
        for name, share in shares.items():
            real = Decimal(counts[name]) / whole
            if not share / 2 <= real <= share * 2:
                notes.append(
                    f"{label}: {counts[name]:,} of {whole:,} rows in {name}, {real:.1%} instead of {share:.1%}"
                )
    return [SetFinding("DK810", "off", 0, [[None, None, "", note] for note in notes[:PLACES]])] if notes else []


def _leaks(looked: _Looked, side: npt.NDArray[np.int8], splits: Sequence[str]) -> list[SetFinding]:
    """Prompts on two sides, with the held-out row and one of the other side."""
    first = keys.firsts(looked.prompts)
    low, high = side.copy(), side.copy()
    np.minimum.at(low, first, side)
    np.maximum.at(high, first, side)
    leaked = np.flatnonzero((side != 0) & (low[first] != high[first]))
    places = []
    for at in leaked[:PLACES].tolist():
        other = int(np.flatnonzero((first == first[at]) & (side != side[at]))[0])
        note = f"in {splits[side[at]]}; the same prompt as {looked.places.told(other)} in {splits[side[other]]}"
        places.append([*looked.places.at(at), "", note])
    return [SetFinding("DK807", "leaks", len(leaked), places)] if places else []
