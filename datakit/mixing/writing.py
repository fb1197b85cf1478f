"""The verb `mix`: a recipe to a plan, and the plan to a folder of shards.

A piece is about four megabytes of the mix and becomes one row group. Which rows it holds is arithmetic, so the bytes
follow from the recipe and the sources alone. Reading and arranging the next piece goes on while one is written.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import numpy as np
import orjson
import pyarrow.parquet as pq

from datakit import checks
from datakit.errors import InternalError, UsageError
from datakit.mixing import recipe as recipes
from datakit.mixing.arrangement import Arrangement, arrange
from datakit.mixing.gather import Gatherer
from datakit.mixing.recipe import Recipe, Words
from datakit.mixing.sources import Source, Sources
from datakit.plan import FailOn
from datakit.reading.limits import BLOCK
from datakit.report import Report, check_gate, failing, summarise
from datakit.rewrite import Piece, Work, write
from datakit.run import Progress
from datakit.tally import Tally
from datakit.terminal import plural
from datakit.whole import SetFinding

GIVEN: Final = "mixed {}"
"""Counts of the tally: rows that a source has given."""


def mix(
    recipe: Words,
    output: str | os.PathLike[str] = "",
    *,
    weights: Sequence[float] | None = None,
    rows: int | None = None,
    tokens: int | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    stop: str | None = None,
    block_size: int | None = None,
    order: str | None = None,
    plan_only: bool = False,
    severity: Mapping[str, str] | None = None,
    fail_on: FailOn = "error",
    workers: int | None = None,
    overwrite: bool = False,
    planned: Callable[[Report], None] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Mix sources by weight into a folder of shards.

    Args:
        recipe: a TOML file, a mapping with what such a file says, or the sources themselves: shard folders, files,
            `hf:NAME`.
        output: the folder of the new shards; whole or absent.
        weights: one per source, in order.
        rows: rows of the mix.
        tokens: tokens of the mix, to within a row; weights count tokens then, unless the recipe says otherwise.
        tokenizer: a folder, a tokenizer.json or a name on the Hub: what measures rows without dk_length.
        seed: decides every shuffle; by default the recipe's, else 0.
        stop: when the mix ends: first_exhausted (default), all_exhausted (exhausted sources leave), restart (needs rows
            or tokens), all_exhausted_restart, or repeat:N.
        block_size: rows of a block, each of which holds the weights; 1000 by default.
        order: source (default), window:N or shuffle.
        plan_only: return the plan and write nothing; the plan fails where the mix would.
        severity, fail_on: as in `convert`; they decide about the plan too.
        workers: processes that convert and measure sources on the way. The output is the same for any number.
        overwrite: replace an output of other work.
        planned: called with the plan before anything is written.
        progress: called with bytes and rows done.

    Returns:
        The report. `facts["sources"]` has for each source its rows, tokens and epochs, and its weight as asked for and
        as given. `exit_code` is 1 and there is no output where the plan breaks a limit of the recipe.

    Raises:
        UsageError: the recipe is wrong, the sources do not go together or cannot give what is asked for.
        CannotJudge: a source cannot be read.
        NotWritten, Locked: as in `convert`.
    """
    read = recipes.read(
        recipe,
        weights,
        rows=rows,
        tokens=tokens,
        tokenizer=tokenizer,
        seed=seed,
        stop=stop,
        block_size=block_size,
        order=order,
    )
    check_gate(severity, fail_on)
    if not plan_only and not os.fspath(output):
        raise UsageError("no output", "Name a folder with -o, or look at the plan with --plan-only.")
    with Sources(read, workers) as sources:
        plan = arrange(read, [source.size for source in sources])
        report = _plan_report(plan, sources, severity, fail_on)
        if planned is not None:
            planned(report)
        if plan_only or report.exit_code:
            return report
        work = _work(plan, sources, severity, fail_on)

        def finish(tally: Tally) -> Sequence[SetFinding]:
            _counted(plan, tally)
            return [*seen(plan), *left_out(sources)]

        made = write(work, _pieces(plan, sources), output, overwrite=overwrite, finish=finish, progress=progress)
        made.facts = report.facts
        return made


