"""The step: from a block of undecoded rows to an Arrow batch, a pure function with plain parameters.

`convert_block` parses, groups, normalises, reshapes, checks and encodes. It reads nothing but its arguments (and, for
Parquet and Arrow blocks, the rows that they name), so any executor can run it; see `workers` for ours. Findings never
stop it: a bad row becomes a reject with its reason and its raw text.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa
from orjson import dumps

from datakit import checks, plain
from datakit.checks import CHECKS
from datakit.checks.content import damaged, media_tags
from datakit.detection import likeliest
from datakit.encode import OPTIONAL_NAMES, Columns, Kept, encode, names_left
from datakit.findings import MISSING, BadRow, Finding, decisive, shown
from datakit.formats import FORMATS, mapping
from datakit.formats.declare import Format, Record, Row, look
from datakit.formats.normalise import normalise
from datakit.formats.reshape import reshape, unused, with_reasoning
from datakit.messages import Context
from datakit.reading.blocks import Block
from datakit.reading.columnar import read_rows
from datakit.reading.rows import check_keys, escapes_in, load_row
from datakit.schema import (
    ARROW,
    ID,
    KEPT,
    LENGTH,
    META,
    OPTIONAL,
    PROVENANCE,
    ROW,
    SOURCE,
    TRAINED,
    Layout,
    Type,
    layout,
)
from datakit.tally import Tally
from datakit.terminal import plural

if TYPE_CHECKING:
    from datakit.output.rowgroup import RowGroup


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """How one source is read.

    Attributes:
        path: as it was typed.
        format: a name in the catalogue, or a whole mapping as `mapping.to_json` gives it; `canonical` for shards.
        others: formats of the same layout, for rows that drift.
    """

    path: str
    format: str | Mapping[str, Any]
    others: Sequence[str | Mapping[str, Any]] = ()
    numbering: str = "row"
    """`line` where rows are counted by lines, else `row`."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The parameters of the step; plain JSON through `to_json`.

    Attributes:
        sources: by the number that blocks carry.
        kind, form, conversational: the layout of the output.
        side: extra columns at top level, name -> type.
        optional: which of tools, images and chat_template_kwargs the output has.
        reasoning: keep, split or inline.
        severities: check id -> severity.
        encode: False where only the judgement is wanted.
    """

    sources: Sequence[SourcePlan]
    kind: str
    form: str
    conversational: bool
    side: Mapping[str, Type] = field(default_factory=dict)
    optional: Sequence[str] = ()
    reasoning: str = "keep"
    severities: Mapping[str, str] = field(default_factory=dict)
    encode: bool = True

    @property
    def layout(self) -> Layout:
        return layout(self.kind, self.form, self.conversational)

    def schema(self) -> pa.Schema:
        """The columns of a shard, in order: trainer, optional, side, provenance."""
        fields = [pa.field(c.name, ARROW[c.type], nullable=c.nullable) for c in self.layout.columns]
        fields += [pa.field(c.name, ARROW[c.type]) for c in OPTIONAL if c.name in self.optional]
        fields += [pa.field(name, ARROW[type_]) for name, type_ in self.side.items()]
        fields += [pa.field(c.name, ARROW[c.type], nullable=c.nullable) for c in PROVENANCE]
        return pa.schema(fields)

    def seconds(self, rows: int) -> float | None:
        """How long a block may take: any time, since nothing of a stranger runs."""
        return None

    def start(self) -> Callable[[Block], Result]:
        """The step, ready to run on blocks."""
        return partial(convert_block, plan=self)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StepPlan:
        return cls(**{**value, "sources": [SourcePlan(**source) for source in value["sources"]]})


@dataclass(slots=True)
class Result:
    """What became of a block.

    Attributes:
        batch: the rows that go on, or None; it stays in the process that made it.
        rejects: the rows that do not, ready to be written.
        tally: the counts.
        digests: 16 bytes per row that goes on, of its content.
        conflicts: for preferences and labels, 16 bytes per row: the question, and in the last bit the verdict.
        rows: line or row number of each row that goes on.
        wanted: optional columns that a row has and the plan does not.
        origins: for repaired rows, the file that each of them came from.
        group: the batch as it is written, where the result comes from a worker.
    """

    batch: pa.RecordBatch | None
    rejects: list[dict[str, Any]]
    tally: Tally
    digests: bytes
    conflicts: bytes
    rows: Sequence[int]
    wanted: list[str]
    origins: Sequence[str] = ()
    group: RowGroup | None = None


Short = Callable[[Row, bytes, int, str], bool]
"""Takes a row, its text, its number, and the file it came from if that is not the source; whether it went that way."""


@dataclass(slots=True)
class _Unit:
    """One input row, or the rows of one group."""

    number: int
    raw: Any
    row: Row | None
    finding: Finding | None = None
    offset: int = -1
    path: str = ""
    line: int = 0
    """For a repaired row, the line of the reject file; `path` and `number` say where it came from."""
    size: int = 1
    members: list[_Unit] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    """What was found while it was read."""


COUNTED: Final = ("DK107", "DK124", "DK125", "DK126", "DK901", "DK909")
"""Findings that mostly do not keep a row from the short way."""


class _Sink:
    """Collects what becomes of the rows of a block."""

    def __init__(self, plan: StepPlan, source: SourcePlan) -> None:
        self.plan, self.source, self.numbering = plan, source, source.numbering
        self.canonical = source.format == "canonical"
        self.format = source.format if isinstance(source.format, str) else source.format["name"]
        self.layout = plan.layout
        self.tally = Tally()
        self.rejects: list[dict[str, Any]] = []
        self.kept = Kept()
        self.names = [c.name for c in self.layout.columns]
        self.wanted: set[str] = set()
        self.plain = 0
        self.raised = {id for id in COUNTED if plan.severities[id] == "error"}


@lru_cache(maxsize=64)
def _format_of(spec: bytes) -> Format:
    value = orjson.loads(spec)
    return FORMATS[value] if isinstance(value, str) else mapping.from_json(value)


def convert_block(block: Block, plan: StepPlan) -> Result:
    """Run the step on one block."""
    block.load()
    source = plan.sources[block.source]
    sink = _Sink(plan, source)
    tally = sink.tally
    for line, offset, size in block.long:
        finding = Finding("DK115", "", f"{size} bytes; the line was passed over without being held")
        tally.rows_in += 1
        _reject(sink, _Unit(line, b"", None, None, offset), [finding])
    for note in block.notes:
        tally.see(note, [source.path, block.first, "", CHECKS[note].rule].copy)
    format = None if sink.canonical else _format_of(orjson.dumps(source.format))
    others = [_format_of(orjson.dumps(other)) for other in source.others]
    escapes, controls = (False, True) if block.rows is not None else escapes_in(block.payload)
    units = _units(block, sink, escapes, _short_way(sink, format, block, escapes))
    for unit in _grouped(units, format) if format and format.group else units:
        _convert_unit(sink, unit, format, others, block.header)
    tally.single += sink.plain
    tally.rows_out += sink.plain
    if sink.plain:
        tally.fanout["1"] += sink.plain
    return _finish(sink, controls, bool(block.origins))


def _units(block: Block, sink: _Sink, escapes: bool, short: Short) -> Iterator[_Unit]:
    """The rows of a block, decoded; without those that have gone the short way."""
    tally = sink.tally
    if block.rows is not None:
        for number, row, notes in read_rows(block.rows, block.first):
            tally.rows_in += 1
            unit = _Unit(number, row, row, notes=notes)
            if not short(row, b"", number, ""):
                yield unit
            elif notes:
                _see(sink, unit, notes)
        return
    for index, (number, data, offset) in enumerate(_numbered(block)):
        if not data or data.isspace():
            tally.blank += 1
            continue
        tally.rows_in += 1
        path, at = block.origins[index] if block.origins else ("", number)
        line = number if path else 0
        try:
            row = load_row(data)
            if short(row, data, at, path):
                continue
            check_keys(row, data, escapes)
        except BadRow as bad:
            finding = bad.finding
            if block.header and finding.id == "DK112":
                cells = len(orjson.loads(data))
                finding = Finding("DK104", "", f"{plural(cells, 'cell')} under a header of {len(block.header)}")
            yield _Unit(at, data, None, finding, offset, path, line)
        else:
            yield _Unit(at, data, row, None, offset, path, line)


def _numbered(block: Block) -> Iterator[tuple[int, bytes, int]]:
    """(number, bytes, offset in the decoded file) of every row."""
    if block.spans is not None:
        for start, end, number, offset in block.spans:
            yield number, block.payload[start:end], offset
        return
    offset = block.offset
    lines = block.payload.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=block.first):
        yield number, line, offset
        offset += len(line) + 1


def _grouped(units: Iterator[_Unit], format: Format) -> Iterator[_Unit]:
    """Neighbouring rows with one group key, joined; a bad row stands alone."""
    members: list[_Unit] = []
    for unit in units:
        if unit.row is None:
            yield unit
            continue
        if members and members[0].row and members[0].row.get(format.group or "") != unit.row.get(format.group or ""):
            yield _join(members, format)
            members = []
        members.append(unit)
    if members:
        yield _join(members, format)


def _join(members: list[_Unit], format: Format) -> _Unit:
    group = _Unit(members[0].number, members[0].raw, None, size=len(members), members=members)
    group.notes = [note for unit in members for note in unit.notes]
    try:
        if format.join is not None:
            group.row = format.join([unit.row for unit in members if unit.row is not None])
    except BadRow as bad:
        group.finding = bad.finding
    return group


def _convert_unit(sink: _Sink, unit: _Unit, format: Format | None, others: list[Format], header: Sequence[str]) -> None:
    """One unit to its output rows, or to the rejects."""
    if unit.finding is not None or unit.row is None:
        _reject(sink, unit, [unit.finding] if unit.finding else [])
        return
    notes = list(unit.notes)
    try:
        if format is None:
            made = [_canonical(unit.row)]
        else:
            made = _normalised(unit.row, format, others, notes, header)
        records = [_shaped(sink, record, source, rest, notes) for record, source, rest in made]
    except BadRow as bad:
        _reject(sink, unit, [*notes, bad.finding])
        return
    for record, rest in records:
        before = len(notes)
        checks.check_row(sink.layout, record, rest, notes)
        if sink.raised:
            notes += _raised(sink, record, rest)
        if len(records) > 1:
            notes[before:] = [f for f in notes[before:] if f not in notes[:before]]
    if notes:
        severities = sink.plan.severities
        if any(severities[finding.id] == "error" for finding in notes):
            _reject(sink, unit, notes)
            return
        _see(sink, unit, notes)
    tally = sink.tally
    if unit.members:
        tally.merged += unit.size
        tally.groups += 1
    else:
        tally.single += 1
    tally.fanout[str(len(records))] += 1
    tally.rows_out += len(records)
    for record, rest in records:
        _keep(sink, unit, record, rest)


def _short_way(sink: _Sink, format: Format | None, block: Block, escapes: bool) -> Short:
    """Takes rows that are as plain as most: one record, no findings, nothing to reshape. False leaves a row alone."""
    plan = sink.plan
    read = None
    if format is not None and format.layout is sink.layout and not (plan.side or sink.raised):
        read = plain.reader(format, plan.kind) if plan.reasoning == "keep" else None
    if read is None:
        return lambda row, data, number, origin: False
    kept, path = sink.kept, sink.source.path
    tags = block.rows is not None or escapes or b">" in block.payload

    def take(row: Row, data: bytes, number: int, origin: str) -> bool:
        messages = read(row, data, escapes, tags)
        if messages is None:
            return False
        kept.records.append({"messages": messages})
        kept.rests.append(row)
        kept.rows.append(number)
        kept.origins.append((origin or path, number))
        sink.plain += 1
        return True

    return take


def _raised(sink: _Sink, record: Record, rest: Row) -> list[Finding]:
    """Findings that are usually only counted, where a user has made errors of them."""
    found = []
    if "DK107" in sink.raised and (names := names_left(record, rest)):
        found.append(Finding("DK107", "", names))
    for name in sink.names:
        data = dumps(record[name])
        found += [Finding(id, name, note) for _, id, note in damaged(data, [data]) if id in sink.raised]
        for _, id, columns, note in media_tags(data, [data]):
            if id in sink.raised and columns.isdisjoint(record) and columns.isdisjoint(rest):
                found.append(Finding(id, name, note))
    return found


def _normalised(
    row: Row, format: Format, others: list[Format], notes: list[Finding], header: Sequence[str]
) -> list[tuple[Record, Layout, Row]]:
    """The records of one raw row, by its format or, where it drifts, by another of the same layout."""
    context = Context()
    try:
        made = _by(format, row, context)
    except BadRow as bad:
        other = next((o for o in others if o.matches(row)), None)
        if other is None or bad.finding.id not in ("DK103", "DK104"):
            notes.extend(context.notes)
            raise _explained(bad, row, format, header) from None
        context = Context()
        made = _by(other, row, context)
        notes.append(Finding("DK105", "", f"read as {other.name}, while the file is {format.name}"))
    notes.extend(context.notes)
    return made


def _explained(bad: BadRow, row: Row, format: Format, header: Sequence[str]) -> BadRow:
    """A missing column with why: an empty cell, a null, a row of another format, or a misspelt name."""
    id, path, note = bad.finding
    if note != MISSING:
        return bad
    if path in header:
        return BadRow(id, path, "an empty cell")
    if look(row, path)[0]:
        return BadRow(id, path, "null")
    close = get_close_matches(path, [name for name in row if name not in format.taken], 1, 0.8)
    like = None if close else likeliest(row)
    meant = f"; did you mean it by {close[0]!r}?" if close else ""
    more = f", a row of {like.name} while the file is {format.name}" if like else meant
    return BadRow(id, path, f"missing in {shown(row)}{more}")


def _by(format: Format, row: Row, context: Context) -> list[tuple[Record, Layout, Row]]:
    if format.expand is None:
        record, rest = normalise(format, row, context)
        return [(record, format.layout, rest)]
    made = [normalise(format, one, context) for one in format.expand(row, context)]
    return [(record, format.layout, rest) for record, rest in made]


def _canonical(row: Row) -> tuple[Record, Layout, Row]:
    """A row of a shard as it was written."""
    rest = row.get(META) or {}
    names = (ID, META, LENGTH, TRAINED, *(column.name for column in KEPT))
    record = {k: v for k, v in row.items() if k not in names and not (v is None and k in ("tools", "images"))}
    if record.get("chat_template_kwargs") == {}:
        del record["chat_template_kwargs"]
    made = {k: v for k, v in record.items() if k not in (SOURCE, ROW)}
    found = _layout_of(frozenset(made), _has_messages(made))
    own = {column.name for column in found.columns} | {*OPTIONAL_NAMES}
    side = {name: value for name, value in made.items() if name not in own and value is not None}
    made = {name: value for name, value in made.items() if name in own}
    if SOURCE not in row:  # packed rows come from many places
        return made, found, {**rest, **side}
    source, number = row.get(SOURCE), row.get(ROW)
    if not isinstance(source, str) or type(number) is not int:
        raise BadRow("DK104", SOURCE, f"a row of a shard without its source: {shown(source)}, {shown(number)}")
    return made, found, {**rest, **side, SOURCE: source, ROW: number}


def _has_messages(record: Record) -> bool:
    value = record.get("messages", record.get("prompt", record.get("chosen")))
    return isinstance(value, list)


@lru_cache(maxsize=64)
def _layout_of(names: frozenset[str], conversational: bool) -> Layout:
    from datakit.schema import LAYOUTS

    fits = [x for x in LAYOUTS if x.conversational == conversational and {c.name for c in x.columns} <= names]
    return max(fits, key=lambda x: len(x.columns))


def _shaped(sink: _Sink, record: Record, source: Layout, rest: Row, notes: list[Finding]) -> tuple[Record, Row]:
    if source is not sink.layout:
        rest = {**rest, **unused(record, source, sink.layout, rest)}
        record = reshape(record, source, sink.layout)
    if sink.plan.reasoning != "keep":
        record, left = with_reasoning(record, sink.plan.reasoning)
        if left:
            notes.append(Finding("DK215", "", "reasoning that cannot be put into the text and taken out again"))
    for name, type_ in sink.plan.side.items():
        if name in rest:
            record[name] = value = rest.pop(name)
            if type_ != "json" and value is not None and not FITS[type_](value):
                raise BadRow("DK104", name, f"{shown(value)} where the sampled rows have {type_}")
    if len(record) > len(sink.names):
        sink.wanted.update(name for name in OPTIONAL_NAMES if name in record and name not in sink.plan.optional)
    return record, rest


FITS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "text": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: type(value) is int and -(2**63) <= value < 2**63,
    "float": lambda value: type(value) in (int, float),
}
"""What a value must be to go into a side column whose type the sample has set."""


def _reject(sink: _Sink, unit: _Unit, findings: list[Finding]) -> None:
    why = decisive(findings, sink.plan.severities)
    for member in unit.members or [unit]:
        sink.tally.rejected[why.id] += 1
        reject: dict[str, Any] = {"source": member.path or sink.source.path, sink.numbering: member.number}
        if member.offset >= 0:
            reject["byte_offset"] = member.offset
        reject |= {"format": sink.format, "rule": why.id, "name": CHECKS[why.id].name, "path": why.path}
        reject |= {"message": why.note, "findings": [list(f) for f in findings]}
        raw = member.raw if isinstance(member.raw, bytes) else orjson.dumps(member.raw, default=repr)
        try:
            reject["raw"] = raw.decode("utf-8")
        except UnicodeDecodeError:
            reject["raw_base64"] = base64.b64encode(raw).decode()
        sink.rejects.append(reject)
    for _ in unit.members or [unit]:
        _see(sink, unit, findings)


def _see(sink: _Sink, unit: _Unit, findings: list[Finding]) -> None:
    more = f" (now {sink.source.path}:{unit.line})" if unit.line else ""
    sink.tally.see_row([unit.path or sink.source.path, unit.number], findings, sink.plan.severities, more)


def _keep(sink: _Sink, unit: _Unit, record: Record, rest: Row) -> None:
    """Let one row go on."""
    kept = sink.kept
    kept.records.append(record)
    kept.rests.append(rest)
    kept.rows.append(unit.number)
    if sink.canonical and SOURCE in rest:
        kept.origins.append((rest.pop(SOURCE), rest.pop(ROW)))
    else:
        kept.origins.append((unit.path or sink.source.path, unit.number))


def _finish(sink: _Sink, controls: bool, repaired: bool) -> Result:
    plan = sink.plan
    done = encode(sink.kept, Columns(sink.layout, plan.optional, plan.side), plan.severities, sink.tally, controls)
    batch = done.batch() if plan.encode and sink.kept.rows and not sink.wanted else None
    return Result(
        batch,
        sink.rejects,
        sink.tally,
        b"".join(done.digests),
        b"".join(done.conflicts),
        sink.kept.rows,
        sorted(sink.wanted),
        [path for path, _ in sink.kept.origins] if repaired else [],
    )
