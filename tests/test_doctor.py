"""`doctor` says what can be trained here and how to repair the rest; `api` reads what the installed trainers take."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("trl")

from datakit.errors import UsageError
from tests.small_tokenizers import chatml
from trainglue import options
from trainglue.machine import diagnosis, signatures
from trainglue.machine.diagnosis import Case, Diagnosis, describe, doctor
from trainglue.methods import METHODS, resolve
from trainglue.precision import PRECISIONS

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def here():
    """The diagnosis of this machine, for stock TRL."""
    return doctor(engine="trl")


def of(diagnosis, method, precision):
    return next(case for case in diagnosis.cases if (case.method, case.precision) == (method, precision))


def test_what_is_usable_can_be_imported(here):
    for method in METHODS:
        try:
            resolve(method)
        except UsageError as error:
            assert of(here, method, "fp32").reason == error.message
            assert of(here, method, "fp32").fix == error.hint
        else:
            assert of(here, method, "fp32").usable


def test_the_exit_code_answers_the_question(here):
    assert here.exit_code == 0
    cases = [case for case in here.cases if case.method == "sft"]
    for case in cases:
        assert Diagnosis((), (case,)).exit_code == (0 if case.usable else 1)
    assert here.to_json()["exit_code"] == 0


def test_every_precision_is_answered_for(here):
    assert {*PRECISIONS, "fp8 te"} == {case.precision for case in here.cases}
    assert "Unsloth" in of(here, "sft", "fp8_weights").reason


def test_every_reason_comes_with_a_way_out(here):
    assert all(case.fix for case in here.cases if not case.usable)
    shown = describe(here)
    assert all(case.reason in shown and case.fix in shown for case in here.cases if not case.usable)


def test_packages_are_named_with_their_versions(here):
    from importlib.metadata import version

    found = {check.name: check.found for check in here.checks}
    assert {name: version(name) for name in ("torch", "trl", "transformers", "datasets")}.items() <= found.items()


def test_the_command_line():
    command = [
        sys.executable,
        "-m",
        "trainglue",
        "doctor",
        "sft",
        "--precision",
        "fp32",
        "--engine",
        "trl",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(case["method"], case["precision"], case["reason"]) for case in found["cases"]] == [("sft", "fp32", "")]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"method": "ppo"}, "no method named 'ppo'"), ({"engine": "jax"}, "no engine 'jax'")],
)
def test_wrong_calls(options, words):
    with pytest.raises(UsageError, match=words):
        doctor(**options)


# ---------------------------------------------------------------- what is broken


def package(folder, name, code):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


def probed(folder, monkeypatch):
    """What the probe of stock TRL says with the packages of a folder before all others."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return diagnosis.probe("trl")


def test_a_library_that_ends_the_process(tmp_path, monkeypatch):
    package(
        tmp_path, "trl", "import os, sys; sys.stderr.write('cudaErrorWrongDriver\\n'); sys.stderr.flush(); os._exit(3)"
    )
    found = probed(tmp_path, monkeypatch)
    cases = list(diagnosis._cases("trl", found))
    assert not any(case.usable for case in cases)
    assert "ended with 3: cudaErrorWrongDriver" in cases[0].reason


def test_a_library_for_another_cuda(tmp_path, monkeypatch):
    package(tmp_path, "bitsandbytes", "raise OSError('libcudart.so.13: cannot open shared object file')")
    found = probed(tmp_path, monkeypatch)
    case = next(case for case in diagnosis._cases("trl", found) if case.precision == "qlora")
    assert "libcudart.so.13: cannot open shared object file" in case.reason
    assert case.fix == "pip install --force-reinstall --no-deps bitsandbytes"


def stack(monkeypatch, **versions):
    """Pretend that other versions are installed."""
    monkeypatch.setattr(diagnosis, "installed", lambda name: versions.get(name, ""))


