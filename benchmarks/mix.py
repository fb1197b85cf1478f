"""How fast and how heavy `datakit mix` and `datakit.stream` are, beside `datasets` and beside what the rows alone cost.

    python benchmarks/mix.py [--rows 180000] [--runs 5] [--out benchmarks/results/mix.json]

Two folders of short conversations, weights 0.7 and 0.3, every row used once; converted outside the clock; warm page
cache; zstd on every side; a fresh cache of `datasets` for every run. Whole commands, each in its own process, in turn
(A B C, A B C, ...) so that a machine that drifts drifts for all.

    floor          pyarrow: read_table, take in the order of the mix, write_table; no checks, no hashes
    datasets       interleave_datasets with probabilities, and to_parquet
    mix            `datakit mix`, each source in its own order
    mix window     the same with --order window:10000
    mix shuffle    the same with --order shuffle
    stream         every row of `datakit.stream` as a dict
    iterable       every row of interleave_datasets over two streaming datasets

`work` is the time without the start of Python, its imports, and the import of the rows into the cache of `datasets`.
Peak anonymous memory is summed over all processes, medians of three; it is taken once more with ten times the rows.
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

from measure import WORDS, machine, run

import datakit

WEIGHTS = (0.7, 0.3)
TIMED = "import json, sys, time\n"
TOLD = "\nprint(json.dumps(time.perf_counter() - start), file=open(sys.argv[-1], 'w'))\n"

FLOOR = """
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
start = time.perf_counter()
tables = [pq.read_table(folder) for folder in sys.argv[1:3]]
mixed = pa.concat_tables(tables).take(pa.array(np.load(sys.argv[3])))
pq.write_table(mixed, sys.argv[4], compression="zstd", use_dictionary=["dk_source"])
"""

# datasets 5.2 writes snappy and takes no other codec from its caller
DATASETS = """
import datasets.io.parquet as writer
from datasets import Dataset, interleave_datasets
options = writer.get_parquet_column_options
writer.get_parquet_column_options = lambda *given: {**options(*given), "compression": "zstd"}
sets = [Dataset.from_parquet(folder + "/*.parquet") for folder in sys.argv[1:3]]
start = time.perf_counter()
interleave_datasets(sets, probabilities=[0.7, 0.3], seed=0).to_parquet(sys.argv[4])
"""

MIX = """
import datakit, datakit.mixing.writing
start = time.perf_counter()
datakit.mix(sys.argv[1:3], sys.argv[4], weights=[0.7, 0.3], order=sys.argv[5]).raise_for_status()
"""

STREAM = """
import datakit, datakit.mixing.streaming
start = time.perf_counter()
rows = sum(1 for row in datakit.stream(sys.argv[1:3], weights=[0.7, 0.3]))
"""

ITERABLE = """
from datasets import interleave_datasets, load_dataset
start = time.perf_counter()
sets = [load_dataset("parquet", data_files=f + "/*.parquet", split="train", streaming=True) for f in sys.argv[1:3]]
rows = sum(1 for row in interleave_datasets(sets, probabilities=[0.7, 0.3], seed=0))
"""


def generate(folder: Path, rows: int) -> list[Path]:
    """Two folders of shards, with the rows that the weights want."""
    pick = random.Random(7)
    made = []
    for name, weight in zip("ab", WEIGHTS, strict=True):
        data = folder / f"{name}.jsonl"
        with data.open("w", encoding="utf-8") as file:
            for number in range(round(rows * weight)):
                texts = (" ".join(pick.choices(WORDS, k=12)), f"{number} " + " ".join(pick.choices(WORDS, k=18)))
                turns = [{"role": r, "content": t} for r, t in zip(("user", "assistant"), texts, strict=True)]
                file.write(json.dumps({"messages": turns}) + "\n")
        datakit.convert(data, folder / name).raise_for_status()
        data.unlink()
        made.append(folder / name)
    return made


def order_of_mix(sources: list[Path], out: Path) -> None:
    """The rows of the mix as row numbers of both folders behind each other."""
    import numpy as np

    plan = datakit.stream(sources, weights=WEIGHTS).plan
    origins, numbers = plan.origins(0, len(plan))
    np.save(out, numbers + origins * plan.sizes[0].rows)


def commands(sources: list[Path], folder: Path) -> dict[str, list[str]]:
    order, out, told = folder / "order.npy", folder / "out", folder / "told.json"
    scripts = {"floor": FLOOR, "datasets": DATASETS, "mix": MIX, "mix window": MIX, "mix shuffle": MIX}
    scripts |= {"stream": STREAM, "iterable": ITERABLE}
    made = {}
    for name, text in scripts.items():
        path = folder / f"run_{name.replace(' ', '_')}.py"
        path.write_text(TIMED + text + TOLD)
        places = [f"{s}/data" if name in ("floor", "datasets", "iterable") else str(s) for s in sources]
        kind = {"mix": "source", "mix window": "window:10000", "mix shuffle": "shuffle"}.get(name, "")
        made[name] = [sys.executable, str(path), *places, str(order), str(out), kind, str(told)]
    return made


def measure_mix(rows: int, runs: int, folder: Path) -> dict[str, Any]:
    """`mix` and `stream`."""
    sources = generate(folder, rows)
    order_of_mix(sources, folder / "order.npy")
    seconds: dict[str, list[float]] = {}
    work: dict[str, list[float]] = {}
    for turn in range(runs):
        for name, command in commands(sources, folder).items():
            took, _ = once(command, folder, watch=False)
            seconds.setdefault(name, []).append(took)
            work.setdefault(name, []).append(json.loads((folder / "told.json").read_text()))
            print(f"{turn} {name} {took:.2f} s, {work[name][-1]:.2f} s of work", file=sys.stderr)
    small = peaks(commands(sources, folder), folder)
    for source in sources:
        shutil.rmtree(source)
    sources = generate(folder, 10 * rows)
    order_of_mix(sources, folder / "order.npy")
    large = peaks({n: c for n, c in commands(sources, folder).items() if n.startswith(("mix", "stream"))}, folder)
    return {
        "rows": rows,
        "seconds": rounded(seconds),
        "work": rounded(work),
        "median_work": {name: round(statistics.median(own), 3) for name, own in work.items()},
        "mix_faster_than_datasets": ratios(work, "datasets", "mix"),
        "whole_command_faster_than_datasets": ratios(seconds, "datasets", "mix"),
        "mix_speed_of_floor": ratios(work, "floor", "mix"),
        "stream_faster_than_iterable": ratios(work, "iterable", "stream"),
        "peak_anonymous_mib": small,
        "peak_anonymous_mib_at_ten_times_the_rows": large,
        "memory_growth": {name: round(large[name] / small[name], 3) for name in large},
    }


def once(command: list[str], folder: Path, watch: bool) -> tuple[float, int]:
    """A run into an empty place."""
    out = folder / "out"
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    return run(command, watch=watch)


def peaks(own: dict[str, list[str]], folder: Path) -> dict[str, float]:
    """Peak memory in MiB, medians of three, since it is sampled."""

    def peak(command: list[str]) -> float:
        return statistics.median(once(command, folder, watch=True)[1] for _ in range(3)) / 2**20

    return {name: round(peak(command), 1) for name, command in own.items()}


def rounded(values: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [round(x, 3) for x in own] for name, own in values.items()}


def ratios(values: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times as fast each command is whose name begins with `fast`."""
    medians = {name: statistics.median(own) for name, own in values.items()}
    return {name: round(medians[slow] / median, 3) for name, median in medians.items() if name.startswith(fast)}


MEASURED = {"mix": measure_mix}
"""What is measured, each with rows, runs and a folder of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=180_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mix.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"machine": machine("pyarrow", "datasets", "numpy")}
    for name, measured in MEASURED.items():
        with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
            result[name] = measured(options.rows, options.runs, Path(folder))
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
