"""The folder of a run: what may be in it, what is said about it, and the facts of its record.

out/
  run.json              method, command, versions, data, config, and how far it came; see `callbacks.Record`
  data_manifest.json    the manifest of the shards that were trained on
  checkpoint-200/       what `--resume` goes on from
  model.safetensors     or adapter_model.safetensors, with tokenizer and chat template
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import datakit
from datakit.errors import UsageError
from trainglue.data import Rows
from trainglue.methods import Method

PACKAGES: Final = (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "peft",
    "accelerate",
    "unsloth",
    "torchao",
    "bitsandbytes",
)


@dataclass(slots=True)
class Run:
    """The folder of a run.

    Attributes:
        method: of the run.
        folder: of checkpoints and record.
        resume: whether to go on from a checkpoint.
        overwrite: whether an earlier run may be replaced.
    """

    method: Method
    folder: Path
    resume: bool
    overwrite: bool

    def say(self, *lines: str) -> None:
        """Tell a person, once for all processes."""
        if is_main():
            sys.stderr.write("".join(f"trainglue: {line}\n" for line in lines))

    def check(self) -> None:
        """Refuse to mix two runs; with `overwrite`, remove the earlier one.

        Raises:
            UsageError: an earlier run lies there, or there is none to go on from.
        """
        found = sorted(self.folder.glob("checkpoint-*"))
        if self.resume and not found:
            raise UsageError(f"{self.folder} has no checkpoint to go on from", "Leave out --resume to begin.")
        if not is_main() or self.resume or not (found or (self.folder / "run.json").exists()):
            return
        if not self.overwrite:
            raise UsageError(
                f"{self.folder} holds an earlier run",
                "Go on with --resume, replace it with --overwrite, or name another folder.",
            )
        for path in found:
            shutil.rmtree(path)
        (self.folder / "run.json").unlink(missing_ok=True)

    def checkpoint(self) -> Path | None:
        """The last checkpoint, where the run is to go on."""
        if not self.resume:
            return None
        return max(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))

    def keep_manifest(self, rows: Rows) -> None:
        """Write the manifest of the data into the folder; of a stream, its recipe in full."""
        if is_main():
            stream = rows.stream
            manifest = stream.plan.recipe.to_json() if stream is not None else rows.shards.manifest
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "data_manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def is_main() -> bool:
    """Whether this is the first process of a launch."""
    return os.environ.get("RANK", "0") == "0"


def facts(made: Any, method: Method, path: str, rows: Rows, evaluation: Rows | None) -> dict[str, Any]:
    """What a run is made of.

    `rows_repeated_per_epoch` and `rows_left_out_per_epoch` say what becomes of a last step that is not full: with
    several processes it is filled with rows of the beginning, with `dataloader_drop_last` it is left out.

    Args:
        made: the trainer.
        method: its method.
        path: of the rows, as it was named.
        rows: trained on.
        evaluation: evaluated on.
    """
    args, manifest = made.args, rows.shards.manifest
    per_step = args.per_device_train_batch_size * args.world_size
    rest = len(rows) % per_step
    several = args.world_size > 1 and not args.dataloader_drop_last and rows.stream is None
    return {
        "method": method.name,
        "command": sys.argv,
        "versions": versions(),
        "data": {
            "path": path,
            "split": rows.shards.split,
            "content_id": rows.content_id,
            "kind": manifest["kind"],
            "form": manifest["form"],
            "rows": len(rows.shards) if rows.stream is None else len(rows),
            "streamed": rows.stream is not None,
            "trained_on": len(rows),
            "evaluated_on": len(evaluation) if evaluation else 0,
            "tokens": sum(length * count for length, count in rows.lengths.items()),
        },
        "processes": args.world_size,
        "rows_per_update": per_step * args.gradient_accumulation_steps,
        "rows_repeated_per_epoch": per_step - rest if rest and several else 0,
        "rows_left_out_per_epoch": rest if args.dataloader_drop_last else 0,
        "config": args.to_dict(),
    }


def versions() -> dict[str, str]:
    """Of Python, datakit and whatever of the stack is installed."""
    found = {"python": platform.python_version(), "datakit": datakit.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
