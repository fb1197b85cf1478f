"""Conversations: role/content and from/value turns, the dialects of the large APIs, and message trees."""

from __future__ import annotations

from typing import Final

from datakit.formats import parse
from datakit.formats.declare import SYSTEM, Format
from datakit.messages import SHAREGPT, Turn
from datakit.schema import layout

MESSAGES = layout("sft", "messages")

_TREE = {
    "message_tree_id": "t",
    "prompt": {
        "message_id": "1",
        "role": "prompter",
        "text": "q",
        "replies": [{"message_id": "2", "role": "assistant", "text": "a", "rank": 0, "replies": []}],
    },
}
_TREE_ROW = {"message_id": "1", "parent_id": None, "message_tree_id": "1", "role": "prompter", "text": "q"}
_BESIDE = ("tools", "parallel_tool_calls", "functions", "system")
_SIDE = {"tools": "tools", "chat_template_kwargs": "chat_template_kwargs", "images": "images", **SYSTEM}

CONVERSATIONS: Final[tuple[Format, ...]] = (
    Format(
        "openai",
        MESSAGES,
        "role/content messages, with tools, calls, weights, reasoning and parts where given",
        signature={"messages": "chat"},
        optional=_BESIDE,
        absent=("label", "kto_tag", "chosen", "rejected", "rejected_messages", "rejected_response"),
        columns={"messages": "messages", **_SIDE},
        example={"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        source="https://platform.openai.com/docs/guides/fine-tuning",
    ),
    Format(
        "openai-functions",
        MESSAGES,
        "OpenAI messages with the older `functions` column",
        signature={"messages": "chat", "functions": "objects|text"},
        optional=_BESIDE,
        columns={"messages": "messages", "tools": "functions", **SYSTEM},
        example={
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            ],
            "functions": [{"name": "f", "parameters": {"type": "object", "properties": {}}}],
        },
        verified=False,
    ),
    Format(
        "chat-in-conversations",
        MESSAGES,
        "role/content turns in a column named conversations (ALFWorld oracle runs, OpenManus, OpenThoughts)",
        signature={"conversations": "chat"},
        optional=("system",),
        absent=("label", "kto_tag", "chosen", "rejected"),
        columns={**_SIDE, "messages": "conversations"},
        example={
            "system": "You are a household robot.",
            "conversations": [
                {"role": "user", "content": "Task: find a mug\nObservation: a kitchen"},
                {"role": "assistant", "content": "go to countertop 1"},
            ],
        },
    ),
    Format(
        "chat-in-conversation",
        MESSAGES,
        "role/content turns in a column named conversation (Vicuna, LMSYS, WildChat)",
        signature={"conversation": "chat"},
        optional=("conversation_id", "conversation_hash", "model", "turn", "language", "redacted", "system"),
        columns={**_SIDE, "messages": "conversation"},
        example={
            "conversation_id": "x",
            "model": "m",
            "conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "turn": 1,
        },
        verified=False,
    ),
    Format(
        "prompt-messages",
        MESSAGES,
        "messages beside a copy of the first question (no_robots, UltraChat)",
        signature={"prompt": "text", "messages": "chat"},
        optional=("prompt_id", "category", *_BESIDE),
        absent=("chosen", "rejected", "label"),
        columns={**_SIDE, "messages": "messages", "copy_of_user": "prompt"},
        example={
            "prompt": "q",
            "prompt_id": "h",
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        },
        verified=False,
    ),
    Format(
        "sharegpt",
        MESSAGES,
        "from/value turns; function_call and observation turns become calls and tool messages",
        signature={"conversations": "turns"},
        optional=("tools", "system"),
        absent=("label", "kto_tag", "chosen", "rejected"),
        columns={**_SIDE, "messages": "conversations"},
        turn=SHAREGPT,
        example={"id": "1", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        source="https://github.com/lm-sys/FastChat",
    ),
    *(
        Format(
            name,
            MESSAGES,
            f"from/value turns in a column named {column}",
            signature={column: "turns"},
            optional=("tools", "system"),
            absent=("label", "kto_tag", "chosen", "rejected"),
            columns={**_SIDE, "messages": column},
            turn=SHAREGPT,
            example={column: [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            verified=False,
        )
        for name, column in (("sharegpt-in-messages", "messages"), ("sharegpt-in-conversation", "conversation"))
    ),
    Format(
        "sharegpt-pairs",
        MESSAGES,
        "ms-swift rounds: a list of {human, assistant}",
        signature={"conversation": "pairs"},
        optional=("system",),
        columns={"messages": "conversation", "system": "system"},
        example={"conversation": [{"human": "q", "assistant": "a"}], "system": "s"},
        parse=parse.rounds,
        source="https://github.com/modelscope/ms-swift",
    ),
    Format(
        "anthropic",
        MESSAGES,
        "Anthropic blocks: thinking, tool_use and tool_result",
        signature={"messages": "chat"},
        marks={"messages": "blocks"},
        optional=_BESIDE,
        columns={"messages": "messages", "system": "system", "tools": "tools"},
        example={
            "system": "s",
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "u1", "name": "f", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "u1", "content": "sun"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            ],
            "tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}],
        },
        parse=parse.anthropic,
        source="https://docs.anthropic.com/en/api/messages",
    ),
    Format(
        "gemini",
        MESSAGES,
        "Google's contents and parts",
        signature={"contents": "gemini turns"},
        optional=("systemInstruction", "system_instruction", "tools"),
        columns={"messages": "contents", "system": "systemInstruction", "tools": "tools"},
        example={
            "systemInstruction": {"parts": [{"text": "s"}]},
            "contents": [
                {"role": "user", "parts": [{"text": "q"}]},
                {"role": "model", "parts": [{"text": "a"}]},
            ],
        },
        parse=parse.gemini,
        source="https://ai.google.dev/api/generate-content",
    ),
    Format(
        "openai-responses",
        MESSAGES,
        "OpenAI Responses items",
        signature={"input": "item list"},
        optional=("instructions", "tools"),
        columns={"messages": "input", "system": "instructions", "tools": "tools"},
        example={
            "input": [
                {"type": "message", "role": "user", "content": "q"},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "sun"},
                {"type": "message", "role": "assistant", "content": "a"},
            ]
        },
        parse=parse.responses,
        verified=False,
    ),
    Format(
        "cohere",
        MESSAGES,
        "Cohere chat_history with USER and CHATBOT",
        signature={"chat_history": "message turns"},
        columns={"messages": "chat_history", "tools": "tools"},
        turn=Turn("role", "message"),
        example={"chat_history": [{"role": "USER", "message": "q"}, {"role": "CHATBOT", "message": "a"}]},
        verified=False,
    ),
    Format(
        "llama-stack",
        MESSAGES,
        "Llama Stack calls: call_id, tool_name and arguments",
        signature={"messages": "chat"},
        marks={"messages": "stack calls"},
        optional=_BESIDE,
        columns={"messages": "messages", **_SIDE},
        example={
            "messages": [
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "content": "",
                    "stop_reason": "end_of_turn",
                    "tool_calls": [{"call_id": "c", "tool_name": "f", "arguments": {}}],
                },
                {"role": "tool", "call_id": "c", "tool_name": "f", "content": "sun"},
                {"role": "assistant", "content": "a", "stop_reason": "end_of_turn"},
            ]
        },
        verified=False,
    ),
    Format(
        "harmony",
        MESSAGES,
        "gpt-oss channels: analysis, commentary and final",
        signature={"messages": "chat"},
        marks={"messages": "channels"},
        optional=_BESIDE,
        columns={"messages": "messages", "tools": "tools", "system": "system"},
        example={
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "channel": "analysis", "content": "t"},
                {"role": "assistant", "channel": "final", "content": "a"},
            ]
        },
        parse=parse.harmony,
        source="https://github.com/openai/harmony",
    ),
    Format(
        "llamafactory-v1",
        MESSAGES,
        "LLaMA-Factory v1: typed parts with a value, and loss_weight",
        signature={"messages": "chat"},
        marks={"messages": "value parts"},
        optional=_BESIDE,
        absent=("label",),
        columns={"messages": "messages", **_SIDE},
        example={
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": "q"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "a"}], "loss_weight": 1.0},
            ]
        },
        source="https://github.com/hiyouga/LLaMA-Factory",
    ),
    Format(
        "oasst-tree",
        MESSAGES,
        "Open-Assistant trees, nested: every path to an answer, each answer trained once",
        signature={"prompt.text": "text", "prompt.replies": "list"},
        optional=("message_tree_id", "tree_state"),
        columns={"messages": "messages"},
        example=_TREE,
        expand=parse.tree_paths,
        source="https://github.com/LAION-AI/Open-Assistant",
    ),
    Format(
        "oasst-tree-ranked",
        layout("ranked", "messages"),
        "Open-Assistant trees, nested: every prompt with its ranked answers (ask for it with --to ranked)",
        signature={"prompt.text": "text", "prompt.replies": "list"},
        columns={"messages": "messages", "completions": "completions", "scores": "scores"},
        lower_is_better=True,
        example=_TREE,
        expand=parse.tree_rankings,
        on_request=True,
    ),
    Format(
        "oasst-rows",
        MESSAGES,
        "Open-Assistant messages, one per row: the rows of a tree become its paths",
        signature={"message_id": "id", "message_tree_id": "id", "role": "text", "text": "text"},
        optional=("parent_id", "rank", "lang", "deleted"),
        columns={"messages": "messages"},
        group="message_tree_id",
        join=parse.join_tree,
        expand=parse.tree_paths,
        example=_TREE_ROW,
        verified=False,
    ),
    Format(
        "oasst-rows-ranked",
        layout("ranked", "messages"),
        "Open-Assistant messages, one per row: ranked answers (ask for it with --to ranked)",
        signature={"message_id": "id", "message_tree_id": "id", "role": "text", "text": "text"},
        columns={"messages": "messages", "completions": "completions", "scores": "scores"},
        lower_is_better=True,
        group="message_tree_id",
        join=parse.join_tree,
        expand=parse.tree_rankings,
        example=_TREE_ROW,
        on_request=True,
        verified=False,
    ),
)
