"""Shards from shards: the loop of every verb that takes rows from shard folders and puts them into a new one.

A verb settles its work first (`Work`), then yields the rows that go on as tables, each with the account of the rows
that were read for it (`Piece`). Here they are written, hashed, journalled and committed as `convert` does it: the same
transaction, manifest, ledger and card, so that `verify`, `load`, `format` and every other verb read what comes out.

Rows come from folders whose bytes were compared with their manifest, and nothing of a stranger runs on them, so this
works in the process of its caller: tables are made in one thread and written in another.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa

from datakit import __version__, checks
from datakit.checks import CHECKS
from datakit.errors import UsageError
from datakit.output import disk, place
from datakit.output import manifest as manifests
from datakit.output.rowgroup import encode
from datakit.output.shards import ShardWriter
from datakit.output.transaction import Transaction
from datakit.report import Report, Summary, check_gate, failing, summarise
from datakit.run import Progress, Seen, commit
from datakit.schema import ID, ROW, SOURCE, Layout
from datakit.shards import Shards
from datakit.tally import Tally
from datakit.whole import SetFinding

AHEAD: Final = 2
"""Tables that wait for the disk while the next is made."""


@dataclass(slots=True)
class Piece:
    """Rows of one split, and what was read for them.

    Attributes:
        split: where the rows go.
        table: the rows in the columns of `Work.schema`, JSON columns as plain strings; None where none go on. One piece
            becomes one row group.
        tally: rows in, rows out and findings; see `account`.
        rejects: rows that do not go on, as `rejected` makes them.
        read: rows read, by the number of their source in `Work.sources`.
    """

    split: str
    table: pa.Table | None
    tally: Tally
    rejects: list[dict[str, Any]] = field(default_factory=list)
    read: Mapping[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Work:
    """What is to be done, settled before a row is touched.

    Attributes:
        command: the verb.
        request: everything that the user asked for and that decides the output, as plain JSON.
        sources: the opened folders, each with one split.
        layout: kind and form of the new rows.
        columns: their columns, JSON ones as `arrow.json`.
        splits: names, in the order of their pieces.
        facts: what was settled besides, for the manifest (`plan.prepared`) and the report.
        severity: changes to the severities of checks, by id or name.
        fail_on: the severity from which findings fail the run.
        shard_size: bytes of Arrow data per shard.
    """

    command: str
    request: Mapping[str, Any]
    sources: Sequence[Shards]
    layout: Layout
    columns: pa.Schema
    splits: Sequence[str] = ("train",)
    facts: dict[str, Any] = field(default_factory=dict)
    severity: Mapping[str, str] = field(default_factory=dict)
    fail_on: str = "error"
    shard_size: int = 256 << 20

    def schema(self) -> pa.Schema:
        return self.columns

    def _side(self) -> dict[str, str]:
        """The types of side columns, as the sources say them."""
        told = [source.manifest["plan"].get("side") or {} for source in self.sources]
        return {name: type_ for own in told for name, type_ in own.items() if name in self.columns.names}

    def to_json(self) -> dict[str, Any]:
        gate = {"severity": dict(self.severity), "fail_on": self.fail_on}  # a stricter run is another one
        plain: dict[str, Any] = orjson.loads(
            orjson.dumps(
                {
                    "request": {**self.request, **gate, "command": self.command, "tool": __version__},
                    "splits": list(self.splits),
                    "formats": ["datakit"] * len(self.sources),
                    "layout": [self.layout.kind, self.layout.form, self.layout.conversational],
                    "side": self._side(),
                    "prepared": self.facts,
                }
            )
        )
        return plain


def open_folders(inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Shards]:
    """Every split of every named shard folder, verified.

    Raises:
        UsageError: no input, or a folder that `convert` did not write.
        UnreadableInput: a folder is not what its manifest says.
    """
    names = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    if not names:
        raise UsageError("no input", "Name a folder of shards that `datakit convert` wrote.")
    found: list[Shards] = []
    for name in [os.fspath(name) for name in names]:
        manifests.check_folder(name)
        whole = Shards.open(name)
        own = [Shards.open(name, split) for split in whole.manifest["splits"]]
        found += [shards for shards in own if len(shards)] or own[:1]
    return found


def account(kept: int, rejected: Mapping[str, int] | None = None, fanout: int = 1) -> Tally:
    """The ledger of rows that were read one by one.

    Args:
        kept: rows that go on.
        rejected: rows that do not, by the check that says why.
        fanout: output rows that each kept row gives.
    """
    tally = Tally(rows_in=kept + sum((rejected or {}).values()), rows_out=kept * fanout, single=kept)
    tally.rejected.update(rejected or {})
    if kept:
        tally.fanout[str(fanout)] += kept
    return tally


def rejected(rule: str, message: str, source: str | None, row: int | None, id: str | None = None) -> dict[str, Any]:
    """A row that does not go on, with its reason; `source` and `row` are its dk_source and dk_row."""
    return {
        SOURCE.removeprefix("dk_"): source,
        ROW.removeprefix("dk_"): row,
        "format": "datakit",
        "rule": rule,
        "name": CHECKS[rule].name,
        "path": "",
        "message": message,
        "findings": [[rule, "", message]],
        ID: id,
    }


Finish = Callable[[Tally], Sequence[SetFinding]]
"""Findings about the whole, once all pieces are counted."""


def write(
    work: Work,
    pieces: Iterable[Piece],
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    finish: Finish | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write the pieces as a folder of shards that is whole or absent.

    The same work with unchanged inputs gives the same bytes; where the output is already that, nothing is written.
    A run that was killed goes on behind its last finished shard: pieces are made again up to there, and not written.

    Args:
        work: settled.
        pieces: rows in the order in which they are to lie, split by split. Nothing is taken from it before the output
            is known to be wanted.
        output: the folder.
        overwrite: replace an output of other work.
        finish: called at the end for findings about the whole set.
        progress: called with bytes and rows done.

    Returns:
        The report; `exit_code` 1 and no output where findings fail the run.

    Raises:
        UsageError: the output overlaps an input, or exists and is something else.
        NotWritten, Locked: as in `convert`.
    """
    started = time.time()
    check_gate(work.severity, work.fail_on)
    out = place.output_folder(output, [source.path for source in work.sources])
    inputs = [_facts_of(source) for source in work.sources]
    with Transaction(out) as transaction:
        old = _existing(out, work, inputs, overwrite)
        if old is not None:
            transaction.clean()
            return old
        seen = _gather(work, pieces, transaction, inputs, progress)
        report = _judge(work, seen, inputs, finish)
        if report.exit_code:
            transaction.clean()
            return report
        report.output = os.fspath(output)
        commit(work, seen, report, transaction, started)
        return report


