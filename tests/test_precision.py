"""Precisions: what a conversion changes and what it must not, and that no run passes for FP8 that is not.

FP8 itself is emulated by torchao, on the CPU. Transformer Engine needs a GPU to be imported; here `Engine` stands in for
its `Linear`: it is built and called alike and takes no batch that the real one would refuse. `tests/gpu` has the rest.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
torch = pytest.importorskip("torch")
pytest.importorskip("trl")
pytest.importorskip("torchao")

import datasets  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as some  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import nn  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from datakit.errors import UsageError  # noqa: E402
from tests import bco_reference  # noqa: E402
from trainglue import precision  # noqa: E402
from trainglue.precision import Conversion, Fp8, PrecisionNotUsed, float8, preparing  # noqa: E402  # noqa: E402
from trainglue.precision.audit import Audit, gradients_reach  # noqa: E402

torch.set_num_threads(1)  # more only wait for each other on models this small

pytestmark = pytest.mark.filterwarnings("default", "ignore:FP8 is emulated")


class Engine(nn.Module):
    """Stands in for `transformer_engine.pytorch.Linear`."""

    inside = False
    broken = False

    def __init__(self, in_features, out_features, bias, params_dtype, device):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=params_dtype, device=device)) if bias else None
        self.fp8_meta, self.quantizers, self.fp8 = {}, {}, False

    def forward(self, rows):
        assert rows.dim() == 2
        assert len(rows) % 16 == 0
        self.fp8 = Engine.inside and not Engine.broken
        self.quantizers = {"scaling_fwd": ["input", "weight"]} if self.fp8 else {}
        return nn.functional.linear(rows, self.weight, self.bias)

    @classmethod
    @contextmanager
    def region(cls):
        cls.inside = True
        try:
            yield
        finally:
            cls.inside = False


def te(linear):
    return float8.TELinear(linear, Engine, Engine.region, 16)


def emulated(linear):
    return float8._torchao(Fp8(emulate=True))(linear)


MAKES = pytest.mark.parametrize("make", [emulated, te], ids=["torchao", "te"])
TORCHAO = Fp8(emulate=True)


def llama(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=97, **{**sizes, "eos_token_id": 1, "pad_token_id": 2, **options}))


def convert(model, make=emulated, fp8=TORCHAO):
    return float8.convert(model, fp8, make=make)


# ---------------------------------------------------------------- what a conversion leaves as it is


class Parts(nn.Module):
    """Layers of all sorts, side by side."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.odd = nn.Linear(32, 10)
        self.after = nn.Linear(32, 48, bias=False)
        self.twin = nn.Linear(32, 48, bias=False)
        self.twin.weight = self.after.weight
        self.again = self.first
        self.gate = nn.Linear(32, 32)
        self.embedding = nn.Embedding(64, 32)
        self.lm_head = nn.Linear(32, 64, bias=False)
        self.lm_head.weight = self.embedding.weight
        self.eight_bits = nn.Linear(32, 32)
        self.eight_bits.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
        self.own = type("Own", (nn.Linear,), {})(32, 32)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(32, 16)})
        self.frozen = nn.Linear(16, 32)
        self.frozen.requires_grad_(False)


@MAKES
def test_layers_that_can_are_converted_and_the_others_are_named(make):
    model = Parts()
    made = convert(model, make)
    assert set(made.layers) == {"first", "after", "twin", "again", "frozen"}
    assert dict(made.skipped) == {
        "odd": "size 10 is not a multiple of 16",
        "gate": "router: its choices are sensitive to rounding",
        "lm_head": "output head",
        "eight_bits": "weights stored as int8",
        "own": "is a Own",
        "lora_A.default": "adapter: too thin to gain",
    }
    assert made.pad_multiple == 16
    text = made.describe()
    assert "5 linear layers converted, 6 left alone" in text
    assert "odd: size 10" in text
    assert all(
        float8.is_fp8(model.get_submodule(name)) == (name in made.layers) for name in [*made.layers, *made.skipped]
    )


@MAKES
def test_parameters_stay_the_same_objects(make):
    model = Parts()
    before = dict(model.named_parameters(remove_duplicate=False))
    trained = {name for name, parameter in before.items() if parameter.requires_grad}
    state = torch.get_rng_state()
    convert(model, make)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert trained == {name for name, parameter in after.items() if parameter.requires_grad}
    assert model.twin.weight is model.after.weight
    assert model.lm_head.weight is model.embedding.weight
    assert model.again is model.first
    assert torch.equal(state, torch.get_rng_state()), "a conversion draws no random numbers"


