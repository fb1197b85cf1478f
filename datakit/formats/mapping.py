"""A user's own format: a small TOML file, or an entry of LLaMA-Factory's `dataset_info.json`.

    name = "support-chats"
    to = "sft:messages"

    [columns]                 # slot = column; a dotted path reaches into objects
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

Keys of TOML are texts; under [labels] and [wins], one that spells a number, true or false stands for that value too.
The slots are those of `datakit.formats.declare`. Words that the map does not name keep their usual meaning.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from datakit.errors import UsageError
from datakit.formats.declare import Format
from datakit.messages import CALL, ROLE_WORDS, Turn
from datakit.schema import ROLES, Layout, Target, layout

SLOTS: Final = frozenset(
    "system history messages prompt user input assistant completion chosen rejected completions first second label "
    "winner scores labels reward text tools images chat_template_kwargs input_ids attention_mask position_ids "
    "completion_mask assistant_masks".split()
)
_KEYS: Final = frozenset({"name", "to", "columns", "turn", "roles", "labels", "wins", "lower_is_better"})

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


def load(spec: str) -> Format:
    """Read `--map FILE` or `--map dataset_info.json:NAME`.

    Raises:
        UsageError: the file is missing or says something that a map cannot say.
    """
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
    return from_json(value, f"--map {spec}")


def from_json(value: Mapping[str, Any], where: str = "map") -> Format:
    """A mapping as a format.

    Raises:
        UsageError: an unknown key, slot, role or kind, or a column that the kind needs is not named.
    """
    unknown = value.keys() - _KEYS
    if unknown:
        raise UsageError(f"{where}: unknown {', '.join(sorted(unknown))}", f"A map has {', '.join(sorted(_KEYS))}.")
    columns = _texts(value, "columns", where)
    if bad := columns.keys() - SLOTS:
        raise UsageError(f"{where}: no slot named {', '.join(sorted(bad))}", f"Slots: {', '.join(sorted(SLOTS))}.")
    roles = _texts(value, "roles", where)
    if wrong := set(roles.values()) - {*ROLES, CALL}:
        raise UsageError(f"{where}: no role named {', '.join(sorted(wrong))}", f"Roles: {', '.join(ROLES)}, {CALL}.")
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
    wins = _words(value, "wins", ("first", "second", "tie"), where)
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


def to_json(format: Format) -> dict[str, Any]:
    """The inverse of `from_json`, for plans and workers."""
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


def _texts(value: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    table = value.get(key, {})
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
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
