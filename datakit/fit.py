"""Fitting: what becomes of a row that is longer than the sequence it is trained in, and what that loses.

| policy       | a row over the limit                                                                         |
|--------------|----------------------------------------------------------------------------------------------|
| `error`      | is a finding; nothing is written                                                             |
| `drop`       | is set aside whole                                                                           |
| `keep_start` | keeps its first tokens: the end of the last answer is lost                                   |
| `keep_end`   | keeps its last tokens: the system prompt and the beginning-of-sequence token are lost        |
| `per_part`   | the prompt keeps its end and the answers keep their start                                    |
| `window`     | becomes several rows that each begin with its head and train other turns; no answer is cut   |

`error` is the default because each of the others changes what a model learns, and by how much differs from set to set.
`loss` counts it for every policy before anything is decided.

An answer that is cut does **not** get an end-of-turn token. One would teach the model to stop in the middle of a
sentence; without it the row teaches the words that are there, and nothing about stopping. Such rows are counted
(`Loss.last_cut`, `Answers.cut`).

`IGNORED` marks what is not trained. A causal model predicts each token from those before it, so the label of the very
first token is never used: a row whose only trained token stands there trains nothing, and `trains` says so.

Nothing here reads, writes or decides about a row that came out with nothing to train: that fact is returned.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datakit.errors import UsageError
from datakit.policies import ANSWER_POLICIES, CUTS, POLICIES, Cut, Policy
from datakit.schema import IGNORED

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Shares(NamedTuple):
    """How `per_part` divides the limit between prompt and answer where both together are too long.

    Attributes:
        answer: the share of the limit up to which the answer goes before the prompt.
        prompt_min: tokens of the prompt's end that are kept in any case.
    """

    answer: float = 0.75
    prompt_min: int = 64

    def answer_cap(self, limit: int) -> int:
        """Tokens that an answer may always have.

        Raises:
            UsageError: the shares leave no room for an answer.
        """
        if not 0 < self.answer <= 1:
            raise UsageError(
                f"an answer cannot have a share of {self.answer:g}", "Give a share above 0, and at most 1."
            )
        cap = min(int(self.answer * limit), limit - max(0, self.prompt_min))
        if cap < 1:
            raise UsageError(
                f"of {limit} tokens none are left for an answer (share {self.answer:g}, prompt_min {self.prompt_min})",
                "Take a longer --max-length, or a smaller prompt_min.",
            )
        return cap


SHARES: Final = Shares()


# One row


@dataclass(frozen=True, slots=True)
class Fit:
    """A row that fits.

    Attributes:
        input_ids: int32[tokens].
        labels: int32[tokens], `IGNORED` where nothing is trained.
        cut: tokens of the row that are gone.
    """

    input_ids: Ints
    labels: Ints
    cut: int = 0

    @property
    def trains(self) -> bool:
        """Whether a model learns anything from the row."""
        return bool((self.labels[1:] != IGNORED).any())


@dataclass(frozen=True, slots=True)
class Answers:
    """A prompt and its answers, each of which fits behind it.

    Attributes:
        prompt: int32[tokens], the same for all answers.
        answers: int32[tokens] each.
        prompt_cut: tokens of the prompt that are gone.
        cut: tokens gone from the end of each answer, with it the end-of-turn token.
        alike: whether two answers that were different have become equal, so that the row holds no preference.
    """

    prompt: Ints
    answers: list[Ints]
    prompt_cut: int
    cut: list[int]
    alike: bool

    @property
    def trains(self) -> bool:
        """Whether a model learns from every answer."""
        return all(len(answer) > (not len(self.prompt)) for answer in self.answers)


def cut(policy: Cut, input_ids: Ints, labels: Ints, limit: int, shares: Shares = SHARES) -> Fit:
    """Fit one sequence by keeping one stretch of it. For `per_part` the answer begins at the first trained token.

    Args:
        input_ids: int32[tokens].
        labels: int32[tokens].
        limit: tokens that fit.

    Raises:
        UsageError: the policy is none of `CUTS`, the limit is not positive, or the shares leave no room for an answer.
    """
    _require(policy, CUTS, limit)
    length = len(input_ids)
    if length <= limit:
        return Fit(input_ids, labels)
    trained = labels != IGNORED
    begin = int(trained.argmax()) if trained.any() else length
    first = int(_first(policy, begin, length - begin, limit, shares))
    kept = slice(first, first + limit)
    return Fit(input_ids[kept], labels[kept], length - len(input_ids[kept]))


def cut_answers(policy: Cut, prompt: Ints, answers: Sequence[Ints], limit: int, shares: Shares = SHARES) -> Answers:
    """Fit a prompt with one answer (KTO) or several (preference). The longest answer decides what the prompt keeps.

    Args:
        prompt: int32[tokens].
        answers: int32[tokens] each.
        limit: tokens that fit, prompt and one answer together.

    Raises:
        UsageError: as `cut`; and `keep_end`, which could begin in the middle of an answer.
    """
    _require(policy, tuple(p for p in CUTS if p in ANSWER_POLICIES), limit)
    begin, longest = len(prompt), max(map(len, answers))
    if begin + longest <= limit:
        return Answers(prompt, list(answers), 0, [0] * len(answers), False)
    first = int(_first(policy, begin, longest, limit, shares))
    kept_prompt = prompt[first : first + limit]
    kept = [answer[: limit - len(kept_prompt)] for answer in answers]
    return Answers(
        kept_prompt,
        kept,
        begin - len(kept_prompt),
        [len(was) - len(now) for was, now in zip(answers, kept, strict=True)],
        _distinct(kept) < _distinct(answers),
    )


def _distinct(answers: Sequence[Ints]) -> int:
    return len({answer.tobytes() for answer in answers})


def _first(policy: Policy, begin: Any, longest: Any, limit: int, shares: Shares) -> Any:
    """The first token that is kept, after which `limit` tokens fit; for integers and for arrays of them.

    Args:
        begin: where the answer begins.
        longest: tokens of the longest answer to the same prompt.
    """
    if policy == "keep_start":
        return 0 * begin
    if policy == "keep_end":
        return np.maximum(0, begin + longest - limit)
    answer = np.minimum(longest, np.maximum(shares.answer_cap(limit), limit - begin))
    return np.maximum(0, begin - (limit - answer))


def _require(policy: str, allowed: Sequence[str], limit: int) -> None:
    if policy not in allowed:
        raise UsageError(f"{policy!r} cannot be used here", f"Choose one of {', '.join(allowed)}.")
    if limit < 1:
        raise UsageError(f"rows of {limit} tokens are not possible", "Give --max-length as a positive number.")


# Windows


class Span(NamedTuple):
    """A window: the head of the row, and its tokens from `first` to `last`.

    Attributes:
        first: where the window's part of the body begins.
        last: where it ends.
        fresh: where the first turn begins that is trained here; those before it were trained in an earlier window.
    """

    first: int
    last: int
    fresh: int


class Stretch(NamedTuple):
    """Trained tokens of a row that no window can hold, with the turn they stand in: [first, last)."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Windows:
    """A row as windows.

    Attributes:
        head: tokens that every window begins with.
        spans: the windows, in order.
        lost: turns with trained tokens that are too long to stand behind the head.
    """

    head: int
    spans: list[Span]
    lost: list[Stretch]

    @property
    def cold(self) -> int:
        """Windows that train a turn without the turn before it, which was too long to be there."""
        return sum(span.first == span.fresh > self.head for span in self.spans)

    def rows(self, input_ids: Ints, labels: Ints) -> list[Fit]:
        """The windows of the row that this was planned for."""
        return [self._row(number, span, input_ids, labels) for number, span in enumerate(self.spans)]

    def _row(self, number: int, span: Span, input_ids: Ints, labels: Ints) -> Fit:
        first, last, fresh = span
        head = labels[: self.head] if number == 0 else np.full(self.head, IGNORED, np.int32)
        seen = np.full(fresh - first, IGNORED, np.int32)
        return Fit(
            np.concatenate((input_ids[: self.head], input_ids[first:last])),
            np.concatenate((head, seen, labels[fresh:last])),
            len(input_ids) - self.head - (last - first),
        )


