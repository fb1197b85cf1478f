"""From a shard folder to the dataset that a trainer takes, with every row accounted for.

    formatted shards   kind, tokenizer and template are compared with the model's, then the rows go in as they are
    canonical shards   formatted once by `datakit.format`, kept in a cache under what they and the tokenizer contain
    prompts (GRPO)     go in as text

Nothing is tokenised in the process that trains.
"""

from __future__ import annotations

import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow.compute as pc

import datakit
from datakit.checks import CHECKS
from datakit.errors import DataFailed, DatakitError, Locked, UnreadableInput, UsageError
from datakit.methods import METHODS as FORMATTED
from datakit.methods import conversion
from datakit.output import manifest as manifests
from datakit.schema import PAIR_ID
from datakit.shards import Shards
from datakit.terminal import plural, safe
from datakit.tokens.compare import mismatch, recorded
from datakit.tokens.load import Tokenizer
from trainglue.methods import METHODS, Method, method_named

if TYPE_CHECKING:
    import datasets
    import numpy as np

    from datakit.mixing.streaming import Stream
    from datakit.report import Report

TOKENIZED: Final = "tokenized"
INSTEAD: Final = {
    "DK702": "--format truncation=drop leaves longer rows out; keep_start, keep_end, per_part and window cut them.",
    "DK707": "--format control_tokens=escape, quarantine or allow says what becomes of such rows.",
}
"""What to write where rows fail a check of `datakit format`."""

RENDERED: Final = {"preference": "preference", "reward": "preference", "kto": "kto"}
"""Forms of token ids to the kind of rows that they were made of; the others were sft rows."""

Folder = str | os.PathLike[str]