def _facts_of(source: Shards) -> dict[str, Any]:
    """An input as the manifest names it; its hash is its content id, which vouches for its rows."""
    size = sum(shard["bytes"] for shard in source.manifest["shards"])
    split = source.split or "train"
    facts = {"path": source.path, "split": split, "read_as": "shards", "compression": None, "format": "datakit"}
    return {**facts, "rows": 0, "bytes": size, "sha256": source.manifest["content_id"]}


def _existing(out: Path, work: Work, inputs: Sequence[Mapping[str, Any]], overwrite: bool) -> Report | None:
    """The report of an output that is already what this work would make; None where it is to be made."""
    old = place.earlier(out, overwrite)
    if old is None:
        return None
    same = old["plan"] == work.to_json() and [e["sha256"] for e in old["inputs"]] == [e["sha256"] for e in inputs]
    if not same or manifests.mismatches(out, old):
        if overwrite:
            return None
        raise UsageError(f"{out} exists, made with other inputs or options", "Replace it with --overwrite.")
    report = _report(work, Tally(), list(old["inputs"]))
    ledger = old["ledger"]
    report.rows_in, report.rows_out, report.rows_rejected = (
        ledger["rows_in"],
        ledger["rows_out"],
        ledger["rows_rejected"],
    )
    report.rejected, report.ledger, report.shards = ledger["rejected"], ledger, old["shards"]
    report.complete, report.output, report.content_id = True, str(out), old["content_id"]
    report.findings = [Summary(**entry) for entry in old["findings"]]
    report.verdict = "already complete; nothing was written"
    return report


# ---------------------------------------------------------------- the loop


class _Writer:
    """Writes the pieces of one split into shards, each with its rejects and a line in the journal."""

    def __init__(self, work: Work, transaction: Transaction, split: str, seen: Seen) -> None:
        self.work, self.transaction, self.split, self.seen = work, transaction, split, seen
        self.sequence = self.pieces = 0
        self._clear()

    def _clear(self) -> None:
        self.size = 0
        self.tally, self.read = Tally(), Counter[int]()
        self.shard: ShardWriter | None = None
        self.rejects: disk.HashedFile | None = None

    @property
    def stem(self) -> str:
        return f"{self.split}-{self.sequence:05d}"

    def add(self, piece: Piece) -> None:
        self.tally.add(piece.tally)
        self.read.update(piece.read)
        self.pieces += 1
        parts = self.transaction.parts
        with disk.not_written(self.transaction.work):
            if piece.table is not None and piece.table.num_rows:
                self.shard = self.shard or ShardWriter(parts / f"{self.stem}.parquet")
                batch = piece.table.combine_chunks().to_batches()[0]
                self.shard.write(encode(batch, self.work.columns))
                self.size += batch.nbytes
            if piece.rejects:
                self.rejects = self.rejects or disk.HashedFile(parts / f"{self.stem}.rejects.jsonl")
                for reject in piece.rejects:
                    self.rejects.write(orjson.dumps(reject, option=orjson.OPT_APPEND_NEWLINE))
        if self.size >= self.work.shard_size:
            self.finish()

    def finish(self) -> None:
        """Close the shard, if there is one."""
        if not self.tally.rows_in and self.shard is None:
            return
        files: dict[str, list[Any]] = {}
        with disk.not_written(self.transaction.work):
            if self.shard:
                files[f"{self.stem}.parquet"] = list(self.shard.close())
            if self.rejects:
                self.rejects.close()
                files[f"{self.stem}.rejects.jsonl"] = [self.rejects.bytes, self.rejects.sha256]
        entry = {
            "split": self.split,
            "sequence": self.sequence,
            "pieces": self.pieces,
            "rows": self.shard.rows if self.shard else 0,
            "tally": self.tally.to_json(),
            "read": {str(number): rows for number, rows in self.read.items()},
            "files": files,
        }
        self.transaction.finish_part(entry)
        take_over(self.seen, entry)
        self.sequence += 1
        self._clear()

    def discard(self) -> None:
        for file in (self.shard, self.rejects):
            if file is not None:
                file.discard()


