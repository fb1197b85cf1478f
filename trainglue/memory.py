"""Advice where memory ends, computed from how long the rows are."""

from __future__ import annotations

from collections.abc import Mapping

from datakit.terminal import plural


def advice(
    lengths: Mapping[int, int],
    *,
    batch: int,
    accumulation: int,
    lora: bool,
    checkpointing: bool,
    offloading: bool,
    can_offload: bool = True,
    quantized: bool = False,
) -> str:
    """What to change, the cheapest first, a line each.

    Args:
        lengths: tokens of a row to rows; empty where rows are not tokenised.
        batch: rows per device and step.
        accumulation: steps that make an update.
        lora: adapters are trained.
        checkpointing: activations are computed twice instead of kept.
        offloading: activations are kept in the memory of the host.
        can_offload: the trainer can keep them there.
        quantized: the frozen weights are stored in 4 or 8 bits already.
    """
    lines = [_batch(lengths, batch, accumulation)] if batch > 1 else []
    lines += [_length(lengths)] if lengths else []
    lines += [] if checkpointing else ["gradient_checkpointing = true: keeps no activations, about 20 % slower"]
    lines += (
        []
        if offloading or not can_offload
        else ["activation_offloading = true: keeps activations in the memory of the host"]
    )
    lines += ["lora = 16: trains adapters, so that optimizer states need almost nothing"] if not lora else []
    lines += ["precision = 'qlora': 4 bits for each frozen weight"] if lora and not quantized else []
    return "\n".join(lines)


def _batch(lengths: Mapping[int, int], batch: int, accumulation: int) -> str:
    smaller = max(1, batch // 2)
    more = -(-batch * accumulation // smaller)
    text = (
        f"per_device_train_batch_size = {smaller} with gradient_accumulation_steps = {more}: the same rows per update"
    )
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
