"""The recipe of a mix: which sources, in which ratio, until when.

It is a TOML file, a mapping, or the words of a command, and all of them become a `Recipe`. `KEYS`, `SOURCE_KEYS` and
the two tables of a schedule say what may stand in it; `schemas/mix.json` is made from them. A key or a value that is
not known is refused with its place and the nearest word.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

from datakit.errors import UnreadableInput, UsageError
from datakit.mixing.filters import Filter
from datakit.mixing.schedule import AXES, INTERPOLATIONS, WeightSchedulePoint, WeightScheduler, is_number
from datakit.output import manifest as manifests

Type = Literal["text", "count", "natural", "positive", "table", "tables", "weights"]
Unit = Literal["rows", "tokens"]

STOPS: Final = ("first_exhausted", "all_exhausted", "all_exhausted_restart", "restart", "repeat:N")
BLOCK_SIZE: Final = 1000
MAX_SEED: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Key:
    """What a key of the recipe may hold, in one line for people."""

    type: Type
    doc: str
    words: tuple[str, ...] = ()


KEYS: Final[Mapping[str, Key]] = {
    "sources": Key("table", "name -> source"),
    "weigh_by": Key("text", "what weights count; by default tokens where `tokens` is given", ("rows", "tokens")),
    "temperature": Key("positive", "instead of weights: each source weighs its size to the power of 1 / temperature"),
    "rows": Key("count", "rows of the mix"),
    "tokens": Key("count", "tokens of the mix, to within a row"),
    "tokenizer": Key("text", "a folder, a tokenizer.json or a name on the Hub, where rows have no dk_length"),
    "stop": Key("text", "when the mix ends: " + ", ".join(STOPS)),
    "order": Key("text", "rows of a source as they lie (source), shuffled within N rows (window:N), or all (shuffle)"),
    "block_size": Key("count", "rows of a block; each holds the weights as exactly as rows allow"),
    "seed": Key("natural", "decides every shuffle"),
    "to": Key("text", "kind and form that sources are converted to, such as sft:messages"),
    "filter": Key("text", "rows of all sources that are used, such as \"dk_length <= 4096\""),
    "schedule": Key("table", "weights that change"),
}  # fmt: skip

SOURCE_KEYS: Final[Mapping[str, Key]] = {
    "path": Key("text", "a folder of shards, a file, a glob, or hf:NAME"),
    "split": Key("text", "of a folder with several; by default train"),
    "weight": Key("positive", "its share of the mix, against the sum of all weights"),
    "rows": Key("count", "a budget instead of a weight"),
    "tokens": Key("count", "a budget instead of a weight"),
    "epochs": Key("positive", "how often its rows may be used at most"),
    "filter": Key("text", "its rows that are used, besides the filter of the recipe"),
    "format": Key("text", "of a file: read it as this format instead of detecting it"),
    "map": Key("text", "of a file: what its columns mean, as `datakit convert --map`"),
    "to": Key("text", "kind and form that it is converted to"),
}

SCHEDULE_KEYS: Final[Mapping[str, Key]] = {
    "axis": Key("text", "what `at` counts", AXES),
    "interpolation": Key("text", "how weights go from one point to the next", INTERPOLATIONS),
    "rows_per_step": Key("count", "rows that one optimizer step takes on all devices, for the axis steps"),
    "points": Key("tables", "the weights at places"),
}

POINT_KEYS: Final[Mapping[str, Key]] = {
    "at": Key("natural", "the place"),
    "weights": Key("weights", "source -> weight; 0 is allowed"),
}


@dataclass(frozen=True, slots=True)
class SourceRecipe:
    """One source; see `SOURCE_KEYS`."""

    name: str
    path: str
    split: str | None = None
    weight: float | None = None
    rows: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    filter: str | None = None
    format: str | None = None
    map: str | None = None
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """Changing weights; see `SCHEDULE_KEYS`."""

    scheduler: WeightScheduler
    axis: str = "rows"
    rows_per_step: int = 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe in full; see `KEYS`. `repeat` is the N of `repeat:N`."""

    sources: tuple[SourceRecipe, ...]
    weigh_by: Unit = "rows"
    temperature: float | None = None
    rows: int | None = None
    tokens: int | None = None
    tokenizer: str | None = None
    stop: str = "first_exhausted"
    order: str = "source"
    block_size: int = BLOCK_SIZE
    seed: int = 0
    to: str | None = None
    filter: str | None = None
    schedule: Schedule | None = None

    @property
    def repeat(self) -> int | None:
        return int(self.stop.partition(":")[2]) if self.stop.startswith("repeat:") else None

    @property
    def names(self) -> list[str]:
        return [source.name for source in self.sources]

    @property
    def needs_tokens(self) -> bool:
        """Whether the plan depends on the lengths of rows."""
        axis = self.schedule.axis if self.schedule else None
        return self.weigh_by == "tokens" or self.tokens is not None or axis == "tokens"

    def to_json(self) -> dict[str, Any]:
        """All that decides the plan, as plain JSON."""
        return asdict(self)


