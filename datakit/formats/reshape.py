"""From one layout to another, where nothing is lost on the way.

strings      <-> messages             one user text, one assistant text
sft:messages <-> prompt_completion    cut before the last answer
preference:  messages <-> implicit    the shared turns are the prompt
preference    -> sft, prompt          the chosen answer, or none; the others go into dk_meta
sft           -> prompt               cut before the last answer, which becomes the column `solution`
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Final

from datakit.errors import UsageError
from datakit.findings import BadRow
from datakit.formats.declare import Record
from datakit.formats.normalise import split_last_answer
from datakit.formats.parse import common_prompt
from datakit.messages import Message
from datakit.schema import Layout, layout

_ROLE: Final = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}

_BETWEEN: Final = {
    ("sft", "messages"): ("messages", "prompt_completion"),
    ("sft", "prompt_completion"): ("messages", "prompt_completion"),
    ("preference", "messages"): ("messages", "implicit", "strings"),
    ("preference", "strings"): ("messages", "implicit", "strings"),
    ("preference", "implicit"): ("messages", "implicit", "strings"),
    ("kto", "strings"): ("strings", "messages"),
    ("kto", "messages"): ("strings", "messages"),
    ("prompt", "strings"): ("strings", "messages"),
    ("prompt", "messages"): ("strings", "messages"),
    ("ranked", "strings"): ("strings", "messages"),
    ("ranked", "messages"): ("strings", "messages"),
}


_UNUSED: Final = {
    ("preference", "sft"): ("rejected",),
    ("preference", "prompt"): ("chosen", "rejected"),
    ("sft", "prompt"): ("completion",),
}
"""Columns of one kind, with its prompt apart, that another has no place for."""

SOLUTION: Final = "solution"
"""The column beside a prompt that a reward reads; the answer of an sft row, where it is one plain text."""


def reaches(source: Layout, target: Layout) -> bool:
    """Whether rows of one layout can be carried to another without loss."""
    if source == target:
        return True
    if (source.kind, target.kind) in _UNUSED and target.form != "text":
        return reaches(source, _explicit(source, target))
    if source.kind != target.kind or target.form not in _BETWEEN.get((source.kind, source.form), ()):
        return False
    # a whole text has no turns to split at, and joining texts into one would invent a separator
    return not any(x.form == "implicit" and not x.conversational for x in (source, target))


def _explicit(source: Layout, target: Layout) -> Layout:
    """The kind of the source with a prompt of its own, as messages or strings like the target."""
    if source.kind == "sft":
        return layout("sft", "prompt_completion", target.conversational)
    return layout("preference", "messages" if target.conversational else "strings")


def unused(record: Record, source: Layout, target: Layout, rest: Container[str] = ()) -> Record:
    """The columns of a row that the target has no place for; an answer of one text as `SOLUTION`.

    Args:
        rest: names that the row has besides, which are not written over.

    Raises:
        BadRow: as `reshape`.
    """
    names = _UNUSED.get((source.kind, target.kind), ())
    if names and _waits(record):
        return {}
    if not all(name in record for name in names):
        record = reshape(record, source, _explicit(source, target))
    left = {name: record[name] for name in names}
    if target.kind == "prompt" and "completion" in left and SOLUTION not in rest:
        answer = left["completion"]
        if isinstance(answer, list) and len(answer) == 1 and answer[0].keys() == {"role", "content"}:
            answer = answer[0]["content"]
        if isinstance(answer, str):
            return {SOLUTION: answer}
    return left


def _waits(record: Record) -> bool:
    """Whether a conversation ends before its answer, and so is a prompt already."""
    messages = record.get("messages") or ()
    return bool(messages and messages[-1]["role"] != "assistant")


def reshape(record: Record, source: Layout, target: Layout) -> Record:
    """A row in another layout.

    Raises:
        BadRow: this row has more than the target can hold.
        UsageError: no row of the source layout can be carried over.
    """
    if source == target:
        return record
    if not reaches(source, target):
        raise UsageError(f"{source.name} cannot become {target.name} without loss")
    if (source.kind, target.kind) == ("sft", "prompt") and _waits(record):
        prompt = {"prompt" if name == "messages" else name: value for name, value in record.items()}
        return reshape(prompt, layout("prompt", "messages"), target)
    if (source.kind, target.kind) in _UNUSED:
        return _without_answers(reshape(record, source, _explicit(source, target)), target)
    extra = {k: v for k, v in record.items() if k not in {c.name for c in source.columns}}
    columns = {c.name: record[c.name] for c in source.columns}
    if not source.conversational and target.conversational:
        columns = {name: _to_messages(name, value) for name, value in columns.items()}
    if source.form != target.form:
        columns = _reform(columns, target)
    if not target.conversational and source.conversational:
        columns = {name: _to_text(name, value) for name, value in columns.items()}
    return columns | extra


def _without_answers(record: Record, target: Layout) -> Record:
    """The prompt of a row, or of a pair the prompt with the chosen answer."""
    extra = {k: v for k, v in record.items() if k not in ("prompt", "completion", "chosen", "rejected")}
    if target.kind == "prompt":
        return {"prompt": record["prompt"]} | extra
    if target.form == "messages":
        return {"messages": record["prompt"] + record["chosen"]} | extra
    return {"prompt": record["prompt"], "completion": record["chosen"]} | extra


def _to_messages(name: str, value: Any) -> Any:
    if name == "completions":
        return [[{"role": "assistant", "content": text}] for text in value]
    return [{"role": _ROLE[name], "content": value}] if name in _ROLE else value


def _to_text(name: str, value: Any) -> Any:
    if name == "completions":
        return [_only_text("completion", answer) for answer in value]
    return _only_text(name, value) if name in _ROLE else value


def _only_text(name: str, messages: list[Message]) -> str:
    if len(messages) == 1 and messages[0].keys() == {"role", "content"}:
        content = messages[0]["content"]
        if messages[0]["role"] == _ROLE[name] and isinstance(content, str):
            return content
    raise BadRow("DK120", name, f"more than one {_ROLE[name]} message with a plain text")


def _reform(columns: Record, target: Layout) -> Record:
    if target.form == "prompt_completion":
        prompt, completion = split_last_answer(columns["messages"])
        return {"prompt": prompt, "completion": completion}
    if "completion" in columns and target.kind == "sft":
        return {"messages": columns["prompt"] + columns["completion"]}
    if target.form == "implicit":
        return {side: columns["prompt"] + columns[side] for side in ("chosen", "rejected")}
    if "prompt" not in columns and target.kind == "preference":
        cut = common_prompt(columns["chosen"], columns["rejected"])
        return {"prompt": columns["chosen"][:cut]} | {s: columns[s][cut:] for s in ("chosen", "rejected")}
    return columns


# ---------------------------------------------------------------- <think>

_OPEN: Final = "<think>"
_CLOSE: Final = "</think>"


def split_reasoning(message: Message) -> Message:
    """`<think>r</think>a` as reasoning_content `r` and content `a`, white space included; else unchanged."""
    content = message.get("content")
    if message["role"] != "assistant" or "reasoning_content" in message or not isinstance(content, str):
        return message
    if not content.startswith(_OPEN) or _CLOSE not in content:
        return message
    reasoning, _, answer = content[len(_OPEN) :].partition(_CLOSE)
    made: Message = {}
    for key, value in message.items():
        made[key] = value
        if key == "content":
            made["content"], made["reasoning_content"] = answer, reasoning
    return made


def inline_reasoning(message: Message) -> Message:
    """The exact inverse of `split_reasoning`; a message that could not be split back is left as it is."""
    content, reasoning = message.get("content"), message.get("reasoning_content")
    if message["role"] != "assistant" or not isinstance(content, str):
        return message
    if not isinstance(reasoning, str) or _CLOSE in reasoning:
        return message
    made = {key: value for key, value in message.items() if key != "reasoning_content"}
    made["content"] = f"{_OPEN}{reasoning}{_CLOSE}{content}"
    return made


def with_reasoning(record: Record, how: str) -> tuple[Record, bool]:
    """The row with `<think>` texts split off or put back, and whether a message had to be left as it was."""
    change = split_reasoning if how == "split" else inline_reasoning
    left = False

    def over(value: Any) -> Any:
        nonlocal left
        if not isinstance(value, list):
            return value
        if value and isinstance(value[0], list):
            return [over(inner) for inner in value]
        if not value or not isinstance(value[0], dict) or "role" not in value[0]:
            return value
        made = [change(message) for message in value]
        left = left or (how == "inline" and any("reasoning_content" in m for m in made))
        return made

    skip = ("tools", "images", "chat_template_kwargs")
    return {name: value if name in skip else over(value) for name, value in record.items()}, left
