"""The verbs that need a tokenizer, as a library: `format`, `lengths`, `show`. `api` has the others."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from datakit import ready
from datakit.api import Inputs, complete, existing, named, output_folder
from datakit.errors import UsageError
from datakit.launch import workers as worker_count
from datakit.output.transaction import Transaction
from datakit.plan import FailOn, OnBadRow, parse_size
from datakit.reading.limits import SHARD_SIZE
from datakit.ready import FormatRequest
from datakit.report import Report
from datakit.run import Progress, commit, gather, judge
from datakit.schema import IGNORED
from datakit.shards import Shards
from datakit.tokens.load import load as load_tokenizer
from datakit.workers import Pool

IDS: Final = ("input_ids", "prompt_ids", "chosen_ids", "rejected_ids", "completion_ids")


def format(
    inputs: Inputs,
    output: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str],
    method: str | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    truncation: str = "error",
    train_on: str = "all",
    leave_out: Sequence[str] = (),
    pack: str | None = None,
    pad_multiple: int | None = None,
    control_tokens: str = "error",
    now: str | None = None,
    render_only: bool = False,
    layout: str = "trl",
    on_bad_row: OnBadRow = "fail",
    max_bad: str | None = None,
    fail_on: FailOn = "error",
    severity: Mapping[str, str] | None = None,
    workers: int | None = None,
    shard_size: str | int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Render, mask, tokenise and fit a shard folder, so that nothing is tokenised again at training time.

    Args:
        inputs: shard folders that `convert` wrote, of one kind.
        output: the folder of the new shards; whole or absent.
        tokenizer: a folder, a tokenizer.json, or a name on the Hub.
        method: sft, dpo, orpo, cpo, kto, bco, reward, grpo or stepwise; by default by the kind of the rows.
        chat_template: a Jinja file instead of the tokenizer's own template.
        max_length: tokens that a row may have.
        truncation: what becomes of a longer one: error, drop, keep_start, keep_end, per_part or window; see `fit`.
        train_on: all assistant turns but those of weight 0, the last of them, tagged ones (a weight above 0), or
            everything.
        leave_out: regular expressions; an assistant turn whose whole text one of them matches is not trained.
        pack: bfd, bfd_split or wrapped: several rows in one sequence of max_length.
        pad_multiple: recorded for the trainer's collator; shards hold no padding.
        control_tokens: what becomes of a row whose data holds a control token: error, escape, quarantine or allow.
        now: the time that templates with a date are given.
        render_only: text columns instead of ids.
        layout: names of token columns: trl, or easydel.
        on_bad_row, max_bad, fail_on, severity, workers, shard_size, overwrite, progress: as in `convert`.

    Returns:
        The report; `exit_code` 1 and no output where rows fail. `facts` has the share of trained tokens by source and,
        where a row is too long, what each truncation would lose.

    Raises:
        UsageError: the call is wrong; no template, no proof possible, or an output of another plan exists.
        CannotJudge: an input or the tokenizer cannot be read.
        NotWritten, Locked: as in `convert`.
    """
    started = time.time()
    request = FormatRequest(
        inputs=named(inputs)[0],
        tokenizer=os.fspath(tokenizer),
        method=method,
        chat_template=os.fspath(chat_template) if chat_template is not None else None,
        max_length=max_length,
        truncation=truncation,
        train_on=train_on,
        leave_out=list(leave_out),
        pack=pack,
        pad_multiple=pad_multiple,
        control_tokens=control_tokens,
        now=now,
        render_only=render_only,
        layout=layout,
        on_bad_row=on_bad_row,
        max_bad=max_bad,
        fail_on=fail_on,
        severity=dict(severity or {}),
        shard_size=parse_size(shard_size) if isinstance(shard_size, str) else shard_size,
    )
    request.check()
    out = output_folder(output, request, None)
    with Transaction(out) as transaction, Pool(worker_count(workers), arrays=True) as pool:
        old = existing(out, request, overwrite)
        plan = ready.make(request, pool)
        if report := complete("format", out, old, plan, overwrite):
            transaction.clean()
            return report
        seen = gather(plan, pool, transaction, progress)
        report = judge(plan, seen, "format")
        report.facts = ready.facts(plan, seen.tally.counts)
        if report.exit_code:
            transaction.clean()
            return report
        report.output = str(output)
        commit(plan, seen, report, transaction, started)
        return report


