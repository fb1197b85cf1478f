"""Random models of two thin layers in the folder of their tokenizer, and small shards of every kind to train them on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.small_tokenizers import chatml, shards, turns

pytest.importorskip("trl")
pytest.importorskip("torch")
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import datakit

torch.set_num_threads(1)  # more only wait for each other on models this small

QUIET: dict[str, Any] = {
    "report_to": "none",
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "save_strategy": "no",
    "eval_share": 0,
    "max_length": None,
}
"""Options for runs of two steps."""

TO_FORMAT = {"dpo": "pairs", "orpo": "pairs", "cpo": "pairs", "reward": "pairs", "kto": "answers", "bco": "answers"}
ROWS = 12


@dataclass(frozen=True)
class Place:
    """A folder with a model that has its tokenizer beside it, and shards.

    Attributes:
        root: for everything else.
        model: one that writes.
        scorer: one that rates.
    """

    root: Path
    model: str
    scorer: str

    def model_for(self, method: str) -> str:
        return self.scorer if method == "reward" else self.model

    def canonical(self, method: str) -> Path:
        """Shards as `convert` writes them."""
        return self.root / TO_FORMAT.get(method, {"grpo": "prompts"}.get(method, "chats"))

    def formatted(self, method: str) -> Path:
        """Shards as `format` writes them, made once."""
        out = self.root / f"ready-{method}"
        if not out.exists():
            report = datakit.format(self.canonical(method), out, tokenizer=self.model, method=method, workers=1)
            assert report.exit_code == 0, report.to_json()
        return out

    def packed(self) -> Path:
        """SFT rows, several in a sequence, made once."""
        out = self.root / "packed"
        if not out.exists():
            made = datakit.format(self.canonical("sft"), out, tokenizer=self.model, max_length=256, pack="bfd")
            made.raise_for_status()
        return out


def place(root: Path) -> Place:
    """Models and shards in an empty folder."""
    sizes = {"vocab_size": 720, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_labels=1, eos_token_id=0)
    torch.manual_seed(1)
    for name, kind in (("writes", LlamaForCausalLM), ("rates", LlamaForSequenceClassification)):
        kind(config).save_pretrained(root / name)
        chatml(root / name)
    asked = [turns(f"What is {number} and {number}?") for number in range(ROWS)]
    good = [[turns("", f"It is {2 * number}.")[1]] for number in range(ROWS)]
    bad = [[turns("", "No idea.")[1]] for _ in range(ROWS)]
    shards(root / "chats", [{"messages": [*q, *a]} for q, a in zip(asked, good, strict=True)])
    shards(
        root / "pairs",
        [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in zip(asked, good, bad, strict=True)],
    )
    shards(
        root / "answers",
        [
            {"prompt": q, "completion": a if number % 2 else b, "label": bool(number % 2)}
            for number, (q, a, b) in enumerate(zip(asked, good, bad, strict=True))
        ],
    )
    shards(root / "prompts", [{"prompt": q, "answer": str(2 * number)} for number, q in enumerate(asked)], to="prompt")
    return Place(root, str(root / "writes"), str(root / "rates"))
