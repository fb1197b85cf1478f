"""A tiny model, its tokenizer, and formatted shards for each method.

They are made in a process of their own, since Unsloth has to come before transformers in that of the tests.

    python -m tests.unsloth.made FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.tiny_models import place

METHODS = ["sft", "dpo", "orpo", "cpo", "reward", "kto", "bco", "grpo"]

if __name__ == "__main__":
    made = place(Path(sys.argv[1]))
    for method in METHODS:
        made.formatted(method)
    made.packed()
