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
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import datakit
from datakit.errors import UsageError
from trainglue.data import Rows
from trainglue.methods import OPTIONAL, STACK, Method, installed

STATE: Final = "trainer_state.json"
"""What transformers writes last into a checkpoint."""

OF_PEFT: Final = frozenset(
    ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config")
)
"""Fields of a LoraConfig that say nothing about training."""

MADE: Final = (
    *("checkpoint-*", "run.json", "data_manifest.json", "training_args.bin", "README.md"),
    *("*.safetensors", "*.safetensors.index.json", "*config.json"),
    *("tokenizer*", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
)
"""What a run leaves in its folder; an older one must not lie among a newer one's."""

LEFT: Final = ("unsloth_compiled_cache", "data_manifest.json", ".*")
"""What a run that was refused may leave, and what keeps or describes a folder, as .gitkeep."""

FREE: Final = (
    # how far, and whereto
    *("max_steps", "num_train_epochs", "output_dir", "run_name", "project", "push_to_hub", "hub_", "trackio_"),
    # watched and kept: reads the weights and does not move them
    *("eval_", "do_eval", "per_device_eval_batch_size", "num_generations_eval", "prediction_loss_only"),
    *("batch_eval_metrics", "include_", "metric_for_best_model", "greater_is_better", "load_best_model_at_end"),
    *("save_", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint"),
    *("logging_", "log_", "report_to", "disable_tqdm", "num_completions_to_print", "skip_memory_metrics", "debug"),
    # the same numbers in another time or memory, as on another machine and after its memory ended
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    *("gradient_checkpointing", "activation_", "torch_", "use_cache", "use_cpu", "full_determinism"),
    *("ddp_", "fsdp", "deepspeed", "local_rank", "precompute_ref_"),
    *("vllm_server_", "vllm_group_port", "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size"),
    "max_length",  # of ORPO and CPO the longest row; nothing is cut to it
)
"""What the fields of a config that may change where a run goes on begin with."""

BATCH: Final = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation")
"""Fields that may change as well, since the rows of an update and of a generation are compared."""

BATCHWISE: Final = ("kto", "bco")
"""Methods whose loss depends on the rows that are beside each other in a batch."""

UNKEPT: Final = {
    "sync_ref_model": (True, "no checkpoint keeps the reference that was moved"),
    "train_sampling_strategy": ("group_by_length", "rows would come in another order, some twice and others never"),
    "save_only_model": (True, "its checkpoints keep no optimizer and no learning rate"),
}
"""Fields of a config, values with which no run goes on as the same one, and why."""

TOKEN: Final = re.compile(r"""((?:^|[\s{"'_-])token["']?\s*[=:]\s*["']?)[^\s"',}]+""", re.IGNORECASE)
"""A token in a word of a command: `--hub-token=...`, or in the JSON of an option."""


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

    def check(self, inputs: Iterable[str]) -> None:
        """Refuse to mix two runs, or a run with something else.

        Args:
            inputs: paths or names of what this run begins with; those that are not known are empty.

        Raises:
            UsageError: an earlier run or other files lie there, there is no checkpoint to go on from, or what is to be
                replaced holds an input.
        """
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite exclude each other", "Go on, or begin again.")
        checkpoints = self._checkpoints()
        if self.resume:
            found = self.checkpoint()
            after = checkpoints[checkpoints.index(found) + 1 :] if found else checkpoints
            self.say(*(f"{path.name} is incomplete: it has no readable {self.last}" for path in after))
            if found is None:
                held = checkpoints or (self.folder / "run.json").exists()
                begin = "Begin again with --overwrite instead." if held else "Leave out --resume to begin."
                raise UsageError(f"{self.folder} has no checkpoint to go on from", begin)
            return
        for path in _with_bases(map(Path, filter(None, inputs))) if self.overwrite else ():
            if path.exists() and path.resolve().is_relative_to(self.folder.resolve()):
                raise UsageError(
                    f"--overwrite would remove what this run begins with: {path} is in {self.folder}",
                    "Name another --output-dir.",
                )
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
        elif others := sorted(path.name for path in self.folder.iterdir() if not any(map(path.match, LEFT))):
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
            UsageError: anything differs but `FREE`, a checkpoint does not keep all of it, or the run is finished.
        """
        if not self.resume:
            return
        for name, (value, why) in UNKEPT.items():
            if {**known["config"], **earlier.get("config", {})}.get(name) == value:
                raise UsageError(f"no run goes on with {name} {value}: {why}", "Begin again with --overwrite.")
        if not earlier:
            return
        old, new = _settled(earlier), _settled(json.loads(json.dumps(known, default=str)))
        for name in (name for name in old if name in new and old[name] != new[name]):
            paths = [record["told"].get(name) for record in (earlier, known)] if name in earlier["weights"] else []
            before, now = paths if None not in paths[:2] and len(set(paths)) == 2 else (old[name], new[name])
            raise UsageError(
                f"{self.folder} was begun with {name} {before}, now {now}",
                "Give what the run began with, or begin another.",
            )
        configs = (earlier["config"], known["config"])
        goals = [(config.get("max_steps", -1), config.get("num_train_epochs", 0)) for config in configs]
        if earlier.get("status") == "finished" and earlier["step"] >= earlier["steps"] and goals[0] == goals[1]:
            raise UsageError(
                f"{self.folder} holds a finished run, step {earlier['step']} of {earlier['steps']}",
                "Ask for more with --max-steps or --num-train-epochs to go on.",
            )

    def checkpoint(self) -> Path | None:
        """The last complete checkpoint, where the run is to go on."""
        complete = (path for path in reversed(self._checkpoints()) if json_of(path / self.last) is not None)
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


def json_of(path: Path) -> Any:
    """What a file holds; None where it is missing or no whole JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _with_bases(paths: Iterable[Path]) -> Iterator[Path]:
    """Paths, and behind a folder with an adapter the model that it belongs to."""
    for path in paths:
        yield path
        if config := json_of(path / "adapter_config.json"):
            yield Path(config["base_model_name_or_path"])


def _settled(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record stays as it is where a run goes on; an older record may lack some of it."""
    method, adapters = record["method"], record["adapters"] or {}
    made = {name: record[name] for name in ("method", "precision", "dtype", "rows_per_update") if name in record}
    made |= {name: record["data"][name] for name in ("content_id", "trained_on", "evaluated_on")}
    if weights := record.get("weights"):
        made |= {name: weights.get(name) for name in ("model", "ref_model")}
    made |= {"lora": adapters.get("r"), **{f"lora {name}": value for name, value in adapters.items()}}
    told = record.get("told", {})
    made |= {name: told[name] for name in ("reward", "early_stopping") if told.get(name) is not None}
    free = FREE if method in BATCHWISE else FREE + BATCH
    return made | {name: value for name, value in record["config"].items() if not name.startswith(free)}


def concealed(command: Iterable[str]) -> list[str]:
    """A command without its tokens, which would be published with the folder."""
    words = list(command)
    named = [False, *(re.fullmatch(r"--?(.*[_-])?token", word, re.IGNORECASE) is not None for word in words)]
    return ["<TOKEN>" if own else TOKEN.sub(r"\1<TOKEN>", word) for own, word in zip(named, words, strict=False)]


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
        "command": concealed(sys.argv),
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
            "rejected": manifest["ledger"].get("rejected", {}) if rows.stream is None else {},
            "tokens": sum(length * count for length, count in rows.lengths.items()),
        },
        "adapters": _adapters(made.model),
        "dtype": str(made.model.dtype),
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


def rows_at_once(args: Any, method: Method) -> int:
    """The rows below which a trainer leaves out the rest of an epoch; 1 where it leaves out none."""
    if method.name == "grpo":
        return int(args.generation_batch_size // args.num_generations)
    return int(args.per_device_train_batch_size * args.world_size) if args.dataloader_drop_last else 1


def _unfilled(args: Any, method: Method, rows: Rows) -> tuple[int, int]:
    """Rows that come twice, or not at all, where they do not fill the last step.

    A stream begins again in the last step of the run. `rows_at_once` says who leaves out what does not fill a batch;
    else several processes fill it with rows of the beginning.
    """
    per_step = args.per_device_train_batch_size * args.world_size
    if rows.stream is not None:
        per_update = per_step * args.gradient_accumulation_steps
        beyond = args.max_steps * per_update - int(len(rows) * args.num_train_epochs)
        return beyond if 0 <= beyond < per_update else 0, 0  # else the steps were asked for
    if left_out := len(rows) % rows_at_once(args, method):
        return 0, left_out
    rest = len(rows) % per_step if method.name != "grpo" else 0
    return per_step - rest if rest and args.world_size > 1 else 0, 0


def versions() -> dict[str, str]:
    """Of Python, datakit and whatever of the stack is installed."""
    found = {"python": platform.python_version(), "datakit": datakit.__version__}
    return found | {name: own for name in (*STACK, *OPTIONAL) if (own := installed(name))}
