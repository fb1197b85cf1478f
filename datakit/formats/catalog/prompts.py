"""Prompts for online methods, and agents' records. What a reward needs stays beside the prompt, under its own name."""

from __future__ import annotations

from typing import Final

from datakit.formats import parse
from datakit.formats.declare import SYSTEM, Format
from datakit.schema import layout

STRINGS = layout("prompt", "strings")
MESSAGES = layout("prompt", "messages")

_Q = [{"role": "user", "content": "q"}]
_ANSWERS = ("completion", "response", "chosen", "messages", "completions", "answers", "output")
_TARGETS = ("answer", "solution", "ground_truth", "reference_answer", "target", "test", "entry_point")

PROMPTS: Final[tuple[Format, ...]] = (
    Format(
        "prompt",
        STRINGS,
        "a prompt text with whatever the reward needs",
        signature={"prompt": "text"},
        optional=_TARGETS,
        absent=("system", *_ANSWERS),
        columns={"prompt": "prompt"},
        example={"prompt": "q", "answer": "42"},
        source="https://huggingface.co/docs/trl/dataset_formats",
    ),
    Format(
        "prompt-system",
        MESSAGES,
        "a system and a prompt text with whatever the reward needs; a chat, since only a chat has a system message",
        signature={"system": "any", "prompt": "text"},
        optional=_TARGETS,
        absent=_ANSWERS,
        columns={"user": "prompt", **SYSTEM},
        example={"system": "s", "prompt": "q", "answer": "42"},
        verified=False,
    ),
    Format(
        "prompt-messages-only",
        MESSAGES,
        "prompt messages with whatever the reward needs",
        signature={"prompt": "dialog"},
        optional=_TARGETS,
        absent=("completion", "response", "chosen", "messages", "completions"),
        columns={"prompt": "prompt", "tools": "tools", "images": "images", **SYSTEM},
        example={"prompt": _Q, "answer": "42"},
        source="https://huggingface.co/docs/trl/dataset_formats",
    ),
    Format(
        "question-verdict",
        MESSAGES,
        "a question with a short or marked final answer (GSM8K), as a prompt and its answer",
        signature={"question": "text", "answer": "verdict"},
        columns={"user": "question", **SYSTEM},
        example={"question": "q", "answer": "because\n#### 42"},
        source="https://github.com/openai/grade-school-math",
    ),
    Format(
        "verl",
        MESSAGES,
        "verl: prompt, data_source and reward_model",
        signature={"prompt": "dialog", "data_source": "text", "reward_model": "object"},
        optional=("ability", "extra_info"),
        columns={"prompt": "prompt", **SYSTEM},
        example={
            "data_source": "gsm8k",
            "prompt": _Q,
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "42"},
            "extra_info": {"index": 0},
        },
        source="https://github.com/volcengine/verl",
        verified=False,
    ),
    Format(
        "rlvr",
        MESSAGES,
        "open-instruct RLVR: messages, ground_truth and dataset; its `tools` are names, not definitions",
        signature={"messages": "chat", "ground_truth": "any", "dataset": "any"},
        columns={"messages": "messages", **SYSTEM},
        example={"messages": _Q, "ground_truth": "42", "dataset": "gsm8k"},
        source="https://github.com/allenai/open-instruct",
        verified=False,
    ),
    Format(
        "openai-rft",
        MESSAGES,
        "OpenAI reinforcement fine-tuning: messages and reference_answer",
        signature={"messages": "chat", "reference_answer": "any"},
        optional=("tools", "parallel_tool_calls"),
        columns={"messages": "messages", "tools": "tools", **SYSTEM},
        example={"messages": _Q, "reference_answer": "42"},
        verified=False,
    ),
    Format(
        "swift-solution",
        MESSAGES,
        "ms-swift GRPO: messages and solution",
        signature={"messages": "chat", "solution": "any"},
        optional=("tools", "images"),
        columns={"messages": "messages", "tools": "tools", "images": "images", **SYSTEM},
        example={"messages": _Q, "solution": "42"},
        verified=False,
    ),
    Format(
        "slime",
        STRINGS,
        "slime: text, label and metadata",
        signature={"text": "text", "label": "any", "metadata": "object"},
        columns={"prompt": "text"},
        example={"text": "q", "label": "42", "metadata": {}},
        verified=False,
    ),
    Format(
        "bfcl",
        MESSAGES,
        "Berkeley Function-Calling Leaderboard: one question turn and function definitions",
        signature={"question": "list", "function": "objects"},
        columns={"messages": "question", "tools": "function"},
        example={
            "id": "simple_0",
            "question": [_Q],
            "function": [{"name": "f", "parameters": {"type": "dict", "properties": {}}}],
        },
        parse=parse.bfcl,
        source="https://github.com/ShishirPatil/gorilla",
    ),
    Format(
        "agentrl-record",
        layout("trajectory"),
        "AgentRL RecordData: messages with reward, scores and advantages",
        signature={"messages": "chat", "reward": "number"},
        optional=("scores", "advantages", "created_at_step", "record_id", "step", "logprobs", "tools"),
        absent=("label", "chosen"),
        columns={"messages": "messages", "reward": "reward", "tools": "tools", **SYSTEM},
        example={
            "messages": [*_Q, {"role": "assistant", "content": "a"}],
            "tools": None,
            "scores": {"1": 1.0},
            "advantages": {"1": 0.5},
            "created_at_step": {"1": 0},
            "reward": 1.0,
            "step": -1,
            "logprobs": None,
            "record_id": "x",
        },
        source="https://github.com/OpenBMB/AgentCPM",
    ),
)
