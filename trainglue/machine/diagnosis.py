"""What this machine and these versions can train, and the command that repairs what they cannot.

    trainglue doctor                             every method and precision, on every engine that is installed
    trainglue doctor dpo --precision qlora       the exit code answers for this

Three sources, none of them a list of what ought to work: the requirements that the installed packages state themselves,
the probe, which imports each of them in a process of its own, and the few combinations that pip allows and that are
known not to train.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from datakit.errors import DatakitError
from trainglue.methods import METHODS, OLDEST, OPTIONAL, STACK, UPGRADE, installed, method_named
from trainglue.precision import PRECISIONS
from trainglue.precision.formats import among

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION: Final = "datakit-trainglue"
EXTRA: Final[Mapping[str, str]] = {"trl": "train", "unsloth": "unsloth"}
"""Engine to the extra of this project that installs it."""

UNSLOTH_APART: Final = (
    "in an environment of its own, since Unsloth takes older packages:\n"
    "  python -m venv .venv-unsloth\n"
    f"  .venv-unsloth/bin/pip install '{DISTRIBUTION}[unsloth]'\n"
    "  (without a GPU, in the repository: sh docs/unsloth-env.sh)"
)
"""How Unsloth is installed beside a stack that it does not allow."""


Level = Literal["ok", "note", "error"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: a package, an environment variable, or a part of the machine.
        found: its version or value; empty where it is absent.
        level: `error` keeps something from training, `note` does not.
        reason, fix: what is wrong, and the command or step that repairs it.
    """

    name: str
    found: str
    level: Level = "ok"
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One method in one precision on one engine; usable if there is no reason against it."""

    engine: str
    method: str
    precision: str
    reason: str = ""
    fix: str = ""

    @property
    def usable(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `doctor` found. `exit_code` is 0 if at least one of the cases that were asked about can be trained."""

    checks: tuple[Check, ...]
    cases: tuple[Case, ...]

    @property
    def exit_code(self) -> int:
        return int(not any(case.usable for case in self.cases))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}


BY_TRITON: Final = ("sft", "dpo", "kto", "bco", "grpo")
"""Methods whose loss TRL 1.15.0 computes with triton."""

VARIABLES: Final[Mapping[str, tuple[str, str]]] = {
    "HF_DATASETS_NUM_PROC": ("no library reads it; trainglue starts no workers beside a trainer anyway", "unset it"),
    "ACCELERATE_MIXED_PRECISION": ("trainglue sets the precision itself, and accelerate would add its own", "unset it"),
    "ACCELERATE_FP8_BACKEND": ("accelerate's own FP8 may train nothing; trainglue converts layers itself", "unset it"),
    "UNSLOTH_DISABLE_CPU_FALLBACK": ("with it Unsloth refuses to train without a GPU", "unset it"),
    "HF_HUB_OFFLINE": ("models that are not in the cache cannot be fetched", "unset it, or give a folder"),
}
"""Environment variables that change a run or only seem to: what is wrong with each, and what to do."""


def doctor(
    method: str | None = None,
    *,
    precision: str | None = None,
    engine: str | None = None,
    model: str | os.PathLike[str] | None = None,
) -> Diagnosis:
    """What can be trained here.

    Args:
        method: ask about this one; by default about all.
        precision: fp32, bf16, fp16, qlora, fp8, `fp8 te` or fp8_weights; by default all.
        engine: trl or unsloth; by default those that are installed.
        model: look at this one too, a folder or a name on the Hub: may it be fetched, does it have a chat template, is
            there a token to pad with. Only with a name of the Hub the network is used.

    Raises:
        UsageError: there is no such method, precision or engine.
    """
    if method is not None:
        method_named(method)
    if engine is not None:
        among("engine", engine, tuple(EXTRA))
    engines = [engine] if engine else [name for name in EXTRA if name == "trl" or installed(name)]
    found = {name: probe(name) for name in engines}
    seen = next(iter(found.values()))["machine"]
    cases = [case for name in engines for case in _cases(name, found[name])]
    if precision is not None:
        among("precision", precision, tuple(dict.fromkeys(case.precision for case in cases)))
    asked = (case for case in cases if method in (None, case.method) and precision in (None, case.precision))
    checks = (*_machine(seen), *_packages(engines), *_variables(os.environ))
    if model is not None:
        checks += tuple(_model(os.fspath(model)))
    return Diagnosis(checks, tuple(asked))


