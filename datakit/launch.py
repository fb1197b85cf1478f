"""Worker processes: how one is started, and starting some ahead of time.

A worker takes a sixth of a second until it can work. The command line starts its workers before it imports what it
needs itself, so that both happen at once; the pool then takes those that wait.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_ROOT: Final = str(Path(__file__).resolve().parent.parent)
_PIPE: Final = 1 << 20 if sys.platform == "linux" else -1

# -P and append: a file named json.py in the user's folder must not be imported.
_START: Final = f"import sys; sys.path.append({_ROOT!r}); "
_MAIN: Final = "from datakit.worker import main; main(*sys.argv[1:])"
# pyarrow does without numpy, which takes most of the time of its import and which workers that convert do not need.
_WITHOUT_NUMPY: Final = "sys.modules['numpy'] = None; "

# Blocks are taken and given back all the time; glibc would hand their pages to the system and fault them in again.
_KEEP_PAGES: Final = {"MALLOC_MMAP_THRESHOLD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}

_waiting: dict[bool, list[subprocess.Popen[bytes]]] = {False: [], True: []}


def workers(count: int | None) -> int:
    """How many processes to use: as asked for, else one per core and at most eight."""
    return count or min(os.cpu_count() or 1, 8)


def _start(arrays: bool, tokenizer: str = "") -> subprocess.Popen[bytes]:
    code = _START + ("" if arrays else _WITHOUT_NUMPY) + _MAIN
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *([tokenizer] if tokenizer else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**_KEEP_PAGES, **os.environ},
        pipesize=_PIPE,
        bufsize=1 << 20,
        start_new_session=True,
    )


def start_ahead(count: int, arrays: bool = False, tokenizer: str = "") -> None:
    """Start processes that `take` will give out. They end with this process, taken or not.

    Args:
        count: how many.
        arrays: whether they need numpy.
        tokenizer: a tokenizer.json, or a folder with one, that they begin to load, which takes most of a second.
    """
    _waiting[arrays].extend(_start(arrays, tokenizer) for _ in range(count))


def take(arrays: bool = False) -> subprocess.Popen[bytes]:
    """A worker process, one that waits if there is one."""
    return _waiting[arrays].pop() if _waiting[arrays] else _start(arrays)
