"""Model, tokenizer and reference of a run: what must agree, what is said, and 4 bits that stay trainable."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

pytest.importorskip("trl")
pytest.importorskip("torch")
import datasets
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

import datakit
import trainglue
from datakit.errors import UsageError
from datakit.tokens.compare import mismatch
from datakit.tokens.load import load
from tests.small_tokenizers import chatml, llama
from tests.tiny_models import QUIET
from trainglue import models, trainer
from trainglue.options import presets

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("tiny")]

STEPS = {**QUIET, "max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0, "use_cpu": True}


def losses(made):
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


# ---------------------------------------------------------------- the reference


@pytest.fixture(scope="module")
def other(tiny):
    """Another model with the same tokenizer."""
    folder = tiny.root / "other"
    shutil.copytree(tiny.model, folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["dpo", "kto", "bco"])
@pytest.mark.parametrize("lora", [None, 4])
def test_a_reference_by_path_is_compared_with(method, lora, tiny, other, tmp_path):
    def begun(**options):
        made = trainer(
            method,
            model=tiny.model,
            data=tiny.formatted(method),
            output_dir=tmp_path / "run",
            lora=lora,
            **{**STEPS, "max_steps": 1, "overwrite": True, **options},
        )
        made.train()
        return made

    given = begun(ref_model=other)
    reference = given.ref_model
    assert torch.equal(reference.lm_head.weight, LlamaForCausalLM.from_pretrained(other).lm_head.weight)
    assert not reference.training
    assert not any(weight.requires_grad for weight in reference.parameters())
    assert losses(given) == pytest.approx(losses(begun(ref_model=LlamaForCausalLM.from_pretrained(other))))
    assert abs(losses(given)[0] - losses(begun())[0]) > 1e-3


def test_a_reference_that_is_not_there_or_not_alike(tiny, tmp_path):
    options = {"model": tiny.model, "data": tiny.formatted("dpo"), "output_dir": tmp_path / "run", **STEPS}
    with pytest.raises(UsageError, match="missing cannot be loaded"):
        trainer("dpo", **options, ref_model=tmp_path / "missing")
    with pytest.raises(UsageError, match="other ids than the tokenizer of"):
        trainer("dpo", **options, ref_model=llama(tmp_path / "llama"))
    with pytest.raises(UsageError, match="ref_model is not for orpo"):
        trainer("orpo", **options, ref_model=tiny.model)


# ---------------------------------------------------------------- the tokenizer


def test_a_tokenizer_that_gives_other_ids_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    foreign = llama(tmp_path / "foreign")
    with pytest.raises(UsageError, match="other ids than the tokenizer of") as caught:
        trainer(
            "sft",
            model=tiny.model,
            tokenizer=foreign,
            data=tiny.canonical("sft"),
            output_dir=tmp_path / "run",
            **STEPS,
        )
    assert str(foreign) in caught.value.message


def test_what_differs_in_tokenizers_is_said(tiny, tmp_path):
    def said(folder, model=tiny.model):
        return models.check_tokenizer(load(str(folder)), model)

    assert said(tiny.model) == said(chatml(tmp_path / "same")) == []
    more = Tokenizer.from_file(f"{tiny.model}/tokenizer.json")
    more.add_special_tokens(["<|tool|>"])
    more.save(str(chatml(tmp_path / "more") / "tokenizer.json"))
    assert f"1 token that {tiny.model} lacks" in said(tmp_path / "more")[0]
    assert "<|tool|>" in said(tmp_path / "more")[0]
    file = chatml(tmp_path / "normal") / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "NFC"}}))
    assert "have the same tokens, but read" in said(tmp_path / "normal")[0]
    in_memory = LlamaForCausalLM.from_pretrained(tiny.model)
    assert "other ids than" in said(llama(tmp_path / "llama"), in_memory)[0]
    in_memory.config._name_or_path = ""
    assert said(tmp_path / "llama", in_memory) == []


def again(folder, tokenizer, **parts):
    """A tokenizer with another text that means the same, but for these parts."""
    shutil.copytree(tokenizer, folder)
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text()) | {"decoder": None} | parts
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    file.write_text(json.dumps(document))
    return folder


def test_shards_of_a_tokenizer_that_was_saved_again_are_taken(tiny, tmp_path):
    same = again(tmp_path / "same", tiny.model)
    assert load(str(same)).sha256 != load(tiny.model).sha256
    assert mismatch(load(str(same)), load(tiny.model)) is None
    trainer("sft", model=same, data=tiny.formatted("sft"), output_dir=tmp_path / "run", **STEPS)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"normalizer": {"type": "NFC"}}, "read"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}}, "read"),
        ({"added_tokens": []}, "read"),
        ({"model": "merges"}, "other rules"),
    ],
)
def test_shards_of_another_tokenizer_are_refused_with_what_differs(parts, said, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    if "model" in parts:
        model = json.loads(Path(tiny.model, "tokenizer.json").read_text())["model"]
        parts = {"model": model | {"merges": model["merges"][::-1]}}
    other = again(tmp_path / "a model", tiny.model, **parts)
    options = {"data": tiny.formatted("sft"), "output_dir": tmp_path / "run", **STEPS}
    with pytest.raises(UsageError, match=said) as caught:
        trainer("sft", model=other, **options)
    assert f"--tokenizer '{other}'" in caught.value.hint
    with pytest.raises(UsageError, match="reads|lacks|read|rules"):
        trainer("sft", model=tiny.model, tokenizer=other, **options)


def test_shards_of_a_tokenizer_that_is_gone_are_not_compared(tiny, tmp_path):
    gone, same = chatml(tmp_path / "gone"), again(tmp_path / "same", tiny.model)
    ready = tmp_path / "ready"
    datakit.format(tiny.canonical("sft"), ready, tokenizer=gone, method="sft", workers=1).raise_for_status()
    gone.rename(tmp_path / "moved")
    options = {"model": same, "data": ready, "output_dir": tmp_path / "run", **STEPS}
    with pytest.raises(UsageError, match="cannot be compared") as caught:
        trainer("sft", **options)
    assert "--tokenizer" in caught.value.hint
    trainer("sft", **options, tokenizer=tmp_path / "moved")


def test_a_folder_may_have_an_at_sign(tiny, tmp_path):
    shutil.copytree(tiny.model, tmp_path / "a@b")
    trainer("sft", model=tmp_path / "a@b", data=tiny.formatted("sft"), output_dir=tmp_path / "run", **STEPS)


def test_the_pad_token_is_said_where_none_is_named(tiny, tmp_path, capsys):
    shutil.copytree(tiny.model, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "pad_token"})
    )
    made = trainer("sft", model=tmp_path / "model", data=tiny.canonical("sft"), output_dir=tmp_path / "run", **STEPS)
    assert "padding with <|endoftext|>: no pad token is named" in capsys.readouterr().err
    assert made.processing_class.pad_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (None, None),
        ("{% for m in messages %}{{ m.content }}<|im_end|>\n<|endoftext|>{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}<|im_start|>{{ m.content }}\n<|endoftext|>{% endfor %}", "<|endoftext|>"),
        ("{% for m in messages %}<|im_start|>{{ m.content }}\n{% endfor %}", None),
        ("<|im_start|>nothing of it<|im_end|>", None),
        ("{{ raise_exception('a system message must come first') }}", None),
    ],
)
def test_the_token_that_ends_a_turn(template, end, tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    tokenizer.chat_template = template
    assert models.end_of_turn(tokenizer) == (None if end is None else tokenizer.convert_tokens_to_ids(end))


# ---------------------------------------------------------------- what is loaded


def test_a_dtype_is_a_word_or_one_of_torch(tiny, tmp_path):
    options = {"model": tiny.model, "data": tiny.formatted("sft"), "output_dir": tmp_path / "run", **STEPS}
    made = trainer("sft", **options, dtype=torch.bfloat16)
    assert {weight.dtype for weight in made.model.parameters()} == {torch.bfloat16}
    for dtype in ("nn", "float33", 16):
        with pytest.raises(UsageError, match="dtype"):
            trainer("sft", **options, overwrite=True, dtype=dtype)


def test_a_word_that_no_model_takes(tiny, tmp_path):
    options = {"model": tiny.model, "data": tiny.formatted("sft"), "output_dir": tmp_path / "run", **STEPS}
    with pytest.raises(UsageError, match="attn_implementatoin") as caught:
        trainer("sft", **options, model_init_kwargs={"attn_implementatoin": "sdpa"})
    assert "model_init_kwargs" in caught.value.hint


def test_a_model_that_memory_does_not_hold(tiny, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(LlamaForCausalLM, "__init__", full)
    with pytest.raises(trainglue.OutOfMemory) as caught:
        trainer("sft", model=tiny.model, data=tiny.formatted("sft"), output_dir=tmp_path / "run", **STEPS)
    assert "lora = 16" in caught.value.hint


# ---------------------------------------------------------------- adapters and 4 bits


@pytest.fixture(scope="module")
def adapted(tiny):
    """A run that has trained an adapter."""
    folder = tiny.root / "an adapter"
    made = trainer("sft", model=tiny.model, data=tiny.formatted("sft"), output_dir=folder, lora=4, **STEPS)
    made.train()
    made.save_model()
    return folder


def adapters(model, name):
    """The weights of one adapter of a model."""
    found = get_peft_model_state_dict(model, adapter_name=name)
    return {key: weight.detach().clone() for key, weight in found.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo", "cpo", "kto", "bco"])
def test_an_adapter_goes_on_being_trained(method, tiny, adapted, tmp_path, capsys):
    made = trainer(method, model=adapted, data=tiny.formatted(method), output_dir=tmp_path / "run", **STEPS)
    learnt = load_file(adapted / "adapter_model.safetensors")
    assert any(weight.any() for key, weight in learnt.items() if "lora_B" in key)
    assert same(adapters(made.model, "default"), learnt)
    assert f"the adapter of {adapted} is trained on" in capsys.readouterr().err
    made.train()
    assert not same(adapters(made.model, "default"), learnt)
    if method in ("dpo", "kto", "bco"):
        assert made.ref_model is None
        assert same(adapters(made.model, "ref"), learnt)
    if method == "dpo":
        assert losses(made)[0] == pytest.approx(math.log(2))
    made.save_model()
    assert same(load_file(tmp_path / "run" / "adapter_model.safetensors"), adapters(made.model, "default"))


def test_a_run_over_an_adapter_is_resumed_with_its_reference(tiny, adapted, tmp_path):
    def run(folder, **options):
        given = {**STEPS, "save_strategy": "steps", "save_steps": 2, "max_steps": 4, **options}
        return trainer("dpo", model=adapted, data=tiny.formatted("dpo"), output_dir=folder, **given)

    whole = run(tmp_path / "run")
    whole.train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"status": "running", "step": 2}))
    resumed = run(tmp_path / "run", resume=True)
    resumed.train()
    assert losses(resumed) == pytest.approx(losses(whole))
    assert same(adapters(resumed.model, "ref"), load_file(adapted / "adapter_model.safetensors"))


@pytest.mark.parametrize("modules", ["q_proj", ["q_proj"]])
def test_one_module_is_meant_by_its_name(modules, tiny, tmp_path):
    lora = {"r": 2, "target_modules": modules}
    made = trainer("sft", model=tiny.model, data=tiny.formatted("sft"), output_dir=tmp_path / "run", lora=lora, **STEPS)
    trained = [name for name, weight in made.model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("q_proj" in name for name in trained)


def test_fields_of_lora_have_their_types(tiny, tmp_path):
    for lora in ({"lora_alpha": "x"}, {"lora_dropout": [1]}):
        with pytest.raises(UsageError, match=f"lora {next(iter(lora))}"):
            trainer(
                "sft", model="unread", data=tiny.formatted("sft"), tokenizer=tiny.model, output_dir="run", lora=lora
            )


def test_a_run_does_not_go_on_from_another_adapter(tiny, adapted, tmp_path):
    def run(model, **options):
        given = {**STEPS, "save_strategy": "steps", "save_steps": 1, "max_steps": 2, "eval_share": 0, **options}
        return trainer("sft", model=model, data=tiny.formatted("sft"), output_dir=tmp_path / "run", **given)

    run(adapted, max_steps=1).train()
    other = shutil.copytree(adapted, tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    save_file({key: weight + 1 for key, weight in weights.items()}, other / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=f"begun with model {adapted}, now {other}"):
        run(other, resume=True)
    run(adapted, resume=True).train()


def test_adapters_have_their_learning_rate_and_their_precisions(tiny, adapted, tmp_path):
    pytest.importorskip("bitsandbytes")
    steps = {name: value for name, value in STEPS.items() if name != "learning_rate"}
    options = {"model": adapted, "data": tiny.formatted("sft"), "output_dir": tmp_path / "run", **steps}
    made = trainer("sft", **options, precision="qlora")
    assert made.args.learning_rate == presets("sft", lora=True)["learning_rate"]
    assert made.model.get_base_model().is_loaded_in_4bit
    made.train()


def test_a_second_adapter_another_head_and_frozen_weights_are_refused(tiny, adapted, tmp_path):
    options = {"output_dir": tmp_path / "run", **STEPS}
    with pytest.raises(UsageError, match="has an adapter, and lora asks for another one") as caught:
        trainer("dpo", model=adapted, data=tiny.formatted("dpo"), lora=4, **options)
    assert f"trainglue export '{adapted}' -o merged/" in caught.value.hint
    with pytest.raises(UsageError, match="an adapter for CAUSAL_LM; reward trains one for SEQ_CLS"):
        trainer("reward", model=adapted, data=tiny.formatted("reward"), **options)
    frozen = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny.model), adapted)
    with pytest.raises(UsageError, match="no weight of the model is trainable"):
        trainer("sft", model=frozen, tokenizer=tiny.model, data=tiny.formatted("sft"), **options)


def test_fields_that_adapters_do_not_have():
    models.check_lora(None)
    models.check_lora(8)
    models.check_lora({"r": 8, "lora_alpha": 16})
    with pytest.raises(UsageError, match="lora has no lora_alfa") as caught:
        models.check_lora({"r": 8, "lora_alfa": 16})
    assert "lora_alpha" in caught.value.hint


def test_evaluation_leaves_four_bits_trainable(tiny, tmp_path):
    pytest.importorskip("bitsandbytes")

    def trained(name, **options):
        made = trainer(
            "sft",
            model=tiny.model,
            data=tiny.formatted("sft"),
            eval_data=tiny.formatted("sft"),
            output_dir=tmp_path / name,
            lora=4,
            precision="qlora",
            **{**STEPS, "max_steps": 4, **options},
        )
        made.train()
        return losses(made)

    assert trained("evaluated", eval_strategy="steps", eval_steps=1) == trained("plain", eval_strategy="no")


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_below_four_bits_nothing_is_kept_in_fp32_and_only_adapters_train(method, tiny, tmp_path):
    """Embeddings, norms and head take half of what they would in fp32, and gradient checkpointing changes nothing."""
    pytest.importorskip("bitsandbytes")
    curves = []
    for checkpointing in (False, True):
        made = trainer(
            method,
            model=tiny.model_for(method),
            data=tiny.formatted(method),
            output_dir=tmp_path / str(checkpointing),
            lora=4,
            precision="qlora",
            **{**STEPS, "gradient_checkpointing": checkpointing},
        )
        before = {name: weight.detach().clone() for name, weight in made.model.named_parameters()}
        trained = {name for name, weight in made.model.named_parameters() if weight.requires_grad}
        assert all("lora_" in name or "score" in name for name in trained)
        assert torch.float32 not in {weight.dtype for name, weight in before.items() if name not in trained}
        made.train()
        moved = {name for name, weight in made.model.named_parameters() if not torch.equal(weight, before[name])}
        assert moved == trained
        curves.append(losses(made))
    assert curves[0] == pytest.approx(curves[1])


# ---------------------------------------------------------------- data and services


@pytest.mark.parametrize("kind", [dict, list, datasets.Dataset])
def test_rows_in_memory_are_no_path(kind, tiny, tmp_path):
    data = {"a": [1]} if kind is dict else [{"a": 1}] if kind is list else datasets.Dataset.from_list([{"a": 1}])
    for given in ({"data": data}, {"data": tiny.formatted("sft"), "eval_data": data}):
        with pytest.raises(UsageError, match=f"but a {kind.__name__}") as caught:
            trainer("sft", model=tiny.model, output_dir=tmp_path / "run", **STEPS, **given)
        assert "datakit.convert" in caught.value.hint


def test_pushing_without_a_login_or_a_network_is_refused_first(tiny, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    options = {"model": tiny.model, "data": tiny.formatted("sft"), "output_dir": Path(tmp_path / "run"), **STEPS}
    with pytest.raises(UsageError, match="nobody is logged in") as caught:
        trainer("sft", **options, push_to_hub=True)
    assert "hf auth login" in caught.value.hint
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match="does not let us in"):
        trainer("sft", **options, push_to_hub=True, hub_token="hf_none")
