"""A recipe of `datakit mix` as the rows of a trainer: written into the cache, or streamed as its plan says.

A stream gives the rows in the order in which `mix` would write them. Where it stands follows from the steps that were
taken, so a checkpoint holds one number, and a run goes on there without reading what it has seen.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import datakit
from datakit.errors import UsageError
from datakit.mixing import recipe as recipes
from datakit.shards import Shards
from trainglue import data
from trainglue.data import Folder, Rows
from trainglue.methods import Method

if TYPE_CHECKING:
    from datakit.mixing.streaming import Stream

STATE: Final = "stream.json"
"""The file of a checkpoint that says where a stream stood."""

NO_STREAM: Final = {
    "prm": "takes no stream",
    "grpo": "shuffles and repeats prompts itself, so the order of a stream and its place would not hold",
}
"""Methods whose rows cannot be streamed, and why."""


def is_recipe(name: Folder) -> bool:
    """Whether rows are named by a recipe, not by a folder."""
    return os.fspath(name).endswith(".toml")


def written(recipe: Folder) -> Path:
    """The folder of a mix, written into the cache unless it is there.

    Raises:
        UsageError, CannotJudge, DataFailed: as `datakit.mix`.
    """
    path = Path(recipe).resolve()
    folder = data.cache_folder() / f"mix-{sha256(str(path).encode()).hexdigest()[:32]}"
    data.alone(lambda: datakit.mix(recipe, folder, overwrite=True).raise_for_status())
    return folder


# ---------------------------------------------------------------- streamed


def opened(recipe: Folder, method: Method) -> list[Shards]:
    """The sources of a recipe, if a trainer can stream them.

    Raises:
        UsageError: a source is not formatted, or the method takes no stream.
    """
    if method.name in NO_STREAM:
        raise UsageError(
            f"the {method.trainer}Trainer of TRL {NO_STREAM[method.name]}", "Leave out streaming: the mix is written."
        )
    entries = recipes.read(recipe).sources
    found = [data.open_shards(entry.path, method, entry.split) for entry in entries]
    for shards in found:
        if not data.is_formatted(shards, method):
            raise UsageError(
                f"{shards.path} is not formatted, and nothing is tokenised while training",
                f"datakit format {shards.path} -o NEW --tokenizer MODEL --for {method.format_for}; "
                "or leave out streaming: the mix is written and formatted once.",
            )
    return found


def rows(
    recipe: Folder, method: Method, config: Any, checkpoint: Path | None, limit: int | None
) -> tuple[Rows, Position]:
    """The rows of a stream from where a checkpoint left it; the config is told how many steps they make.

    Args:
        recipe: the file.
        method: whose trainer takes the rows.
        config: of the trainer; gets `max_steps` where it has none, and skips nothing by reading it.
        checkpoint: to go on from.
        limit: tokens that a row may have.

    Raises:
        UsageError: the checkpoint is of another plan, a row is longer, or as `_check`.
    """
    import datasets

    stream = datakit.stream(recipe)
    passes = 0
    if checkpoint is not None:
        state = json.loads((checkpoint / STATE).read_text("utf-8"))
        passes = state["passes"]
        stream.load_state_dict(state["stream"])
    per_update = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    _check(config, int(stream.rows * config.num_train_epochs) // per_update, -(-stream.rows // per_update))
    if config.max_steps <= 0:
        config.max_steps = max(1, -(-int(stream.rows * config.num_train_epochs) // per_update))
    config.ignore_data_skip = True
    config.accelerator_config.dispatch_batches = False
    made = datasets.IterableDataset.from_generator(_given, gen_kwargs={"stream": stream, "start": stream.position})
    if method.hook == "pair_rows":
        _let_map(made)
    lengths: Counter[int] = Counter()
    for source in stream.sources:
        own = data.lengths_of(source.shards, source.kept)
        data.check_length(Rows(made, source.shards, source.kept, own, stream), limit)
        lengths += own
    return Rows(made, stream.sources[0].shards, None, lengths, stream), Position(stream, passes, per_update)


def _check(config: Any, full: int, epoch: int) -> None:
    """Refuse what a trainer does by the length of its rows, or to their order, which it does not know of a stream.

    Args:
        config: of the trainer.
        full: steps of the run that its rows fill.
        epoch: steps in which all rows come.

    Raises:
        UsageError: with what to write instead.
    """
    steps = {name: f"--{name}-strategy steps --{name}-steps N; an epoch has {epoch}." for name in ("eval", "save")}
    steps["logging"] = "--logging-steps N."
    names = {f"{name}_strategy": hint for name, hint in steps.items()}
    instead = {name: hint for name, hint in names.items() if getattr(config, name) == "epoch"}
    if config.auto_find_batch_size:
        instead["auto_find_batch_size"] = "Give per_device_train_batch_size; a stream counts its rows by it."
    if config.accelerator_config.split_batches:
        instead["split_batches"] = "Leave it out and give per_device_train_batch_size, the rows of one process."
    if config.dataloader_drop_last:
        fewer = f"--max-steps {full} ends where rows would not fill a step."
        instead["dataloader_drop_last"] = fewer if full else "Lower per_device_train_batch_size: no step is filled."
    for name, hint in instead.items():
        raise UsageError(f"{name} and a stream exclude each other", hint)


def _let_map(stream: Any) -> None:
    """Let a stream be mapped by a trainer that asks for processes, of which a stream knows nothing."""
    import datasets

    class Mapped(datasets.IterableDataset):
        def map(self, *given: Any, num_proc: int | None = None, **options: Any) -> Any:
            made = super().map(*given, **options)
            made.__class__ = Mapped
            return made

    stream.__class__ = Mapped


def _given(stream: Stream, start: int) -> Iterator[dict[str, Any]]:
    """The rows from a place on, and then again from the first; the trainer ends at its last step."""
    yield from stream.between(start, stream.rows)
    while stream.rows:
        yield from stream.between(0, stream.rows)


@dataclass(slots=True)
class Position:
    """Where a stream stands after a number of steps.

    Attributes:
        stream: at the place where this session began.
        passes: how often all its rows had been given then.
        per_update: rows of an update over all processes.
    """

    stream: Stream
    passes: int
    per_update: int

    def epoch(self, steps: int) -> float:
        """How often all rows have been given after some steps of this session."""
        return self.passes + (self.stream.position + steps * self.per_update) / self.stream.rows

    def after(self, steps: int) -> Mapping[str, Any]:
        """What a checkpoint keeps after some steps of this session."""
        passes, position = divmod(self.stream.position + steps * self.per_update, self.stream.rows)
        state = {**self.stream.state_dict(), "position": position}
        return {"passes": self.passes + passes, "stream": state}
