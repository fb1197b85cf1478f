"""Findings about the whole set, from the tally and from 16 bytes per row."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from datakit.checks import kto, preference
from datakit.reading.splits import options, told_by_names
from datakit.tally import PLACES, Tally
from datakit.terminal import plural


@dataclass(frozen=True, slots=True)
class SetFinding:
    """A finding about the whole set.

    Attributes:
        id: the check.
        note: what was found.
        rows: how many rows it is about; 0 where it is about none in particular.
        places: the first of them: source, row, path, note.
    """

    id: str
    note: str
    rows: int = 0
    places: Sequence[Sequence[Any]] = ()


FEW: Final = 200_000
"""Keys up to which they are compared without numpy, whose import takes as long."""


@dataclass(slots=True)
class Keys:
    """16 bytes per row in file order, and where each row came from, block by block."""

    data: bytearray = field(default_factory=bytearray)
    starts: list[int] = field(default_factory=list)
    blocks: list[tuple[str, Sequence[int]]] = field(default_factory=list)

    def add(self, keys: bytes, source: str, rows: Sequence[int], origins: Sequence[str] = ()) -> None:
        """Add those of a block.

        Args:
            origins: for repaired rows, the file that each came from.
        """
        if not keys:
            return
        start = 0
        for name, size in [(name, len(list(group))) for name, group in groupby(origins)] or [(source, len(rows))]:
            self.starts.append(len(self.data) // 16 + start)
            self.blocks.append((name, rows[start : start + size]))
            start += size
        self.data += keys

    def place(self, index: int) -> tuple[str, int]:
        """(source, row) of the row with this number in output order."""
        at = bisect_right(self.starts, index) - 1
        source, rows = self.blocks[at]
        return source, rows[index - self.starts[at]]

    def equal(self, mask: int = 0) -> Iterator[list[int]]:
        """Groups of rows with equal keys, in order of their first row.

        Args:
            mask: bits of the last byte to leave out of the comparison.
        """
        if len(self.data) < 16 * FEW:
            firsts = memoryview(self.data).cast("Q")[::2].tolist()
            if len(set(firsts)) == len(firsts):
                return
        import numpy as np

        halves = np.frombuffer(self.data, dtype="<u8").reshape(-1, 2)
        order = np.argsort(halves[:, 0], kind="stable")
        ordered = halves[order, 0]
        candidates = np.flatnonzero(ordered[1:] == ordered[:-1])
        groups: dict[tuple[int, int], set[int]] = {}
        clear = ~(mask << 56) & (2**64 - 1)  # the last byte is the highest of a little-endian half
        for at in candidates:
            for index in (int(order[at]), int(order[at + 1])):
                key = (int(halves[index, 0]), int(halves[index, 1]) & clear)
                groups.setdefault(key, set()).add(index)
        yield from sorted(sorted(group) for group in groups.values() if len(group) > 1)

    def last_bit(self, index: int) -> int:
        return self.data[16 * index + 15] & 1


def whole_set(tally: Tally, kind: str, digests: Keys, conflicts: Keys) -> list[SetFinding]:
    """Everything that only the whole set shows."""
    found: list[SetFinding] = []
    places: list[Any] = []
    extra = 0
    for group in digests.equal():
        first = digests.place(group[0])
        for index in group[1:]:
            extra += 1
            if len(places) < PLACES:
                places.append([*digests.place(index), "", f"the same as {first[0]} row {first[1]}"])
    if extra:
        found.append(SetFinding("DK801", f"{extra} rows repeat an earlier one", extra, places))
    counts = tally.counts
    if counts["rows with tools"] and not counts["rows with calls"]:
        found.append(SetFinding("DK309", f"{plural(counts['rows with tools'], 'row')} with tools, and no call of one"))
    if kind == "preference":
        found += _conflicts("DK404", conflicts, "the opposite preference of")
        found += [SetFinding("DK406", note) for note in [preference.length_bias(counts)] if note]
        found += [SetFinding("DK408", note) for note in preference.format_leak(counts)]
    if kind == "kto":
        found += _conflicts("DK504", conflicts, "the opposite label of")
        rules: Mapping[str, Callable[[Any], str | None]] = {
            "DK502": kto.one_class,
            "DK503": kto.imbalance,
            "DK505": kto.in_blocks,
        }
        found += [SetFinding(id, note) for id, rule in rules.items() if (note := rule(counts))]
    return found


def of_inputs(inputs: Sequence[Mapping[str, Any]], asked: bool) -> list[SetFinding]:
    """What only the inputs side by side show: splits in their names, and one file twice.

    Args:
        inputs: path, split, read_as, rows and sha256 of each, as in the manifest.
        asked: whether `--split` was given, so that names say nothing more.
    """
    found: list[SetFinding] = []
    files = [entry for entry in inputs if entry["read_as"] not in ("shards", "rejects") and entry["path"] != "-"]
    told = {} if asked or len({entry["split"] for entry in files}) > 1 else told_by_names([e["path"] for e in files])
    if told:
        names = " and ".join(told)
        note = f"names of files tell {names}, and all go into {files[0]['split']}"
        places = [[None, None, "", note]]
        places += [[group[0], None, "", f"{split}, by its name"] for split, group in told.items()]
        places += [[None, None, "", f"To keep them apart: {options(told) or '--split NAME=GLOB for each'}"]]
        found.append(SetFinding("DK122", note, 0, places))
    firsts: dict[str, Mapping[str, Any]] = {}
    copies = []
    for entry in files:
        if entry["rows"] and entry["sha256"]:
            first = firsts.setdefault(entry["sha256"], entry)
            if first is not entry:
                copies.append((first, entry))
    if copies:
        places = [[e["path"], None, "", _same_bytes(first, e)] for first, e in copies[:PLACES]]
        found.append(SetFinding("DK123", f"{len(copies)} copies", sum(e["rows"] for _, e in copies), places))
    return found


def of_folders(names: Sequence[str]) -> list[SetFinding]:
    """What lies in the folders that were named and was not read."""
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    note = f"{plural(len(names), 'name')} in folders: {', '.join(names[:3])}{more}"
    return [SetFinding("DK127", note)]


def _same_bytes(first: Mapping[str, Any], copy: Mapping[str, Any]) -> str:
    where = "" if first["split"] == copy["split"] else f"; that is in split {first['split']}, this in {copy['split']}"
    return f"the same bytes as {first['path']}{where}"


def _conflicts(id: str, keys: Keys, words: str) -> list[SetFinding]:
    places = []
    for group in keys.equal(mask=1):
        first = next((i for i in group if keys.last_bit(i) != keys.last_bit(group[0])), None)
        if first is not None:
            other = keys.place(group[0])
            places.append([*keys.place(first), "", f"{words} {other[0]} row {other[1]}"])
    return [SetFinding(id, f"{len(places)} conflicts", len(places), places[:PLACES])] if places else []