def identity(recipe: Recipe, sources: Sources) -> str:
    """A hash of everything that decides which row stands where."""
    entries = {**recipe.to_json(), "tokenizer": None}
    for entry, content in zip(entries["sources"], sources.identity, strict=True):
        entry["path"] = content
    lengths = [None if s.lengths is None or not recipe.needs_tokens else _digest(s.lengths) for s in sources]
    return sha256(orjson.dumps([entries, lengths], option=orjson.OPT_SORT_KEYS)).hexdigest()


def _digest(lengths: np.ndarray[Any, Any]) -> str:
    return sha256(np.ascontiguousarray(lengths, "<i8").tobytes()).hexdigest()


# ---------------------------------------------------------------- the plan, for people and machines


def facts(plan: Arrangement, sources: Sequence[Source]) -> dict[str, Any]:
    """The plan in numbers."""
    recipe, total = plan.recipe, len(plan)
    tokens = plan.tokens
    sums = [n for n in tokens if n is not None]
    all_tokens = sum(sums) if len(sums) == len(tokens) else None
    given = tokens if recipe.weigh_by == "tokens" else plan.rows
    whole = sum(n or 0 for n in given)
    entries: dict[str, dict[str, Any]] = {}
    for number, (source, size) in enumerate(zip(sources, plan.sizes, strict=True)):
        count = plan.rows[number]
        asked = plan.asked[number] if plan.asked else None
        entries[source.entry.name] = {
            "path": source.entry.path,
            "available": size.rows,
            "left_out_by_filter": len(source.shards) - size.rows,
            "rows": count,
            "tokens": tokens[number],
            "epochs": round(count / size.rows, 4),
            "asked": None if asked is None else round(asked, 6),
            "expected": None if asked is None else round(asked * whole, 1),
            "given": round((given[number] or 0) / whole, 6) if whole else 0.0,
        }
    return {
        "rows": total,
        "tokens": all_tokens,
        "blocks": len(plan.starts) - 1,
        "weigh_by": recipe.weigh_by,
        "stop": recipe.stop,
        "order": recipe.order,
        "block_size": recipe.block_size,
        "seed": recipe.seed,
        "sources": entries,
    }


def seen(plan: Arrangement) -> list[SetFinding]:
    """Findings about the plan."""
    found: list[SetFinding] = []
    blocks = max(1, len(plan.starts) - 1)
    for entry, size, count in zip(plan.recipe.sources, plan.sizes, plan.rows, strict=True):
        epochs = count / size.rows
        told = f"{size.name}: {plural(count, 'row')} from {size.rows:,}, each {epochs:.4g} times"
        if entry.epochs is not None and count > entry.epochs * size.rows:
            found.append(SetFinding("DK821", f"{told}, more than epochs = {entry.epochs:g}"))
        elif count > size.rows:
            found.append(SetFinding("DK820", told))
        if count < blocks:
            found.append(SetFinding("DK822", f"{size.name}: {plural(count, 'row')} in {plural(blocks, 'block')}"))
        if count < size.rows:
            unused = f"{size.rows - count:,} of {plural(size.rows, 'row')} are not used"
            found.append(SetFinding("DK823", f"{size.name}: {unused}", size.rows - count))
    if plan.recipe.schedule is not None:
        axis, unseen = plan.recipe.schedule.axis, plan.recipe.schedule.scheduler.unseen(plan.places)
        words = f"of {plural(blocks, 'block')} none has weights of the point at"
        found += [SetFinding("DK824", f"{words} {at:,} {axis}") for at in unseen]
    return found


def left_out(sources: Sequence[Source]) -> Iterator[SetFinding]:
    """Findings about the splits of sources that are not the one that is mixed."""
    for source in sources:
        others: Counter[str] = Counter()
        for shard in source.shards.manifest["shards"]:
            others[shard["split"]] += shard["rows"]
        del others[str(source.shards.split)]
        if others:
            told = ", ".join(f"{name} ({plural(rows, 'row')})" for name, rows in others.items())
            words = f"{source.entry.name}: split {source.shards.split} is taken, not {told}"
            yield SetFinding("DK823", words, others.total())