def window(labels: Ints, turns: Sequence[int], fixed: int, limit: int, context: float = 0.5) -> Windows:
    """Cut a conversation between turns so that each trained turn is trained in exactly one window.

    Each window holds the head, new turns as far as they fit, and before them as many of the last turns as there is room
    for. It ends with a trained turn, since what follows one would be paid for and not used.

    Args:
        labels: int32[tokens] of the row.
        turns: where each turn begins, ascending; the role's header belongs to its turn. These are the places where a
            window may begin: to keep a tool's answer with its call, leave out the one between them.
        fixed: how many of the first turns (system, tools) are the head; tokens before the first turn belong to it too.
        limit: tokens that fit.
        context: the share of the room behind the head that is kept for turns trained before. With 0 the fewest tokens
            are trained on; the nearer to 1, the more of its past each answer sees, and the more often that is paid for.

    Raises:
        UsageError: the turns do not ascend inside the row, `fixed` is not a number of them, `context` is not a share
            below 1, or the limit is not positive.
    """
    _require("window", POLICIES, limit)
    edges, fixed = _edges(turns, len(labels), fixed, context)
    trained = np.concatenate(([0], np.cumsum(labels != IGNORED)))
    return _windows(edges, trained[edges], fixed, limit, context)


def _windows(edges: list[int], trained: Longs, fixed: int, limit: int, context: float) -> Windows:
    """The plan of one row.

    Args:
        edges: where each turn begins, the first at 0, and where the last ends.
        trained: trained tokens before each edge.
        fixed: turns in the head.
    """
    head, length = edges[fixed], edges[-1]
    if length <= limit:
        return Windows(head, [Span(head, length, head)], [])
    in_head, room = trained[fixed] > trained[0], limit - head
    lost = [Stretch(0, head)] if in_head and room < 0 else []
    targets = []
    for turn in np.flatnonzero(np.diff(trained[fixed:])).tolist():
        begin, end = edges[fixed + turn], edges[fixed + turn + 1]
        if end - begin > room:
            lost.append(Stretch(begin, end))
        else:
            targets.append(fixed + turn)
    spans = _spans(edges, targets, fixed, room, context)
    if not spans and in_head and room >= 0:
        spans = [Span(head, head, head)]  # the head alone, for the sake of what it trains
    return Windows(head, spans, lost)


