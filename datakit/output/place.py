"""Where an output may go, and what lies there already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datakit.errors import NoManifest, UsageError
from datakit.output import manifest as manifests
from datakit.output.disk import not_written


def output_folder(output: str | os.PathLike[str], inputs: Sequence[str]) -> Path:
    """The folder to write, with the folder above it made.

    Args:
        output: as it was typed.
        inputs: files and folders that are read.

    Raises:
        UsageError: it is not the name of a local folder, or overlaps an input.
        NotWritten: the folder above it cannot be made.
    """
    text = os.fspath(output)
    if not text:
        raise UsageError("no output", "Name a folder with -o.")
    if "://" in text:
        raise UsageError(
            f"{text}: outputs are local for now",
            "Write to a local folder, then copy it: aws s3 cp --recursive, gcloud storage cp -r, hf upload.",
        )
    out = Path(text.rstrip("/") or "/")
    if out.name in ("", "..", "."):
        raise UsageError(f"{text}: not a name for an output folder")
    check_output(out, inputs)
    with not_written(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    return out


def earlier(out: Path, overwrite: bool) -> dict[str, Any] | None:
    """The manifest of an output that is there already; None where there is none, or a damaged one to be overwritten.

    Raises:
        UsageError: what is there is not ours.
        NoManifest: its manifest cannot be trusted.
    """
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / manifests.NAME).exists():
        raise UsageError(f"{out} exists and is not an output of datakit", "Choose another folder, or remove it.")
    try:
        return manifests.load(out)
    except NoManifest:
        if overwrite:
            return None
        raise


def check_output(out: Path, inputs: Sequence[str]) -> None:
    """Refuse an output that is, holds, or lies in an input, or that is not a place for a folder.

    Raises:
        UsageError: with the two paths.
    """
    target = Path(os.path.realpath(out))
    for name in inputs:
        if name == "-" or "://" in name:
            continue
        source = Path(os.path.realpath(name))
        if target == source or target in source.parents or source in target.parents:
            raise UsageError(f"the output {out} and the input {name} overlap", "Write to a folder of its own.")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{out} is a file", "Give a folder for the shards.")
