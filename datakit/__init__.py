"""datakit: post-training data in any common shape, as Parquet shards that account for every row.

The verbs here and those of the command line are the same, with the same names and defaults:

    report = datakit.convert("raw/*.jsonl", "shards/")
    report = datakit.validate("shards/")
    for row in datakit.load("shards/"):
        ...

`datakit.formats.FORMATS` and `datakit.checks.CHECKS` are the registries behind `datakit formats` and `datakit checks`.
"""

import sys

if sys.platform == "win32":
    raise ImportError(
        "datakit does not run on Windows: an output folder is replaced in one step, which needs Linux or macOS. "
        "Use WSL."
    )

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datakit.api import convert, detect, explain, export, load, stats, validate, verify
    from datakit.cleaning.contamination import decontaminate
    from datakit.cleaning.division import split
    from datakit.cleaning.duplicates import dedup
    from datakit.errors import (
        AmbiguousFormat,
        CannotJudge,
        DataFailed,
        DatakitError,
        InternalError,
        Locked,
        NoManifest,
        NotWritten,
        UnknownFormat,
        UnreadableInput,
        UsageError,
    )
    from datakit.mixing.blocks import block_mixture_interleave
    from datakit.mixing.schedule import WeightSchedulePoint, WeightScheduler
    from datakit.mixing.streaming import stream
    from datakit.mixing.writing import mix
    from datakit.pairing.joining import pair
    from datakit.pairing.unpairing import unpair
    from datakit.preparation import format, lengths, show  # noqa: A004 - the verb of the command line
    from datakit.report import Report
    from datakit.shards import Shards

__all__ = [
    "AmbiguousFormat",
    "CannotJudge",
    "DataFailed",
    "DatakitError",
    "InternalError",
    "Locked",
    "NoManifest",
    "NotWritten",
    "Report",
    "Shards",
    "UnknownFormat",
    "UnreadableInput",
    "UsageError",
    "WeightSchedulePoint",
    "WeightScheduler",
    "__version__",
    "block_mixture_interleave",
    "convert",
    "decontaminate",
    "dedup",
    "detect",
    "explain",
    "export",
    "format",
    "lengths",
    "load",
    "mix",
    "pair",
    "show",
    "split",
    "stats",
    "stream",
    "unpair",
    "validate",
    "verify",
]


MODULES = {
    "Report": "report",
    "Shards": "shards",
    "WeightSchedulePoint": "mixing.schedule",
    "WeightScheduler": "mixing.schedule",
    "block_mixture_interleave": "mixing.blocks",
    "decontaminate": "cleaning.contamination",
    "dedup": "cleaning.duplicates",
    "format": "preparation",
    "lengths": "preparation",
    "mix": "mixing.writing",
    "pair": "pairing.joining",
    "show": "preparation",
    "split": "cleaning.division",
    "stream": "mixing.streaming",
    "unpair": "pairing.unpairing",
}
"""Where public names live that are neither errors nor in `api`."""


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first used: workers need few of them."""
    if name not in __all__:
        raise AttributeError(f"module 'datakit' has no attribute {name!r}")
    module = MODULES.get(name, "errors" if name[0].isupper() else "api")
    value = getattr(import_module(f"datakit.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
