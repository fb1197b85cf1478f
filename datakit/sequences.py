"""From encoded jobs to columns of token ids: labels, fitting to a length, packing.

The usual block has nothing to cut and nothing to set aside; then the arrays that the engine returned become the columns
without a copy per row. Any other block goes row by row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from datakit import fit, pack
from datakit.errors import UsageError
from datakit.findings import Finding
from datakit.labels import ByteSpan, Ids, Places, label, to_bytes
from datakit.policies import ANSWER_POLICIES, POLICIES, Cut, Policy, Strategy
from datakit.schema import ID, IGNORED, LENGTH, META, ROW, SOURCE, TRAINED, layout
from datakit.terminal import plural

if TYPE_CHECKING:
    from datakit.formatter import Formatter, _Block, _Row
    from datakit.jobs import Job, Text
    from datakit.step import Result

LOSSES = "loss"
"""Prefix of the counts from which the report makes its table of what each policy would lose."""


def finish(formatter: Formatter, rows: Sequence[_Row], state: _Block) -> Result:
    """The result of a block of jobs."""
    if not rows:
        return state.result({})
    if formatter.method.ids == "sft":
        return _Sequences(formatter, state).finish(rows)
    return _Answers(formatter, state).finish(rows)


@dataclass(slots=True)
class _Batch:
    """The sequences of a block, one after the other.

    Attributes:
        rows, texts: what they were made of.
        ids, labels: int32[tokens] of all.
        offsets: where each begins, and the end.
        starts: bytes into the texts joined at which each token begins.
        bases: bytes into the texts joined at which each text begins, and the end.
        trained: trained tokens of each.
        sizes: tokens of each.
    """

    rows: Sequence[_Row]
    texts: Sequence[Text]
    ids: Ids
    labels: Ids
    offsets: Places
    starts: Places
    bases: Places
    trained: Places
    sizes: Places = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = np.diff(self.offsets)

    def of(self, number: int) -> tuple[Ids, Ids]:
        """Ids and labels of one."""
        own = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return self.ids[own], self.labels[own]

    def turns(self, number: int) -> tuple[list[int], int]:
        """Tokens at which a window of one may begin, and how many stretches from the start belong to its head."""
        text, size = self.texts[number], int(self.sizes[number])
        starts = self.starts[self.offsets[number] : self.offsets[number + 1]] - self.bases[number]
        edges = [0]
        for place, _ in to_bytes(text.text, [(edge, edge) for edge in text.edges]):
            at = int(np.searchsorted(starts, place, "left"))
            if edges[-1] < at < size:
                edges.append(at)
        return edges, int(text.head > 0 and len(edges) > 1)

    def shapes(self, numbers: Sequence[int], limit: int) -> fit.Shapes:
        """What is needed to know the losses of some; turns are looked for where one is over the limit."""
        labels = [self.of(number)[1] for number in numbers]
        turns = [self.turns(number) if self.sizes[number] > limit else ([0], 0) for number in numbers]
        given = fit.Turns(
            np.array([at for own, _ in turns for at in own], np.int64),
            _bounds([len(own) for own, _ in turns]),
            np.array([fixed for _, fixed in turns], np.int64),
        )
        return fit.Shapes.of_labels(np.concatenate(labels), _bounds([len(own) for own in labels]), None, given)


class _Sequences:
    """One sequence with labels per row."""

    def __init__(self, formatter: Formatter, state: _Block) -> None:
        self.formatter, self.state, self.plan = formatter, state, formatter.plan
        tokenizer = formatter.encoder.tokenizer
        self.head = np.array(tokenizer.prefix, np.int32)
        self.tail = np.array(tokenizer.suffix, np.int32)

    def finish(self, rows: Sequence[_Row]) -> Result:
        batch, bad = self._labelled(rows)
        self._count_losses(batch)
        limit = self.plan.max_length
        bad |= {n: Finding("DK705", "", "it begins with the token twice") for n in self._two_beginnings(batch)}
        learns = batch.trained - (batch.labels[np.minimum(batch.offsets[:-1], len(batch.ids) - 1)] != IGNORED)
        if not bad and bool((learns > 0).all()) and (limit is None or int(batch.sizes.max()) <= limit):
            return self._whole(batch)
        return self._one_by_one(batch, bad)

    def _labelled(self, rows: Sequence[_Row]) -> tuple[_Batch, dict[int, Finding]]:
        """The tokens and labels of all rows, and those rows that cannot be labelled."""
        texts = [row.job.texts["text"] for row in rows]
        plain = [text.text for text in texts]
        ids, offsets = self.formatter.encoder.encode_flat(plain)
        starts, ends, bases = self.formatter.positions.of_batch(plain, ids, offsets)
        spans = [to_bytes(text.text, text.spans) for text in texts]
        labels, trained, straddling = label(ids, offsets, starts, ends, bases, spans)
        bad: dict[int, Finding] = {}
        if "steps" in rows[0].job.extra:
            labels, bad = _stepwise(spans, offsets, ends, bases, rows)
            trained = _trained_of(labels, offsets)
        for number in np.flatnonzero(straddling).tolist():
            note = Finding("DK713", "", f"{plural(int(straddling[number]), 'token')} over the border of a span")
            self.state.see(rows[number].place, [note])
        batch = _Batch(rows, texts, ids, labels, offsets, starts, bases, trained)
        return (self._surrounded(batch) if texts[0].special else batch), bad

    def _surrounded(self, batch: _Batch) -> _Batch:
        """With the tokens that the tokenizer puts around a text; trained where the text is trained to that side."""
        head, tail, offsets = self.head, self.tail, batch.offsets
        if not len(head) and not len(tail):
            return batch
        rows = len(batch.rows)
        places = np.hstack((np.repeat(offsets[:-1, None], len(head), 1), np.repeat(offsets[1:, None], len(tail), 1)))
        ids = np.tile(np.concatenate((head, tail)), rows)
        plain = ["steps" not in row.job.extra for row in batch.rows]
        first = [ok and bool(text.spans) and text.spans[0][0] == 0 for ok, text in zip(plain, batch.texts, strict=True)]
        last = [
            ok and bool(text.spans) and text.spans[-1][1] == len(text.text)
            for ok, text in zip(plain, batch.texts, strict=True)
        ]
        wanted = np.hstack(
            (np.repeat(np.array(first)[:, None], len(head), 1), np.repeat(np.array(last)[:, None], len(tail), 1))
        )
        edges = np.hstack(
            (np.repeat(batch.bases[:-1, None], len(head), 1), np.repeat(batch.bases[1:, None], len(tail), 1))
        )
        labels = np.insert(batch.labels, places.ravel(), np.where(wanted.ravel(), ids, np.int32(IGNORED)))
        offsets = offsets + np.arange(rows + 1) * (len(head) + len(tail))
        return _Batch(
            batch.rows,
            batch.texts,
            np.insert(batch.ids, places.ravel(), ids),
            labels,
            offsets,
            np.insert(batch.starts, places.ravel(), edges.ravel()),
            batch.bases,
            _trained_of(labels, offsets),
        )

    def _two_beginnings(self, batch: _Batch) -> list[int]:
        """Rows whose first two tokens are both the beginning of a sequence."""
        bos, ids, last = self.formatter.bos_id, batch.ids, len(batch.ids) - 1
        if bos is None:
            return []
        begins = batch.offsets[:-1]
        twice = (ids[np.minimum(begins, last)] == bos) & (ids[np.minimum(begins + 1, last)] == bos)
        return np.flatnonzero(twice & (batch.sizes > 1)).tolist()

    def _whole(self, batch: _Batch) -> Result:
        rows = batch.rows
        columns = {
            "input_ids": pack.lists(batch.offsets, batch.ids),
            "labels": pack.lists(batch.offsets, batch.labels),
            LENGTH: pa.array(batch.sizes.astype(np.int32)),
            TRAINED: pa.array(batch.trained.astype(np.int32)),
            **self._origins(rows),
        }
        self._count_supervised(rows, batch.sizes, batch.trained)
        if not self.plan.pack:
            self.state.keep(1, len(rows))
        return self._packed(columns, len(rows))

    def _origins(self, rows: Sequence[_Row]) -> dict[str, list[Any]]:
        """The columns that say where rows came from."""
        places = {SOURCE: [row.place[0] for row in rows], ROW: [row.place[1] for row in rows]}
        return places | {name: [row.raw.get(name) for row in rows] for name in (ID, *self.plan.kept)}

    def _one_by_one(self, batch: _Batch, bad: Mapping[int, Finding]) -> Result:
        made: list[tuple[fit.Fit, _Row]] = []
        used = 0
        for number, row in enumerate(batch.rows):
            if number in bad:
                self.state.reject(row.place, row.raw, [bad[number]])
                continue
            pieces = self._fitted(batch, number)
            if pieces is None:
                continue
            if not self.plan.pack:
                self.state.keep(len(pieces))
            used += 1
            made += [(piece, row) for piece in pieces]
        origins = [row for _, row in made]
        sizes = np.array([len(piece.input_ids) for piece, _ in made], np.int32)
        trained = np.array([_trained(piece.labels) for piece, _ in made], np.int32)
        self._count_supervised(origins, sizes, trained)
        bounds = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))).astype(np.int64)
        empty = np.empty(0, np.int32)
        labels = np.concatenate([empty, *(piece.labels for piece, _ in made)])
        columns = {
            "input_ids": pack.lists(bounds, np.concatenate([empty, *(piece.input_ids for piece, _ in made)])),
            "labels": pack.lists(bounds, labels),
            LENGTH: pa.array(sizes),
            TRAINED: pa.array(trained),
            **self._origins(origins),
        }
        return self._packed(columns, used)

    def _fitted(self, batch: _Batch, number: int) -> list[fit.Fit] | None:
        """The row within the limit, or None where it was set aside."""
        row, ids, labels = batch.rows[number], *batch.of(number)
        limit, policy = self.plan.max_length, self.plan.truncation
        pieces = [fit.Fit(ids, labels)]
        if limit is not None and len(ids) > limit and self.plan.pack not in ("bfd_split", "wrapped"):
            if policy in ("error", "drop"):
                self.state.reject(row.place, row.raw, [Finding("DK702", "", f"{len(ids)} tokens, over {limit}")])
                return None
            if policy == "window":
                pieces, note = _windows(ids, labels, *batch.turns(number), limit)
            else:
                pieces = [fit.cut(cast(Cut, policy), ids, labels, limit)]
                gone = _trained(labels) - _trained(pieces[0].labels)
                note = f"{len(ids)} tokens cut to {limit}; {gone} trained ones are gone"
            self.state.see(row.place, [Finding("DK714", "", note)])
        kept = [piece for piece in pieces if piece.trains]
        if not kept:
            short = "" if len(pieces) == 1 and not pieces[0].cut else " after it was cut"
            self.state.reject(row.place, row.raw, [Finding("DK704", "", f"no token is trained{short}")])
            return None
        return kept

    def _packed(self, columns: dict[str, Any], used: int) -> Result:
        if not self.plan.pack:
            return self.state.result(columns)
        limit = self.plan.max_length
        assert limit is not None
        table = pa.table({name: columns[name] for name in ("input_ids", "labels")})
        packed = pack.pack(table, limit, cast(Strategy, self.plan.pack)).combine_chunks()
        arrays: dict[str, Any] = {
            name: packed[name].chunk(0) if packed.num_rows else [] for name in packed.column_names
        }
        tally = self.state.tally
        tally.merged += used
        tally.groups += packed.num_rows
        tally.rows_out += packed.num_rows
        if packed.num_rows:
            tally.fanout["1"] += packed.num_rows
            trained = _trained_of(np.asarray(arrays["labels"].values), np.asarray(arrays["labels"].offsets))
            arrays[TRAINED] = pa.array(trained.astype(np.int32))
            arrays[LENGTH] = pa.array(np.diff(np.asarray(arrays["input_ids"].offsets)).astype(np.int32))
        else:
            arrays |= {LENGTH: [], TRAINED: []}
        return self.state.result(arrays)

    def _count_losses(self, batch: _Batch) -> None:
        """By source, what each policy would lose where a limit was given."""
        limit = self.plan.max_length
        for source, numbers in _by_source(batch.rows).items() if limit is not None else ():
            shapes = batch.shapes(numbers, cast(int, limit))
            _count_losses(self.state.tally.counts, source, shapes, cast(int, limit), POLICIES)

    def _count_supervised(self, rows: Sequence[_Row], sizes: Places, trained: Places) -> None:
        """By source, the tokens of rows that are written, and those of them that are trained."""
        for source, numbers in _by_source(rows).items():
            self.state.tally.counts[f"tokens {source}"] += int(sizes[numbers].sum())
            self.state.tally.counts[f"trained {source}"] += int(trained[numbers].sum())


def _by_source(rows: Sequence[_Row]) -> dict[str, list[int]]:
    """The numbers of rows by the source that they come from."""
    numbers: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        numbers.setdefault(row.place[0], []).append(number)
    return numbers


class _Answers:
    """A prompt and its answers, or whole conversations, as ids."""

    def __init__(self, formatter: Formatter, state: _Block) -> None:
        self.formatter, self.state, self.plan = formatter, state, formatter.plan
        tokenizer = formatter.encoder.tokenizer
        self.head = np.array(tokenizer.prefix, np.int32)
        self.tail = np.array(tokenizer.suffix, np.int32)
        self.lengths: dict[str, list[list[int]]] = {}
        """By source, the tokens of each row's prompt and of its answers."""

    def finish(self, rows: Sequence[_Row]) -> Result:
        texts = [text for row in rows for text in row.job.texts.values()]
        encoded = self.formatter.encoder.encode([text.text for text in texts])
        renamed = {column.name for column in self.plan.layout.columns}
        ids = [column.name for column in layout("tokenized", self.formatter.method.ids).columns]
        others = [field.name for field in self.plan.schema() if field.name not in renamed]
        columns: dict[str, list[Any]] = {name: [] for name in (*ids, *others, TRAINED)}
        at = 0
        for row in rows:
            count = len(row.job.texts)
            own = dict(zip(row.job.texts, encoded[at : at + count], strict=True))
            at += count
            values = self._values(row, own)
            if values is None:
                continue
            values |= {**row.origin(self.plan.kept), **row.job.extra}
            if "margin" in columns:
                values["margin"] = _margin(row.raw)
            for name, column in columns.items():
                column.append(values.get(name))
            self.state.keep(1)
        self._count()
        return self.state.result(columns)

    def _count(self) -> None:
        """What each policy would lose where a limit was given."""
        limit = self.plan.max_length
        policies = ANSWER_POLICIES if self.formatter.method.ids != "reward" else ("error", "drop")
        for source, lengths in self.lengths.items() if limit is not None else ():
            sizes = np.array(lengths, np.int64)
            shapes = fit.Shapes.of_answers(sizes[:, 0], sizes[:, 1:])
            _count_losses(self.state.tally.counts, source, shapes, cast(int, limit), policies)

    def _values(self, row: _Row, own: dict[str, Ids]) -> dict[str, Any] | None:
        ids = {name: self._around(row.job, name, value) for name, value in own.items()}
        whole = [value for name, value in ids.items() if name != "prompt"]
        self.state.tally.counts[f"tokens {row.place[0]}"] += sum(map(len, whole))
        bos = self.formatter.bos_id
        if any(len(value) > 1 and value[0] == value[1] == bos for value in whole):
            self.state.reject(row.place, row.raw, [Finding("DK705", "", "it begins with the token twice")])
            return None
        if "prompt" not in ids:
            self._seen(row, 0, whole)
            longest = max(map(len, whole))
            if not self.state.fits(row.place, row.raw, longest):
                return None
            return {**{f"{name}_ids": value for name, value in ids.items()}, LENGTH: longest, TRAINED: longest}
        shared = min(_shared(ids["prompt"], value) for value in whole)
        if shared < len(ids["prompt"]) and not any(note.id == "DK708" for note in row.job.notes):
            self.state.see(row.place, [Finding("DK708", "", "its last tokens join with the answer's first")])
        prompt, answers = ids["prompt"][:shared], [value[shared:] for value in whole]
        if not all(map(len, answers)) or (not shared and any(len(a) < 2 for a in answers)):
            self.state.reject(row.place, row.raw, [Finding("DK704", "", "an answer has no token of its own")])
            return None
        self._seen(row, shared, answers)
        limit = self.plan.max_length
        longest = shared + max(map(len, answers))
        if limit is not None and longest > limit:
            if self.plan.truncation in ("error", "drop"):
                self.state.fits(row.place, row.raw, longest)
                return None
            done = fit.cut_answers(cast(Cut, self.plan.truncation), prompt, answers, limit)
            if not done.trains or done.alike:
                why = "the answers are equal" if done.alike else "an answer has no token left"
                self.state.reject(row.place, row.raw, [Finding("DK704", "", f"{why} after they were cut")])
                return None
            note = f"{longest} tokens cut to {limit}: {done.prompt_cut} of the prompt, {sum(done.cut)} of answers"
            self.state.see(row.place, [Finding("DK714", "", note)])
            prompt, answers = done.prompt, done.answers
            longest = len(prompt) + max(map(len, answers))
        names = [f"{name}_ids" for name in ids if name != "prompt"]
        return {
            "prompt_ids": prompt,
            **dict(zip(names, answers, strict=True)),
            LENGTH: longest,
            TRAINED: sum(map(len, answers)),
        }

    def _seen(self, row: _Row, prompt: int, answers: Sequence[Ids]) -> None:
        sizes = [len(answer) for answer in answers]
        self.state.tally.counts[f"trained {row.place[0]}"] += sum(sizes)
        self.lengths.setdefault(row.place[0], []).append([prompt, *sizes])

    def _around(self, job: Job, name: str, ids: Ids) -> Ids:
        """With the tokens that the tokenizer puts around a text; what it puts behind comes after the answer only."""
        if not job.texts[name].special:
            return ids
        return np.concatenate((self.head, ids) if name == "prompt" else (self.head, ids, self.tail))


