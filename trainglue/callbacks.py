"""What happens around the steps of a run: its record in the run folder, and progress for a person."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Real
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm
from transformers.trainer_callback import ProgressCallback, TrainerCallback

from trainglue import runs
from trainglue.streams import STATE, Position

RECORD: Final = "run.json"
SHOWN: Final = re.compile(
    "(eval_)?(loss|mean_token_accuracy|accuracy|margin|rewards/(accuracies|margins|.+/mean)|reward|reward_std|kl"
    "|completions/mean_length)|grad_norm|learning_rate|epoch"
)
"""Metrics that a line shows, in the order in which the trainer gives them; the others are in run.json."""


class Record(TrainerCallback):
    """Keeps `run.json` in the run folder: what the run was made of, and how far it has come.

    Args:
        folder: the run folder.
        facts: everything that is known before the first step.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.path = folder / RECORD
        earlier = read(folder).get("sessions", [])
        self.session: dict[str, Any] = {"started": _now(), "command": facts["command"], "status": "running"}
        self.record: dict[str, Any] = {**facts, "sessions": [*earlier, self.session]}
        self.state: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.state = state
        self.session["from_step"] = state.global_step
        self._write(state, "running")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(state, "running")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._write(state, "finished")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Training, the end of which by an error is recorded, too."""
        try:
            yield
        except BaseException as error:
            if self.state is not None:
                self.session["error"] = f"{type(error).__name__}: {error}"
                with suppress(OSError):  # the disk is full
                    self._write(self.state, "interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise

    def _write(self, state: Any, status: str) -> None:
        if not state.is_world_process_zero:
            return
        self.session |= {"status": status, "step": state.global_step, "updated": _now()}
        self.record |= {"status": status, "step": state.global_step, "steps": state.max_steps, "epoch": state.epoch}
        self.record["log"] = state.log_history[-1:] if status == "running" else state.log_history
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write_json(self.path, self.record)


class StreamState(TrainerCallback):
    """Puts the place where a stream stands into every checkpoint, and counts epochs by rows.

    Args:
        position: of the stream when this session began.
    """

    def __init__(self, position: Position) -> None:
        self.position, self.begun_at = position, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun_at = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.epoch = self.position.epoch(state.global_step - self.begun_at)  # a trainer divides by all steps

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            kept = self.position.after(state.global_step - self.begun_at)
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            _write_json(folder / STATE, kept)


def read(folder: Path) -> dict[str, Any]:
    """The record of an earlier run in a folder; empty without one."""
    found = runs.json_of(folder / RECORD)
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, found: Mapping[str, Any]) -> None:
    """Whole or absent."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(found, indent=1, default=str) + "\n", "utf-8")
    os.replace(beside, path)  # noqa: PTH105


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Lines(TrainerCallback):
    """A line of metrics on stderr for each logging step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        text = metrics(logs or {})
        if state.is_world_process_zero and text:
            tqdm.write(f"step {state.global_step}/{state.max_steps}  {text}", sys.stderr)


class Bar(ProgressCallback):
    """The live bar of transformers; its lines are those of `Lines`."""

    def on_log(self, *_: Any, **__: Any) -> None:
        pass


def metrics(logs: Mapping[str, Any]) -> str:
    """`loss 2.31  learning_rate 2e-05  epoch 0.5`."""
    found = {name: float(value) for name, value in logs.items() if SHOWN.fullmatch(name) and isinstance(value, Real)}
    return "  ".join(f"{name} {value:.4g}" for name, value in found.items()) if found.keys() - {"epoch"} else ""
