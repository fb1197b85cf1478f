"""Tokenizers that are trained in the test, with templates of the installed TRL, and canonical rows to go with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

import datakit
from datakit.report import Report
from tests.conversations import ORDINARY

pytest.importorskip("trl")
pytest.importorskip("transformers")
import trl.chat_template_utils as templates
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How texts are split into words, as far as it matters: line feeds stay together, as with Qwen and Llama."""

LOOSE = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
"""Added tokens of Qwen that are not special."""


def chatml(folder: Path, template: str | None = templates.qwen2_5_chat_template, words: str | None = None) -> Path:
    """A tokenizer as Qwen's: control tokens around turns, nothing around a text."""
    made = _trained(CHATML, words)
    made.add_tokens([AddedToken(token, normalized=False) for token in LOOSE])
    return _saved(made, folder, template, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama(folder: Path, template: str | None = templates.llama3_chat_template) -> Path:
    """A tokenizer as Llama's: it puts its BOS before every text, and so does the template."""
    made = _trained(LLAMA)
    bos = LLAMA[0]
    made.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))])
    return _saved(made, folder, template, bos_token=bos, eos_token="<|eot_id|>", pad_token="<|end_of_text|>")


def _trained(special: list[str], words: str | None = None) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words or WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    texts = [json.dumps(conversation, ensure_ascii=False) for conversation in ORDINARY.values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [*texts, "the question and the answer\n\n\n\nand some more\n\nof it"] * 4,
        trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return made


def _saved(made: Tokenizer, folder: Path, template: str | None, **named: str) -> Path:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **named)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- rows


def shards(folder: Path, rows: Iterable[Mapping[str, Any]], **options: Any) -> Path:
    """Canonical shards of rows."""
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    report: Report = datakit.convert(source, folder, **options)
    assert report.exit_code == 0, report.to_json()
    return folder


def turns(*texts: str) -> list[dict[str, Any]]:
    """Messages of a user and an assistant in turn, the user first."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
