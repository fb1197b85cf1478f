"""A user's own format: a small TOML file, or an entry of LLaMA-Factory's `dataset_info.json`.

    name = "support-chats"
    to = "sft:messages"

    [columns]                 # slot = column; a dotted path reaches into objects and lists: choices.0.message
    messages = "dialog"
    system = "briefing"

    [turn]                    # the keys of one turn
    role = "speaker"
    content = "utterance"

    [roles]                   # your word = system | developer | user | assistant | tool | call
    customer = "user"
    agent = "assistant"

    [labels]                  # for kto: your word = true | false
    good = true

    [wins]                    # for first, second and winner: your word = first | second | tie
    model_a = "first"

A map without columns adds words to a format that is named, or to whichever is detected:

    format = "sharegpt"       # may be left out

    [roles]
    agent = "assistant"

Keys of TOML are texts; under [labels] and [wins], one that spells a number, true or false stands for that value too.
The slots are those of `datakit.formats.declare`. Words that the map does not name keep their usual meaning.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from datakit.errors import UsageError
from datakit.formats import find
from datakit.formats.declare import Format, Row, look
from datakit.messages import CALL, ROLE_WORDS, Turn
from datakit.reading.limits import MiB
from datakit.schema import ROLES, Layout, Target, layout
from datakit.terminal import plural

SLOTS: Final = frozenset(
    "system history messages prompt user input assistant completion chosen rejected completions first second label "
    "winner scores labels reward text tools images chat_template_kwargs input_ids attention_mask position_ids "
    "completion_mask assistant_masks".split()
)
_WORDS: Final = frozenset({"name", "roles", "labels", "wins"})
_KEYS: Final = _WORDS | {"format", "to", "columns", "turn", "lower_is_better"}
_WINS: Final = ("first", "second", "tie")
_TURNS: Final = frozenset({"messages", "prompt", "completion", "completions", "chosen", "first"})

_NEEDS: Final[Mapping[str, tuple[frozenset[str], ...]]] = {
    "sft:messages": (frozenset({"messages"}), frozenset({"user", "assistant"})),
    "sft:prompt_completion": (frozenset({"completion"}),),
    "sft:text": (frozenset({"text"}),),
    "preference": (frozenset({"chosen", "rejected"}), frozenset({"first", "second", "winner"})),
    "kto": (frozenset({"completion", "label"}), frozenset({"messages", "label"})),
    "prompt": (frozenset(),),
    "trajectory": (frozenset({"messages"}),),
    "ranked": (frozenset({"completions", "scores"}),),
    "stepwise": (frozenset({"completions", "labels"}),),
    "tokenized": (frozenset({"input_ids"}),),
}
"""What the columns must name, besides the prompt of a layout that has one."""


Spec = str | os.PathLike[str] | Mapping[str, Any]
"""A file as `--map` takes it, or what such a file says."""


@dataclass(frozen=True)
class Words:
    """A map without columns and without a format: words of one's own for whichever format is detected."""

    name: str
    roles: Mapping[str, str]
    labels: Mapping[object, bool]
    wins: Mapping[object, str]
    where: str = field(default="map", compare=False)

    def added_to(self, base: Format) -> Format:
        """The format with these words besides its own.

        Raises:
            UsageError: it has no turns, labels or comparisons that could use them.
        """
        own = base.parse or base.join or base.expand
        turns = base.layout.conversational and not base.columns.keys().isdisjoint(_TURNS)
        winner = any(slot.startswith("winner") for slot in base.columns)
        for table, lacks in (
            ("roles" if self.roles else "", own or not turns),
            ("labels" if self.labels else "", own or base.columns.keys().isdisjoint({"label", "labels"})),
            ("wins" if self.wins else "", own or not winner),
        ):
            if table and lacks:
                hint = "Describe the rows with [columns] and [turn]."
                raise UsageError(f"{self.where}: {base.name} has no use for words under [{table}]", hint)
        turn = Turn(base.turn.role, base.turn.content, {**base.turn.roles, **self.roles})
        labels, wins = {**base.labels, **self.labels}, {**base.wins, **self.wins}
        return replace(base, name=self.name, turn=turn, labels=labels, wins=wins, base=base.name)


