"""Parse functions: formats that hide turns in strings, blocks, items, channels or trees.

Each takes a raw row and returns slots (see `declare`) with the input columns that it took. What they return still
goes through the message reader, so roles, calls and tools are read in one place only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any, Final

import orjson

from datakit.findings import MISSING, BadRow, shown
from datakit.formats.declare import Row
from datakit.messages import OPENAI, Context, Message, read_messages

Parsed = tuple[Row, frozenset[str]]


def _present(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise BadRow("DK103", name, MISSING)
    return row[name]


def _without(value: Row, *keys: str) -> Row:
    return {k: v for k, v in value.items() if k not in keys}


# ---------------------------------------------------------------- turns inside strings

_TRANSCRIPT: Final = re.compile(r"\n\n(Human|Assistant): ?")


def split_transcript(text: object, path: str) -> list[Message]:
    r"""`\n\nHuman: q\n\nAssistant: a` as messages (Anthropic's HH-RLHF). Only the one space after a colon goes."""
    if not isinstance(text, str) or not _TRANSCRIPT.match(text):
        raise BadRow("DK104", path, f"expected a text that begins with \\n\\nHuman:, found {shown(text)}")
    pieces = _TRANSCRIPT.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    messages: list[Message] = [
        {"role": roles[who], "content": said} for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    return messages


def common_prompt(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages two conversations share as their prompt: whole turns only, and each keeps an answer.

    TRL's `extract_prompt` compares characters instead and cuts inside words.

    Raises:
        BadRow: they share no prompt that both answer with an assistant turn.
    """
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    cut = min(sum(1 for _ in pairs), len(chosen) - 1, len(rejected) - 1)
    while cut > 0 and not (chosen[cut]["role"] == rejected[cut]["role"] == "assistant"):
        cut -= 1
    if cut <= 0:
        raise BadRow("DK403", "", "the two conversations share no prompt")
    return cut


def explicit(chosen: list[Message], rejected: list[Message]) -> Row:
    cut = common_prompt(chosen, rejected)
    return {"messages": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}


def hh_transcripts(row: Row, context: Context) -> Parsed:
    chosen, rejected = (split_transcript(_present(row, side), side) for side in ("chosen", "rejected"))
    return explicit(chosen, rejected), frozenset({"chosen", "rejected"})


def whole_conversations(row: Row, context: Context) -> Parsed:
    """LLaMA-Factory v1: `chosen_messages` and `rejected_messages`, each a whole conversation."""
    names = ("chosen_messages", "rejected_messages")
    chosen, rejected = (read_messages(_list(row, name), OPENAI, context, name) for name in names)
    taken = frozenset({*names, "tools"})
    return {**explicit(chosen, rejected), "tools": row.get("tools")}, taken


def arena(row: Row, context: Context) -> Parsed:
    names = ("conversation_a", "conversation_b")
    a, b = (read_messages(_list(row, name), OPENAI, context, name) for name in names)
    cut = common_prompt(a, b)
    slots = {"messages": a[:cut], "first": a[cut:], "second": b[cut:], "winner": row.get("winner")}
    return slots, frozenset({*names, "winner"})


_APIBENCH: Final = (
    re.compile(r"\{'Instruction': (?P<user>.*?), 'Output': ?(?P<answer>.*)\}\s*", re.S),
    re.compile(r"###\s*Instruction:\s?(?P<user>.*?)\n###\s*Output:\s?(?P<answer>.*)", re.S),
)


def apibench(row: Row, context: Context) -> Parsed:
    """Gorilla's APIBench: instruction and answer run together in `code`, in one of two spellings."""
    code = _present(row, "code")
    found = next((m for p in _APIBENCH if isinstance(code, str) and (m := p.fullmatch(code))), None)
    if found is None:
        raise BadRow(
            "DK104", "code", f"neither {{'Instruction': ..., 'Output': ...}} nor ###Instruction: {shown(code)}"
        )
    return {"user": found["user"], "assistant": found["answer"]}, frozenset({"code"})


_CHATML: Final = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>(?:\n|$)", re.S)


def chatml_text(row: Row, context: Context) -> Parsed:
    """ChatML text back to messages, where rendering them again gives the same text."""
    text = _present(row, "text")
    found = _CHATML.findall(text) if isinstance(text, str) else []
    again = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in found)
    if not found or text not in (again, again.rstrip("\n")):
        raise BadRow("DK104", "text", f"not a whole ChatML conversation: {shown(text)}")
    return {"messages": [{"role": role, "content": content} for role, content in found]}, frozenset({"text"})


def rounds(row: Row, context: Context) -> Parsed:
    """ms-swift rounds: `[{"human": ..., "assistant": ...}, ...]`."""
    messages: list[Message] = []
    for index, pair in enumerate(_list(row, "conversation")):
        if not isinstance(pair, dict) or not {"human", "assistant"} <= pair.keys():
            raise BadRow("DK104", f"conversation[{index}]", f"expected human and assistant, found {shown(pair)}")
        messages.append({"role": "user", "content": pair["human"]})
        messages.append({**pair, "role": "assistant", "content": pair["assistant"]})
        for key in ("human", "assistant"):
            del messages[-1][key]
    return {"messages": messages, "system": row.get("system")}, frozenset({"conversation", "system"})


def rejected_response(row: Row, context: Context) -> Parsed:
    """ms-swift: the last answer of the conversation is the chosen one."""
    messages = read_messages(_list(row, "messages"), OPENAI, context, "messages")
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("DK203", "messages", "the conversation does not end on an assistant turn")
    slots: Row = {"messages": messages[:-1], "chosen": messages[-1:]}
    besides = {"rejected": "rejected_response", "system": "system", "tools": "tools", "images": "images"}
    slots |= {slot: row[name] for slot, name in besides.items() if row.get(name) is not None}
    return slots, frozenset({"messages", *besides.values()})


def scored_response(row: Row, context: Context) -> Parsed:
    slots = {"user": row.get("prompt"), "completions": [row.get("response")], "scores": [row.get("score")]}
    return slots, frozenset({"prompt", "response", "score"})


def bfcl(row: Row, context: Context) -> Parsed:
    """One turn of messages; several need answers in between, which the file does not have."""
    turns = _list(row, "question")
    if len(turns) != 1:
        raise BadRow("DK104", "question", f"{len(turns)} user turns without the answers between them")
    return {"messages": turns[0], "tools": row.get("function")}, frozenset({"question", "function"})


# ---------------------------------------------------------------- blocks, parts, items, channels


def _texts(blocks: object, path: str) -> str:
    """A text, or a list of text blocks as one text."""
    if isinstance(blocks, str):
        return blocks
    if isinstance(blocks, list) and all(isinstance(b, dict) and isinstance(b.get("text"), str) for b in blocks):
        return "\n".join(b["text"] for b in blocks)
    raise BadRow("DK104", path, f"expected a text or text blocks, found {shown(blocks)}")


def _simple(parts: list[Any]) -> Any:
    """Content parts as a string where they are one plain text."""
    if not parts:
        return ""
    only = parts[0]
    if len(parts) == 1 and isinstance(only, dict) and only.keys() == {"type", "text"}:
        return only["text"]
    return parts


def anthropic(row: Row, context: Context) -> Parsed:
    """Anthropic's blocks: thinking, tool_use and tool_result become reasoning, calls and tool messages."""
    messages: list[Message] = []
    for index, turn in enumerate(_list(row, "messages")):
        content = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(content, list):
            messages.append(turn)
            continue
        messages.extend(_anthropic_turn(turn, content, f"messages[{index}]"))
    slots = {"messages": messages, "tools": row.get("tools")}
    if row.get("system") is not None:
        slots["system"] = _texts(row["system"], "system")
    return slots, frozenset({"messages", "tools", "system"})


def _anthropic_turn(turn: Row, blocks: list[Any], path: str) -> list[Message]:
    parts: list[Any] = []
    results: list[Message] = []
    message = _without(turn, "content")
    for index, block in enumerate(blocks):
        here = f"{path}.content[{index}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            content = block.get("content")
            content = _simple(content) if isinstance(content, list) else content or ""
            result = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}
            results.append(result | _without(block, "type", "tool_use_id", "content"))
        elif kind == "tool_use":
            call = _without(block, "type", "input") | {"arguments": block.get("input")}
            message.setdefault("tool_calls", []).append(call)
        elif kind == "thinking":
            _think(message, block.get("thinking"), "\n", here, _without(block, "type", "thinking"))
        elif kind is None:
            raise BadRow("DK104", here, f"expected a block with a type, found {shown(block)}")
        else:
            parts.append(block)
    return _after(results, message, parts)


def _think(message: Message, thought: object, joint: str, path: str, rest: Row) -> None:
    """Add to the reasoning of a message; what stands beside it, such as a signature, rides along."""
    if not isinstance(thought, str):
        raise BadRow("DK104", path, f"expected a text, found {shown(thought)}")
    known = message.get("reasoning_content")
    message["reasoning_content"] = thought if known is None else f"{known}{joint}{thought}"
    if rest:
        message.setdefault("thinking_blocks", []).append(rest)


def _after(results: list[Message], message: Message, parts: list[Any]) -> list[Message]:
    """The tool results of a turn, and then the turn itself where it says anything."""
    if parts or message.keys() & {"tool_calls", "reasoning_content"} or not results:
        return [*results, {**message, "content": _simple(parts)}]
    results[-1] |= _without(message, "role")
    return results


def _list(row: Row, name: str) -> list[Any]:
    value = _present(row, name)
    if not isinstance(value, list):
        raise BadRow("DK104", name, f"expected a list, found {shown(value)}")
    return value


def gemini(row: Row, context: Context) -> Parsed:
    """Google's contents and parts. Calls carry no ids there; results are paired by order."""
    messages = [m for i, t in enumerate(_list(row, "contents")) for m in _gemini_turn(t, f"contents[{i}]")]
    slots: Row = {"messages": messages, "tools": row.get("tools")}
    for name in ("systemInstruction", "system_instruction"):
        if row.get(name) is not None:
            value = row[name]
            slots["system"] = _texts(value.get("parts") if isinstance(value, dict) else value, name)
    return slots, frozenset({"contents", "tools", "systemInstruction", "system_instruction"})


def _gemini_turn(turn: object, path: str) -> list[Message]:
    if not isinstance(turn, dict) or not isinstance(turn.get("parts"), list):
        raise BadRow("DK104", path, f"expected a role and parts, found {shown(turn)}")
    parts: list[Any] = []
    results: list[Message] = []
    message = {"role": "user", **_without(turn, "parts")}
    for index, part in enumerate(turn["parts"]):
        here = f"{path}.parts[{index}]"
        if not isinstance(part, dict):
            raise BadRow("DK104", here, f"expected a part, found {shown(part)}")
        call = part.get("functionCall", part.get("function_call"))
        answer = part.get("functionResponse", part.get("function_response"))
        rest = _without(part, "functionCall", "function_call", "functionResponse", "function_response")
        if isinstance(call, dict):
            made = _without(call, "args") | {"arguments": call.get("args")} | rest
            message.setdefault("tool_calls", []).append(made)
        elif isinstance(answer, dict):
            content = orjson.dumps(answer.get("response")).decode()
            result = {"role": "tool", "tool_call_id": answer.get("id"), "content": content}
            results.append(result | _without(answer, "id", "response") | rest)
        elif part.get("thought") is True:
            _think(message, part.get("text"), "", here, _without(part, "thought", "text"))
        else:
            parts.append({"type": "text", **part} if "text" in part else {"type": next(iter(part), "unknown"), **part})
    return _after(results, message, parts)


def responses(row: Row, context: Context) -> Parsed:
    """OpenAI Responses items: reasoning joins the next answer, and an answer and the calls after it are one turn."""
    messages: list[Message] = []
    thoughts: list[str] = []
    spare: list[Row] = []
    for index, item in enumerate(_list(row, "input")):
        path = f"input[{index}]"
        if not isinstance(item, dict):
            raise BadRow("DK104", path, f"expected an item, found {shown(item)}")
        kind = item.get("type", "message")
        if kind == "reasoning":
            thoughts += [_texts(item.get(key) or [], path) for key in ("summary", "content") if item.get(key)]
            spare += [rest] if (rest := _without(item, "type", "summary", "content")) else []
            continue
        if kind == "message":
            message = _without(item, "type")
        elif kind == "function_call":
            # read_call prefers an `id` to a `call_id`, but the result names the latter
            call = _without(item, "type", "id", "call_id") | {"id": item.get("call_id")}
            call |= {"item_id": item["id"]} if item.get("id") else {}
            if messages and messages[-1].get("role") == "assistant" and not thoughts and not spare:
                messages[-1].setdefault("tool_calls", []).append(call)
                continue
            message = {"role": "assistant", "content": "", "tool_calls": [call]}
        elif kind == "function_call_output":
            message = _without(item, "type", "output") | {"role": "tool", "content": item.get("output")}
        else:
            raise BadRow("DK104", path, f"an item of unknown type {shown(kind)}")
        if isinstance(message.get("content"), list):
            here = f"input[{len(messages)}].content"
            plain = [_plain(part, context, f"{here}[{at}]") for at, part in enumerate(message["content"])]
            message["content"] = _simple(plain)
        if message.get("role") == "assistant":
            message |= {"reasoning_content": "\n".join(thoughts)} if thoughts else {}
            message |= {"reasoning_items": spare} if spare else {}
            thoughts, spare = [], []
        messages.append(message)
    if thoughts:
        raise BadRow("DK104", "input", "reasoning that no answer follows")
    if spare:
        context.leave("input", {"reasoning_items": spare})
    return {"messages": messages, "tools": row.get("tools"), "system": row.get("instructions")}, frozenset(
        {"input", "tools", "instructions"}
    )


def _plain(part: object, context: Context, path: str) -> object:
    if isinstance(part, dict) and part.get("type") in ("input_text", "output_text"):
        if rest := _without(part, "type", "text"):
            context.leave(path, rest)
        return {"type": "text", "text": part.get("text")}
    return part


def harmony(row: Row, context: Context) -> Parsed:
    """gpt-oss channels: analysis is the reasoning of the next assistant turn, what goes to a tool is a call."""
    messages: list[Message] = []
    thoughts: Message = {}
    for index, turn in enumerate(_list(row, "messages")):
        role = turn.get("role") if isinstance(turn, dict) else None
        if role not in ("assistant", "tool"):
            messages += [{"role": "assistant", "content": "", **thoughts}] if thoughts else []
            messages.append(turn)
            thoughts = {}
            continue
        rest = _without(turn, "channel", "recipient")
        channel, recipient = turn.get("channel"), str(turn.get("recipient") or "all").removeprefix("functions.")
        if role == "tool":
            messages.append(rest | {"name": str(turn.get("name") or "").removeprefix("functions.") or None})
            continue
        if recipient != "all":
            rest |= {"content": "", "tool_calls": [{"name": recipient, "arguments": turn.get("content")}]}
        elif channel == "analysis":
            text = _texts(turn.get("content"), f"messages[{index}].content")
            _think(thoughts, text, "\n", "", _without(rest, "role", "content"))
            continue
        elif channel == "commentary":
            rest["channel"] = channel
        messages.append(thoughts | rest)
        thoughts = {}
    if thoughts:
        messages.append({"role": "assistant", "content": "", **thoughts})
    slots = {"messages": messages, "tools": row.get("tools"), "system": row.get("system")}
    return slots, frozenset({"messages", "tools", "system"})


# ---------------------------------------------------------------- trees and groups


def _children(node: Row) -> list[Row]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise BadRow("DK104", "prompt", f"expected a list of replies, found {shown(replies)}")
    return [reply for reply in replies if not reply.get("deleted")]


def _tree_message(node: Row) -> Message:
    role = {"prompter": "user", "assistant": "assistant"}.get(str(node.get("role", "prompter")))
    if role is None or not isinstance(node.get("text"), str):
        raise BadRow("DK104", "prompt", f"expected a tree node with role and text, found {shown(node)}")
    return {"role": role, "content": node["text"], **_without(node, "role", "text", "replies")}


def _paths(node: Row, before: list[Message]) -> Iterator[list[tuple[Row, Message]]]:
    stack: list[tuple[Row, list[tuple[Row, Message]]]] = [(node, [])]
    while stack:
        current, path = stack.pop()
        here = [*path, (current, _tree_message(current))]
        children = _children(current)
        if not children:
            yield here
        stack.extend((child, here) for child in reversed(children))


def tree_paths(row: Row, context: Context) -> list[Row]:
    """Every path of a message tree to its last assistant turn, each assistant turn trained once.

    A turn that an earlier path has already shown gets `weight` 0, so shared beginnings are not trained again and again.
    """
    root = _root(row)
    shown_before: set[int] = set()
    rows: list[Row] = []
    for path in _paths(root, []):
        while path and path[-1][1]["role"] != "assistant":
            path = path[:-1]
        fresh = [id(node) for node, message in path if message["role"] == "assistant" and id(node) not in shown_before]
        if not fresh:
            continue
        messages = []
        for node, message in path:
            if message["role"] == "assistant" and id(node) not in fresh:
                message = {**message, "weight": 0}
            messages.append(message)
        shown_before.update(fresh)
        rows.append({**_tree_facts(row), "messages": messages, "message_id": path[-1][0].get("message_id")})
    if not rows:
        raise BadRow("DK203", "prompt", "the tree has no assistant turn")
    return rows


def tree_rankings(row: Row, context: Context) -> list[Row]:
    """Every prompt of a message tree that has two or more ranked answers, best rank 0."""
    rows: list[Row] = []
    stack: list[tuple[Row, list[Message]]] = [(_root(row), [])]
    while stack:
        node, before = stack.pop()
        here = [*before, _tree_message(node)]
        children = _children(node)
        ranked = [c for c in children if c.get("role") == "assistant" and isinstance(c.get("rank"), int)]
        if len(ranked) > 1:
            answers = [[_tree_message(c)] for c in ranked]
            facts = {**_tree_facts(row), "message_id": node.get("message_id")}
            rows.append({**facts, "messages": here, "completions": answers, "scores": [c["rank"] for c in ranked]})
        stack.extend((child, here) for child in reversed(children))
    if not rows:
        raise BadRow("DK103", "prompt", "no prompt of this tree has two ranked answers")
    return rows


def _root(row: Row) -> Row:
    root = _present(row, "prompt")
    if not isinstance(root, dict):
        raise BadRow("DK104", "prompt", f"expected a message tree, found {shown(root)}")
    return root


def _tree_facts(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "prompt"}


def join_tree(rows: list[Row]) -> Row:
    """The rows of one message tree as a nested tree.

    Raises:
        BadRow: a row names a parent that is not among them, or they do not make one tree.
    """
    for row in rows:
        for name in ("message_tree_id", "message_id", "parent_id"):
            if not isinstance(row.get(name), str | int) and (name != "parent_id" or row.get(name) is not None):
                raise BadRow("DK104", name, f"expected an id, found {shown(row.get(name))}")
    nodes = {row["message_id"]: {**_without(row, "message_tree_id"), "replies": []} for row in rows}
    if len(nodes) != len(rows):
        raise BadRow("DK103", "message_id", "two messages of one tree have the same message_id")
    roots: list[Row] = []
    for row in rows:
        node, parent = nodes[row["message_id"]], row.get("parent_id")
        if parent is not None and parent not in nodes:
            note = f"parent {shown(parent)} is not among the neighbouring rows; sort the file by message_tree_id"
            raise BadRow("DK103", "parent_id", note)
        (roots if parent is None else nodes[parent]["replies"]).append(node)
    reached = list(roots)
    for node in reached:
        reached += node["replies"]
    if len(roots) != 1 or len(reached) != len(rows):
        raise BadRow("DK103", "parent_id", "a tree needs one root that all its messages go back to")
    return {"message_tree_id": rows[0]["message_tree_id"], "prompt": roots[0]}


def join_answers(rows: list[Row]) -> Row:
    """HelpSteer2: neighbouring rows with one prompt as one row with several scored answers."""
    attributes = [{k: v for k, v in row.items() if k not in ("prompt", "response")} for row in rows]
    scores = [row.get("helpfulness") for row in rows]
    answers = [row.get("response") for row in rows]
    return {"prompt": rows[0].get("prompt"), "completions": answers, "scores": scores, "attributes": attributes}


# ---------------------------------------------------------------- rankings and steps


def _pluck(values: Iterable[Any], key: str) -> list[Any]:
    return [value.get(key) if isinstance(value, dict) else None for value in values]


def _leave_rest(context: Context, name: str, values: Iterable[Any], *taken: str) -> None:
    """Keep what is not taken of the objects in a list, each under its place."""
    for index, value in enumerate(values):
        if isinstance(value, dict) and (rest := _without(value, *taken)):
            context.leave(f"{name}[{index}]", rest)


def ultrafeedback(row: Row, context: Context) -> Parsed:
    answers = _list(row, "completions")
    _leave_rest(context, "completions", answers, "response", "overall_score")
    slots = {
        "user": row.get("instruction"),
        "completions": _pluck(answers, "response"),
        "scores": _pluck(answers, "overall_score"),
    }
    return slots, frozenset({"instruction", "completions"})


def nectar(row: Row, context: Context) -> Parsed:
    answers = _list(row, "answers")
    prompt = split_transcript(_present(row, "prompt"), "prompt")
    if prompt[-1]["role"] == "assistant" and not prompt[-1]["content"].strip():
        prompt = prompt[:-1]  # it is where the answers are to stand
    _leave_rest(context, "answers", answers, "answer", "rank")
    slots = {"messages": prompt, "completions": _pluck(answers, "answer"), "scores": _pluck(answers, "rank")}
    return slots, frozenset({"prompt", "answers"})


def summaries(row: Row, context: Context) -> Parsed:
    """OpenAI's summarize-from-feedback: `info` with the post, two summaries, and which one was chosen."""
    info, both = row.get("info"), _list(row, "summaries")
    name = next((k for k in ("post", "article") if isinstance(info, dict) and isinstance(info.get(k), str)), None)
    texts = _pluck(both, "text")
    if not isinstance(info, dict) or name is None:
        raise BadRow("DK104", "info", f"expected a post or an article, found {shown(info)}")
    if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise BadRow("DK104", "summaries", f"expected two objects with a text, found {shown(both)}")
    if rest := _without(info, name):
        context.leave("info", rest)
    _leave_rest(context, "summaries", both, "text")
    slots = {"user": info[name], "first": texts[0], "second": texts[1], "winner": row.get("choice")}
    return slots, frozenset({"info", "summaries", "choice"})


def prm800k(row: Row, context: Context) -> Parsed:
    """PRM800K: the chosen completion of each step, labelled good where its rating is not negative."""
    question, label = row.get("question"), row.get("label")
    if not isinstance(question, dict) or not isinstance(label, dict):
        raise BadRow("DK104", "question", f"expected two objects, found {shown(question)} and {shown(label)}")
    rated = [_rated(step, f"label.steps[{index}]") for index, step in enumerate(_list(label, "steps"))]
    if rest := _without(question, "problem"):
        context.leave("question", rest)
    context.leave("label", label)
    slots = {"prompt": question.get("problem"), "completions": [s for s, _ in rated], "labels": [x for _, x in rated]}
    return slots, frozenset({"question", "label"})


def _rated(step: object, path: str) -> tuple[Any, bool]:
    """Text and verdict of the completion that a labeller went on with; one of the labeller's own is right."""
    if not isinstance(step, dict):
        raise BadRow("DK104", path, f"expected a step, found {shown(step)}")
    answers, pick, own = step.get("completions"), step.get("chosen_completion"), step.get("human_completion")
    if pick is None and isinstance(own, dict):
        return own.get("text"), True
    pick = 0 if pick is None else pick
    found = isinstance(answers, list) and isinstance(pick, int) and 0 <= pick < len(answers)
    answer = answers[pick] if found else None  # type: ignore[index]
    rating = answer.get("rating") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(rating, int | float):
        raise BadRow("DK103", path, "a step without a rated completion")
    return answer.get("text"), rating >= 0


_STEP_TAG: Final = "ки"


def math_shepherd(row: Row, context: Context) -> Parsed:
    """Math-Shepherd: steps end on a tag in `input`, on + or - in `label`. The question ends before `Step 1:`."""
    text, marked = row.get("input"), row.get("label")
    if not isinstance(text, str) or not isinstance(marked, str):
        raise BadRow("DK104", "input", "expected two texts, input and label")
    pieces = text.split(_STEP_TAG)
    start = pieces[0].find("Step 1:")
    if len(pieces) < 2 or start < 0:
        raise BadRow("DK104", "input", f"no steps that end on {_STEP_TAG}: {shown(text)}")
    question, pieces[0] = pieces[0][:start], pieces[0][start:]
    steps, labels, position = pieces[:-1], [], start
    for step in steps:
        position += len(step)
        sign = marked[position : position + 1]
        if sign not in ("+", "-"):
            raise BadRow("DK104", "label", f"expected + or - after each step, found {shown(sign)}")
        labels.append(sign == "+")
        position += 1
    # input and label keep their lengths apart from the tag, which is longer than a sign
    signed = zip(steps, labels, strict=True)
    if marked != question + "".join(step + ("+" if good else "-") for step, good in signed) + pieces[-1]:
        raise BadRow("DK104", "label", "differs from input in more than the marks after the steps")
    if pieces[-1]:
        context.leave("input", {"after_last_step": pieces[-1]})
    return {"prompt": question, "completions": steps, "labels": labels}, frozenset({"input", "label"})