@pytest.mark.parametrize(
    ("versions", "engine", "gpu", "stopped"),
    [
        ({"trl": "1.15.0"}, "trl", "", {"sft", "dpo", "kto", "bco", "grpo"}),
        ({"trl": "1.15.0"}, "unsloth", "", set()),
        ({"trl": "1.15.0", "triton": "3.6.0"}, "trl", "there", set()),
        ({"trl": "1.14.2"}, "trl", "", set()),
        ({"trl": "1.16.0"}, "trl", "", set()),
        ({"trl": "0.24.0", "transformers": "5.17.0"}, "trl", "", set(METHODS)),
        ({"trl": "1.8.0", "transformers": "4.57.6"}, "trl", "", set(METHODS)),
        ({"trl": "1.9.0", "transformers": "4.57.6"}, "trl", "", set()),
        ({"unsloth": "2026.10.7"}, "unsloth", "", set(METHODS)),
        ({"unsloth": "2026.10.7"}, "unsloth", "there", set()),
        ({"unsloth": "2026.10.9"}, "unsloth", "", set()),
    ],
)
def test_versions_that_do_not_train_together(versions, engine, gpu, stopped, monkeypatch):
    stack(monkeypatch, **versions)
    assert {method for method in METHODS if diagnosis._trap(engine, method, gpu)} == stopped


