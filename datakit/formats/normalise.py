"""From a raw row to the trainer columns of its format's layout: one function per kind, driven by the declaration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from datakit.findings import MISSING, BadRow, shown
from datakit.formats.declare import SYSTEM, Format, Record, Row, leftover, look
from datakit.messages import CONTENT_KEYS, Context, Message, Turn, read_messages, read_tools
from datakit.reading.rows import load_text

Slots = Mapping[str, Any]


def normalise(format: Format, row: Row, context: Context) -> tuple[Record, Row]:
    """The trainer columns of a row, and what no column took.

    Raises:
        BadRow: the row does not fit its format.
    """
    slots: Row
    if format.parse is not None:
        slots, taken = format.parse(row, context)
        rest = leftover(row, taken)
    elif format.slot_of:
        slots, rest, slot_of = {}, {}, format.slot_of
        for column, value in row.items():
            slot = slot_of.get(column)
            if slot is None:
                rest[column] = value
            elif value is not None:
                slots[slot] = value
    else:
        found = {slot: look(row, path)[1] for slot, path in format.columns.items()}
        slots = {slot: value for slot, value in found.items() if value is not None}
        rest = leftover(row, format.taken)
    record = BUILDERS[format.layout.kind](format, slots, context)
    if "tools" in slots or "images" in slots or "chat_template_kwargs" in slots:
        _carry(slots, record)
    if format.copies:
        _check_copies(format, slots, record, rest)
    if context.left:
        rest["dk_turns"], context.left = context.left, {}
    return record, rest


def _text(format: Format, slots: Slots, slot: str) -> str:
    value = slots.get(slot)
    if not isinstance(value, str):
        path = format.columns.get(slot, slot)
        if value is None:
            raise BadRow("DK103", path, MISSING)
        raise BadRow("DK104", path, f"expected a text, found {shown(value)}")
    return value


def _some_text(format: Format, slots: Slots, slot: str) -> str:
    value = _text(format, slots, slot)
    if not value.strip():
        raise BadRow("DK106", format.columns.get(slot, slot), "an empty text")
    return value


def _context_messages(format: Format, slots: Slots, context: Context) -> list[Message]:
    """The system text, history, turns and user text, as far as the row has them."""
    messages: list[Message] = []
    if len(slots) == 1 and "messages" in slots and format.starts == ("messages",):  # most conversations
        return read_messages(slots["messages"], format.turn, context, format.columns["messages"])
    for slot in ("messages", "prompt", "user") if format.parse else format.starts:
        if slots.get(slot) is None and (slot in slots or not format.parse):
            raise BadRow("DK103", format.columns.get(slot, slot), MISSING)
    if isinstance(turns := slots.get("messages"), list):
        messages = read_messages(turns, format.turn, context, format.columns.get("messages", "messages"))
    elif "messages" in slots:
        raise BadRow("DK104", "messages", f"expected a list of turns, found {shown(slots['messages'])}")
    if "history" in slots:
        messages = _history(slots["history"]) + messages
    if "prompt" in slots:
        messages = messages + _as_messages(slots["prompt"], "user", format.turn, context, "prompt")
    if "user" in slots or "input" in slots:
        parts = [_text(format, slots, slot) for slot in ("user", "input") if slots.get(slot) not in (None, "")]
        if not parts and not messages:
            raise BadRow("DK207", format.columns.get("user", "user"), "the instruction is empty")
        messages.append({"role": "user", "content": "\n".join(parts)})
    for slot in SYSTEM:
        messages = _with_system(slots.get(slot), messages, format.columns.get(slot, slot))
    return messages


def _with_system(system: object, messages: list[Message], path: str) -> list[Message]:
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise BadRow("DK104", path, f"expected a text, found {shown(system)}")
    if messages and messages[0]["role"] == "system":
        if messages[0].get("content") != system:
            raise BadRow("DK211", path, "this column and the first message differ")
        return messages
    return [{"role": "system", "content": system}, *messages]


def _history(value: object) -> list[Message]:
    if isinstance(value, str):
        try:
            value = load_text(value, "history") if value.strip() else []
        except orjson.JSONDecodeError:
            raise BadRow("DK104", "history", f"expected a list of pairs, found {shown(value)}") from None
    if not isinstance(value, list):
        raise BadRow("DK104", "history", f"expected a list of pairs, found {shown(value)}")
    messages: list[Message] = []
    for index, pair in enumerate(value):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)):
            raise BadRow("DK104", f"history[{index}]", f"expected [question, answer], found {shown(pair)}")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return messages


def _as_messages(value: object, role: str, turn: Turn, context: Context, path: str) -> list[Message]:
    """A text, one message or a list of messages, as messages."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        if not any(key in value for key in CONTENT_KEYS):
            raise BadRow("DK104", path, f"expected a message, found {shown(value)}")
        return read_messages([value], turn, context, path)
    if isinstance(value, list):
        return read_messages(value, turn, context, path)
    raise BadRow("DK104", path, f"expected a text or messages, found {shown(value)}")


