"""From encoded jobs to columns of token ids: labels, fitting to a length, packing.

The usual block has nothing to cut and nothing to set aside; then the arrays that the engine returned become the columns
without a copy per row. Any other block goes row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from datakit import fit, pack
from datakit.findings import Finding
from datakit.labels import IGNORED, Ids, Labelled, Places, label, to_bytes
from datakit.schema import ID, LENGTH, META, ROW, SOURCE, TRAINED

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


class _Sequences:
    """One sequence with labels per row."""

    def __init__(self, formatter: Formatter, state: _Block) -> None:
        self.formatter, self.state, self.plan = formatter, state, formatter.plan
        tokenizer = formatter.encoder.tokenizer
        self.head = np.array(tokenizer.prefix, np.int32)
        self.tail = np.array(tokenizer.suffix, np.int32)

    def finish(self, rows: Sequence[_Row]) -> Result:
        texts = [row.job.texts["text"] for row in rows]
        plain = [text.text for text in texts]
        ids, offsets = self.formatter.encoder.encode_flat(plain)
        starts, ends = self.formatter.positions.of_batch(plain, ids, offsets)
        done = label(ids, offsets, starts, ends, [to_bytes(text.text, text.spans) for text in texts])
        if "steps" in rows[0].job.extra:
            done = _stepwise(done, offsets, rows)
        for number in np.flatnonzero(done.straddling).tolist():
            note = Finding("DK713", "", f"{done.straddling[number]} tokens reach over the border of a span")
            self.state.see(rows[number].place, [note])
        around = texts[0].special and (len(self.head) or len(self.tail))
        sizes = np.diff(offsets)
        limit = self.plan.max_length
        self._count(rows, done, offsets, starts, texts)
        usual = not around and (limit is None or not len(sizes) or int(sizes.max()) <= limit)
        firsts = done.labels[np.minimum(offsets[:-1], max(len(ids) - 1, 0))] != IGNORED
        if usual and bool((done.trained - firsts > 0).all()) and not self._two_beginnings(ids, offsets).any():
            return self._whole(rows, ids, done, offsets)
        return self._one_by_one(rows, texts, ids, done, offsets, starts)

    def _two_beginnings(self, ids: Ids, offsets: Places) -> Any:
        """Rows whose first two tokens are both the beginning of a sequence."""
        bos = self.formatter.bos_id
        sizes = np.diff(offsets)
        if bos is None or not len(ids):
            return np.zeros(len(sizes), bool)
        first, second = ids[np.minimum(offsets[:-1], len(ids) - 1)], ids[np.minimum(offsets[:-1] + 1, len(ids) - 1)]
        return (sizes > 1) & (first == bos) & (second == bos)

    def _whole(self, rows: Sequence[_Row], ids: Ids, done: Labelled, offsets: Places) -> Result:
        columns = {
            "input_ids": _lists(ids, offsets),
            "labels": _lists(done.labels, offsets),
            LENGTH: pa.array(np.diff(offsets).astype(np.int32)),
            TRAINED: pa.array(done.trained.astype(np.int32)),
            ID: [row.raw.get(ID) for row in rows],
            SOURCE: [row.place[0] for row in rows],
            ROW: [row.place[1] for row in rows],
        }
        tally = self.state.tally
        if not self.plan.pack:
            tally.single += len(rows)
            tally.rows_out += len(rows)
            tally.fanout["1"] += len(rows)
        return self._packed(columns, len(rows))

    def _one_by_one(
        self,
        rows: Sequence[_Row],
        texts: Sequence[Text],
        ids: Ids,
        done: Labelled,
        offsets: Places,
        starts: Places,
    ) -> Result:
        double = self._two_beginnings(ids, offsets)
        made: list[tuple[fit.Fit, _Row]] = []
        used = 0
        for number, row in enumerate(rows):
            begin, end = int(offsets[number]), int(offsets[number + 1])
            own, labels = ids[begin:end], done.labels[begin:end]
            text = texts[number]
            if text.special and (len(self.head) or len(self.tail)):
                own, labels = self._surrounded(own, labels, text)
            if double[number] or (len(own) > 1 and own[0] == own[1] == self.formatter.bos_id):
                self.state.reject(row.place, row.raw, [Finding("DK705", "", "it begins with the token twice")])
                continue
            pieces = self._fitted(row, own, labels, text, starts[begin:end])
            if pieces is None:
                continue
            if not self.plan.pack:
                self.state.keep(row.place, len(pieces))
            used += 1
            made += [(piece, row) for piece in pieces]
        sizes = [len(piece.input_ids) for piece, _ in made]
        bounds = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))).astype(np.int64)
        empty = np.empty(0, np.int32)
        labels = np.concatenate([empty, *(piece.labels for piece, _ in made)])
        columns = {
            "input_ids": _lists(np.concatenate([empty, *(piece.input_ids for piece, _ in made)]), bounds),
            "labels": _lists(labels, bounds),
            LENGTH: pa.array(np.array(sizes, np.int32)),
            TRAINED: pa.array(np.array([int((piece.labels != IGNORED).sum()) for piece, _ in made], np.int32)),
            ID: [row.raw.get(ID) for _, row in made],
            SOURCE: [row.place[0] for _, row in made],
            ROW: [row.place[1] for _, row in made],
        }
        return self._packed(columns, used)

    def _surrounded(self, ids: Ids, labels: Ids, text: Text) -> tuple[Ids, Ids]:
        """With the tokens that a tokenizer puts around a text; trained where the text is to that side."""
        everything = text.spans == [(0, len(text.text))]
        first = self.head if everything else np.full(len(self.head), IGNORED, np.int32)
        return np.concatenate((self.head, ids, self.tail)), np.concatenate((first, labels, self.tail))

    def _fitted(self, row: _Row, ids: Ids, labels: Ids, text: Text, starts: Places) -> list[fit.Fit] | None:
        """The row within the limit, or None where it was set aside."""
        limit, policy = self.plan.max_length, self.plan.truncation
        pieces = [fit.Fit(ids, labels)]
        if limit is not None and len(ids) > limit and self.plan.pack not in ("bfd_split", "wrapped"):
            if policy in ("error", "drop"):
                self.state.reject(row.place, row.raw, [Finding("DK702", "", f"{len(ids)} tokens, over {limit}")])
                return None
            if policy == "window":
                windows = fit.window(labels, *_turns(text, starts, len(ids)), limit)
                pieces = windows.rows(ids, labels)
                note = f"{len(ids)} tokens became {len(pieces)} windows"
                if windows.lost:
                    gone = sum(int((labels[lost.first : lost.last] != IGNORED).sum()) for lost in windows.lost)
                    note += f"; {len(windows.lost)} turns with {gone} trained tokens are too long for one"
            else:
                pieces = [fit.cut(cast(fit.Cut, policy), ids, labels, limit)]
                gone = int((labels != IGNORED).sum()) - int((pieces[0].labels != IGNORED).sum())
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
        packed = pack.pack(table, limit, cast(pack.Strategy, self.plan.pack)).combine_chunks()
        arrays = {name: packed[name].chunk(0) if packed.num_rows else [] for name in packed.column_names}
        tally = self.state.tally
        tally.merged += used
        tally.groups += packed.num_rows
        tally.rows_out += packed.num_rows
        if packed.num_rows:
            tally.fanout["1"] += packed.num_rows
            flat = np.asarray(arrays["labels"].values) != IGNORED
            total = np.concatenate(([0], np.cumsum(flat)))[np.asarray(arrays["labels"].offsets)]
            arrays[TRAINED] = pa.array(np.diff(total).astype(np.int32))
            arrays[LENGTH] = pa.array(np.diff(np.asarray(arrays["input_ids"].offsets)).astype(np.int32))
        else:
            arrays |= {LENGTH: [], TRAINED: []}
        return self.state.result(arrays)

    def _count(
        self, rows: Sequence[_Row], done: Labelled, offsets: Places, starts: Places, texts: Sequence[Text]
    ) -> None:
        """Supervised tokens by source, and what each policy would lose where a limit was given."""
        counts = self.state.tally.counts
        sizes = np.diff(offsets)
        by_source: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            by_source.setdefault(row.place[0], []).append(number)
        for source, numbers in by_source.items():
            counts[f"tokens {source}"] += int(sizes[numbers].sum())
            counts[f"trained {source}"] += int(done.trained[numbers].sum())
        limit = self.plan.max_length
        if limit is None or not len(sizes) or int(sizes.max()) <= limit:
            for source, numbers in by_source.items():
                counts[f"{LOSSES} rows {source}"] += len(numbers)
            return
        for source, numbers in by_source.items():
            self._losses(source, numbers, done, offsets, starts, texts, limit)

    def _losses(
        self,
        source: str,
        numbers: Sequence[int],
        done: Labelled,
        offsets: Places,
        starts: Places,
        texts: Sequence[Text],
        limit: int,
    ) -> None:
        parts = [done.labels[offsets[n] : offsets[n + 1]] for n in numbers]
        bounds = np.concatenate(([0], np.cumsum([len(part) for part in parts])))
        turns = [
            _turns(texts[n], starts[offsets[n] : offsets[n + 1]], int(offsets[n + 1] - offsets[n])) for n in numbers
        ]
        begins = np.array([at for own, _ in turns for at in own], np.int64)
        edges = np.concatenate(([0], np.cumsum([len(own) for own, _ in turns]))).astype(np.int64)
        given = fit.Turns(begins, edges, np.array([fixed for _, fixed in turns], np.int64))
        shapes = fit.Shapes.of_labels(np.concatenate(parts), bounds, None, given)
        counts = self.state.tally.counts
        counts[f"{LOSSES} rows {source}"] += len(numbers)
        for policy in fit.POLICIES:
            for lost in fit.loss(policy, shapes, limit).values():
                for name, value in lost.to_json().items():
                    if name != "rows":
                        counts[f"{LOSSES} {policy} {name} {source}"] += value


class _Answers:
    """A prompt and its answers, or whole conversations, as ids."""

    def __init__(self, formatter: Formatter, state: _Block) -> None:
        self.formatter, self.state, self.plan = formatter, state, formatter.plan
        tokenizer = formatter.encoder.tokenizer
        self.head = np.array(tokenizer.prefix, np.int32)
        self.tail = np.array(tokenizer.suffix, np.int32)

    def finish(self, rows: Sequence[_Row]) -> Result:
        texts = [text for row in rows for text in row.job.texts.values()]
        encoded = self.formatter.encoder.encode([text.text for text in texts])
        columns: dict[str, list[Any]] = {item.name: [] for item in self.plan.schema()} | {TRAINED: []}
        at = 0
        for row in rows:
            count = len(row.job.texts)
            own = dict(zip(row.job.texts, encoded[at : at + count], strict=True))
            at += count
            values = self._values(row, own)
            if values is None:
                continue
            values |= {ID: row.raw.get(ID), SOURCE: row.place[0], ROW: row.place[1], **row.job.extra}
            if "margin" in columns:
                values["margin"] = _margin(row.raw.get(META))
            for name, column in columns.items():
                column.append(values.get(name))
            self.state.keep(row.place, 1)
        return self.state.result(columns)

    def _values(self, row: _Row, own: dict[str, Ids]) -> dict[str, Any] | None:
        ids = {name: self._around(row.job, name, value) for name, value in own.items()}
        whole = [value for name, value in ids.items() if name != "prompt"]
        counts = self.state.tally.counts
        counts[f"tokens {row.place[0]}"] += sum(map(len, whole))
        bos = self.formatter.bos_id
        if any(len(value) > 1 and value[0] == value[1] == bos for value in whole):
            self.state.reject(row.place, row.raw, [Finding("DK705", "", "it begins with the token twice")])
            return None
        if "prompt" not in ids:
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
        limit = self.plan.max_length
        longest = shared + max(map(len, answers))
        counts[f"trained {row.place[0]}"] += sum(map(len, answers))
        if limit is not None and longest > limit:
            if self.plan.truncation in ("error", "drop"):
                self.state.fits(row.place, row.raw, longest)
                return None
            done = fit.cut_answers(cast(fit.Cut, self.plan.truncation), prompt, answers, limit)
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

    def _around(self, job: Job, name: str, ids: Ids) -> Ids:
        if not job.texts[name].special:
            return ids
        return np.concatenate((self.head, ids, self.tail))


def _lists(values: Ids, offsets: Places) -> Any:
    array: Any = pa.ListArray
    return array.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _shared(a: Ids, b: Ids) -> int:
    """Tokens that two sequences begin with."""
    size = min(len(a), len(b))
    differing = np.flatnonzero(a[:size] != b[:size])
    return int(differing[0]) if len(differing) else size


def _margin(meta: Any) -> float | None:
    value = meta.get("margin") if isinstance(meta, dict) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _turns(text: Text, starts: Places, size: int) -> tuple[list[int], int]:
    """Tokens at which a window may begin, and how many stretches from the start belong to its head."""
    edges = [0]
    for place, _ in to_bytes(text.text, [(edge, edge) for edge in text.edges]):
        at = int(np.searchsorted(starts, place, "left"))
        if edges[-1] < at < size:
            edges.append(at)
    fixed = int(text.head > 0 and len(edges) > 1)
    return edges, fixed


def _stepwise(done: Labelled, offsets: Places, rows: Sequence[_Row]) -> Labelled:
    """The labels of steps, at the token behind each."""
    labels = np.full(len(done.labels), IGNORED, np.int32)
    for number, row in enumerate(rows):
        begin, end = offsets[number], offsets[number + 1]
        places = np.flatnonzero(done.labels[begin:end] != IGNORED) + begin
        last = places[np.append(np.diff(places) > 1, True)] if len(places) else places
        steps = row.job.extra["steps"]
        labels[last[: len(steps)]] = np.array(steps[: len(last)], np.int32)
    return Labelled(labels, done.trained, done.straddling)
