"""QLoRA on the trajectories of a text game, and on to Ollama.

python examples/games_qlora.py trajectories.jsonl out/
"""

import sys

import datakit
from trainglue import export, trainer


def run(raw, output, model="meta-llama/Llama-3.1-8B-Instruct", **options):
    datakit.convert(raw, f"{output}/shards").raise_for_status()
    settings = {
        "precision": "qlora",
        "lora": 16,
        "max_length": 8192,
        "format": {"truncation": "window", "leave_out": ["look"]},
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "num_train_epochs": 3,
        "learning_rate": 2e-4,
        "eval_share": 0.05,
        "load_best_model_at_end": True,
    }
    made = trainer("sft", model=model, data=f"{output}/shards", output_dir=f"{output}/run", **{**settings, **options})
    made.train()
    made.save_model()
    return export(f"{output}/run", f"{output}/ollama", to="gguf", quantization="q4_k_m")


if __name__ == "__main__":
    print(*run(*sys.argv[1:]).commands, sep="\n")
