"""LoRA in FP8 on Alpaca rows, on an H100 or later.

python examples/alpaca_fp8.py alpaca_data_cleaned.json out/
"""

import sys

import datakit
from trainglue import trainer


def run(raw, output, model="unsloth/Llama-3.2-1B-Instruct", **options):
    datakit.convert(raw, f"{output}/shards").raise_for_status()
    settings = {
        "precision": "fp8",
        "lora": {"r": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
        "max_length": 2048,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 1,
        "learning_rate": 2e-4,
        "eval_share": 0,
    }
    made = trainer("sft", model=model, data=f"{output}/shards", output_dir=f"{output}/run", **{**settings, **options})
    made.train()
    made.save_model()


if __name__ == "__main__":
    run(*sys.argv[1:])
