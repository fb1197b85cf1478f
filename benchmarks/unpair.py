"""How fast `datakit unpair` is, beside TRL's `unpair_preference_dataset` and beside what Arrow alone costs.

    python benchmarks/unpair.py [--pairs 100000] [--runs 3] [--out benchmarks/results/unpair.json]

Each side in its own process, in turn (A B C, A B C, ...), from the same shards to Parquet on disk; the clock runs from
open to written, without imports (pandas among them, which pyarrow loads with its first array) and, for TRL, without the
import of the rows into its Arrow cache. Generated pairs of
about 1 KB, none twice; warm page cache; zstd on every side.

    arrow      pyarrow read_table, take and write_table, one batch per row group: no ids, no hashes, no manifest
    datakit    `datakit.unpair`, order pair: with hashes of input and output, new ids, conflicts and length bias
    trl        unpair_preference_dataset and to_parquet; its rows come out in blocks, and know nothing of their pair

`messages` are conversations, which `datasets` holds as JSON; `strings` are plain texts, TRL's fastest case. Also there
and back again with the memory of both, for the pairs and for ten times as many. Prints and writes medians and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import WORDS, machine, run

ARROW = """
import sys, time, glob
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
pa.array([0])
start = time.perf_counter()
writer = None
for path in sorted(glob.glob(sys.argv[1] + "/data/*.parquet")):
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group)
        n = len(table)
        twice = np.repeat(np.arange(n), 2)
        answers = pa.chunked_array([*table["chosen"].chunks, *table["rejected"].chunks])
        if isinstance(answers.type, pa.JsonType):
            answers = pa.chunked_array([chunk.storage for chunk in answers.chunks])
        made = table.drop(["chosen", "rejected"]).take(pa.array(twice))
        made = made.append_column("completion", answers.take(pa.array(twice + np.tile([0, n], n))))
        made = made.append_column("label", pa.array(np.tile([True, False], n)))
        writer = writer or pq.ParquetWriter(sys.argv[2], made.schema, compression="zstd", use_dictionary=False)
        writer.write_table(made)
writer.close()
print(time.perf_counter() - start)
"""

DATAKIT = """
import sys, time, datakit, pyarrow
datakit.unpair
pyarrow.array([0])
start = time.perf_counter()
report = datakit.unpair(sys.argv[1], sys.argv[2])
report.raise_for_status()
print(time.perf_counter() - start)
"""

TRL = """
import sys, time, glob, warnings
warnings.simplefilter("ignore")
import datasets, datasets.io.parquet as writer
from trl.data_utils import unpair_preference_dataset
datasets.disable_progress_bars()
options = writer.get_parquet_column_options
writer.get_parquet_column_options = lambda *given: {**options(*given), "compression": "zstd"}
rows = datasets.Dataset.from_parquet(sorted(glob.glob(sys.argv[1] + "/data/*.parquet")))
start = time.perf_counter()
unpair_preference_dataset(rows).to_parquet(sys.argv[2])
print(time.perf_counter() - start)
"""

SCRIPTS = {"arrow": ARROW, "datakit": DATAKIT, "trl": TRL}


def words(pick: random.Random, count: int) -> str:
    return " ".join(pick.choices(WORDS, k=max(3, int(count * pick.uniform(0.4, 1.6)))))


def generate(folder: Path, pairs: int, form: str) -> Path:
    """Shards of generated pairs."""
    import datakit

    pick = random.Random(7)
    source, shards = folder / "pairs.jsonl", folder / f"{form}-{pairs}"
    with source.open("w", encoding="utf-8") as file:
        for number in range(pairs):
            row = {"prompt": f"{number}: {words(pick, 40)}?", "chosen": words(pick, 70), "rejected": words(pick, 60)}
            file.write(json.dumps(row) + "\n")
    datakit.convert(source, shards, to=f"preference:{form}").raise_for_status()
    source.unlink()
    return shards


def measure(shards: Path, pairs: int, runs: int, folder: Path) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in SCRIPTS}
    for turn in range(runs + 1):  # the first turn warms the caches
        for name, script in SCRIPTS.items():
            out = folder / f"out-{name}"
            command = [sys.executable, "-c", script, str(shards), str(out)]
            with tempfile.TemporaryDirectory(dir=folder) as home:  # `datasets` would find its own earlier work
                environment = {**os.environ, "HF_HOME": home}
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            if turn:
                seconds[name].append(float(done.stdout.split()[-1]))
            shutil.rmtree(out, ignore_errors=True) if out.is_dir() else out.unlink()
            print(f"{shards.name} {name} {done.stdout.split()[-1]}", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "pairs": pairs,
        "seconds": {name: [round(x, 3) for x in values] for name, values in seconds.items()},
        "pairs_per_second": {name: round(pairs / value) for name, value in medians.items()},
        "datakit_faster_than": {name: round(medians[name] / medians["datakit"], 2) for name in ("trl", "arrow")},
    }


def memory(shards: Path, folder: Path) -> dict[str, float]:
    """Peak anonymous memory in MiB of unpairing in every order, and of pairing again."""
    base = [sys.executable, "-m", "datakit"]
    found: dict[str, float] = {}
    for order in ("pair", "blocked", "shuffle"):
        labelled, again = folder / "labelled", folder / "again"
        for name, command in {
            f"unpair {order}": ["unpair", str(shards), "-o", str(labelled), "--order", order],
            f"pair after {order}": ["pair", str(labelled), "-o", str(again)],
        }.items():
            took, peak = run([*base, *command], watch=True)
            found[name] = round(peak / 2**20, 1)
            print(f"{shards.name} {name} {took:.1f} s {found[name]} MiB", file=sys.stderr)
        shutil.rmtree(labelled)
        shutil.rmtree(again)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "unpair.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine("pyarrow", "datasets", "trl")}
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        folder = Path(name)
        for form in ("messages", "strings"):
            shards = generate(folder, options.pairs, form)
            result[form] = measure(shards, options.pairs, options.runs, folder)
        if not options.skip_memory:
            result["peak_anonymous_mib"] = {
                str(pairs): memory(generate(folder, pairs, "messages"), folder)
                for pairs in (options.pairs, 10 * options.pairs)
            }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
