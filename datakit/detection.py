"""Detection: which declared format explains the rows, by their values, with evidence, or a refusal.

Every format gives each sampled row points for the columns and shapes that it finds there. The best format wins if it
explains the rows clearly better than any other one; a mark of a dialect counts only where some row shows it. Two
formats that explain the rows equally well are a question for a person, not for a tie-breaker.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from datakit.errors import AmbiguousFormat, UnknownFormat, UsageError
from datakit.findings import shown
from datakit.formats import FORMATS
from datakit.formats.declare import Format, Row, look
from datakit.formats.reshape import reaches
from datakit.formats.shapes import fits
from datakit.schema import LAYOUTS, Layout, Target
from datakit.terminal import plural

MARGIN: Final = 0.9
"""A runner-up with this share of the winner's points explains the rows equally well."""


@dataclass(frozen=True, slots=True)
class Detection:
    """What a file was found to be.

    Attributes:
        format: the winner.
        points: mean points per sampled row.
        rows: how many rows were looked at.
        explained: how many of them the winner explains.
        evidence: lines for people.
        runner_up: name and points of the next best, if any.
        others: formats that explain the remaining rows and give the same kind.
    """

    format: Format
    points: float
    rows: int
    explained: int
    evidence: Sequence[str]
    runner_up: tuple[str, float] | None = None
    others: Sequence[str] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        layout = self.format.layout
        return {
            "format": self.format.name,
            "kind": layout.kind,
            "form": layout.form,
            "conversational": layout.conversational,
            "rows_looked_at": self.rows,
            "rows_explained": self.explained,
            "points": round(self.points, 3),
            "evidence": list(self.evidence),
            "runner_up": None if self.runner_up is None else {"format": self.runner_up[0], "points": self.runner_up[1]},
            "others": list(self.others),
        }


def detect_rows(rows: Sequence[Row], path: str, target: Target | None = None) -> Detection:
    """The format of sampled rows.

    Args:
        rows: raw rows, from the head and spread over the file.
        path: for messages.
        target: what `--to` asks for; formats that cannot become it are left out.

    Raises:
        UnknownFormat: no format explains half of the rows.
        AmbiguousFormat: two do, equally well.
    """
    scores: dict[str, list[int]] = {}
    for format in FORMATS.values():
        if not _considered(format, target, rows):
            continue
        # a dialect that shows its marks somewhere is meant in all rows, also in those without
        points = [format.matches(row) for row in rows]
        if format.marks:
            points = [p and p - format.marked(row) + 1 for p, row in zip(points, rows, strict=True)]
        if any(points):
            scores[format.name] = points
    total = {name: sum(points) / max(1, len(rows)) for name, points in scores.items()}
    ranked = sorted(total, key=lambda name: (-total[name], name))
    best = ranked[0] if ranked else None
    if best is None or sum(p > 0 for p in scores[best]) < 0.5 * len(rows):
        if target is not None and rows:
            _refuse_target(detect_rows(rows, path), path, target)
        raise _unknown(rows, path, target, ranked[:1])
    rivals = [name for name in ranked[1:] if total[name] >= MARGIN * total[best]]
    equal = [best, *(n for n in rivals if any(p and q for p, q in zip(scores[best], scores[n], strict=True)))]
    equal = [name for name in equal if target is not None and FORMATS[name].layout.kind == target.kind] or equal
    if len(equal) > 1:
        raise _ambiguous(path, equal)
    best, winner = equal[0], FORMATS[equal[0]]
    explained = sum(p > 0 for p in scores[best])
    _refuse_halves(scores, ranked, winner, explained, path)
    rest = [row for row, p in zip(rows, scores[best], strict=True) if not p]
    second = next((name for name in ranked if name != best), None)
    return Detection(
        winner,
        total[best],
        len(rows),
        explained,
        _evidence(winner, rows),
        (second, round(total[second], 3)) if second else None,
        _for_drift(rest, winner, target),
    )


