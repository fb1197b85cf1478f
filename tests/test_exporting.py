"""What is exported computes what was trained, loads without PEFT, and carries tokenizer, template and stop tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

pytest.importorskip("trl")
pytest.importorskip("torch")
import torch
import trl.chat_template_utils as templates
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from datakit.errors import InternalError, NotWritten, UsageError
from trainglue import models
from trainglue.handoff import exporting
from trainglue.handoff.exporting import commands, export
from trainglue.handoff.modelfile import PROOFS, SYSTEM, frame, modelfile

pytestmark = pytest.mark.filterwarnings("default")

IDS = torch.arange(20).unsqueeze(0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a random model with its tokenizer."""
    from tests.tiny_models import place

    return place(tmp_path_factory.mktemp("base")).model


@pytest.fixture(scope="module")
def tied(base, tmp_path_factory):
    """The same, with one matrix for input and output."""
    folder = tmp_path_factory.mktemp("tied")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def adapter(base, folder, targets=("q_proj", "down_proj"), save=(), tokenizer=True):
    """A saved adapter that changes the model, and the logits of both together."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), modules_to_save=list(save) or None)
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.base_model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    if tokenizer:
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_merged_model_is_base_and_change(base, tmp_path):
    source = adapter(base, tmp_path / "lora")
    made = export(source, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(base)
    trained: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), source)
    assert torch.allclose(logits(merged), logits(trained), atol=1e-5)
    assert not torch.allclose(logits(merged), logits(plain), atol=1e-2)
    weights = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    layer = "model.layers.0.self_attn.q_proj"
    low = trained.base_model.model.get_submodule(layer)
    change = low.lora_B["default"].weight @ low.lora_A["default"].weight * weights["lora_alpha"] / weights["r"]
    expected = plain.get_submodule(layer).weight + change
    assert torch.allclose(merged.get_submodule(layer).weight, expected, atol=1e-6)
    assert made.difference is not None
    assert made.difference < 1e-4
    assert not list((tmp_path / "out").glob("adapter*"))


@pytest.mark.parametrize(
    ("targets", "save", "stays"),
    [(["q_proj"], [], True), (["q_proj", "lm_head"], [], False), (["q_proj"], ["lm_head"], False)],
    ids=["attention", "head by lora", "head trained"],
)
def test_tied_matrices(targets, save, stays, tied, tmp_path):
    """Merging into a shared matrix would change the input too; a head of its own would be tied again on loading."""
    source = adapter(tied, tmp_path / "lora", targets, save)
    export(source, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tied), source)
    assert torch.allclose(logits(merged), logits(trained), atol=1e-5)
    shared = merged.lm_head.weight.data_ptr() == merged.model.embed_tokens.weight.data_ptr()
    assert shared == merged.config.tie_word_embeddings == stays


def test_sixteen_bits(base, tmp_path):
    made = export(adapter(base, tmp_path / "lora"), tmp_path / "out", dtype="bfloat16")
    assert made.dtype == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    assert made.difference is not None
    assert 0 < made.difference < exporting.TOLERANCE["bfloat16"]


@pytest.mark.parametrize("lora", [4, None])
def test_a_model_trained_in_fp8(lora, base, tmp_path):
    pytest.importorskip("torchao")
    from trainglue.precision import Fp8, prepare

    model = AutoModelForCausalLM.from_pretrained(base)
    assert prepare(model, Fp8(emulate=True)).layers
    if lora:
        model = get_peft_model(model, LoraConfig(r=lora, target_modules=["q_proj"]))
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    model.save_pretrained(tmp_path / "run")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "run")
    made = export(tmp_path / "run", tmp_path / "out", base=base if lora else None)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {type(module).__name__ for module in plain.modules() if hasattr(module, "in_features")} == {"Linear"}
    assert made.difference is not None
    assert made.difference < 1e-3


def test_a_change_that_is_lost_is_seen(base, tmp_path, monkeypatch):
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    with pytest.raises(InternalError, match="other logits"):
        export(adapter(base, tmp_path / "lora"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_tokenizer_template_and_stops_go_along(base, tmp_path):
    made = export(adapter(base, tmp_path / "lora"), tmp_path / "out")
    theirs, ours = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert ours.chat_template == theirs.chat_template
    assert ours.get_vocab() == theirs.get_vocab()
    assert "<|im_end|>" in made.stops
    stops = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert theirs.convert_tokens_to_ids("<|im_end|>") in (stops if isinstance(stops, list) else [stops])


def test_an_adapter_alone(base, tmp_path):
    made = export(adapter(base, tmp_path / "lora", tokenizer=False), tmp_path / "out", to="adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert made.base == base
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")


def test_a_model_that_scores(tmp_path):
    from peft import TaskType

    from tests.tiny_models import place

    base = place(tmp_path / "base").scorer
    loaded = models.CLASSES["score"]
    import transformers

    model = getattr(transformers, loaded[0]).from_pretrained(base, **loaded[1])
    model = get_peft_model(model, LoraConfig(task_type=TaskType.SEQ_CLS, r=4, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "lora")
    export(tmp_path / "lora", tmp_path / "out", base=base)
    merged = getattr(transformers, loaded[0]).from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(merged), logits(model), atol=1e-5)
    with pytest.raises(UsageError, match="does not write text"):
        export(tmp_path / "lora", tmp_path / "gguf", base=base, to="gguf")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "onnx"}, "no form 'onnx'"),
        ({"quantization": "q4"}, "no quantization 'q4'"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
        ({"base": "./not-there"}, "cannot be loaded"),
    ],
)
def test_wrong_options(options, words, base, tmp_path):
    with pytest.raises(UsageError, match=words):
        export(adapter(base, tmp_path / "lora"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_wrong_folders(base, tmp_path):
    (tmp_path / "run" / "checkpoint-20").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-100").mkdir()
    with pytest.raises(UsageError, match="checkpoint-100 is the last of 2"):
        export(tmp_path / "run", tmp_path / "out")
    with pytest.raises(UsageError, match="no adapter was trained"):
        export(base, tmp_path / "out", to="adapter")
    with pytest.raises(NotWritten, match="exists"):
        export(base, tmp_path)


# ---------------------------------------------------------------- GGUF and Ollama


def test_the_hand_off_to_ollama(base, tmp_path):
    made = export(adapter(base, tmp_path / "lora"), tmp_path / "out", to="gguf")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM model-q4_k_m.gguf\nTEMPLATE ")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert made.commands == (f"LLAMA_CPP=llama.cpp sh {tmp_path / 'out' / 'gguf.sh'}",)


def test_the_script_calls_llama_cpp_as_it_wants_to_be_called(base, tmp_path):
    """Stand-ins for llama.cpp's two programs that take the arguments of the real ones and no others."""
    export(adapter(base, tmp_path / "lora"), tmp_path / "out", to="gguf", check=False)
    build = tmp_path / "llama.cpp" / "build" / "bin"
    build.mkdir(parents=True)
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").write_text(
        "import argparse, pathlib\n"
        "parser = argparse.ArgumentParser()\n"
        "parser.add_argument('model')\n"
        "parser.add_argument('--outfile', type=pathlib.Path)\n"
        "parser.add_argument('--outtype', choices=['f32', 'f16', 'bf16', 'q8_0', 'tq1_0', 'tq2_0', 'auto'])\n"
        "given = parser.parse_args()\n"
        "assert pathlib.Path(given.model, 'config.json').is_file()\n"
        "given.outfile.write_text(given.outtype)\n"
    )
    quantize = build / "llama-quantize"
    quantize.write_text('#!/bin/sh\nset -eu\ntest $# = 3\ntest "$(cat "$1")" = bf16\necho "$3" > "$2"\n')
    quantize.chmod(0o755)
    done = subprocess.run(
        ["sh", "out/gguf.sh"],
        check=False,
        cwd=tmp_path,
        env={"LLAMA_CPP": "llama.cpp", "PATH": _path()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model-q4_k_m.gguf").read_text() == "Q4_K_M\n"
    assert "ollama create NAME -f Modelfile" in done.stdout


def _path():
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def test_what_the_converter_writes_itself_needs_one_step():
    assert [len(commands(name)) for name in exporting.OUTTYPES] == [2] * len(exporting.OUTTYPES)
    assert all("llama-quantize" in commands(name)[1] for name in exporting.QUANTIZED)
    assert not any(f"--outtype {name}" in command for name in exporting.QUANTIZED for command in commands(name))


def renderer(template, **special):
    from datakit.templates.template import Template

    made = Template(template, special)
    return lambda messages, opened: made.render(messages, prompt=opened)


def as_jinja(go):
    """The few words of Go that our templates are made of, in Jinja."""
    words = {
        "{{ $first := index .Messages 0 }}": "",
        '{{ if ne $first.Role "system" }}': '{% if messages[0].role != "system" %}',
        "{{ range .Messages }}": "{% for m in messages %}",
        "{{ .Content }}": "{{ m.content }}",
    }
    for role in ("system", "user", "assistant"):
        words[f'{{{{ if eq .Role "{role}" }}}}'] = f'{{% if m.role == "{role}" %}}'
        words[f'{{{{ else if eq .Role "{role}" }}}}'] = f'{{% elif m.role == "{role}" %}}'
    for there, here in words.items():
        go = go.replace(there, here)
    first, second = ("{% endif %}", "{% endfor %}")
    while "{{ end }}" in go:
        before, _, behind = go.partition("{{ end }}")
        opened = before.count("{% if") - before.count("{% endif")
        go = before + (first if opened > 0 else second) + behind
    environment = jinja2.Environment(keep_trailing_newline=True, autoescape=False)
    return environment.from_string(go)


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "llama3", "gemma", "gemma3", "phi3", "glm4moe", "cohere", "deepseekv3"]
)
def test_a_go_template_prints_what_the_chat_template_prints(name):
    source = getattr(templates, f"{name}_chat_template")
    render = renderer(source, bos_token="<s>", eos_token="</s>")
    found = frame(render, "<s>")
    assert found is not None
    ours = as_jinja(found.go())
    for proof in PROOFS:
        for messages in (proof, [SYSTEM, *proof]) if "system" in found.turns else (proof,):
            assert ours.render(messages=messages) == render(messages, True).removeprefix("<s>")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}", "numbers of turns"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "another text"),
        ("{% for m in messages[-2:] %}<{{ m.role }}>{{ m.content }}{% endfor %}", "the last turns only"),
        ("{% for m in messages %}{{ '{{' }}{{ m.content }}{% endfor %}", "words that Go reads"),
        ("{{ raise_exception('no') }}", "nothing"),
    ],
)
def test_a_template_that_is_more_than_fixed_words_is_left_out(template, why):
    assert frame(renderer(template)) is None
    assert "TEMPLATE" not in modelfile("model.gguf", None, ["</s>"])


def test_a_template_that_refuses_a_system_message():
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    found = frame(renderer(template))
    assert found is not None
    assert list(found.turns) == ["user", "assistant"]