Map = Format | Words


def load(spec: Spec) -> Map:
    """Read `--map FILE`, `--map dataset_info.json:NAME`, or a mapping that a library caller hands over.

    Raises:
        UsageError: the file is missing, or what is in it is nothing that a map can say.
    """
    if isinstance(spec, Mapping):
        return _read(spec, "map")
    spec = os.fspath(spec)
    path, colon, entry = spec.rpartition(":")
    if colon and path.endswith(".json"):
        return _llamafactory(path, entry)
    if spec.endswith(".json"):
        raise UsageError(f"--map {spec}: which entry?", f"Write --map {spec}:NAME.")
    try:
        value = tomllib.loads(Path(spec).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--map {spec}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--map {spec}: not TOML: {error}") from None
    value.setdefault("name", Path(spec).stem)
    return _read(value, f"--map {spec}")


def _read(value: Mapping[str, Any], where: str) -> Map:
    if value.keys() <= _WORDS and value.keys() & {"roles", "labels", "wins"}:
        return _added(value, where)
    return from_json(value, where)


def _added(value: Mapping[str, Any], where: str) -> Words:
    labels, wins = _words(value, "labels", (True, False), where), _words(value, "wins", _WINS, where)
    return Words(str(value.get("name", "map")), _roles(value, where), labels, wins, where)


def _roles(value: Mapping[str, Any], where: str) -> dict[str, str]:
    roles = _texts(value, "roles", where)
    if wrong := set(roles.values()) - {*ROLES, CALL}:
        raise UsageError(f"{where}: no role named {', '.join(sorted(wrong))}", f"Roles: {', '.join(ROLES)}, {CALL}.")
    return roles


def from_json(value: Mapping[str, Any], where: str = "map") -> Format:
    """A mapping as a format.

    Raises:
        UsageError: an unknown key, slot, role or kind, or a column that the kind needs is not named.
    """
    unknown = value.keys() - _KEYS
    if unknown:
        raise UsageError(
            f"{where}: unknown {', '.join(sorted(map(str, unknown)))}", f"A map has {', '.join(sorted(_KEYS))}."
        )
    if "format" in value:
        if more := value.keys() - _WORDS - {"format"}:
            hint = "Leave out the format, or what it says already; --to asks for another kind."
            raise UsageError(f"{where}: format names the columns, so {', '.join(sorted(more))} cannot", hint)
        return _added(value, where).added_to(find(str(value["format"])))
    columns = _texts(value, "columns", where)
    if bad := columns.keys() - SLOTS:
        raise UsageError(f"{where}: no slot named {', '.join(sorted(bad))}", f"Slots: {', '.join(sorted(SLOTS))}.")
    roles = _roles(value, where)
    turn = _texts(value, "turn", where)
    if wrong := turn.keys() - {"role", "content"}:
        raise UsageError(f"{where}: [turn] has no {', '.join(sorted(wrong))}", "It has role and content.")
    lower = value.get("lower_is_better", False)
    if not isinstance(lower, bool):
        raise UsageError(f"{where}: lower_is_better must be true or false, not {lower!r}")
    try:
        made = _layout(Target.parse(str(value.get("to", "sft:messages"))), columns)
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.hint) from None
    _need(made, columns, where)
    wins = _words(value, "wins", _WINS, where)
    if "winner" in columns and not wins:
        raise UsageError(f"{where}: [wins] must say what each value of winner means", 'For example model_a = "first".')
    return Format(
        str(value.get("name", "map")),
        made,
        "a mapping of your own",
        signature={column: "any" for slot, column in columns.items() if slot not in ("system", "tools", "images")},
        columns=columns,
        example={},
        turn=Turn(turn.get("role", "role"), turn.get("content", "content"), {**ROLE_WORDS, **roles}),
        labels=_words(value, "labels", (True, False), where),
        wins=wins,
        lower_is_better=lower,
    )


