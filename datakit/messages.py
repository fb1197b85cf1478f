"""The message model, and the reader that brings the dialects of role/content and from/value turns to it.

A message has a role (system, developer, user, assistant, tool) and a content (a string, a list of typed parts, or
null), and where they apply `reasoning_content`, `tool_calls` with *object* arguments, `tool_call_id`, `name`, `weight`
and `refusal`. Nothing is trimmed. An optional key that is null counts as absent, because Arrow exports pad with null;
a null inside tool arguments is data and stays.

Keys that the model does not know are handed to `Context.leave`, which keeps them with their place in the row.
Dialects without call ids (ShareGPT tools, LLaMA-Factory parts) get `call_1`, `call_2`, ... and their results are
paired in order, which is how these files are meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import orjson

from datakit.findings import BadRow, Finding, shown
from datakit.reading.rows import load_text

Message = dict[str, Any]

CALL: Final = "call"  # a turn whose text is a tool call

ROLE_WORDS: Final[Mapping[str, str]] = {
    word: role
    for role, words in {
        "system": "system System SYSTEM",
        "developer": "developer",
        "user": "user human human_1 prompter User USER Human HUMAN",
        "assistant": "assistant gpt bot chatgpt bard bing model claude Assistant ASSISTANT Chatbot CHATBOT GPT",
        "tool": "tool observation function function_response function-response tool_response ipython Tool TOOL",
        CALL: "function_call tool_call function-call",
    }.items()
    for word in words.split()
}

ROLE_KEYS: Final = ("role", "from")
CONTENT_KEYS: Final = ("content", "value", "text", "message")
REASONING_KEYS: Final = ("reasoning_content", "reasoning", "thinking")
WEIGHT_KEYS: Final = ("weight", "loss_weight", "loss", "train", "training")
PART_TEXT_KEYS: Final = ("text", "value", "content")
TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})


@dataclass(slots=True)
class Context:
    """What one row collects while it is read: findings that do not stop it, and keys that nothing took."""

    notes: list[Finding] = field(default_factory=list)
    left: dict[str, Any] = field(default_factory=dict)

    def note(self, id: str, path: str, note: str) -> None:
        self.notes.append(Finding(id, path, note))

    def leave(self, path: str, keys: Mapping[str, Any]) -> None:
        self.left.setdefault(path, {}).update(keys)


class Calls:
    """Tool-call ids of one conversation: gives missing ones, and pairs results without one by tool, then in order."""

    __slots__ = ("made", "open")

    def __init__(self) -> None:
        self.made = 0
        self.open: list[tuple[str, str]] = []

    def call(self, id: object, tool: str) -> str:
        self.made += 1
        given = id if isinstance(id, str) and id else f"call_{self.made}"
        self.open.append((given, tool))
        return given

    def result(self, id: object, tool: object) -> str | None:
        if isinstance(id, str) and id:
            at = next((at for at, (given, _) in enumerate(self.open) if given == id), None)
            if at is not None:
                del self.open[at]
            return id
        at = next((at for at, (_, name) in enumerate(self.open) if name == tool), 0)
        return self.open.pop(at)[0] if self.open else None


@dataclass(frozen=True)
class Turn:
    """How a format spells one turn: the keys of role and content, and what its role words mean."""

    role: str = "role"
    content: str = "content"
    roles: Mapping[str, str] = field(default_factory=lambda: ROLE_WORDS)

    @cached_property
    def plain(self) -> Mapping[str, str]:
        """The words of turns that are a role and a text and no more."""
        return {word: role for word, role in self.roles.items() if role not in ("tool", CALL)}


OPENAI: Final = Turn()
SHAREGPT: Final = Turn("from", "value")


_TEXTS: Final = {str}
_PAIRS: Final = {2}


def read_messages(values: object, turn: Turn, context: Context, path: str) -> list[Message]:
    """Turns of a dialect as messages.

    Raises:
        BadRow: the value is not a list of turns, or one of them cannot be understood.
    """
    if not isinstance(values, list):
        raise BadRow("DK104", path, f"expected a list of turns, found {shown(values)}")
    role_key, content_key, plain = turn.role, turn.content, turn.plain
    try:  # in nine conversations of ten every turn is just a known role and a text
        contents = [value[content_key] for value in values]
        if set(map(type, contents)) == _TEXTS and set(map(len, values)) == _PAIRS:
            roles = [plain[value[role_key]] for value in values]
            return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    except (KeyError, TypeError, IndexError):
        pass
    calls = Calls()
    messages: list[Message] = []
    for index, value in enumerate(values):
        messages.extend(read_turn(value, turn, context, f"{path}[{index}]", calls))
    return messages


def read_turn(value: object, turn: Turn, context: Context, path: str, calls: Calls) -> list[Message]:
    """One turn with anything in it."""
    if not isinstance(value, dict):
        raise BadRow("DK104", path, f"expected an object with a role and a content, found {shown(value)}")
    rest = dict(value)
    role = _role(rest, turn, path)
    message: Message = {"role": "assistant" if role == CALL else role}
    if role == "user":
        calls.open.clear()  # what was not answered before the next question is not answered after it
    if role == CALL:
        message["content"] = ""
        key = next((key for key in (turn.content, *CONTENT_KEYS) if key in rest), turn.content)
        message["tool_calls"] = _calls_in_text(rest.pop(key, None), context, path, key, calls)
    elif turn.content in rest or any(key in rest for key in CONTENT_KEYS):
        _read_content(_take(rest, (turn.content, *CONTENT_KEYS)), message, context, path, calls)
    _read_reasoning(rest, message, path)
    _read_tool_calls(rest, message, context, path, calls)
    _read_rest(rest, message, path, calls)
    if "content" not in message and "tool_calls" not in message:
        raise BadRow("DK104", path, f"a turn without content: {shown(value)}")
    if rest:
        context.leave(path, rest)
    return [message]


def _role(rest: Message, turn: Turn, path: str) -> str:
    key = next((k for k in (turn.role, *ROLE_KEYS) if k in rest), None)
    if key is None:
        raise BadRow("DK201", path, f"no role; the turn is {shown(rest)}")
    word = rest.pop(key)
    role = turn.roles.get(word) if isinstance(word, str) else None
    if role is None:
        close = difflib.get_close_matches(str(word), turn.roles, n=1)
        if close:
            raise BadRow("DK201", f"{path}.{key}", f"unknown role {shown(word)}; did you mean {close[0]!r}?")
        allowed = ", ".join(dict.fromkeys(turn.roles.values()))
        raise BadRow("DK201", f"{path}.{key}", f"unknown role {shown(word)}; known words stand for {allowed}")
    return role


def _take(rest: Message, keys: Sequence[str]) -> Any:
    return next((rest.pop(key) for key in keys if key in rest), None)


def _read_content(value: object, message: Message, context: Context, path: str, calls: Calls) -> None:
    if value is None or isinstance(value, str):
        message["content"] = value
    elif isinstance(value, list):
        parts, reasoning, tool_calls, plain = read_parts(value, context, path, calls)
        message["content"] = parts[0]["text"] if plain and len(parts) == 1 else ("" if plain and not parts else parts)
        if reasoning:
            message["reasoning_content"] = "\n".join(reasoning)
        if tool_calls:
            message["tool_calls"] = tool_calls
    else:
        raise BadRow("DK104", f"{path}.content", f"expected a string, a list of parts or null, found {shown(value)}")


def read_parts(
    values: list[Any], context: Context, path: str, calls: Calls
) -> tuple[list[dict[str, Any]], list[str], list[dict[str, Any]], bool]:
    """Typed parts: content parts, reasoning texts, tool calls, and whether they were LLaMA-Factory's plain texts.

    LLaMA-Factory v1 wraps every text as `{"type": "text", "value": ...}`; a message of one such part is a string
    elsewhere, and chat templates expect it so.
    """
    parts: list[dict[str, Any]] = []
    reasoning: list[str] = []
    tool_calls: list[dict[str, Any]] = []
    plain = bool(values)
    for index, part in enumerate(values):
        here = f"{path}.content[{index}]"
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise BadRow("DK104", here, f"expected a part with a type, found {shown(part)}")
        kind = part["type"]
        if "value" not in part:
            plain = False
        if kind in TEXT_PARTS:
            key = next((k for k in PART_TEXT_KEYS if part.get(k) is not None), "")
            text = part.get(key)
            if not isinstance(text, str):
                raise BadRow("DK104", here, f"expected a text, found {shown(text)}")
            padding = [k for k in PART_TEXT_KEYS if k in part and part[k] is None]
            others = {k: v for k, v in part.items() if k not in ("type", key, *padding)}
            plain = plain and not others
            parts.append({"type": "text", "text": text, **others})
        elif kind == "reasoning" and isinstance(part.get("value"), str):
            reasoning.append(part["value"])
        elif kind == "tool_call" and "value" in part:
            tool_calls.extend(_calls_in_text(part["value"], context, here, "value", calls))
        else:
            plain = False
            parts.append(part)
    return parts, reasoning, tool_calls, plain


def _calls_in_text(text: object, context: Context, path: str, key: str, calls: Calls) -> list[dict[str, Any]]:
    """Tool calls written as JSON text: `{"name": ..., "arguments": {...}}` or a list of them."""
    value = text
    if isinstance(text, str):
        try:
            value = load_text(text, f"{path}.{key}")
        except orjson.JSONDecodeError:
            raise BadRow("DK302", path, f"a tool call that is not JSON: {shown(text)}") from None
    values = value if isinstance(value, list) else [value]
    if not values:
        raise BadRow("DK302", path, "a tool call turn without a call")
    return [_call_alone(v, context, f"{path}.tool_calls[{index}]", calls) for index, v in enumerate(values)]


def _call_alone(value: object, context: Context, path: str, calls: Calls) -> dict[str, Any]:
    """One tool call; the keys that it had besides are left to the context."""
    call, left = read_call(value, context, path, calls)
    if left:
        context.leave(path, left)
    return call


def read_call(value: object, context: Context, path: str, calls: Calls) -> tuple[dict[str, Any], dict[str, Any]]:
    """One tool call in OpenAI's shape, and the keys that it had besides.

    Accepts `{id, type, function: {name, arguments}}`, `{name, arguments}` and Llama Stack's
    `{call_id, tool_name, arguments}`.
    """
    if not isinstance(value, dict):
        raise BadRow("DK302", path, f"expected a tool call, found {shown(value)}")
    inner = value if value.get("function") is None else value["function"]
    if not isinstance(inner, dict):
        raise BadRow("DK302", path, f"expected a function with a name, found {shown(inner)}")
    left = dict(inner)
    name = _take(left, ("name", "tool_name"))
    if not isinstance(name, str) or not name:
        raise BadRow("DK302", path, f"a tool call without a name: {shown(value)}")
    key = "parameters" if "parameters" in left and "arguments" not in left else "arguments"
    given = left.pop(key, None)
    here = f"{path}.{key}" if inner is value else f"{path}.function.{key}"
    if given is None or given == "":
        context.note("DK313", here, f"{'no' if given is None else 'empty'} arguments; {{}} was written")
    arguments = read_arguments(given, here)
    rest = left if inner is value else {**value, "function": left}
    rest = {k: v for k, v in rest.items() if k not in ("id", "call_id", "type", "index") and (k != "function" or v)}
    id = calls.call(value.get("id") or value.get("call_id"), name)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}, rest


def read_arguments(value: object, path: str) -> dict[str, Any]:
    """Tool arguments as an object; a JSON text is parsed, and null or an empty text means no arguments."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = load_text(value, path)
        except orjson.JSONDecodeError:
            raise BadRow("DK302", path, f"arguments that are not JSON: {shown(value)}") from None
    if not isinstance(value, dict):
        raise BadRow("DK302", path, f"arguments must be an object, found {shown(value)}")
    return value


