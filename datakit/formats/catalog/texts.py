"""Texts, instructions with one answer, and tokens."""

from __future__ import annotations

from typing import Final

from datakit.formats import parse
from datakit.formats.declare import Format
from datakit.schema import layout

MESSAGES = layout("sft", "messages")
PLAIN = layout("sft", "text")

TEXTS: Final[tuple[Format, ...]] = (
    Format(
        "text",
        PLAIN,
        "plain text in one column",
        signature={"text": "text"},
        columns={"text": "text"},
        example={"text": "Once upon a time"},
        source="https://huggingface.co/docs/trl/dataset_formats",
    ),
    Format(
        "rendered-text",
        PLAIN,
        "text that already carries the markers of a chat template; kept as it is",
        signature={"text": "rendered"},
        columns={"text": "text"},
        example={"text": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"},
    ),
    Format(
        "chatml-text",
        MESSAGES,
        "ChatML text, taken apart into messages (ask for it with --to sft:messages)",
        signature={"text": "rendered"},
        columns={"text": "text"},
        example={"text": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"},
        parse=parse.chatml_text,
        on_request=True,
    ),
    Format(
        "response-text",
        PLAIN,
        "ms-swift pre-training rows: only a response",
        signature={"response": "text"},
        columns={"text": "response"},
        absent=("query", "prompt", "instruction", "question", "input", "messages", "context", "score"),
        example={"response": "Once upon a time"},
        source="https://github.com/modelscope/ms-swift",
    ),
    Format(
        "alpaca",
        MESSAGES,
        "instruction, input and output, with history and system where given",
        signature={"instruction": "text", "output": "text"},
        optional=("input", "history", "system"),
        absent=("chosen", "rejected", "kto_tag", "response1"),
        columns={
            "user": "instruction",
            "input": "input",
            "assistant": "output",
            "history": "history",
            "system": "system",
            "images": "images",
            "tools": "tools",
        },
        example={"instruction": "Add up", "input": "1 2", "output": "3"},
        source="https://github.com/tatsu-lab/stanford_alpaca",
    ),
    Format(
        "query-response",
        MESSAGES,
        "ms-swift and data-juicer rows",
        signature={"query": "text", "response": "text"},
        optional=("history", "system"),
        absent=("label", "kto_tag", "rejected_response"),
        columns={
            "user": "query",
            "assistant": "response",
            "history": "history",
            "system": "system",
            "images": "images",
            "tools": "tools",
        },
        example={"query": "q", "response": "r", "history": [["a", "b"]], "system": "s"},
        source="https://github.com/modelscope/ms-swift",
    ),
    *(
        Format(
            name,
            MESSAGES,
            f"one {user} and one {assistant}",
            signature={user: "text", assistant: "text"},
            absent=absent,
            columns={"user": user, "assistant": assistant, "system": "system", "images": images},
            example={user: "q", assistant: "a"},
            verified=verified,
        )
        for name, user, assistant, absent, images, verified in (
            (
                "instruction-response",
                "instruction",
                "response",
                ("context", "category", "label", "score"),
                "images",
                True,
            ),
            ("prompt-response", "prompt", "response", ("label", "score", "helpfulness"), "images", False),
            ("input-output", "input", "output", ("instruction", "label"), "image", True),
            ("question-answer", "question", "answer", (), "images", True),
            ("problem-solution", "problem", "solution", (), "images", False),
        )
    ),
    Format(
        "dolly",
        MESSAGES,
        "Databricks Dolly: instruction, context, response and category",
        signature={"instruction": "text", "context": "text", "response": "text"},
        optional=("category",),
        columns={"user": "instruction", "input": "context", "assistant": "response"},
        example={"instruction": "q", "context": "c", "response": "r", "category": "qa"},
        verified=False,
    ),
    Format(
        "flan",
        MESSAGES,
        "FLAN: inputs and targets",
        signature={"inputs": "text", "targets": "text"},
        columns={"user": "inputs", "assistant": "targets"},
        example={"inputs": "q", "targets": "a", "task_name": "x", "template_type": "zs_opt"},
        verified=False,
    ),
    Format(
        "openorca",
        MESSAGES,
        "OpenOrca: system_prompt, question and response",
        signature={"system_prompt": "text", "question": "text", "response": "text"},
        columns={"system": "system_prompt", "user": "question", "assistant": "response"},
        example={"id": "n.1", "system_prompt": "s", "question": "q", "response": "r"},
        verified=False,
    ),
    Format(
        "apibench",
        MESSAGES,
        "Gorilla's APIBench: instruction and answer inside one text",
        signature={"code": "text", "api_call": "text", "provider": "text"},
        optional=("api_data",),
        columns={"user": "code", "assistant": "code"},
        example={"code": "{'Instruction': q, 'Output': {'domain': 'd'}}", "api_call": "f()", "provider": "p"},
        parse=parse.apibench,
        source="https://github.com/ShishirPatil/gorilla",
    ),
    Format(
        "prompt-completion",
        layout("sft", "prompt_completion", conversational=False),
        "a text and its continuation, neither trimmed nor put into a chat",
        signature={"prompt": "text", "completion": "text"},
        absent=("label",),
        columns={"prompt": "prompt", "completion": "completion"},
        example={"prompt": "The sky is", "completion": " blue."},
        source="https://huggingface.co/docs/trl/dataset_formats",
    ),
    Format(
        "prompt-completion-messages",
        layout("sft", "prompt_completion", conversational=True),
        "prompt messages and the messages that answer them",
        signature={"prompt": "dialog", "completion": "dialog|message"},
        absent=("label",),
        columns={
            "prompt": "prompt",
            "completion": "completion",
            "tools": "tools",
            "chat_template_kwargs": "chat_template_kwargs",
            "images": "images",
        },
        example={
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
        source="https://huggingface.co/docs/trl/dataset_formats",
    ),
    Format(
        "tokenized",
        layout("tokenized"),
        "token ids, with labels or masks",
        signature={"input_ids": "ids"},
        optional=("labels", "attention_mask", "position_ids", "completion_mask", "assistant_masks"),
        columns={c.name: c.name for c in layout("tokenized").columns},
        example={"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        source="https://huggingface.co/docs/trl/sft_trainer",
    ),
)
