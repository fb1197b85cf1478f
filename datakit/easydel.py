"""The token columns of EasyDeL's trainers, from those that TRL reads: `--layout easydel`.

Names and contents are those of its prompt transforms (`easydel/trainers/prompt_transforms.py`), whose output its
trainers take as it is: an answer has its prompt before it, labels are -100 on the prompt, and masks say which
tokens count. There is one difference: rows are not padded here, since padding belongs to a batch.

    sft         input_ids attention_mask assistant_masks
    dpo ...     prompt_input_ids prompt_attention_mask, and for chosen and rejected: _input_ids _attention_mask _labels
    kto, bco    the same for prompt and completion, and label
    reward      input_ids_chosen attention_mask_chosen input_ids_rejected attention_mask_rejected
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from datakit.labels import Ids
from datakit.schema import IGNORED


def columns(form: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Columns by EasyDeL's names.

    Args:
        form: of the given columns: sft, preference, kto or reward.
        given: token columns as `sequences` makes them, and any others, which are kept.
    """
    ids = {name: _rows(values) for name, values in given.items() if name.endswith("_ids") or name == "labels"}
    made = {name: values for name, values in given.items() if name not in ids}
    if form == "sft":
        made |= {"input_ids": ids["input_ids"], "attention_mask": _ones(ids["input_ids"])}
        return made | {"assistant_masks": [(row != IGNORED).astype(np.int32) for row in ids["labels"]]}
    if form == "reward":
        for side in ("chosen", "rejected"):
            made |= {f"input_ids_{side}": ids[f"{side}_ids"], f"attention_mask_{side}": _ones(ids[f"{side}_ids"])}
        return made
    prompts = ids["prompt_ids"]
    made |= {"prompt_input_ids": prompts, "prompt_attention_mask": _ones(prompts)}
    for side in ("completion",) if form == "kto" else ("chosen", "rejected"):
        pairs = list(zip(prompts, ids[f"{side}_ids"], strict=True))
        whole = [np.concatenate(pair) for pair in pairs]
        labels = [np.concatenate((np.full(len(prompt), IGNORED, np.int32), answer)) for prompt, answer in pairs]
        made |= {f"{side}_input_ids": whole, f"{side}_attention_mask": _ones(whole), f"{side}_labels": labels}
    return made


def _rows(values: Any) -> list[Ids]:
    """A column of token ids as one array per row."""
    if isinstance(values, list):
        return [np.asarray(row, np.int32) for row in values]
    flat, offsets = np.asarray(values.values), np.asarray(values.offsets)
    return [flat[start:end] for start, end in pairwise(offsets.tolist())]


def _ones(rows: Sequence[Ids]) -> list[Ids]:
    return [np.ones(len(row), np.int32) for row in rows]
