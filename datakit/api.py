"""The verbs. Each builds a request, runs it and returns what it found; none prints, none ends the process."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from datakit import checks as registry
from datakit import describe, launch
from datakit import plan as plans
from datakit.checks.reasons import REASONS, Reason
from datakit.errors import UnknownFormat, UsageError
from datakit.formats import FORMATS
from datakit.formats.mapping import Spec
from datakit.output import manifest as manifests
from datakit.output import place
from datakit.output.disk import not_written
from datakit.output.transaction import Transaction
from datakit.plan import FailOn, OnBadRow, Plan, Reasoning, Request
from datakit.reading.decode import File
from datakit.reading.limits import SHARD_SIZE
from datakit.reading.sources import expand
from datakit.report import Report, check_budget
from datakit.run import ColumnsWanted, Progress, Seen, commit, gather, judge
from datakit.shards import Shards
from datakit.terminal import plural
from datakit.workers import Pool

if TYPE_CHECKING:
    from datakit.ready import FormatPlan, FormatRequest

Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Iterable[Mapping[str, Any]]
"""Names, or rows: a `datasets.Dataset`, or any iterable of dicts."""


ROWS_OF: Final = {"to_pylist": "to_pylist()", "iter_rows": "iter_rows(named=True)", "iloc": "to_dict('records')"}
"""What tables of pyarrow, polars and pandas have and nothing else has, and the call that gives their rows."""


def named(inputs: Inputs) -> tuple[list[str], Iterable[Any] | None]:
    """The inputs as words, or as rows."""
    if isinstance(inputs, str | os.PathLike):
        return [os.fspath(inputs)], None
    if isinstance(inputs, list | tuple) and all(isinstance(x, str | os.PathLike) for x in inputs):
        return [os.fspath(x) for x in inputs], None
    _check_rows(inputs)
    return [], inputs


def _check_rows(inputs: Any) -> None:
    """Refuse what is a table or a set of splits: its elements are columns or names.

    Raises:
        UsageError: with what gives its rows.
    """
    if isinstance(inputs, Mapping):
        names = ", ".join(repr(name) for name in list(inputs)[:3])
        raise UsageError(
            f"a {type(inputs).__name__} with {names}, where rows are expected",
            "Hand over one of its values, such as data['train'], or a list of rows.",
        )
    for method, call in ROWS_OF.items():
        if hasattr(inputs, method):
            raise UsageError(f"a {type(inputs).__name__}, where rows are expected", f"Hand over data.{call}.")
    if not isinstance(inputs, Iterable):
        raise UsageError(
            f"inputs is of type {type(inputs).__name__}", "Name files or folders, or hand over an iterable of dicts."
        )


def _workers(count: int | None) -> int:
    if count is not None and (not isinstance(count, int) or count < 1):
        raise UsageError(f"--workers {count!r}", "A whole number, at least one.")
    return launch.workers(count)


def _request(inputs: Inputs, **options: Any) -> tuple[Request, Iterable[Any] | None]:
    names, objects = named(inputs)
    if objects is not None:
        names = ["<objects>"]
    request = Request(names, **options)
    request.check()
    return plans.as_before(request), objects


def convert(
    inputs: Inputs = (),
    output: str | os.PathLike[str] = "",
    *,
    to: str | None = None,
    format: str | None = None,
    map: Spec | None = None,
    split: Sequence[str] = (),
    on_bad_row: OnBadRow = "fail",
    max_bad: str | None = None,
    fail_on: FailOn = "error",
    severity: Mapping[str, str] | None = None,
    reasoning: Reasoning = "keep",
    from_rejects: str | None = None,
    workers: int | None = None,
    shard_size: str | int = SHARD_SIZE,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Convert files or rows to a folder of Parquet shards that is whole or absent.

    Args:
        inputs: files, folders, globs, `-`, `hf:NAME`, a `datasets.Dataset`, or any iterable of dicts.
        output: the folder of the shards.
        to: `KIND[:FORM[:strings|messages]]`; settles an ambiguous detection.
        format: read every input as this format instead of detecting it.
        map: a TOML file that says what the columns mean, `dataset_info.json:NAME`, or a mapping with what such a file
            says.
        split: `NAME[=GLOB]` for each split.
        on_bad_row: `fail` writes nothing where a row is bad, `quarantine` puts bad rows into `rejects/`.
        max_bad: how many bad rows quarantine tolerates: `"0.1 %"` or `"20 rows"`.
        fail_on: the severity from which findings fail the run.
        severity: check id or name -> error, warning, note or off.
        reasoning: what becomes of `<think>` texts: keep, split (to reasoning_content) or inline (back).
        from_rejects: a rejects folder whose `raw` texts were repaired, instead of inputs; read as they were read.
        workers: processes that parse; by default one per core, at most eight. The output does not depend on it.
        shard_size: decoded input bytes per shard, such as `256MiB`.
        overwrite: replace an output of another plan.
        progress: called with decoded bytes and rows done.

    Returns:
        The report; `exit_code` 1 and no output where the data fails.

    Raises:
        UsageError: the call is wrong, or the output exists with another plan.
        CannotJudge: an input cannot be read or understood.
        NotWritten: the disk is full or refuses; an older output is intact.
        Locked: another process writes the same output.
    """
    started = time.time()
    check_budget(on_bad_row, max_bad)
    size = plans.parse_size(shard_size) if isinstance(shard_size, str) else shard_size
    request, objects = _request(
        inputs,
        splits=[split] if isinstance(split, str) else list(split),
        to=to,
        format=format,
        map=map,
        on_bad_row=on_bad_row,
        max_bad=max_bad,
        fail_on=fail_on,
        reasoning=reasoning,
        from_rejects=from_rejects,
        shard_size=size,
        severity=dict(severity or {}),
    )
    out = output_folder(output, request, objects)
    with Transaction(out) as transaction, Pool(_workers(workers)) as pool:
        old = existing(out, request, overwrite)
        plan = plans.make(request, objects, transaction.spool, pool.ask)
        if report := complete("convert", out, old, plan, overwrite):
            transaction.clean()
            return report
        plan, seen = _gathered(plan, pool, transaction, progress)
        report = judge(plan, seen, "convert")
        if report.exit_code:
            transaction.clean()
            return report
        report.output = str(output)
        commit(plan, seen, report, transaction, started)
        return report


