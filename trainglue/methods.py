"""Training methods: which shards each trains on, and where its trainer lives in the installed TRL.

Unsloth puts classes of its own in the place of TRL's, so they are looked up when they are needed and never imported by
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

from datakit.errors import UsageError

Hook = Literal["none", "skip", "prepare", "neighbours", "pair_rows", "step_rows"]
Head = Literal["causal", "score", "step"]


OLDEST: Final = "1.9"
"""The first TRL whose trainers take tokenised rows as `hooks` hands them over; its KTO trainer is also that of BCO."""

UPGRADE: Final = "pip install 'trl>=1.9,!=1.15.0,<1.17'"

STACK: Final = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "unsloth", "unsloth_zoo")
OPTIONAL: Final = ("bitsandbytes", "torchao", "transformer-engine", "triton")
"""Packages that runs are made with, and those that only some precisions and versions need."""

DOCTOR: Final = "`trainglue doctor` says which versions work together."


@dataclass(frozen=True, slots=True)
class Method:
    """One training method.

    Attributes:
        name: what `trainglue METHOD` takes; as in TRL, in lower case.
        kinds: the kinds of shards whose rows its trainer reads. A kind stands for all its forms, but token ids are only
            of use to the method that they were made for.
        trainer: its class without the ending: `DPO` has DPOTrainer and DPOConfig.
        hook: how tokenised rows are handed over, see `hooks`.
        home: the module of TRL where these are.
        head: what the model ends in: a language model, one score, or a label for every token.
        reference: whether the loss compares with a frozen copy of the model.
        format_for: the word of `datakit format --for`; empty where the trainer reads text.
        until: the first TRL without it.
    """

    name: str
    kinds: tuple[str, ...]
    trainer: str
    hook: Hook
    home: str = "trl"
    head: Head = "causal"
    reference: bool = False
    format_for: str = ""
    until: str = ""


_SFT: Final = ("sft", "tokenized:tokens", "tokenized:sft", "tokenized:packed")
_PAIRS: Final = ("preference", "tokenized:preference")
_SCORED: Final = ("preference", "tokenized:reward")
_ANSWERS: Final = ("kto", "tokenized:kto")
_STEPS: Final = ("stepwise", "tokenized:sft")

METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        Method("sft", _SFT, "SFT", "skip", format_for="sft"),
        Method("dpo", _PAIRS, "DPO", "prepare", reference=True, format_for="dpo"),
        Method("orpo", _PAIRS, "ORPO", "pair_rows", "trl.experimental.orpo", format_for="orpo"),
        Method("cpo", _PAIRS, "CPO", "pair_rows", "trl.experimental.cpo", format_for="cpo"),
        Method("reward", _SCORED, "Reward", "prepare", head="score", format_for="reward"),
        Method("kto", _ANSWERS, "KTO", "neighbours", reference=True, format_for="kto"),
        Method("bco", _ANSWERS, "BCO", "prepare", reference=True, format_for="bco"),
        Method("grpo", ("prompt",), "GRPO", "none"),
        Method(
            "prm", _STEPS, "PRM", "step_rows", "trl.experimental.prm", head="step", format_for="stepwise", until="1.14"
        ),
    )
}


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in METHODS:
        raise UsageError(f"no method named {name!r}", f"Methods: {', '.join(METHODS)}.")
    return METHODS[name]


def resolve(name: str) -> tuple[type[Any], type[Any]]:
    """The trainer class and the config class of a method in the installed TRL, stock or Unsloth's.

    Raises:
        UsageError: TRL is missing, too old, or has no such trainer.
    """
    method = method_named(name)
    trl = check_installed(method)
    if name == "bco":
        from trainglue import bco

        return bco.trainer_class(), resolve("kto")[1]
    try:
        module = import_module(method.home)
    except ModuleNotFoundError as error:
        if error.name and not method.home.startswith(error.name):
            raise
        raise UsageError(f"TRL {trl} has no {method.trainer}Trainer", DOCTOR) from None
    return _class(module, f"{method.trainer}Trainer", trl), _class(module, f"{method.trainer}Config", trl)


def _class(module: Any, name: str, trl: str) -> Any:
    """A class of a module of TRL, which imports it when it is asked for."""
    try:
        return getattr(module, name)
    except (RuntimeError, ImportError, AttributeError) as error:
        cause = error.__cause__ or error
        raise UsageError(
            f"TRL {trl} cannot import {name}: {next(iter(str(cause).splitlines()), '')}",
            f"pip install {cause.name}" if isinstance(cause, ModuleNotFoundError) and cause.name else DOCTOR,
        ) from error


def installed(package: str) -> str:
    """The version of a package, or an empty text."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def check_installed(method: Method) -> str:
    """The version of TRL, which is not imported for this.

    Raises:
        UsageError: there is none, it is too old, or it has this trainer no more.
    """
    from packaging.version import Version

    found = installed("trl")
    if not found:
        raise UsageError("TRL is not installed", "pip install 'datakit-trainglue[train]'")
    if Version(found) < Version(OLDEST):
        raise UsageError(f"TRL {found} is too old; {OLDEST} and later are driven", UPGRADE)
    if method.until and Version(found) >= Version(method.until):
        raise UsageError(
            f"TRL {found} has no {method.trainer}Trainer any more", f"pip install 'trl>={OLDEST},<{method.until}'"
        )
    return found