def _refuse_halves(
    scores: Mapping[str, Sequence[int]], ranked: Sequence[str], winner: Format, explained: int, path: str
) -> None:
    """Say that about as many rows as the winner explains are of a format with another layout.

    Raises:
        AmbiguousFormat: so it is.
    """
    same = [points for name, points in scores.items() if FORMATS[name].layout == winner.layout]
    left = [not any(points) for points in zip(*same, strict=True)]
    for name in ranked:
        count = sum(p > 0 for p, is_left in zip(scores[name], left, strict=True) if is_left)
        if count >= MARGIN * explained:
            raise AmbiguousFormat(
                f"{path}: rows of two formats: {explained} sampled rows are {winner.name} ({winner.layout.name}), "
                f"{count} are {name} ({FORMATS[name].layout.name}).",
                "Split the file by format; one file becomes one kind and form.",
            )


def likeliest(row: Row) -> Format | None:
    """The format that one row by itself gives most points to, if any."""
    points = {format.name: format.matches(row) for format in FORMATS.values() if _considered(format, None, [row])}
    best = max(points, key=lambda name: (points[name], name))
    return FORMATS[best] if points[best] else None


def known_rows(rows: Sequence[Row], known: Sequence[Format], path: str, target: Target | None = None) -> Detection:
    """Rows whose formats are known from the run that rejected them, the commonest first.

    Raises:
        AmbiguousFormat: they become several kinds or forms, which no plan of one file can hold.
    """
    first = known[0]
    if len({format.layout for format in known}) > 1:
        names = " and ".join(f"{format.name} ({format.layout.name})" for format in known)
        raise AmbiguousFormat(f"{path}: its rows were read as {names}", "Put the rows of each into a file of its own.")
    points = [first.matches(row) for row in rows]
    rest = [row for row, p in zip(rows, points, strict=True) if not p]
    others = dict.fromkeys((*(format.name for format in known[1:]), *_for_drift(rest, first, target)))
    evidence = [f"read as {format.name} when they were rejected" for format in known]
    explained = len(rows) - len(rest)
    return Detection(first, sum(points) / max(1, len(rows)), len(rows), explained, evidence, None, tuple(others))


def _refuse_target(found: Detection, path: str, target: Target) -> None:
    """Say what a file is that cannot become what was asked for.

    Raises:
        UsageError: always.
    """
    layout = found.format.layout
    can = ", ".join(x.name for x in LAYOUTS if reaches(layout, x))
    raise UsageError(
        f"{path} is {found.format.name}, which is {layout.name}; it cannot become {target} without loss",
        f"It can become {can}.",
    )


def _considered(format: Format, target: Target | None, rows: Sequence[Row]) -> bool:
    if target is None:
        if format.on_request:
            return False
    elif not any(target.accepts(x) and reaches(format.layout, x) for x in LAYOUTS):
        return False
    return not format.marks or any(format.marked(row) for row in rows)


def _for_drift(rest: Sequence[Row], winner: Format, target: Target | None) -> tuple[str, ...]:
    """Formats for the rows that the winner does not explain, if they come out in the same layout."""
    points: Counter[str] = Counter()
    for row in rest:
        for format in FORMATS.values():
            if format.layout != winner.layout or format.on_request or format.group or format is winner:
                continue
            if not format.marks or format.marked(row):
                points[format.name] += format.matches(row)
    return tuple(name for name, found in sorted(points.items(), key=lambda kv: (-kv[1], kv[0])) if found)


def _evidence(format: Format, rows: Sequence[Row]) -> list[str]:
    lines = []
    for path, shape in format.signature.items():
        count = sum(found and fits(value, shape) for found, value in (look(row, path) for row in rows))
        lines.append(f"{path}: {shape} in {count} of {plural(len(rows), 'row')}")
    lines += [
        f"{name}: present in {plural(n, 'row')}" for name in format.optional if (n := sum(name in row for row in rows))
    ]
    for path, shape in format.marks.items():
        count = sum(fits(look(row, path)[1], shape) for row in rows)
        lines.append(f"{path}: {shape} in {plural(count, 'row')}")
    if words := _role_words(format, rows):
        lines.append("roles: " + ", ".join(f"{word} {n}" for word, n in words.most_common(8)))
    return lines


