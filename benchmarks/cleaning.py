"""split, dedup and decontaminate on generated rows: seconds, and memory per row.

    python benchmarks/cleaning.py --rows 100000

One row of ten repeats an earlier one, one of a hundred nearly. Each command is given the folder three times, then nine
times, so that all that does not grow with the rows is there in both; for dedup it is the worst case, in which most rows
repeat another. The difference in memory by row is the price of a row.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from measure import WORDS, machine, run

import datakit

VERBS = {
    "split": ["split", "--test", "5%"],
    "dedup": ["dedup"],
    "dedup near": ["dedup", "--by", "near"],
    "decontaminate": ["decontaminate", "--against"],
}

TIMES = (3, 9)


def generate(folder: Path, rows: int) -> Path:
    """Shards of short conversations."""
    pick = random.Random(rows)
    raw = folder / f"{rows}.jsonl"
    old: list[str] = []
    with raw.open("w") as handle:
        for number in range(rows):
            answer = " ".join(pick.choices(WORDS, k=30)) + f" {number} {number * 7919}"
            if old and number % 10 == 0:
                line = pick.choice(old)
            elif old and number % 100 == 1:
                line = pick.choice(old).replace(" the ", " a ", 1)
            else:
                turns = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": answer}]
                line = json.dumps({"messages": turns})
            if len(old) < 1000:
                old.append(line)
            handle.write(line + "\n")
    datakit.convert(raw, folder / f"{rows}").raise_for_status()
    raw.unlink()
    return folder / f"{rows}"


def evaluation(folder: Path) -> Path:
    """A thousand texts of which none is in the rows."""
    pick = random.Random(0)
    path = folder / "evaluation.jsonl"
    path.write_text("".join(json.dumps({"q": " ".join(pick.choices(WORDS, k=40))}) + "\n" for _ in range(1000)))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cleaning.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, float]] = {name: {} for name in VERBS}
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        folder = Path(name)
        against = str(evaluation(folder))
        shards = generate(folder, options.rows)
        for times in TIMES:
            for verb, words in VERBS.items():
                more = [against] if words[-1] == "--against" else []
                out = str(folder / f"{verb}-{times}")
                seconds, peak = run(
                    [sys.executable, "-m", "datakit", *words, *more, *[str(shards)] * times, "-o", out], watch=True
                )
                found[verb] |= {f"seconds x{times}": round(seconds, 2), f"peak MiB x{times}": round(peak / 2**20, 1)}
                print(f"{verb}, {times}x: {seconds:.1f} s, {peak / 2**20:.0f} MiB", file=sys.stderr)
    for own in found.values():
        few, many = (own[f"peak MiB x{times}"] for times in TIMES)
        own["bytes per row"] = round((many - few) * 2**20 / (options.rows * (TIMES[1] - TIMES[0])), 1)
    result = {"machine": machine("pyarrow", "numpy"), "rows": options.rows, **found}
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