def probe(engine: str) -> dict[str, Any]:
    """What `trainglue.machine.probe` says of an engine, run in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "trainglue.machine.probe", engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        last = next(reversed(done.stderr.strip().splitlines()), "no message")
        reason = f"the process that tried {engine} ended with {done.returncode}: {last[:200]}"
        return {"engine": (reason, f"{sys.executable} -m trainglue.machine.probe {engine}"), "machine": {}}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


# ---------------------------------------------------------------- cases


def _cases(engine: str, found: Mapping[str, Any]) -> Iterator[Case]:
    """Each method in each precision: the engine's own trouble first, then the method's, then the precision's."""
    whole = _missing(engine) or _conflict(engine)
    precisions = found.get("precisions") or dict.fromkeys(PRECISIONS, ("", ""))
    gpu = "there" if found["machine"].get("gpus") else ""
    for name in METHODS:
        tried = found.get("methods", {}).get(name, ("", ""))
        first = whole or _trap(engine, name, gpu) or _told(found["engine"]) or _told(tried)
        for precision, result in precisions.items():
            reason, fix = first or tuple(result)
            yield Case(engine, name, precision, reason, fix)


def _told(result: Sequence[str]) -> tuple[str, str] | None:
    return (result[0], result[1]) if result[0] else None


def _missing(engine: str) -> tuple[str, str] | None:
    """What the engine cannot do without."""
    absent = sorted(need.name for need in _needs(engine) if not installed(need.name))
    if not absent:
        return None
    fix = UNSLOTH_APART if engine == "unsloth" else f"pip install '{DISTRIBUTION}[{EXTRA[engine]}]'"
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed", fix


def _conflict(engine: str) -> tuple[str, str] | None:
    """What Unsloth itself forbids; it would patch what it does not know."""
    if engine != "unsloth":
        return None
    needs = (need for package in ("unsloth", "unsloth_zoo") for need in _stated(package) if need.name in STACK)
    reasons = [
        f"Unsloth needs {need.name}{need.specifier}, and {installed(need.name)} is installed"
        for need in needs
        if not _fits(need)
    ]
    return ("; ".join(dict.fromkeys(reasons)), UNSLOTH_APART) if reasons else None


def _trap(engine: str, method: str, gpu: str) -> tuple[str, str] | None:
    """Versions that pip lets stand side by side and that do not train together."""
    from packaging.version import Version

    trl, unsloth = installed("trl"), installed("unsloth")
    if engine == "trl" and method in BY_TRITON and trl == "1.15.0" and not installed("triton"):
        return (
            "TRL 1.15.0 computes its loss with triton, which is not here",
            "--engine unsloth, which repairs it; where Unsloth is not installed: pip install 'trl==1.16.0'",
        )
    if trl and Version(trl) < Version(OLDEST):
        return f"TRL is too old; {OLDEST} and later are driven", UPGRADE
    if engine == "unsloth" and not gpu and unsloth and Version(unsloth) < Version("2026.10.9"):
        return (
            "Unsloth before 2026.10.9 needs a GPU",
            "pip install --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9",
        )
    return None


# ---------------------------------------------------------------- packages


def _needs(engine: str) -> list[Requirement]:
    """What this project requires for an engine, with the versions that it is tested with."""
    return [need for need in _stated(DISTRIBUTION, EXTRA[engine]) if need.name in STACK]


