"""The plan: everything that decides an output, settled before the first row is converted.

Sources are named, identified, sampled and detected here, in the driver; workers are told the answer. The same request
over the same bytes gives the same plan and with it the same shards.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

import orjson
import pyarrow as pa

from datakit import __version__, checks
from datakit.detection import Detection, detect_rows, known_rows
from datakit.errors import AmbiguousFormat, NoManifest, UnknownFormat, UnreadableInput, UsageError, one_of_inputs
from datakit.formats import FORMATS, find, mapping
from datakit.formats.declare import Format, Row, leftover
from datakit.formats.reshape import SOLUTION, reaches
from datakit.output import manifest as manifests
from datakit.reading import delimiter, sources
from datakit.reading.sample import Ask, formats_of_rejects, refine, sample
from datakit.reading.sources import Source
from datakit.report import Budget
from datakit.schema import LAYOUTS, OPTIONAL, TRAINER_NAMES, Layout, Target, Type, layout
from datakit.step import SourcePlan, StepPlan

OnBadRow = Literal["fail", "quarantine"]
FailOn = Literal["error", "warning", "never"]
Reasoning = Literal["keep", "split", "inline"]


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for, as far as it decides the output. Worker count and progress do not.

    Attributes:
        inputs: the words as typed.
        splits: `NAME[=GLOB]`, as typed.
        to, format, map: see `datakit convert --help`.
    """

    inputs: Sequence[str]
    splits: Sequence[str] = ()
    to: str | None = None
    format: str | None = None
    map: mapping.Spec | None = None
    on_bad_row: OnBadRow = "fail"
    max_bad: str | None = None
    fail_on: FailOn = "error"
    reasoning: Reasoning = "keep"
    from_rejects: str | None = None
    shard_size: int = 256 << 20
    severity: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse words that contradict each other.

        Raises:
            UsageError: with what to write instead.
        """
        for name, value, allowed in (
            ("--on-bad-row", self.on_bad_row, ("fail", "quarantine")),
            ("--fail-on", self.fail_on, ("error", "warning", "never")),
            ("--reasoning", self.reasoning, ("keep", "split", "inline")),
        ):
            if value not in allowed:
                raise UsageError(f"{name} {value}", f"One of {', '.join(allowed)}.")
        if self.map is not None and not isinstance(self.map, str | os.PathLike | Mapping):
            raise UsageError(f"map: a {type(self.map).__name__}", "It is the name of a file, or a mapping.")
        if self.format and self.map is not None:
            raise UsageError("--format and --map exclude each other", "A map is a format of your own.")
        if self.on_bad_row == "quarantine" and self.max_bad is None:
            raise UsageError(
                "--on-bad-row quarantine needs --max-bad", 'For example --max-bad "0.1 %" or --max-bad "20 rows".'
            )
        if self.max_bad is not None:
            Budget.parse(self.max_bad)
        if self.from_rejects and self.inputs:
            raise UsageError("--from-rejects takes the place of the inputs", "Give one or the other.")
        if not self.from_rejects and not self.inputs and not any("=" in split for split in self.splits):
            raise UsageError("no input", "Name files, folders or globs, or - for standard input.")
        checks.severities(self.severity)

    def to_json(self) -> dict[str, Any]:
        """With the tool's version and the content of the map, so that a change of either is another plan."""
        value = {**{item.name: getattr(self, item.name) for item in fields(self)}, "tool": __version__}
        if self.map is not None:
            value["map"] = mapping.to_json(mapping.load(self.map))
        plain: dict[str, Any] = orjson.loads(orjson.dumps(value))
        return plain


