"""What a run can be told: one table, from which the command line, run.toml and `schemas/run.json` follow.

The names are those of the arguments of `trainglue.trainer`. Every other name is an option of the trainer's config in
the installed TRL.

    method = "sft"
    model = "Qwen/Qwen2.5-0.5B-Instruct"
    data = "ready/"
    output_dir = "out/"
    lora = 16
    max_steps = 200
"""

from __future__ import annotations

import inspect
import json
import os
import re
import tomllib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, Final

import datakit
from datakit.errors import UnreadableInput, UsageError
from trainglue.engines import ENGINES
from trainglue.methods import METHODS
from trainglue.precision import PRECISIONS, Fp8


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that a run can be told.

    Attributes:
        name: in the library, in run.toml, and with - for _ on the command line.
        help: one sentence.
        type: of its value, as JSON Schema names it; an object is a table, string and array are one or more texts.
        choices: the words that it takes.
        metavar: what the help shows for the value.
        least: of a number, itself allowed.
        below: of a number, itself not allowed.
        methods: that take it; by default all.
    """

    name: str
    help: str
    type: str | Sequence[str] = "string"
    choices: Sequence[str] = ()
    metavar: str = ""
    least: int | None = None
    below: int | None = None
    methods: Sequence[str] = ()


FIELDS: Final = (
    Field("model", "A folder, or a name on the Hub; an adapter in it is trained on.", metavar="PATH|NAME"),
    Field("data", "A shard folder, formatted or not; or the recipe of a mix.", metavar="DIR|MIX.TOML"),
    Field("output_dir", "The run folder: checkpoints, the trained model, run.json.", metavar="DIR"),
    Field("split", "The split of --data to train on; by default train, or the only one.", metavar="NAME"),
    Field("eval_data", "Another shard folder to evaluate on.", metavar="DIR"),
    Field("eval_split", "A split to evaluate on, of --eval-data if given, else of --data.", metavar="NAME"),
    Field(
        "eval_share",
        "Share of the rows to hold out, by content; 0.1 by default, 0 for GRPO, packed rows and streams.",
        "number",
        metavar="X",
        least=0,
        below=1,
    ),
    Field("tokenizer", "A folder or name, if not that of the model.", metavar="PATH|NAME"),
    Field("chat_template", "A Jinja file instead of the tokenizer's own template.", metavar="FILE"),
    Field(
        "max_length",
        "Tokens that a row may have: rows are formatted to it, or must keep to it.",
        "integer",
        metavar="N",
        least=1,
    ),
    Field(
        "format", "Options of `datakit format` for shards that are not formatted yet.", "object", metavar="NAME=VALUE"
    ),
    Field("engine", "Unsloth where it is installed (auto), or as named.", choices=ENGINES),
    Field("precision", "By default bf16 on a GPU that has it, else fp16; fp32 on a CPU.", choices=PRECISIONS),
    Field("fp8", "Settings of FP8: backend, recipe, emulate.", "object", metavar="NAME=VALUE"),
    Field(
        "lora",
        "Train new adapters of this rank, or with these fields of LoraConfig; by default all weights.",
        ["integer", "object"],
        metavar="R|NAME=VALUE",
        least=1,
    ),
    Field("dtype", "Of the loaded weights, if not by the precision.", metavar="NAME"),
    Field(
        "ref_model",
        "What the loss compares with, if not the model before training.",
        metavar="PATH|NAME",
        methods=[method.name for method in METHODS.values() if method.reference],
    ),
    Field(
        "reward",
        "A reward function: one of `trainglue rewards`, or module.function of yours; repeat for several.",
        ["string", "array"],
        metavar="NAME",
        methods=["grpo"],
    ),
    Field("streaming", "Stream the recipe in --data instead of writing the mix.", "boolean"),
    Field("early_stopping", "Evaluations without a better loss until training ends.", "integer", metavar="N", least=1),
    Field("resume", "Go on from the last checkpoint in --output-dir.", "boolean"),
    Field("overwrite", "Replace the run in --output-dir.", "boolean"),
)
REQUIRED: Final = ("method", "model", "data", "output_dir")
PATHS: Final = ("model", "data", "eval_data", "tokenizer", "chat_template", "ref_model")

OTHER_NAMES: Final = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
"""What fields are called elsewhere, and too far from their names to be found near them."""

NOT_FOR_FORMAT: Final = {
    *("inputs", "output", "tokenizer", "method", "chat_template", "max_length", "overwrite", "progress"),
    *("layout", "render_only"),
}
"""Arguments of `datakit.format` that the run gives itself, and two whose rows no trainer here takes."""


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arguments of a run.toml; paths in it are relative to its folder.

    Raises:
        UnreadableInput: there is no such file.
        UsageError: it is not TOML, or a value has the wrong type.
    """
    try:
        found = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UnreadableInput(f"{path}: {error.strerror}", "Name a TOML file; `--print-config` writes one.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", "A TOML file: name = value, a line each.") from None
    if missing := [name for name in REQUIRED if name not in found]:
        raise UsageError(f"{path}: no {missing[0]}", schema()["properties"][missing[0]]["description"])
    check_values(found, str(path))
    base = Path(path).parent
    for name in PATHS:
        if name in found and (base / found[name]).exists():
            found[name] = str(base / found[name])
    return found | {"output_dir": str(base / found["output_dir"])}


