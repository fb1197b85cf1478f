"""What a sharded source is, and the sources that are made of others.

A row's number is its number among the rows that come out: after a filter or a transform too, so that
`open_shard_at_row(name, n)` goes on exactly behind the first `n` rows of `open_shard(name)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datakit.errors import UsageError

Row = dict[str, Any]
Transform = Callable[[Row], Row | Iterable[Row] | None]
"""One row to a row, to None where it goes, or to several rows."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """What is known of a shard before its rows are read.

    Attributes:
        shard_id: its number.
        shard_name: its name.
        num_rows: rows, where that is known without reading them.
        byte_size: bytes as they are stored.
    """

    shard_id: int
    shard_name: str
    num_rows: int | None = None
    byte_size: int | None = None


class ShardedDataSource(ABC):
    """Rows in named shards, in a fixed order. Names are unique."""

    @property
    @abstractmethod
    def shard_names(self) -> Sequence[str]:
        """The names of the shards, in order."""

    @abstractmethod
    def open_shard(self, shard_name: str) -> Iterator[Row]:
        """The rows of a shard.

        Raises:
            UsageError: there is no such shard.
        """

    def open_shard_at_row(self, shard_name: str, row: int) -> Iterator[Row]:
        """The rows of a shard from a number on, counted from 0; none where it has no more.

        Raises:
            UsageError: there is no such shard, or the number is below 0.
        """
        if row < 0:
            raise UsageError(f"row {row} of shard {shard_name}", "Rows are counted from 0.")
        return islice(self.open_shard(shard_name), row, None)

    def get_shard_info(self, shard_name: str) -> ShardInfo:
        """What is known of a shard.

        Raises:
            UsageError: there is no such shard.
        """
        return ShardInfo(self._number(shard_name), shard_name)

    def num_shards(self) -> int:
        return len(self.shard_names)

    def iter_shards(
        self, shard_indices: Sequence[int] | None = None, start_shard: int = 0, start_row: int = 0
    ) -> Iterator[Row]:
        """The rows of several shards, one behind the other.

        Args:
            shard_indices: which, in this order; by default all.
            start_shard: how many of these to pass over.
            start_row: the row of the first to begin with, from 0.
        """
        names = self.shard_names
        chosen = [names[index] for index in (range(len(names)) if shard_indices is None else shard_indices)]
        for name in chosen[start_shard:]:
            yield from self.open_shard_at_row(name, start_row)
            start_row = 0

    def __iter__(self) -> Iterator[Row]:
        return self.iter_shards()

    def __len__(self) -> int:
        """All rows.

        Raises:
            TypeError: that is not known without making every row.
        """
        counts = [self.get_shard_info(name).num_rows for name in self.shard_names]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            raise TypeError(f"{type(self).__name__} does not know its length; count its rows")
        return sum(known)

    def map(self, function: Callable[[Row], Row]) -> MappedShardedSource:
        return MappedShardedSource(self, function)

    def filter(self, predicate: Callable[[Row], bool]) -> FilteredShardedSource:
        return FilteredShardedSource(self, predicate)

    def transform(self, transform: Transform) -> TransformedShardedSource:
        return TransformedShardedSource(self, transform)

    def rename_fields(self, mapping: Mapping[str, str]) -> MappedShardedSource:
        """Rows with fields of other names. A row that has a field of the new name already is refused as it is read."""
        return self.map(lambda row: _renamed(row, mapping))

    def select_fields(self, fields: Sequence[str]) -> MappedShardedSource:
        """Rows with these fields only, in this order."""
        return self.map(lambda row: {name: row[name] for name in fields if name in row})

    def drop_fields(self, fields: Sequence[str]) -> MappedShardedSource:
        """Rows without these fields."""
        gone = frozenset(fields)
        return self.map(lambda row: {name: value for name, value in row.items() if name not in gone})

    def _number(self, shard_name: str) -> int:
        names = list(self.shard_names)
        if shard_name not in names:
            raise UsageError(f"no shard named {shard_name!r}", f"There are {', '.join(names[:10])}.")
        return names.index(shard_name)


def _renamed(row: Row, mapping: Mapping[str, str]) -> Row:
    made = {mapping.get(name, name): value for name, value in row.items()}
    if len(made) < len(row):
        raise UsageError(f"rename_fields {dict(mapping)}: two fields of a row get one name", "Drop one of them first.")
    return made


class _Derived(ShardedDataSource):
    """The shards of another source, with other rows."""

    def __init__(self, source: ShardedDataSource) -> None:
        self.source = source

    @property
    def shard_names(self) -> Sequence[str]:
        return self.source.shard_names


class MappedShardedSource(_Derived):
    """Each row through a function."""

    def __init__(self, source: ShardedDataSource, function: Callable[[Row], Row]) -> None:
        super().__init__(source)
        self.function = function

    def open_shard(self, shard_name: str) -> Iterator[Row]:
        return map(self.function, self.source.open_shard(shard_name))

    def open_shard_at_row(self, shard_name: str, row: int) -> Iterator[Row]:
        return map(self.function, self.source.open_shard_at_row(shard_name, row))

    def get_shard_info(self, shard_name: str) -> ShardInfo:
        return self.source.get_shard_info(shard_name)

    def __len__(self) -> int:
        return len(self.source)


class FilteredShardedSource(_Derived):
    """The rows of which a predicate is true."""

    def __init__(self, source: ShardedDataSource, predicate: Callable[[Row], bool]) -> None:
        super().__init__(source)
        self.predicate = predicate

    def open_shard(self, shard_name: str) -> Iterator[Row]:
        return filter(self.predicate, self.source.open_shard(shard_name))


class TransformedShardedSource(_Derived):
    """Each row as a row, none, or several."""

    def __init__(self, source: ShardedDataSource, transform: Transform) -> None:
        super().__init__(source)
        self._transform = transform

    def open_shard(self, shard_name: str) -> Iterator[Row]:
        for row in self.source.open_shard(shard_name):
            made = self._transform(row)
            if isinstance(made, dict):
                yield made
            elif made is not None:
                yield from made


class LimitedShardedSource(_Derived):
    """The first rows of a source, over all its shards."""

    def __init__(self, source: ShardedDataSource, max_rows: int) -> None:
        super().__init__(source)
        self.max_rows = max_rows
        self._counts: dict[str, int] = {}

    def open_shard(self, shard_name: str) -> Iterator[Row]:
        return islice(self.source.open_shard(shard_name), self._room(shard_name))

    def get_shard_info(self, shard_name: str) -> ShardInfo:
        room = self._room(shard_name)
        return ShardInfo(self._number(shard_name), shard_name, min(room, self._count(shard_name, room)))

    def _room(self, shard_name: str) -> int:
        """How many rows are left for a shard."""
        left = self.max_rows
        for name in self.shard_names[: self._number(shard_name)]:
            left -= min(left, self._count(name, left))
        return left

    def _count(self, name: str, limit: int) -> int:
        """The rows of a shard, counted no further than needed where its source does not know."""
        known = self.source.get_shard_info(name).num_rows
        if known is not None:
            return known
        if name not in self._counts:
            self._counts[name] = sum(1 for _ in islice(self.source.open_shard(name), limit))
        return self._counts[name]


class CompositeShardedSource(ShardedDataSource):
    """Several sources, one behind the other. A name that two of them have gets the number of its source in front."""

    def __init__(self, sources: Sequence[ShardedDataSource]) -> None:
        self.sources = list(sources)
        every = [(number, name) for number, source in enumerate(self.sources) for name in source.shard_names]
        counts = Counter(name for _, name in every)
        self._shards = {name if counts[name] == 1 else f"{number}:{name}": (number, name) for number, name in every}

    @property
    def shard_names(self) -> Sequence[str]:
        return list(self._shards)

    def open_shard(self, shard_name: str) -> Iterator[Row]:
        return self.open_shard_at_row(shard_name, 0)

    def open_shard_at_row(self, shard_name: str, row: int) -> Iterator[Row]:
        source, name = self._at(shard_name)
        return source.open_shard_at_row(name, row)

    def get_shard_info(self, shard_name: str) -> ShardInfo:
        source, name = self._at(shard_name)
        info = source.get_shard_info(name)
        return ShardInfo(self._number(shard_name), shard_name, info.num_rows, info.byte_size)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def _at(self, shard_name: str) -> tuple[ShardedDataSource, str]:
        self._number(shard_name)
        number, name = self._shards[shard_name]
        return self.sources[number], name
