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
from collections.abc import Mapping
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


STATE: Final = "trainer_state.json"
"""What transformers writes last into a checkpoint."""

OF_PEFT: Final = frozenset(
    ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config")
)
"""Fields of a LoraConfig that say nothing about training."""

MADE: Final = (
    "checkpoint-*",
    "run.json",
    "data_manifest.json",
    "running.json",
    "training_args.bin",
    "*.safetensors",
    "*.safetensors.index.json",
    "*config.json",
    "tokenizer*",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "README.md",
)
"""What a run leaves in its folder; an older one must not lie among a newer one's."""

LEFT: Final = ("unsloth_compiled_cache", "data_manifest.json")
"""What a run that was refused may leave."""

SETTLED: Final = (
    "learning_rate",
    "lr_scheduler_type",
    "optim",
    "seed",
    "weight_decay",
)
"""Fields of a config that a checkpoint has settled: another value would be ignored."""


@dataclass(slots=True)
class Run:
    """The folder of a run.

    Attributes:
        method: of the run.
        folder: of checkpoints and record.
        resume: whether to go on from a checkpoint.
        overwrite: whether an earlier run may be replaced.
        last: the file that a checkpoint gets last; one without it is incomplete.
    """

    method: Method
    folder: Path
    resume: bool
    overwrite: bool
    last: str = STATE

    def say(self, *lines: str) -> None:
        """Tell a person, once for all processes."""
        if is_main():
            sys.stderr.write("".join(f"trainglue: {line}\n" for line in lines))

    def check(self) -> None:
        """Refuse to mix two runs, or a run with something else.

        Raises:
            UsageError: an earlier run or other files lie there, or there is no checkpoint to go on from.
        """
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite exclude each other", "Go on, or begin again.")
        checkpoints = self._checkpoints()
        if self.resume:
            found = self.checkpoint()
            after = checkpoints[checkpoints.index(found) + 1 :] if found else checkpoints
            self.say(*(f"{path.name} is incomplete: it has no readable {self.last}" for path in after))
            if found is None:
                raise UsageError(f"{self.folder} has no checkpoint to go on from", "Leave out --resume to begin.")
            return
        if not is_main() or not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder} is a file", "Name a folder for the run.")
        if checkpoints or (self.folder / "run.json").exists():
            if not self.overwrite:
                raise UsageError(
                    f"{self.folder} holds an earlier run",
                    "Go on with --resume, replace it with --overwrite, or name another folder.",
                )
        elif others := sorted(path.name for path in self.folder.iterdir() if path.name not in LEFT):
            raise UsageError(
                f"{self.folder} holds {', '.join(others[:3])}, and no run of trainglue", "Name another folder."
            )

    def clear(self) -> None:
        """With `overwrite`, remove the earlier run; called when nothing can be refused any more."""
        if not self.overwrite or not is_main():
            return
        for path in {path for pattern in MADE for path in self.folder.glob(pattern)}:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def check_resumed(self, earlier: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        """Refuse to go on with another run than the one that lies there.

        Args:
            earlier: its record; empty where there is none.
            known: of this session.

        Raises:
            UsageError: rows, method, adapters or what a checkpoint has settled differ, or the run is finished.
        """
        if not self.resume or not earlier:
            return
        again = "Give what the run began with, or begin another."
        before, now = earlier["data"], known["data"]
        if before["content_id"] != now["content_id"]:
            raise UsageError(
                f"{self.folder} was trained on other rows (content {before['content_id'][:12]}, "
                f"now {now['content_id'][:12]})",
                again,
            )
        if any(before[name] != now[name] for name in ("trained_on", "evaluated_on")):
            told = "{trained_on} rows trained on and {evaluated_on} held out".format
            raise UsageError(f"{self.folder} had {told(**before)}, now {told(**now)}", again)
        for name in ("method", "rows_per_update"):  # on however many processes
            if earlier.get(name, known[name]) != known[name]:
                raise UsageError(f"{self.folder} was begun with {name} {earlier[name]}, now {known[name]}", again)
        if different := _adapters_differ(earlier["adapters"], known["adapters"]):
            raise UsageError(f"{self.folder} was begun {different}", again)
        for name in ("reward", "early_stopping"):
            told, meant = earlier.get("told", {}).get(name), known["told"][name]
            if None not in (told, meant) and told != meant:
                raise UsageError(f"{self.folder} was begun with {name} {told}, now {meant}", again)
        old, new = earlier["config"], json.loads(json.dumps(known["config"], default=str))
        for name in SETTLED:
            if old.get(name, new.get(name)) != new.get(name):
                raise UsageError(f"{self.folder} was begun with {name} {old[name]}, now {new[name]}", again)
        weights = earlier.get("weights", {})
        other = [name for name in ("model", "ref_model") if weights.get(name) != known["weights"].get(name)]
        if weights and other and earlier["precision"] == known["precision"]:  # which decides how weights are stored
            raise UsageError(f"{self.folder} was begun with another {other[0]}", again)
        goals = [(config.get("max_steps", -1), config.get("num_train_epochs", 0)) for config in (new, old)]
        if earlier.get("status") == "finished" and earlier["step"] >= earlier["steps"] and goals[0] == goals[1]:
            raise UsageError(
                f"{self.folder} holds a finished run, step {earlier['step']} of {earlier['steps']}",
                "Ask for more with --max-steps or --num-train-epochs to go on.",
            )

    def checkpoint(self) -> Path | None:
        """The last complete checkpoint, where the run is to go on."""
        complete = (path for path in reversed(self._checkpoints()) if _is_json(path / self.last))
        return next(complete, None) if self.resume else None

    def _checkpoints(self) -> list[Path]:
        """From the first step to the last."""
        steps = {path: path.name.rpartition("-")[2] for path in self.folder.glob("checkpoint-*")}
        return sorted((path for path in steps if steps[path].isdigit()), key=lambda path: int(steps[path]))

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


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _adapters_differ(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """How adapters differ, in words; empty where they do not."""
    if before is None or now is None:
        return "" if before == now else "with adapters, now without" if now is None else "without adapters, now with"
    names = [name for name in now if before.get(name, now[name]) != now[name]]
    return f"with lora {names[0]} {before[names[0]]}, now {now[names[0]]}" if names else ""


def recorded(value: Any) -> Any:
    """A value as JSON: paths as text, sets sorted, functions and objects by their dotted names."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): recorded(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        parts = [recorded(inner) for inner in value]
        return sorted(parts, key=str) if isinstance(value, set | frozenset) else parts
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def facts(made: Any, method: Method, path: str, rows: Rows, evaluation: Rows | None) -> dict[str, Any]:
    """What a run is made of.

    `rows_repeated_per_epoch` and `rows_left_out_per_epoch` say what becomes of a last step that is not full.

    Args:
        made: the trainer.
        method: its method.
        path: of the rows, as it was named.
        rows: trained on.
        evaluation: evaluated on.
    """
    args, manifest = made.args, rows.shards.manifest
    per_step = args.per_device_train_batch_size * args.world_size
    repeated, left_out = _unfilled(args, method, rows)
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
        "adapters": _adapters(made.model),
        "processes": args.world_size,
        "rows_per_update": per_step * args.gradient_accumulation_steps,
        "rows_repeated_per_epoch": repeated,
        "rows_left_out_per_epoch": left_out,
        "config": args.to_dict(),
    }


def _adapters(model: Any) -> dict[str, Any] | None:
    """The LoraConfig of a model; None where all weights are trained."""
    if not hasattr(model, "peft_config"):
        return None
    fields = next(iter(model.peft_config.values())).to_dict()
    return {name: recorded(value) for name, value in fields.items() if name not in OF_PEFT}


def prompts_at_once(args: Any) -> int:
    """The prompts that GRPO answers at a time."""
    return int(args.generation_batch_size // args.num_generations)


def _unfilled(args: Any, method: Method, rows: Rows) -> tuple[int, int]:
    """Rows that come twice, or not at all, where they do not fill the last step.

    A stream begins again in the last step of the run. GRPO leaves out prompts that do not fill a batch, as
    `dataloader_drop_last` does; several processes fill it with rows of the beginning.
    """
    per_step = args.per_device_train_batch_size * args.world_size
    if rows.stream is not None:
        per_update = per_step * args.gradient_accumulation_steps
        beyond = args.max_steps * per_update - int(len(rows) * args.num_train_epochs)
        return beyond if 0 <= beyond < per_update else 0, 0  # else the steps were asked for
    if method.name == "grpo":
        return 0, len(rows) % prompts_at_once(args)
    rest = len(rows) % per_step
    if args.dataloader_drop_last:
        return 0, rest
    return per_step - rest if rest and args.world_size > 1 else 0, 0


def versions() -> dict[str, str]:
    """Of Python, datakit and whatever of the stack is installed."""
    found = {"python": platform.python_version(), "datakit": datakit.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
