"""Tokenised rows go into trainers that would tokenise them: thin subclasses of whatever class TRL has.

    skip         SFT reads `input_ids` and `labels` if told to (`skip_prepare_dataset`)
    prepare      DPO, Reward, BCO: `_prepare_dataset` would make the columns that are there already
    neighbours   KTO: the same, with the answers of neighbours in a batch for its KL term
    pair_rows    ORPO, CPO: `tokenize_row` joins prompt and answers
    step_rows    PRM: `tokenize_row` returns ids and labels as they are
    none         GRPO reads text

Every trainer also turns "out of memory" into advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from errno import EDQUOT, EFBIG, ENOSPC, EROFS
from typing import Any, Final

from datakit.errors import NotWritten, UsageError
from datakit.schema import IGNORED
from datakit.terminal import first_line
from trainglue.memory import advised
from trainglue.methods import Hook

FULL: Final = {ENOSPC, EDQUOT, EFBIG, EROFS}
SAYS_FULL: Final = ("no space left", "quota exceeded", "file too large", "read-only file system", "inline_container")
"""How libraries without an error number say that a file could not be written; the last is torch's."""


class Guarded:
    """What every trainer gets: a checkpoint to go on from, and words for the end of memory and of the disk.

    Attributes:
        advice: what to change where training takes too much memory.
        advice_to_evaluate: the same of evaluation.
        resume: the checkpoint to go on from.
        streamed: the rows are a stream, which stands where that checkpoint left it.
        watched: around training, the record of the run.
    """

    args: Any
    is_in_train: bool
    advice: Callable[[], str]
    advice_to_evaluate: Callable[[], str]
    resume: str | None = None
    streamed: bool = False
    watched: Callable[[], AbstractContextManager[None]] = nullcontext

    def train(self, resume_from_checkpoint: Any = None, **options: Any) -> Any:
        """As `Trainer.train`.

        Raises:
            OutOfMemory: with what to change, computed from the lengths of the rows.
            NotWritten: the disk is full.
            UsageError: a stream would go on from another checkpoint than the one that it was opened with.
        """
        checkpoint = resume_from_checkpoint or self.resume
        if self.streamed and str(checkpoint) != str(self.resume):
            raise UsageError(
                f"resume_from_checkpoint {checkpoint}: the stream was opened "
                + (f"where {self.resume} left it" if self.resume else "at its first row"),
                "Give resume=True to trainer(), and nothing to train().",
            )
        with self.watched(), advised(self.advice), written(self.args.output_dir):
            return super().train(checkpoint, **options)  # type: ignore[misc]

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """As `Trainer.evaluate`.

        Raises:
            OutOfMemory: with what to change.
        """
        again = self.is_in_train and self.args.auto_find_batch_size  # which takes less and tries again
        with nullcontext() if again else advised(self.advice_to_evaluate):
            return super().evaluate(*arguments, **options)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, *arguments: Any, **options: Any) -> None:
        """As `Trainer.save_model`.

        Raises:
            NotWritten: the disk is full.
        """
        with written(output_dir or self.args.output_dir):
            super().save_model(output_dir, *arguments, **options)  # type: ignore[misc]


@contextmanager
def written(folder: str) -> Iterator[None]:
    """Say in words that a file cannot be written.

    Raises:
        NotWritten: the disk is full, or a quota is.
    """
    try:
        yield
    except Exception as error:  # safetensors has an error of its own
        text = str(error).lower()
        if getattr(error, "errno", None) not in FULL and not any(words in text for words in SAYS_FULL):
            raise
        raise NotWritten(
            f"{folder} could not be written: {first_line(error)}",
            "Make room, or keep fewer checkpoints with --save-total-limit. --resume goes on from the last whole one.",
        ) from error


class Prepared:
    """Rows are what `_prepare_dataset` would return."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


class Neighbours:
    """KTO's KL term pairs each prompt of a batch with the answer of its neighbour in that batch."""

    calculate_KL: bool  # noqa: N815 - TRL's name

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *_: Any, **__: Any) -> Any:
        size = args.per_device_train_batch_size
        if not self.calculate_KL:
            return dataset
        return dataset.map(rotated, batched=True, batch_size=size * max(1, 1024 // size), fn_kwargs={"batch": size})


def rotated(rows: Mapping[str, list[Any]], batch: int) -> dict[str, list[Any]]:
    """The column `KL_completion_ids`: the answers, moved on by one within every `batch` rows."""
    answers = rows["completion_ids"]
    moved = [answers[start : start + batch] for start in range(0, len(answers), batch)]
    return {"KL_completion_ids": [answer for own in moved for answer in (own[-1], *own[:-1])]}


class PairRows:
    """ORPO and CPO call `tokenize_row` for every row and read other columns."""

    def tokenize_row(self, row: Mapping[str, Any], model: Any = None) -> dict[str, list[int]]:
        prompt = row["prompt_ids"]
        made = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side in ("chosen", "rejected"):
            whole = prompt + row[f"{side}_ids"]
            made[f"{side}_input_ids"] = whole
            made[f"{side}_attention_mask"] = [1] * len(whole)
            made[f"{side}_labels"] = [IGNORED] * len(prompt) + row[f"{side}_ids"]
        return made


class StepRows:
    """PRM calls `tokenize_row` for every row."""

    @staticmethod
    def tokenize_row(features: Mapping[str, Any], **_: Any) -> dict[str, list[int]]:
        return {"input_ids": features["input_ids"], "labels": features["labels"]}


_MIXINS: Final[Mapping[Hook, tuple[type, str]]] = {
    "prepare": (Prepared, "_prepare_dataset"),
    "neighbours": (Neighbours, "_prepare_dataset"),
    "pair_rows": (PairRows, "tokenize_row"),
    "step_rows": (StepRows, "tokenize_row"),
}


def adapted(trainer_class: type[Any], hook: Hook) -> type[Any]:
    """A subclass of the same name that takes tokenised rows.

    Raises:
        UsageError: the class does not have the method that the hook stands in for, so the rows would be tokenised.
    """
    bases: tuple[type, ...] = (Guarded, trainer_class)
    if hook in _MIXINS:
        mixin, replaced = _MIXINS[hook]
        if not callable(getattr(trainer_class, replaced, None)):
            raise UsageError(
                f"{trainer_class.__module__}.{trainer_class.__name__} has no {replaced}, so it cannot take token ids",
                "`trainglue doctor` says which versions of TRL can.",
            )
        bases = (Guarded, mixin, trainer_class)
    return type(trainer_class.__name__, bases, {"__module__": trainer_class.__module__})