def _spans(edges: list[int], targets: list[int], fixed: int, room: int, context: float) -> list[Span]:
    """Windows over the turns that can be trained, each of which fits the room alone."""
    spans: list[Span] = []
    done, seen = 0, fixed  # targets in earlier windows; the turn after the last of them
    while done < len(targets):
        back = max(fixed, bisect_left(edges, edges[seen] - int(context * room)))
        reach = bisect_right(edges, edges[back] + room) - 1
        until = max(done + 1, bisect_left(targets, reach))
        last = targets[until - 1] + 1
        first = max(fixed, bisect_left(edges, edges[last] - room))
        spans.append(Span(edges[first], edges[last], edges[targets[done]]))
        done, seen = until, last
    return spans


def _edges(turns: Sequence[int], length: int, fixed: int, context: float) -> tuple[list[int], int]:
    """Where each turn begins and the last ends, with what stands before the first as a fixed turn of its own."""
    edges = [*turns, length]
    if any(a >= b for a, b in pairwise(edges)) or edges[0] < 0:
        raise UsageError(
            f"turns {edges[:-1][:8]} do not ascend inside a row of {length} tokens",
            "Give the token at which each turn begins, in order; a turn has at least one token.",
        )
    if not 0 <= fixed <= len(turns):
        raise UsageError(f"{fixed} of {len(turns)} turns cannot be fixed", "Give how many turns stand at the head.")
    if not 0 <= context < 1:
        raise UsageError(f"a context of {context:g} is not a share", "Give a number from 0 to below 1, such as 0.5.")
    return (edges, fixed) if edges[0] == 0 else ([0, *edges], fixed + 1)


# What a policy loses