@dataclass(slots=True)
class Plan:
    """A request with its sources resolved.

    Attributes:
        request: what was asked for.
        splits: split name -> numbers of its sources.
        sources: all sources, in order.
        formats: what each is read as.
        detections: the evidence, where a format was detected.
        step: the parameters of the step.
    """

    request: Request
    splits: dict[str, list[int]]
    sources: list[Source]
    formats: list[Format | None]
    detections: list[Detection | None]
    step: StepPlan

    @property
    def format_name(self) -> str:
        names = dict.fromkeys("datakit" if f is None else f.name for f in self.formats)
        return "+".join(names)

    def schema(self) -> pa.Schema:
        return self.step.schema()

    def to_json(self) -> dict[str, Any]:
        delimiters = {source.path: source.delimiter for source in self.sources if source.delimiter}
        return {
            "request": self.request.to_json(),
            "splits": self.splits,
            **({"delimiters": delimiters} if delimiters else {}),
            "side": dict(self.step.side),
            "optional": list(self.step.optional),
            "formats": ["datakit" if f is None else f.name for f in self.formats],
            "layout": [self.step.kind, self.step.form, self.step.conversational],
        }


def parse_size(text: str) -> int:
    """`256MiB`, `1GB` or a plain number of bytes.

    Raises:
        UsageError: something else.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([kMG]i?)?B?\s*", text)
    if not match or not int(match[1]):
        raise UsageError(f"--shard-size {text!r}", "For example 256MiB, 1GB or 500000.")
    unit = match[2] or ""
    base = 1024 if unit.endswith("i") else 1000
    return int(match[1]) * base ** " kMG".index(unit[:1] or " ")


# ---------------------------------------------------------------- sources


def spool(rows: Iterable[Any] | None, folder: Path) -> str:
    """Write standard input, or objects as JSON Lines, to a file that can be read twice."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("wb", dir=folder, prefix="spool-", delete=False) as handle:
        if rows is None:
            while chunk := sys.stdin.buffer.read(1 << 20):
                handle.write(chunk)
        else:
            for row in rows:
                try:
                    handle.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
                except TypeError:
                    handle.write(repr(row).encode("utf-8", "backslashreplace") + b"\n")
    return handle.name


def open_sources(
    request: Request, objects: Iterable[Any] | None, folder: Path
) -> tuple[dict[str, list[int]], list[Source]]:
    """The sources of a request, by split.

    Args:
        objects: rows that a library caller hands over instead of names.
        folder: where what cannot be read twice is written to.
    """
    found: list[Source] = []
    splits: dict[str, list[int]] = {}

    def add(split: str, source: Source) -> None:
        splits.setdefault(split, []).append(len(found))
        found.append(source)

    if objects is not None:
        name = request.splits[0] if request.splits else "train"
        add(name, Source("<objects>", "jsonl", real=spool(objects, folder)))
        return splits, found
    if request.from_rejects:
        words = [f"{request.from_rejects.rstrip('/')}/**/*.jsonl"]
        for split, paths in sources.assign_splits(words, request.splits).items():
            for path in paths:
                add(split if request.splits else _split_of_reject(path) or split, Source(path, "rejects"))
        return splits, found
    named = sources.assign_splits(request.inputs, request.splits)
    others = sum(map(len, named.values())) - 1
    for split, paths in named.items():
        for path in paths:
            with one_of_inputs(path, others):
                opened = _open(path, folder)
            for source in opened:
                own = source.split if source.split and not request.splits else split
                add(own, source)
    return splits, found


def _split_of_reject(path: str) -> str | None:
    """The split of a reject file by the name that datakit gave it."""
    match = re.fullmatch(rf"({sources.SPLIT_NAME.pattern})-\d+\.jsonl", Path(path).name)
    return match and match[1]


def _open(path: str, folder: Path) -> list[Source]:
    if path.startswith("hf:"):
        rows = _from_hub(path)
        return [Source(path, "jsonl", real=spool(rows, folder))]
    if path == "-":
        real = spool(None, folder)
        return [_standard_input(real)]
    if Path(path).is_dir():
        return open_folder(path)
    source = sources.identify(path)
    refine(source)
    return [source]


def _standard_input(real: str) -> Source:
    """What standard input held, by its first bytes."""
    if not Path(real).stat().st_size:
        return Source("-", "jsonl", real=real)
    try:
        told = sources.identify(real)
    except UnreadableInput as error:
        raise UnreadableInput(
            "standard input: its first bytes do not say what it is",
            "JSON, JSON Lines, Parquet and Arrow are known, also packed; write CSV to a file with that suffix.",
        ) from error
    source = Source("-", told.how, told.compression, real)
    refine(source)
    return source


