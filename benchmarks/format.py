"""How fast and how heavy `datakit format` is, beside what TRL's SFTTrainer does with the same rows before it trains.

    python benchmarks/format.py [--rows 50000] [--runs 3] [--tokenizer FOLDER] [--out benchmarks/results/format.json]

Generated conversations of about 2 KB, none twice, converted once outside the clock; warm page cache, a fresh cache of
`datasets` for every run. Whole commands, each in its own process, in turn, so that a machine that drifts drifts for
all; those of datakit, which are over soon, after each of TRL's.

    trl             SFTTrainer with its defaults: every token is trained
    trl assistant   assistant_only_loss=True, which is what `datakit format` gives
    trl parallel    the same with dataset_num_proc=2
    datakit 1       `datakit format --workers 1`: with proofs, masks, checks, hashes and the commit
    datakit 2       `datakit format --workers 2`
    start 1, 2      the same with 400 rows: what it takes to be ready

`seconds` are those of the whole process; with TRL that is its import and a model too, so `preparation` is what
`_prepare_dataset` takes, and with datakit what the run takes by its manifest. `second_worker` says how many times as
fast two workers are as one beyond start-up. On a sample of rows the ids and labels of `trl assistant` and datakit are
compared, and a difference ends the benchmark.

Prints a table and writes medians, ratios to `trl assistant`, and peak anonymous memory, summed over all processes.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import conversation, machine, run

import datakit

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = 200
FEW = 400
"""Rows that take as good as no time."""

TRAINER = """
import json, os, sys, time
os.environ.update(WANDB_DISABLED="true", HF_HUB_DISABLE_TELEMETRY="1")
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer
import trainglue

class Timed(SFTTrainer):
    def _prepare_dataset(self, *given):
        start = time.perf_counter()
        made = super()._prepare_dataset(*given)
        self.took = time.perf_counter() - start
        return made

if __name__ == "__main__":
    shards, folder, out, sample, options = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1,
    )
    arguments = SFTConfig(out, use_cpu=True, bf16=False, report_to="none", max_length=None, **json.loads(options))
    rows = trainglue.dataset(shards, method="sft")
    trainer = Timed(Qwen2ForCausalLM(config), arguments, train_dataset=rows, processing_class=tokenizer)
    made = trainer.train_dataset
    step = max(1, len(made) // int(sample))
    kept = [[row["input_ids"], row["labels"]] for row in made.select(range(0, len(made), step))]
    with open(out + ".json", "w") as file:
        json.dump({"preparation": trainer.took, "step": step, "rows": kept}, file)
"""

OPTIONS: dict[str, dict[str, Any]] = {
    "trl": {},
    "trl assistant": {"assistant_only_loss": True},
    "trl parallel": {"assistant_only_loss": True, "dataset_num_proc": 2},
}


def generate(folder: Path, rows: int) -> Path:
    """Canonical shards of generated conversations."""
    pick = random.Random(7)
    data, shards = folder / "rows.jsonl", folder / f"shards-{rows}"
    with data.open("w", encoding="utf-8") as file:
        for number in range(rows):
            file.write(json.dumps({"id": f"row-{number}", "conversations": conversation(pick)}) + "\n")
    datakit.convert(data, shards).raise_for_status()
    data.unlink()
    return shards


def measure(shards: Path, few: Path, tokenizer: Path, runs: int, folder: Path) -> dict[str, Any]:
    script, made, ready = folder / "trainer.py", folder / "trainer", folder / "ready"
    script.write_text(TRAINER)
    commands = {
        name: [sys.executable, str(script), str(shards), str(tokenizer), str(made), str(SAMPLE), json.dumps(options)]
        for name, options in OPTIONS.items()
    }
    for name, source in (("datakit", shards), ("start", few)):
        for workers in ("1", "2"):
            command = [sys.executable, "-m", "datakit", "format", str(source), "-o", str(ready)]
            commands[f"{name} {workers}"] = [*command, "--tokenizer", str(tokenizer), "--workers", workers]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    preparation: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, int] = {}
    expected: dict[str, Any] = {}
    ours = [name for name in commands if name not in OPTIONS]
    for turn in range(runs + 1):  # the last turn is for memory, whose sampling costs time, and for comparing
        for name in (name for theirs in OPTIONS for name in (theirs, *ours)):
            shutil.rmtree(ready, ignore_errors=True)
            took, peak = run(commands[name], watch=turn == runs)
            if name.startswith("trl"):
                outcome = json.loads(made.with_suffix(".json").read_text())
                inner = outcome["preparation"]
                expected = outcome if name == "trl assistant" else expected
            else:
                inner = json.loads((ready / "manifest.json").read_text())["run"]["seconds"]
                if name.startswith("datakit") and turn == runs:
                    compare(ready, expected)
            if turn == runs:
                peaks[name] = max(peak, peaks.get(name, 0))
            else:
                seconds[name].append(took)
                preparation[name].append(inner)
            print(f"{name}: {took:.2f} s, of which {inner:.2f} s prepare", file=sys.stderr)
    return {
        "seconds": _rounded(seconds),
        "preparation": _rounded(preparation),
        "median": _medians(seconds),
        "median_preparation": _medians(preparation),
        "times_as_fast_as_trl_assistant": _ratios(seconds),
        "times_as_fast_in_preparation": _ratios(preparation),
        "second_worker": _second_worker(preparation),
        "peak_anonymous_mib": {name: round(peak / 2**20, 1) for name, peak in peaks.items()},
    }


def compare(ready: Path, expected: dict[str, Any]) -> None:
    """End the benchmark where a row is another than TRL's."""
    wanted = {number * expected["step"]: row for number, row in enumerate(expected["rows"])}
    for number, row in enumerate(datakit.load(ready)):
        if number in wanted and wanted[number] != [row["input_ids"], row["labels"]]:
            raise SystemExit(f"row {number} is not what TRL prepares")


def _rounded(values: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(x, 3) for x in own] for name, own in values.items()}


def _medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(own), 3) for name, own in values.items()}


def _ratios(values: dict[str, list[float]]) -> dict[str, float]:
    medians = {name: statistics.median(own) for name, own in values.items() if not name.startswith("start")}
    return {name: round(medians["trl assistant"] / median, 3) for name, median in medians.items()}


def _second_worker(preparation: dict[str, list[float]]) -> float:
    """How many times as fast two workers are as one, less what both need to start."""
    own = {name: statistics.median(taken) for name, taken in preparation.items()}
    return round((own["datakit 1"] - own["start 1"]) / (own["datakit 2"] - own["start 2"]), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, default=ROOT.parent / "shared/corpora/tokenizer/qwen2_5")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "format.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        shards, few = (generate(Path(name), rows) for rows in (options.rows, FEW))
        found = measure(shards, few, options.tokenizer.resolve(), options.runs, Path(name))
    packages = machine("trl", "transformers", "tokenizers", "fastokens", "datasets", "pyarrow")
    result = {"machine": packages, "tokenizer": options.tokenizer.name, "rows": options.rows, **found}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
