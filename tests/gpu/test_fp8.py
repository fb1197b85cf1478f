"""FP8 on a GPU: it is FP8, it learns as bf16 does, and what it leaves behind is an ordinary model.

    python -m pytest -m gpu tests/gpu

Needs compute capability 9.0 or later, and whichever of torchao and Transformer Engine is installed is tested. With
TRAINGLUE_DRY_RUN=1 the same code runs on a CPU at a small size, torchao emulated: that tests the tests, not FP8.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
torch = pytest.importorskip("torch")
pytest.importorskip("trl")

DRY = bool(os.environ.get("TRAINGLUE_DRY_RUN"))
ABLE = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (ABLE or DRY), reason="no GPU of compute capability 9.0"),
    pytest.mark.filterwarnings("default"),
]

import datasets  # noqa: E402
from peft import LoraConfig  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from trainglue import precision  # noqa: E402
from trainglue.precision import (  # noqa: E402
    Fp8,
    PrecisionNotUsed,
    float8,
)
from trainglue.precision.audit import Audit  # noqa: E402

DEVICE = "cpu" if DRY else "cuda"
HIDDEN, LAYERS, WORDS, STEPS = (64, 2, 256, 12) if DRY else (1024, 4, 4096, 200)
RATES = {"full": 1e-2, "lora": 3e-2} if DRY else {"full": 3e-4, "lora": 3e-3}

RECIPES = {
    "torchao tensorwise": Fp8("torchao", "tensorwise", emulate=DRY),
    "torchao rowwise": Fp8("torchao", "rowwise", emulate=DRY),
    "torchao rowwise_with_gw_hp": Fp8("torchao", "rowwise_with_gw_hp", emulate=DRY),
    "te current": Fp8("te", "current"),
    "te delayed": Fp8("te", "delayed", "HYBRID", 16, "max"),
}


@pytest.fixture(params=RECIPES)
def fp8(request):
    asked = RECIPES[request.param]
    if reason := float8.unsupported(asked):
        pytest.skip(reason)
    if DRY and asked.recipe == "rowwise_with_gw_hp":
        pytest.skip("torchao knows the autocast of GPUs only, and this recipe multiplies in it")
    return asked


@pytest.fixture(params=["full", "lora"])
def weights(request):
    return request.param


def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).to(DEVICE)


def rows():
    """Sequences that can be learnt: each word follows from the one before. Lengths are odd, so batches are ragged."""
    made = []
    for number in range(64):
        ids = [3 + number]
        for _ in range(17 + number % 13 if DRY else 101 + number):
            ids.append(3 + (ids[-1] * 5 + 7) % (WORDS - 3))
        made.append({"input_ids": ids, "labels": ids})
    return datasets.Dataset.from_list(made)


def run(folder, asked, weights, **options):
    """A trainer that has run, its audit and its conversion."""
    made = model()
    conversion = precision.prepare(made, asked)
    audit = Audit(conversion)
    defaults = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": RATES[weights],
        "lr_scheduler_type": "constant",
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "gradient_checkpointing": getattr(asked, "recipe", "") != "delayed",
        "pad_to_multiple_of": conversion.pad_multiple,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 1,
        **precision.arguments(asked, DEVICE),
    }
    lora = LoraConfig(r=16, target_modules="all-linear") if weights == "lora" else None
    vocabulary = models.WordLevel({f"w{word}": word for word in range(WORDS)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), eos_token="w1", pad_token="w2")
    trainer = SFTTrainer(
        made,
        SFTConfig(output_dir=str(folder), **{**defaults, **options}),
        train_dataset=rows(),
        processing_class=tokenizer,
        callbacks=[audit],
        peft_config=lora,
    )
    trainer.train()
    return trainer, audit, conversion


def losses(trainer):
    return torch.tensor([log["loss"] for log in trainer.state.log_history if "loss" in log])


@pytest.fixture(scope="module")
def in_bf16(tmp_path_factory):
    """The loss curves of bf16: two of full training, which differ by the order of the rows alone, and one of LoRA."""
    folder = tmp_path_factory.mktemp("bf16")
    return {
        "full": losses(run(folder, "bf16", "full")[0]),
        "again": losses(run(folder, "bf16", "full", seed=2)[0]),
        "lora": losses(run(folder, "bf16", "lora")[0]),
    }


def test_a_run_is_fp8_learns_and_leaves_an_ordinary_model(fp8, weights, in_bf16, tmp_path):
    trainer, audit, conversion = run(tmp_path, fp8, weights)
    assert len(conversion.layers) == 7 * LAYERS
    assert set(conversion.skipped) == {"lm_head"}
    assert all(audit.matmuls[name] for name in conversion.layers)
    if fp8.recipe == "delayed":
        for layer in conversion.layers.values():
            state = layer.engine.fp8_meta["scaling_fwd"]
            assert state.amax_history.any()
            assert (state.scale[:2] != 1).all(), "scales of input and weight"

    curve, expected = losses(trainer), in_bf16[weights]
    noise = (in_bf16["full"] - in_bf16["again"]).abs().mean()
    assert (curve - expected).abs().mean() < max(0.02 * expected[0], 2 * noise)
    tail = STEPS // 10
    assert curve[-tail:].mean() == pytest.approx(float(expected[-tail:].mean()), abs=float(0.05 * expected[0]))
    assert curve[-tail:].mean() < (0.95 if weights == "full" else 1) * curve[:tail].mean()

    trained = trainer.model.merge_and_unload() if weights == "lora" else trainer.model
    trained.save_pretrained(tmp_path / "saved")
    code = f"""
