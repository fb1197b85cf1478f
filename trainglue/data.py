"""From a shard folder to the dataset that a trainer takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import datakit

if TYPE_CHECKING:
    import datasets

# Which kinds of shards a method trains on. Names as in TRL, in lower case. A kind stands for all its forms, but token
# ids are only of use to the method that they were made for.
KINDS_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "sft": ("sft", "tokenized:tokens", "tokenized:sft", "tokenized:packed"),
    "dpo": ("preference", "tokenized:preference"),
    "orpo": ("preference", "tokenized:preference"),
    "cpo": ("preference", "tokenized:preference"),
    "reward": ("preference", "tokenized:reward"),
    "kto": ("kto", "tokenized:kto"),
    "bco": ("kto", "tokenized:kto"),
    "grpo": ("prompt",),
    "prm": ("stepwise",),
}


def dataset(folder: str | os.PathLike[str], *, method: str, split: str | None = None) -> datasets.Dataset:
    """The rows of a shard folder as a `datasets.Dataset` with the columns of one method and no others.

    The folder is opened by its manifest and compared with it first, so a damaged or half-replaced one is never trained
    on. Needs the `datasets` package.

    Args:
        folder: written by `datakit convert` or `datakit format`.
        method: sft, dpo, orpo, cpo, reward, kto, bco, grpo or prm.
        split: by default all splits, in order.

    Raises:
        datakit.UsageError: the method is unknown or does not train on this kind.
        datakit.CannotJudge: the folder is not what its manifest says.
    """
    kinds = KINDS_OF.get(method)
    if kinds is None:
        raise datakit.UsageError(f"no method named {method!r}", f"Methods: {', '.join(KINDS_OF)}.")
    shards = datakit.load(folder, split=split)
    kind, form = shards.manifest["kind"], shards.manifest["form"]
    own = {kind, f"{kind}:{form}"}
    if own.isdisjoint(kinds):
        hint = (
            f"Format the source with --for {method}"
            if kind == "tokenized"
            else f"Convert the source with --to {kinds[0]}"
        )
        raise datakit.UsageError(
            f"{os.fspath(folder)} holds rows of kind {kind}, form {form}; {method} trains on {' or '.join(kinds)}",
            f"{hint}, or choose {_methods(own)}.",
        )
    return shards.to_datasets()


def _methods(own: set[str]) -> str:
    fitting = [method for method, kinds in KINDS_OF.items() if not own.isdisjoint(kinds)]
    return " or ".join(fitting) or "another trainer"
