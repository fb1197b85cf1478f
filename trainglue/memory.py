"""Where memory ends: how it is told from other errors, and what to change, computed from how long the rows are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from datakit.errors import DatakitError
from datakit.terminal import first_line, plural

QUANTIZED = ("qlora", "fp8_weights")
"""Precisions that store frozen weights in 4 or 8 bits."""


class OutOfMemory(DatakitError):
    """The accelerator or the machine has too little memory for the run; the hint says what to change."""

    exit_code = 5


def ends(error: BaseException) -> bool:
    """Whether an error says that memory ended."""
    return isinstance(error, MemoryError) or any(
        words in str(error).lower() for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


@contextmanager
def advised(advice: Callable[[], str]) -> Iterator[None]:
    """Turn the end of memory into advice.

    Raises:
        OutOfMemory: with the advice as its hint.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ends(error):
            raise
        raise OutOfMemory(f"out of memory: {first_line(error)}", advice()) from error


def for_loading(lora: bool, precision: Any) -> str:
    """What to change where the weights alone do not fit, a line each.

    Args:
        lora: adapters are trained.
        precision: of the weights.
    """
    lines = [] if lora else ["lora = 16: frozen weights in 16 bits, and no gradients and optimizer states for them"]
    lines += [] if precision in QUANTIZED else ["precision = 'qlora': 4 bits for each frozen weight; with lora"]
    return "\n".join([*lines, "else a smaller model, or a device with more memory that is free"])


def for_training(lengths: Mapping[int, int], config: Any, *, least: int, lora: bool, precision: Any) -> str:
    """What to change in a step, the cheapest first, a line each.

    Args:
        lengths: tokens of a row to rows; empty where rows are not tokenised.
        config: of the trainer.
        least: rows that a batch must have.
        lora: adapters are trained.
        precision: of the weights.
    """
    batch = config.per_device_train_batch_size
    lines = [_batch(lengths, batch, config.gradient_accumulation_steps, least)] if batch > least else []
    lines += [_length(lengths)] if lengths else []
    if not config.gradient_checkpointing:
        lines.append("gradient_checkpointing = true: activations within a layer are computed again instead of kept")
    if not getattr(config, "activation_offloading", True):
        lines.append("activation_offloading = true: keeps activations in the memory of the host")
    if not lora:
        lines.append("lora = 16: trains adapters, so that optimizer states need almost nothing")
    elif precision not in QUANTIZED:
        lines.append("precision = 'qlora': 4 bits for each frozen weight")
    return "\n".join(lines)


def for_evaluation(lengths: Mapping[int, int], config: Any) -> str:
    """What to change where evaluation takes too much, a line each.

    Args:
        lengths: tokens of a row to rows.
        config: of the trainer.
    """
    batch = config.per_device_eval_batch_size
    lines = [f"per_device_eval_batch_size = {batch // 2}, now {batch}"] if batch > 1 else []
    return "\n".join([*lines, *([_length(lengths)] if lengths else [])])


def _batch(lengths: Mapping[int, int], batch: int, accumulation: int, least: int) -> str:
    """A smaller batch, if there is one with the same rows per update."""
    rows, half = batch * accumulation, max(least, batch // 2)
    smaller = next((size for size in range(half, least - 1, -1) if rows % size == 0), half)
    more = -(-rows // smaller)
    update = "the same rows per update" if smaller * more == rows else f"{smaller * more} rows per update, now {rows}"
    text = f"per_device_train_batch_size = {smaller} with gradient_accumulation_steps = {more}: {update}"
    if lengths:
        longest = max(lengths)
        text += f"; a step then pads to at most {smaller * longest:,} tokens, now {batch * longest:,}"
    return text


def _length(lengths: Mapping[int, int]) -> str:
    """The length that most rows keep to, and how many do not."""
    total, seen, longest = sum(lengths.values()), 0, max(lengths)
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= 0.99 * total:
            break
    kept = min(longest, -(-length // 64) * 64)
    over = sum(rows for other, rows in lengths.items() if other > kept)
    if not over:
        return f"all {plural(total, 'row')} have at most {longest:,} tokens, so shorter rows gain little"
    return (
        f"max_length = {kept}: {plural(over, 'row')} of {total:,} are longer, up to {longest:,} tokens; "
        "format.truncation says what becomes of them"
    )