Words = str | os.PathLike[str] | Mapping[str, Any] | Sequence[str | os.PathLike[str]]
"""A TOML file, what such a file says, or the sources themselves."""


def read(words: Words, weights: Sequence[float] | None = None, **options: Any) -> Recipe:
    """The recipe that a call names.

    Args:
        words: a TOML file, what such a file says, or names of sources.
        weights: one for each source, in order.
        options: keys of the recipe that replace its own; None leaves one as it is.

    Raises:
        UsageError: with the place, and the nearest word where one is unknown.
        UnreadableInput: the file cannot be read.
    """
    place, body = _body(words)
    given = {name: value for name, value in options.items() if value is not None}
    body = {
        **body,
        **{name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in given.items()},
    }
    if weights is not None:
        body["sources"] = _weighed(body.get("sources"), weights)
    return parse(body, place)


def _body(words: Words) -> tuple[str, dict[str, Any]]:
    if isinstance(words, Mapping):
        return "the recipe", dict(words)
    if not isinstance(words, str | os.PathLike | Sequence):
        raise UsageError(f"a recipe of type {type(words).__name__}", "Name a TOML file or sources, or give a mapping.")
    given = [os.fspath(words)] if isinstance(words, str | os.PathLike) else [os.fspath(word) for word in words]
    names = [name for word in given for name in _folders(word)]
    if not names:
        raise UsageError("no recipe and no sources", "datakit mix mix.toml -o mixed/")
    tomls = [name for name in names if name.endswith(".toml")]
    if not tomls:
        return "the call", {"sources": {_name(name, names): {"path": name} for name in names}}
    if len(names) > 1:
        raise UsageError(f"{tomls[0]} and other inputs", "Name one recipe, or sources without a recipe.")
    try:
        return tomls[0], tomllib.loads(Path(tomls[0]).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableInput(f"{tomls[0]}: {error}", "Name a recipe that can be read.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{tomls[0]}: {error}", "See https://toml.io.") from None


def _folders(word: str) -> list[str]:
    """The shard folders that a glob matches, each a source; a glob over files stays one source."""
    found = [] if Path(word).exists() else sorted(glob(word))  # noqa: PTH207
    return found if found and all((Path(name) / manifests.NAME).is_file() for name in found) else [word]


def _name(path: str, paths: Sequence[str]) -> str:
    """What a source without a name is called: the last part of its path, or all of it where two would be alike."""
    alike = [other for other in paths if Path(other).name == Path(path).name]
    if paths.count(path) > 1:
        raise UsageError(f"{path} is named twice", "Name a source once; its weight says how much of it is taken.")
    return Path(path).name if len(alike) == 1 and Path(path).name else path


def _weighed(sources: Any, weights: Any) -> dict[str, Any]:
    if not isinstance(weights, Sequence) or isinstance(weights, str) or not all(map(is_number, weights)):
        raise UsageError(f"weights = {weights!r}", "A list of numbers, one for each source, in order: [0.7, 0.3].")
    if not isinstance(sources, Mapping) or len(weights) != len(sources):
        count = len(sources) if isinstance(sources, Mapping) else 0
        raise UsageError(f"{len(weights)} weights for {count} sources", "Give one weight for each source, in order.")
    return {name: {**source, "weight": float(w)} for (name, source), w in zip(sources.items(), weights, strict=True)}


# ---------------------------------------------------------------- strict reading


def parse(body: Mapping[str, Any], place: str = "the recipe") -> Recipe:
    """A recipe from what its file says.

    Raises:
        UsageError: with the place, and the nearest word where one is unknown.
    """
    values = _checked(body, KEYS, place)
    sources = tuple(_source(name, entry, place) for name, entry in values.pop("sources", {}).items())
    if not sources:
        raise UsageError(f"{place}: no sources", "Each has a table: [sources.NAME] with a path.")
    schedule = values.pop("schedule", None)
    default = "tokens" if "tokens" in values or any(source.tokens for source in sources) else "rows"
    recipe = Recipe(
        sources,
        **{"weigh_by": default, **values},
        schedule=_schedule(schedule, [source.name for source in sources], f"{place}: schedule") if schedule else None,
    )
    _agree(recipe, place)
    return recipe


def _source(name: str, entry: Any, place: str) -> SourceRecipe:
    where = f"{place}: sources.{name}"
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, Mapping):
        raise UsageError(f"{where}: {entry!r}", "A table with a path.")
    values = _checked(entry, SOURCE_KEYS, where)
    if "path" not in values:
        raise UsageError(f"{where}: no path", "A folder of shards, a file, or hf:NAME.")
    if sum(key in values for key in ("weight", "rows", "tokens")) > 1:
        raise UsageError(f"{where}: more than one of weight, rows and tokens", "A source has a weight or a budget.")
    return SourceRecipe(name, **values)