def _plan_report(plan: Arrangement, sources: Sources, severity: Mapping[str, str] | None, fail_on: FailOn) -> Report:
    tally = Tally(rows_in=sum(size.rows for size in plan.sizes))
    findings = summarise(tally, checks.severities(severity), [*seen(plan), *left_out(sources)])
    layout = sources.layout
    report = Report(
        "mix",
        rows_in=sum(len(source.shards) for source in sources),
        rows_out=len(plan),
        format="datakit",
        kind=layout.kind,
        form=layout.form,
        conversational=layout.conversational,
        findings=findings,
        complete=True,
        verdict="planned; nothing was written",
        facts=facts(plan, sources),
    )
    failed = failing(findings, fail_on)
    if failed:
        report.fail_by(failed)
    elif not len(plan):
        report.exit_code, report.verdict = 1, "no rows"
    return report


# ---------------------------------------------------------------- the rows


def _work(plan: Arrangement, sources: Sources, severity: Mapping[str, str] | None, fail_on: FailOn) -> Work:
    return Work(
        "mix",
        {"recipe": plan.recipe.to_json(), "identity": identity(plan.recipe, sources)},
        [source.shards for source in sources],
        sources.layout,
        sources.columns,
        facts={**sources.prepared, "mix": facts(plan, sources)},
        severity=severity or {},
        fail_on=fail_on,
    )


def rows_per_piece(plan: Arrangement, sources: Sequence[Source]) -> int:
    """Rows of about a block of bytes, by what the footers of the sources say about the size of their rows."""
    size = 0.0
    for source, count in zip(sources, plan.rows, strict=True):
        groups = [pq.read_metadata(path) for path in source.shards.paths]
        total = sum(data.row_group(i).total_byte_size for data in groups for i in range(data.num_row_groups))
        size += total / max(1, len(source.shards)) * count
    return max(1, round(BLOCK * len(plan) / max(1.0, size)))


def _pieces(plan: Arrangement, sources: Sources) -> Iterator[Piece]:
    gatherer = Gatherer(plan, sources, sources.columns)
    step = rows_per_piece(plan, sources)
    done = [0] * len(sources)
    for start in range(0, len(plan), step):
        table, origins = gatherer.rows(start, min(start + step, len(plan)))
        tally = Tally()
        read: dict[int, int] = {}
        counts = np.bincount(origins, minlength=len(sources)).tolist()
        for number, count in enumerate(counts):
            read[number] = _account(tally, plan, number, done[number], done[number] + count)
            done[number] += count
            tally.counts[GIVEN.format(sources[number].entry.name)] += count
        yield Piece("train", table, tally, read=read)
    yield _unused(plan, sources)


def _account(tally: Tally, plan: Arrangement, number: int, start: int, stop: int) -> int:
    """Count the rows of a source that are used for the first time here, each as often as it is used in all."""
    rows, total = plan.sizes[number].rows, plan.rows[number]
    stop = min(stop, rows)
    if start >= stop:
        return 0
    epochs, more = divmod(total, rows)  # so many rows are used once more than the others
    often = max(0, min(stop, more) - start)
    for times, count in ((epochs + 1, often), (epochs, stop - start - often)):
        if count:
            tally.fanout[str(times)] += count
            tally.rows_out += times * count
    tally.rows_in += stop - start
    tally.single += stop - start
    return stop - start


def _unused(plan: Arrangement, sources: Sequence[Source]) -> Piece:
    """The rows that go nowhere: a filter left them out, or the mix ended before."""
    read = {number: len(source.shards) - min(plan.rows[number], source.rows) for number, source in enumerate(sources)}
    unused = sum(read.values())
    tally = Tally(rows_in=unused, single=unused)
    if unused:
        tally.fanout["0"] += unused
    return Piece("train", None, tally, read=read)


def _counted(plan: Arrangement, tally: Tally) -> None:
    """Compare what was written with the plan.

    Raises:
        InternalError: a source has given another number of rows.
    """
    for size, count in zip(plan.sizes, plan.rows, strict=True):
        if tally.counts[GIVEN.format(size.name)] != count:
            raise InternalError(f"{size.name}: {tally.counts[GIVEN.format(size.name)]} rows, planned {count}")
