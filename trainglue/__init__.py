"""trainglue: datakit's shards in a trainer.

    from trainglue import trainer

    t = trainer("dpo", model="Qwen/Qwen2.5-0.5B-Instruct", data="prefs/", output_dir="out/", lora=16)
    t.train()

`import trainglue` loads neither torch nor transformers, so that Unsloth can still come first.

The way of a run, and the modules in the order in which to read them:

    cli, config          what is asked for
    methods, options     the table of methods; options of the trainer's config, their old names and our defaults
    data, streams        rows of shards, checked and counted; recipes
    engines, models      TRL or Unsloth; a model, its tokenizer, adapters and reference
    hooks, bco           token ids into trainers that would tokenise; a trainer that TRL no longer has
    training             `trainer(...)`: all of it together
    runs, callbacks      the run folder, going on, the progress line
    memory               what to change where memory ends

Beside it: `precision`, `float8` and `audit` are FP8; `rewards` are for GRPO; `diagnosis`, `probe` and `signatures`
answer `doctor` and `api`; `exporting` and `modelfile` hand a trained model on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainglue.data import dataset
    from trainglue.diagnosis import doctor
    from trainglue.exporting import export
    from trainglue.hooks import OutOfMemory
    from trainglue.methods import KINDS_OF, METHODS
    from trainglue.precision import PrecisionNotUsed, check_fp8_training_support, setup_fp8_mixed_precision_training
    from trainglue.signatures import api
    from trainglue.training import trainer

MODULES = {
    "KINDS_OF": "methods",
    "METHODS": "methods",
    "OutOfMemory": "hooks",
    "PrecisionNotUsed": "precision",
    "api": "signatures",
    "check_fp8_training_support": "precision",
    "dataset": "data",
    "doctor": "diagnosis",
    "export": "exporting",
    "setup_fp8_mixed_precision_training": "precision",
    "trainer": "training",
}
"""Public names, and the modules that have them."""

__all__ = [
    "KINDS_OF",
    "METHODS",
    "OutOfMemory",
    "PrecisionNotUsed",
    "api",
    "check_fp8_training_support",
    "dataset",
    "doctor",
    "export",
    "setup_fp8_mixed_precision_training",
    "trainer",
]


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first used."""
    if name not in MODULES:
        raise AttributeError(f"module 'trainglue' has no attribute {name!r}")
    value = getattr(import_module(f"trainglue.{MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
