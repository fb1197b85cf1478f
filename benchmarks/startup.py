"""How soon a trainer is ready for its first batch: trainglue on formatted shards, and TRL on the raw rows.

    python benchmarks/startup.py [--rows 10000] [--runs 5] [--tokenizer FOLDER] [--out benchmarks/results/startup.json]

Generated conversations of about 2 KB, none twice; a tiny random model; each side in its own process, in turn, with a
fresh cache of `datasets` for every run.

    trl          load_dataset of the JSON Lines, SFTTrainer with assistant_only_loss, its first batch
    trainglue    trainer("sft") on the shards that `datakit format` has made of the same rows once, its first batch; the
                 shards are compared with their manifest, byte by byte

`ready` is the time from opening the data to the first batch: imports, the loading of model and tokenizer by
transformers, and the step itself are apart. `first step` is the time of the whole process, with all of them. The first
batch of both sides must hold the same rows with the same labels, or the benchmark ends. `format` is what was paid once,
before.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import conversation, machine, run

ROOT = Path(__file__).resolve().parent.parent

START = """
import json, os, sys, time
os.environ.update(WANDB_DISABLED="true", HF_HUB_DISABLE_TELEMETRY="1")
import datasets, torch, transformers
from trl import SFTConfig, SFTTrainer
import trainglue, trainglue.models, trainglue.training
data, model, out = sys.argv[1:]
loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
common = dict(per_device_train_batch_size=4, gradient_accumulation_steps=1, max_steps=1, use_cpu=True, seed=0,
              report_to="none", train_sampling_strategy="sequential", save_strategy="no", disable_tqdm=True)
loading = []
start = time.perf_counter()
"""

TRL = """
rows = datasets.load_dataset("json", data_files=data, split="train")
options = SFTConfig(out, bf16=False, assistant_only_loss=True, max_length=None, **common)
trainer = SFTTrainer(loaded, options, train_dataset=rows, processing_class=tokenizer)
"""

TRAINGLUE = """
load = trainglue.models.load_tokenizer
def timed(*given):
    begin = time.perf_counter()
    made = load(*given)
    loading.append(time.perf_counter() - begin)
    return made
trainglue.models.load_tokenizer = timed
trainer = trainglue.trainer("sft", model=loaded, tokenizer=model, data=data, output_dir=out, precision="fp32",
                            engine="trl", eval_share=0, gradient_checkpointing=False, overwrite=True, **common)
"""

END = """
batch = next(iter(trainer.get_train_dataloader()))
ready = time.perf_counter() - start - sum(loading)
trainer.train()
first = [batch["input_ids"].tolist(), batch["labels"].tolist()]
with open(out + ".json", "w") as file:
    json.dump({"ready": ready, "first": first}, file)
"""


def prepare(folder: Path, rows: int, tokenizer: Path) -> tuple[dict[str, Path], Path, float]:
    """Raw rows, formatted shards and a model with its tokenizer; and the seconds that formatting took."""
    import transformers

    pick = random.Random(7)
    raw, shards, ready, model = folder / "rows.jsonl", folder / "shards", folder / "ready", folder / "model"
    with raw.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            roles = {"human": "user", "gpt": "assistant"}
            turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in conversation(pick)]
            file.write(json.dumps({"messages": turns}) + "\n")
    loaded = transformers.AutoTokenizer.from_pretrained(tokenizer)
    loaded.save_pretrained(model)
    config = transformers.Qwen2Config(
        vocab_size=len(loaded),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(model)
    datakit = [sys.executable, "-m", "datakit"]
    subprocess.run([*datakit, "convert", raw, "-o", shards], check=True, stdout=subprocess.DEVNULL)
    start = time.perf_counter()
    command = [*datakit, "format", str(shards), "-o", str(ready), "--tokenizer", str(model)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"trl": raw, "trainglue": ready}, model, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokenizer", type=Path, default=ROOT.parent / "shared/corpora/tokenizer/qwen2_5")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, dict[str, list[float]]] = {"ready": {}, "first step": {}}
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        data, model, formatted = prepare(Path(name), options.rows, options.tokenizer.resolve())
        scripts = {"trl": START + TRL + END, "trainglue": START + TRAINGLUE + END}
        for _ in range(options.runs):
            seen = []
            for side, script in scripts.items():
                out = Path(name) / f"out-{side}"
                took, _ = run([sys.executable, "-c", script, str(data[side]), str(model), str(out)], watch=False)
                found: dict[str, Any] = json.loads(out.with_name(out.name + ".json").read_text())
                seen.append(found["first"])
                seconds["ready"].setdefault(side, []).append(round(found["ready"], 3))
                seconds["first step"].setdefault(side, []).append(round(took, 3))
                print(f"{side}: ready after {found['ready']:.2f} s, whole {took:.2f} s", file=sys.stderr)
            if seen[0] != seen[1]:
                raise SystemExit("the first batches differ")
    medians = {what: {side: statistics.median(own) for side, own in sides.items()} for what, sides in seconds.items()}
    result = {
        "machine": machine("trl", "transformers", "datasets", "torch", "pyarrow"),
        "rows": options.rows,
        "seconds": seconds,
        "median": medians,
        "times_as_soon": {what: round(own["trl"] / own["trainglue"], 2) for what, own in medians.items()},
        "format_seconds": round(formatted, 3),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
