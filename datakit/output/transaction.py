"""The transaction: an output folder is whole or absent, whatever happens in between.

Beside OUT lies `.OUT.datakit/` while a run builds:

    lock            held with flock, which the kernel releases when the process dies
    journal.jsonl   first line: the plan and the identity of the inputs; then one line per finished shard
    parts/          finished shards, their rejects and keys
    spool/          standard input, and rows that a library caller handed over
    next/           the folder that becomes OUT, put together at the end

The commit is one exchange of the two folder names (`renameat2` with RENAME_EXCHANGE, `renamex_np` on macOS). Where the
system lacks it, OUT is moved to `old/` first and moved back by the next run if that was the last thing that happened.
A later run with the same plan and unchanged inputs takes the finished shards over, after comparing their hashes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson

from datakit.errors import Locked, NotWritten
from datakit.output import disk

LOCK: Final = "lock"
JOURNAL: Final = "journal.jsonl"


class Transaction:
    """The right to write one output folder.

    Args:
        out: the output folder.

    Raises:
        Locked: another process has it.
        NotWritten: the folder beside it cannot be made.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.work = out.parent / f".{out.name}.datakit"
        self.parts = self.work / "parts"
        self.next = self.work / "next"
        self.old = self.work / "old"
        self.spool = self.work / "spool"
        self._lock = -1

    def __enter__(self) -> Self:
        with disk.not_written(self.work):
            self._acquire()
            self._recover()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock >= 0:
            if self.work.exists() and not (self.work / JOURNAL).exists():
                shutil.rmtree(self.work, ignore_errors=True)  # nothing that a later run could use
            os.close(self._lock)
            self._lock = -1

    def _acquire(self) -> None:
        while True:
            disk.make_folder(self.work)
            try:
                handle = os.open(self.work / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue  # its holder just removed the folder
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = os.read(handle, 200).decode("utf-8", "replace").strip()
                os.close(handle)
                raise Locked(
                    f"{self.out}: another datakit process is writing it ({holder or 'unknown'})",
                    "Wait for it, or write to another folder.",
                ) from None
            try:
                same = os.fstat(handle).st_ino == (self.work / LOCK).stat().st_ino
            except FileNotFoundError:
                same = False
            if same:
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                self._lock = handle
                return
            os.close(handle)  # the holder finished between open and lock

    def _recover(self) -> None:
        """Where the exchange takes two steps, undo the first if the second never came."""
        disk.remove_tree(self.spool)
        if self.old.exists():
            if not self.out.exists():
                disk.rename(self.old, self.out)
            else:
                disk.remove_tree(self.old)

    # ------------------------------------------------------------ the journal

    def begin(self, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Start or go on; the journal lines of the finished shards that can be taken over.

        Args:
            plan: everything that decides the output, and the identity of the inputs.
        """
        with disk.not_written(self.work):
            finished = self._finished(plan)
            if finished is None:
                disk.remove_tree(self.parts)
                disk.remove_tree(self.next)
                disk.remove(self.work / JOURNAL)
                disk.make_folder(self.parts)
                disk.append(self.work / JOURNAL, orjson.dumps({"plan": plan}) + b"\n")
                disk.sync_folder(self.work)
                return []
            disk.remove_tree(self.next)
            disk.make_folder(self.parts)
            known = {name for line in finished for name in line["files"]}
            for path in self.parts.iterdir():
                if path.name not in known:
                    disk.remove(path)
            return finished

    def _finished(self, plan: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        try:
            lines = (self.work / JOURNAL).read_bytes().split(b"\n")
            if orjson.loads(lines[0]) != orjson.loads(orjson.dumps({"plan": plan})):
                return None
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        finished: list[dict[str, Any]] = []
        for line in lines[1:]:
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                break  # torn by a crash
            if not all(self._intact(name, facts) for name, facts in entry["files"].items()):
                break
            finished.append(entry)
        keep = b"".join(line + b"\n" for line in lines[: len(finished) + 1])
        disk.write(self.work / f"{JOURNAL}.new", keep)
        disk.rename(self.work / f"{JOURNAL}.new", self.work / JOURNAL)
        return finished

    def _intact(self, name: str, facts: Sequence[Any]) -> bool:
        """Whether a finished file is there with its bytes; one that was already moved is moved back."""
        path = self.parts / name
        if not path.exists() and self.next.exists():
            for moved in self.next.rglob("*"):
                if moved.name.partition("-of-")[0] == name.removesuffix(".parquet") or moved.name == name:
                    disk.rename(moved, path)
                    break
        if not path.is_file() or path.stat().st_size != facts[0]:
            return False
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest() == facts[1]

    def finish_part(self, entry: Mapping[str, Any]) -> None:
        """Note that a shard and what belongs to it are complete.

        Args:
            entry: JSON with `files`: name in parts/ -> [bytes, sha256].
        """
        with disk.not_written(self.work):
            disk.sync_folder(self.parts)
            disk.append(self.work / JOURNAL, orjson.dumps(entry) + b"\n")

    # ------------------------------------------------------------ the commit

    def commit(self, moves: Mapping[str, str], files: Mapping[str, bytes]) -> None:
        """Put the new folder together and exchange it for the old one.

        Args:
            moves: name in parts/ -> path in the output.
            files: path in the output -> content; written in order, the manifest last.
        """
        with disk.not_written(self.out):
            disk.make_folder(self.next)
            folders = {self.next / Path(path).parent for path in (*moves.values(), *files)}
            for folder in sorted(folders):
                disk.make_folder(folder)
            for name, path in moves.items():
                disk.rename(self.parts / name, self.next / path)
            for path, data in files.items():
                disk.write(self.next / path, data)
            for folder in sorted({*folders, self.next}, reverse=True):
                disk.sync_folder(folder)
            self._swap()
            disk.sync_folder(self.out.parent)
        self.clean()

    def _swap(self) -> None:
        if not self.out.exists():
            disk.rename(self.next, self.out)
        elif not disk.exchange(self.next, self.out):
            disk.rename(self.out, self.old)
            disk.rename(self.next, self.out)

    def clean(self) -> None:
        """Remove everything beside OUT; the lock goes last, still held."""
        try:
            for path in (self.next, self.old, self.parts, self.spool):
                disk.remove_tree(path)
            disk.remove(self.work / JOURNAL)
            disk.remove_tree(self.work)
        except OSError as error:
            raise NotWritten(
                f"{self.work}: {error.strerror or error}", f"{self.out} is complete; remove this folder by hand."
            ) from error
