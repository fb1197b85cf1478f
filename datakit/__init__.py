"""datakit: post-training data in any common shape, as Parquet shards that account for every row.

The verbs here and those of the command line are the same, with the same names and defaults:

    report = datakit.convert("raw/*.jsonl", "shards/")
    report = datakit.validate("shards/")
    for row in datakit.load("shards/"):
        ...
"""

import sys

if sys.platform == "win32":
    raise ImportError(
        "datakit does not run on Windows: an output folder is replaced in one step, which needs Linux or macOS. "
        "Use WSL."
    )

__version__ = "0.1.0"

from datakit.api import (  # noqa: E402
    Shards,
    checks,
    convert,
    detect,
    explain,
    export,
    formats,
    load,
    stats,
    validate,
    verify,
)
from datakit.errors import (  # noqa: E402
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
from datakit.report import Report  # noqa: E402

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
    "checks",
    "convert",
    "detect",
    "explain",
    "export",
    "formats",
    "load",
    "stats",
    "validate",
    "verify",
]
