"""trainglue: datakit's shards in a trainer.

    from trainglue import trainer

    t = trainer("dpo", model="Qwen/Qwen2.5-0.5B-Instruct", data="prefs/", output_dir="out/", lora=16)
    t.train()

`import trainglue` loads neither torch nor transformers, so that Unsloth can still come first.

The way of a run, twelve modules that are read in one sitting, in this order:

    cli, config          what is asked for
    methods, options     the table of methods; options of the trainer's config, their old names and our defaults
    data, streams        rows of shards, checked and counted; recipes
    engines, models      TRL or Unsloth; a model, its tokenizer, adapters and reference
    hooks                token ids into trainers that would tokenise
    training             `trainer(...)`: all of it together
    runs, callbacks      the run folder, going on, a line of metrics

Beside it, each for its own: `precision/` FP8 above all, `bco` a trainer that TRL no longer has, `rewards` for GRPO,
`memory` what to change where memory ends; `machine/` answers `doctor` and `api`, `handoff/` exports.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainglue.data import dataset as dataset
    from trainglue.handoff.exporting import export as export
    from trainglue.machine.diagnosis import doctor as doctor
    from trainglue.machine.signatures import api as api
    from trainglue.memory import OutOfMemory as OutOfMemory
    from trainglue.methods import METHODS as METHODS
    from trainglue.precision import PrecisionNotUsed as PrecisionNotUsed
    from trainglue.precision import check_fp8_training_support as check_fp8_training_support
    from trainglue.precision import setup_fp8_mixed_precision_training as setup_fp8_mixed_precision_training
    from trainglue.training import trainer as trainer

MODULES = {
    "METHODS": "methods",
    "OutOfMemory": "memory",
    "PrecisionNotUsed": "precision",
    "api": "machine.signatures",
    "check_fp8_training_support": "precision",
    "dataset": "data",
    "doctor": "machine.diagnosis",
    "export": "handoff.exporting",
    "setup_fp8_mixed_precision_training": "precision",
    "trainer": "training",
}
"""Public names, and the modules that have them."""

__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first used."""
    if name not in MODULES:
        raise AttributeError(f"module 'trainglue' has no attribute {name!r}")
    value = getattr(import_module(f"trainglue.{MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