def take_over(seen: Seen, entry: Mapping[str, Any]) -> None:
    """Count a finished shard."""
    tally = Tally.from_json(entry["tally"])
    seen.tally.add(tally)
    seen.source_rows.update({int(number): rows for number, rows in entry["read"].items()})
    for name, (size, sha256) in entry["files"].items():
        facts = {"split": entry["split"], "part": name, "bytes": size, "sha256": sha256}
        if name.endswith(".parquet"):
            seen.shards.append({**facts, "rows": entry["rows"]})
        else:
            seen.rejects.append({**facts, "rows": tally.rejected.total()})


def _gather(
    work: Work,
    pieces: Iterable[Piece],
    transaction: Transaction,
    inputs: Sequence[Mapping[str, Any]],
    progress: Progress | None,
) -> Seen:
    seen = Seen()
    finished = transaction.begin({**work.to_json(), "inputs": list(inputs)})
    for entry in finished:
        take_over(seen, entry)
    last = {entry["split"]: entry for entry in finished}
    made = Counter[str]()
    bytes_done = rows_done = 0
    writers: dict[str, _Writer] = {}
    try:
        for piece in _ahead(pieces):
            made[piece.split] += 1
            if made[piece.split] <= last.get(piece.split, {}).get("pieces", 0):
                continue
            if piece.split not in writers:
                writer = writers[piece.split] = _Writer(work, transaction, piece.split, seen)
                done = last.get(piece.split)
                writer.sequence, writer.pieces = (done["sequence"] + 1, done["pieces"]) if done else (0, 0)
            writers[piece.split].add(piece)
            bytes_done += piece.table.nbytes if piece.table is not None else 0
            rows_done += piece.tally.rows_in
            if progress is not None:
                progress(bytes_done, rows_done)
        for split in work.splits:
            if split in writers:
                writers[split].finish()
    except BaseException:
        for writer in writers.values():
            writer.discard()
        raise
    return seen


def _ahead(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces, of which the next are made in a thread while one is written."""
    iterator = iter(pieces)
    waiting: list[Future[Piece | None]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="datakit-pieces") as maker:
        try:
            waiting = [maker.submit(next, iterator, None) for _ in range(AHEAD)]
            while (piece := waiting.pop(0).result()) is not None:
                waiting.append(maker.submit(next, iterator, None))
                yield piece
        finally:
            for future in waiting:
                future.cancel()


# ---------------------------------------------------------------- the judgement


def _report(work: Work, tally: Tally, inputs: list[dict[str, Any]]) -> Report:
    return Report(
        work.command,
        rows_in=tally.rows_in,
        rows_out=tally.rows_out,
        rows_rejected=tally.rejected.total(),
        rejected=dict(sorted(tally.rejected.items())),
        format="datakit",
        kind=work.layout.kind,
        form=work.layout.form,
        conversational=work.layout.conversational,
        ledger=tally.ledger(),
        inputs=inputs,
        facts=dict(work.facts),
    )


def _judge(work: Work, seen: Seen, inputs: Sequence[Mapping[str, Any]], finish: Finish | None) -> Report:
    tally = seen.tally
    tally.balance()
    severities = checks.severities(work.severity)
    read = [{**entry, "rows": seen.source_rows[number]} for number, entry in enumerate(inputs)]
    report = _report(work, tally, read)
    report.findings = summarise(tally, severities, list(finish(tally)) if finish else [])
    report.complete = True
    failed = failing(report.findings, work.fail_on)
    if failed:
        report.fail_by(failed)
    elif not tally.rows_out:
        report.exit_code, report.verdict = 1, "no rows"
    else:
        report.verdict = "passed"
    return report
