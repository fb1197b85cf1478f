"""The rows of several shard folders as one sequence: positions, places, and the dealing of rows to splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datakit.errors import UsageError
from datakit.reading.limits import BLOCK
from datakit.report import place
from datakit.rewrite import Piece, account, open_folders, rejected
from datakit.schema import ID, KEPT, PROVENANCE, ROW, SOURCE, Layout
from datakit.shards import Shards
from datakit.tally import PLACES, Tally
from datakit.whole import SetFinding

TRAIN: Final = "train"
KWARGS: Final = "chat_template_kwargs"
"""The one column in which no value is an empty object instead of null."""

ENOUGH: Final = 10_000
"""Rejects after which a piece is handed on although few rows stay."""


@dataclass(slots=True)
class Rows:
    """The rows of shard folders, one behind the other.

    Attributes:
        sources: the opened folders, each with one split.
        layout: kind and form, the same for all.
        schema: all columns that any of them has, JSON ones as `arrow.json`.
    """

    sources: Sequence[Shards]
    layout: Layout
    schema: pa.Schema

    @classmethod
    def open(cls, inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], command: str) -> Rows:
        """Open and verify folders.

        Raises:
            UsageError: kinds or columns differ, or rows are packed.
            UnreadableInput: a folder is not what its manifest says.
        """
        sources = open_folders(inputs)
        first = sources[0]
        for other in sources:
            if other.layout != first.layout:
                message = f"{first.path} holds {first.layout.name}, {other.path} holds {other.layout.name}"
                raise UsageError(message, f"Bring them to one kind first: datakit convert ... --to {first.layout.name}")
        if first.layout.form == "packed":
            raise UsageError(
                f"{first.path} holds packed rows, each made of several",
                f"{command.capitalize()} the rows first, then: datakit format ... --pack",
            )
        return cls(sources, first.layout, _united(sources))

    @property
    def splits(self) -> list[str]:
        """The names of the splits, in their order."""
        return list(dict.fromkeys(split_of(source) for source in self.sources))

    @property
    def starts(self) -> list[int]:
        """The position of the first row of every source, and behind them the number of all rows."""
        return list(accumulate(map(len, self.sources), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def contents(self) -> list[str]:
        """The columns that trainers read."""
        return [name for name in self.schema.names if not name.startswith("dk_")]

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, int, pa.Table]]:
        """(number of the source, position of its first row, table) of every row group.

        Args:
            columns: only these; those that a source lacks are null.
        """
        names = self.schema.names if columns is None else list(dict.fromkeys(columns))
        for number, (source, start) in enumerate(zip(self.sources, self.starts, strict=False)):
            own = [name for name in names if name in source.schema.names]
            for at, table in source.tables(own or [source.schema.names[0]]):
                yield number, start + at, _filled(table, names, self.schema)

    def side(self, splits: Sequence[str]) -> npt.NDArray[np.int8]:
        """For every row the number of its split."""
        codes = [splits.index(split_of(source)) for source in self.sources]
        return np.repeat(np.array(codes, np.int8), [len(source) for source in self.sources])


def split_of(source: Shards) -> str:
    return source.split or TRAIN


def _united(sources: Sequence[Shards]) -> pa.Schema:
    """The columns of all sources: trainer and side columns, then provenance; nullable where one lacks them."""
    fields: dict[str, pa.Field[Any]] = {}
    for source in sources:
        for item in source.schema:
            known = fields.setdefault(item.name, item)
            if known.type != item.type:
                message = f"column {item.name} is {known.type} in {sources[0].path} and {item.type} in {source.path}"
                raise UsageError(message, "Convert both with one --map.")
            fields[item.name] = known.with_nullable(known.nullable or item.nullable)
    for name, item in fields.items():
        if name != KWARGS and any(name not in source.schema.names for source in sources):
            fields[name] = item.with_nullable(True)
    last = [column.name for column in (*PROVENANCE, *KEPT)]
    order = sorted(fields.values(), key=lambda item: last.index(item.name) if item.name in last else -1)
    return pa.schema(order)


def _filled(table: pa.Table, names: Sequence[str], schema: pa.Schema) -> pa.Table:
    """The table with exactly these columns, all of them nullable, so that tables of all sources are alike."""
    columns: dict[str, Any] = {}
    for name in names:
        if name in table.schema.names:
            columns[name] = table.column(name)
            continue
        type_ = schema.field(name).type
        stored: Any = pa.string() if isinstance(type_, pa.JsonType) else type_
        value = pa.scalar("{}" if name == KWARGS else None, stored)
        columns[name] = pa.repeat(value, table.num_rows)
    return pa.table(columns)


class Places:
    """Where every row came from, in 12 bytes each."""

    def __init__(self, count: int) -> None:
        self._names: dict[str | None, int] = {}
        self._codes, self._rows = np.empty(count, np.int32), np.empty(count, np.int64)

    def add(self, start: int, table: pa.Table) -> None:
        """Note the rows of a table with `dk_source` and `dk_row`, the first of them at `start`."""
        stop = start + table.num_rows
        encoded: Any = table.column(SOURCE).combine_chunks().dictionary_encode(null_encoding="encode")
        known = [self._names.setdefault(name, len(self._names)) for name in encoded.dictionary.to_pylist()]
        self._codes[start:stop] = np.array(known, np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]
        rows: Any = table.column(ROW).combine_chunks()
        self._rows[start:stop] = rows.fill_null(-1).to_numpy(zero_copy_only=False)

    def at(self, position: int) -> list[Any]:
        """[dk_source, dk_row] of a row."""
        row = int(self._rows[position])
        return [list(self._names)[self._codes[position]], None if row < 0 else row]

    def told(self, position: int) -> str:
        """`file:line` of a row."""
        return told(*self.at(position))


def told(source: str | None, row: int | None) -> str:
    """`file:line`, or `file row N`."""
    return place({"source": source, "row": row, "path": ""}) or f"row {row}"


def at_least(option: str, value: Any, least: int, hint: str) -> int:
    """A whole number that was given as an option.

    Raises:
        UsageError: it is none, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{option} {value!r}", hint)
    return value


