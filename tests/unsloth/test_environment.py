"""What `doctor` says of the environment that docs/unsloth-env.sh builds is what happens in it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from trainglue.machine.diagnosis import doctor

if find_spec("unsloth") is None:
    pytest.skip("needs the environment of docs/unsloth-env.sh (make unsloth)", allow_module_level=True)

METHODS = {"sft", "dpo", "orpo", "cpo", "reward", "kto", "bco", "grpo"}


def usable(engine):
    return {case.method for case in doctor(precision="fp32", engine=engine).cases if case.usable}


def test_unsloth_trains_the_eight_methods():
    assert usable("unsloth") == METHODS


def test_stock_trl_1_15_trains_few_without_triton():
    assert usable("trl") == {"orpo", "cpo", "reward"}


def test_no_cuda_came_with_it():
    assert [name for name in ("triton", "xformers", "nvidia", "torchvision") if find_spec(name)] == []