@dataclass(frozen=True, slots=True)
class Loss:
    """What a policy does to rows. Losses of several blocks, sources or workers add up.

    Attributes:
        rows: all rows.
        over: rows over the limit.
        dropped: rows that are not there at all; for `error` those that would be findings.
        cut: rows that have lost tokens; for `window` those that became other than one whole row.
        emptied: cut rows that are left with nothing to train in one of their sequences, and are to be set aside.
        last_cut: other cut rows whose last trained span is not whole, so that they do not teach how to end.
        rows_out: rows left, without dropped and emptied ones; for `window` the windows.
        tokens_out: their tokens.
        trained: trained tokens before.
        trained_lost: those that are in no row left.
    """

    rows: int = 0
    over: int = 0
    dropped: int = 0
    cut: int = 0
    emptied: int = 0
    last_cut: int = 0
    rows_out: int = 0
    tokens_out: int = 0
    trained: int = 0
    trained_lost: int = 0

    def __add__(self, other: Loss) -> Loss:
        return Loss(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def to_json(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class Turns:
    """Where the turns of many rows begin, for `window`.

    Attributes:
        begins: tokens into its row at which each turn begins, row after row, int64[turns].
        bounds: row r has the turns bounds[r] to bounds[r + 1], int64[rows + 1].
        fixed: turns at the head of each row, int64[rows].
    """

    begins: Longs
    bounds: Longs
    fixed: Longs


@dataclass(frozen=True, slots=True)
class Shapes:
    """What `loss` knows of many rows: lengths and places, no tokens.

    A row of a preference is two sequences, prompt with chosen and prompt with rejected; any other row is one.

    Attributes:
        lengths: tokens per sequence, int64[sequences].
        row: the row of each sequence, ascending, int64[sequences].
        source: the source of each row, int64[rows].
        owner: the sequence of each trained span, ascending, int64[spans].
        first: where in its sequence each trained span begins, int64[spans].
        last: where it ends, int64[spans].
        turns: where turns begin; None where nobody asked for windows.
    """

    lengths: Longs
    row: Longs
    source: Longs
    owner: Longs
    first: Longs
    last: Longs
    turns: Turns | None = None

    @classmethod
    def of_labels(
        cls, labels: ArrayLike, offsets: ArrayLike, source: ArrayLike | None = None, turns: Turns | None = None
    ) -> Shapes:
        """Shapes of rows with labels, as they lie in an Arrow list array.

        Args:
            labels: int32[tokens] of all rows, one after another.
            offsets: row r has the labels offsets[r] to offsets[r + 1].
            source: a number per row; all 0 if not given.
        """
        at = np.asarray(offsets, np.int64)
        mask = np.asarray(labels)[at[0] : at[-1]] != IGNORED
        at = at - at[0]
        rows = len(at) - 1
        border = np.zeros(len(mask) + 1, np.bool_)  # between tokens, where a span of labels cannot go on
        border[at] = True
        padded = np.concatenate(([False], mask, [False]))
        first = np.flatnonzero(mask & (border[:-1] | ~padded[:-2]))
        last = np.flatnonzero(mask & (border[1:] | ~padded[2:])) + 1
        owner = np.searchsorted(at, first, side="right") - 1
        begin = at[owner]
        return cls(np.diff(at), np.arange(rows), _sources(source, rows), owner, first - begin, last - begin, turns)

    @classmethod
    def of_answers(cls, prompts: ArrayLike, answers: ArrayLike, source: ArrayLike | None = None) -> Shapes:
        """Shapes of prompts with answers that are trained whole.

        Args:
            prompts: tokens of each prompt, int[rows].
            answers: tokens of each answer, int[rows, answers per row].
            source: a number per row; all 0 if not given.
        """
        per_row = np.asarray(answers, np.int64)
        count = per_row.shape[1]
        prompt, answer = np.repeat(np.asarray(prompts, np.int64), count), per_row.ravel()
        owner = np.flatnonzero(answer)
        return cls(
            prompt + answer,
            np.repeat(np.arange(len(per_row)), count),
            _sources(source, len(per_row)),
            owner,
            prompt[owner],
            (prompt + answer)[owner],
        )


def _sources(source: ArrayLike | None, rows: int) -> Longs:
    return np.zeros(rows, np.int64) if source is None else np.asarray(source, np.int64)


def loss(policy: Policy, shapes: Shapes, limit: int, shares: Shares = SHARES, context: float = 0.5) -> dict[int, Loss]:
    """What a policy would lose, per source.

    Args:
        shapes: the rows.
        limit: tokens that fit.
        shares: for `per_part`.
        context: for `window`.

    Raises:
        UsageError: as `cut` and `window`; for shapes without turns `window`, and for several answers per row what is
            not in `ANSWER_POLICIES`.
    """
    pairs = len(shapes.lengths) > len(shapes.source)
    _require(policy, ANSWER_POLICIES if pairs else POLICIES, limit)
    rows = len(shapes.source)
    over = _sum(shapes.row, shapes.lengths > limit, rows) > 0
    tokens = _sum(shapes.row, shapes.lengths, rows)
    trained: Any = _sum(shapes.row[shapes.owner], shapes.last - shapes.first, rows)
    if policy == "error" or policy == "drop":
        effect = _dropped(over, tokens, trained)
    elif policy == "window":
        effect = _windowed(shapes, over, trained, limit, context)
    else:
        effect = _cut(policy, shapes, over, limit, shares)
    counts = effect._asdict() | {"rows": np.ones(rows), "over": over, "trained": trained}
    counts["trained_lost"] = trained - counts.pop("kept")
    sources, group = np.unique(shapes.source, return_inverse=True)
    sums = {name: _sum(group, values, len(sources)).tolist() for name, values in counts.items()}
    return {source: Loss(**{name: sums[name][at] for name in sums}) for at, source in enumerate(sources.tolist())}


class _Effect(NamedTuple):
    """Per row, the counts of `Loss` that depend on the policy, and the trained tokens that are kept."""

    dropped: Any
    cut: Any
    emptied: Any
    last_cut: Any
    rows_out: Any
    tokens_out: Any
    kept: Any


def _dropped(over: Flags, tokens: Longs, trained: Longs) -> _Effect:
    nothing = np.zeros_like(over)
    return _Effect(over, nothing, nothing, nothing, ~over, tokens * ~over, trained * ~over)


def _cut(policy: Policy, shapes: Shapes, over: Flags, limit: int, shares: Shares) -> _Effect:
    rows, sequences, owner = len(over), len(shapes.lengths), shapes.owner
    begin = shapes.lengths.copy()
    begin[owner[::-1]] = shapes.first[::-1]  # of several spans the first is assigned last
    longest = np.zeros(rows, np.int64)
    np.maximum.at(longest, shapes.row, shapes.lengths - begin)
    first = np.where(over[shapes.row], _first(policy, begin, longest[shapes.row], limit, shares), 0)
    last = np.minimum(shapes.lengths, first + limit)

    ends = np.minimum(shapes.last, last[owner])
    kept = _sum(owner, np.maximum(0, ends - np.maximum(shapes.first, first[owner])), sequences)
    used = _sum(owner, np.maximum(0, ends - np.maximum(shapes.first, first[owner] + 1)), sequences)
    empty = over & (_sum(shapes.row, used == 0, rows) > 0)

    final = np.flatnonzero(np.diff(owner, append=sequences))  # the last span of each sequence that has one
    broken = (shapes.first < first[owner])[final] | (shapes.last > last[owner])[final]
    last_cut = _sum(shapes.row[owner[final]], broken, rows) > 0
    tokens = _sum(shapes.row, last - first, rows)
    return _Effect(
        np.zeros_like(over),
        over,
        empty,
        last_cut & ~empty,
        ~empty,
        tokens * ~empty,
        _sum(shapes.row, kept, rows) * ~empty,
    )


def _windowed(shapes: Shapes, over: Flags, trained: Longs, limit: int, context: float) -> _Effect:
    if shapes.turns is None:
        raise UsageError(
            "windows need to know where turns begin", "Choose another --truncation for rows without turns."
        )
    turns, before = shapes.turns, _trained_before(shapes)
    final = np.zeros(len(over), np.int64)
    final[shapes.owner] = shapes.last - 1  # the last trained token of each row
    last_cut = np.zeros_like(over)
    rows_out, tokens_out, kept = np.ones(len(over), np.int64), shapes.lengths.copy(), trained.copy()
    for row in np.flatnonzero(over).tolist():
        begins = turns.begins[turns.bounds[row] : turns.bounds[row + 1]].tolist()
        edges, fixed = _edges(begins, int(shapes.lengths[row]), int(turns.fixed[row]), context)
        seen = before(row, np.array(edges))
        plan = _windows(edges, seen, fixed, limit, context)
        rows_out[row] = len(plan.spans)
        tokens_out[row] = sum(plan.head + span.last - span.first for span in plan.spans)
        kept[row] -= sum(int(np.diff(before(row, np.array(stretch)))[0]) for stretch in plan.lost)
        last_cut[row] = any(stretch.first <= final[row] < stretch.last for stretch in plan.lost[-1:])
    empty = rows_out == 0
    return _Effect(np.zeros_like(over), over, empty, last_cut & ~empty, rows_out, tokens_out, kept)


def _trained_before(shapes: Shapes) -> Callable[[int, Longs], Longs]:
    """A function from a row and places in it to the trained tokens of all rows up to there."""
    begin = np.cumsum(shapes.lengths) - shapes.lengths
    first, last = begin[shapes.owner] + shapes.first, begin[shapes.owner] + shapes.last
    total = np.concatenate(([0], np.cumsum(last - first)))
    ends = np.concatenate(([0], last))

    def before(row: int, places: Longs) -> Longs:
        at = begin[row] + places
        spans = np.searchsorted(first, at)
        return total[spans] - np.maximum(0, ends[spans] - at)

    return before


def _sum(index: Longs, values: Any, size: int) -> Longs:
    """Sums of the values with each index; exact below 2^53."""
    return np.bincount(index, weights=values, minlength=size).astype(np.int64)