def test_what_unsloth_forbids(tmp_path, monkeypatch):
    folder = tmp_path / "unsloth-2026.10.7.dist-info"
    folder.mkdir()
    lines = ["Name: unsloth", "Version: 2026.10.7", "Requires-Dist: trl!=0.19.0,<=1.15.0,>=0.18.2"]
    lines += ["Requires-Dist: certifi>=9999", "Requires-Dist: transformers>=99; extra == 'studio'"]
    (folder / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    stack(monkeypatch, trl="1.16.0", transformers="5.23.0", certifi="2026.10.18")
    conflict = diagnosis._conflict("unsloth")
    assert conflict is not None
    assert "1.16.0 is installed" in conflict[0]
    assert "certifi" not in conflict[0]
    assert "in an environment of its own" in conflict[1]
    stack(monkeypatch, trl="1.15.0")
    assert diagnosis._conflict("unsloth") is None
    stack(monkeypatch, trl="1.16.0")
    assert diagnosis._conflict("trl") is None


def test_what_is_missing(monkeypatch):
    stack(monkeypatch, torch="2.13.0", transformers="5.23.0", datasets="5.2.0", accelerate="1.15.0")
    assert diagnosis._missing("trl") == ("peft and trl are not installed", "pip install 'datakit-trainglue[train]'")
    cases = list(diagnosis._cases("trl", {"engine": ("ModuleNotFoundError", ""), "machine": {}}))
    assert {case.reason for case in cases} == {"peft and trl are not installed"}
    reason, fix = diagnosis._missing("unsloth") or ("", "")
    assert "unsloth" in reason
    assert fix == diagnosis.UNSLOTH_APART


def test_versions_that_are_not_tested_are_a_note(monkeypatch):
    stack(monkeypatch, torch="2.13.0", trl="1.99.0")
    found = {check.name: check for check in diagnosis._packages(["trl"])}
    assert (found["torch"].level, found["trl"].level, found["peft"].level) == ("ok", "note", "error")
    assert found["trl"].fix.startswith("pip install 'trl")
    assert {check.level for check in diagnosis._packages(["unsloth"])} == {"ok"}  # its versions are not for here


def test_variables_that_change_a_run():
    found = list(diagnosis._variables({"HF_DATASETS_NUM_PROC": "1", "HF_HUB_OFFLINE": "0", "PATH": "x"}))
    assert [(check.name, check.level, check.fix) for check in found] == [("HF_DATASETS_NUM_PROC", "note", "unset it")]


def test_the_driver(tmp_path, monkeypatch):
    file = tmp_path / "version"
    assert diagnosis._driver(str(file)) == ""
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 2026\nGCC version: 13\n")
    assert diagnosis._driver(str(file)) == "580.65.06"
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.1  Release Build\n")
    assert diagnosis._driver(str(file)) == "570.1"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = {"torch": "2.13.0+cpu", "cuda": None}
    assert diagnosis._no_gpu("", seen).level == "ok"
    assert diagnosis._no_gpu("580", seen).fix == "pip install --force-reinstall torch"
    assert "cannot use driver 470" in diagnosis._no_gpu("470", {**seen, "cuda": "13.0"}).reason
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert diagnosis._no_gpu("580", seen).fix == "unset CUDA_VISIBLE_DEVICES"


def test_several_gpus_need_a_launcher(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    gpus = [{"name": "H100", "capability": [9, 0], "memory": 80 * 2**30}] * 2
    found = [check for check in diagnosis._machine({"gpus": gpus}) if check.name == "gpus"]
    assert "torchrun --nproc-per-node 2" in found[0].fix


def test_a_model_is_looked_at_before_it_is_loaded(tmp_path):
    good = {check.name: check for check in diagnosis._model(str(chatml(tmp_path / "chat")))}
    assert good["chat template" if "chat template" in good else "pad token"].level == "ok"
    base = {check.name: check for check in diagnosis._model(str(chatml(tmp_path / "base", None)))}
    assert base["chat template"].level == "error"
    assert "--chat-template" in base["chat template"].fix
    (tmp_path / "empty").mkdir()
    assert next(diagnosis._model(str(tmp_path / "empty"))).level == "error"


def test_each_trouble_is_told_once():
    cases = [Case("trl", method, precision, "no", "do") for method in ("sft", "dpo") for precision in ("fp8", "qlora")]
    fine = [Case("trl", method, "fp32") for method in ("sft", "dpo")]
    assert describe(Diagnosis((), (*cases, *fine))).count("trl fp8, qlora: no\n  do") == 1
    assert describe(Diagnosis((), tuple(cases))).count("trl: no\n  do") == 1


# ---------------------------------------------------------------- api


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward", "grpo", "orpo", "cpo", "bco"])
def test_every_field_and_argument_is_there(method):
    _, config = resolve(method)
    found = signatures.api(method)
    fields = {field.name for field in dataclasses.fields(config) if field.init}
    assert {option.name for option in found.options} == fields
    assert {"model", "args", "train_dataset", "processing_class"} <= {argument.name for argument in found.arguments}
    assert not fields & found.moved.keys()
    assert all(option.type and option.default for option in found.options)
    ours = {option.name: option.ours for option in found.options if option.ours}
    assert ours["learning_rate"] == repr(options.presets(method)["learning_rate"])
    assert "precision" in ours["bf16"]
    json.dumps(found.to_json())


def test_old_names_lead_to_new_ones():
    found = signatures.api("sft")
    moved = found.moved
    assert "datakit format --pack" in next(option.ours for option in found.options if option.name == "packing")
    assert "max_length" in moved["max_seq_length"]
    assert "warmup_steps" in moved["warmup_ratio"]
    assert "never used" in moved["formatting_func"].lower()


def test_the_signature_decides_over_the_fields():
    """As Unsloth's configs are made: a dataclass with an `__init__` of its own."""

    @dataclasses.dataclass
    class Config:
        seed: int = 42
        optim: str = "adamw_torch"
        names: list[str] = dataclasses.field(default_factory=lambda: ["a"])
        hidden: int = dataclasses.field(default=1, init=False)

    @dataclasses.dataclass
    class Patched(Config):
        def __init__(self, seed: int = 3407, chunks: Any = -1, **kwargs: Any) -> None:
            super().__init__(seed=seed, **kwargs)

    plain = {option.name: option.default for option in signatures._accepted(Config)}
    assert plain == {"seed": "42", "optim": "'adamw_torch'", "names": "['a']"}
    patched = {option.name: option.default for option in signatures._accepted(Patched)}
    assert patched == {"seed": "3407", "chunks": "-1", "optim": "'adamw_torch'", "names": "['a']"}


def test_the_command_line_of_api():
    command = [sys.executable, "-m", "trainglue", "api", "kto"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "  max_length " in done.stdout
    assert "max_seq_length" in done.stdout