def _read_reasoning(rest: Message, message: Message, path: str) -> None:
    for key in REASONING_KEYS:
        if key in rest and (rest[key] is None or isinstance(rest[key], str)):
            value = rest.pop(key)
            if value is not None:
                if "reasoning_content" in message:
                    raise BadRow("DK104", f"{path}.{key}", "reasoning is given twice in one message")
                message["reasoning_content"] = value


def _read_tool_calls(rest: Message, message: Message, context: Context, path: str, calls: Calls) -> None:
    values = rest.pop("tool_calls", None)
    legacy = rest.pop("function_call", None)
    if values is None and legacy is None:
        return
    if isinstance(values, str):
        try:
            values = load_text(values, f"{path}.tool_calls")
        except orjson.JSONDecodeError:
            raise BadRow("DK302", f"{path}.tool_calls", f"tool_calls that are not JSON: {shown(values)}") from None
    if values is not None and not isinstance(values, list):
        raise BadRow("DK302", f"{path}.tool_calls", f"expected a list of tool calls, found {shown(values)}")
    read: list[dict[str, Any]] = message.get("tool_calls", [])
    for index, value in enumerate(values or []):
        here = f"{path}.tool_calls[{index}]"
        call, left = read_call(value, context, here, calls)
        if isinstance(value, dict) and "function" in value and not value.get("id"):
            context.note("DK306", here, f"a call without an id; {call['id']} was given")
        if left:
            context.leave(here, left)
        read.append(call)
    if legacy is not None:
        read.append(_call_alone(legacy, context, f"{path}.function_call", calls))
    if read:
        message["tool_calls"] = read