@MAKES
def test_a_checkpoint_is_plain_and_equal(make, tmp_path):
    model = llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "before")
    convert(model, make)
    model.train()(torch.arange(20)[None])  # leaves state behind in the engine
    model.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (tmp_path / "before/config.json").read_bytes() == (tmp_path / "after/config.json").read_bytes()
    code = f"""
import sys
sys.modules["torchao"] = sys.modules["transformer_engine"] = None
from transformers import LlamaForCausalLM
model = LlamaForCausalLM.from_pretrained({str(tmp_path / "after")!r})
print({{type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'Linear'}"


@MAKES
def test_adapters_go_on_top_and_merge(make, tmp_path):
    def adapted(model):
        torch.manual_seed(1)
        made = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))
        return made, made.merge_and_unload if make else None

    plain, merge_plain = adapted(llama())
    model = llama()
    made = convert(model, make)
    peft, merge = adapted(model)
    assert [n for n, p in plain.named_parameters() if p.requires_grad] == [
        n for n, p in peft.named_parameters() if p.requires_grad
    ]
    assert all(".lora_" in name for name, p in peft.named_parameters() if p.requires_grad)
    peft.train()(torch.arange(20)[None]).logits.square().mean().backward()
    assert all(p.grad is None for name, p in peft.named_parameters() if ".lora_" not in name)
    merged, expected = merge(), merge_plain()
    ours, theirs = merged.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(made.layers) == 14


def test_a_model_with_adapters_already_is_converted_below_them():
    model = get_peft_model(llama(), LoraConfig(r=16, target_modules=["q_proj"]))
    made = convert(model)
    assert len(made.layers) == 14
    assert sum("lora_" in name for name in made.skipped) == 4


# ---------------------------------------------------------------- a layer of Transformer Engine


@settings(max_examples=30, deadline=None)
@given(
    shape=some.lists(some.integers(1, 9), min_size=1, max_size=3),
    bias=some.booleans(),
    training=some.booleans(),
)
def test_te_layers_compute_what_linear_layers_do(shape, bias, training):
    torch.manual_seed(0)
    linear = nn.Linear(16, 32, bias=bias)
    layer = te(linear).train(training)
    inputs = torch.randn(*shape, 16)
    results = []
    for module in (linear, layer):
        own = inputs.clone().requires_grad_()
        output = module(own)
        output.square().sum().backward()
        results.append((output.detach(), own.grad, linear.weight.grad))
        linear.zero_grad(set_to_none=True)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # sums of hundreds of rows, in another order
    assert layer.scaled == training


def test_te_layers_follow_their_parameters():
    layer = te(nn.Linear(16, 16))
    rows = torch.randn(16, 16)
    layer.weight = nn.Parameter(torch.zeros(16, 16))  # as a trainer may do, to spread or to load a model
    torch.testing.assert_close(layer(rows), layer.bias.expand(16, 16))
    double = layer.double()
    assert double(rows.double()).dtype == torch.float64
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.fill_(1.0)
    assert not layer.weight.any()
    assert other(rows.double()).sum() != layer(rows.double()).sum()


def test_delayed_scaling_has_one_region_per_forward_pass():
    depth = []

    @contextmanager
    def region():
        depth.append("in")
        yield
        depth.append("out")

    model = llama()
    float8._advance_once(model, region)
    model.train()
    model(torch.arange(4)[None])
    model(torch.arange(4)[None])
    assert depth == ["in", "out"] * 2
    model.eval()(torch.arange(4)[None])
    assert len(depth) == 4
    model.train()
    with pytest.raises(IndexError):
        model(torch.tensor([[1000]]))
    assert depth[4:] == ["in", "out"], "a failed forward pass closes it too"


# ---------------------------------------------------------------- runs


def sft(model, folder, conversion, batches=None, **options):
    source = bco_reference.rows()[: batches and batches * bco_reference.BATCH]
    rows = [{"input_ids": row["prompt_ids"] + row["completion_ids"]} for row in source]
    dataset = datasets.Dataset.from_list([{**row, "labels": row["input_ids"]} for row in rows])
    defaults = {
        **{name: value for name, value in bco_reference.OPTIONS.items() if name not in ("beta", "max_length")},
        **precision.arguments(conversion.precision, "cpu"),
        "max_steps": 2,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    peft_config = options.pop("peft_config", None)
    audit = Audit(conversion)
    trainer = SFTTrainer(
        model,
        SFTConfig(output_dir=str(folder), **{**defaults, **options}),
        train_dataset=dataset,
        processing_class=bco_reference.tokenizer(),
        callbacks=[audit],
        peft_config=peft_config,
    )
    return trainer, audit


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_fp8_learns_as_bf16_does(lora, tmp_path):
    curves = {}
    for name, asked in (("bf16", "bf16"), ("fp8", Fp8(emulate=True))):
        model = llama()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        made = precision.prepare(model, asked)
        peft_config = LoraConfig(r=16, target_modules="all-linear", init_lora_weights=True) if lora else None
        torch.manual_seed(2)
        trainer, audit = sft(
            model, tmp_path, made, peft_config=peft_config, max_steps=12, learning_rate=1e-2, batches=1
        )
        trainer.train()
        curves[name] = losses(trainer)
        base = {
            key.replace("base_model.model.", "").replace(".base_layer", ""): v
            for key, v in trainer.model.state_dict().items()
        }
        moved = [key for key, value in before.items() if not torch.equal(value, base[key])]
        assert len(moved) == (0 if lora else len(before))
    assert len(audit.matmuls) == 14
    assert all(audit.matmuls.values())
    assert curves["fp8"] != curves["bf16"]
    assert curves["fp8"] == pytest.approx(curves["bf16"], abs=0.1)
    assert curves["fp8"][-1] < curves["fp8"][0] - 0.4


def test_a_run_of_te_layers_passes_where_they_have_scales(tmp_path):
    model = llama()
    made = convert(model, te, Fp8("te"))
    trainer, audit = sft(model, tmp_path, made)
    trainer.train()
    assert set(audit.matmuls) == set(made.layers)
    assert len(losses(trainer)) == 2


def test_the_first_step_is_looked_at_without_compilation(tmp_path):
    model = llama(num_hidden_layers=1)
    made = convert(model)
    options = {"torch_compile": True, "torch_compile_backend": "eager", "gradient_checkpointing": False}
    trainer, audit = sft(model, tmp_path, made, **options)
    trainer.train()
    assert len(losses(trainer)) == 2
    assert set(audit.matmuls) == set(made.layers)
    assert "forward" not in {name for module in model.modules() for name in vars(module) if module is not model}


# ---------------------------------------------------------------- runs that are stopped


def stopped(model, folder, made, match, **options):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer, _ = sft(model, folder, made, **options)
    with pytest.raises((PrecisionNotUsed, UsageError), match=match) as caught:
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    return caught.value


@MAKES
def test_kernels_that_pass_a_layer_by(make, tmp_path):
    """As fused kernels do that multiply `layer.weight` themselves."""
    model = llama()
    made = convert(model, make)
    mlp = model.model.layers[1].mlp

    def fused(inputs):
        gate, up = (nn.functional.linear(inputs, layer.weight) for layer in (mlp.gate_proj, mlp.up_proj))
        return nn.functional.linear(nn.functional.silu(gate) * up, mlp.down_proj.weight)

    mlp.forward = fused
    error = stopped(model, tmp_path, made, "3 of 14 converted layers did not multiply in it")
    assert "layers.1.mlp.down_proj" in error.message
    assert error.exit_code == 3


def test_a_layer_that_computes_in_another_precision(tmp_path):
    model = llama()
    made = convert(model)
    layer = model.model.layers[0].self_attn.q_proj
    layer.forward = lambda inputs: nn.functional.linear(inputs, layer.weight)
    stopped(model, tmp_path, made, "1 of 14 converted layers did not")


def test_an_engine_that_was_switched_off(tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "broken", True)
    model = llama()
    stopped(model, tmp_path, convert(model, te, Fp8("te")), "14 of 14 converted layers did not")


def test_a_trainer_with_another_model(tmp_path):
    made = convert(llama())
    stopped(llama(), tmp_path, made, "14 converted layers are not in the trainer's model")


def test_delayed_scaling_with_gradient_checkpointing(tmp_path):
    model = llama()
    made = convert(model, te, Fp8("te", "delayed"))
    stopped(model, tmp_path, made, "delayed scaling counts a layer twice", gradient_checkpointing=True)


def test_gradients_that_reach_no_decoder_layer(tmp_path):
    """As with reentrant checkpointing of a model with frozen embeddings: the head alone learns, and the loss falls."""
    model = llama(tie_word_embeddings=False)
    made = convert(model)
    model.model.forward = torch.no_grad()(model.model.forward)
    stopped(model, tmp_path, made, "no gradient reaches 2 of 2 decoder layers")


def test_gradients_are_looked_at_when_there_are_some():
    model = llama()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert not gradients_reach(model), "all alike rewards say nothing"
    model.model.layers[0].mlp.up_proj.weight.grad.fill_(1.0)
    with pytest.raises(PrecisionNotUsed, match=r"no gradient reaches 1 of 2 decoder layers, such as model.layers.1"):
        gradients_reach(model)
    model.model.layers[1].input_layernorm.weight.grad.fill_(float("nan"))
    with pytest.raises(PrecisionNotUsed, match="not finite"):
        gradients_reach(model)
    model.model.layers[1].input_layernorm.weight.grad.fill_(1.0)
    assert gradients_reach(model)


def test_other_precisions_are_not_audited(tmp_path):
    model = llama()
    made = precision.prepare(model, "bf16")
    assert made == Conversion("bf16")
    assert (made.pad_multiple, made.describe()) == (None, "bf16")
    trainer, audit = sft(model, tmp_path, made)
    trainer.train()
    assert not audit.matmuls


# ---------------------------------------------------------------- what is asked for


def test_emulation_is_said_aloud():
    with pytest.warns(UserWarning, match="FP8 is emulated"):
        precision.prepare(llama(), Fp8(emulate=True))


@pytest.mark.parametrize("backend", ["torchao", "te"])
def test_without_a_gpu_nothing_is_converted(backend):
    model = llama()
    with pytest.raises(UsageError, match="needs an NVIDIA GPU|is not installed"):
        precision.prepare(model, Fp8(backend))
    assert not any(float8.is_fp8(module) for module in model.modules())
    assert not precision.check_fp8_training_support(backend)


@pytest.mark.parametrize(
    ("capability", "recipe", "reason"),
    [
        ((8, 0), "tensorwise", "needs compute capability 9.0 and this GPU has 8.0"),
        ((8, 9), "tensorwise", "tensorwise scaling with gradient checkpointing is reported to give NaN"),
        ((9, 0), "tensorwise", ""),
        ((9, 0), "rowwise", ""),
        ((12, 0), "tensorwise", ""),
    ],
)
def test_what_a_gpu_can_do(capability, recipe, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = float8.unsupported(Fp8(recipe=recipe))
    assert reason in found
    assert bool(found) == bool(reason)


def test_mxfp8_needs_blackwell(monkeypatch):
    monkeypatch.setitem(float8.MODULE_OF, "te", "torch")  # stands for an installed one
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert "needs compute capability 10.0" in float8.unsupported(Fp8("te", "mxfp8"))
    assert float8.unsupported(Fp8("te", "current")) == ""
    assert Fp8("te", "mxfp8").block == 32


def test_no_layer_to_convert():
    with pytest.raises(PrecisionNotUsed, match="no layer of the model can compute in it") as caught:
        convert(llama(hidden_size=24, intermediate_size=40, num_attention_heads=2))
    assert "size 24 is not a multiple of 16" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "msamp"},
        {"recipe": "delayed"},
        {"backend": "te", "recipe": "tensorwise"},
        {"backend": "te", "fp8_format": "E5M2"},
        {"backend": "torchao", "fp8_format": "HYBRID"},
        {"backend": "te", "recipe": "current", "amax_history_len": 16},
        {"backend": "te", "recipe": "delayed", "amax_history_len": 0},
        {"backend": "te", "recipe": "delayed", "amax_compute_algo": "least"},
        {"backend": "te", "emulate": True},
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(options):
    with pytest.raises(UsageError):
        Fp8(**options)


def test_recipes_of_torchao_are_its_own():
    from torchao.float8.config import ScalingGranularity

    for recipe, granularity in (
        ("tensorwise", "TENSORWISE"),
        ("rowwise", "AXISWISE"),
        ("rowwise_with_gw_hp", "AXISWISE"),
    ):
        config = float8.torchao_config(Fp8(recipe=recipe, emulate=True))
        assert config.cast_config_input.scaling_granularity is ScalingGranularity[granularity]
        assert config.pad_inner_dim
        assert config.emulate
        assert not config.enable_fsdp_float8_all_gather


def test_arguments():
    assert precision.arguments("fp32", "cpu") == {"bf16": False, "fp16": False, "use_cpu": True}
    assert precision.arguments("fp16") == {"bf16": False, "fp16": True, "use_cpu": False}
    for name in ("bf16", "fp8", "qlora", "fp8_weights", Fp8()):
        assert precision.arguments(name) == {"bf16": True, "fp16": False, "use_cpu": False}
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        precision.arguments("fp16", "cpu")
    with pytest.raises(UsageError, match="no precision 'int8'"):
        precision.arguments("int8")


def test_qlora_needs_four_bit_layers_and_excludes_fp8(tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    assert bitsandbytes
    with pytest.raises(PrecisionNotUsed, match="no 4-bit layer"):
        precision.prepare(llama(), "qlora")
    llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    assert precision.prepare(model, "qlora") == Conversion("qlora")
    with pytest.raises(UsageError, match="exclude each other"):
        precision.prepare(model, Fp8(emulate=True))


def test_unsloth_does_what_it_has(monkeypatch):
    assert precision.unsloth("qlora", lora=True) == {"load_in_4bit": True}
    assert precision.unsloth("bf16", lora=True) == {"load_in_4bit": False}
    assert precision.unsloth("fp8_weights", lora=True) == {"load_in_fp8": True}
    with pytest.raises(UsageError, match="train with LoRA only"):
        precision.unsloth("fp8_weights", lora=False)
    with pytest.raises(UsageError, match="no LoRA in fp8"):
        precision.unsloth("fp8", lora=True)
    with pytest.raises(UsageError, match="no Transformer Engine"):
        precision.unsloth(Fp8("te"), lora=False)
    with pytest.raises(UsageError, match="needs an NVIDIA GPU"):
        precision.unsloth("fp8", lora=False)
    made = precision.unsloth(TORCHAO, lora=False)
    assert made["full_finetuning"]
    assert type(made["float8_training"]).__name__ == "Float8LinearConfig"


def test_weights_stored_in_fp8_must_be_there():
    model = llama()
    with pytest.raises(PrecisionNotUsed, match="no weight of the model is stored in FP8"):
        precision.prepare(model, "fp8_weights")
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert precision.prepare(model, "fp8_weights") == Conversion("fp8_weights")


def test_a_conversion_is_made_once():
    model = llama()
    first = convert(model)
    again = precision.prepare(model, TORCHAO)  # as with Unsloth, which converts by itself
    assert again.layers == first.layers
    assert dict(again.skipped) == {"lm_head": "left alone by who converted it"}


# ---------------------------------------------------------------- the names of the guide


@pytest.fixture
def able(monkeypatch):
    """A machine that can run everything."""
    monkeypatch.setattr(float8, "unsupported", lambda fp8: "")
    yield
    preparing._pending.clear()


def test_setup_asks_for_the_next_run_and_touches_no_environment(able):
    before = dict(os.environ)
    asked = precision.setup_fp8_mixed_precision_training(backend="TE")
    assert asked == Fp8("te", "delayed", "HYBRID", 32, "max")
    assert dict(os.environ) == before
    assert precision.settle(None) == asked
    assert precision.settle(None) == "bf16", "it is used up"
    precision.setup_fp8_mixed_precision_training()
    assert precision.settle("fp8") == asked
    precision.setup_fp8_mixed_precision_training()
    with pytest.raises(UsageError, match="asked for fp8 .te, delayed., and precision is bf16"):
        precision.settle("bf16")
    assert precision.check_fp8_training_support()


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"fp8_format": "E4M3"}, Fp8("te", "delayed", "E4M3", 32, "max")),
        (
            {"amax_history_len": 16, "amax_compute_algo": "most_recent"},
            Fp8("te", "delayed", "HYBRID", 16, "most_recent"),
        ),
        ({"recipe": "current"}, Fp8("te", "current", "HYBRID")),
        ({"backend": "torchao"}, Fp8("torchao", "tensorwise")),
    ],
)
def test_setup_settles_what_was_asked(options, asked, able):
    assert precision.setup_fp8_mixed_precision_training(**options) == asked


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "msamp"},
        {"fp8_format": "E5M2"},
        {"recipe": "current", "amax_history_len": 16},
        {"backend": "torchao", "amax_compute_algo": "max"},
        {"backend": "torchao", "fp8_format": "E4M3"},
    ],
    ids=str,
)
def test_setup_refuses_what_does_not_exist(options, able):
    with pytest.raises(UsageError):
        precision.setup_fp8_mixed_precision_training(**options)
    assert precision.settle(None) == "bf16"


def test_setup_refuses_a_machine_that_cannot():
    with pytest.raises(UsageError, match="not installed|needs an NVIDIA GPU"):
        precision.setup_fp8_mixed_precision_training()
    assert precision.settle(None) == "bf16"


def test_names_and_settings_load_no_torch():
    code = "import sys, trainglue.precision as p; p.Fp8(); p.arguments('fp8'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
