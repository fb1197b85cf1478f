"""`format` and `lengths`: from a shard folder and a tokenizer to a plan, and through the same run as `convert`.

Nothing of the tokenizer or the template runs in this process. A worker is asked once what the template is worth
(`probe`): whether it compiles within the limits, whether its output changes by the day, and which engine encodes.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa

from datakit import __version__, checks
from datakit.errors import UnreadableInput, UsageError
from datakit.formatter import FormatStep
from datakit.methods import EASYDEL, Method, method_for
from datakit.output import manifest as manifests
from datakit.plan import open_folder
from datakit.policies import ANSWER_POLICIES, POLICIES, STRATEGIES
from datakit.reading.sources import Source
from datakit.report import check_budget
from datakit.schema import KEPT, Layout, layout
from datakit.step import SourcePlan
from datakit.tokens.load import Tokenizer
from datakit.tokens.load import load as load_tokenizer
from datakit.workers import Pool

if TYPE_CHECKING:
    from datakit.sizes import Lengths

CONTROL: Final = ("error", "escape", "quarantine", "allow")
TRAIN_ON: Final = ("all", "last", "tagged", "everything")
SAMPLE: Final = 256
"""Texts on which the two engines are compared."""
MARKED: Final = re.compile(r"\{%[-+]?\s*generation\b")
"""A template that says itself what is generated."""


@dataclass(frozen=True, slots=True)
class FormatRequest:
    """What the user asked for, as far as it decides the output; see `datakit format --help`."""

    inputs: Sequence[str]
    tokenizer: str
    method: str | None = None
    chat_template: str | None = None
    max_length: int | None = None
    truncation: str = "error"
    train_on: str = "all"
    leave_out: Sequence[str] = ()
    pack: str | None = None
    pad_multiple: int | None = None
    control_tokens: str = "error"
    now: str | None = None
    render_only: bool = False
    layout: str = "trl"
    on_bad_row: str = "fail"
    max_bad: str | None = None
    fail_on: str = "error"
    severity: Mapping[str, str] = field(default_factory=dict)
    shard_size: int = 256 << 20
    splits: Sequence[str] = ()
    format: str | None = None
    map: Any = None
    from_rejects: str | None = None

    def check(self) -> None:
        """Refuse words that contradict each other.

        Raises:
            UsageError: with what to write instead.
        """
        for name, value, allowed in (
            ("--truncation", self.truncation, POLICIES),
            ("--train-on", self.train_on, TRAIN_ON),
            ("--pack", self.pack, (None, *STRATEGIES)),
            ("--layout", self.layout, ("trl", "easydel")),
            ("--control-tokens", self.control_tokens, CONTROL),
            ("--on-bad-row", self.on_bad_row, ("fail", "quarantine")),
            ("--fail-on", self.fail_on, ("error", "warning", "never")),
        ):
            if value not in allowed:
                raise UsageError(f"{name} {value}", f"One of {', '.join(filter(None, allowed))}.")
        if self.pack and self.max_length is None:
            raise UsageError("--pack needs --max-length", "It is the length of a packed row.")
        if self.pack and self.render_only:
            raise UsageError("--pack and --render-only exclude each other", "Texts are packed once they are tokens.")
        if self.layout == "easydel" and (self.pack or self.render_only):
            raise UsageError(
                "--layout easydel names token columns of single rows", "Leave out --pack and --render-only."
            )
        if self.max_length is not None and self.max_length < 1:
            raise UsageError(f"--max-length {self.max_length}", "A positive number of tokens.")
        if self.max_length is None and self.truncation != "error":
            raise UsageError(f"--truncation {self.truncation} needs --max-length")
        check_budget(self.on_bad_row, self.max_bad)
        if self.now is not None:
            _instant(self.now)
        for pattern in self.leave_out:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(
                    f"--leave-out {pattern}: {error}", "A regular expression, as Python writes them."
                ) from None
        checks.severities(self.severity)

    def to_json(self) -> dict[str, Any]:
        value = {**{item.name: getattr(self, item.name) for item in fields(self)}, "tool": __version__}
        plain: dict[str, Any] = orjson.loads(orjson.dumps(value))
        return plain


def _instant(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--now {text}", "A date or a time, such as 2026-01-31 or 2026-01-31T12:00.") from None


@dataclass(slots=True)
class FormatPlan:
    """A request with its sources, tokenizer and template resolved; what `run` needs of a plan."""

    request: FormatRequest
    splits: dict[str, list[int]]
    sources: list[Source]
    step: FormatStep
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def formats(self) -> list[None]:
        return [None] * len(self.sources)

    @property
    def detections(self) -> list[None]:
        return [None] * len(self.sources)

    @property
    def format_name(self) -> str:
        return "datakit"

    def schema(self) -> pa.Schema:
        return self.step.schema()

    def to_json(self) -> dict[str, Any]:
        layout = self.step.layout
        return {
            "request": self.request.to_json(),
            "splits": self.splits,
            "side": dict(self.step.side),
            "optional": list(self.step.optional),
            "formats": ["datakit"] * len(self.sources),
            "layout": [layout.kind, layout.form, layout.conversational],
            "prepared": self.facts,
        }


def make(request: FormatRequest, pool: Pool, encode: bool = True) -> FormatPlan:
    """Settle a request.

    Args:
        request: checked.
        pool: workers, of which one is asked what template and tokenizer are worth.
        encode: False where only lengths are wanted.

    Raises:
        UsageError, CannotJudge: the inputs, the tokenizer or the template cannot be used, with the way out.
    """
    splits, found, manifest = _open(request.inputs)
    source = layout(manifest["kind"], manifest["form"], manifest["conversational"])
    method = method_for(source.kind, request.method, shlex.quote(found[0].path))
    _check_policy(request, method)
    names = [column["name"] for column in manifest["columns"]]
    optional = [name for name in names if name in ("tools", "chat_template_kwargs", "images")]
    if "images" in optional and method.ids:
        raise UsageError(
            f"{found[0].path}: rows with images",
            "Pixels are prepared by the model's processor while it trains; TRL's own trainers take "
            "datakit.load(folder).to_datasets() with messages and images.",
        )
    tokenizer = load_tokenizer(request.tokenizer)
    template, tool_template = _templates(request, tokenizer, source)
    twin, twin_name = find_twin(template)
    step = FormatStep(
        [SourcePlan(s.path, "canonical") for s in found],
        source.kind,
        source.form,
        source.conversational,
        method.name,
        tokenizer.to_json(),
        template,
        tool_template,
        twin,
        request.max_length,
        request.truncation,
        request.pack,
        request.train_on,
        tuple(request.leave_out),
        request.control_tokens,
        _instant(request.now).isoformat() if request.now else None,
        request.render_only,
        _side(manifest, method),
        optional,
        [column.name for column in KEPT if column.name in names],
        severities=_severities(request),
        encode=encode,
        columns=request.layout,
    )
    found_out = pool.ask(
        "probe", tokenizer.path, step.to_json(), [path for s in found for path in s.files or []], SAMPLE
    )
    if found_out["refused"]:
        raise UsageError(f"the chat template of {tokenizer.path} cannot be used: {found_out['refused']}")
    step = replace(step, verdict=found_out["verdict"])
    plan = FormatPlan(request, splits, found, step, _facts(step, tokenizer, template, twin_name, request))
    if found_out["changing"] and not request.now:
        plan.notes.append(
            f"the chat template uses {', '.join(found_out['changing'])}, so its text depends on when it is rendered; "
            "pin it with --now"
        )
    labelled = method.ids == "sft" and not request.render_only
    if labelled and template is not None and not MARKED.search(template) and find_spec("trl") is None:
        plan.notes.append(
            "TRL is not installed, so it is not known whether a training variant of this template marks more of its "
            "fixed text, such as a line feed behind the end of a turn; with TRL those tokens may be trained too"
        )
    return plan


def _open(inputs: Sequence[str]) -> tuple[dict[str, list[int]], list[Source], dict[str, Any]]:
    """The sources of shard folders of one layout."""
    if not inputs:
        raise UsageError("no input", "Name a folder of shards that `datakit convert` wrote.")
    found: list[Source] = []
    splits: dict[str, list[int]] = {}
    first: dict[str, Any] = {}
    for folder in inputs:
        manifests.check_folder(folder)
        for source in open_folder(folder):
            splits.setdefault(source.split or "train", []).append(len(found))
            found.append(source)
        manifest = manifests.load(folder)
        first = first or manifest
        names = [[c["name"] for c in m["columns"]] for m in (first, manifest)]
        if names[0] != names[1]:
            raise UsageError(
                f"{folder} has the columns {', '.join(names[1])}; {inputs[0]} has {', '.join(names[0])}",
                "Convert both together, or format them one by one.",
            )
    return splits, found, first


def _check_policy(request: FormatRequest, method: Method) -> None:
    if method.ids != "sft" and request.pack:
        raise UsageError(f"--pack and --for {method.name}", "Only single sequences are packed: --for sft.")
    cuttable = POLICIES if method.ids == "sft" else ANSWER_POLICIES
    if method.ids in ("", "reward") or request.render_only:
        cuttable = ("error", "drop")
    if request.truncation not in cuttable:
        what = "texts" if request.render_only else f"--for {method.name}"
        raise UsageError(
            f"--truncation {request.truncation} cannot be used for {what}", f"One of {', '.join(cuttable)}."
        )
    if request.truncation == "per_part" and request.max_length is not None:
        from datakit.fit import Shares

        Shares().answer_cap(request.max_length)
    if request.layout == "easydel" and method.ids not in EASYDEL:
        raise UsageError(f"--layout easydel and --for {method.name}", "EasyDeL renders prompts itself; leave it out.")


def _templates(request: FormatRequest, tokenizer: Tokenizer, source: Layout) -> tuple[str | None, str | None]:
    """The chat template, and another for rows with tools where the tokenizer has one."""
    if request.chat_template is not None:
        try:
            return Path(request.chat_template).read_text("utf-8"), None
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableInput(f"--chat-template {request.chat_template}: {error}") from None
    if tokenizer.chat_template is None and source.conversational:
        raise UsageError(
            f"{tokenizer.path} has no chat template, as base models do",
            "Name one with --chat-template FILE, for example that of the model's instruct version.",
        )
    return tokenizer.chat_template, tokenizer.chat_templates.get("tool_use")


def find_twin(template: str | None) -> tuple[str | None, str | None]:
    """The training twin of a template in the installed TRL: the same text, with generation marks; and its name.

    A twin only decides how much fixed text around an answer is trained, and only for rows that it prints byte for byte
    as the template does.
    """
    spec = find_spec("trl") if template is not None else None
    if spec is None or not spec.submodule_search_locations:
        return None, None
    folder = Path(next(iter(spec.submodule_search_locations))) / "chat_templates"
    for path in sorted(folder.glob("*_training.jinja")):
        base = path.with_name(path.name.replace("_training", ""))
        if base.is_file() and base.read_text("utf-8") == template:
            return path.read_text("utf-8"), f"trl/{path.name}"
    return None, None


def _side(manifest: Mapping[str, Any], method: Method) -> dict[str, Any]:
    side = dict(manifest["plan"].get("side") or {})
    if method.ids == "reward":
        return {"margin": "float"}
    return side if not method.ids else {}


def _severities(request: FormatRequest) -> dict[str, str]:
    """Severities, with those that options decide."""
    changes: dict[str, str] = {}
    if request.truncation != "error":
        changes["DK702"] = "warning"
    if request.control_tokens in ("quarantine", "escape"):
        changes["DK707"] = "warning"
    return {**checks.severities(request.severity), **changes}


def _facts(
    step: FormatStep, tokenizer: Tokenizer, template: str | None, twin: str | None, request: FormatRequest
) -> dict[str, Any]:
    """What the manifest says about how rows were prepared, for whoever trains on them."""

    def digest(text: str | None) -> str | None:
        return None if text is None else sha256(text.encode()).hexdigest()

    pad = tokenizer.pad
    return {
        "method": step.method,
        "tokenizer": {
            "path": tokenizer.path,
            "sha256": tokenizer.sha256,
            "revision": tokenizer.revision,
            "vocabulary": tokenizer.vocabulary,
            "eos_token": tokenizer.special.get("eos_token"),
        },
        "chat_template": {"sha256": digest(template), "twin": twin, "twin_sha256": digest(step.twin)},
        "pad": None if pad is None else {"token": pad.token, "id": pad.id, "why": pad.why, "by_length": pad.by_length},
        "pad_multiple": request.pad_multiple,
        "engine": dict(step.verdict or {}),
    }


# ---------------------------------------------------------------- what the report says


def facts(plan: FormatPlan, counts: Mapping[str, int]) -> dict[str, Any]:
    """Supervised tokens by source, and what each policy would lose."""
    tokens: dict[str, dict[str, Any]] = {}
    losses: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for name, count in sorted(counts.items()):
        what, _, rest = name.partition(" ")
        if what in ("tokens", "trained"):
            tokens.setdefault(rest, {"tokens": 0, "trained": 0})[what] = count
        elif what == "loss":
            policy, _, rest = rest.partition(" ")
            if policy == "rows":
                losses[rest]["rows"] = {"rows": count}
            else:
                field_name, _, source = rest.partition(" ")
                losses[source][policy][field_name] = count
    for entry in tokens.values():
        entry["share"] = round(entry["trained"] / entry["tokens"], 4) if entry["tokens"] else 0.0
    made: dict[str, Any] = {"prepared": plan.facts, "supervised": tokens, "notes": list(plan.notes)}
    if any(own.get("error", {}).get("over") for own in losses.values()):
        made["losses"] = {source: dict(own) for source, own in losses.items()}
    return made


def lengths_of(counts: Mapping[str, int]) -> dict[str, Lengths]:
    """The lengths of each source, from the counts of a run for lengths."""
    from datakit.sizes import Lengths

    made: dict[str, Lengths] = defaultdict(Lengths)
    for name, count in counts.items():
        what, _, rest = name.partition(" ")
        if what in ("length", "targets", "answers"):
            size, _, source = rest.partition(" ")
            own = made[source]
            counter = {"length": own.rows, "targets": own.trained, "answers": own.trained_rows}[what]
            counter[int(size)] += count
    return made