import sys
sys.modules["torchao"] = sys.modules["transformer_engine"] = None
from transformers import AutoModelForCausalLM
print({{type(m).__name__ for m in AutoModelForCausalLM.from_pretrained({str(tmp_path / "saved")!r}).modules()}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not any(name in done.stdout for name in ("Float8Linear", "TELinear"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").to(DEVICE)
    ours, theirs = trained.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_layer_rounds_to_eight_bits(fp8):
    """Its output is near that of bf16, and further from it than bf16 is from fp32."""
    torch.manual_seed(0)
    exact = nn.Linear(256, 512, device=DEVICE)
    inputs = torch.randn(64, 256, device=DEVICE)
    parts = nn.ModuleDict({"layer": nn.Linear(256, 512, device=DEVICE)})
    parts.load_state_dict({f"layer.{name}": value for name, value in exact.state_dict().items()})
    float8.convert(parts, fp8)
    with torch.autocast(DEVICE, torch.bfloat16):
        results = {"fp8": parts["layer"](inputs), "bf16": exact(inputs)}
    truth = exact(inputs).detach()
    far = {name: float((result.detach().float() - truth).norm() / truth.norm()) for name, result in results.items()}
    assert far["bf16"] < 0.01
    assert 0.01 < far["fp8"] < 0.1


def test_checkpointing_changes_nothing(fp8, tmp_path):
    if fp8.recipe == "delayed":
        pytest.skip("refused")
    curves = [losses(run(tmp_path, fp8, "full", max_steps=5, gradient_checkpointing=on)[0]) for on in (True, False)]
    assert torch.allclose(*curves, atol=2e-3)


def test_frozen_weights_stay_and_ties_hold(fp8, tmp_path):
    before = {name: value.clone() for name, value in model().state_dict().items()}
    trainer, *_ = run(tmp_path, fp8, "lora", max_steps=3)
    base = trainer.model.unload()
    after = base.state_dict()
    assert base.lm_head.weight is base.model.embed_tokens.weight
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_compiled_steps(fp8, tmp_path):
    options = {"max_steps": 4, "torch_compile": True, "torch_compile_backend": "eager" if DRY else "inductor"}
    compiled = losses(run(tmp_path, fp8, "full", **options)[0])
    eager = losses(run(tmp_path, fp8, "full", max_steps=4)[0])
    assert torch.allclose(compiled, eager, atol=0.02)


def test_batches_need_no_padding(fp8, tmp_path):
    curve = losses(run(tmp_path, fp8, "full", max_steps=3, pad_to_multiple_of=None)[0])
    assert torch.isfinite(curve).all()


def test_fp8_that_is_switched_off_stops_the_run(fp8, tmp_path, monkeypatch):
    monkeypatch.setattr(float8.TELinear, "forward", nn.Linear.forward)
    if fp8.backend == "torchao":
        from torchao.float8.float8_linear import Float8Linear

        monkeypatch.setattr(Float8Linear, "forward", nn.Linear.forward)
    with pytest.raises(PrecisionNotUsed, match="did not multiply in it"):
        run(tmp_path, fp8, "full", max_steps=2)


@pytest.mark.skipif(DRY, reason="times steps")
def test_the_benchmark_runs(tmp_path):
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "fp8.py"
    options = "--shapes tiny --lengths 512 --steps 3 --rounds 1 --compiled no".split()
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, check=True)
    assert "torchao" in done.stdout
    assert "failed" not in done.stdout