def to_json(map: Map) -> dict[str, Any]:
    """The inverse of `from_json`, for plans and workers."""
    if isinstance(map, Words):
        return _words_json(map.name, map.roles, map.labels, map.wins)
    format = map
    if format.base:
        base, roles = find(format.base), format.turn.roles
        own = {word: role for word, role in roles.items() if base.turn.roles.get(word) != role}
        labels = {word: value for word, value in format.labels.items() if base.labels.get(word) != value}
        wins = {word: value for word, value in format.wins.items() if base.wins.get(word) != value}
        return {"format": format.base, **_words_json(format.name, own, labels, wins)}
    return {
        "name": format.name,
        "to": format.layout.name,
        "columns": dict(format.columns),
        "turn": {"role": format.turn.role, "content": format.turn.content},
        "roles": {word: role for word, role in format.turn.roles.items() if ROLE_WORDS.get(word) != role},
        "labels": {_key(k): v for k, v in format.labels.items()},
        "wins": {_key(k): v for k, v in format.wins.items()},
        "lower_is_better": format.lower_is_better,
    }


def _words_json(
    name: str, roles: Mapping[str, str], labels: Mapping[object, bool], wins: Mapping[object, str]
) -> dict[str, Any]:
    words = {"labels": {_key(k): v for k, v in labels.items()}, "wins": {_key(k): v for k, v in wins.items()}}
    return {"name": name, "roles": dict(roles), **words}


def _texts(value: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    table = value.get(key, {})
    if not isinstance(table, Mapping) or not all(isinstance(x, str) for pair in table.items() for x in pair):
        raise UsageError(f"{where}: [{key}] must be a table of texts")
    return dict(table)


def _words(value: Mapping[str, Any], key: str, allowed: tuple[Any, ...], where: str) -> dict[object, Any]:
    """A table of words with one of a few values each; see the module for words that spell a number or a boolean."""
    table = value.get(key, {})
    if not isinstance(table, dict) or not all(type(v) is type(allowed[0]) and v in allowed for v in table.values()):
        raise UsageError(f"{where}: every word under [{key}] must be {' or '.join(map(str, allowed)).lower()}")
    words: dict[object, Any] = dict(table)
    words |= {int(k): v for k, v in table.items() if re.fullmatch("-?[0-9]+", k)}
    return words | {k == "true": v for k, v in table.items() if k in ("true", "false")}


def _key(word: object) -> str:
    return str(word).lower() if isinstance(word, bool) else str(word)


def _layout(target: Target, columns: Mapping[str, str]) -> Layout:
    if target.conversational is not None or target.kind in ("stepwise", "tokenized", "trajectory"):
        return layout(target.kind, target.form, target.conversational)
    if target.form in ("messages", "strings"):
        return layout(target.kind, target.form)
    plain = not columns.keys() & {"messages", "user", "system", "history"}
    if target.kind == "preference" and target.form is None:
        return layout("preference", "strings" if plain else "messages")
    if target.kind == "sft" and target.form == "prompt_completion":
        return layout("sft", "prompt_completion", not plain)
    return layout(target.kind, target.form or ("messages" if target.kind == "sft" else None))


_NEEDED: Final = frozenset(
    "messages prompt user assistant completion chosen rejected completions first second label winner scores text "
    "input_ids".split()
)
"""Slots without whose column a row cannot be carried on; the others may be absent from many rows, or from all."""


def check_columns(format: Format, rows: Sequence[Row], path: str, where: str) -> None:
    """Compare the columns of a map with sampled rows.

    Raises:
        UsageError: no row has a column that the map names; for one that may be absent, only where a row has another of
            nearly the same name.
    """
    if not rows:
        return
    names = dict.fromkeys(name for row in rows for name in _paths(row))
    for slot, column in format.columns.items():
        if any(look(row, column)[0] for row in rows):
            continue
        free = [name for name in names if name not in format.taken]
        close = difflib.get_close_matches(column, free, n=3, cutoff=0.6 if slot in _NEEDED else 0.8)
        if close or slot in _NEEDED:
            meant = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UsageError(
                f"{where}: no row of {path} has {column!r}, the column for {slot}{meant}",
                f"Columns of the {plural(len(rows), 'row')} looked at: {', '.join(list(names)[:20])}.",
            )


def _paths(row: Row, before: str = "", depth: int = 3) -> Iterator[str]:
    """The dotted paths of a row, down to a few levels."""
    for key, value in row.items():
        yield f"{before}{key}"
        if isinstance(value, dict) and depth > 1:
            yield from _paths(value, f"{before}{key}.", depth - 1)


def _need(made: Layout, columns: Mapping[str, str], where: str) -> None:
    key = f"{made.kind}:{made.form}" if made.kind == "sft" else made.kind
    choices = _NEEDS[key]
    if not any(choice <= columns.keys() for choice in choices):
        ways = " or ".join(" + ".join(sorted(choice)) for choice in choices)
        raise UsageError(f"{where}: [columns] must name {ways} for {made.name}")
    prompts = ("prompt", "messages", "user") if made.conversational else ("prompt",)
    if any(column.name == "prompt" for column in made.columns) and columns.keys().isdisjoint(prompts):
        hint = 'Two whole conversations are to = "preference:implicit".' if made.kind == "preference" else ""
        raise UsageError(f"{where}: [columns] must name {' or '.join(prompts)} for {made.name}", hint)


INFO: Final = "dataset_info.json"


def told_by(path: str) -> str:
    """What LLaMA-Factory's `dataset_info.json` says of a file, itself or one beside it; empty where it says nothing."""
    file = Path(path)
    beside = file.with_name(INFO) if file.name else file
    try:
        info = json.loads(beside.read_text("utf-8")) if beside.stat().st_size <= MiB else None
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(info, dict):
        return ""
    entries = {name: entry.get("file_name") for name, entry in info.items() if isinstance(entry, dict)}
    if file == beside:
        return f"It says of other files what they are. Give one of those, and --map {path}:NAME. "
    return next((f"--map {beside}:{name} says what it is. " for name, of in entries.items() if of == file.name), "")


def _llamafactory(path: str, entry: str) -> Format:
    try:
        info = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"--map {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--map {path}: not JSON: {error}") from None
    if not isinstance(info, dict) or not isinstance(info.get(entry), dict):
        close = ", ".join(sorted(info)[:8]) if isinstance(info, dict) else ""
        raise UsageError(f"--map {path}: no entry named {entry!r}", f"It has {close}, ...")
    where = f"--map {path}:{entry}"
    return from_json(_from_dataset_info(entry, info[entry], where), where)