def _shared(a: Ids, b: Ids) -> int:
    """Tokens that two sequences begin with."""
    size = min(len(a), len(b))
    differing = np.flatnonzero(a[:size] != b[:size])
    return int(differing[0]) if len(differing) else size


def _margin(raw: Mapping[str, Any]) -> float:
    """By how much the preferred answer is better; 0 where a row does not say, which changes no loss."""
    value = raw.get("margin")
    if value is None:
        value = (raw.get(META) or {}).get("margin")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _bounds(sizes: Sequence[int]) -> Places:
    """Where stretches of these sizes begin, one after the other, and where the last ends."""
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))).astype(np.int64)


def _trained_of(labels: Ids, offsets: Places) -> Places:
    """Trained tokens of each sequence."""
    return np.diff(np.concatenate(([0], np.cumsum(labels != IGNORED)))[offsets])


def _trained(labels: Ids) -> int:
    return int((labels != IGNORED).sum())


def _windows(ids: Ids, labels: Ids, turns: Sequence[int], fixed: int, limit: int) -> tuple[list[fit.Fit], str]:
    """A row as windows, and what has to be said about them."""
    windows = fit.window(labels, turns, fixed, limit)
    pieces = windows.rows(ids, labels)
    note = f"{len(ids)} tokens became {plural(len(pieces), 'window')}"
    if windows.lost:
        gone = sum(_trained(labels[lost.first : lost.last]) for lost in windows.lost)
        note += f"; {plural(len(windows.lost), 'turn')} with {gone} trained tokens too long for one"
    idle = [piece for piece in pieces if not piece.trains]
    if idle:
        gone = sum(_trained(piece.labels) for piece in idle)
        note += f"; {plural(len(idle), 'window')} left out, whose {gone} trained tokens are predicted from nothing"
    return pieces, note