def lengths(
    inputs: Inputs,
    *,
    tokenizer: str | os.PathLike[str],
    method: str | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    train_on: str = "all",
    control_tokens: str = "allow",
    severity: Mapping[str, str] | None = None,
    batch: int = 8,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """How long rows are in tokens, before a length is chosen. Writes nothing.

    Args:
        batch: rows per batch, for the share of padding.
        inputs, tokenizer, method, chat_template, train_on, control_tokens, severity, workers: as in `format`.

    Returns:
        The report; `facts` has percentiles, a histogram, a suggested length and batch, for all rows and by source. Rows
        that cannot be formatted are counted as findings and do not fail the call.
    """
    request = FormatRequest(
        inputs=named(inputs)[0],
        tokenizer=os.fspath(tokenizer),
        method=method,
        chat_template=os.fspath(chat_template) if chat_template is not None else None,
        train_on=train_on,
        control_tokens=control_tokens,
        fail_on="never",
        severity=dict(severity or {}),
    )
    request.check()
    with Pool(worker_count(workers), arrays=True) as pool:
        plan = ready.make(request, pool, encode=False)
        seen = gather(plan, pool, None, progress)
    report = judge(plan, seen, "lengths")
    by_source = ready.lengths_of(seen.tally.counts)
    from datakit import sizes

    everything = sizes.Lengths()
    for own in by_source.values():
        everything.add(own)
    report.facts = sizes.report(everything, batch)
    if len(by_source) > 1:
        report.facts["sources"] = {source: sizes.report(own, batch) for source, own in sorted(by_source.items())}
    report.facts["notes"] = plan.notes
    return report


def show(
    folder: str | os.PathLike[str], *, row: int = 0, split: str | None = None, tokenizer: str | None = None
) -> Report:
    """One row of a formatted folder as text, token by token, with what is trained.

    Args:
        folder: what `format` wrote.
        row: its number, from 0, in file order.
        split: of this split.
        tokenizer: where the tokenizer is now, if not where it was.

    Returns:
        The report; `facts["columns"]` has for each column the tokens as `[text, trained]`.

    Raises:
        NoManifest, UnreadableInput: the folder is not what its manifest says.
        UsageError: no such row, or the tokenizer is another one.
    """
    shards = Shards.open(folder, split)
    prepared = shards.manifest["plan"].get("prepared")
    if not prepared or "tokenizer" not in prepared:
        raise UsageError(
            f"{folder} holds no formatted rows", "`datakit format` writes such; `datakit export` shows others."
        )
    found = _row(shards, row)
    if found is None:
        raise UsageError(f"{folder} has {len(shards)} rows; there is no row {row}", "Rows are counted from 0.")
    named_columns = [name for name in IDS if name in found]
    own = load_tokenizer(tokenizer or prepared["tokenizer"]["path"])
    if own.sha256 != prepared["tokenizer"]["sha256"]:
        raise UsageError(f"{own.path} is not the tokenizer of these shards", "Its sha256 stands in manifest.json.")
    with Pool(1, arrays=True) as pool:
        pieces = pool.ask("pieces", own.path, own.to_json(), [list(map(int, found[name])) for name in named_columns])
    report = Report("show", rows_in=1, rows_out=1, complete=True, verdict="shown", output=None)
    columns = {}
    for name, texts in zip(named_columns, pieces, strict=True):
        trained = [name != "prompt_ids"] * len(texts)
        if name == "input_ids":
            trained = [label != IGNORED for label in found["labels"]]
        columns[name] = [[text, flag] for text, flag in zip(texts, trained, strict=True)]
    others = {name: value for name, value in found.items() if name not in (*IDS, "labels")}
    special = sorted({token.content for token in own.added if token.special} | {*own.special.values()})
    report.facts = {"row": row, "columns": columns, "others": others, "special": special}
    return report


def _row(shards: Shards, number: int) -> dict[str, Any] | None:
    """One row by its number, without reading the row groups before it."""
    if number < 0:
        return None
    import pyarrow.parquet as pq

    from datakit.reading.columnar import plain_rows

    for path in map(Path, shards.paths):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if number < rows:
                    batch = file.read_row_group(group).combine_chunks().to_batches()[0].slice(number, 1)
                    return plain_rows(batch)[0]
                number -= rows
    return None
