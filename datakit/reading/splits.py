"""Splits that the names of files tell: `data/train/a.jsonl` beside `data/test/b.jsonl`, or `train.jsonl` beside them.

Files go into one split unless `--split` says otherwise, since a name is a hint and not an order. What this module finds
is told to the person, with the options to type.
"""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Final

WORDS: Final = {
    word: split
    for split, words in {
        "train": "train training",
        "validation": "validation valid val dev",
        "test": "test testing eval evaluation",
    }.items()
    for word in words.split()
}
"""The words that `datasets` looks for in names, and the split that each stands for."""


def told_by_names(paths: Sequence[str]) -> dict[str, list[str]]:
    """Split name -> files, where names tell at least two splits; empty otherwise.

    Only what stands below the folder that all files share is looked at, and of it the last part with such a word. Files
    without one are taken for `train`.
    """
    if len(paths) < 2:
        return {}
    shared = _shared([PurePosixPath(path).parent.parts for path in paths])
    told = [_split_of(PurePosixPath(path).parts[shared:]) for path in paths]
    if len({split for split in told if split}) < 2:
        return {}
    found: dict[str, list[str]] = {}
    for path, split in zip(paths, told, strict=True):
        found.setdefault(split or "train", []).append(path)
    return found


def _shared(values: Sequence[Sequence[str]]) -> int:
    """How many of their first items are equal in all."""
    return next((at for at, items in enumerate(zip(*values, strict=False)) if len({*items}) > 1), min(map(len, values)))


def _split_of(parts: Sequence[str]) -> str | None:
    for part in reversed(parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in WORDS:
                return WORDS[word]
    return None


def options(told: dict[str, list[str]]) -> str:
    """The `--split` options that divide the files so, as one types them; empty where no glob can."""
    paths = [path for group in told.values() for path in group]
    globs = {split: _glob(group, paths) for split, group in told.items()}
    if None in globs.values():
        return ""
    return " ".join(f"--split {shlex.quote(f'{split}={pattern}')}" for split, pattern in globs.items())


def _glob(group: Sequence[str], paths: Sequence[str]) -> str | None:
    """A glob that matches these of all paths as `assign_splits` matches them, the shortest of a few."""
    if len(group) == 1:
        tries = [glob.escape(group[0])]
    else:
        start = group[0][: _shared(group)]
        length = _shared([path[len(start) :][::-1] for path in group])
        end = group[0][len(group[0]) - length :]
        folder, slash, _ = start.rpartition("/")
        word = re.match(r".*[a-z]", start, re.I | re.S)
        starts = [folder + slash, word[0] if word else start, start]
        ends = [end[end.find(".") :] if "." in end else "", end]
        tries = [f"{glob.escape(begin)}*{glob.escape(stop)}" for begin in starts for stop in ends]
    wanted = set(group)
    for pattern in tries:
        if {p for p in paths if fnmatch(p, pattern) or fnmatch(PurePosixPath(p).name, pattern)} == wanted:
            return pattern
    return None
