"""Tools: definitions, calls and results of one conversation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from datakit.checks.declare import Check, Seen
from datakit.findings import shown
from datakit.messages import Message

Tools = list[dict[str, Any]] | None

JSON_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def function_of(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, dict) else {}


def name_of(tool: dict[str, Any]) -> str | None:
    name = function_of(tool).get("name")
    return name if isinstance(name, str) and name else None


def calls_of(messages: list[Message]) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, message in enumerate(messages):
        for at, call in enumerate(message.get("tool_calls") or ()):
            yield f"[{index}].tool_calls[{at}]", call


def schema_invalid(tools: Tools, messages: list[Message]) -> Seen:
    names = Counter(name_of(tool) for tool in tools or ())
    for index, tool in enumerate(tools or ()):
        name, parameters = name_of(tool), function_of(tool).get("parameters")
        if name is None:
            yield f"tools[{index}]", "a tool without a name"
        elif names[name] > 1:
            yield f"tools[{index}]", f"two tools named {shown(name)}"
            names[name] = 0
        if parameters is not None and not isinstance(parameters, dict):
            yield f"tools[{index}].function.parameters", f"expected a JSON Schema object, found {shown(parameters)}"


def undeclared(tools: Tools, messages: list[Message]) -> Seen:
    if not tools:
        return
    names = {name_of(tool) for tool in tools}
    for path, call in calls_of(messages):
        if call["function"]["name"] not in names:
            known = ", ".join(sorted(name for name in names if name)[:5])
            yield path, f"calls {shown(call['function']['name'])}; declared are {known}"


def no_definitions(tools: Tools, messages: list[Message]) -> Seen:
    if not tools and (first := next(calls_of(messages), None)):
        yield first[0], "tools are called but none is declared"


def arguments_violate(tools: Tools, messages: list[Message]) -> Seen:
    schemas = {name_of(tool): function_of(tool).get("parameters") for tool in tools or ()}
    for path, call in calls_of(messages):
        schema = schemas.get(call["function"]["name"])
        arguments = call["function"]["arguments"]
        if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
            continue
        properties = schema["properties"]
        required, more = schema.get("required"), schema.get("additionalProperties") or schema.get("patternProperties")
        for name in required if isinstance(required, list) else ():
            if isinstance(name, str) and name not in arguments:
                yield path, f"required argument {shown(name)} is missing"
        for name, value in arguments.items():
            if name not in properties:
                if not more:
                    yield path, f"argument {shown(name)} is not in the schema"
            elif not _fits(value, properties[name]):
                yield path, f"argument {shown(name)} should be {properties[name].get('type')}, found {shown(value)}"


def _fits(value: object, schema: object) -> bool:
    if not isinstance(schema, dict) or (value is None and schema.get("nullable")):
        return True
    wanted = schema.get("type")
    names = wanted if isinstance(wanted, list) else [wanted]
    known = [JSON_TYPES[name] for name in names if isinstance(name, str) and name in JSON_TYPES]
    if not known or len(known) < len(names):
        return True
    if isinstance(value, bool):
        return any(bool in types for types in known)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return any(isinstance(value, types) for types in known)


_KEYWORDS: Final = ("type", "description", "enum", "items", "properties", "required", "additionalProperties", "anyOf")


def padded(tools: Tools, messages: list[Message]) -> Seen:
    for index, tool in enumerate(tools or ()):
        if where := _null_keyword(function_of(tool).get("parameters")):
            yield f"tools[{index}]", f"{where} is null, as an Arrow struct pads absent keys"


def _null_keyword(schema: object, depth: int = 0) -> str | None:
    if not isinstance(schema, dict) or depth > 8:
        return None
    for key in _KEYWORDS:
        if key in schema and schema[key] is None:
            return key
    properties = schema.get("properties")
    for name, inner in properties.items() if isinstance(properties, dict) else ():
        if inner is None:
            return f"properties.{name}"
        if found := _null_keyword(inner, depth + 1):
            return f"properties.{name}.{found}"
    return _null_keyword(schema.get("items"), depth + 1)


def ids_repeated(tools: Tools, messages: list[Message]) -> Seen:
    seen: set[str] = set()
    for path, call in calls_of(messages):
        if call["id"] in seen:
            yield path, f"the id {shown(call['id'])} is used twice"
        seen.add(call["id"])


def _pairing(messages: list[Message]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Results without a call before them, and calls without a result before the next user turn."""
    open_calls: dict[str, list[str]] = {}  # id -> paths; calls at the same time may share an id
    orphans: list[tuple[str, str]] = []
    unanswered: list[tuple[str, list[str]]] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            id = message.get("tool_call_id")
            if paths := open_calls.get(id or ""):
                paths.pop(0)
            else:
                orphans.append((f"[{index}]", f"a tool result for {shown(id)}, which no open call has"))
        elif message["role"] == "user":
            unanswered += open_calls.items()
            open_calls = {}
        for at, call in enumerate(message.get("tool_calls") or ()):
            open_calls.setdefault(call["id"], []).append(f"[{index}].tool_calls[{at}]")
    if messages and messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]:
        unanswered += open_calls.items()
    return orphans, [(path, f"the call {shown(id)} has no result") for id, paths in unanswered for path in paths]


def orphan_results(tools: Tools, messages: list[Message]) -> Seen:
    return _pairing(messages)[0]


def unanswered_calls(tools: Tools, messages: list[Message]) -> Seen:
    return _pairing(messages)[1]


TOOLS: Final = (
    Check("DK301", "tool-schema-invalid", "error", "A tool has a name of its own and a JSON Schema object.", "Repair the definition.", "tools", schema_invalid, raised=True),
    Check("DK302", "arguments-not-object", "error", "A tool call has a name, and its arguments are a JSON object.", "Repair the JSON text of the call."),
    Check("DK303", "call-undeclared-tool", "error", "A called tool is declared in `tools`.", "Add the definition or correct the name.", "tools", undeclared),
    Check("DK304", "arguments-violate-schema", "warning", "Arguments fit the declared parameters.", "Correct the call, or the schema.", "tools", arguments_violate),
    Check("DK305", "none-padded-schema", "warning", "No schema keyword is null; Arrow structs pad absent keys so.", "Convert from the original JSON rather than from a struct column.", "tools", padded),
    Check("DK306", "call-id-missing", "warning", "Every tool call has an id.", "Nothing; an id was given. Templates such as Mistral's need one."),
    Check("DK307", "orphan-tool-result", "error", "A tool result follows the call that it answers.", "Add the call, or correct its id.", "tools", orphan_results),
    Check("DK308", "unanswered-call", "warning", "A call has a result before the next user turn.", "Nothing if it is meant.", "tools", unanswered_calls),
    Check("DK309", "tools-never-used", "note", "Declared tools are called in some rows.", "Nothing if refusals to call are meant to be learnt.", "set"),
    Check("DK310", "tools-not-declared", "warning", "Rows with tool calls declare their tools.", "Add a `tools` column; the model sees none at training otherwise.", "tools", no_definitions),
    Check("DK311", "struct-padding", "note", "Nested objects come as JSON, not as Arrow structs; nulls inside a struct were taken as absent keys.", "Keep such columns as JSON if null and absent are to differ."),
    Check("DK312", "call-id-repeated", "warning", "No two calls of a conversation share an id.", "Give each call its own id.", "tools", ids_repeated),
    Check("DK313", "arguments-empty", "note", "A call without arguments says so with {}; an empty text or null becomes it.", "Nothing, unless arguments were lost."),
)  # fmt: skip
