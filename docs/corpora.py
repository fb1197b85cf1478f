"""Convert every file of a folder of real data and write the table docs/corpora.md.

    python docs/corpora.py FOLDER

FOLDER holds sft/, pref/ and kto/ with files named `owner__repository__path__to__file`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import orjson

import datakit

HERE = Path(__file__).resolve().parent
KINDS = ("sft", "pref", "kto")


def convert(path: Path, out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "datakit", "convert", str(path), "-o", str(out), "--json", *options]
    done = subprocess.run(command, capture_output=True, check=False)
    report: dict[str, Any] = orjson.loads(done.stdout)
    return report


def why(report: dict[str, Any]) -> str:
    if report["error"]:
        message = report["error"]["message"].split(": ", 1)[-1]
        return f"{message} {' '.join(report['error']['hint'].split())}".replace("|", "/")
    told = [f"{f['id']} {f['name']} {f['count']}" for f in report["findings"] if f["severity"] != "note"]
    return "; ".join(told)


def line(path: Path, base: Path) -> str:
    owner, repository, *rest = path.name.split("__")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "shards"
        report = convert(path, out)
        if report["exit_code"] == 0 and datakit.verify(out).exit_code:
            raise SystemExit(f"{path}: the shards do not verify")
    place = f"{owner}/{repository}: {'/'.join(rest)}"
    kind = f"{report['kind']}:{report['form']}" if report["kind"] else ""
    numbers = (report["rows_in"], report["rows_out"], report["rows_rejected"])
    cells = (place, report["format"] or "", kind, *numbers, report["exit_code"], why(report))
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main(base: Path) -> None:
    lines = [
        "# Real files",
        "",
        "Every file below is public; none of them is part of this repository. Each was converted with",
        "`datakit convert FILE -o shards/` and no options. Exit 0: converted. Exit 1: the data has bad rows, which",
        '`--on-bad-row quarantine --max-bad "N rows"` sets aside; rows out are those that would be kept.',
        "Exit 3: a question to the person.",
        "",
        "| file | format | kind | rows in | out | rejected | exit | findings, or why not |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for kind in KINDS:
        lines += [line(path, base) for path in sorted((base / kind).iterdir())]
    (HERE / "corpora.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