def _read_rest(rest: Message, message: Message, path: str, calls: Calls) -> None:
    if message["role"] == "tool":
        id = calls.result(_take(rest, ("tool_call_id", "call_id")), rest.get("name", rest.get("tool_name")))
        if id is not None:
            message["tool_call_id"] = id
    for key in ("name", "refusal", "tool_call_id", "tool_name"):
        if key in rest and (rest[key] is None or isinstance(rest[key], str)):
            value = rest.pop(key)
            if value is not None:
                message["name" if key == "tool_name" else key] = value
    for key in WEIGHT_KEYS:
        if key in rest:
            value = rest.pop(key)
            if value is not None:
                if not isinstance(value, bool | int | float):
                    raise BadRow("DK209", f"{path}.{key}", f"expected a number or a boolean, found {shown(value)}")
                message["weight"] = int(value) if isinstance(value, bool) else value
                break


def read_tools(value: object, path: str = "tools") -> list[dict[str, Any]] | None:
    """Tool definitions in OpenAI's shape, or None where there are none.

    Accepts a JSON text of any of these: OpenAI's wrapped functions, flat `{name, description, parameters}`,
    Anthropic's `input_schema`, Gemini's `functionDeclarations`, and one object instead of a list.

    Raises:
        BadRow: the value holds something else.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = load_text(value, path)
        except orjson.JSONDecodeError:
            raise BadRow("DK301", path, f"tools that are not JSON: {shown(value)}") from None
    if value is None or value == []:
        return None
    values = value if isinstance(value, list) else [value]
    tools: list[dict[str, Any]] = []
    for index, tool in enumerate(values):
        declared = (
            tool.get("functionDeclarations", tool.get("function_declarations")) if isinstance(tool, dict) else None
        )
        for one in declared if isinstance(declared, list) else [tool]:
            tools.append(_read_tool(one, f"{path}[{index}]"))
    return tools or None


def _read_tool(tool: object, path: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise BadRow("DK301", path, f"expected a tool definition, found {shown(tool)}")
    if "function" in tool:
        made = tool if "type" in tool else {"type": "function", **tool}
    elif "input_schema" in tool:
        rest = {k: v for k, v in tool.items() if k not in ("input_schema", "type")}
        made = {"type": "function", "function": {**rest, "parameters": tool["input_schema"]}}
    else:
        made = {"type": "function", "function": {k: v for k, v in tool.items() if k != "type" or v != "function"}}
    if not isinstance(made["function"], dict) or not isinstance(made["function"].get("name"), str):
        raise BadRow("DK301", path, f"a tool without a name: {shown(made['function'])}")
    return made
