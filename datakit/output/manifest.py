"""The manifest: what a shard folder holds, how it came to be, and how to tell that nothing has changed since.

content_id   SHA-256 of everything but `run`; the same inputs and options give the same one anywhere
run          when and how long; the only part that differs between two equal runs
sha256       SHA-256 of the whole, itself left out
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from datakit.errors import NoManifest, UsageError
from datakit.terminal import safe

NAME: Final = "manifest.json"
VERSION: Final = 1


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def content_id(body: Mapping[str, Any]) -> str:
    """The identity of a manifest without `run`, `content_id` and `sha256`."""
    return _digest(body)


def seal(body: Mapping[str, Any], run: Mapping[str, Any]) -> bytes:
    """The manifest as it is written."""
    whole = {**body, "content_id": content_id(body), "run": dict(run)}
    whole["sha256"] = _digest(whole)
    return orjson.dumps(whole, option=orjson.OPT_INDENT_2) + b"\n"


def load(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a shard folder, compared with its own hashes.

    Raises:
        NoManifest: it is missing, damaged or of a later version.
        UsageError: the folder is named by something that is no path.
    """
    if not isinstance(folder, str | os.PathLike):
        raise UsageError(f"a folder of type {type(folder).__name__}", "Name a shard folder.")
    path = Path(folder) / NAME
    try:
        whole = orjson.loads(path.read_bytes())
    except OSError as error:
        raise NoManifest(
            f"{folder}: no {NAME}: {error.strerror}", "A shard folder has one; was the conversion finished?"
        ) from None
    except orjson.JSONDecodeError as error:
        raise NoManifest(f"{path}: not JSON: {error}", "It was changed after it was written; convert again.") from None
    if not isinstance(whole, dict) or "datakit_manifest" not in whole:
        raise NoManifest(f"{path}: not a manifest of datakit")
    if whole["datakit_manifest"] != VERSION:
        raise NoManifest(
            f"{path}: version {whole['datakit_manifest']}, this datakit reads {VERSION}", "Upgrade datakit."
        )
    body = {key: value for key, value in whole.items() if key not in ("content_id", "run", "sha256")}
    sealed = {key: value for key, value in whole.items() if key != "sha256"}
    if whole.get("content_id") != content_id(body) or whole.get("sha256") != _digest(sealed):
        raise NoManifest(f"{path}: does not match its own hash", "It was changed after it was written; convert again.")
    return whole


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse what is no folder of shards.

    Raises:
        UsageError: nothing is there, or something else.
    """
    name = safe(os.fspath(folder))
    if not Path(folder).exists():
        raise UsageError(f"{name}: no such file or folder", f"The current folder is {Path.cwd()}.")
    if not (Path(folder) / NAME).is_file():
        raise UsageError(f"{name} is not a folder of shards", f"First: datakit convert {name} -o shards/")


def files(manifest: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """(path, bytes, sha256) of every file that the manifest vouches for."""
    for entry in (*manifest["shards"], *manifest["rejects"]):
        yield entry["path"], entry["bytes"], entry["sha256"]


def mismatches(
    folder: str | os.PathLike[str], manifest: Mapping[str, Any], rows_only: bool = False
) -> list[tuple[str, str]]:
    """(path, what is wrong) for every file that is missing, changed or not listed.

    With `rows_only`, files that hold no rows of the output are left out: rejects are there to be repaired.
    """
    base = Path(folder)
    found: list[tuple[str, str]] = []
    listed = {NAME, "README.md"}
    for name, size, sha256 in files(manifest):
        listed.add(name)
        if rows_only and name.startswith("rejects/"):
            continue
        path = base / name
        if not path.is_file():
            found.append((name, "missing"))
        elif path.stat().st_size != size:
            found.append((name, f"{path.stat().st_size} bytes where {size} were written"))
        elif file_sha256(path) != sha256:
            found.append((name, "its bytes have changed"))
    for folder_name in ("data",) if rows_only else ("data", "rejects"):
        for path in sorted((base / folder_name).rglob("*")):
            name = path.relative_to(base).as_posix()
            if path.is_file() and name not in listed:
                found.append((name, "not in the manifest"))
    card = base / "README.md"
    if not card.is_file() or manifest["content_id"] not in card.read_text("utf-8", "replace"):
        found.append(("README.md", "lacks the content id, so `datasets` may serve older rows from its cache"))
    return found


def file_sha256(path: str | os.PathLike[str]) -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