def _from_hub(path: str) -> Iterable[Any]:
    """`hf:NAME[:CONFIG[:SPLIT]]` through `datasets`."""
    try:
        import datasets
    except ImportError:
        raise UsageError(f"{path}: needs the `datasets` package", "pip install 'datakit-trainglue[hf]'") from None
    name, *rest = path.removeprefix("hf:").split(":")
    config = rest[0] if rest and rest[0] else None
    split = rest[1] if len(rest) > 1 else "train"
    try:
        loaded: Iterable[Any] = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:
        raise UnreadableInput(f"{path}: {type(error).__name__}: {error}") from None
    return loaded


def open_folder(folder: str) -> list[Source]:
    """Our shards, or what `datasets` saved."""
    base = Path(folder)
    if (base / "manifest.json").is_file():
        manifest = manifests.load(folder)
        wrong = manifests.mismatches(folder, manifest, rows_only=True)
        if wrong:
            name, why = wrong[0]
            raise UnreadableInput(f"{folder}/{name}: {why}", f"`datakit verify {folder}` lists everything.")
        kind = (manifest["kind"], manifest["form"], manifest["conversational"])
        by_split = {
            split: [str(base / shard["path"]) for shard in manifest["shards"] if shard["split"] == split]
            for split in manifest["splits"]
        }
        return [Source(folder, "shards", files=files, split=name, kind=kind) for name, files in by_split.items()]
    if (base / "dataset_dict.json").is_file():
        names = orjson.loads((base / "dataset_dict.json").read_bytes())["splits"]
        return [source for name in names for source in _saved(base / name, name)]
    return _saved(base, "")


def _saved(folder: Path, split: str) -> list[Source]:
    try:
        state = orjson.loads((folder / "state.json").read_bytes())
        names = [entry["filename"] for entry in state["_data_files"]]
    except (OSError, KeyError, TypeError, orjson.JSONDecodeError) as error:
        raise UnreadableInput(f"{folder}: not a dataset that `datasets` saved: {error!r}") from None
    if any(Path(name).name != name for name in names):
        raise UnreadableInput(f"{folder}/state.json: names files outside its folder")
    return [Source(str(folder / name), "arrow", split=split) for name in names]


# ---------------------------------------------------------------- rejects


def as_before(request: Request) -> Request:
    """A request for repaired rejects, with the map and the kind of the run that rejected them, where none are given.

    They stand in the manifest beside or above the folder; a copy of the folder alone names at least the formats.

    Raises:
        UsageError: another command than `convert` wrote them, without their texts.
    """
    if not request.from_rejects:
        return request
    folder = Path(request.from_rejects)
    for place in (folder, folder.parent):
        try:
            manifest = manifests.load(place)
        except NoManifest:
            continue
        before = manifest["plan"]["request"]
        if "from_rejects" not in before:
            inputs = ", ".join(dict.fromkeys(entry["path"] for entry in manifest["inputs"]))
            raise UsageError(
                f"{folder}: {before.get('command', 'format')} wrote these rejects, and they hold no raw text to repair",
                f"Their rows are in {inputs}, under the same dk_id. Repair what those were converted from.",
            )
        made = layout(manifest["kind"], manifest["form"], manifest["conversational"])
        own = None if request.format else before["map"]
        return replace(request, map=own if request.map is None else request.map, to=request.to or made.name)
    return request


def _reread(
    source: Source, rows: Sequence[Row], target: Target | None, words: mapping.Words | None
) -> Detection | None:
    """What rejects were read as before; None where they do not say, or need not."""
    names = formats_of_rejects(source)
    to_detect = {"canonical", *([words.name] if words else [])}
    own = [name for name in names if name not in FORMATS and name not in to_detect]
    if own:
        raise UsageError(
            f"{source.path}: its rows were read by the map {own[0]!r}, which lies in no manifest beside it",
            "Name it with --map FILE, or put the manifest.json of the shards into the folder.",
        )
    if not names or not to_detect.isdisjoint(names):
        return None
    return known_rows(rows, [FORMATS[name] for name, _ in names.most_common()], source.path, target)


