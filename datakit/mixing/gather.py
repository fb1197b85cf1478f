"""Rows of a plan, gathered from their sources: a range of the mix as one Arrow table."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa

from datakit.mixing.arrangement import Arrangement
from datakit.mixing.order import Longs
from datakit.mixing.sources import ALWAYS, Source
from datakit.schema import MIXED
from datakit.shards import Shards


class Gatherer:
    """Reads ranges of a mix.

    Each source is read where its rows lie: one slice where they are neighbours, else the row groups that hold them.
    Row groups stay open from one range to the next, so going on reads nothing twice.

    Args:
        plan: of the mix.
        sources: opened.
        columns: to read, JSON columns as `arrow.json`.
    """

    def __init__(self, plan: Arrangement, sources: Sequence[Source], columns: pa.Schema) -> None:
        self.plan, self.sources, self.columns = plan, sources, columns
        self.stored: list[Any] = [_stored(field.type) for field in columns]
        self.names = pa.array([source.entry.name for source in sources], pa.string())
        scattered = plan.recipe.order == "shuffle"
        self.readers = [_Reader(source.shards, columns.names, scattered) for source in sources]

    def rows(self, start: int, stop: int, step: int = 1) -> tuple[pa.Table, Longs]:
        """Every `step`-th row from `start` to before `stop`, JSON columns as strings, and the source of each."""
        sources, numbers = (part[::step] for part in self.plan.origins(start, stop))
        at = np.empty(len(sources), np.int64)
        parts: list[dict[str, Any]] = []
        offset = 0
        for number in np.unique(sources).tolist():
            own = np.flatnonzero(sources == number)
            own = own[np.argsort(numbers[own], kind="stable")]
            source = self.sources[number]
            table, places = self.readers[number].take(source.positions(numbers[own]), source.near())
            at[own] = offset + places
            offset += table.num_rows
            parts.append(self._complete(table))
        return self._table(parts, at, sources), sources

    def _complete(self, table: pa.Table) -> dict[str, Any]:
        """The columns of a source, with those that only others have."""
        found: dict[str, Any] = {}
        for name, type_ in zip(self.columns.names, self.stored, strict=True):
            if name in table.column_names:
                found[name] = table.column(name)
            elif name in ALWAYS:
                found[name] = pa.chunked_array([pa.repeat(ALWAYS[name], table.num_rows)])
            else:
                found[name] = pa.chunked_array([pa.nulls(table.num_rows, type_)])
        return found

    def _table(self, parts: Sequence[dict[str, Any]], at: Longs, sources: Longs) -> pa.Table:
        arrays: list[Any] = []
        for name, type_ in zip(self.columns.names, self.stored, strict=True):
            if name == MIXED:
                arrays.append(self.names.take(sources))
                continue
            chunks = [chunk for part in parts for chunk in part[name].chunks]
            arrays.append(pa.concat_arrays(chunks).take(at) if chunks else pa.array([], type_))
        return pa.Table.from_arrays(arrays, names=self.columns.names)


class _Reader:
    """The rows of one shard folder by position.

    Where rows are wanted from all over the folder, each row group is unpacked once, into a temporary file that the
    system maps into memory and may drop again.
    """

    def __init__(self, shards: Shards, columns: Sequence[str], scattered: bool) -> None:
        self.shards, self.scattered = shards, scattered
        self.columns = [name for name in columns if name in shards.schema.names and name != MIXED]
        self._starts = [group.start for group in shards.groups]
        self._held: dict[int, pa.Table] = {}

    def take(self, positions: Longs, near: Sequence[tuple[int, int]]) -> tuple[pa.Table, Longs]:
        """A table, and where in it the rows with these positions are.

        Args:
            near: first and last positions of stretches whose row groups are kept once they were read.
        """
        low, high = int(positions.min()), int(positions.max()) + 1
        first, last = bisect_right(self._starts, low) - 1, bisect_right(self._starts, high - 1)
        dense = high - low <= 2 * len(positions)
        wanted = range(first, last) if dense else np.unique(self._group_of(positions)).tolist()
        keep = [range(bisect_right(self._starts, a) - 1, bisect_right(self._starts, b)) for a, b in near]
        held = {group: table for group, table in self._held.items() if any(group in groups for groups in keep)}
        self._held = held | {group: self._group(group) for group in wanted}
        if dense:
            ends = [(max(low - self._starts[g], 0), high - self._starts[g]) for g in wanted]
            parts = [self._held[g].slice(a, b - a) for g, (a, b) in zip(wanted, ends, strict=True)]
            return pa.concat_tables(parts), positions - low
        groups = self._group_of(positions)
        by_group = np.argsort(groups, kind="stable")
        parts, places, offset = [], np.empty(len(positions), np.int64), 0
        for group in wanted:
            own = by_group[np.searchsorted(groups[by_group], group) : np.searchsorted(groups[by_group], group, "right")]
            parts.append(self._held[group].take(positions[own] - self._starts[group]))
            places[own] = offset + np.arange(len(own))
            offset += len(own)
        return pa.concat_tables(parts), places

    def _group_of(self, positions: Longs) -> Longs:
        return np.searchsorted(self._starts, positions, side="right") - 1

    def _group(self, number: int) -> pa.Table:
        if number in self._held:
            return self._held[number]
        group = self.shards.groups[number]
        table = self.shards.slice(group.start, group.start + group.rows, self.columns)
        return _mapped(table) if self.scattered else table


def _mapped(table: pa.Table) -> pa.Table:
    """The same table, in a file that has no name."""
    with NamedTemporaryFile(prefix="datakit-", suffix=".arrow") as file:
        with pa.ipc.new_file(file.name, table.schema) as writer:
            writer.write_table(table)
        return pa.ipc.open_file(pa.memory_map(file.name)).read_all()


def _stored(type_: pa.DataType) -> pa.DataType:
    return pa.string() if isinstance(type_, pa.JsonType) else type_