def _answer(format: Format, slots: Slots, slot: str, prompt: list[Message], context: Context) -> list[Message]:
    """An answer as messages; a whole conversation loses the prompt that it repeats."""
    if slot not in slots:
        raise BadRow("DK103", format.columns.get(slot, slot), MISSING)
    messages = _as_messages(slots[slot], "assistant", format.turn, context, format.columns.get(slot, slot))
    if messages and messages[0]["role"] in ("system", "user", "developer"):
        bare = prompt[1:] if prompt and prompt[0]["role"] == "system" and messages[0]["role"] != "system" else prompt
        if not bare or messages[: len(bare)] != bare:
            raise BadRow("DK402", slot, "does not begin with the prompt")
        messages = messages[len(bare) :]
    if not messages:
        raise BadRow("DK106", slot, "no answer")
    return messages


def _sft(format: Format, slots: Slots, context: Context) -> Record:
    form = format.layout.form
    if form == "text":
        return {"text": _some_text(format, slots, "text")}
    if form == "prompt_completion":
        if not format.layout.conversational:
            return {"prompt": _text(format, slots, "prompt"), "completion": _some_text(format, slots, "completion")}
        prompt = _context_messages(format, slots, context)
        return {"prompt": prompt, "completion": _answer(format, slots, "completion", prompt, context)}
    messages = _context_messages(format, slots, context)
    if "assistant" in format.columns or "assistant" in slots:
        messages.append({"role": "assistant", "content": _text(format, slots, "assistant")})
    if not messages:
        raise BadRow("DK106", format.columns.get("messages", ""), "no messages")
    return {"messages": messages}


def _preference(format: Format, slots: Slots, context: Context) -> Record:
    slots = _decided(format, slots)
    layout = format.layout
    if not layout.conversational:
        return {column.name: _text(format, slots, column.name) for column in layout.columns}
    if layout.form == "implicit":
        turn = format.turn
        return {
            side: _as_messages(slots.get(side), "assistant", turn, context, side) for side in ("chosen", "rejected")
        }
    prompt = _context_messages(format, slots, context)
    chosen, rejected = (_answer(format, slots, side, prompt, context) for side in ("chosen", "rejected"))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _decided(format: Format, slots: Slots) -> Slots:
    """For comparisons: `first` and `second` as chosen and rejected, by the winner column or by their scores."""
    if "first" not in slots or "second" not in slots:
        return slots
    if "score_first" in format.columns:
        a, b = slots.get("score_first"), slots.get("score_second")
        if not (isinstance(a, int | float) and isinstance(b, int | float)):
            raise BadRow("DK104", "score", f"expected two numbers, found {shown(a)} and {shown(b)}")
        verdict = "tie" if a == b else "first" if a > b else "second"
    else:
        names = [slot for slot in format.columns if slot.startswith("winner")]
        votes = Counter(_verdict(format, slots.get(name), format.columns[name]) for name in names)
        best, count = votes.most_common(1)[0]
        verdict = best if 2 * count > votes.total() else "tie"
    if verdict == "tie":
        raise BadRow("DK410", "", "neither answer wins, so there is nothing to prefer")
    pair = (slots["first"], slots["second"]) if verdict == "first" else (slots["second"], slots["first"])
    return {**slots, "chosen": pair[0], "rejected": pair[1]}


def _verdict(format: Format, value: object, path: str) -> str:
    try:
        return format.wins[value]
    except (KeyError, TypeError):
        allowed = ", ".join(map(str, format.wins))
        raise BadRow("DK104", path, f"expected one of {allowed}, found {shown(value)}") from None


TRUE_WORDS: Final[Mapping[object, bool]] = {True: True, False: False, "true": True, "false": False, "True": True,
                                            "False": False, "1": True, "0": False}  # fmt: skip


def _label(format: Format, value: object) -> bool:
    words = {**TRUE_WORDS, **format.labels}
    try:
        return words[value]
    except (KeyError, TypeError):
        allowed = ", ".join(sorted({str(word).lower() for word in words}))
        raise BadRow("DK501", format.columns.get("label", "label"), f"not one of {allowed}: {shown(value)}") from None


def _kto(format: Format, slots: Slots, context: Context) -> Record:
    if "label" not in slots:
        raise BadRow("DK103", format.columns.get("label", "label"), MISSING)
    label = _label(format, slots["label"])
    if not format.layout.conversational:
        texts = {slot: _text(format, slots, slot) for slot in ("prompt", "completion")}
        return {**texts, "label": label}
    prompt = _context_messages(format, slots, context)
    if "completion" in format.columns or "completion" in slots:
        completion = _answer(format, slots, "completion", prompt, context)
    else:
        prompt, completion = split_last_answer(prompt)
    return {"prompt": prompt, "completion": completion, "label": label}