def _gathered(plan: Plan, pool: Pool, transaction: Transaction | None, progress: Progress | None) -> tuple[Plan, Seen]:
    """Run the plan; again with another column where a late row needs it."""
    while True:
        try:
            return plan, gather(plan, pool, transaction, progress)
        except ColumnsWanted as wanted:
            plan.step = replace(plan.step, optional=sorted({*plan.step.optional, *wanted.names}))


def output_folder(
    output: str | os.PathLike[str], request: Request | FormatRequest, objects: Iterable[Any] | None
) -> Path:
    words: list[str] = []
    if objects is None:
        words = [request.from_rejects] if request.from_rejects else list(request.inputs)
        words += [split.partition("=")[2] for split in request.splits if "=" in split and not words]
    names = [name for word in words if word and not word.startswith("hf:") for name in expand([word])]
    return place.output_folder(output, names)


def existing(out: Path, request: Request | FormatRequest, overwrite: bool) -> dict[str, Any] | None:
    """The manifest of an output that is there already, or None.

    Raises:
        UsageError: what is there is not ours, or has another plan and must not be overwritten.
    """
    old = place.earlier(out, overwrite)
    if old is None:
        return None
    if old["plan"]["request"] != request.to_json() and not overwrite:
        raise UsageError(f"{out} exists, made with other inputs or options", "Replace it with --overwrite.")
    return old


COMPARED: Final = ("request", "splits", "formats", "layout", "prepared")
"""Parts of a plan that must be equal for an output to be what it would make."""


def complete(
    command: str, out: Path, old: Mapping[str, Any] | None, plan: Plan | FormatPlan, overwrite: bool
) -> Report | None:
    """The report of an output that is already what this plan would make; None where it is to be made.

    Raises:
        UsageError: it is something else, and must not be overwritten.
    """
    if old is None:
        return None
    if not _same(out, old, plan):
        if overwrite:
            return None
        raise UsageError(
            f"{out} exists, and its inputs or its files have changed since", "Replace it with --overwrite."
        )
    report = _report_of(command, str(out), old)
    report.verdict = "already complete; nothing was written"
    return report