def _schedule(entry: Mapping[str, Any], names: Sequence[str], place: str) -> Schedule:
    values = _checked(entry, SCHEDULE_KEYS, place)
    points: list[WeightSchedulePoint] = []
    for number, point in enumerate(values.get("points", ())):
        where = f"{place}.points[{number}]"
        own = _checked(point, POINT_KEYS, where)
        if own.keys() != POINT_KEYS.keys():
            raise UsageError(f"{where}: needs at and weights")
        for name in own["weights"]:
            _known(name, names, where, "source")
        weights = {name: own["weights"].get(name) for name in names}
        if missing := [name for name, weight in weights.items() if weight is None]:
            raise UsageError(f"{where}: no weight for {missing[0]}", "Every point names every source; 0 is a weight.")
        total = sum(weights.values())
        if total <= 0:
            raise UsageError(f"{where}: all weights are 0", "One of them has to be positive.")
        points.append(WeightSchedulePoint(own["at"], {name: weight / total for name, weight in weights.items()}))
    for before, after in pairwise(points):
        if after.step < before.step:
            raise UsageError(
                f"{place}: at = {after.step} behind at = {before.step}", "Write the points in their order."
            )
    axis = values.get("axis", "rows")
    if axis == "steps" and "rows_per_step" not in values:
        raise UsageError(f'{place}: axis = "steps" without rows_per_step', "Rows of an optimizer step on all devices.")
    if axis != "steps" and "rows_per_step" in values:
        raise UsageError(f"{place}: rows_per_step with axis = {axis!r}", 'It belongs to axis = "steps".')
    try:
        scheduler = WeightScheduler(points, values.get("interpolation", "step"))
    except UsageError as error:
        raise UsageError(f"{place}: {error.message}", error.hint) from None
    return Schedule(scheduler, axis, values.get("rows_per_step", 1))