# ---------------------------------------------------------------- the plan


def make(request: Request, objects: Iterable[Any] | None, folder: Path, ask: Ask, encode: bool = True) -> Plan:
    """Settle a request.

    Args:
        objects: rows that a library caller hands over instead of names.
        folder: for what cannot be read twice.
        ask: how a worker is asked to look into Parquet and Arrow files.
        encode: False where only the judgement is wanted.

    Raises:
        UsageError, CannotJudge: what the request names cannot be converted as one.
    """
    splits, found = open_sources(request, objects, folder)
    target = Target.parse(request.to) if request.to else None
    own = mapping.load(request.map) if request.map is not None else None
    words = own if isinstance(own, mapping.Words) else None
    given = own if isinstance(own, Format) else find(request.format) if request.format else None
    samples = []
    for source in found:
        with one_of_inputs(source.path, len({each.path for each in found}) - 1):
            samples.append([] if source.how == "shards" else sample(source, ask))
    formats: list[Format | None] = []
    detections: list[Detection | None] = []
    for source, rows in zip(found, samples, strict=True):
        detection = None
        if source.how != "shards" and given is None and rows:
            with one_of_inputs(source.path, len({each.path for each in found}) - 1):
                detection = _detect(source, rows, target, words)
        elif isinstance(own, Format) and source.how not in ("shards", "rejects"):
            where = "map" if isinstance(request.map, Mapping) else f"--map {request.map}"
            mapping.check_columns(own, rows, source.path, where)
        detections.append(detection)
        formats.append(detection.format if detection else None if source.how == "shards" else given)
    known = [f.layout if f else layout(*s.kind) if s.kind else None for f, s in zip(formats, found, strict=True)]
    chosen = choose_layout(known, found, target, encode)
    fallback = next((f for f in formats if f), None) or find("openai" if chosen.conversational else "text")
    formats = [f if f or s.how == "shards" else fallback for f, s in zip(formats, found, strict=True)]
    side, optional = extra_columns(chosen, formats, samples, found, ask)
    if chosen.kind == "prompt" and any(found and found.kind == "sft" for found in known):
        side = {SOLUTION: "text", **side}
    plans = [
        SourcePlan(
            source.path,
            _spec(format),
            _others(detection, words) if detection else (),
            source.numbering,
        )
        for source, format, detection in zip(found, formats, detections, strict=True)
    ]
    step = StepPlan(
        plans,
        chosen.kind,
        chosen.form,
        chosen.conversational,
        side,
        optional,
        request.reasoning,
        checks.severities(request.severity),
        encode,
    )
    return Plan(request, splits, found, formats, detections, step)


def _detect(source: Source, rows: Sequence[Row], target: Target | None, words: mapping.Words | None) -> Detection:
    """What a source is, with what is said about it besides."""
    found = None
    if source.how == "rejects":
        found = _reread(source, rows, target, words)
    try:
        found = found or detect_rows(rows, source.path, target)
    except UnknownFormat as unknown:
        raise UnknownFormat(unknown.message, mapping.told_by(source.path) + unknown.hint) from None
    evidence = list(found.evidence)
    if source.delimiter:
        evidence.insert(0, f"cells divided by {delimiter.NAMES[source.delimiter]}")
    if words:
        evidence.append(f"read as {found.format.name}, with the words of {words.name}")
    format = words.added_to(found.format) if words else found.format
    return replace(found, format=format, evidence=evidence)


def _spec(format: Format | None) -> str | Mapping[str, Any]:
    """How a worker is told of a format."""
    if format is None:
        return "canonical"
    return format.name if FORMATS.get(format.name) is format else mapping.to_json(format)


def _others(found: Detection, words: mapping.Words | None) -> Sequence[str | Mapping[str, Any]]:
    """The formats for rows that drift, with the user's words where they have a use for them."""
    others: list[str | Mapping[str, Any]] = list(found.others)
    for at, name in enumerate(found.others):
        try:
            others[at] = mapping.to_json(words.added_to(FORMATS[name])) if words else name
        except UsageError:
            continue
    return others