def text_of(option: str, value: Any, hint: str) -> str:
    """A text that was given as an option.

    Raises:
        UsageError: it is of another type.
    """
    if not isinstance(value, str):
        raise UsageError(f"{option} {value!r}: a {type(value).__name__}", hint)
    return value


class Verdict(NamedTuple):
    """What becomes of the rows of a table.

    Attributes:
        side: the number of its split for each row.
        out: rows that do not go on, by their number in the table, each with check and message.
    """

    side: npt.NDArray[np.int8]
    out: Mapping[int, tuple[str, str]] = {}


@dataclass(slots=True)
class _Pile:
    """Rows of one split that wait to be enough for a row group."""

    tables: list[pa.Table] = field(default_factory=list)
    size: int = 0
    kept: int = 0
    rejects: list[dict[str, Any]] = field(default_factory=list)
    read: Counter[int] = field(default_factory=Counter)

    def piece(self, split: str) -> Piece:
        counts = Counter(reject["rule"] for reject in self.rejects)
        tally = account(self.kept, counts)
        tally.counts[_counted(split)] += self.kept
        for rule, count in counts.items():
            own = (reject for reject in self.rejects if reject["rule"] == rule)
            places = [[reject["source"], reject["row"], "", reject["message"]] for _, reject in zip(range(PLACES), own)]  # noqa: B905
            tally.see_many(rule, count, places)
        return Piece(split, pa.concat_tables(self.tables) if self.tables else None, tally, self.rejects, self.read)


def _counted(split: str) -> str:
    return f"rows of split {split}"


def deal(rows: Rows, splits: Sequence[str], judge: Callable[[int, pa.Table], Verdict]) -> Iterator[Piece]:
    """Every row to its split or to the rejects, in pieces of about a row group.

    Args:
        rows: where they come from.
        splits: the names of the sides.
        judge: called with the position of its first row and the table, in order.
    """
    piles = {split: _Pile() for split in splits}
    for number, start, table in rows.tables():
        verdict = judge(start, table)
        stays = np.ones(table.num_rows, bool)
        stays[list(verdict.out)] = False
        if verdict.out:
            pile = piles[split_of(rows.sources[number])]
            pile.rejects += _rejects(table, verdict.out)
            pile.read[number] += len(verdict.out)
        for code, split in enumerate(splits):
            mask = stays & (verdict.side == code)
            count = int(np.count_nonzero(mask))
            if count:
                pile = piles[split]
                pile.tables.append(table if count == table.num_rows else table.filter(pa.array(mask)))
                pile.size += pile.tables[-1].nbytes
                pile.kept += count
                pile.read[number] += count
        for split, pile in piles.items():
            if pile.size >= BLOCK or len(pile.rejects) >= ENOUGH:
                yield pile.piece(split)
                piles[split] = _Pile()
    for split, pile in piles.items():
        if pile.kept or pile.rejects:
            yield pile.piece(split)


def _rejects(table: pa.Table, out: Mapping[int, tuple[str, str]]) -> list[dict[str, Any]]:
    order = sorted(out)
    taken = table.select([SOURCE, ROW, ID]).take(pa.array(order, pa.int64()))
    columns = [taken.column(name).to_pylist() for name in (SOURCE, ROW, ID)]
    return [rejected(*out[at], *where) for at, where in zip(order, zip(*columns, strict=True), strict=True)]


def empty_splits(tally: Tally, splits: Sequence[str]) -> list[SetFinding]:
    """A finding for every split that got no row."""
    notes = [f"split {split} has no row" for split in splits if not tally.counts[_counted(split)]]
    return [SetFinding("DK809", note) for note in notes]