@dataclass(slots=True)
class Rows:
    """Rows for a trainer, and what is known of them.

    Attributes:
        dataset: with the columns of the method and no others.
        shards: where they come from; of a stream, its first source.
        positions: which rows of the shards, in order; None for all.
        lengths: tokens of a row to rows; empty where rows are text.
        stream: what gives them, where they are streamed.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    shards: Shards
    positions: np.ndarray[Any, Any] | None = None
    lengths: Counter[int] = field(default_factory=Counter)
    stream: Stream | None = None

    def __len__(self) -> int:
        return len(self.dataset) if self.stream is None else self.stream.rows

    @property
    def content_id(self) -> str:
        """What the rows are, as a hash."""
        return self.stream.identity if self.stream is not None else str(self.shards.manifest["content_id"])

    def place(self, index: int) -> str:
        """Where a row comes from: its id, source and row, as far as the shards say."""
        at = int(self.positions[index]) if self.positions is not None else index
        names = [name for name in ("dk_id", "dk_source", "dk_row") if name in self.shards.schema.names]
        if not names:
            return f"row {at + 1}"
        found = self.shards.slice(at, at + 1, names).to_pylist()[0]
        return safe(" ".join(str(found[name]) for name in names))


# ---------------------------------------------------------------- opening


def dataset(folder: Folder, *, method: str, split: str | None = None) -> datasets.Dataset:
    """The rows of a shard folder as a `datasets.Dataset` with the columns of one method and no others.

    The folder is opened by its manifest and compared with it first, so a damaged or half-replaced one is never trained
    on. Needs the `datasets` package.

    Args:
        folder: written by `datakit convert`, `format` or `mix`.
        method: sft, dpo, orpo, cpo, reward, kto, bco, grpo or prm.
        split: by default all splits, in order.

    Raises:
        datakit.UsageError: the method is unknown or does not train on this kind.
        datakit.CannotJudge: the folder is not what its manifest says.
    """
    kind = method_named(method)
    shards = open_shards(folder, kind, split)
    _check_kind(shards, kind, kind.kinds)
    return shards.to_datasets()


def open_shards(folder: Folder, method: Method, split: str | None = None) -> Shards:
    """The verified shards of a folder that a method can train on, formatted or not.

    Raises:
        UsageError: the method does not train on this kind.
        CannotJudge: the folder is not what its manifest says.
    """
    check_folder(folder)
    shards = datakit.load(folder, split=split)
    _check_kind(shards, method, list(dict.fromkeys((*_canonical(method), *method.kinds))))
    return shards


def check_path(data: Any) -> None:
    """Refuse rows in memory.

    Raises:
        UsageError: with what makes shards of them.
    """
    if not isinstance(data, str | os.PathLike):
        raise UsageError(
            f"data is no path but a {type(data).__name__}",
            "A shard folder, or the recipe of a mix. datakit.convert(data, 'shards/') makes one of a Dataset or rows.",
        )


def check_folder(folder: Folder) -> None:
    """Refuse raw data, with the command that makes shards of it.

    Raises:
        UsageError: rows in memory, a file, or a folder without a manifest.
    """
    check_path(folder)
    path = Path(folder)
    if path.exists() and not (path / manifests.NAME).is_file():
        what = "a folder without a manifest" if path.is_dir() else "a file, not a shard folder"
        command = "mix" if path.suffix == ".toml" else "convert"
        raise UsageError(f"{safe(str(path))} is {what}", f"datakit {command} {_typed(path)} -o shards/")


def _typed(path: Path | str) -> str:
    """A path as one argument of a command."""
    return safe(shlex.quote(str(path)))


def training_split(folder: Folder, split: str | None) -> str | None:
    """The split to train on: as asked for, else `train`, else the only one.

    Raises:
        UsageError: there are several, and none is called train.
    """
    check_folder(folder)
    splits = manifests.load(folder)["splits"]
    if split is not None or len(splits) == 1:
        return split
    if "train" in splits:
        return "train"
    raise UsageError(f"{folder} has the splits {', '.join(splits)}", "Name the one to train on: --split NAME.")


def _check_kind(shards: Shards, method: Method, kinds: Sequence[str]) -> None:
    kind, form = shards.manifest["kind"], shards.manifest["form"]
    own = {kind, f"{kind}:{form}"}
    if not own.isdisjoint(kinds):
        return
    fitting = [m.name for m in METHODS.values() if not own.isdisjoint((*_canonical(m), *m.kinds))]
    choose = f" Or train with {' or '.join(fitting)}." if fitting else ""
    raise UsageError(
        f"{shards.path} holds rows of kind {kind}, form {form}; {method.name} trains on {' or '.join(kinds)}",
        _to_kind(shards, method) + choose,
    )


def _to_kind(shards: Shards, method: Method) -> str:
    """The command that makes rows for a method of these, if there is one."""
    kind, form = shards.manifest["kind"], shards.manifest["form"]
    ids = kind == TOKENIZED
    held, path = (RENDERED.get(form, "sft"), "SOURCE") if ids else (kind, _typed(shards.path))
    wanted = _canonical(method) or method.kinds
    again = f"datakit format {path} -o NEW --for {method.format_for} --tokenizer MODEL"
    if held in wanted:
        return f"{again}."
    if ids and {form, wanted[0]} == {"preference", "kto"}:  # token ids are unpaired, and paired again, as they are
        return f"{conversion(form, wanted[0], _typed(shards.path))}."
    command = conversion(held, wanted[0], path)
    if not command:
        return f"No conversion makes {wanted[0]} rows of {held} rows."
    return f"{command}, then format it with --for {method.format_for}." if ids and method.format_for else f"{command}."


def _canonical(method: Method) -> tuple[str, ...]:
    """The kinds that are formatted for a method."""
    return FORMATTED[method.format_for].kinds if method.format_for else ()


def is_formatted(shards: Shards, method: Method) -> bool:
    """Whether the rows go in as they are."""
    return shards.manifest["kind"] == TOKENIZED or not method.format_for


# ---------------------------------------------------------------- is it the model's tokenizer


def check_prepared(shards: Shards, tokenizer: Tokenizer, template: str | None, method: Method) -> None:
    """Refuse shards that were formatted for another tokenizer, chat template or method.

    Args:
        shards: formatted ones.
        tokenizer: the model's.
        template: the chat template that the model is to have.
        method: that is to train on them.

    Raises:
        UsageError: with the command that formats them again.
    """
    prepared = shards.manifest["plan"].get("prepared")
    if not prepared:
        _check_ids(shards, tokenizer)
        return
    named = _typed(tokenizer.path)
    again = f"datakit format SOURCE -o NEW --tokenizer {named} --for {method.format_for or method.name}"
    theirs = prepared["tokenizer"]
    if theirs["sha256"] != tokenizer.sha256:
        try:
            found = mismatch(recorded(theirs), tokenizer)
            why, instead = found.sentence if found else "", "Format the source again:"
        except DatakitError as error:
            why = f"the two cannot be compared: {error.message}"
            instead = "Name the tokenizer that made them, with --tokenizer; or format the source again:"
        if why:
            raise UsageError(
                f"{shards.path} was tokenised by {theirs['path']}; the model's tokenizer is {tokenizer.path}: {why}",
                f"{instead} {again}",
            )
    rendered = prepared["chat_template"]["sha256"]
    if rendered is not None and rendered != digest(template):
        raise UsageError(
            f"{shards.path} was rendered with another chat template ({rendered[:12]}) than the model has "
            f"({(digest(template) or 'none')[:12]})",
            f"Give the template of the shards with --chat-template FILE, or format again: {again}",
        )
    if prepared["method"] != (method.format_for or method.name) and shards.manifest["form"] not in _shared_forms(
        method
    ):
        raise UsageError(f"{shards.path} was formatted --for {prepared['method']}", f"Format again: {again}")


def _check_ids(shards: Shards, tokenizer: Tokenizer) -> None:
    """Ids that others made name no tokenizer, but they must at least be ids of this one."""
    if "input_ids" in shards.schema.names:
        tables = (table for _, table in shards.tables(["input_ids"]))
        greatest = max((pc.max(pc.list_flatten(table.column(0))).as_py() or 0 for table in tables), default=0)
        if greatest >= tokenizer.vocabulary:
            raise UsageError(
                f"{shards.path} has the token id {greatest}; {tokenizer.path} ends at {tokenizer.vocabulary - 1}",
                "These ids are of another tokenizer.",
            )


def _shared_forms(method: Method) -> list[str]:
    """Forms that several methods write alike: DPO, ORPO and CPO read the same columns."""
    return [kind.removeprefix("tokenized:") for kind in method.kinds if method.name not in ("sft", "prm")]


def digest(text: str | None) -> str | None:
    """SHA-256 of a template, as the manifest gives it."""
    return None if text is None else sha256(text.encode()).hexdigest()


def check_length(rows: Rows, limit: int | None) -> None:
    """Refuse rows over a limit, which a trainer would cut or drop without a word.

    Raises:
        UsageError: with how many, and the way out.
    """
    over = sum(count for length, count in rows.lengths.items() if limit is not None and length > limit)
    if over:
        raise UsageError(
            f"{plural(over, 'row')} of {rows.shards.path} above {limit} tokens, up to {max(rows.lengths)}",
            f"Give shards that are not formatted yet, with --max-length {limit} --format truncation=drop (or another "
            "policy of `datakit format`); trainers would cut them silently.",
        )


# ---------------------------------------------------------------- formatting on the way


def formatted(
    shards: Shards, method: Method, tokenizer: Tokenizer, chat_template: str | None, options: Mapping[str, Any]
) -> Path:
    """The folder of canonical shards as token ids: made once, then found by content.

    Args:
        shards: canonical ones.
        method: that is to train on them.
        tokenizer: the model's.
        chat_template: a file, or None for the tokenizer's own template.
        options: further ones of `datakit.format`.

    Raises:
        UsageError, DataFailed: as `datakit.format` and `raise_for_status`.
    """
    template = Path(chat_template).read_text("utf-8") if chat_template is not None else tokenizer.chat_template
    parts = {
        "content": shards.manifest["content_id"],
        "tokenizer": tokenizer.sha256,
        "template": digest(template),
        "method": method.format_for,
        "options": {name: options[name] for name in sorted(options)},
        "tool": datakit.__version__,
    }
    folder = cache_folder() / sha256(repr(parts).encode()).hexdigest()[:32]

    def format_once() -> None:
        if not (folder / manifests.NAME).is_file():
            given = {"method": method.format_for, "chat_template": chat_template, **options}
            _raise_for_status(datakit.format(shards.path, folder, tokenizer=tokenizer.path, **given))

    alone(format_once)
    return folder


def _raise_for_status(report: Report) -> None:
    try:
        report.raise_for_status()
    except DataFailed as error:
        hints = [INSTEAD[summary.id] for summary in report.errors() if summary.id in INSTEAD]
        raise DataFailed(error.message, " ".join(hints) or "`datakit format` of these shards shows them all.") from None


def left_out(shards: Shards, source: str) -> list[str]:
    """A sentence where rows were left out while they were formatted, this time or when the cache was filled."""
    ledger = shards.manifest["ledger"]
    if not ledger["rows_rejected"]:
        return []
    why = " and ".join(f"{count:,} by {id} {CHECKS[id].name}" for id, count in ledger["rejected"].items())
    return [f"{plural(ledger['rows_out'], 'row')} of {ledger['rows_in']:,} of {source} formatted; left out: {why}"]


def alone(write: Callable[[], object]) -> None:
    """Write a folder of the cache; while another process of the run writes it, wait for that one."""
    while True:
        try:
            write()
            return
        except Locked:
            time.sleep(1)


def cache_folder() -> Path:
    """Where formatted shards are kept: TRAINGLUE_CACHE, or trainglue in the user's cache; made if need be."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainglue" / "formatted"
    folder = Path(os.environ.get("TRAINGLUE_CACHE") or base)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---------------------------------------------------------------- rows