def choose_layout(
    known: Sequence[Layout | None], found: Sequence[Source], target: Target | None, asked: bool = True
) -> Layout:
    """The one layout of the output.

    Args:
        asked: whether an output is wanted, so that one of two layouts may be asked for.

    Raises:
        AmbiguousFormat: the inputs have several and none was asked for.
        UsageError: what was asked for cannot be reached from some input.
    """
    present = list(dict.fromkeys(x for x in known if x))
    if not present:
        return layout(target.kind, target.form, target.conversational) if target else layout("sft", "messages")
    if target is None:
        if len(present) == 1:
            return present[0]
        first = [next(s.path for s, x in zip(found, known, strict=True) if x == p) for p in present]
        each = "; ".join(f"{path} is {p.name}" for path, p in zip(first, present, strict=True))
        both = [x for x in LAYOUTS if all(reaches(p, x) for p in present)] if asked else []
        hint = f"Ask for one with --to {' or --to '.join(x.name for x in both)}, or name" if both else "Name"
        hint += " the files of one kind at a time:"
        for p in present:
            names = shlex.join(s.path for s, x in zip(found, known, strict=True) if x == p)
            hint += f"\n  {p.name}: {names}"
        raise AmbiguousFormat(f"one output holds one kind and form, but {each}.", hint)
    wanted = [x for x in LAYOUTS if target.accepts(x)]
    same = [x for x in wanted if x in present]
    choices = [x for x in (*same, *reversed(wanted)) if all(reaches(p, x) for p in present)]
    if not choices:
        stuck = next((p for p in present if not any(reaches(p, x) for x in wanted)), present[0])
        can = ", ".join(dict.fromkeys(x.name for x in LAYOUTS if reaches(stuck, x)))
        raise UsageError(f"--to {target}: {stuck.name} cannot become that without loss", f"It can become {can}.")
    return choices[0]


def extra_columns(
    chosen: Layout,
    formats: Sequence[Format | None],
    samples: Sequence[Sequence[Row]],
    found: Sequence[Source],
    ask: Ask,
) -> tuple[dict[str, Type], list[str]]:
    """Side columns with their types, and the optional columns that the sample shows.

    Prompts and trajectories keep what a reward may need at top level under its own name. Its type is what all sampled
    values have in common; anything mixed is JSON.
    """
    values: dict[str, list[Any]] = {}
    optional: set[str] = set()
    for source in found:
        if source.how == "shards" and source.files:
            for name, type_ in ask("columns", source.files[0]):
                if name in {c.name for c in OPTIONAL}:
                    optional.add(name)
                else:
                    values.setdefault(name, []).append(_EXAMPLE.get(type_, {}))
    for format, rows in zip(formats, samples, strict=True):
        if format is None:
            continue
        for row in rows:
            for column in OPTIONAL:
                if column.name in format.columns and row.get(format.columns[column.name]) not in (None, [], "", {}):
                    optional.add(column.name)
            if chosen.kind in ("prompt", "trajectory"):
                for key, value in leftover(row, format.taken).items():
                    values.setdefault(key, []).append(value)
    taken = TRAINER_NAMES | {c.name for c in chosen.columns}
    taken -= {"label"} if chosen.kind == "prompt" else {"scores"} if chosen.kind == "trajectory" else set()
    side = {
        name: _common_type(seen)
        for name, seen in sorted(values.items())
        if name not in taken and not name.startswith("dk_") and re.fullmatch(r"\w[\w.-]*", name)
    }
    return side, [c.name for c in OPTIONAL if c.name in optional]


_EXAMPLE: Final[Mapping[str, Any]] = {"string": "", "int64": 0, "double": 0.5, "bool": True}


def _common_type(values: Sequence[Any]) -> Type:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {str}:
        return "text"
    if kinds == {bool}:
        return "bool"
    if kinds == {int} and all(-(2**63) <= v < 2**63 for v in values if v is not None):
        return "int"
    if kinds and kinds <= {int, float}:
        return "float"
    return "json"
