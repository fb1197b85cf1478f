"""Which library runs the trainer: stock TRL, or TRL as Unsloth patches it.

Unsloth replaces classes of trl, transformers and peft for the whole process while it is imported, so it has to come
before them, and one process has one engine.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Final

from datakit.errors import UsageError
from datakit.terminal import first_line

ENGINES: Final = ("auto", "trl", "unsloth")
PATCHED: Final = ("transformers", "trl", "peft")
"""What Unsloth patches while it is imported."""

_used: str | None = None


def choose(engine: str, output_dir: str | os.PathLike[str]) -> tuple[str, str]:
    """Settle the engine of this process and import it.

    Args:
        engine: `trl`, `unsloth`, or `auto`: Unsloth where it is installed and usable, else TRL.
        output_dir: Unsloth writes the classes that it generates into this folder.

    Returns:
        The engine, and a sentence that says why it is this one.

    Raises:
        UsageError: the engine cannot be used in this process, with the way out.
    """
    global _used  # noqa: PLW0603 - it stands for a patched process
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}", f"One of {', '.join(ENGINES)}.")
    chosen, why = _settle(engine)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports each run otherwise
    if chosen == "unsloth" and "unsloth" not in sys.modules:
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", os.path.join(output_dir, "unsloth_compiled_cache"))  # noqa: PTH118
        os.environ.setdefault("UNSLOTH_DATASET_NUM_PROC", "none")  # no pool in a patched process
        try:
            import_module("unsloth")
        except Exception as error:  # it raises many kinds, ImportError and NotImplementedError among them
            reason = f"Unsloth cannot be used here: {type(error).__name__}: {first_line(error)}"
            if patched := any(name in sys.modules for name in ("unsloth", *PATCHED)):
                _used = "unsloth"  # perhaps patched halfway, so no run of TRL comes after it
            if patched or engine == "unsloth":
                raise UsageError(
                    reason, "`trainglue doctor` says what to repair; or start another process with --engine trl."
                ) from error
            chosen, why = "trl", reason
    _used = chosen
    return chosen, f"engine {chosen}: {why}"


def _settle(engine: str) -> tuple[str, str]:
    if _used is not None:
        if engine not in ("auto", _used):
            raise UsageError(
                f"this process already trains with {_used}, and asks for {engine}",
                "One engine per process, since Unsloth patches it for good. Start another one.",
            )
        return _used, "as before in this process"
    if "unsloth" in sys.modules:
        if engine == "trl":
            raise UsageError("Unsloth was imported and has patched TRL", "Start a process without it for engine trl.")
        return "unsloth", "it was imported"
    early = [name for name in PATCHED if name in sys.modules]
    if engine == "trl":
        return "trl", "as asked for"
    if find_spec("unsloth") is None:
        if engine == "unsloth":
            raise UsageError(
                "Unsloth is not installed",
                "It needs an environment of its own: pip install 'datakit-trainglue[unsloth]'.",
            )
        return "trl", "Unsloth is not installed; LoRA runs on plain PEFT"
    if early:
        problem = f"{' and '.join(early)} was imported before Unsloth, which must come first"
        if engine == "unsloth":
            raise UsageError(problem, "Import trainglue and call trainer() before them, or `import unsloth` first.")
        return "trl", problem
    return "unsloth", "as asked for" if engine == "unsloth" else "it is installed"
