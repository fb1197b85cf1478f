"""Every method trains on a GPU in 16 bits, and Unsloth trains adapters over 4 bits there.

    python -m pytest -m gpu tests/gpu

With TRAINGLUE_DRY_RUN=1 the first test runs on a CPU. Unsloth has to come before transformers and patches its process
for good, so its runs are processes of their own, in whichever environment has it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

DRY = bool(os.environ.get("TRAINGLUE_DRY_RUN"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (torch.cuda.is_available() or DRY), reason="no GPU"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("tiny"),
]

from tests.tiny_models import QUIET  # noqa: E402
from trainglue import METHODS, trainer  # noqa: E402

STEPS = {**QUIET, "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0}


def by_length(completions, **_):
    """A reward that differs between completions."""
    return [float(len(str(completion))) for completion in completions]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "prm"])
@pytest.mark.parametrize("lora", [None, 4], ids=["full", "lora"])
def test_two_steps_in_bf16(method, lora, tiny, tmp_path):
    options: dict[str, Any] = {**STEPS}
    if method == "grpo":
        options |= {"reward": by_length, "num_generations": 2, "max_completion_length": 4}
    made = trainer(
        method,
        model=tiny.model_for(method),
        data=tiny.canonical(method) if method == "grpo" else tiny.formatted(method),
        output_dir=tmp_path / "run",
        engine="trl",
        precision="bf16",
        lora=lora,
        use_cpu=DRY,
        **options,
    )
    before = {name: weight.detach().clone() for name, weight in made.model.named_parameters()}
    result = made.train()
    assert made.args.bf16
    assert made.state.global_step == 2
    assert torch.isfinite(torch.tensor(result.training_loss))
    moved = {name for name, weight in made.model.named_parameters() if not torch.equal(weight, before[name])}
    assert any("lora_" in name if lora else "mlp" in name for name in moved)


WITH_UNSLOTH = """
import sys
from pathlib import Path
from trainglue import trainer

method, model, data, output = sys.argv[1:]
made = trainer(
    method, model=model, data=Path(data), output_dir=Path(output), engine="unsloth", precision="qlora", lora=4,
    max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=1, learning_rate=1e-2, warmup_steps=0,
    logging_steps=1, save_strategy="no", eval_share=0.0,
)

import torch

before = {name: weight.detach().clone() for name, weight in made.model.named_parameters()}
made.train()
assert made.state.global_step == 2
moved = {name for name, weight in made.model.named_parameters() if not torch.equal(weight, before[name])}
assert moved, "nothing was trained"
assert all("lora_" in name for name in moved), moved
base = [module.weight for module in made.model.modules() if type(module).__name__ == "Linear4bit"]
assert base, "no layer has 4 bits"
assert {weight.quant_type for weight in base} == {"nf4"}
assert {weight.dtype for weight in base} == {torch.uint8}
"""


@pytest.mark.skipif(DRY or find_spec("unsloth") is None, reason="no GPU, or no Unsloth")
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_unsloth_trains_adapters_over_four_bits(method, tiny, tmp_path):
    words = (method, tiny.model, str(tiny.formatted(method)), str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", WITH_UNSLOTH, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
