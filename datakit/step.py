"""The step: from a block of undecoded rows to an Arrow batch, a pure function with plain parameters.

`convert_block` parses, groups, normalises, reshapes, checks and encodes. It reads nothing but its arguments (and, for
Parquet and Arrow blocks, the rows that they name), so any executor can run it; see `workers` for ours. Findings never
stop it: a bad row becomes a reject with its reason and its raw text.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from typing import Any, Final

import orjson
import pyarrow as pa
from orjson import dumps

from datakit import checks
from datakit.checks import CHECKS
from datakit.checks.content import damaged
from datakit.checks.preference import count_pair
from datakit.findings import BadRow, Finding, shown
from datakit.formats import FORMATS, mapping
from datakit.formats.declare import Format, Record, Row
from datakit.formats.normalise import normalise
from datakit.formats.reshape import reshape, with_reasoning
from datakit.messages import Context
from datakit.reading.blocks import Block
from datakit.reading.columnar import read_rows
from datakit.reading.rows import parse_row
from datakit.schema import ARROW, ID, IS_JSON, META, OPTIONAL, PROVENANCE, ROW, SOURCE, Layout, Type, layout
from datakit.tally import Tally

OPTIONAL_NAMES: Final = tuple(column.name for column in OPTIONAL)


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
    others: Sequence[str] = ()
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StepPlan:
        return cls(**{**value, "sources": [SourcePlan(**source) for source in value["sources"]]})


@dataclass(slots=True)
class Result:
    """What became of a block.

    Attributes:
        batch: the rows that go on, or None.
        rejects: the rows that do not, ready to be written.
        tally: the counts.
        digests: 16 bytes per row that goes on, of its content.
        conflicts: for preferences and labels, 16 bytes per row: the question, and in the last bit the verdict.
        rows: line or row number of each row that goes on.
        wanted: optional columns that a row has and the plan does not.
    """

    batch: pa.RecordBatch | None
    rejects: list[dict[str, Any]]
    tally: Tally
    digests: bytes
    conflicts: bytes
    rows: Sequence[int]
    wanted: list[str]


def output_schema(plan: StepPlan) -> pa.Schema:
    """The columns of a shard, in order: trainer, optional, side, provenance."""
    fields = [pa.field(c.name, ARROW[c.type], nullable=c.nullable) for c in plan.layout.columns]
    fields += [pa.field(c.name, ARROW[c.type]) for c in OPTIONAL if c.name in plan.optional]
    fields += [pa.field(name, ARROW[type_]) for name, type_ in plan.side.items()]
    fields += [pa.field(c.name, ARROW[c.type], nullable=c.nullable) for c in PROVENANCE]
    return pa.schema(fields)


@dataclass(slots=True)
class _Unit:
    """One input row, or the rows of one group."""

    number: int
    raw: Any
    row: Row | None
    finding: Finding | None = None
    offset: int = -1
    path: str = ""
    size: int = 1
    members: list[_Unit] = field(default_factory=list)


class _Sink:
    """Collects the columns of a block."""

    def __init__(self, plan: StepPlan, source: SourcePlan) -> None:
        self.plan, self.source, self.numbering = plan, source, source.numbering
        self.layout = plan.layout
        self.tally = Tally()
        self.rejects: list[dict[str, Any]] = []
        self.rows: list[int] = []
        self.names = [c.name for c in self.layout.columns]
        self.types: dict[str, Type] = {c.name: c.type for c in self.layout.columns}
        self.types |= {c.name: c.type for c in OPTIONAL} | dict(plan.side)
        self.extras = [*(c.name for c in OPTIONAL if c.name in plan.optional), *plan.side]
        self.columns: dict[str, list[Any]] = {name: [] for name in (*self.names, *self.extras)}
        self.encoded = [name for name in self.names if self.types[name] in IS_JSON]
        self.meta: list[bytes | None] = []
        self.digests: list[bytes] = []
        self.conflicts: list[bytes] = []
        self.origins: list[tuple[str, int]] = []
        self.wanted: set[str] = set()
        self.raised = {id for id in ("DK107", "DK901", "DK909") if plan.severities[id] == "error"}


@lru_cache(maxsize=64)
def _format_of(spec: bytes) -> Format:
    value = orjson.loads(spec)
    return FORMATS[value] if isinstance(value, str) else mapping.from_json(value)


def convert_block(block: Block, plan: StepPlan) -> Result:
    """Run the step on one block."""
    source = plan.sources[block.source]
    sink = _Sink(plan, source)
    tally = sink.tally
    for line, offset, size in block.long:
        finding = Finding("DK115", "", f"{size} bytes; the line was passed over without being held")
        tally.rows_in += 1
        _reject(sink, _Unit(line, b"", None, None, offset), [finding])
    for note in block.notes:
        tally.see(note, [source.path, block.first, "", CHECKS[note].rule].copy)
    canonical = source.format == "canonical"
    format = None if canonical else _format_of(orjson.dumps(source.format))
    others = [FORMATS[name] for name in source.others]
    units = _units(block, tally)
    for unit in _grouped(units, format) if format and format.group else units:
        _convert_unit(sink, unit, format, others)
    return _finish(sink)


def _units(block: Block, tally: Tally) -> Iterator[_Unit]:
    """The rows of a block, decoded."""
    if block.rows is not None:
        for number, row in read_rows(block.rows, block.first):
            tally.rows_in += 1
            yield _Unit(number, row, row)
        return
    for index, (number, data, offset) in enumerate(_numbered(block)):
        if not data or data.isspace():
            tally.blank += 1
            continue
        tally.rows_in += 1
        path, at = block.origins[index] if block.origins else ("", number)
        try:
            yield _Unit(at, data, parse_row(data), None, offset, path)
        except BadRow as bad:
            finding = bad.finding
            if block.columns and finding.id == "DK112":
                cells = len(orjson.loads(data))
                finding = Finding("DK104", "", f"{cells} cells under a header of {block.columns}")
            yield _Unit(at, data, None, finding, offset, path)


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
    try:
        if format.join is not None:
            group.row = format.join([unit.row for unit in members if unit.row is not None])
    except BadRow as bad:
        group.finding = bad.finding
    return group


def _convert_unit(sink: _Sink, unit: _Unit, format: Format | None, others: list[Format]) -> None:
    """One unit to its output rows, or to the rejects."""
    if unit.finding is not None or unit.row is None:
        _reject(sink, unit, [unit.finding] if unit.finding else [])
        return
    notes: list[Finding] = []
    try:
        if format is None:
            made = [_canonical(unit.row)]
        else:
            made = _normalised(unit.row, format, others, notes)
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


def _raised(sink: _Sink, record: Record, rest: Row) -> list[Finding]:
    """Findings that are usually only counted, where a user has made errors of them."""
    found = []
    if "DK107" in sink.raised and rest:
        found.append(Finding("DK107", "", ", ".join(sorted(map(str, rest)))))
    for name in sink.names:
        data = dumps(record[name])
        found += [Finding(id, name, note) for _, id, note in damaged(data, [data]) if id in sink.raised]
    return found


def _normalised(
    row: Row, format: Format, others: list[Format], notes: list[Finding]
) -> list[tuple[Record, Layout, Row]]:
    """The records of one raw row, by its format or, where it drifts, by another of the same layout."""
    context = Context()
    try:
        made = _by(format, row, context)
    except BadRow as bad:
        other = next((o for o in others if o.matches(row)), None)
        if other is None or bad.finding.id not in ("DK103", "DK104"):
            notes.extend(context.notes)
            raise
        context = Context()
        made = _by(other, row, context)
        notes.append(Finding("DK105", "", f"read as {other.name}, while the file is {format.name}"))
    notes.extend(context.notes)
    return made


def _by(format: Format, row: Row, context: Context) -> list[tuple[Record, Layout, Row]]:
    if format.expand is None:
        record, rest = normalise(format, row, context)
        return [(record, format.layout, rest)]
    made = [normalise(format, one, context) for one in format.expand(row, context)]
    return [(record, format.layout, rest) for record, rest in made]


def _canonical(row: Row) -> tuple[Record, Layout, Row]:
    """A row of a shard as it was written."""
    rest = row.get(META) or {}
    names = (ID, META)
    record = {k: v for k, v in row.items() if k not in names and not (v is None and k in ("tools", "images"))}
    if record.get("chat_template_kwargs") == {}:
        del record["chat_template_kwargs"]
    made = {k: v for k, v in record.items() if k not in (SOURCE, ROW)}
    found = _layout_of(frozenset(made), _has_messages(made))
    own = {column.name for column in found.columns} | {*OPTIONAL_NAMES}
    side = {name: value for name, value in made.items() if name not in own and value is not None}
    made = {name: value for name, value in made.items() if name in own}
    return made, found, {**rest, **side, SOURCE: row.get(SOURCE), ROW: row.get(ROW)}


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
        sink.wanted.update(name for name in OPTIONAL_NAMES if name in record and name not in sink.columns)
    return record, rest


FITS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "text": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: type(value) is int and -(2**63) <= value < 2**63,
    "float": lambda value: type(value) in (int, float),
}
"""What a value must be to go into a side column whose type the sample has set."""


def _reject(sink: _Sink, unit: _Unit, findings: list[Finding]) -> None:
    severities = sink.plan.severities
    decisive = next((f for f in reversed(findings) if severities[f.id] == "error"), findings[-1])
    for member in unit.members or [unit]:
        sink.tally.rejected[decisive.id] += 1
        reject: dict[str, Any] = {"source": member.path or sink.source.path, sink.numbering: member.number}
        if member.offset >= 0:
            reject["byte_offset"] = member.offset
        reject |= {"rule": decisive.id, "name": CHECKS[decisive.id].name, "path": decisive.path}
        reject |= {"message": decisive.note, "findings": [list(f) for f in findings]}
        raw = member.raw if isinstance(member.raw, bytes) else orjson.dumps(member.raw, default=repr)
        try:
            reject["raw"] = raw.decode("utf-8")
        except UnicodeDecodeError:
            reject["raw_base64"] = base64.b64encode(raw).decode()
        sink.rejects.append(reject)
    for _ in unit.members or [unit]:
        _see(sink, unit, findings)


def _see(sink: _Sink, unit: _Unit, findings: list[Finding]) -> None:
    done: set[str] = set()
    for finding in findings:
        if finding.id not in done and sink.plan.severities[finding.id] != "off":
            done.add(finding.id)
            place = [unit.path or sink.source.path, unit.number, finding.path, finding.note]
            sink.tally.see(finding.id, place.copy)


def _keep(sink: _Sink, unit: _Unit, record: Record, rest: Row) -> None:
    """Put one row into the columns."""
    hashed = sha256()
    encoded: dict[str, bytes] = {}
    for name in sink.names:
        value = record[name]
        data = encoded[name] = dumps(value)
        hashed.update(data)
        sink.columns[name].append(data if name in sink.encoded else value)
    if sink.extras or len(record) > len(encoded):
        _keep_extras(sink, record, hashed)
    origin = (rest.pop(SOURCE), rest.pop(ROW)) if SOURCE in rest else (unit.path or sink.source.path, unit.number)
    sink.origins.append(origin)
    sink.rows.append(unit.number)
    sink.digests.append(hashed.digest()[:16])
    if rest:
        sink.tally.see("DK107", lambda: [origin[0], unit.number, "", ", ".join(sorted(map(str, rest)))])
        sink.meta.append(dumps(rest))
    else:
        sink.meta.append(None)
    if sink.layout.kind in ("preference", "kto") or "tools" in record:
        _count(sink, record, encoded)


def _keep_extras(sink: _Sink, record: Record, hashed: Any) -> None:
    for name in sink.extras:
        value = record.get(name)
        if value is None and name == "chat_template_kwargs":
            value = {}
        if sink.types[name] in IS_JSON:
            value = None if value is None else dumps(value)
        sink.columns[name].append(value)
    for name in (*OPTIONAL_NAMES, *sink.plan.side):
        if (value := record.get(name)) is not None:  # null and absent are one in a column
            hashed.update(dumps([name, value]))


def _count(sink: _Sink, record: Record, encoded: Mapping[str, bytes]) -> None:
    """What the whole-set checks need."""
    counts, kind = sink.tally.counts, sink.layout.kind
    shared = dumps([record[name] for name in OPTIONAL_NAMES if name in record])
    if "tools" in record:
        counts["rows with tools"] += 1
        counts["rows with calls"] += any(b'"tool_calls":' in data for data in encoded.values())
    if kind == "preference":
        count_pair(record, counts)
        sides = (encoded["chosen"], encoded["rejected"])
        question = sha256(b"\0".join((encoded.get("prompt", b""), *sorted(sides), shared))).digest()[:16]
        sink.conflicts.append(question[:15] + bytes([question[15] & 0xFE | (sides[0] < sides[1])]))
    elif kind == "kto":
        label = record["label"]
        counts["label true" if label else "label false"] += 1
        sink.tally.step("label", label)
        question = sha256(b"\0".join((encoded["prompt"], encoded["completion"], shared))).digest()[:16]
        sink.conflicts.append(question[:15] + bytes([question[15] & 0xFE | label]))


def _finish(sink: _Sink) -> Result:
    joined: dict[str, bytes] = {}
    damage: dict[tuple[int, str], str] = {}
    for name in sink.names:
        values = sink.columns[name]
        if name in sink.encoded:
            joined[name] = b"".join(values)
            _find_damage(damage, joined[name], values)
        elif sink.types[name] in ("text", "texts"):
            texts = [dumps(text) for text in values]
            _find_damage(damage, b"".join(texts), texts)
    for (index, id), note in sorted(damage.items()):
        if sink.plan.severities[id] != "off":
            sink.tally.see(id, [*sink.origins[index], "", note].copy)
    batch = _batch(sink, joined) if sink.plan.encode and sink.rows and not sink.wanted else None
    return Result(
        batch,
        sink.rejects,
        sink.tally,
        b"".join(sink.digests),
        b"".join(sink.conflicts),
        sink.rows,
        sorted(sink.wanted),
    )


def _find_damage(found: dict[tuple[int, str], str], whole: bytes, rows: list[bytes]) -> None:
    """Add the damaged rows of a column; a row that is damaged in two columns counts once."""
    for index, id, note in damaged(whole, rows):
        found.setdefault((index, id), note)


def _batch(sink: _Sink, joined: Mapping[str, bytes]) -> pa.RecordBatch:
    """The columns as Arrow; JSON columns as plain strings, which the writer declares as arrow.json."""
    arrays: list[Any] = []
    for name, values in sink.columns.items():
        if name in joined:
            arrays.append(_strings(joined[name], values))
        else:
            type_ = sink.types[name]
            arrays.append(pa.array(values, pa.string() if type_ in IS_JSON else ARROW[type_]))
    digests = b"".join(sink.digests).hex().encode()
    arrays += [
        _strings(digests, [digests[:32]] * len(sink.digests)),
        pa.array([origin[0] for origin in sink.origins], pa.string()),
        pa.array([origin[1] for origin in sink.origins], pa.int64()),
        pa.array(sink.meta, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(arrays, [*sink.columns, ID, SOURCE, ROW, META])


def _strings(joined: bytes, values: list[bytes]) -> Any:
    """A string column from its texts and the same texts joined; orjson has seen to it that they are UTF-8."""
    offsets = array("i", accumulate(map(len, values), initial=0))
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(joined))
