"""The sources of a recipe, opened: verified shards, the rows that a filter leaves, and their lengths in tokens.

What is not a folder of shards, or not of the kind that the recipe asks for, is converted on the way into a folder of
its own that lives as long as the mix is made.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datakit.errors import DataFailed, UsageError
from datakit.mixing.apportion import Lengths
from datakit.mixing.arrangement import Size
from datakit.mixing.filters import Filter
from datakit.mixing.order import Longs, Order
from datakit.mixing.recipe import Recipe, SourceRecipe
from datakit.output import manifest as manifests
from datakit.schema import ID, LENGTH, MIXED, ROW, SOURCE, Layout, Target
from datakit.shards import Shards
from datakit.terminal import plural

ALWAYS: Final[Mapping[str, str]] = {"chat_template_kwargs": "{}"}
"""What a column holds in the rows of a source that lacks it, where that is not null."""


@dataclass(slots=True)
class Source:
    """A source that is ready to give rows.

    Attributes:
        entry: in the recipe.
        shards: its rows.
        order: in which they are given.
        kept: the rows that its filter leaves, int64[rows]; None for all.
        lengths: their tokens, int64[rows], where known.
    """

    entry: SourceRecipe
    shards: Shards
    order: Order
    kept: Longs | None = None
    lengths: Longs | None = None

    @property
    def rows(self) -> int:
        return len(self.shards) if self.kept is None else len(self.kept)

    @property
    def size(self) -> Size:
        lengths = Lengths(self.lengths, self.order) if self.lengths is not None else None
        return Size(self.entry.name, self.rows, lengths)

    def positions(self, numbers: Longs) -> Longs:
        """Where in the shards the rows with these numbers lie; numbers ascend through all epochs."""
        rows = self.order.at(numbers)
        return rows if self.kept is None else self.kept[rows]

    def near(self) -> list[tuple[int, int]]:
        """First and last position of each window that the rows asked for last lie in; they will be asked for more."""
        ends = [(start, stop - 1) for start, stop in self.order.windows()]
        return ends if self.kept is None else [(int(self.kept[a]), int(self.kept[b])) for a, b in ends]


class Sources(Sequence[Source]):
    """All sources of a recipe, of one kind and form; a context, since what was converted goes with it.

    Args:
        recipe: read.
        workers: processes that convert and measure.

    Raises:
        UsageError: they do not go together, or lack what the recipe needs.
        CannotJudge, DataFailed: one cannot be read, or not be converted.
    """

    def __init__(self, recipe: Recipe, workers: int | None = None) -> None:
        self.recipe, self.workers = recipe, workers
        self._stack = ExitStack()
        weakref.finalize(self, self._stack.close)
        self._count = 0
        try:
            self._sources = [self._open(number, entry) for number, entry in enumerate(recipe.sources)]
            self.layout = _one_layout(self._sources)
            self.prepared = _one_preparation(self._sources)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: Any) -> Any:
        return self._sources[index]

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was converted."""
        self._stack.close()

    @cached_property
    def _spool(self) -> Path:
        return Path(self._stack.enter_context(TemporaryDirectory(prefix="datakit-")))

    def _folder(self) -> Path:
        self._count += 1
        return self._spool / str(self._count)

    @cached_property
    def columns(self) -> pa.Schema:
        """The columns of all sources, and the name of the source."""
        return _united([source.shards.schema for source in self._sources])

    @cached_property
    def identity(self) -> list[str]:
        """What the rows of each source are, as hashes."""
        return [source.shards.manifest["content_id"] for source in self._sources]

    # ------------------------------------------------------------ opening one

    def _open(self, number: int, entry: SourceRecipe) -> Source:
        folder = entry.path
        wanted = entry.to or self.recipe.to
        if not (Path(folder) / manifests.NAME).is_file() or (wanted and not _is(folder, Target.parse(wanted))):
            folder = self._converted(entry, wanted)
        shards = Shards.open(folder, _split(folder, entry))
        kept = self._kept(entry, shards)
        source = Source(entry, shards, Order(self.recipe.order, 0, self.recipe.seed, number), kept)
        source.order = Order(self.recipe.order, source.rows, self.recipe.seed, number)
        source.lengths = self._lengths(source, folder)
        shards.path = entry.path  # as it was named, wherever it was converted to
        return source

    def _converted(self, entry: SourceRecipe, wanted: str | None) -> str:
        from datakit.api import convert

        folder = self._folder()
        report = convert(entry.path, folder, to=wanted, format=entry.format, map=entry.map, workers=self.workers)
        if report.exit_code:
            raise DataFailed(
                f"the source {entry.name!r} cannot be converted on the way: {report.verdict}",
                f"See what is wrong: datakit convert {entry.path} -o shards/{f' --to {wanted}' if wanted else ''}",
            )
        return str(folder)

    def _kept(self, entry: SourceRecipe, shards: Shards) -> Longs | None:
        texts = [text for text in (self.recipe.filter, entry.filter) if text]
        if not texts:
            return None
        filters = [Filter.parse(text) for text in texts]
        columns = list(dict.fromkeys(name for filter in filters for name in filter.columns))
        for name in columns:
            if name not in shards.schema.names:
                near = get_close_matches(name, shards.schema.names, 1)
                guess = f"; did you mean {near[0]!r}?" if near else ""
                raise UsageError(
                    f"the filter of {entry.name!r} reads {name!r}, which its rows do not have{guess}",
                    f"They have {', '.join(shards.schema.names)}.",
                )
        for filter in filters:
            filter.check(shards.schema, f"the filter of {entry.name!r}")
        found = [np.empty(0, np.int64)]
        for start, table in shards.tables(columns):
            holds = np.logical_and.reduce([filter.holds(table) for filter in filters])
            found.append(start + np.flatnonzero(holds))
        return np.concatenate(found)

    def _lengths(self, source: Source, folder: str) -> Longs | None:
        recipe, shards = self.recipe, source.shards
        if LENGTH in shards.schema.names:
            if recipe.tokenizer:
                self._counted_with(source, recipe.tokenizer)
            lengths = _column(shards, LENGTH)
        elif recipe.tokenizer:
            lengths = self._measured(source, folder, recipe.tokenizer)
        elif recipe.needs_tokens:
            raise UsageError(
                f"the rows of {source.entry.name!r} have no dk_length, so their tokens are not known",
                "Name a tokenizer with --tokenizer, or mix what `datakit format` wrote.",
            )
        else:
            return None
        return lengths if source.kept is None else lengths[source.kept]

    @cached_property
    def _tokenizer(self) -> str:
        """The hash of the tokenizer of the recipe."""
        from datakit.tokens.load import load

        return load(self.recipe.tokenizer or "").sha256

    def _counted_with(self, source: Source, tokenizer: str) -> None:
        """Refuse a tokenizer that is not the one that dk_length was counted with."""
        own = source.shards.manifest["plan"].get("prepared", {}).get("tokenizer") or {}
        if own.get("sha256") != self._tokenizer:
            raise UsageError(
                f"--tokenizer {tokenizer}: dk_length of {source.entry.name!r} was counted with another one, "
                f"{own.get('name', 'which is not known')}",
                "Leave --tokenizer out, or format the source again with it.",
            )

    def _measured(self, source: Source, folder: str, tokenizer: str) -> Longs:
        """The tokens of each row, rendered with the tokenizer's chat template as `datakit format` would."""
        from datakit import preparation

        out, shards = self._folder(), source.shards
        report = preparation.format(
            folder,
            out,
            tokenizer=tokenizer,
            control_tokens="allow",
            on_bad_row="quarantine",
            max_bad="100 %",
            workers=self.workers,
        )
        if report.exit_code:
            raise DataFailed(f"the rows of {source.entry.name!r} cannot be measured: {report.verdict}", _SEE)
        made = Shards.open(out, shards.split)
        ids, rendered = (_array(each, ID) for each in (shards, made))  # rows of equal content are equally long
        at = pc.index_in(ids, value_set=rendered).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        lengths = np.append(_column(made, LENGTH), -1)[at]
        missing = np.flatnonzero(lengths < 0)
        if source.kept is not None:
            missing = np.intersect1d(missing, source.kept)
        if len(missing):
            row = shards.slice(int(missing[0]), int(missing[0]) + 1, [SOURCE, ROW]).to_pylist()[0]
            raise DataFailed(
                f"{plural(len(missing), 'row')} of {source.entry.name!r} cannot be rendered with this tokenizer, so no "
                f"length is known; the first is {row[SOURCE]}:{row[ROW]}",
                _SEE,
            )
        return lengths


