"""The run: blocks through the step, in order, into shards; counted, journalled, judged and only then committed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson
import pyarrow as pa

from datakit import __version__, workers
from datakit.errors import InternalError, one_of_inputs
from datakit.output import card, disk, manifest
from datakit.output.shards import ShardWriter, fingerprint, rows_in
from datakit.output.transaction import Transaction
from datakit.reading import blocks
from datakit.reading.blocks import Block
from datakit.reading.columnar import STRUCT_NOTE
from datakit.reading.decode import File, is_remote
from datakit.reading.limits import BATCH_ROWS, BLOCK
from datakit.reading.sources import Source, left_out
from datakit.report import Budget, Report, Summary, failing, summarise
from datakit.schema import COLUMN_DOCS, KEPT, OPTIONAL, PROVENANCE, Layout
from datakit.step import Result
from datakit.tally import Tally
from datakit.terminal import plural
from datakit.whole import Keys, SetFinding, of_folders, of_inputs, whole_set
from datakit.workers import Pool

if TYPE_CHECKING:
    from datakit.detection import Detection
    from datakit.formats.declare import Format

ENOUGH: Final = 100
"""Findings after which a conversion that cannot succeed any more stops looking for others."""

Progress = Callable[[int, int], None]
"""Called with decoded bytes and rows done so far."""


class Request(Protocol):
    """What the loop and the judgement need to know of a request."""

    @property
    def inputs(self) -> Sequence[str]: ...
    @property
    def shard_size(self) -> int: ...
    @property
    def splits(self) -> Sequence[str]: ...
    @property
    def on_bad_row(self) -> str: ...
    @property
    def max_bad(self) -> str | None: ...
    @property
    def fail_on(self) -> str: ...
    @property
    def format(self) -> str | None: ...
    @property
    def map(self) -> object: ...


class Step(workers.Step, Protocol):
    """What they need to know of a step."""

    @property
    def layout(self) -> Layout: ...
    @property
    def severities(self) -> Mapping[str, str]: ...
    @property
    def encode(self) -> bool: ...
    def schema(self) -> pa.Schema: ...


class Plan(Protocol):
    """What is run: see `plan.Plan` for `convert` and `ready.FormatPlan` for `format`."""

    sources: list[Source]
    splits: dict[str, list[int]]

    @property
    def request(self) -> Request: ...
    @property
    def formats(self) -> Sequence[Format | None]: ...
    @property
    def detections(self) -> Sequence[Detection | None]: ...
    @property
    def step(self) -> Step: ...
    def schema(self) -> pa.Schema: ...
    @property
    def format_name(self) -> str: ...
    def to_json(self) -> dict[str, Any]: ...


OF_FILES: Final = frozenset({"DK119", "DK311"})
"""Findings about a file that are counted with those of rows."""


class ColumnsWanted(Exception):
    """A row has tools, images or template arguments that the sample did not show; the plan must have the column."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self.names = sorted(names)


@dataclass(slots=True)
class Seen:
    """What a run has gathered: counts, keys, shards, and facts about its inputs."""

    tally: Tally = field(default_factory=Tally)
    digests: Keys = field(default_factory=Keys)
    conflicts: Keys = field(default_factory=Keys)
    shards: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    source_rows: Counter[int] = field(default_factory=Counter)
    files: dict[int, File] = field(default_factory=dict)
    stopped: bool = False


# ---------------------------------------------------------------- reading


