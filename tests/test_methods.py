"""Every method trains two steps on a tiny model: all weights and LoRA, from formatted shards and from canonical ones."""

from __future__ import annotations

import functools
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("trl")
pytest.importorskip("torch")
import torch
from packaging.requirements import Requirement
from transformers import PreTrainedTokenizerFast

from datakit.errors import UsageError
from datakit.methods import METHODS as FORMATTED
from tests.tiny_models import QUIET
from trainglue import METHODS, methods, trainer
from trainglue.hooks import adapted, rotated
from trainglue.methods import OLDEST, UPGRADE, resolve

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("tiny")]

ROOT = Path(__file__).resolve().parent.parent


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def changed(model, before):
    return {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}


def two_steps(made):
    """The trainer's parameters that two steps have moved; the loss is a number."""
    before = weights(made.model)
    result = made.train()
    assert made.state.global_step == 2
    assert torch.isfinite(torch.tensor(result.training_loss))
    return changed(made.model, before)


def by_length(completions, **_):
    return [float(len(str(completion))) for completion in completions]


def options_of(method):
    return {
        **QUIET,
        "max_steps": 2,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        **({"reward": by_length, "num_generations": 2, "max_completion_length": 4} if method == "grpo" else {}),
    }


TRAINED = [name for name in METHODS if name != "prm"]


@pytest.mark.parametrize("method", TRAINED)
def test_all_weights_from_formatted_shards_without_tokenising(method, tiny, tmp_path, monkeypatch):
    data = tiny.canonical(method) if method == "grpo" else tiny.formatted(method)
    if method != "grpo":

        def refuse(*_, **__):
            raise AssertionError("a tokenizer was asked for ids")

        monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", refuse)
    made = trainer(method, model=tiny.model_for(method), data=data, output_dir=tmp_path / "run", **options_of(method))
    assert len(made.train_dataset) == 12
    moved = two_steps(made)
    assert any("embed_tokens" in name for name in moved)
    assert any("mlp" in name for name in moved)


@pytest.mark.parametrize("method", TRAINED)
def test_lora_from_canonical_shards(method, tiny, tmp_path):
    made = trainer(
        method,
        model=tiny.model_for(method),
        data=tiny.canonical(method),
        output_dir=tmp_path / "run",
        lora=4,
        **options_of(method),
    )
    assert len(made.train_dataset) == 12
    moved = two_steps(made)
    assert moved
    assert all("lora_" in name or "modules_to_save" in name for name in moved)


def test_the_second_run_finds_the_formatted_rows(tiny, tmp_path, monkeypatch):
    import datakit

    calls = []
    real = datakit.format

    @functools.wraps(real)
    def counted(*arguments, **options):
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(datakit, "format", counted)
    monkeypatch.setenv("TRAINGLUE_CACHE", str(tmp_path / "cache"))
    for number in range(2):
        trainer(
            "sft",
            model=tiny.model,
            data=tiny.canonical("sft"),
            output_dir=tmp_path / f"run{number}",
            **options_of("sft"),
        )
    assert len(calls) == 1


def test_qlora(tiny, tmp_path):
    pytest.importorskip("bitsandbytes")
    made = trainer(
        "sft",
        model=tiny.model,
        data=tiny.formatted("sft"),
        output_dir=tmp_path / "run",
        lora=4,
        precision="qlora",
        **options_of("sft"),
    )
    assert any(type(module).__name__ == "Linear4bit" for module in made.model.modules())
    assert all("lora_" in name for name in two_steps(made))


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_neighbours_are_those_of_a_batch(batch):
    answers = [[n] for n in range(10)]
    moved = rotated({"completion_ids": answers}, batch)["KL_completion_ids"]
    for start in range(0, 10, batch):
        own = answers[start : start + batch]
        assert sorted(moved[start : start + batch]) == own
        assert len(own) == 1 or all(a != b for a, b in zip(moved[start : start + batch], own, strict=True))


def test_a_trainer_without_the_method_that_is_replaced_is_refused():
    with pytest.raises(UsageError, match="has no tokenize_row"):
        adapted(type("SomeTrainer", (), {}), "pair_rows")


def test_methods_agree_with_datakit():
    for method in METHODS.values():
        if method.format_for:
            made = FORMATTED[method.format_for]
            assert f"tokenized:{made.ids}" in method.kinds
            assert made.kinds[0] in method.kinds


@pytest.mark.parametrize("method", TRAINED)
def test_classes_are_those_of_the_installed_trl(method):
    trainer_class, config_class = resolve(method)
    assert trainer_class.__name__ == f"{METHODS[method].trainer}Trainer"
    assert config_class.__name__.endswith("Config")


def test_a_trainer_that_is_gone_says_until_when_it_was_there():
    if find_spec("trl.experimental.prm"):
        pytest.skip("this TRL has it")
    with pytest.raises(UsageError, match="has no PRMTrainer") as caught:
        resolve("prm")
    assert "<1.14" in caught.value.hint


def test_a_trainer_that_misses_a_package_says_which(monkeypatch):
    """GRPO of TRL before 1.14 needs `requests`, which nothing else here does."""

    def lazy(name):
        try:
            import_module("a_package_that_is_not_there")
        except ModuleNotFoundError as error:
            raise RuntimeError("Failed to import") from error

    stub = ModuleType("trl")
    monkeypatch.setattr(stub, "__getattr__", lazy, raising=False)
    monkeypatch.setattr(methods, "import_module", {"trl": stub}.__getitem__)
    with pytest.raises(UsageError, match="cannot import GRPOTrainer: No module named 'a_package") as caught:
        resolve("grpo")
    assert caught.value.hint == "pip install a_package_that_is_not_there"


def test_a_trl_that_is_too_old_is_refused(monkeypatch):
    monkeypatch.setattr(methods, "version", {"trl": "1.8.0"}.__getitem__)
    for name in METHODS:
        with pytest.raises(UsageError, match="TRL 1.8.0 is too old") as caught:
            resolve(name)
        assert caught.value.hint == UPGRADE


def test_the_oldest_trl_is_that_of_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    stated = next(Requirement(text).specifier for text in extras["train"] if text.startswith("trl"))
    assert f">={OLDEST}" in str(stated)
    assert all(str(part) in UPGRADE for part in stated)
