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

from datakit.findings import BadRow, shown
from datakit.formats.declare import Row
from datakit.messages import OPENAI, Context, Message, read_messages

Parsed = tuple[Row, frozenset[str]]

# ---------------------------------------------------------------- turns inside strings

_TRANSCRIPT: Final = re.compile(r"\n\n(Human|Assistant): ?")


def split_transcript(text: object, path: str) -> list[Message]:
    """`\\n\\nHuman: q\\n\\nAssistant: a` as messages (Anthropic's HH-RLHF). Only the one space after a colon goes.

    An empty last assistant turn is left out: it is where the answer is to stand.
    """
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
    chosen, rejected = (split_transcript(row.get(side), side) for side in ("chosen", "rejected"))
    return explicit(chosen, rejected), frozenset({"chosen", "rejected"})


def whole_conversations(row: Row, context: Context) -> Parsed:
    """LLaMA-Factory v1: `chosen_messages` and `rejected_messages`, each a whole conversation."""
    names = ("chosen_messages", "rejected_messages")
    chosen, rejected = (read_messages(row.get(name), OPENAI, context, name) for name in names)
    taken = frozenset({*names, "tools"})
    return {**explicit(chosen, rejected), "tools": row.get("tools")}, taken


def arena(row: Row, context: Context) -> Parsed:
    names = ("conversation_a", "conversation_b")
    a, b = (read_messages(row.get(name), OPENAI, context, name) for name in names)
    cut = common_prompt(a, b)
    slots = {"messages": a[:cut], "first": a[cut:], "second": b[cut:], "winner": row.get("winner")}
    return slots, frozenset({*names, "winner"})


_APIBENCH: Final = (
    re.compile(r"\{'Instruction': (?P<user>.*?), 'Output': (?P<answer>.*)\}\s*", re.S),
    re.compile(r"###\s*Instruction:\s?(?P<user>.*?)\n###\s*Output:\s?(?P<answer>.*)", re.S),
)


def apibench(row: Row, context: Context) -> Parsed:
    """Gorilla's APIBench: instruction and answer run together in `code`, in one of two spellings."""
    code = row.get("code")
    found = next((m for p in _APIBENCH if isinstance(code, str) and (m := p.fullmatch(code))), None)
    if found is None:
        raise BadRow("DK104", "code", f"neither {{'Instruction': ..., 'Output': ...}} nor ###Instruction: {shown(code)}")
    return {"user": found["user"], "assistant": found["answer"]}, frozenset({"code"})


_CHATML: Final = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>(?:\n|$)", re.S)


def chatml_text(row: Row, context: Context) -> Parsed:
    """ChatML text back to messages, where rendering them again gives the same text."""
    text = row.get("text")
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
    messages = read_messages(row.get("messages"), OPENAI, context, "messages")
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("DK203", "messages", "the conversation does not end on an assistant turn")
    slots = {"messages": messages[:-1], "chosen": messages[-1:], "rejected": row.get("rejected_response")}
    return slots, frozenset({"messages", "rejected_response"})


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
        rest = {k: v for k, v in turn.items() if k not in ("role", "content")}
        messages.extend(_anthropic_turn(turn.get("role"), content, rest, f"messages[{index}]"))
    slots = {"messages": messages, "tools": row.get("tools")}
    if row.get("system") is not None:
        slots["system"] = _texts(row["system"], "system")
    return slots, frozenset({"messages", "tools", "system"})