def all_rows(shards: Shards) -> Rows:
    """Every row of formatted shards, or of prompts."""
    return Rows(shards.to_datasets(), shards, None, lengths_of(shards))


def hold_out(rows: Rows, share: float) -> tuple[Rows, Rows | None]:
    """Rows for training and for evaluation, divided by content: the same row is always on the same side.

    So are the two rows that were one pair, which share a prompt.

    Args:
        rows: all of them, of shards that have ids.
        share: of the rows, for evaluation; 0 to 1.

    Raises:
        UsageError: the rows have no ids, as packed ones.
    """
    import numpy as np

    if "dk_id" not in rows.shards.schema.names:
        raise UsageError(
            f"{rows.shards.path}: rows without ids, as packed ones, cannot be divided by content",
            "Split before formatting, or give --eval-data; --eval-share 0 holds nothing out.",
        )
    name = PAIR_ID if PAIR_ID in rows.shards.schema.names else "dk_id"
    ids = (str(id) for _, table in rows.shards.tables([name]) for id in table.column(0).to_pylist())
    numbers = np.array([int(id[:8], 16) for id in ids], np.uint64)
    held = numbers < np.uint64(share * 2**32)
    if not held.any() or held.all():
        return rows, None
    return _selected(rows, np.flatnonzero(~held)), _selected(rows, np.flatnonzero(held))