def _role_words(format: Format, rows: Sequence[Row]) -> Counter[str]:
    path = format.columns.get("messages")
    words: Counter[str] = Counter()
    for row in rows:
        turns = look(row, path)[1] if path else None
        for turn in turns if isinstance(turns, list) else ():
            if isinstance(turn, dict):
                words[str(turn.get(format.turn.role, turn.get("role", turn.get("from"))))] += 1
    return words


def _keys(rows: Sequence[Row]) -> str:
    seen: dict[str, Any] = {}
    for row in rows:
        for key, value in row.items():
            seen.setdefault(key, value)
    return ", ".join(f"{key} ({shown(value, 30)})" for key, value in list(seen.items())[:12])


def _unknown(rows: Sequence[Row], path: str, target: Target | None, best: Sequence[str]) -> UnknownFormat:
    if not rows:
        return UnknownFormat(f"{path}: no row could be read, so no format can be told", "Name it with --format.")
    wanted = f" that can become {target}" if target else ""
    message = f"{path}: no known format{wanted} explains the rows. Their columns: {_keys(rows)}."
    near = [f"{n}: {', '.join(missing)}" for n, missing in _nearest(rows)]
    hint = f"Closest: {'; '.join(near)}. " if near else ""
    if len(rows) == 1 and (key := next(filter(str.isidentifier, _lists(rows[0])), "")):
        hint += f"If the rows are what lies in {key!r}, take them out: jq -c '.{key}[]' FILE > rows.jsonl. "
    if best:
        hint += f"{best[0]} explains some of the rows. "
    return UnknownFormat(
        message, hint + "Say what the columns mean with --map FILE (docs/add-a-format.md), or name a --format."
    )


def _lists(row: Row) -> Iterator[str]:
    """The columns of a row that are lists of objects."""
    return (key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict))


def _nearest(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Formats of which a row has at least half of the columns, and what is missing, misspelt or of another shape."""
    row = rows[0]
    near: list[tuple[int, bool, str, list[str]]] = []
    for format in FORMATS.values():
        lacks = []
        misspelt = 0
        for path, shape in format.signature.items():
            found, value = look(row, path)
            close = [] if found else get_close_matches(path, row.keys() - format.signature.keys(), 1, 0.8)
            if close and fits(row[close[0]], shape):
                lacks.append(f"column {path} is missing, did you mean it by {close[0]!r}?")
                misspelt += 1
            elif not found:
                lacks.append(f"column {path} is missing")
            elif not fits(value, shape):
                lacks.append(f"{path} is {shown(value, 30)} where {shape} is expected")
        present = len(format.signature) - sum("missing" in lack for lack in lacks) + misspelt
        if lacks and 2 * present >= len(format.signature) and present:
            near.append((len(lacks) - present, bool(format.marks), format.name, lacks))
    return [(name, lacks) for _, _, name, lacks in sorted(near)[:3]]


def _ambiguous(path: str, names: Sequence[str]) -> AmbiguousFormat:
    lines = []
    kinds: dict[str, Layout] = {}
    for name in names:
        format = FORMATS[name]
        kinds.setdefault(format.layout.kind, format.layout)
        lines.append(f"  --format {name:<24} {format.layout.name:<24} {format.doc}")
    asks = " or ".join(f"--to {kind}" for kind in kinds) if len(kinds) > 1 else ""
    hint = "Choose one:\n" + "\n".join(lines) + (f"\nor say what you want: {asks}" if asks else "")
    return AmbiguousFormat(f"{path}: {' and '.join(names)} explain the rows equally well.", hint)
