"""The tally: every number that a run accounts for, in a form that adds up.

A tally of a block, of a shard and of a whole run are the same thing; `add` puts two together in file order. It is
plain JSON, so it travels from workers and lies in the journal of an unfinished run.

The ledger that follows from it:

    rows_in  = single + merged + sum(rejected)      every input row is in exactly one of these
    rows_out = sum(k * n for k, n in fanout)        each single row or merged group gave k output rows
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from datakit.errors import InternalError
from datakit.findings import Finding

Place = list[Any]
"""[source, row, path, note]: where a finding was seen."""

PLACES: Final = 10


@dataclass(slots=True)
class Tally:
    """Counts of rows, findings and whatever the whole-set checks need."""

    rows_in: int = 0
    rows_out: int = 0
    blank: int = 0
    single: int = 0
    merged: int = 0
    groups: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    fanout: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    """Rows per finding id."""
    places: dict[str, list[Place]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    edges: dict[str, list[Any]] = field(default_factory=dict)
    """First and last value of a sequence, such as labels, to count changes across blocks."""

    def see(self, id: str, place: Callable[[], Place]) -> None:
        """One row with a finding; its place is made only where it is kept."""
        count = self.seen[id] = self.seen.get(id, 0) + 1
        if count <= PLACES:
            self.places.setdefault(id, []).append(place())

    def see_row(
        self, place: Sequence[Any], findings: Sequence[Finding], severities: Mapping[str, str], more: str = ""
    ) -> None:
        """The findings of one row, each check once; those that are off do not count.

        Args:
            place: source and row.
            more: what every note says besides.
        """
        done: set[str] = set()
        for id, path, note in findings:
            if id not in done and severities[id] != "off":
                done.add(id)
                self.see(id, [*place, path, note + more].copy)

    def see_many(self, id: str, count: int, places: list[Place]) -> None:
        """Several rows with a finding, and the places of the first."""
        self.seen[id] += count
        mine = self.places.setdefault(id, [])
        mine.extend(places[: PLACES - len(mine)])

    def step(self, name: str, value: Any) -> None:
        """Follow a sequence and count its changes."""
        edge = self.edges.get(name)
        if edge is None:
            self.edges[name] = [value, value]
        else:
            self.counts[f"{name} changes"] += edge[1] != value
            edge[1] = value

    def add(self, other: Tally) -> None:
        """Add what comes after this in file order."""
        for name in ("rows_in", "rows_out", "blank", "single", "merged", "groups"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("rejected", "fanout", "seen", "counts"):
            getattr(self, name).update(getattr(other, name))
        for id, places in other.places.items():
            mine = self.places.setdefault(id, [])
            mine.extend(places[: PLACES - len(mine)])
        for name, (first, last) in other.edges.items():
            edge = self.edges.get(name)
            if edge is None:
                self.edges[name] = [first, last]
            else:
                self.counts[f"{name} changes"] += edge[1] != first
                edge[1] = last

    def balance(self) -> None:
        """Check the ledger.

        Raises:
            InternalError: a row is missing or counted twice.
        """
        kept = self.single + self.merged
        if self.rows_in != kept + self.rejected.total():
            raise InternalError(f"the ledger does not balance: {self.rows_in} rows in, {self.ledger()}")
        out = sum(int(k) * n for k, n in self.fanout.items())
        if self.rows_out != out or self.fanout.total() != self.single + self.groups:
            raise InternalError(f"the ledger does not balance: {self.rows_out} rows out, {self.ledger()}")

    def ledger(self) -> dict[str, Any]:
        return {
            "rows_in": self.rows_in,
            "single": self.single,
            "merged": self.merged,
            "groups": self.groups,
            "rejected": dict(sorted(self.rejected.items())),
            "rows_rejected": self.rejected.total(),
            "fanout": dict(sorted(self.fanout.items(), key=lambda kv: int(kv[0]))),
            "rows_out": self.rows_out,
            "blank_lines": self.blank,
        }

    def to_json(self) -> dict[str, Any]:
        names = ("rows_in", "rows_out", "blank", "single", "merged", "groups", "places", "edges")
        return {name: getattr(self, name) for name in names} | {
            name: dict(getattr(self, name)) for name in ("rejected", "fanout", "seen", "counts")
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Tally:
        counters = {"rejected", "fanout", "seen", "counts"}
        fields: dict[str, Any] = {name: Counter(x) if name in counters else x for name, x in value.items()}
        return cls(**fields)