def _stated(package: str, extra: str = "") -> Iterator[Requirement]:
    """The requirements of an installed package that hold on this machine."""
    from packaging.requirements import Requirement

    try:
        lines = requires(package) or []
    except PackageNotFoundError:
        return
    for line in lines:
        need = Requirement(line)
        if need.marker is None:
            wanted = not extra
        else:
            wanted = need.marker.evaluate({"extra": extra}) and bool(extra) == ("extra" in str(need.marker))
        if wanted:
            yield need


def _fits(need: Requirement) -> bool:
    """Whether the installed version is allowed; an absent package is another matter."""
    found = installed(need.name)
    return not found or need.specifier.contains(found, prereleases=True)


def _packages(engines: Sequence[str]) -> Iterator[Check]:
    """Every package of the stack, with a note where its version is not one that is tested.

    Where Unsloth is absent, the versions that it allows are those of another environment.
    """
    here = [engine for engine in reversed(engines) if engine == "trl" or installed(engine)]
    needs = {need.name: need for engine in here for need in _needs(engine)}
    for name in STACK:
        found, need = installed(name), needs.get(name)
        if not found and need is None:
            continue
        if not found:
            yield Check(name, "", "error", "not installed", f"pip install '{name}{need.specifier}'" if need else "")
        elif need is not None and not _fits(need):
            reason = f"not tested; {need.specifier} is"
            yield Check(name, found, "note", reason, f"pip install '{name}{need.specifier}'")
        else:
            yield Check(name, found)
    yield from (Check(name, found) for name in OPTIONAL if (found := installed(name)))


# ---------------------------------------------------------------- machine


def _machine(seen: Mapping[str, Any]) -> Iterator[Check]:
    yield Check("python", ".".join(map(str, sys.version_info[:3])))
    driver = _driver()
    for gpu in seen.get("gpus", ()):
        major, minor = gpu["capability"]
        yield Check("gpu", f"{gpu['name']}, capability {major}.{minor}, {gpu['memory'] / 2**30:.0f} GiB")
    if seen and not seen["gpus"]:
        yield _no_gpu(driver, seen)
    if len(seen.get("gpus", ())) > 1 and "LOCAL_RANK" not in os.environ:
        yield Check(
            "gpus",
            str(len(seen["gpus"])),
            "note",
            "TRL refuses several GPUs in one process",
            f"torchrun --nproc-per-node {len(seen['gpus'])} -m trainglue ...    (or CUDA_VISIBLE_DEVICES=0)",
        )
    if Path("unsloth_compiled_cache").is_dir():
        reason = "classes that Unsloth generated for other versions or options may be taken from it"
        yield Check("unsloth_compiled_cache", "in this folder", "note", reason, "rm -r unsloth_compiled_cache")


def _no_gpu(driver: str, seen: Mapping[str, Any]) -> Check:
    if not driver:
        return Check("gpu", "none")
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Check("gpu", "hidden", "note", "CUDA_VISIBLE_DEVICES hides it", "unset CUDA_VISIBLE_DEVICES")
    if seen["cuda"] is None:
        reason = f"torch {seen['torch']} is built for the CPU; the driver is {driver}"
        return Check("gpu", "not usable", "error", reason, "pip install --force-reinstall torch")
    reason = f"torch is built for CUDA {seen['cuda']} and cannot use driver {driver}"
    return Check("gpu", "not usable", "error", reason, "update the driver, or install a torch for an older CUDA")


def _driver(file: str = "/proc/driver/nvidia/version") -> str:
    """The version of the NVIDIA driver that the kernel has loaded, or an empty text."""
    try:
        words = Path(file).read_text("utf-8").split("Kernel Module")[1].split()
    except (OSError, IndexError):
        return ""
    return next((word for word in words if word[0].isdigit()), "unknown")