def _same(out: Path, old: Mapping[str, Any], plan: Plan | FormatPlan) -> bool:
    """Whether plan, inputs and files are those of the manifest."""
    fresh = plan.to_json()
    if any(old["plan"].get(key) != fresh[key] for key in COMPARED if key in fresh):
        return False
    for source, known in zip(plan.sources, old["inputs"], strict=True):
        real = str(Path(source.path) / manifests.NAME) if source.how == "shards" else source.real
        file = File(source.path, None, real)
        for _ in file.raw():
            pass
        if file.sha256 != known["sha256"]:
            return False
    return not manifests.mismatches(out, old)


def _report_of(command: str, folder: str, manifest: Mapping[str, Any]) -> Report:
    """What a manifest says, as a report."""
    ledger = manifest["ledger"]
    report = Report(
        command,
        rows_in=ledger["rows_in"],
        rows_out=ledger["rows_out"],
        rows_rejected=ledger["rows_rejected"],
        rejected=ledger["rejected"],
        format="+".join(dict.fromkeys(entry["format"] for entry in manifest["inputs"])),
        kind=manifest["kind"],
        form=manifest["form"],
        conversational=manifest["conversational"],
        shards=manifest["shards"],
        complete=True,
        output=folder,
        content_id=manifest["content_id"],
        inputs=manifest["inputs"],
        ledger=dict(ledger),
        verdict="passed",
    )
    if command in ("convert", "format"):  # for others they are old news
        report.findings = [_summary(entry) for entry in manifest["findings"]]
    return report


def _summary(entry: Mapping[str, Any]) -> Any:
    from datakit.report import Summary

    return Summary(**entry)


