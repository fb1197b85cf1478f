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
    "__version__",
    "convert",
    "detect",
    "explain",
    "export",
    "format",
    "lengths",
    "load",
    "show",
    "stats",
    "validate",
    "verify",
]


MODULES = {
    "Report": "report",
    "Shards": "shards",
    "format": "preparation",
    "lengths": "preparation",
    "show": "preparation",
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