_SEE: Final = "`datakit format` says why; set such rows aside there, and mix what it writes."


def _split(folder: str, entry: SourceRecipe) -> str:
    splits = manifests.load(folder)["splits"]
    if entry.split is not None:
        if entry.split not in splits:
            raise UsageError(f"{entry.path}: no split named {entry.split!r}", f"It has {', '.join(splits)}.")
        return entry.split
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else str(splits[0])
    raise UsageError(
        f"{entry.path} has the splits {', '.join(splits)}", f"Say which one {entry.name!r} is: split = NAME."
    )


def _is(folder: str, wanted: Target) -> bool:
    """Whether the shards of a folder are of this kind and form."""
    manifest = manifests.load(folder)
    return wanted.accepts(Shards(manifest, [], 0).layout)


def _array(shards: Shards, name: str) -> Any:
    arrays = [table.column(0).combine_chunks() for _, table in shards.tables([name])]
    return pa.concat_arrays(arrays) if arrays else pa.array([], shards.schema.field(name).type)


def _column(shards: Shards, name: str) -> Longs:
    return np.asarray(_array(shards, name).to_numpy(zero_copy_only=False), np.int64)


# ---------------------------------------------------------------- whether they go together


def _one_layout(sources: Sequence[Source]) -> Layout:
    layouts = {source.entry.name: source.shards.layout for source in sources}
    first = next(iter(layouts.values()))
    if any(layout != first for layout in layouts.values()):
        told = ", ".join(f"{name} is {layout.name}" for name, layout in layouts.items())
        raise UsageError(f"the sources are of different kinds or forms: {told}", _other_layout(sources, first))
    return first


