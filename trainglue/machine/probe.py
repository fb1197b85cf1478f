"""What can be imported and computed here, tried in a process of its own.

    python -m trainglue.machine.probe trl

An installed version says little: a library may be built for another CUDA, or patched by its neighbour, or end the whole
process while it is imported. So each is imported, and asked for the one thing that a run needs of it. One JSON object
goes to stdout. Whatever was tried is a pair: what went wrong, in one line, and the way out where it is known; two empty
strings stand for "works".
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from traceback import walk_tb
from typing import Any, Final

from datakit.errors import DatakitError, UsageError

INSTALL: Final[Mapping[str, str]] = {
    "bitsandbytes": "pip install 'bitsandbytes>=0.46.1'",
    "torchao": "pip install 'torchao>=0.15,<0.19'",
    "transformer_engine": "pip install --no-build-isolation 'transformer-engine[pytorch,core-cu13]==2.20.*'",
}
"""The commands for what a precision needs and no method does."""

Tried = tuple[str, str]


def tried(action: Callable[[], object]) -> Tried:
    """Run it and say what went wrong."""
    try:
        action()
    except BaseException as error:  # a probe survives whatever a library does
        first = error
        while first.__cause__ is not None:  # libraries wrap what others raise
            first = first.__cause__
        if isinstance(error, DatakitError):
            return error.message, (first is not error and _reinstalled(first)) or error.hint
        lines = [line.strip() for line in str(first).splitlines() if line.strip()]
        return f"{type(first).__name__}: {lines[0][:200] if lines else 'no message'}", _reinstalled(first)
    return "", ""


def _reinstalled(error: BaseException) -> str:
    """The command for the package that could not be imported; empty where it is not known."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"pip install {error.name.partition('.')[0]}"
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    name = str(frames[-1].f_globals.get("__name__", "")).partition(".")[0] if frames else ""
    known = name and name not in (*sys.stdlib_module_names, "__main__", "trainglue")
    return f"pip install --force-reinstall --no-deps {name}" if known else ""


def machine() -> dict[str, Any]:
    """What torch sees: its build, and each GPU with its compute capability and its memory in bytes."""
    import torch

    cuda = torch.cuda.is_available()
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())] if cuda else []
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [{"name": g.name, "capability": [g.major, g.minor], "memory": g.total_memory} for g in gpus],
    }


def precisions(engine: str, device: str) -> dict[str, Tried]:
    """Each precision, tried."""
    from trainglue import precision

    def fp8(backend: str) -> None:
        from trainglue.precision import float8

        if device == "cpu":
            raise UsageError("it needs an NVIDIA GPU of compute capability 9.0 or later", "Choose precision bf16.")
        _must_have(float8.MODULE_OF[backend])
        if engine == "unsloth":
            precision.unsloth(precision.Fp8(backend), lora=False)
        float8.must_run(precision.Fp8(backend))

    def fp8_weights() -> None:
        if engine != "unsloth":
            raise UsageError(
                "only Unsloth loads weights that are stored in FP8", "Take engine unsloth, or precision fp8."
            )
        fp8("torchao")

    return {
        "fp32": ("", ""),
        "bf16": tried(lambda: _sixteen_bits(device)),
        "fp16": tried(lambda: precision.arguments("fp16", device)),
        "qlora": tried(lambda: _four_bits(device)),
        "fp8": tried(lambda: fp8("torchao")),
        "fp8 te": tried(lambda: fp8("te")),
        "fp8_weights": tried(fp8_weights),
    }


def _sixteen_bits(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError("this GPU has no bf16", "Choose precision fp16.")


def _four_bits(device: str) -> None:
    """Quantise one matrix as QLoRA does."""
    _must_have("bitsandbytes")
    import torch
    from bitsandbytes.functional import quantize_4bit

    quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4")


def _must_have(module: str) -> None:
    if find_spec(module) is None:
        raise UsageError(f"{module} is not installed", INSTALL[module])


def everything(engine: str) -> dict[str, Any]:
    """All that one engine needs. The engine comes first, since Unsloth patches what is imported after it."""
    from trainglue.methods import METHODS, resolve

    found: dict[str, Any] = {"engine": tried(lambda: import_module(engine)), "machine": {}}
    broken = tried(lambda: found["machine"].update(machine()))
    if broken[0]:
        return found | {"engine": broken, "methods": {}, "precisions": {}}
    device = "cuda" if found["machine"]["gpus"] else "cpu"
    return found | {
        "methods": {name: tried(lambda name=name: resolve(name)) for name in METHODS},  # type: ignore[misc]
        "precisions": precisions(engine, device),
    }


def main(engine: str) -> None:
    """Print the JSON object; what libraries print goes to stderr."""
    own = os.dup(1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"UNSLOTH_COMPILE_LOCATION": folder, "HF_HUB_DISABLE_TELEMETRY": "1"}
        found = everything(engine)
    with os.fdopen(own, "w") as out:
        json.dump(found, out)


if __name__ == "__main__":
    main(sys.argv[1])
