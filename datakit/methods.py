"""Training methods: which kind of rows each takes, and which columns its trainer reads.

    method                  rows         columns that `datakit format` writes
    sft                     sft          input_ids, labels                       (with --pack: seq_lengths too)
    dpo, orpo, cpo          preference   prompt_ids, chosen_ids, rejected_ids
    kto, bco                kto          prompt_ids, completion_ids, label
    reward                  preference   chosen_ids, rejected_ids                (margin where rows have one)
    grpo                    prompt       prompt and side columns, as they are: the trainer renders and generates
    stepwise                stepwise     input_ids, labels                       (a label behind each step)

Names and types are those of TRL 1.16; see docs/format.md for the versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from datakit.errors import UsageError
from datakit.schema import KINDS, Kind

EASYDEL: Final[Mapping[str, str]] = {
    "sft": "easydel_sft",
    "preference": "easydel_preference",
    "kto": "easydel_kto",
    "reward": "easydel_reward",
}
"""Form of the token columns -> form of those that EasyDeL's trainers read; see `easydel`."""


@dataclass(frozen=True, slots=True)
class Method:
    """One training method.

    Attributes:
        name: what `--for` takes.
        kinds: the kinds of rows that it takes.
        ids: form of the tokenized output; empty where rows stay text.
        texts: the text columns of `--render-only`.
    """

    name: str
    kinds: tuple[Kind, ...]
    ids: str
    texts: tuple[str, ...]


_PAIR: Final = ("prompt", "chosen", "rejected")
_ANSWER: Final = ("prompt", "completion")

METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        Method("sft", ("sft", "trajectory"), "sft", ("text",)),
        Method("dpo", ("preference",), "preference", _PAIR),
        Method("orpo", ("preference",), "preference", _PAIR),
        Method("cpo", ("preference",), "preference", _PAIR),
        Method("kto", ("kto",), "kto", _ANSWER),
        Method("bco", ("kto",), "kto", _ANSWER),
        Method("reward", ("preference",), "reward", ("chosen", "rejected")),
        Method("grpo", ("prompt",), "", ("prompt",)),
        Method("stepwise", ("stepwise",), "sft", ()),
    )
}

DEFAULT: Final[Mapping[str, str]] = {
    "sft": "sft",
    "trajectory": "sft",
    "preference": "dpo",
    "kto": "kto",
    "prompt": "grpo",
    "stepwise": "stepwise",
}
"""The method that is meant where only the kind of the rows is known."""


CONVERSIONS: Final[Mapping[tuple[str, str], str]] = {
    ("sft", "prompt"): "datakit convert {} -o NEW --to prompt",
    ("preference", "kto"): "datakit unpair {} -o NEW",
    ("preference", "sft"): "datakit convert {} -o NEW --to sft",
    ("preference", "prompt"): "datakit convert {} -o NEW --to prompt",
    ("kto", "preference"): "datakit pair {} -o NEW",
}
"""What makes rows of another kind of a shard folder."""


def conversion(kind: str, wanted: str, folder: str) -> str:
    """The command that makes rows of one kind of a folder with another; empty where there is none."""
    return CONVERSIONS.get((kind, wanted), "").format(folder)


def method_for(kind: str, name: str | None, folder: str) -> Method:
    """The method for the rows of a kind in a folder.

    Raises:
        UsageError: the method is unknown, or takes other rows; with what would fit.
    """
    if name is None:
        if kind not in DEFAULT:
            raise UsageError(f"{kind} rows are not formatted", _way_out(kind))
        return METHODS[DEFAULT[kind]]
    if name not in METHODS:
        raise UsageError(f"--for {name}", f"One of {', '.join(METHODS)}.")
    method = METHODS[name]
    if kind not in method.kinds:
        fitting = [other.name for other in METHODS.values() if kind in other.kinds]
        hint = f"{kind} rows fit --for {', '.join(fitting)}." if fitting else _way_out(kind)
        if command := conversion(kind, method.kinds[0], folder):
            hint = f"{command} makes {method.kinds[0]} rows of them. {hint}"
        raise UsageError(f"--for {name} takes {' or '.join(method.kinds)} rows; these are {kind}", hint)
    return method


def _way_out(kind: str) -> str:
    if kind == "tokenized":
        return "They are token ids already."
    return f"Kinds that are: {', '.join(k for k in KINDS if k in DEFAULT)}."
