"""Every write to disk goes through here, so that tests can stop or fail at any one of them.

An operation is announced to `hook` before it happens. Tests put a function there that kills the process or raises at
the k-th call; nothing else uses it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from datakit.errors import NotWritten

hook: Callable[[str, str], None] | None = None


def _announce(name: str, path: Path | str) -> None:
    if hook is not None:
        hook(name, str(path))


@contextmanager
def not_written(path: Path | str) -> Iterator[None]:
    """Turn an OSError while writing below `path` into NotWritten, with the room that is left."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
        again = "Run the same command again when there is room; finished shards are kept." if full else ""
        raise NotWritten(
            f"{error.filename or path}: {error.strerror or error} ({_free(path)} free)",
            f"Nothing was replaced. {again}".strip(),
        ) from error


def _free(path: Path | str) -> str:
    folder = Path(path)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB"
    except OSError:
        return "unknown room"


class HashedFile:
    """A new file that is hashed as it is written."""

    def __init__(self, path: Path) -> None:
        _announce("open", path)
        self.path = path
        self._handle = path.open("wb")
        self._hash: Any = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: bytes | memoryview) -> None:
        _announce("write", self.path)
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.bytes += len(view)
        self._handle.write(view)

    @property
    def sha256(self) -> str:
        digest: str = self._hash.hexdigest()
        return digest

    def close(self) -> None:
        """Close after the bytes are on the disk."""
        if not self.closed:
            self.closed = True
            with self._handle:
                self._handle.flush()
                _announce("fsync", self.path)
                os.fsync(self._handle.fileno())

    def discard(self) -> None:
        """Close and remove an unfinished file; its last bytes may not fit on the disk any more."""
        self.closed = True
        with suppress(OSError):
            self._handle.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> str:
    """Write a whole file; its SHA-256."""
    file = HashedFile(path)
    try:
        file.write(data)
        file.close()
    except BaseException:
        file.discard()
        raise
    return file.sha256


def append(path: Path, data: bytes) -> None:
    """Append to a file and wait until it is on the disk."""
    _announce("append", path)
    with path.open("ab") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def make_folder(path: Path) -> None:
    _announce("mkdir", path)
    path.mkdir(parents=True, exist_ok=True)


def rename(old: Path, new: Path) -> None:
    _announce("rename", new)
    old.rename(new)


def remove(path: Path) -> None:
    _announce("remove", path)
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    if path.exists():
        _announce("remove tree", path)
        shutil.rmtree(path)


def sync_folder(path: Path) -> None:
    """Make names in a folder durable."""
    _announce("fsync", path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_RENAME_EXCHANGE: Final = 2  # linux/fs.h; RENAME_SWAP on macOS has the same value
_AT_FDCWD: Final = -100


def exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    _announce("exchange", b)
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        call, arguments = "renamex_np", (os.fsencode(a), os.fsencode(b), _RENAME_EXCHANGE)
    else:
        call, arguments = "renameat2", (_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    function = getattr(libc, call, None)
    if function is None:
        return False
    if function(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(b))
