"""The format step: a block of canonical rows to token ids and labels; pure, with plain parameters.

Rows become jobs one by one (`jobs`); the texts of all jobs are then encoded, placed and labelled together, because
engines and arrays are fast on many and slow on few. A row that cannot go on becomes a reject with its reason.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa

from datakit.checks import CHECKS
from datakit.errors import UsageError
from datakit.findings import BadRow, Finding, decisive
from datakit.methods import EASYDEL, METHODS
from datakit.reading.blocks import Block
from datakit.reading.columnar import layout_of, plain_rows, read_batches
from datakit.schema import ARROW, ID, LENGTH, OPTIONAL, ROW, SOURCE, TRAINED, Layout, Type, layout
from datakit.step import Result, SourcePlan
from datakit.tally import Tally
from datakit.terminal import plural
from datakit.tokens.load import Tokenizer

if TYPE_CHECKING:
    from datakit.jobs import Job, Text

MARGIN: Final = "margin"
"""The column of a reward trainer that says by how much the preferred answer is better."""

SECONDS: Final = 20.0
"""Time that a look at sampled rows may take."""
LETTERS: Final = 1 << 18
"""Characters on which engines are compared, about."""
PLACES: Final = 4
"""Places in the data that are looked at; each costs the reading of a row group."""


@dataclass(frozen=True, slots=True)
class FormatStep:
    """The parameters of the step; plain JSON through `to_json`.

    Attributes:
        sources: by the number that blocks carry.
        kind, form, conversational: the layout of the input.
        method: see `methods`.
        tokenizer: what `tokens.load` gave.
        template, tool_template, twin: chat templates; the twin prints the same text with generation marks.
        max_length, truncation: see `fit`.
        pack: strategy, or None.
        train_on, leave_out: see `jobs`.
        control_tokens: error, escape, quarantine or allow.
        now: the pinned time in ISO form, or None.
        render_only: texts instead of ids.
        side, optional: extra columns of the input.
        kept: columns of the input that say where its rows came from, besides those that all shards have.
        verdict: which engine encodes, and what was compared.
        severities: check id -> severity.
        encode: False where only lengths are wanted.
        columns: trl, or easydel for the names that its trainers read.
    """

    sources: Sequence[SourcePlan]
    kind: str
    form: str
    conversational: bool
    method: str
    tokenizer: Mapping[str, Any]
    template: str | None = None
    tool_template: str | None = None
    twin: str | None = None
    max_length: int | None = None
    truncation: str = "error"
    pack: str | None = None
    train_on: str = "all"
    leave_out: Sequence[str] = ()
    control_tokens: str = "error"
    now: str | None = None
    render_only: bool = False
    side: Mapping[str, Type] = field(default_factory=dict)
    optional: Sequence[str] = ()
    kept: Sequence[str] = ()
    verdict: Mapping[str, Any] | None = None
    severities: Mapping[str, str] = field(default_factory=dict)
    encode: bool = True
    columns: str = "trl"
    name: str = "format"

    def __post_init__(self) -> None:
        """Refuse what the method cannot do with these rows.

        Raises:
            UsageError: an option would have no effect, or no prompt can be told from its answers.
        """
        name, method = f"--for {self.method}", METHODS[self.method]
        if self.render_only and not method.texts:
            raise UsageError(f"--render-only and {name}", "Its labels stand at tokens: leave out --render-only.")
        if self.leave_out and method.name != "sft":
            raise UsageError(f"--leave-out and {name}", "Its answers are trained whole; set rows aside before.")
        if self.train_on != "all" and method.name != "sft":
            raise UsageError(f"--train-on {self.train_on} and {name}", "Its answers are trained whole: leave it out.")
        if self.train_on in ("last", "tagged") and not self.conversational:
            raise UsageError(f"--train-on {self.train_on}: the rows are texts without turns", "Leave it out.")
        if (self.form, self.conversational) == ("implicit", False) and method.ids == "preference":
            raise UsageError(
                f"{name} needs prompts, and two whole texts do not say where theirs ends",
                "Convert them with a prompt column, or as messages; --for reward takes whole texts.",
            )

    @property
    def source(self) -> Layout:
        """The layout of the rows that come in."""
        return layout(self.kind, self.form, self.conversational)

    @property
    def layout(self) -> Layout:
        """The layout of the rows that go out."""
        method = METHODS[self.method]
        if self.render_only:
            return _TEXTS[method.texts]
        if not method.ids:
            return self.source
        form = EASYDEL[method.ids] if self.columns == "easydel" else method.ids
        return layout("tokenized", "packed" if self.pack else form, False)

    def schema(self) -> pa.Schema:
        """The columns of a shard, in order: trainer, side, lengths, provenance."""
        fields = [pa.field(c.name, ARROW[c.type], nullable=c.nullable) for c in self.layout.columns]
        method = METHODS[self.method]
        if not method.ids:
            fields += [pa.field(c.name, ARROW[c.type]) for c in OPTIONAL if c.name in self.optional]
            fields += [pa.field(name, ARROW[type_]) for name, type_ in self.side.items()]
        elif MARGIN in self.side:
            fields.append(pa.field(MARGIN, pa.float64()))
        fields.append(pa.field(LENGTH, pa.int32(), nullable=False))
        if self.layout.form in ("sft", "packed", "easydel_sft"):
            fields.append(pa.field(TRAINED, pa.int32(), nullable=False))
        if not self.pack:
            fields += [pa.field(ID, pa.string()), pa.field(SOURCE, pa.string()), pa.field(ROW, pa.int64())]
            fields += [pa.field(name, pa.string()) for name in self.kept]
        return pa.schema(fields)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FormatStep:
        return cls(**{**value, "sources": [SourcePlan(**source) for source in value["sources"]]})

    def seconds(self, rows: int) -> float | None:
        """How long a block of so many rows may take: two hundred times what is usual, and time to load."""
        return 30 + 0.02 * rows

    def start(self) -> Callable[[Block], Result]:
        """The step, ready to run; loads the template and the tokenizer once."""
        global _at_hand
        formatter, _at_hand = _at_hand, None
        if formatter is None or replace(formatter.plan, verdict=self.verdict) != self:
            formatter = Formatter(self)
        formatter.take(self)
        return formatter.block


_at_hand: Formatter | None = None

_TEXTS: Final[Mapping[tuple[str, ...], Layout]] = {
    ("text",): layout("sft", "text"),
    ("prompt", "chosen", "rejected"): layout("preference", "strings"),
    ("prompt", "completion"): layout("kto", "strings"),
    ("prompt",): layout("prompt", "strings"),
    ("chosen", "rejected"): layout("preference", "implicit", False),
}
"""What texts of these columns are."""


@dataclass(slots=True)
class _Row:
    """A row with its place, on its way through a block."""

    place: list[Any]
    raw: dict[str, Any]
    job: Job

    def origin(self, kept: Sequence[str]) -> dict[str, Any]:
        """The columns that say where it came from."""
        return {ID: self.raw.get(ID), SOURCE: self.place[0], ROW: self.place[1], **{n: self.raw.get(n) for n in kept}}


class Formatter:
    """The step at work in one process."""

    def __init__(self, plan: FormatStep) -> None:
        from datakit.control import ControlTokens
        from datakit.jobs import Jobs
        from datakit.templates.template import Template
        from datakit.tokens.encode import Encoder
        from datakit.tokens.positions import Positions

        self.plan = plan
        self.method = METHODS[plan.method]
        tokenizer = Tokenizer.from_json(plan.tokenizer)
        self.encoder = Encoder(tokenizer, plan.verdict)  # type: ignore[arg-type]
        self.encoder.preload()
        added = [token.content for token in tokenizer.added]
        special = [token.content for token in tokenizer.added if token.special]
        now = datetime.fromisoformat(plan.now) if plan.now else None

        def made(source: str | None) -> Template | None:
            return None if source is None else Template(source, tokenizer.special, now, plan.twin, special)

        printed = f"{plan.template or ''}{plan.tool_template or ''}"
        self.control = ControlTokens(special, added, printed) if plan.control_tokens != "allow" else None
        eos = tokenizer.special.get("eos_token", "")
        self.template, self.tool_template = made(plan.template), made(plan.tool_template)
        windows = plan.max_length if plan.truncation in ("error", "window") else None
        self.jobs = Jobs(
            plan.method, plan.source, self.template, self.tool_template, plan.train_on, plan.leave_out, eos, windows
        )
        self.positions = Positions(self.encoder)
        ids = {token.content: token.id for token in tokenizer.added}
        self.bos_id: int | None = ids.get(tokenizer.special.get("bos_token", ""))

    def take(self, plan: FormatStep) -> None:
        """Go on with a plan that differs in the verdict only."""
        self.plan, self.encoder.verdict = plan, plan.verdict  # type: ignore[assignment]

    @cached_property
    def needed(self) -> tuple[str, ...] | None:
        """The columns of shards that are read; None for all, where rows go on as they are."""
        if self.plan.render_only or self.method.ids in ("", "reward"):  # a reward's margin may stand anywhere
            return None
        return (*self.columns, *self.plan.optional, ID, SOURCE, ROW, *self.plan.kept)

    @cached_property
    def columns(self) -> list[str]:
        return [column.name for column in self.plan.source.columns]

    # ------------------------------------------------------------ rows to jobs

    def block(self, block: Block) -> Result:
        """Run the step on one block."""
        state = _Block(self.plan, self.plan.sources[block.source].path)
        assert block.rows is not None  # shards are read by rows
        rows = [row for batch in read_batches(block.rows, self.needed) for row in self._jobs(batch, state)]
        if self.plan.render_only or not self.method.ids:
            return self._texts(rows, state)
        from datakit.sequences import finish

        return finish(self, rows, state)

    def sample(self, files: Sequence[str], count: int) -> list[str]:
        """Texts of the data: of rows from places that are spread over all shards, as many of each.

        Args:
            files: shards.
            count: how many texts, unless they are long (`LETTERS`) or slow to render (`SECONDS`).
        """
        state, until = _Block(self.plan, ""), monotonic() + SECONDS
        texts: list[str] = []
        places = list(_places(files))
        for file, group, rows in places:
            each = -(-count // len(places))
            size, wanted = 0, len(texts) + each
            head = read_batches((file, group, 0, min(rows, each)), self.needed)
            for row in (row for batch in head for row in self._jobs(batch, state)):
                own = [text.text for text in row.job.texts.values()]
                texts += own
                size += sum(map(len, own))
                if len(texts) >= wanted or size * len(places) >= LETTERS or monotonic() > until:
                    break
        return texts

    def _jobs(self, batch: pa.RecordBatch, state: _Block) -> Iterator[_Row]:
        suspicious = self.control is not None and self._suspicious(batch)
        rows = plain_rows(batch)
        foreseen = [None] * len(rows) if suspicious else self.jobs.foresee(rows)
        state.tally.rows_in += len(rows)
        for raw, known in zip(rows, foreseen, strict=True):
            place = [raw.get(SOURCE), raw.get(ROW)]
            if known is not None:
                del raw["messages"]  # its text is there by now
                yield _Row(place, raw, known)
                continue
            record = {name: raw.pop(name) for name in self.columns}
            for name in self.plan.optional:
                if raw.get(name):
                    record[name] = raw[name]
            notes: list[Finding] = []
            try:
                if suspicious:
                    record, notes = self._controlled(record)
                job = self.jobs.make(record)
            except BadRow as bad:
                state.reject(place, raw, [*notes, bad.finding])
                continue
            notes += job.notes
            if notes:
                if any(self.plan.severities[finding.id] == "error" for finding in notes):
                    state.reject(place, raw, notes)
                    continue
                state.see(place, notes)
            yield _Row(place, raw if self.method.ids else raw | record, job)

    def _suspicious(self, batch: pa.RecordBatch) -> bool:
        """Whether a control token stands somewhere in the stored texts of a batch."""
        assert self.control is not None
        for name in (*self.columns, *self.plan.optional):
            column: Any = batch.column(name)
            storage = column.storage if isinstance(column, pa.ExtensionArray) else column
            while isinstance(storage, pa.ListArray):
                storage = storage.values
            if not (pa.types.is_string(storage.type) or pa.types.is_large_string(storage.type)):
                continue
            buffer = storage.buffers()[2]
            if buffer is not None and self.control.may_hold(buffer.to_pybytes()):
                return True
        return False

    def _controlled(self, record: dict[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
        """A row with its control tokens found, and escaped where that was asked for."""
        assert self.control is not None
        found = self.control.found(record)
        if not found:
            return record, []
        path, token = found[0]
        texts = len({place for place, _ in found})
        note = Finding("DK707", path, f"{plural(texts, 'text')} with control tokens such as {token!r}")
        if self.plan.control_tokens == "escape":
            return self.control.escaped(record), [note._replace(note=f"{note.note}; escaped")]
        raise BadRow(*note)

    # ------------------------------------------------------------ texts

    def _sizes(self, rows: Sequence[_Row]) -> list[int]:
        """The tokens of the longest text of every row."""
        texts = [text for row in rows for text in row.job.texts.values()]
        _, offsets = self.encoder.encode_flat([text.text for text in texts])
        around = len(self.encoder.tokenizer.prefix) + len(self.encoder.tokenizer.suffix)
        sizes = [int(b - a) + around * text.special for (a, b), text in zip(pairwise(offsets), texts, strict=True)]
        longest, at = [], 0
        for row in rows:
            longest.append(max(sizes[at : at + len(row.job.texts)]))
            at += len(row.job.texts)
        return longest

    def _texts(self, rows: Sequence[_Row], state: _Block) -> Result:
        """Rows as texts that a trainer tokenises to the same ids, or as they are where it renders itself."""
        columns: dict[str, list[Any]] = {item.name: [] for item in self.plan.schema()}
        for row, size in zip(rows, self._sizes(rows), strict=True):
            if not state.fits(row.place, row.raw, size):
                continue
            values = {} if self.method.ids else dict(row.raw)
            values |= {LENGTH: size, **row.origin(self.plan.kept), **row.job.extra}
            if "chat_template_kwargs" in columns:
                values["chat_template_kwargs"] = values.get("chat_template_kwargs") or {}
            if self.plan.render_only:
                values |= self._parts(row.job)
            for name, column in columns.items():
                column.append(values.get(name))
            state.keep(1)
        return state.result(columns)

    def _parts(self, job: Job) -> dict[str, str]:
        """The text columns of a job: answers without the prompt before them, bare of what a trainer adds itself."""
        sides = {name: text for name, text in job.texts.items() if name != "prompt"}
        if "prompt" not in job.texts:
            return {name: self._ended(self._begun(text, text.text)) for name, text in sides.items()}
        prompt = job.texts["prompt"]
        border = min((text.spans[0][0] for text in sides.values()), default=len(prompt.text))
        answers = {name: self._ended(text.text[border:]) for name, text in sides.items()}
        return {"prompt": self._begun(prompt, prompt.text[:border]), **answers}

    def _begun(self, text: Text, part: str) -> str:
        """The start of a text without the BOS that the template printed, if the tokenizer puts it there as well."""
        bos = self.encoder.tokenizer.special.get("bos_token", "")
        twice = not text.special and self.bos_id is not None and self.encoder.tokenizer.prefix == (self.bos_id,)
        return part.removeprefix(bos) if twice else part

    def _ended(self, part: str) -> str:
        """A text without white space behind its EOS: trainers add a second one where a text does not end on it."""
        eos = self.encoder.tokenizer.special.get("eos_token", "")
        bare = part.rstrip()
        return bare if eos and bare.endswith(eos) else part


class _Block:
    """Collects what becomes of the rows of one block."""

    def __init__(self, plan: FormatStep, path: str) -> None:
        self.plan, self.path = plan, path
        self.tally = Tally()
        self.rejects: list[dict[str, Any]] = []

    def see(self, place: Sequence[Any], findings: Sequence[Finding]) -> None:
        self.tally.see_row(place, findings, self.plan.severities)

    def reject(self, place: Sequence[Any], raw: Mapping[str, Any], findings: Sequence[Finding]) -> None:
        why = decisive(findings, self.plan.severities)
        self.tally.rejected[why.id] += 1
        reject = {"source": place[0], "row": place[1], "rule": why.id, "name": CHECKS[why.id].name, "path": why.path}
        reject |= {"message": why.note, "findings": [list(f) for f in findings], "dk_id": raw.get(ID)}
        self.rejects.append(reject)
        self.see(place, findings)

    def fits(self, place: Sequence[Any], raw: Mapping[str, Any], size: int) -> bool:
        """Whether a row that cannot be cut is short enough."""
        limit = self.plan.max_length
        if limit is None or size <= limit:
            return True
        self.reject(place, raw, [Finding("DK702", "", f"{size} tokens, over {limit}")])
        return False

    def keep(self, count: int, rows: int = 1) -> None:
        """Count rows that became so many each."""
        self.tally.single += rows
        self.tally.rows_out += rows * count
        self.tally.fanout[str(count)] += rows

    def result(self, columns: Mapping[str, Any]) -> Result:
        """The result, from columns as lists or arrays."""
        if not self.plan.encode:
            self._count_lengths(columns)
            return Result(None, self.rejects, self.tally, b"", b"", [], [])
        if not self.tally.rows_out:
            return Result(None, self.rejects, self.tally, b"", b"", [], [])
        if self.plan.columns == "easydel":
            from datakit import easydel

            columns = easydel.columns(METHODS[self.plan.method].ids, columns)
        schema = self.plan.schema()
        arrays = []
        for item in schema:
            values = columns[item.name]
            type_ = item.type.storage_type if isinstance(item.type, pa.JsonType) else item.type
            if isinstance(item.type, pa.JsonType):
                values = [None if value is None else orjson.dumps(value).decode() for value in values]
            arrays.append(values if isinstance(values, pa.Array) else pa.array(values, type_))
        batch = pa.RecordBatch.from_arrays(arrays, schema.names)
        return Result(batch, self.rejects, self.tally, b"", b"", [], [])

    def _count_lengths(self, columns: Mapping[str, Any]) -> None:
        """Rows and trained tokens by length, which is all that `datakit lengths` wants."""
        counts = self.tally.counts
        sizes = columns.get(LENGTH, [])
        trained = columns.get(TRAINED) or [0] * len(sizes)
        for size, target, source in zip(sizes, trained, columns.get(SOURCE, []), strict=True):
            size, target = (x.as_py() if isinstance(x, pa.Scalar) else x for x in (size, target))
            counts[f"length {size} {source}"] += 1
            counts[f"targets {size} {source}"] += target
            counts[f"answers {target} {source}"] += 1


# ---------------------------------------------------------------- asked once, in one worker


def probe(path: str, step: Mapping[str, Any], files: Sequence[str], count: int) -> dict[str, Any]:
    """What a template and a tokenizer are worth for the rows at hand.

    Args:
        path: the tokenizer, for messages.
        step: the plan as JSON.
        files: shards to take rows from.
        count: texts to compare the engines on.

    Returns:
        `refused`: why the template does not compile; `changing`: names in it that make its text change by the day;
        `verdict`: the comparison of the engines.
    """
    global _at_hand  # noqa: PLW0603
    from datakit.templates.environment import Refused, never_the_same

    plan = FormatStep.from_json(step)
    try:
        formatter = Formatter(plan)
        changing = never_the_same(plan.template) if plan.template else []
    except Refused as refused:
        return {"refused": str(refused), "changing": [], "verdict": None}
    verdict = formatter.encoder.compare(formatter.sample(files, count))
    _at_hand = formatter
    return {"refused": "", "changing": changing, "verdict": verdict}


def _places(files: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Row groups that are spread over shards, in order: (file, group, rows)."""
    chosen = _spread(files, PLACES)
    for file in chosen:
        groups = [(group, rows) for group, (rows, _) in enumerate(layout_of(file)) if rows]
        for group, rows in _spread(groups, -(-PLACES // len(chosen))):
            yield file, group, rows


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most so many items, from the first to the last."""
    if len(items) <= count:
        return list(items)
    return [items[at * (len(items) - 1) // max(1, count - 1)] for at in range(count)]


def pieces(path: str, tokenizer: Mapping[str, Any], rows: Sequence[Sequence[int]]) -> list[list[str]]:
    """The text of each token, for people. A character that is split over tokens stands at the last of them."""
    from datakit.tokens.positions import Surfaces

    surfaces = Surfaces.of(Tokenizer.from_json(tokenizer))
    decoders = [getincrementaldecoder("utf-8")("replace") for _ in rows]
    return [[decoder.decode(surfaces.surface(id)) for id in ids] for decoder, ids in zip(decoders, rows, strict=True)]