def _other_layout(sources: Sequence[Source], first: Layout) -> str:
    """What to do about sources of different kinds or forms."""
    plain = [source for source in sources if source.shards.layout.kind != "tokenized"]
    if not plain:
        return "Rows that were formatted for two methods cannot be mixed; mix what they were formatted from."
    if len(plain) < len(sources):
        return f"Format {plain[0].entry.path} first, with the tokenizer, template and method of the others."
    if len({source.shards.layout.kind for source in sources}) > 1:
        return "Mix rows of one kind; `datakit unpair`, `pair` and `convert --to` make one kind of another."
    return f'Say what all of them become, where that is possible without loss: to = "{first.name}" in the recipe.'


def _one_preparation(sources: Sequence[Source]) -> dict[str, Any]:
    """What formatted shards say about how they were made, which has to be the same for all."""
    made = [dict(source.shards.manifest["plan"].get("prepared") or {}) for source in sources]
    keys = [_prepared_with(own) for own in made]
    for source, key in zip(sources, keys, strict=True):
        if key != keys[0]:
            what, hint = (
                "only one of them is formatted",
                "Format the other one in the same way, or mix what was formatted.",
            )
            if key and keys[0]:
                hint = "Format them again with one tokenizer, template and method; token ids of two do not go together."
                what = "made with " + " and ".join(
                    f"another {name}" for name, a, b in zip(_MADE_WITH, keys[0], key, strict=True) if a != b
                )
            raise UsageError(f"{sources[0].entry.path} and {source.entry.path}: {what}", hint)
    return {name: value for name, value in made[0].items() if name in _CARRIED} if keys[0] else {}


_MADE_WITH: Final = ("method", "tokenizer", "chat template", "marks of the template")
_CARRIED: Final = ("method", "tokenizer", "chat_template", "pad", "pad_multiple", "engine")


def _prepared_with(prepared: Mapping[str, Any]) -> tuple[Any, ...] | None:
    if "tokenizer" not in prepared:
        return None
    template = prepared["chat_template"]
    return prepared["method"], prepared["tokenizer"]["sha256"], template["sha256"], template["twin_sha256"]


def _united(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The columns of all schemas, each where it stands in the first that has it."""
    names: list[str] = []
    fields: dict[str, Any] = {}
    for schema in schemas:
        before = 0
        for field in schema:
            if field.name not in fields:
                names.insert(before, field.name)
                fields[field.name] = field
            known = fields[field.name]
            if known.type != field.type:
                raise UsageError(
                    f"the column {field.name!r} is {known.type} in one source and {field.type} in another",
                    "Convert one of them again with a --map that says what the column is.",
                )
            fields[field.name] = known.with_nullable(known.nullable or field.nullable)
            before = names.index(field.name) + 1
    for name, field in fields.items():
        absent = any(name not in schema.names for schema in schemas)
        fields[name] = field.with_nullable(field.nullable or (absent and name not in ALWAYS))
    own = [fields[name] for name in names if name != MIXED]
    return pa.schema([*own, pa.field(MIXED, pa.string())])
