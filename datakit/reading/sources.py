"""Sources: what the words on a command line name, in a fixed order, and how each is to be read."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from datakit.errors import DatakitError, UnreadableInput, UsageError
from datakit.reading.decode import MAGIC, File, is_remote, open_bytes, refuse_archive

How = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "shards", "rejects"]

SUFFIXES: Final[Mapping[str, How]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
PACKED: Final[Mapping[str, str]] = {".gz": "gz", ".zst": "zst", ".bz2": "bz2"}

SPLIT_NAME: Final = re.compile(r"\w+(\.\w+)*")


@dataclass(slots=True)
class Source:
    """One input.

    Attributes:
        path: as it was typed; what manifests, rejects and messages say.
        how: which reader takes it.
        compression: gz, zst, bz2 or None; only for texts.
        real: where the bytes are, if not at `path`: standard input and objects are written to a file first.
        files: for shards, the files of one split.
        split: for shards, the name of that split.
        kind: for shards, kind, form and conversational of their manifest.
        delimiter: for CSV, what divides the cells.
    """

    path: str
    how: How
    compression: str | None = None
    real: str = ""
    files: Sequence[str] = ()
    split: str = ""
    kind: tuple[str, str, bool] | None = None
    delimiter: str = ""

    def __post_init__(self) -> None:
        self.real = self.real or self.path

    def file(self) -> File:
        return File(self.path, self.compression, self.real)

    @property
    def numbering(self) -> str:
        """What its rows are counted by."""
        return "line" if self.how == "jsonl" else "row"

    def identity(self) -> list[Any]:
        """What tells, without reading, that the bytes are those of an earlier run; empty where nothing does."""
        if self.path == "-" or self.real != self.path or is_remote(self.path):
            return []
        facts = [os.stat(name) for name in self.files or [self.path]]  # noqa: PTH116
        return [[f.st_dev, f.st_ino, f.st_size, f.st_mtime_ns] for f in facts]


def expand(words: Sequence[str]) -> list[str]:
    """Names, globs and folders as file names: words in their order, what one word matches sorted by name.

    Raises:
        UnreadableInput: a word matches nothing.
        UsageError: two words name one file.
    """
    names: list[str] = []
    for word in words:
        names.extend(_expand(word))
    seen: dict[str, str] = {}
    for name in names:
        real = name if name == "-" or name.startswith("hf:") or is_remote(name) else os.path.realpath(name)
        if real in seen:
            raise UsageError(f"{name} is given twice", "Each input file is read once; remove one of the two.")
        seen[real] = name
    return names


def _expand(word: str) -> list[str]:
    if word == "-" or word.startswith("hf:"):
        return [word]
    if is_remote(word):
        if not re.search(r"[*?\[]", word):
            return [word]
        import fsspec

        system, pattern = fsspec.core.url_to_fs(word)
        names = [str(system.unstrip_protocol(name)) for name in sorted(system.glob(pattern))]
    elif os.path.isdir(word):  # noqa: PTH112
        return [word] if is_unit(word) else _in_folder(word)
    elif os.path.exists(word):  # noqa: PTH110
        return [word]
    else:
        names = sorted(name for name in glob.glob(word, recursive=True) if os.path.isfile(name))  # noqa: PTH113, PTH207
    if not names:
        raise UnreadableInput(f"{word}: no such file, and no file matches it", f"The current folder is {Path.cwd()}.")
    return names


def is_unit(folder: str) -> bool:
    """Whether a folder is read as one thing: our shards, or a dataset that `datasets` saved."""
    path = Path(folder)
    return (
        (path / "manifest.json").is_file() or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
    )


def _walk(folder: str) -> tuple[list[str], list[str]]:
    """The files in a folder that are known by their names, and those that are not, with the folders behind links."""
    known: list[str] = []
    others: list[str] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if os.path.islink(os.path.join(here, name))]  # noqa: PTH114, PTH118
        for name in [*names, *linked]:
            if not name.startswith("."):
                is_known = name not in linked and _suffixes(name)[0] is not None
                (known if is_known else others).append(os.path.join(here, name))  # noqa: PTH118
    return sorted(known), sorted(others)


def left_out(words: Sequence[str]) -> list[str]:
    """What lies in the folders that are named and is not read, but for the pages that come with data."""
    folders = [word for word in words if os.path.isdir(word) and not is_unit(word)]  # noqa: PTH112
    return [name for folder in folders for name in _walk(folder)[1] if not _PAGE.fullmatch(Path(name).name)]


_PAGE: Final = re.compile(
    r"(readme|license|licence|notice|changelog|citation)([._-].*)?|.*\.(md|rst|py)|sha\d+sums", re.I
)


def _in_folder(folder: str) -> list[str]:
    found, _ = _walk(folder)
    if not found:
        known = " ".join(SUFFIXES)
        raise UnreadableInput(f"{folder}: a folder without data files", f"Files are known by their suffix: {known}.")
    return found


def _suffixes(name: str) -> tuple[How | None, str | None]:
    stem, suffix = os.path.splitext(name.lower())  # noqa: PTH122
    packed = PACKED.get(suffix)
    if packed:
        suffix = os.path.splitext(stem)[1]  # noqa: PTH122
    return SUFFIXES.get(suffix), packed


def identify(path: str) -> Source:
    """How a file is to be read: by its first bytes where they say, else by its suffix.

    Raises:
        UnreadableInput: neither says, or it is an archive.
    """
    how, packed = _suffixes(path)
    with open_bytes(path) as handle:
        try:
            start = handle.read(512)
        except OSError as error:
            raise UnreadableInput(f"{path}: cannot be read: {error}") from None
    refuse_archive(path, start)
    if start[:4] == b"PAR1":
        return Source(path, "parquet")
    if start[:6] == b"ARROW1" or start[:4] == b"\xff\xff\xff\xff":
        return Source(path, "arrow")
    packed_as = next((name for name, magic in MAGIC.items() if start.startswith(magic)), None)
    if packed and not packed_as and start:
        raise UnreadableInput(f"{path}: named .{packed} but its first bytes are not", "Rename it, or fetch it again.")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableInput(f"{path}: UTF-16 text", "Write it as UTF-8, for example with iconv -f utf-16 -t utf-8.")
    if how in ("parquet", "arrow"):
        raise UnreadableInput(
            f"{path}: not a {how} file, its first bytes are {start[:4]!r}", "Fetch or write it again."
        )
    if how is None:
        text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
        if packed_as is None and text[:1] not in (b"{", b"["):
            known = " ".join((*SUFFIXES, *(f".jsonl{p}" for p in PACKED)))
            raise UnreadableInput(f"{path}: neither its name nor its first bytes say what it is", f"Known are {known}.")
        how = "json"
    return Source(path, how, packed_as)


def size_to_read(words: Sequence[str], splits: Sequence[str] = ()) -> int | None:
    """How many decoded bytes the inputs have, where that is known before they are read: of plain JSON and JSON Lines.

    None where it is not, and where the words are wrong, which the run itself will tell.
    """
    total = 0
    try:
        for names in assign_splits(words, splits).values():
            for name in names:
                how, packed = _suffixes(name)
                if how not in ("jsonl", "json") or packed or name.startswith("hf:") or is_remote(name):
                    return None
                total += os.stat(name).st_size  # noqa: PTH116
    except (DatakitError, OSError):
        return None
    return total or None


def assign_splits(words: Sequence[str], splits: Sequence[str]) -> dict[str, list[str]]:
    """`--split NAME[=GLOB]` and the inputs, as split name -> file names.

    Without inputs a GLOB names files; with inputs it selects among them.

    Raises:
        UsageError: a name that `datasets` refuses, or an input in no split or in two.
    """
    named: dict[str, str | None] = {}
    for text in splits:
        name, equals, pattern = text.partition("=")
        if not SPLIT_NAME.fullmatch(name):
            raise UsageError(f"--split {text}: {name!r} is not a split name", "Letters, digits, _ and inner dots.")
        if name in named:
            raise UsageError(f"--split {name} is given twice", "Use one glob that matches all its files.")
        named[name] = pattern if equals else None
    if not named:
        return {"train": expand(words)}
    if len(named) == 1 and None in named.values():
        return {name: expand(words) for name in named}
    if None in named.values():
        raise UsageError("--split needs NAME=GLOB where there are several", "For example --split test=raw/test*.jsonl.")
    if not words:
        return {name: expand([pattern or ""]) for name, pattern in named.items()}
    result: dict[str, list[str]] = {name: [] for name in named}
    for path in expand(words):
        fits = [
            n for n, p in named.items() if fnmatch.fnmatch(path, p or "") or fnmatch.fnmatch(Path(path).name, p or "")
        ]
        if len(fits) != 1:
            where = f"in {' and '.join(fits)}" if fits else "in no split"
            raise UsageError(f"{path} is {where}", "Each input must match exactly one --split glob.")
        result[fits[0]].append(path)
    for name, paths in result.items():
        if not paths:
            raise UsageError(f"--split {name}={named[name]} matches no input")
    return result
