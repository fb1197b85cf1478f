"""Training methods: which shards each trains on, and where its trainer lives in the installed TRL.

TRL moves classes between `trl` and `trl.experimental` from release to release, and Unsloth puts its own in their place,
so classes are looked up when they are needed and never imported by name.
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


@dataclass(frozen=True, slots=True)
class Method:
    """One training method.

    Attributes:
        name: what `trainglue METHOD` takes; as in TRL, in lower case.
        kinds: the kinds of shards whose rows its trainer reads. A kind stands for all its forms, but token ids are only
            of use to the method that they were made for.
        trainer: TRL's name: `DPO` has DPOTrainer and DPOConfig.
        homes: modules of TRL where they may be, the best first.
        hook: how tokenised rows are handed over, see `hooks`.
        since: the first TRL that takes tokenised rows this way.
        head: what the model ends in: a language model, one score, or a label for every token.
        reference: whether the loss compares with a frozen copy of the model.
        format_for: the word of `datakit format --for`; empty where the trainer reads text.
    """

    name: str
    kinds: tuple[str, ...]
    trainer: str
    homes: tuple[str, ...]
    hook: Hook
    since: str
    head: Head = "causal"
    reference: bool = False
    format_for: str = ""


_PAIRS: Final = ("preference", "tokenized:preference")

METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        Method(
            "sft",
            ("sft", "tokenized:tokens", "tokenized:sft", "tokenized:packed"),
            "SFT",
            ("trl",),
            "skip",
            "0.20",
            format_for="sft",
        ),
        Method("dpo", _PAIRS, "DPO", ("trl",), "prepare", "0.29", reference=True, format_for="dpo"),
        Method("orpo", _PAIRS, "ORPO", ("trl.experimental.orpo", "trl"), "pair_rows", "0.18", format_for="orpo"),
        Method("cpo", _PAIRS, "CPO", ("trl.experimental.cpo", "trl"), "pair_rows", "0.18", format_for="cpo"),
        Method(
            "reward",
            ("preference", "tokenized:reward"),
            "Reward",
            ("trl",),
            "prepare",
            "0.25",
            head="score",
            format_for="reward",
        ),
        Method(
            "kto",
            ("kto", "tokenized:kto"),
            "KTO",
            ("trl", "trl.experimental.kto"),
            "neighbours",
            "1.4",
            reference=True,
            format_for="kto",
        ),
        Method(
            "bco",
            ("kto", "tokenized:kto"),
            "BCO",
            ("trainglue.bco",),
            "prepare",
            "1.4",
            reference=True,
            format_for="bco",
        ),
        Method("grpo", ("prompt",), "GRPO", ("trl",), "none", "0.18"),
        Method(
            "prm",
            ("stepwise", "tokenized:sft"),
            "PRM",
            ("trl.experimental.prm", "trl"),
            "step_rows",
            "0.18",
            head="step",
            format_for="stepwise",
        ),
    )
}

KINDS_OF: Final[Mapping[str, tuple[str, ...]]] = {method.name: method.kinds for method in METHODS.values()}
"""Method to the kinds of shards that it trains on."""


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
        UsageError: TRL is missing, has no such trainer, or takes no tokenised rows for it.
    """
    method = method_named(name)
    installed = _installed()
    if name == "bco":
        from trainglue import bco

        return bco.trainer_class(), resolve("kto")[1]
    for home in method.homes:
        try:
            module = import_module(home)
        except ModuleNotFoundError as error:
            if error.name and not home.startswith(error.name):
                raise
            continue
        found = [_class(module, f"{method.trainer}{part}", installed) for part in ("Trainer", "Config")]
        if all(isinstance(part, type) for part in found):
            _check_age(method, installed)
            return found[0], found[1]
    raise UsageError(
        f"TRL {installed} has no {method.trainer}Trainer",
        "Some trainers were removed in TRL 1.14: pip install 'trl<1.14'."
        if name == "prm"
        else "`trainglue doctor` says which versions work together.",
    )


def _class(module: Any, name: str, installed: str) -> Any:
    """A class of a module of TRL, which imports it when it is asked for."""
    try:
        return getattr(module, name, None)
    except (RuntimeError, ImportError) as error:
        cause = error.__cause__ or error
        raise UsageError(
            f"TRL {installed} cannot import {name}: {next(iter(str(cause).splitlines()), '')}",
            "`trainglue doctor` says which versions work together.",
        ) from error


def _installed() -> str:
    try:
        return version("trl")
    except PackageNotFoundError:
        raise UsageError("TRL is not installed", "pip install 'datakit-trainglue[train]'") from None


def _check_age(method: Method, installed: str) -> None:
    from packaging.version import Version

    if Version(installed) < Version(method.since):
        raise UsageError(
            f"TRL {installed} cannot take tokenised rows for {method.name}; {method.since} and later can",
            f"pip install 'trl>={method.since}'",
        )