def _anthropic_turn(role: object, blocks: list[Any], rest: Row, path: str) -> Iterator[Message]:
    parts: list[Any] = []
    message: Message = {"role": role, "content": "", **rest}
    for index, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_result":
            result: Message = {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": ""}
            content = block.get("content")
            result["content"] = _simple(content) if isinstance(content, list) else content or ""
            known = ("type", "tool_use_id", "content")
            yield {**result, **{k: v for k, v in block.items() if k not in known}}
        elif kind == "tool_use":
            call = {"id": block.get("id"), "name": block.get("name"), "arguments": block.get("input")}
            message.setdefault("tool_calls", []).append(call)
        elif kind == "thinking":
            if "reasoning_content" in message:
                message["reasoning_content"] += "\n" + str(block.get("thinking", ""))
            else:
                message["reasoning_content"] = block.get("thinking")
            if block.get("signature"):
                message["signature"] = block["signature"]
        elif kind is None:
            raise BadRow("DK104", f"{path}.content[{index}]", f"expected a block with a type, found {shown(block)}")
        else:
            parts.append(block)
    if parts or message.keys() & {"tool_calls", "reasoning_content"}:
        yield {**message, "content": _simple(parts)}


def _list(row: Row, name: str) -> list[Any]:
    value = row.get(name)
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


def _gemini_turn(turn: object, path: str) -> Iterator[Message]:
    if not isinstance(turn, dict) or not isinstance(turn.get("parts"), list):
        raise BadRow("DK104", path, f"expected a role and parts, found {shown(turn)}")
    message: Message = {"role": turn.get("role", "user")}
    parts: list[Any] = []
    for index, part in enumerate(turn["parts"]):
        if not isinstance(part, dict):
            raise BadRow("DK104", f"{path}.parts[{index}]", f"expected a part, found {shown(part)}")
        call = part.get("functionCall", part.get("function_call"))
        answer = part.get("functionResponse", part.get("function_response"))
        if isinstance(call, dict):
            made = {"name": call.get("name"), "arguments": call.get("args"), "id": call.get("id")}
            message.setdefault("tool_calls", []).append(made)
        elif isinstance(answer, dict):
            content = orjson.dumps(answer.get("response")).decode()
            yield {"role": "tool", "name": answer.get("name"), "tool_call_id": answer.get("id"), "content": content}
        elif part.get("thought") is True and isinstance(part.get("text"), str):
            message["reasoning_content"] = message.get("reasoning_content", "") + part["text"]
        else:
            parts.append({"type": "text", **part} if "text" in part else {"type": next(iter(part), "unknown"), **part})
    if parts or message.keys() & {"tool_calls", "reasoning_content"}:
        yield {**message, "content": _simple(parts)}


def responses(row: Row, context: Context) -> Parsed:
    """OpenAI Responses items: reasoning joins the next answer, and neighbouring calls are one turn."""
    messages: list[Message] = []
    thoughts: list[str] = []
    for index, item in enumerate(_list(row, "input")):
        path = f"input[{index}]"
        if not isinstance(item, dict):
            raise BadRow("DK104", path, f"expected an item, found {shown(item)}")
        kind = item.get("type", "message")
        if kind == "reasoning":
            thoughts += [_texts(item.get(key) or [], path) for key in ("summary", "content") if item.get(key)]
            continue
        if kind == "message":
            message = {k: v for k, v in item.items() if k not in ("type", "id", "status")}
            if isinstance(message.get("content"), list):
                message["content"] = _simple([_plain(p) for p in message["content"]])
        elif kind == "function_call":
            call = {"id": item.get("call_id"), "name": item.get("name"), "arguments": item.get("arguments")}
            if messages and "tool_calls" in messages[-1] and not thoughts:
                messages[-1]["tool_calls"].append(call)
                continue
            message = {"role": "assistant", "content": "", "tool_calls": [call]}
        elif kind == "function_call_output":
            message = {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
        else:
            raise BadRow("DK104", path, f"an item of unknown type {shown(kind)}")
        if thoughts and message.get("role") == "assistant":
            message["reasoning_content"] = "\n".join(thoughts)
            thoughts = []
        messages.append(message)
    if thoughts:
        raise BadRow("DK104", "input", "reasoning that no answer follows")
    return {"messages": messages, "tools": row.get("tools"), "system": row.get("instructions")}, frozenset(
        {"input", "tools", "instructions"}
    )


def _plain(part: object) -> object:
    if isinstance(part, dict) and part.get("type") in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text")}
    return part


def harmony(row: Row, context: Context) -> Parsed:
    """gpt-oss channels: analysis is the reasoning of the next assistant turn, commentary to a function is a call."""
    messages: list[Message] = []
    thoughts: list[str] = []
    for turn in _list(row, "messages"):
        if not isinstance(turn, dict) or turn.get("role") not in ("assistant", "tool"):
            messages.append(turn)
            continue
        rest = {k: v for k, v in turn.items() if k not in ("channel", "recipient", "content_type")}
        recipient = str(turn.get("recipient") or "")
        if turn["role"] == "tool":
            rest["name"] = str(turn.get("name") or "").removeprefix("functions.") or None
        elif turn.get("channel") == "analysis" and not recipient.startswith("functions."):
            thoughts.append(_texts(turn.get("content"), "messages"))
            continue
        elif recipient.startswith("functions."):
            call = {"name": recipient.removeprefix("functions."), "arguments": turn.get("content")}
            rest = {**rest, "content": "", "tool_calls": [call]}
        if thoughts and turn["role"] == "assistant":
            rest["reasoning_content"] = "\n".join(thoughts)
            thoughts = []
        messages.append(rest)
    if thoughts:
        messages.append({"role": "assistant", "content": "", "reasoning_content": "\n".join(thoughts)})
    return {"messages": messages, "tools": row.get("tools")}, frozenset({"messages", "tools"})


# ---------------------------------------------------------------- trees and groups


def _children(node: Row) -> list[Row]:
    replies = node.get("replies") or []
    return [reply for reply in replies if isinstance(reply, dict) and not reply.get("deleted")]


def _tree_message(node: Row) -> Message:
    role = {"prompter": "user", "assistant": "assistant"}.get(node.get("role", "prompter"))
    if role is None or not isinstance(node.get("text"), str):
        raise BadRow("DK104", "prompt", f"expected a tree node with role and text, found {shown(node)}")
    return {"role": role, "content": node["text"]}


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
    root = row.get("prompt")
    if not isinstance(root, dict):
        raise BadRow("DK104", "prompt", f"expected a message tree, found {shown(root)}")
    return root


def _tree_facts(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "prompt"}


def join_tree(rows: list[Row]) -> Row:
    """The rows of one message tree as a nested tree.

    Raises:
        BadRow: a row names a parent that is not among them, or there is no root.
    """
    nodes = {row.get("message_id"): {**row, "replies": []} for row in rows}
    root: Row | None = None
    for row in rows:
        node, parent = nodes[row.get("message_id")], row.get("parent_id")
        if parent is None:
            root = node
        elif parent in nodes:
            nodes[parent]["replies"].append(node)
        else:
            note = f"parent {shown(parent)} is not among the neighbouring rows; sort the file by message_tree_id"
            raise BadRow("DK103", "parent_id", note)
    if root is None or len(nodes) != len(rows):
        raise BadRow("DK103", "parent_id", "a tree needs one root and distinct message_ids")
    return {"message_tree_id": rows[0].get("message_tree_id"), "prompt": root}


def join_answers(rows: list[Row]) -> Row:
    """HelpSteer2: neighbouring rows with one prompt as one row with several scored answers."""
    attributes = [{k: v for k, v in row.items() if k not in ("prompt", "response")} for row in rows]
    scores = [row.get("helpfulness") for row in rows]
    answers = [row.get("response") for row in rows]
    return {"prompt": rows[0].get("prompt"), "completions": answers, "scores": scores, "attributes": attributes}


# ---------------------------------------------------------------- rankings and steps


def _pluck(values: Iterable[Any], *keys: str) -> list[Any]:
    return [next((v[k] for k in keys if k in v), None) if isinstance(v, dict) else None for v in values]


def ultrafeedback(row: Row, context: Context) -> Parsed:
    answers = _list(row, "completions")
    rest = [{k: v for k, v in a.items() if k not in ("response", "overall_score")} for a in answers if isinstance(a, dict)]
    context.leave("completions", {"completions": rest})
    slots = {
        "user": row.get("instruction"),
        "completions": _pluck(answers, "response"),
        "scores": _pluck(answers, "overall_score"),
    }
    return slots, frozenset({"instruction", "completions"})


def nectar(row: Row, context: Context) -> Parsed:
    answers = _list(row, "answers")
    prompt = split_transcript(row.get("prompt"), "prompt")
    if prompt[-1] == {"role": "assistant", "content": ""}:
        prompt = prompt[:-1]
    rest = [{k: v for k, v in a.items() if k not in ("answer", "rank")} for a in answers if isinstance(a, dict)]
    context.leave("answers", {"answers": rest})
    slots = {"messages": prompt, "completions": _pluck(answers, "answer"), "scores": _pluck(answers, "rank")}
    return slots, frozenset({"prompt", "answers"})


def summaries(row: Row, context: Context) -> Parsed:
    """OpenAI's summarize-from-feedback: `info` with the post, two summaries, and which one was chosen."""
    info = row.get("info")
    texts = _pluck(_list(row, "summaries"), "text")
    post = next((info[k] for k in ("post", "article") if isinstance(info, dict) and info.get(k)), None)
    if len(texts) != 2 or not isinstance(post, str):
        raise BadRow("DK104", "summaries", f"expected a post and two summaries, found {shown(info)}")
    context.leave("info", {"info": info})
    slots = {"user": post, "first": texts[0], "second": texts[1], "winner": row.get("choice")}
    return slots, frozenset({"info", "summaries", "choice"})


def prm800k(row: Row, context: Context) -> Parsed:
    """PRM800K: the chosen completion of each step, labelled good where its rating is not negative."""
    question, label = row.get("question"), row.get("label")
    problem = question.get("problem") if isinstance(question, dict) else None
    steps, labels = [], []
    for index, step in enumerate(_list(label, "steps") if isinstance(label, dict) else []):
        answers, pick = step.get("completions") or [], step.get("chosen_completion")
        if step.get("human_completion") and pick is None:
            answers, pick = [{**step["human_completion"], "rating": 1}], 0
        pick = pick if isinstance(pick, int) else 0
        if pick >= len(answers) or not isinstance(answers[pick].get("rating"), int):
            raise BadRow("DK103", f"label.steps[{index}]", "a step without a rated completion")
        steps.append(answers[pick].get("text"))
        labels.append(answers[pick]["rating"] >= 0)
    context.leave("label", {"question": question, "label": label})
    return {"prompt": problem, "completions": steps, "labels": labels}, frozenset({"question", "label"})


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
    if pieces[-1].strip():
        context.leave("input", {"after_last_step": pieces[-1]})
    return {"prompt": question, "completions": steps, "labels": labels}, frozenset({"input", "label"})