def _sized_rows(source: Source, index: int, names: Iterable[str], pool: Pool) -> Iterator[Block]:
    """Blocks that name rows of Parquet or Arrow files."""
    first = 1
    notes = [STRUCT_NOTE] if source.how != "shards" and pool.ask("structs", source.real) else []
    for name in names:
        for part, (rows, size) in enumerate(pool.ask("layout", name)):
            for start in range(0, rows, BATCH_ROWS):
                stop = min(rows, start + BATCH_ROWS)
                share = max(1, size * (stop - start) // rows)
                yield Block(index, first, 0, share, rows=(name, part, start, stop), notes=notes)
                first, notes = first + stop - start, []


def read_blocks(plan: Plan, index: int, pool: Pool, seen: Seen) -> Iterator[Block]:
    """The blocks of one source; its hash and size are complete when they are exhausted."""
    with one_of_inputs(plan.sources[index].path, len({source.path for source in plan.sources}) - 1):
        yield from _read(plan, index, pool, seen)


def _read(plan: Plan, index: int, pool: Pool, seen: Seen) -> Iterator[Block]:
    source, format = plan.sources[index], plan.formats[index]
    target = min(BLOCK, plan.request.shard_size)
    file = seen.files[index] = source.file()
    if source.how in ("parquet", "arrow", "shards"):
        names = source.files if source.how == "shards" else [source.real]
        yield from _sized_rows(source, index, names, pool)
        if source.how == "shards":
            file = seen.files[index] = File(source.path, None, str(Path(source.path) / manifest.NAME))
        for _ in file.raw():
            pass
    elif source.how == "jsonl":
        if format and format.group:
            yield from blocks.line_blocks(file.decoded(), index, source.path, target, _same_group(format.group))
        elif source.compression or is_remote(source.real):
            yield from blocks.line_blocks(file.decoded(), index, source.path, target)
        else:
            real = source.real.removeprefix("file://")
            yield from blocks.file_blocks(file.raw(), index, source.path, real, target)
    elif source.how == "rejects":
        yield from blocks.reject_blocks(file.decoded(), index, source.path, target)
    elif source.how in ("csv", "tsv"):
        yield from blocks.csv_blocks(file.decoded(), index, source.path, source.delimiter, target)
    else:
        yield from blocks.element_blocks(file.decoded(), index, source.path, target)


def _same_group(key: str) -> blocks.SameGroup:
    def value(line: bytes) -> Any:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        return row.get(key) if isinstance(row, dict) else None

    return lambda a, b: (found := value(a)) is not None and found == value(b)


# ---------------------------------------------------------------- the loop


class _Shards:
    """Writes the results of one split as shards, each with its rejects, keys and a line in the journal."""

    def __init__(self, plan: Plan, transaction: Transaction | None, split: str, seen: Seen) -> None:
        self.plan, self.transaction, self.split, self.seen = plan, transaction, split, seen
        self.sequence = 0
        self.blocks = 0
        self._clear()

    def _clear(self) -> None:
        self.size = 0
        self.tally, self.source_rows = Tally(), Counter[int]()
        self.digests, self.conflicts = Keys(), Keys()
        self.writer: ShardWriter | None = None
        self.rejects: disk.HashedFile | None = None

    @property
    def stem(self) -> str:
        return f"{self.split}-{self.sequence:05d}"

    def add(self, block: Block, results: list[Result]) -> None:
        path = self.plan.sources[block.source].path
        for result in results:
            if result.wanted:
                raise ColumnsWanted(result.wanted)
            self.tally.add(result.tally)
            self.source_rows[block.source] += result.tally.rows_in
            self.digests.add(result.digests, path, result.rows, result.origins)
            self.conflicts.add(result.conflicts, path, result.rows, result.origins)
            if self.transaction is not None:
                self._write(self.transaction, result)
        self.size += block.size
        self.blocks += 1
        if self.size >= self.plan.request.shard_size:
            self.finish()

    def _write(self, transaction: Transaction, result: Result) -> None:
        with disk.not_written(transaction.work):
            if result.group is not None:
                self.writer = self.writer or ShardWriter(transaction.parts / f"{self.stem}.parquet")
                self.writer.write(result.group)
            if result.rejects:
                self.rejects = self.rejects or disk.HashedFile(transaction.parts / f"{self.stem}.rejects.jsonl")
                for reject in result.rejects:
                    self.rejects.write(orjson.dumps(reject, option=orjson.OPT_APPEND_NEWLINE))

    def finish(self) -> None:
        """Close the shard; nothing happens where no block has come since the last one."""
        if not self.size and not self.tally.rows_in:
            return
        if self.transaction is not None:
            entry = self._close(self.transaction)
            self.transaction.finish_part(entry)
            _take_over(self.seen, entry, self.digests, self.conflicts)
        else:
            self.seen.tally.add(self.tally)
            self.seen.source_rows.update(self.source_rows)
            for mine, theirs in ((self.digests, self.seen.digests), (self.conflicts, self.seen.conflicts)):
                _append(theirs, mine)
        self.sequence += 1
        self._clear()

    def _close(self, transaction: Transaction) -> dict[str, Any]:
        files: dict[str, list[Any]] = {}
        with disk.not_written(transaction.work):
            if self.writer:
                files[f"{self.stem}.parquet"] = list(self.writer.close())
            if self.rejects:
                self.rejects.close()
                files[f"{self.stem}.rejects.jsonl"] = [self.rejects.bytes, self.rejects.sha256]
            keys = transaction.parts / f"{self.stem}.keys"
            data = bytes(self.digests.data) + bytes(self.conflicts.data)
            files[keys.name] = [len(data), disk.write(keys, data)]
        return {
            "split": self.split,
            "sequence": self.sequence,
            "blocks": self.blocks,
            "rows": self.writer.rows if self.writer else 0,
            "tally": self.tally.to_json(),
            "source_rows": {str(k): v for k, v in self.source_rows.items()},
            "digests": _table(self.digests),
            "conflicts": _table(self.conflicts),
            "files": files,
        }

    def discard(self) -> None:
        """Remove what is unfinished."""
        for file in (self.writer, self.rejects):
            if file is not None:
                file.discard()


def _table(keys: Keys) -> list[Any]:
    return [
        [
            start,
            source,
            [rows[0], len(rows)] if isinstance(rows, range) else None,
            None if isinstance(rows, range) else list(rows),
        ]
        for start, (source, rows) in zip(keys.starts, keys.blocks, strict=True)
    ]


def _keys(data: bytes, table: list[Any]) -> Keys:
    keys = Keys(bytearray(data))
    for start, source, span, rows in table:
        keys.starts.append(start)
        keys.blocks.append((source, range(span[0], span[0] + span[1]) if span else rows))
    return keys


def _append(target: Keys, more: Keys) -> None:
    base = len(target.data) // 16
    target.starts += [base + start for start in more.starts]
    target.blocks += more.blocks
    target.data += more.data


def _take_over(seen: Seen, entry: Mapping[str, Any], digests: Keys, conflicts: Keys) -> None:
    """Add a finished shard to what was gathered."""
    seen.tally.add(Tally.from_json(entry["tally"]))
    seen.source_rows.update({int(k): v for k, v in entry["source_rows"].items()})
    _append(seen.digests, digests)
    _append(seen.conflicts, conflicts)
    for name, (size, sha256) in entry["files"].items():
        facts = {"split": entry["split"], "part": name, "bytes": size, "sha256": sha256}
        if name.endswith(".parquet"):
            seen.shards.append({**facts, "rows": entry["rows"]})
        elif name.endswith(".rejects.jsonl"):
            seen.rejects.append({**facts, "rows": Tally.from_json(entry["tally"]).rejected.total()})


def gather(plan: Plan, pool: Pool, transaction: Transaction | None, progress: Progress | None = None) -> Seen:
    """Run all blocks; with a transaction, write shards.

    Raises:
        ColumnsWanted: the plan lacks an optional column; start again with it.
    """
    seen = Seen()
    finished = transaction.begin(_identity(plan)) if transaction is not None else []
    limit = _Limit(plan)
    done = 0
    for split, numbers in plan.splits.items():
        shards = _Shards(plan, transaction, split, seen)
        for entry in [entry for entry in finished if entry["split"] == split]:
            keys = (transaction.parts / f"{shards.stem}.keys").read_bytes() if transaction else b""
            cut = 16 * Tally.from_json(entry["tally"]).rows_out
            _take_over(seen, entry, _keys(keys[:cut], entry["digests"]), _keys(keys[cut:], entry["conflicts"]))
            shards.sequence, shards.blocks = entry["sequence"] + 1, entry["blocks"]
        stream = (block for number in numbers for block in read_blocks(plan, number, pool, seen))
        for block in islice(stream, shards.blocks):
            done += block.size
        try:
            for block, results in pool.map(stream, plan.step):
                shards.add(block, results)
                done += block.size
                if progress is not None:
                    progress(done, seen.tally.rows_in + shards.tally.rows_in)
                if limit.reached(seen.tally, shards.tally):
                    seen.stopped = True
                    break
            shards.finish()
        except BaseException:
            shards.discard()
            raise
        if seen.stopped:
            break
    return seen


TOO_LONG: Final = "DK702"
"""Such rows do not end a run, for what each way to cut them would lose is told of all rows."""


class _Limit:
    """Whether a conversion cannot succeed any more and has shown enough."""

    def __init__(self, plan: Plan) -> None:
        self.severities = plan.step.severities
        self.converts = plan.step.encode
        budget = Budget.parse(plan.request.max_bad) if plan.request.max_bad else None
        self.allowed = -1.0
        if self.converts and plan.request.on_bad_row == "fail":
            self.allowed = 0
        elif self.converts and budget and not budget.share:
            self.allowed = budget.amount

    def reached(self, *tallies: Tally) -> bool:
        if self.allowed < 0:
            return False
        bad = sum(bad_rows(tally, self.severities) - tally.rejected[TOO_LONG] for tally in tallies)
        return bad > self.allowed and bad >= ENOUGH


def bad_rows(tally: Tally, severities: Mapping[str, str]) -> int:
    """Rows rejected by a rule of severity error; a tie, for one, is rejected without being bad."""
    return sum(count for id, count in tally.rejected.items() if severities[id] == "error")


def _identity(plan: Plan) -> dict[str, Any]:
    """What must be equal for finished shards to be taken over: the plan, and files that were not touched."""
    identities = [source.identity() for source in plan.sources]
    once = time.time_ns() if any(not identity for identity in identities) else 0
    return {**plan.to_json(), "identities": identities, "once": once}


# ---------------------------------------------------------------- the judgement


def judge(plan: Plan, seen: Seen, command: str) -> Report:
    """Findings and verdict.

    Raises:
        InternalError: the ledger does not balance.
    """
    tally, severities = seen.tally, plan.step.severities
    tally.balance()
    whole = whole_set(tally, plan.step.layout.kind, seen.digests, seen.conflicts) if not seen.stopped else []
    if not seen.stopped:
        empty = [plan.sources[i].path for i in range(len(plan.sources)) if not seen.source_rows[i]]
        places = [[path, None, "", "no rows"] for path in empty]
        whole += [SetFinding("DK118", "no rows", 0, places)] if places else []
    inputs = _inputs(plan, seen)
    whole += of_inputs(inputs, bool(plan.request.splits))
    whole += of_folders(left_out([*plan.request.inputs, *(split.partition("=")[2] for split in plan.request.splits)]))
    findings = summarise(tally, severities, whole)
    layout = plan.step.layout
    report = Report(
        command,
        rows_in=tally.rows_in,
        rows_out=tally.rows_out,
        rows_rejected=tally.rejected.total(),
        rejected=dict(sorted(tally.rejected.items())),
        format=plan.format_name,
        kind=layout.kind,
        form=layout.form,
        conversational=layout.conversational,
        findings=findings,
        ledger=tally.ledger(),
        detection=[
            {"path": source.path, **detection.to_json()}
            for source, detection in zip(plan.sources, plan.detections, strict=True)
            if detection
        ],
        inputs=inputs,
    )
    if not tally.rows_in and not any(plan.detections) and not (plan.request.format or plan.request.map is not None):
        report.format = report.kind = report.form = report.conversational = None  # nothing was there to be anything
    _decide(plan, seen, report, findings)
    return report


def _decide(plan: Plan, seen: Seen, report: Report, findings: list[Summary]) -> None:
    request, tally = plan.request, seen.tally
    bad = bad_rows(tally, plan.step.severities)
    budget = Budget.parse(request.max_bad) if request.max_bad else None
    report.complete = not seen.stopped
    # errors of rows are what `bad` counts; those about files and the whole set, and warnings, are judged here
    of_rows = tally.seen.keys() - OF_FILES
    failed = failing(findings, request.fail_on)
    rest = [s for s in failed if s.severity != "error" or s.id not in of_rows]
    wrong = [s for s in report.errors() if s.id in of_rows]
    if bad and budget is not None:
        if not budget.allows(bad, tally.rows_in) or seen.stopped:
            report.fail_by(wrong, f"{_bad_of(bad, tally)}, more than {budget} allowed")
            return
    elif bad and (plan.step.encode or request.fail_on != "never"):
        more = " so far" if seen.stopped else ""
        report.fail_by(wrong, f"{_bad_of(bad, tally)}{more}")
        return
    if rest:
        report.fail_by(rest)
    elif not tally.rows_out and request.fail_on != "never":
        report.exit_code, report.verdict = 1, "no rows"
    else:
        report.verdict = f"{plural(bad, 'bad row')}{f' within {budget}' if budget else ''}" if bad else "passed"
        if bad and (others := report.rows_rejected - bad) > 0:
            report.verdict += f", not counting {plural(others, 'row')} rejected by checks that are no errors"


def _bad_of(bad: int, tally: Tally) -> str:
    return f"{bad:,} of {plural(tally.rows_in, 'row')} {'is' if bad == 1 else 'are'} bad"


def _inputs(plan: Plan, seen: Seen) -> list[dict[str, Any]]:
    split_of = {number: split for split, numbers in plan.splits.items() for number in numbers}
    entries = []
    for number, (source, format) in enumerate(zip(plan.sources, plan.formats, strict=True)):
        file = seen.files.get(number)
        entries.append(
            {
                "path": source.path,
                "split": split_of[number],
                "read_as": source.how,
                "compression": source.compression,
                "format": "datakit" if format is None else format.name,
                "rows": seen.source_rows[number],
                "bytes": file.size if file and not seen.stopped else None,
                "sha256": file.sha256 if file and not seen.stopped else None,
            }
        )
    return entries


# ---------------------------------------------------------------- the commit


class Settled(Protocol):
    """What a commit needs to know of a plan."""

    @property
    def splits(self) -> Iterable[str]: ...
    def schema(self) -> pa.Schema: ...
    def to_json(self) -> dict[str, Any]: ...


def commit(plan: Settled, seen: Seen, report: Report, transaction: Transaction, started: float) -> None:
    """Write manifest and card, and let the output appear.

    Raises:
        InternalError: the shards do not hold the rows of the ledger.
    """
    moves: dict[str, str] = {}
    shards, rejects = [], []
    for split in plan.splits:
        own = [shard for shard in seen.shards if shard["split"] == split]
        for number, shard in enumerate(own):
            path = f"data/{split}-{number:05d}-of-{len(own):05d}.parquet"
            moves[shard["part"]] = path
            shards.append({"path": path, **{k: shard[k] for k in ("split", "rows", "bytes", "sha256")}})
    for reject in seen.rejects:
        path = f"rejects/{reject['part'].replace('.rejects', '')}"
        moves[reject["part"]] = path
        rejects.append({"path": path, **{k: reject[k] for k in ("split", "rows", "bytes", "sha256")}})
    with disk.not_written(transaction.work):
        written = sum(rows_in(transaction.parts / shard["part"]) for shard in seen.shards)
    if written != seen.tally.rows_out or sum(r["rows"] for r in rejects) != report.rows_rejected:
        raise InternalError(f"the shards hold {written} rows, the ledger says {seen.tally.rows_out}")
    schema = plan.schema()
    docs = {**COLUMN_DOCS, **{c.name: c.doc for c in (*OPTIONAL, *PROVENANCE, *KEPT)}}
    body = {
        "datakit_manifest": manifest.VERSION,
        "tool": __version__,
        "kind": report.kind,
        "form": report.form,
        "conversational": report.conversational,
        "plan": plan.to_json(),
        "inputs": report.inputs,
        "schema": fingerprint(schema),
        "columns": [{"name": f.name, "type": str(f.type), "doc": docs.get(f.name, "side column")} for f in schema],
        "splits": list(plan.splits),
        "ledger": report.ledger,
        "findings": report.to_json()["findings"],
        "detection": report.detection,
        "shards": shards,
        "rejects": rejects,
    }
    body = orjson.loads(orjson.dumps(body))
    report.content_id = manifest.content_id(body)
    report.shards = shards
    ended = time.time()
    run = {"started": _stamp(started), "seconds": round(ended - started, 3)}
    files = {"README.md": card.render(body, report.content_id), manifest.NAME: manifest.seal(body, run)}
    transaction.commit(moves, files)


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