def _selected(rows: Rows, positions: np.ndarray[Any, Any]) -> Rows:
    return Rows(rows.dataset.select(positions), rows.shards, positions, lengths_of(rows.shards, positions))


def lengths_of(shards: Shards, positions: np.ndarray[Any, Any] | None = None) -> Counter[int]:
    """Tokens of a row to rows."""
    import numpy as np

    if "dk_length" in shards.schema.names:
        parts = [table.column(0).to_numpy() for _, table in shards.tables(["dk_length"])]
    elif "input_ids" in shards.schema.names:  # packed rows, and ids that others made
        parts = [pc.list_value_length(table.column(0)).to_numpy() for _, table in shards.tables(["input_ids"])]
    else:
        return Counter()
    lengths = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    values, counts = np.unique(lengths if positions is None else lengths[positions], return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def dropped(rows: Rows, kept: datasets.Dataset) -> Iterator[str]:
    """The places of rows that a trainer has left out; it keeps the order of the others."""
    names = [name for name in rows.dataset.column_names if name in kept.column_names]
    ours, theirs = rows.dataset.select_columns(names), kept.select_columns(names)
    at = 0
    for index in range(len(ours)):
        if at < len(theirs) and ours[index] == theirs[at]:
            at += 1
        else:
            yield rows.place(index)


def check_rows(rows: Rows) -> None:
    """Refuse to train on nothing.

    Raises:
        UnreadableInput: there are no rows.
    """
    if not len(rows):
        raise UnreadableInput(f"{rows.shards.path} has no rows to train on", "`datakit stats` says what is in it.")