_ALPACA: Final = {"prompt": "instruction", "query": "input", "response": "output"}


def _from_dataset_info(name: str, info: Mapping[str, Any], where: str) -> dict[str, Any]:
    """LLaMA-Factory's columns and tags as a mapping; where an entry names columns, it has none by default."""
    given, tags = _texts(info, "columns", where), _texts(info, "tags", where)
    ranking, kto = bool(info.get("ranking")), given.get("kto_tag")
    formatting = info.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise UsageError(f"{where}: no formatting named {formatting!r}", "It is alpaca, sharegpt or openai.")
    columns: dict[str, str] = {slot: given[slot] for slot in ("system", "history", "tools", "images") if slot in given}
    if formatting == "alpaca":
        if given.keys() == {"prompt"} and not ranking:
            return {"name": name, "to": "sft:text", "columns": {"text": given["prompt"]}}
        named = given or _ALPACA
        answer = "completion" if kto else "assistant"
        slots = {"prompt": "user", "query": "input"} | ({} if ranking else {"response": answer})
        columns |= {slot: named[key] for key, slot in slots.items() if key in named}
    else:
        columns["messages"] = given.get("messages", "conversations")
    if ranking:
        columns |= {"chosen": given.get("chosen", "chosen"), "rejected": given.get("rejected", "rejected")}
    if kto:
        columns["label"] = kto
    roles = {"user": "user", "assistant": "assistant", "observation": "tool", "function": CALL, "system": "system"}
    return {
        "name": name,
        "to": "preference:messages" if ranking else "kto:messages" if kto else "sft:messages",
        "columns": columns,
        "turn": {"role": tags.get("role_tag", "from"), "content": tags.get("content_tag", "value")},
        "roles": {tags[f"{tag}_tag"]: role for tag, role in roles.items() if f"{tag}_tag" in tags},
    }
