"""How fast and how heavy `datakit convert` is, beside its floor and beside `datasets`.

    python benchmarks/convert.py [--sizes 100MB,1GB] [--runs 5] [--out benchmarks/results/convert.json]

Whole commands, each in its own process, in turn (A B C D, A B C D, ...) so that a machine that drifts drifts for all.
Generated ShareGPT rows of about 2 KB, none twice; warm page cache; zstd on every side; `datasets` with a fresh cache.

    floor      pyarrow read_json and write_table: no checks, no hashes, rows as structs; what the bytes alone cost
    datakit    `datakit convert` with default checks, hashing of input and output, and commit
    tutorial   datasets: load_dataset, map row by row to messages as List(Json()), to_parquet, one process
    best       datasets: the same batched, with num_proc=2

Prints a table and writes medians, ratios to the floor and peak anonymous memory, summed over all processes, as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import conversation, machine, run

FLOOR = """
import sys, pyarrow.json as j, pyarrow.parquet as pq
pq.write_table(j.read_json(sys.argv[1]), sys.argv[2], compression="zstd")
"""

# datasets 5.2 writes snappy and takes no other codec from its caller
ZSTD = """
import datasets.io.parquet as writer
options = writer.get_parquet_column_options
writer.get_parquet_column_options = lambda *given: {**options(*given), "compression": "zstd"}
"""

TUTORIAL = """
import sys
from datasets import Features, Json, List, load_dataset
ROLES = {"human": "user", "gpt": "assistant"}
def convert(row):
    return {"messages": [{"role": ROLES[t["from"]], "content": t["value"]} for t in row["conversations"]]}
rows = load_dataset("json", data_files=sys.argv[1], split="train")
rows = rows.map(convert, remove_columns=rows.column_names, features=Features({"messages": List(Json())}))
rows.to_parquet(sys.argv[2])
"""

BEST = """
import sys
from datasets import Features, Json, List, load_dataset
ROLES = {"human": "user", "gpt": "assistant"}
def convert(rows):
    turns = rows["conversations"]
    return {"messages": [[{"role": ROLES[t["from"]], "content": t["value"]} for t in row] for row in turns]}
if __name__ == "__main__":
    rows = load_dataset("json", data_files=sys.argv[1], split="train")
    features = Features({"messages": List(Json())})
    rows = rows.map(convert, batched=True, num_proc=2, remove_columns=rows.column_names, features=features)
    rows.to_parquet(sys.argv[2])
"""


def generate(path: Path, size: int) -> int:
    """Write ShareGPT rows until the file has `size` bytes; the number of rows."""
    pick = random.Random(7)
    rows = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            row = {"id": f"row-{rows}", "conversations": conversation(pick)}
            written += file.write(json.dumps(row) + "\n")
            rows += 1
    return rows


def measure(size: str, runs: int, folder: Path, skip: set[str]) -> dict[str, Any]:
    data = folder / f"{size}.jsonl"
    count = {"MB": 10**6, "GB": 10**9}[size[-2:]] * int(size[:-2])
    rows = generate(data, count)
    data.read_bytes() if count < 2 * 10**8 else subprocess.run(["cat", data], stdout=subprocess.DEVNULL, check=True)
    scripts = {}
    for name, text in (("floor", FLOOR), ("tutorial", TUTORIAL), ("best", BEST)):
        scripts[name] = folder / f"{name}.py"
        scripts[name].write_text(text if name == "floor" else ZSTD + text)
    out, shards = folder / "out.parquet", folder / "shards"
    commands: dict[str, list[str]] = {
        "floor": [sys.executable, str(scripts["floor"]), str(data), str(out)],
        "datakit": [sys.executable, "-m", "datakit", "convert", str(data), "-o", str(shards), "--workers", "2"],
        "tutorial": [sys.executable, str(scripts["tutorial"]), str(data), str(out)],
        "best": [sys.executable, str(scripts["best"]), str(data), str(out)],
    }
    commands = {name: command for name, command in commands.items() if name not in skip}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peaks: dict[str, int] = {}
    for turn in range(runs + 1):  # the last turn is for memory, whose sampling costs time
        for name, command in commands.items():
            shutil.rmtree(shards, ignore_errors=True)
            out.unlink(missing_ok=True)
            took, peak = run(command, watch=turn == runs)
            if turn == runs:
                peaks[name] = peak
            else:
                seconds[name].append(took)
            print(f"{size} {name} {took:.2f} s", file=sys.stderr)
    data.unlink()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "size": size,
        "rows": rows,
        "seconds": {name: [round(x, 3) for x in values] for name, values in seconds.items()},
        "median": {name: round(value, 3) for name, value in medians.items()},
        "ratio_to_floor": {name: round(value / medians["floor"], 3) for name, value in medians.items()},
        "datakit_faster_than": {
            name: round(medians[name] / medians["datakit"], 3) for name in ("tutorial", "best") if name in medians
        },
        "peak_anonymous_mib": {name: round(peak / 2**20, 1) for name, peak in peaks.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100MB,1GB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--skip", default="", help="names that are not measured, with commas")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "convert.json")
    options = parser.parse_args()
    skip = set(filter(None, options.skip.split(",")))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
        found = [measure(size, options.runs, Path(folder), skip) for size in options.sizes.split(",")]
    result: dict[str, Any] = {"machine": machine("pyarrow", "datasets", "orjson"), "sizes": found}
    if len(found) > 1:
        first, last = (entry["peak_anonymous_mib"]["datakit"] for entry in (found[0], found[-1]))
        result["datakit_memory_growth"] = round(last / first, 3)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