def validate(
    inputs: Inputs = (),
    *,
    to: str | None = None,
    format: str | None = None,
    map: Spec | None = None,
    split: Sequence[str] = (),
    max_bad: str | None = None,
    fail_on: FailOn = "error",
    severity: Mapping[str, str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Judge files, rows or a shard folder, and write nothing.

    Args: as in `convert`.

    Returns:
        The report; `exit_code` 1 where the data fails.

    Raises:
        UsageError: the call is wrong.
        CannotJudge: an input cannot be read or understood.
    """
    request, objects = _request(
        inputs,
        splits=list(split),
        to=to,
        format=format,
        map=map,
        max_bad=max_bad,
        fail_on=fail_on,
        severity=dict(severity or {}),
    )
    with tempfile.TemporaryDirectory(prefix="datakit-") as folder, Pool(_workers(workers)) as pool:
        plan = plans.make(request, objects, Path(folder), pool.ask, encode=False)
        plan, seen = _gathered(plan, pool, None, progress)
        report = judge(plan, seen, "validate")
    names = named(inputs)[0]
    if len(names) == 1 and (Path(names[0]) / manifests.NAME).is_file():
        manifest = manifests.load(names[0])
        report.shards, report.content_id = manifest["shards"], manifest["content_id"]
    return report


def verify(folder: str | os.PathLike[str]) -> Report:
    """Compare a shard folder with its manifest: every file there, with its bytes, and none besides.

    Returns:
        The report; `exit_code` 1 and `facts["mismatches"]` where something differs.

    Raises:
        NoManifest: there is no manifest, or it does not match its own hash.
    """
    manifest = manifests.load(folder)
    wrong = manifests.mismatches(folder, manifest)
    report = _report_of("verify", os.fspath(folder), manifest)
    report.facts = {"mismatches": [{"path": path, "what": what} for path, what in wrong]}
    if wrong:
        differ = "differs" if len(wrong) == 1 else "differ"
        report.exit_code, report.verdict = 1, f"{plural(len(wrong), 'file')} {differ} from the manifest"
    else:
        report.verdict = f"{plural(len(manifest['shards']), 'shard')} as the manifest says"
    return report


def stats(folder: str | os.PathLike[str]) -> Report:
    """Lengths, turns, roles, tools, labels and sources of a shard folder, in `facts`.

    Raises:
        NoManifest: not a shard folder.
        UnreadableInput: its files are not those of the manifest.
    """
    shards = load(folder)
    report = _report_of("stats", os.fspath(folder), shards.manifest)
    report.facts = describe.compute(shards)
    return report


def export(
    folder: str | os.PathLike[str],
    jsonl: str | os.PathLike[str],
    *,
    split: str | None = None,
    all: bool = False,
    overwrite: bool = False,
) -> Report:
    """Write the rows of a shard folder as JSON Lines.

    Args:
        folder: the shards.
        jsonl: the file to write; `-` is the caller's business.
        split: only this split.
        all: the dk_ columns too, not only what trainers read.
        overwrite: replace a file that exists.

    Raises:
        NoManifest, UnreadableInput: the folder is not what its manifest says.
        UsageError: the file exists.
        NotWritten: the disk refuses.
    """
    target = Path(jsonl)
    if target.name in ("", "-") or target.suffix in (".gz", ".zst", ".bz2"):
        raise UsageError(f"--jsonl {jsonl}: not the name of a plain file", "Write to a .jsonl file and pack that.")
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists", "Replace it with --overwrite.")
    shards = load(folder, split=split)
    report = _report_of("export", os.fspath(folder), shards.manifest)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    rows = 0
    try:
        with not_written(target), temporary.open("wb") as handle:
            for row in shards.rows(all=all):
                handle.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                rows += 1
            handle.flush()
            os.fsync(handle.fileno())
        with not_written(target):
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    report.rows_in = report.rows_out = rows
    report.output = str(target)
    report.verdict = f"{plural(rows, 'row')} written"
    return report


def load(folder: str | os.PathLike[str], *, split: str | None = None) -> Shards:
    """Open a shard folder by its manifest, after comparing every file with it.

    Args:
        folder: the shards.
        split: only this split; by default all, in order.

    Raises:
        NoManifest: not a shard folder.
        UnreadableInput: its files are not those of the manifest.
        UsageError: no such split.
    """
    return Shards.open(folder, split)


def detect(inputs: Inputs, *, to: str | None = None) -> Report:
    """What each input is, with the evidence, in `detection`.

    Raises:
        UnknownFormat, AmbiguousFormat: with the choices.
        UnreadableInput: an input cannot be read.
    """
    request, objects = _request(inputs, to=to)
    with tempfile.TemporaryDirectory(prefix="datakit-") as folder, Pool(1) as pool:
        plan = plans.make(request, objects, Path(folder), pool.ask, encode=False)
    layout = plan.step.layout
    report = Report("detect", format=plan.format_name, kind=layout.kind, form=layout.form)
    report.conversational, report.complete, report.verdict = layout.conversational, True, "detected"
    for source, found in zip(plan.sources, plan.detections, strict=True):
        if found is not None:
            report.detection.append({"path": source.path, "read_as": source.how, **found.to_json()})
        elif source.how == "shards":
            report.detection.append({"path": source.path, "read_as": source.how, "format": "datakit"})
    if not report.detection:
        raise UnknownFormat(f"{', '.join(request.inputs)}: no row could be read", "Is the file empty?")
    return report


def list_formats() -> list[dict[str, Any]]:
    """Every known source format."""
    return [
        {
            "name": format.name,
            "becomes": format.layout.name,
            "doc": format.doc,
            "signature": dict(format.signature),
            "example": format.example,
            "verified": format.verified,
            "source": format.source,
        }
        for format in FORMATS.values()
    ]


def list_checks() -> list[dict[str, Any]]:
    """Every check: its severity and whether that stays, its rule and reason, what to do, and an example."""
    return [
        {
            "id": check.id,
            "name": check.name,
            "severity": check.severity,
            "kinds": list(check.kinds) or ["all"],
            "stays": check.stays,
            "rule": check.rule,
            "why": reason.why,
            "fix": check.fix,
            "example": reason.example,
        }
        for check in registry.CHECKS.values()
        for reason in [REASONS.get(check.id, Reason(""))]
    ]


def explain(name: str) -> dict[str, Any]:
    """One check by id or name.

    Raises:
        UsageError: there is none.
    """
    check = registry.find(name)
    return next(entry for entry in list_checks() if entry["id"] == check.id)