def _agree(recipe: Recipe, place: str) -> None:
    """Refuse keys that contradict each other, and words that no key takes."""
    kinds = {"weight": 0, recipe.weigh_by: 0, "none": 0}
    for source in recipe.sources:
        budget = "rows" if source.rows is not None else "tokens" if source.tokens is not None else ""
        if budget and budget != recipe.weigh_by:
            raise UsageError(
                f"{place}: sources.{source.name}: a budget of {budget}, where weights count {recipe.weigh_by}",
                f'weigh_by = "{budget}" makes all count {budget}.',
            )
        kinds["weight" if source.weight is not None else budget or "none"] += 1
        if source.filter:
            Filter.parse(source.filter, f"{place}: sources.{source.name}.filter")
    if recipe.filter:
        Filter.parse(recipe.filter, f"{place}: filter")
    budgets, weights, none = kinds[recipe.weigh_by], kinds["weight"], kinds["none"]
    told = [name for name, is_so in (("weights", weights), ("budgets", budgets)) if is_so]
    for name, value in (("a schedule", recipe.schedule), ("a temperature", recipe.temperature)):
        if value is not None:
            told.append(name)
    if len(told) > 1 and set(told) != {"weights", "budgets"}:
        raise UsageError(f"{place}: {' and '.join(told)}", "One of them decides the ratio of the sources.")
    if none and weights:
        missing = next(s.name for s in recipe.sources if s.weight is None and s.rows is None and s.tokens is None)
        raise UsageError(
            f"{place}: sources.{missing}: no weight", "Where one source has a weight, all have one, or a budget."
        )
    if budgets and (none or weights) and getattr(recipe, recipe.weigh_by) is None:
        raise UsageError(
            f"{place}: budgets for some sources only", f"Say how large the whole is: {recipe.weigh_by} = N."
        )
    _agree_on_end(recipe, place)


def _agree_on_end(recipe: Recipe, place: str) -> None:
    budgets = all(source.rows is not None or source.tokens is not None for source in recipe.sources)
    word, _, number = recipe.stop.partition(":")
    if word == "repeat":
        if not number.isdigit() or not int(number):
            raise UsageError(f"{place}: stop = {recipe.stop!r}", "repeat:2 uses every row twice.")
    else:
        _known(recipe.stop, STOPS, place, "stop")
    if recipe.stop == "restart" and recipe.rows is None and recipe.tokens is None and not budgets:
        raise UsageError(f"{place}: stop = 'restart' has no end", "Give rows or tokens.")
    if recipe.rows is not None and recipe.tokens is not None:
        raise UsageError(f"{place}: rows and tokens", "One of them says how large the mix is.")
    word, _, number = recipe.order.partition(":")
    if word == "window":
        if not number.isdigit() or not int(number):
            raise UsageError(f"{place}: order = {recipe.order!r}", "window:10000 shuffles within 10,000 rows.")
    elif recipe.order not in ("source", "shuffle"):
        _known(recipe.order, ("source", "window:N", "shuffle"), place, "order")
    if recipe.seed > MAX_SEED:
        raise UsageError(f"{place}: seed = {recipe.seed}", "A seed has at most 64 bits.")


def _checked(entry: Any, keys: Mapping[str, Key], place: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise UsageError(f"{place}: {entry!r}", "A table.")
    for name, value in entry.items():
        _known(name, keys, place, "key")
        key = keys[name]
        if not _fits(key.type, value):
            raise UsageError(f"{place}.{name}: {value!r}", f"{EXPECTED[key.type]}: {key.doc}.")
        if key.words:
            _known(value, key.words, f"{place}.{name}", "value")
    return dict(entry)


EXPECTED: Final[Mapping[Type, str]] = {
    "text": "A text",
    "count": "A whole number from 1 on",
    "natural": "A whole number, not negative",
    "positive": "A number above 0",
    "table": "A table",
    "tables": "A list of tables",
    "weights": "A table of numbers, none negative",
}


def _fits(type_: Type, value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or (isinstance(value, float) and math.isfinite(value))
    if type_ == "text":
        return isinstance(value, str) and bool(value)
    if type_ in ("count", "natural"):
        return whole and value >= (type_ == "count")
    if type_ == "positive":
        return number and value > 0
    if type_ == "tables":
        return isinstance(value, Sequence) and all(isinstance(x, Mapping) for x in value)
    return isinstance(value, Mapping) and (
        type_ == "table" or all(_fits("natural", x) or _fits("positive", x) or x == 0 for x in value.values())
    )


def _known(word: str, words: Any, place: str, what: str) -> None:
    if word in words:
        return
    near = get_close_matches(word, list(words), 1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"{place}: unknown {what} {word!r}{guess}", f"There are: {', '.join(words)}.")
