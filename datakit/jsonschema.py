"""JSON Schemas (2020-12) of rows, manifest and report, generated from the definitions that the code itself uses.

`python -m datakit.jsonschema schemas/` writes them; a test says when the folder is behind.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from datakit.mixing import recipe
from datakit.mixing.recipe import Key
from datakit.schema import KINDS, LAYOUTS, OPTIONAL, PROVENANCE, ROLES, Column, Layout, Type

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def _object(properties: Mapping[str, Any], required: list[str] | None = None, more: Any = False) -> Schema:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": dict(properties), "required": names, "additionalProperties": more}


STRING: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
SHA256: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


CALL: Final = _object(
    {
        "id": STRING,
        "type": {"const": "function"},
        "function": _object({"name": STRING, "arguments": {"type": "object"}}),
    }
)

MESSAGE: Final[Schema] = {
    **_object(
        {
            "role": {"enum": list(ROLES)},
            "content": {
                "anyOf": [
                    STRING,
                    _list({"type": "object", "properties": {"type": STRING}, "required": ["type"]}),
                    {"type": "null"},
                ]
            },
            "reasoning_content": STRING,
            "tool_calls": {**_list(CALL), "minItems": 1},
            "tool_call_id": STRING,
            "name": STRING,
            "refusal": STRING,
            "weight": {"type": "number", "minimum": 0, "maximum": 1},
        },
        ["role"],
    ),
    "anyOf": [{"required": ["content"]}, {"required": ["tool_calls"]}],
}

TYPES: Final[Mapping[Type, Schema]] = {
    "text": STRING,
    "messages": _list({"$ref": "#/$defs/message"}),
    "json": {},
    "chats": _list(_list({"$ref": "#/$defs/message"})),
    "texts": _list(STRING),
    "bool": {"type": "boolean"},
    "bools": _list({"type": "boolean"}),
    "int": {"type": "integer"},
    "ints": _list({"type": "integer"}),
    "float": {"type": "number"},
    "floats": _list({"type": "number"}),
}


def _column(column: Column) -> Schema:
    special = {
        "tools": _list({"type": "object", "properties": {"type": STRING, "function": {"type": "object"}}}),
        "chat_template_kwargs": {"type": "object"},
        "dk_meta": {"type": "object"},
    }
    schema = special.get(column.name, TYPES[column.type])
    return {**(_or_null(schema) if column.nullable else schema), "description": column.doc}


def _layout(layout: Layout) -> Schema:
    own = {column.name: _column(column) for column in layout.columns}
    shared = {column.name: _column(column) for column in (*OPTIONAL, *PROVENANCE)}
    more: Any = {} if layout.kind in ("prompt", "trajectory") else False  # side columns
    required = [column.name for column in layout.columns if not column.nullable]
    return {"title": layout.name, "description": layout.doc, **_object({**own, **shared}, required, more)}


def rows(kind: str) -> Schema:
    """The rows of one kind, in any of its forms."""
    forms = [_layout(layout) for layout in LAYOUTS if layout.kind == kind]
    body: Schema = {"oneOf": forms} if len(forms) > 1 else forms[0]
    return {
        "$schema": DRAFT,
        "$id": f"datakit/{kind}.json",
        "title": f"a row of kind {kind}",
        **body,
        "$defs": {"message": MESSAGE},
    }


PLACE: Final = _object(
    {"source": _or_null(STRING), "row": _or_null({"type": "integer"}), "path": STRING, "note": STRING}
)

FINDING: Final = _object(
    {
        "id": {"type": "string", "pattern": "^DK[0-9]{3}$"},
        "name": STRING,
        "severity": {"enum": ["error", "warning", "note"]},
        "count": COUNT,
        "share": {"type": "number", "minimum": 0},
        "first": _list(PLACE),
    }
)

LEDGER: Final = _object(
    {
        "rows_in": COUNT,
        "single": COUNT,
        "merged": COUNT,
        "groups": COUNT,
        "rejected": {"type": "object", "additionalProperties": COUNT},
        "rows_rejected": COUNT,
        "fanout": {"type": "object", "additionalProperties": COUNT},
        "rows_out": COUNT,
        "blank_lines": COUNT,
    }
)

FILE: Final = _object({"path": STRING, "split": STRING, "rows": COUNT, "bytes": COUNT, "sha256": SHA256})

INPUT: Final = _object(
    {
        "path": STRING,
        "split": STRING,
        "read_as": STRING,
        "compression": _or_null(STRING),
        "format": STRING,
        "rows": COUNT,
        "bytes": _or_null(COUNT),
        "sha256": _or_null(SHA256),
    }
)


def manifest() -> Schema:
    return {
        "$schema": DRAFT,
        "$id": "datakit/manifest.json",
        "title": "manifest.json of a shard folder",
        **_object(
            {
                "datakit_manifest": {"const": 1},
                "tool": STRING,
                "kind": {"enum": list(KINDS)},
                "form": STRING,
                "conversational": {"type": "boolean"},
                "plan": {"type": "object"},
                "inputs": _list(INPUT),
                "schema": SHA256,
                "columns": _list(_object({"name": STRING, "type": STRING, "doc": STRING})),
                "splits": _list(STRING),
                "ledger": LEDGER,
                "findings": _list(FINDING),
                "detection": _list({"type": "object"}),
                "shards": _list(FILE),
                "rejects": _list(FILE),
                "content_id": SHA256,
                "run": _object({"started": STRING, "seconds": {"type": "number"}}),
                "sha256": SHA256,
            }
        ),
    }


def report() -> Schema:
    return {
        "$schema": DRAFT,
        "$id": "datakit/report.json",
        "title": "what --json prints and what the verbs return",
        **_object(
            {
                "datakit_report": {"const": 1},
                "command": STRING,
                "rows_in": COUNT,
                "rows_out": COUNT,
                "rows_rejected": COUNT,
                "rejected": {"type": "object", "additionalProperties": COUNT},
                "format": _or_null(STRING),
                "kind": _or_null({"enum": list(KINDS)}),
                "form": _or_null(STRING),
                "conversational": _or_null({"type": "boolean"}),
                "findings": _list(FINDING),
                "shards": _list(FILE),
                "complete": {"type": "boolean"},
                "exit_code": {"enum": [0, 1, 2, 3, 4, 70, 75, 130, 143]},
                "verdict": STRING,
                "failed_by": _list(STRING),
                "output": _or_null(STRING),
                "content_id": _or_null(SHA256),
                "inputs": _list(INPUT),
                "detection": _list({"type": "object"}),
                "ledger": {"anyOf": [LEDGER, {"type": "object", "maxProperties": 0}]},
                "facts": {"type": "object"},
                "error": _or_null(
                    _object({"type": STRING, "path": _or_null(STRING), "message": STRING, "hint": STRING})
                ),
            }
        ),
    }


NUMBER: Final[Schema] = {"type": "number", "exclusiveMinimum": 0}
VALUES: Final[Mapping[str, Schema]] = {
    "text": {"type": "string", "minLength": 1},
    "count": {"type": "integer", "minimum": 1},
    "natural": COUNT,
    "positive": NUMBER,
    "weights": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
}


def _keys(keys: Mapping[str, Key], required: list[str], **tables: Schema) -> Schema:
    """A table of a recipe."""
    made = {
        name: {**tables.get(name, VALUES.get(key.type, {})), "description": key.doc}
        | ({"enum": list(key.words)} if key.words else {})
        for name, key in keys.items()
    }
    return _object(made, required)


def mix() -> Schema:
    """The recipe of `datakit mix`."""
    source = {"anyOf": [VALUES["text"], _keys(recipe.SOURCE_KEYS, ["path"])]}
    points = {**_list(_keys(recipe.POINT_KEYS, list(recipe.POINT_KEYS))), "minItems": 1}
    tables = {
        "sources": {"type": "object", "minProperties": 1, "additionalProperties": source},
        "schedule": _keys(recipe.SCHEDULE_KEYS, ["points"], points=points),
    }
    return {
        "$schema": DRAFT,
        "$id": "datakit/mix.json",
        "title": "a recipe of datakit mix",
        **_keys(recipe.KEYS, ["sources"], **tables),
    }


def all_schemas() -> dict[str, Schema]:
    """File name -> schema."""
    made = {f"{kind}.json": rows(kind) for kind in KINDS}
    made["mix.json"] = mix()
    return {**made, "manifest.json": manifest(), "report.json": report()}


def main(folder: str) -> None:
    """Write every schema."""
    for name, schema in all_schemas().items():
        data = orjson.dumps(schema, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        (Path(folder) / name).write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1])
