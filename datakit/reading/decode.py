"""Bytes of one file: hashed as they are read, unpacked in bounded steps, and refused where they end too early."""

from __future__ import annotations

import bz2
import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final

from datakit.errors import UnreadableInput, UsageError
from datakit.reading.limits import CHUNK, MAX_RATIO, RATIO_FROM, ZSTD_FEED, ZSTD_WINDOW

MAGIC: Final = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh"}

_ARCHIVE: Final = re.compile(r".*\.(zip|7z|tgz|tar(\.(gz|bz2|xz|zst))?)", re.I | re.S)


def refuse_archive(path: str, start: bytes) -> None:
    """Archives hold many files, whose names, ends and splits would be lost if they were read as one text.

    Args:
        start: what the file begins with, unpacked.

    Raises:
        UnreadableInput: the name or the first bytes are those of an archive.
    """
    if _ARCHIVE.fullmatch(path) or start.startswith(b"PK\3\4") or start[257:262] == b"ustar":
        raise UnreadableInput(
            f"{path}: an archive of files, not a file of rows", "Unpack it into a folder, then name the folder."
        )


def is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def open_bytes(path: str) -> IO[bytes]:
    """Open a local path, or an address that fsspec knows.

    Raises:
        UnreadableInput: it cannot be opened.
    """
    try:
        if is_remote(path):
            import fsspec

            handle: IO[bytes] = fsspec.open(path, "rb").open()
            return handle
        return open(path.removeprefix("file://"), "rb")  # noqa: PTH123 - the caller closes it
    except ImportError as error:
        raise UsageError(f"{path}: {error}", "Install the package that the message names.") from None
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"{path}: cannot be opened: {error}") from None


@dataclass(slots=True)
class File:
    """One input being read.

    After `decoded` is exhausted, `size` and `sha256` describe the whole file as it lies on disk.
    """

    path: str
    compression: str | None = None
    real: str = ""
    size: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        digest: str = self._hash.hexdigest()
        return digest

    def raw(self, size: int = CHUNK) -> Iterator[bytes]:
        """The bytes as they lie on disk.

        Raises:
            UnreadableInput: reading failed, or the file changed meanwhile.
        """
        real = self.real or self.path
        handle = open_bytes(real)
        try:
            before = _identity(handle)
            while chunk := handle.read(size):
                self.size += len(chunk)
                self._hash.update(chunk)
                yield chunk
            if _identity(handle) != before or (before and before != _identity_of(real)):
                raise UnreadableInput(f"{self.path}: changed while it was read", "Run again when nothing writes to it.")
        except OSError as error:
            raise UnreadableInput(f"{self.path}: reading failed after {self.size} bytes: {error}") from None
        finally:
            handle.close()

    def decoded(self) -> Iterator[bytes]:
        """The bytes after decompression.

        Raises:
            UnreadableInput: truncated, damaged, or unpacking without end.
        """
        if self.compression is None:
            yield from self.raw()
            return
        feed = ZSTD_FEED if self.compression == "zst" else CHUNK // 16
        total = 0
        for piece in self._unpack(self.raw(feed)):
            if not total:
                refuse_archive(self.path, piece)
            total += len(piece)
            if total > RATIO_FROM and total > MAX_RATIO * self.size:
                raise UnreadableInput(
                    f"{self.path}: {self.size} bytes unpack to more than {total}, over {MAX_RATIO} to 1",
                    "Unpack it by hand if you trust it.",
                )
            yield piece

    def _unpack(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        make = _decompressor(self.compression or "")
        unpacker = make()
        clean = True  # at a boundary between members
        for chunk in chunks:
            data = chunk
            while data:
                if clean and not data.strip(b"\0") and self.compression == "gz":
                    data = b""  # gzip allows zero padding
                    continue
                clean = False
                try:
                    piece = unpacker.decompress(data)
                except Exception as error:
                    raise UnreadableInput(
                        f"{self.path}: damaged {self.compression} data near byte {self.size}: {error}",
                        "Fetch or pack the file again.",
                    ) from None
                if piece:
                    yield piece
                if not unpacker.eof:
                    data = b""
                    continue
                data = unpacker.unused_data
                unpacker, clean = make(), True
        if not clean:
            raise UnreadableInput(
                f"{self.path}: the {self.compression} data ends too early, after {self.size} bytes",
                "Fetch or pack the file again; what is there is not the whole file.",
            )


def _decompressor(name: str) -> Callable[[], Any]:
    if name == "gz":
        return lambda: zlib.decompressobj(wbits=31)
    if name == "bz2":
        return bz2.BZ2Decompressor
    import zstandard

    context = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    return context.decompressobj


def _identity(handle: IO[bytes]) -> tuple[int, ...] | None:
    try:
        facts = os.fstat(handle.fileno())
    except (OSError, AttributeError, ValueError):
        return None
    return (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


def _identity_of(path: str) -> tuple[int, ...] | None:
    facts = os.stat(path.removeprefix("file://"))  # noqa: PTH116
    return (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
