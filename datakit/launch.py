"""Worker processes: how one is started, and starting one ahead of time.

A worker takes a sixth of a second until it can work, and most of two seconds where it loads a tokenizer. So the command
line starts one before it imports what it needs itself. On Linux the others are forked off this one when it has loaded
everything (see `worker`); elsewhere each is started anew.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from threading import Lock
from typing import IO, Any, Final

_ROOT: Final = str(Path(__file__).resolve().parent.parent)
_PIPE: Final = 1 << 20 if sys.platform == "linux" else -1
_BUFFER: Final = 1 << 20

FORKS: Final = sys.platform == "linux" and hasattr(os, "pidfd_open")
"""Whether workers are forked off one another: frameworks of macOS do not survive it."""

# -P and append: a file named json.py in the user's folder must not be imported.
_START: Final = f"import sys; sys.path.append({_ROOT!r}); "
_MAIN: Final = "from datakit.startup import worker; worker(*sys.argv[1:])"

_ENVIRONMENT: Final = {
    # Blocks are taken and given back all the time; glibc would hand their pages to the system and fault them in again.
    "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    # A process with threads is not forked easily; nothing here multiplies matrices, and files are read in one go.
    "OPENBLAS_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
}


def workers(count: int | None) -> int:
    """How many processes to use: as asked for, else one per core and at most eight."""
    return count or min(os.cpu_count() or 1, 8)


@dataclass(slots=True)
class Process:
    """A worker: what is written goes to its standard input, what is read comes from its standard output.

    Attributes:
        popen: where this process started it; one that was forked off another has a `handle` instead.
        siblings: pipes for workers that may be forked off this one.
    """

    stdin: IO[bytes]
    stdout: IO[bytes]
    popen: subprocess.Popen[bytes] | None = None
    handle: int = -1
    siblings: list[tuple[IO[bytes], IO[bytes]]] | None = None
    lock: Lock = field(default_factory=Lock)
    """Of the handle: after a signal, two threads may want to see one worker dead."""

    def kill(self) -> None:
        if self.popen is not None:
            self.popen.kill()
            return
        with self.lock, suppress(ProcessLookupError):
            if self.handle >= 0:
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the end of a worker that was killed; its exit status, where that can be known."""
        if self.popen is not None:
            return self.popen.wait()
        with self.lock:
            if self.handle >= 0:
                select([self.handle], [], [])
                os.close(self.handle)
                self.handle = -1
        return -signal.SIGKILL

    def forked(self, pids: list[int]) -> list[Process]:
        """The workers that were forked off this one, by their pids."""
        pairs, self.siblings = self.siblings or [], None
        return [Process(*pair, handle=os.pidfd_open(pid)) for pair, pid in zip(pairs, pids, strict=True)]

    def close(self) -> None:
        self.kill()  # first: a thread that waits for an answer holds the stream
        for stream in (self.stdin, self.stdout, *(end for pair in self.siblings or [] for end in pair)):
            with suppress(OSError, ValueError):
                stream.close()
        self.wait()


_waiting: dict[bool, list[Process]] = {False: [], True: []}


def _start(arrays: bool, siblings: int = 0, tokenizer: str = "") -> Process:
    theirs: list[int] = []
    ours: list[tuple[IO[bytes], IO[bytes]]] = []
    for _ in range(siblings):
        reading, writing = os.pipe(), os.pipe()
        theirs += [reading[0], writing[1]]
        ours.append((os.fdopen(reading[1], "wb", _BUFFER), os.fdopen(writing[0], "rb", _BUFFER)))
    if ours:
        _widen(end.fileno() for pair in ours for end in pair)
    popen = subprocess.Popen(
        [sys.executable, "-P", "-c", _START + _MAIN, "numpy" * arrays, ",".join(map(str, theirs)), tokenizer],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **_ENVIRONMENT},
        pipesize=_PIPE,
        bufsize=_BUFFER,
        pass_fds=theirs,
        start_new_session=True,
    )
    for end in theirs:
        os.close(end)
    if popen.stdin is None or popen.stdout is None:
        raise RuntimeError("a worker without pipes")
    return Process(popen.stdin, popen.stdout, popen, siblings=ours)


def _widen(ends: Any) -> None:
    """Pipes that hold a block, so that nobody waits for the other to read; as far as the system allows."""
    import fcntl

    for end in ends:
        with suppress(OSError):
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE)


def start_ahead(count: int, arrays: bool = False, tokenizer: str = "") -> None:
    """Start processes that `take` will give out. They end with this process, taken or not.

    Args:
        count: how many.
        arrays: whether they need numpy.
        tokenizer: a tokenizer.json, or a folder with one, that they begin to load, which takes most of a second.
    """
    if FORKS:
        _waiting[arrays].append(_start(arrays, count - 1, tokenizer))
    else:
        _waiting[arrays].extend(_start(arrays, 0, tokenizer) for _ in range(count))


def take(count: int, arrays: bool = False) -> list[Process]:
    """Worker processes: `count`, or where they fork one that can become as many."""
    waiting = _waiting[arrays]
    if FORKS and waiting and len(waiting[-1].siblings or []) == count - 1:
        return [waiting.pop()]
    if FORKS:
        return [_start(arrays, count - 1)]
    return [waiting.pop() if waiting else _start(arrays) for _ in range(count)]


def another(arrays: bool) -> Process:
    """One more, in the place of one that ended."""
    return _start(arrays)
