"""The examples run as they stand, on a tiny model and a few rows."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("trl")
pytest.importorskip("torch")
from tests.tiny_models import place

pytestmark = pytest.mark.filterwarnings("default")

FOLDER = Path(__file__).resolve().parent.parent / "examples"
TINY = {"max_steps": 2, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return place(tmp_path_factory.mktemp("models")).model


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_alpaca_in_fp8(model, tmp_path):
    pytest.importorskip("torchao")
    raw = written(
        tmp_path / "alpaca.jsonl",
        [{"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n)))} for n in range(1, 9)],
    )
    example("alpaca_fp8").run(raw, str(tmp_path / "out"), model, fp8={"emulate": True}, **TINY)
    assert (tmp_path / "out" / "run" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / "run" / "run.json").read_text())["precision"].startswith("fp8")


SYSTEM = "You are a household robot."
SAID = [("Task: find a mug.\nObservation: a room.", "look"), ("Observation: a shelf.", "go to shelf 1")]


@pytest.mark.parametrize("form", ["guide", "collector"])
def test_games_with_qlora(form, model, tmp_path):
    """Both forms of a record: with the system message apart, and as messages with the game's file."""
    talk = [
        [
            {"role": role, "content": f"{text} {n}" if role == "user" else text}
            for turn in SAID
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        for n in range(40)
    ]
    if form == "guide":
        rows: list[dict[str, object]] = [{"system": SYSTEM, "conversations": turns} for turns in talk]
    else:
        rows = [
            {"messages": [{"role": "system", "content": SYSTEM}, *turns], "gamefile": f"game {n}", "steps": 2}
            for n, turns in enumerate(talk)
        ]
    raw = written(tmp_path / "trajectories.jsonl", rows)
    options = {"precision": "fp32", "eval_steps": 1, "save_steps": 1, **TINY}
    made = example("games_qlora").run(raw, str(tmp_path / "out"), model, **options)
    assert (tmp_path / "out" / "ollama" / "Modelfile").is_file()
    assert made.commands
    assert made.difference < 1e-3
