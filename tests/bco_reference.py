"""The run that BCO is compared in, and the way its reference was made.

    python -m tests.bco_reference tests/bco_reference.json      # with trl 1.13.0

trains with the BCOTrainer of TRL 1.13.0, the last one, and writes the loss and the running mean of each step. Made with
torch 2.13.0 on a CPU and transformers 5.23.0. `test_bco.py` trains with ours on the same rows and weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

STEPS = 12
BATCH = 4
WORDS = 97
OPTIONS: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": BATCH,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "beta": 0.3,
    "max_length": 64,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def rows() -> list[dict[str, Any]]:
    """Token ids of uneven lengths; some batches hold one kind of answers only."""
    made = []
    for number in range(STEPS * BATCH):
        prompt = [3 + (number * 7 + at * 5) % (WORDS - 3) for at in range(2 + number % 5)]
        completion = [3 + (number * 11 + at * at) % (WORDS - 3) for at in range(1 + number % 7)]
        made.append({"prompt_ids": prompt, "completion_ids": [*completion, 1], "label": number % 3 != 0 or number < 4})
    return made


def word(number: int) -> str:
    return {1: "<eos>", 2: "<pad>"}.get(number, f"w{number}")


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word(number): number for number in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=word(1), pad_token=word(2))


def model() -> LlamaForCausalLM:
    """A small model whose weights no library chooses."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=1,
        pad_token_id=2,
    )
    made = LlamaForCausalLM(config)
    with torch.no_grad():
        for number, (_, weight) in enumerate(sorted(made.named_parameters())):
            if weight.dim() > 1:
                steps = torch.arange(weight.numel(), dtype=torch.float64)
                weight.copy_((torch.sin(steps * 12.9898 + number) * 0.2).reshape(weight.shape))
    return made


def main(path: str) -> None:
    from importlib import import_module

    bco = import_module("trl.experimental.bco")
    texts = [
        {
            "prompt": " ".join(map(word, row["prompt_ids"])),
            "completion": " " + " ".join(map(word, row["completion_ids"])),
            "label": row["label"],
        }
        for row in rows()
    ]
    trainer = bco.BCOTrainer(
        model(),
        model(),
        args=bco.BCOConfig(output_dir=f"{path}.run", **OPTIONS),
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=tokenizer(),
    )
    for ours, theirs in zip(rows(), trainer.train_dataset, strict=True):
        assert ours["prompt_ids"] + ours["completion_ids"] == theirs["completion_input_ids"]
    trainer.train()
    steps = [{"loss": log["loss"], "delta": log["delta"]} for log in trainer.state.log_history if "loss" in log]
    Path(path).write_text(json.dumps(steps, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