def split_last_answer(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """A conversation cut before its last run of assistant messages (results of tools between them included).

    Raises:
        BadRow: it does not end on an assistant message.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("DK203", "messages", "the conversation does not end on an assistant turn")
    cut = len(messages)
    while cut and messages[cut - 1]["role"] in ("assistant", "tool"):
        cut -= 1
    return messages[:cut], messages[cut:]


def _prompt(format: Format, slots: Slots, context: Context) -> Record:
    if not format.layout.conversational:
        return {"prompt": _text(format, slots, "prompt")}
    return {"prompt": _context_messages(format, slots, context)}


def _trajectory(format: Format, slots: Slots, context: Context) -> Record:
    reward = slots.get("reward")
    if reward is not None and (isinstance(reward, bool) or not isinstance(reward, int | float)):
        raise BadRow("DK104", "reward", f"expected a number, found {shown(reward)}")
    messages = _context_messages(format, slots, context)
    return {"messages": messages, "reward": None if reward is None else float(reward)}


def _ranked(format: Format, slots: Slots, context: Context) -> Record:
    answers, scores = slots.get("completions"), slots.get("scores")
    if not isinstance(answers, list) or not answers:
        raise BadRow("DK104", "completions", f"expected a list of answers, found {shown(answers)}")
    if not isinstance(scores, list) or len(scores) != len(answers):
        raise BadRow("DK104", "scores", f"expected {len(answers)} scores, found {shown(scores)}")
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in scores):
        raise BadRow("DK104", "scores", "expected numbers only")
    sign = -1.0 if format.lower_is_better else 1.0
    numbers = [sign * x + 0.0 for x in scores]  # no negative zero
    if not format.layout.conversational:
        if not all(isinstance(x, str) for x in answers):
            raise BadRow("DK104", "completions", "expected texts only")
        return {"prompt": _text(format, slots, "prompt"), "completions": answers, "scores": numbers}
    prompt = _context_messages(format, slots, context)
    slot = format.columns.get("completions", "completions")
    named = [(f"{slot}[{index}]", answer) for index, answer in enumerate(answers)]
    read = [_answer(format, {name: answer}, name, prompt, context) for name, answer in named]
    return {"prompt": prompt, "completions": read, "scores": numbers}


def _stepwise(format: Format, slots: Slots, context: Context) -> Record:
    steps, labels = slots.get("completions"), slots.get("labels")
    if not isinstance(steps, list) or not steps or not all(isinstance(x, str) for x in steps):
        raise BadRow("DK104", "completions", f"expected a list of texts, found {shown(steps)}")
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise BadRow("DK104", "labels", f"expected {len(steps)} labels, found {shown(labels)}")
    read = [_label(format, x) for x in labels]
    return {"prompt": _text(format, slots, "prompt"), "completions": steps, "labels": read}


def _tokenized(format: Format, slots: Slots, context: Context) -> Record:
    record: Record = {}
    for column in format.layout.columns:
        ids = slots.get(column.name)
        if ids is None:
            if not column.nullable:
                raise BadRow("DK103", column.name, MISSING)
            record[column.name] = None
            continue
        if not isinstance(ids, list) or not all(type(x) is int and -(2**31) <= x < 2**31 for x in ids):
            raise BadRow("DK104", column.name, f"expected a list of 32-bit integers, found {shown(ids)}")
        if len(ids) != len(slots["input_ids"]):
            raise BadRow("DK711", column.name, f"{len(ids)} values for {len(slots['input_ids'])} tokens")
        record[column.name] = ids
    return record


BUILDERS: Final[Mapping[str, Callable[[Format, Slots, Context], Record]]] = {
    "sft": _sft,
    "preference": _preference,
    "kto": _kto,
    "prompt": _prompt,
    "trajectory": _trajectory,
    "ranked": _ranked,
    "stepwise": _stepwise,
    "tokenized": _tokenized,
}


def _carry(slots: Slots, record: Record) -> None:
    if "tools" in slots and (tools := read_tools(slots["tools"])) is not None:
        record["tools"] = tools
    if "images" in slots:
        images = slots["images"] if isinstance(slots["images"], list) else [slots["images"]]
        if not all(isinstance(image, str) for image in images):
            raise BadRow("DK104", "images", "expected paths or addresses; embedded images are not supported")
        if images:
            record["images"] = images
    if kwargs := slots.get("chat_template_kwargs"):
        if isinstance(kwargs, str):
            try:
                kwargs = load_text(kwargs, "chat_template_kwargs")
            except orjson.JSONDecodeError:
                kwargs = None
        if not isinstance(kwargs, dict):
            raise BadRow("DK104", "chat_template_kwargs", "expected an object")
        record["chat_template_kwargs"] = kwargs


def _check_copies(format: Format, slots: Slots, record: Record, rest: Row) -> None:
    """A column that only repeats another is dropped where it does so exactly, and kept where it does not."""
    for slot in format.copies:
        if slot not in slots:
            continue
        value, same = slots[slot], False
        if slot == "copy_of_chosen":
            same = value == record["prompt"] + record["chosen"] if isinstance(value, list) else False
        else:
            messages: list[Message] = record.get("messages", record.get("prompt")) or []
            first: Message = next((m for m in messages if m["role"] == "user"), {})
            same = value == first.get("content")
        if not same:
            rest[format.columns[slot]] = value
