"""The verb `stream`: the rows of a mix one by one, in the order in which `mix` would write them.

Where a row comes from is arithmetic, so a stream begins at any row at once: it opens the row groups that hold the next
rows and no others. Its state is the number of the next row and a hash of the plan. Ranks take turns row by row, so a
state that one number of ranks has saved is good for any other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow as pa

from datakit.errors import UsageError
from datakit.mixing import recipe as recipes
from datakit.mixing.arrangement import Arrangement, arrange
from datakit.mixing.gather import Gatherer
from datakit.mixing.recipe import Words
from datakit.mixing.sources import Source, Sources
from datakit.mixing.writing import facts, identity, rows_per_piece, seen
from datakit.reading.columnar import plain_rows
from datakit.shards import PROVENANCE_PREFIX
from datakit.terminal import plural

if TYPE_CHECKING:
    import datasets

    from datakit.mixing.torch_stream import TorchStream

VERSION: Final = 1
PARTS: Final = 64
"""`datasets` divides a stream among nodes and workers by parts; this many divide evenly among 2, 4, ... 64."""
ROWS_PER_PART: Final = 1000


def stream(
    recipe: Words,
    state: Mapping[str, Any] | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    weights: Sequence[float] | None = None,
    rows: int | None = None,
    tokens: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    stop: str | None = None,
    block_size: int | None = None,
    order: str | None = None,
    workers: int | None = None,
) -> Stream:
    """The rows of a mix as a stream that resumes at any row.

    Args:
        recipe: as in `mix`.
        state: what `state_dict` of a stream of the same plan has said, of any rank and any world size.
        rank: the part of this process, from 0.
        world_size: processes that share the stream.
        weights, rows, tokens, tokenizer, seed, stop, block_size, order, workers: as in `mix`.

    Raises:
        UsageError: as in `mix`; or the state is that of another plan.
        CannotJudge: a source cannot be read.
    """
    read = recipes.read(
        recipe,
        weights,
        rows=rows,
        tokens=tokens,
        tokenizer=tokenizer,
        seed=seed,
        stop=stop,
        block_size=block_size,
        order=order,
    )
    sources = Sources(read, workers)
    try:
        plan = arrange(read, [source.size for source in sources])
        if beyond := [finding.note for finding in seen(plan) if finding.id == "DK821"]:
            raise UsageError(beyond[0], "Ask for fewer rows, lower the weight, or raise `epochs`.")
        made = Stream(plan, sources).part(rank, world_size)
        if state is not None:
            made.load_state_dict(state)
    except BaseException:
        sources.close()
        raise
    return made


class Stream(Iterator[dict[str, Any]]):
    """Rows with the columns that trainers read, JSON parsed; made by `stream`.

    Attributes:
        rows: of the whole mix, over all ranks.
        position: the first row that no rank has given yet, if all ranks are equally far.
        rank, world_size: the part of this process.
        facts: the plan as in the report of `mix`.
        sources: of the recipe, in its order.
    """

    def __init__(self, plan: Arrangement, sources: Sources) -> None:
        self.plan, self.rows = plan, len(plan)
        self.rank, self.world_size, self.position = 0, 1, 0
        self.facts = facts(plan, sources)
        self.identity = identity(plan.recipe, sources)
        self.columns = pa.schema([field for field in sources.columns if not field.name.startswith(PROVENANCE_PREFIX)])
        self.sources: list[Source] = list(sources)
        self._chunk = max(1, rows_per_piece(plan, self.sources) // 4)
        self._given: Iterator[dict[str, Any]] | None = None
        self._gatherer: Gatherer | None = None
        self._opened: Sources | None = sources  # what was converted stays as long as a part of the stream

    def __repr__(self) -> str:
        return f"<Stream {plural(self.rows, 'row')} of {plural(len(self.sources), 'source')}, at {self.position:,}>"

    def part(self, rank: int, world_size: int) -> Self:
        """The part of one of several processes, from the position of this stream on.

        Raises:
            UsageError: there is no such rank.
        """
        if not 0 <= rank < world_size:
            raise UsageError(f"rank {rank} of {world_size}", "Ranks go from 0 to world_size - 1.")
        made = object.__new__(type(self))
        made.__dict__ |= self.__dict__
        made.rank, made.world_size, made._given, made._gatherer = rank, world_size, None, None
        return made

    def __len__(self) -> int:
        """Rows that are still to come in this part."""
        return max(0, -(-(self.rows - self.position - self.rank) // self.world_size))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        if self._given is None:
            self._given = self.between(self.position + self.rank, self.rows, self.world_size)
        row = next(self._given, None)
        if row is None:
            self.position = self.rows
            raise StopIteration
        self.position = min(self.position + self.world_size, self.rows)
        return row

    def between(self, start: int, stop: int, step: int = 1) -> Iterator[dict[str, Any]]:
        """Every `step`-th row of the mix from `start` to before `stop`, whatever the part and the position."""
        gatherer = self._gatherer = self._gatherer or Gatherer(self.plan, self.sources, self.columns)
        for begin in range(start, stop, self._chunk * step):
            table, _ = gatherer.rows(begin, min(begin + self._chunk * step, stop), step)
            yield from plain_rows(_parsed(table, self.columns))

    # ------------------------------------------------------------ the state

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as small JSON: the next row, and a hash of the plan."""
        return {"datakit_stream": VERSION, "plan": self.identity, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a stream of the same plan was, whatever its rank and world size.

        Raises:
            UsageError: it is no state, or that of another plan.
        """
        known = isinstance(state, Mapping) and state.get("datakit_stream") == VERSION
        position = state.get("position") if known else None
        if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position <= self.rows:
            raise UsageError(f"not a state of this stream: {state!r}", "Keep what state_dict() returned.")
        if state.get("plan") != self.identity:
            raise UsageError(
                "the state is that of another plan: the recipe, the seed or the rows of a source have changed",
                "Resume with the recipe and the shards of the first run, or begin anew without a state.",
            )
        self.position, self._given = position, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_given": None, "_gatherer": None, "_opened": None}

    # ------------------------------------------------------------ for trainers

    def to_datasets(self) -> datasets.IterableDataset:
        """The rows from the position on as a `datasets.IterableDataset`, which divides and resumes by parts.

        Needs `pip install 'datakit-trainglue[hf]'`.
        """
        import datasets

        ends = list(range(self.position + self.rank, self.rows, self.world_size))
        parts = PARTS * max(1, len(ends) // (PARTS * ROWS_PER_PART))
        cuts = [len(ends) * i // parts for i in range(parts + 1)]
        bounds = [(ends[a], ends[b - 1] + 1) for a, b in pairwise(cuts) if a < b]
        return datasets.IterableDataset.from_generator(_rows_of, gen_kwargs={"stream": self, "bounds": bounds})

    def to_torch(self) -> TorchStream:
        """The rows as a torch dataset that divides itself among the workers of a `DataLoader`."""
        from datakit.mixing.torch_stream import TorchStream

        return TorchStream(self)


def _rows_of(stream: Stream, bounds: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for start, stop in bounds:
        yield from stream.between(start, stop, stream.world_size)


def _parsed(table: pa.Table, columns: pa.Schema) -> pa.RecordBatch:
    """One batch with JSON columns as such."""
    arrays = []
    for field, column in zip(columns, table.columns, strict=True):
        array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        arrays.append(
            pa.ExtensionArray.from_storage(field.type, array) if isinstance(field.type, pa.JsonType) else array
        )
    return pa.RecordBatch.from_arrays(arrays, schema=columns)