def _variables(environment: Mapping[str, str]) -> Iterator[Check]:
    for name, (reason, fix) in VARIABLES.items():
        if environment.get(name, "") not in ("", "0"):
            yield Check(name, environment[name], "note", reason, fix)


# ---------------------------------------------------------------- model


def _model(name: str) -> Iterator[Check]:
    """Whether a model can be fetched, rendered for and padded, before gigabytes of it are loaded."""
    from datakit.tokens.load import load

    if not Path(name).is_dir():
        access = _access(name)
        yield access
        if access.level != "ok":
            return
    try:
        tokenizer = load(name)
    except DatakitError as error:
        yield Check("tokenizer", "", "error", error.message, error.hint)
        return
    yield Check("tokenizer", tokenizer.path, "note" if tokenizer.notes else "ok", " ".join(tokenizer.notes))
    if tokenizer.chat_template is None:
        fix = "take the Instruct model, or give a Jinja file: --chat-template FILE"
        yield Check("chat template", "", "error", "the tokenizer has none, as base models do", fix)
    if tokenizer.pad is None:
        yield Check("pad token", "", "error", "the tokenizer has none and no token that can stand in", "add one to it")
    else:
        yield Check("pad token", f"{tokenizer.pad.token}, {tokenizer.pad.why}")


def _access(name: str) -> Check:
    """Whether the Hub gives us a model."""
    from huggingface_hub import auth_check
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        auth_check(name)
    except GatedRepoError:
        return Check(
            "model", name, "error", "its owner has to let you in", f"ask on the page of {name}, then: hf auth login"
        )
    except RepositoryNotFoundError:
        return Check(
            "model", name, "error", "no such folder, and the Hub does not know it or hides it", "hf auth login"
        )
    except Exception as error:  # no network, or not a name; the loader says more
        return Check("model", name, "note", f"the Hub could not be asked: {type(error).__name__}")
    return Check("model", name)


# ---------------------------------------------------------------- text


def describe(diagnosis: Diagnosis) -> str:
    """The diagnosis for a person: what is here, a table of what can be trained, and how to repair the rest."""
    lines = [f"{check.name:14} {check.found or '-'}" for check in diagnosis.checks]
    for engine in dict.fromkeys(case.engine for case in diagnosis.cases):
        lines += ["", *_table(engine, [case for case in diagnosis.cases if case.engine == engine])]
    troubles = [(check.name, check.reason, check.fix) for check in diagnosis.checks if check.reason]
    troubles += _against(diagnosis.cases)
    for name, reason, fix in dict.fromkeys(troubles):
        lines += ["", f"{name}: {reason}", *([f"  {fix}"] if fix else [])]
    return "\n".join(lines)


def _table(engine: str, cases: Sequence[Case]) -> Iterator[str]:
    precisions = list(dict.fromkeys(case.precision for case in cases))
    usable = {(case.method, case.precision): case.usable for case in cases}
    yield f"{'engine ' + engine:14} " + "  ".join(precisions)
    for method in dict.fromkeys(case.method for case in cases):
        cells = (("yes" if usable[method, p] else "no").ljust(len(p)) for p in precisions)
        yield f"{method:14} {'  '.join(cells)}".rstrip()


def _against(cases: Sequence[Case]) -> Iterator[tuple[str, str, str]]:
    """Each reason once, with the methods or the precisions that it stops."""
    reasons: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        if not case.usable:
            reasons.setdefault((case.engine, case.reason, case.fix), []).append(case)
    for (engine, reason, fix), stopped in reasons.items():
        own = [case for case in cases if case.engine == engine]
        methods = dict.fromkeys(case.method for case in stopped)
        precisions = dict.fromkeys(case.precision for case in stopped)
        every = len(precisions) == len({case.precision for case in own})
        words = ", ".join(methods) if every else ", ".join(precisions)
        yield f"{engine} {'' if len(stopped) == len(own) else words}".strip(), reason, fix