def _count_losses(
    counts: Counter[str], source: str, shapes: fit.Shapes, limit: int, policies: Sequence[Policy]
) -> None:
    """What each policy would lose of some rows of one source."""
    counts[f"{LOSSES} rows {source}"] += len(shapes.source)
    for policy in policies:
        try:
            lost = fit.loss(policy, shapes, limit)[0].to_json()
        except UsageError:
            continue  # the limit has no room for what this policy keeps
        for name, value in lost.items():
            if name != "rows":
                counts[f"{LOSSES} {policy} {name} {source}"] += value


def _stepwise(
    marks: Sequence[Sequence[ByteSpan]], offsets: Places, ends: Places, bases: Places, rows: Sequence[_Row]
) -> tuple[Ids, dict[int, Finding]]:
    """The labels of steps, each at the token of the line feed behind it; and rows where two steps share one."""
    labels = np.full(int(offsets[-1]), IGNORED, np.int32)
    bad: dict[int, Finding] = {}
    for number, row in enumerate(rows):
        begin, end = int(offsets[number]), int(offsets[number + 1])
        breaks = [int(bases[number]) + mark for mark, _ in marks[number]]
        places = begin + np.searchsorted(ends[begin:end], breaks, "right")
        if len(set(places.tolist())) < len(places):
            bad[number] = Finding("DK710", "completions", "two steps end in one token, which can have one label")
        else:
            labels[places] = np.array(row.job.extra["steps"], np.int32)
    return labels, bad
