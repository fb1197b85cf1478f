"""A limit for the memory of this process, for the time in which it runs what a stranger wrote.

A chat template is a program, and one multiplication in it can ask for all memory there is. That happens inside a single
operation of the interpreter, where no timer fires, so the operating system has to say no. What it refuses becomes a
`MemoryError`: a row that asks for too much is refused, and the worker lives on.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Final

ROOM: Final = 3 << 30
"""Bytes by which a process that runs templates may grow: tokenizer, rows of a block, and what a template asks for."""


def limit_memory(extra: int) -> None:
    """Let this process grow by so many bytes from now on, and no more.

    On Linux the address space is limited (`RLIMIT_AS`), to what is mapped now and the extra; elsewhere the data segment
    (`RLIMIT_DATA`), as far as the system heeds it: macOS heeds neither, so there only the deadline of a render is left.
    A hard limit that is lower stays. Calling it again moves the limit.

    Args:
        extra: bytes.
    """
    kind, used = (resource.RLIMIT_AS, _mapped()) if sys.platform == "linux" else (resource.RLIMIT_DATA, _resident())
    _, hard = resource.getrlimit(kind)
    wanted = used + extra
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(kind, (wanted, hard))


def _mapped() -> int:
    """Bytes of address space of this process."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * resource.getpagesize()


def _resident() -> int:
    """The most bytes of memory this process has had; macOS counts in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