def merged(file: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, and what is told besides, which comes first; tables are joined, a rank is a field of lora."""
    made = {**file, **told}
    for name in file.keys() & told.keys():
        if isinstance(file[name], Mapping):
            new = {"r": told[name]} if name == "lora" and isinstance(told[name], int) else told[name]
            made[name] = {**file[name], **new} if isinstance(new, Mapping) else new
    return made


def check_values(given: Mapping[str, Any], where: str) -> None:
    """Refuse values that the schema refuses, of a run that may still lack names.

    Raises:
        UsageError: with the place and what is allowed there.
    """
    known = schema()["properties"]
    for name, value in given.items():
        if name in known and not _fits(value, known[name]):
            raise UsageError(
                f"{where}: {name} = {value!r}", f"{known[name]['description']} Allowed: {_allowed(known[name])}."
            )
        if value == {} and name in ("lora", "fp8"):
            raise UsageError(f"{where}: {name} is empty", f"Leave it out, or say more: {known[name]['description']}")
        if isinstance(value, Mapping) and "propertyNames" in known.get(name, ()):
            check_names(value, known[name]["propertyNames"]["enum"], f"{where}: {name}")


def check_method(method: str, names: Container[str], where: str) -> None:
    """Refuse what other methods take.

    Raises:
        UsageError: with those that do.
    """
    for field in FIELDS:
        if field.methods and field.name in names and method not in field.methods:
            raise UsageError(
                f"{where}: {field.name} is not for {method}", f"For {', '.join(field.methods)}; leave it out."
            )


def check_names(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse names that a table does not have.

    Raises:
        UsageError: with the nearest names, or all of them.
    """
    for name in table:
        if name not in known:
            near = [OTHER_NAMES[name]] if OTHER_NAMES.get(name) in known else get_close_matches(name, known, 3, 0.6)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(known)}."
            own = name in {field.name for field in FIELDS}
            raise UsageError(f"{where} has no {name}", "It is an option of the run itself." if own else hint)


def _allowed(rule: Mapping[str, Any]) -> str:
    words = rule.get("enum") or rule["type"]
    bounds = {"minimum": "at least", "exclusiveMaximum": "below"}
    told = [f"{word} {rule[bound]}" for bound, word in bounds.items() if bound in rule]
    return ", ".join([words if isinstance(words, str) else " or ".join(words), *told])


def _fits(value: Any, rule: Mapping[str, Any]) -> bool:
    if "enum" in rule:
        return value in rule["enum"]
    if isinstance(value, int | float) and not rule.get("minimum", value) <= value < rule.get("exclusiveMaximum", inf):
        return False
    names = {"string": str, "integer": int, "number": int | float, "boolean": bool, "object": Mapping, "array": list}
    types = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    return any(isinstance(value, names[name]) and (name == "boolean" or not isinstance(value, bool)) for name in types)


def schema() -> dict[str, Any]:
    """The JSON Schema of a run.toml."""
    tables = {
        "format": [name for name in inspect.signature(datakit.format).parameters if name not in NOT_FOR_FORMAT],
        "fp8": [field.name for field in fields(Fp8)],
    }
    properties: dict[str, Any] = {"method": {"description": "What is trained.", "enum": list(METHODS)}}
    for field in FIELDS:
        of_value = {"enum": list(field.choices)} if field.choices else {"type": field.type}
        bounds = {"minimum": field.least, "exclusiveMaximum": field.below}
        rule = {"description": field.help, **of_value, **{bound: n for bound, n in bounds.items() if n is not None}}
        if field.name in tables:
            rule["propertyNames"] = {"enum": tables[field.name]}
        properties[field.name] = rule
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "trainglue/run.json",
        "title": "run.toml of a training run",
        "description": "Names that are not listed are options of the trainer's config in the installed TRL.",
        "type": "object",
        "properties": properties,
        "required": list(REQUIRED),
        "additionalProperties": True,
    }


def value_of(text: str) -> Any:
    """A value as typed: a number, true, false, null, JSON, or else the text; none is a word of some options."""
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        try:
            return float(text)  # 2e-5 is no JSON with a capital, 1. is none at all
        except ValueError:
            return text


def fields_of(texts: Sequence[str], option: str) -> Any:
    """`r=16 target_modules=q_proj,v_proj` as a mapping, words with commas between as a list; a single number as itself.

    Raises:
        UsageError: neither.
    """
    if len(texts) == 1 and texts[0].isdigit():
        return int(texts[0])
    pairs = [(f"r={text}" if text.isdigit() and option == "--lora" else text).partition("=") for text in texts]
    if not all(equals for _, equals, _ in pairs):
        raise UsageError(f"{option} {' '.join(texts)}", f"{option} NAME=VALUE, repeated for several.")
    return {name.replace("-", "_"): _listed(value) for name, _, value in pairs}


def _listed(text: str) -> Any:
    listed = re.fullmatch(r"[\w.]+(,[\w.]+)+", text)
    return [value_of(part) for part in text.split(",")] if listed else value_of(text)


def to_toml(given: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """A run.toml that says the same, a line each, tables inline."""
    lines = []
    for name, value in given.items():
        comment = f"  # {comments[name]}" if name in comments else ""
        lines.append(f"# {name} ={comment}" if value is None else f"{name} = {_toml(value)}{comment}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    import sys

    import orjson

    Path(sys.argv[1]).write_bytes(orjson.dumps(schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
