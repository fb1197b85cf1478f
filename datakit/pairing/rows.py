"""The rows of one split of several shard folders as one sequence, read by row group or by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from datakit.errors import UsageError
from datakit.pairing.contents import Numbers
from datakit.rewrite import open_folders
from datakit.schema import ROW, SOURCE, Layout
from datakit.shards import Shards

WINDOW: Final = 128 << 20
"""Bytes of rows that are held at once where rows are wanted from all over."""

NEAR: Final = 2
"""Row groups in which the rows of a piece may lie, for each list of positions, to be read for this piece alone."""


class Rows:
    """Rows by position, over the shards of one split.

    Attributes:
        schema: the columns of all shards; a row has null where its shards lack one.
        per_piece: rows in a row group of usual size.
    """

    def __init__(self, sources: Sequence[tuple[int, Shards]], schema: pa.Schema) -> None:
        self.schema = schema
        self.numbers = [number for number, shards in sources for _ in shards.groups]
        self.groups = [(shards, group) for _, shards in sources for group in shards.groups]
        self.starts = np.cumsum([0, *(group.rows for _, group in self.groups)], dtype=np.int64)
        self.per_piece = max(1, len(self) // max(1, len(self.groups)))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """(position of its first row, table) of every row group."""
        for index in range(len(self.groups)):
            yield int(self.starts[index]), self._group(index, columns)

    def gather(self, *wanted: Numbers, columns: Sequence[str] | None = None) -> Iterator[tuple[pa.Table, ...]]:
        """Rows in any order, piece by piece: for each of several equally long lists of positions a table.

        What is held does not grow with the data. Where the rows of a piece lie near one another, their row groups are
        read for it; else a window of many pieces is filled in one pass over all rows.
        """
        start, end = 0, len(wanted[0])
        while start < end:
            size = self.per_piece
            if self._scattered([positions[start : start + size] for positions in wanted]):
                size = max(size, WINDOW * self.per_piece // max(1, self._group(0, columns).nbytes * len(wanted)))
            window = [positions[start : start + size] for positions in wanted]
            held = np.unique(np.concatenate(window))
            table = self._read(held, columns)
            for at in range(0, len(window[0]), self.per_piece):
                places = [np.searchsorted(held, positions[at : at + self.per_piece]) for positions in window]
                yield tuple(table.take(pa.array(place, pa.int64())) for place in places)
            start += size

    def _scattered(self, piece: Sequence[Numbers]) -> bool:
        groups = [np.unique(np.searchsorted(self.starts, positions, side="right")) for positions in piece]
        return sum(map(len, groups)) > (NEAR + 1) * len(piece)

    def read_by(self, positions: Numbers) -> dict[int, int]:
        """How many of the rows come from which source."""
        groups = np.searchsorted(self.starts, positions, side="right") - 1
        numbers, counts = np.unique(np.asarray(self.numbers, np.int64)[groups], return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def _read(self, positions: Numbers, columns: Sequence[str] | None) -> pa.Table:
        """Rows at ascending positions."""
        bounds = np.searchsorted(positions, self.starts)
        parts = []
        for index in np.flatnonzero(np.diff(bounds)).tolist():
            own = positions[bounds[index] : bounds[index + 1]] - self.starts[index]
            table = self._group(index, columns)
            parts.append(table if len(own) == len(table) else table.take(pa.array(own, pa.int64())))
        return pa.concat_tables(parts).combine_chunks()

    def _group(self, index: int, columns: Sequence[str] | None) -> pa.Table:
        shards, group = self.groups[index]
        names = [name for name in columns or self.schema.names if name in shards.schema.names]
        table = shards.slice(group.start, group.start + group.rows, names)
        for at, name in enumerate(columns or self.schema.names):
            if name not in names:
                table = table.add_column(at, name, _absent(self.schema.field(name), len(table)))
        return table


def _absent(field: Any, rows: int) -> Any:
    """A column that some shards lack; without arguments for the template it is {}, which trainers unpack."""
    type_: Any = field.type.storage_type if isinstance(field.type, pa.JsonType) else field.type
    return pa.array(["{}"] * rows, type_) if field.name == "chat_template_kwargs" else pa.nulls(rows, type_)


class Opened:
    """Shard folders of one layout, opened as the input of a verb.

    Attributes:
        sources: every folder and split, for `rewrite.Work`.
        splits: the rows of each split.
        schema: the columns that any of them has.
        prepared: for formatted shards, how they were prepared.
    """

    def __init__(self, inputs: Any) -> None:
        self.sources = open_folders(inputs)
        first = self.sources[0]
        self.layout: Layout = first.layout
        for other in self.sources[1:]:
            if other.layout != self.layout:
                raise UsageError(
                    f"{first.path} is {self.layout.name}, {other.path} is {other.layout.name}",
                    f"Bring them to one form first: datakit convert {other.path} -o OTHER --to {self.layout.name}",
                )
        self.schema = _united(self.sources)
        self.prepared = _prepared(self.sources)
        names = dict.fromkeys(source.split or "train" for source in self.sources)
        self.splits = {
            name: Rows([(n, s) for n, s in enumerate(self.sources) if s.split == name], self.schema) for name in names
        }

    def place(self, position: int) -> tuple[Any, Any]:
        """dk_source and dk_row of a row, counted over all splits."""
        for rows in self.splits.values():
            if position < len(rows):
                ((table,),) = rows.gather(np.array([position]), columns=[SOURCE, ROW])
                return table[SOURCE][0].as_py(), table[ROW][0].as_py()
            position -= len(rows)
        raise IndexError(position)


def _united(sources: Sequence[Shards]) -> pa.Schema:
    """All columns of all shards, in order of appearance; dk_ columns last.

    Raises:
        UsageError: a column has two types.
    """
    fields: dict[str, Any] = {}
    for source in sources:
        for field in source.schema:
            known = fields.setdefault(field.name, field)
            if known.type != field.type:
                raise UsageError(
                    f"{source.path}: column {field.name} is {field.type}, and {known.type} in {sources[0].path}",
                    "Convert the folders together, so that they have one type.",
                )
    return pa.schema(sorted(fields.values(), key=lambda field: field.name.startswith("dk_")))


def _prepared(sources: Sequence[Shards]) -> dict[str, Any]:
    """How formatted shards were prepared.

    Raises:
        UsageError: by two tokenizers or templates.
    """
    found = [(source.path, source.manifest["plan"].get("prepared") or {}) for source in sources]
    path, first = found[0]
    for other, prepared in found[1:]:
        for name in ("tokenizer", "chat_template"):
            if (prepared.get(name) or {}).get("sha256") != (first.get(name) or {}).get("sha256"):
                raise UsageError(
                    f"{path} and {other} were formatted with another {name.replace('_', ' ')} each",
                    "Format both with the same one.",
                )
    return {name: value for name, value in first.items() if "tokenizer" in first and name not in ("unpaired", "paired")}
