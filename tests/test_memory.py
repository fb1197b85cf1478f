"""Advice where memory ends: nothing in it is refused, untrue, or so already."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as some

from trainglue import memory


def config(batch=1, accumulation=1, **others):
    return SimpleNamespace(
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **{"gradient_checkpointing": True, **others},
    )


def said(lengths=None, *, least=1, lora=True, precision="bf16", **known):
    return memory.for_training(lengths or {}, config(**known), least=least, lora=lora, precision=precision)


def test_rows_of_an_update_are_kept_and_a_length_is_named():
    text = said({100: 990, 8000: 10}, batch=4, accumulation=3, lora=False)
    assert "per_device_train_batch_size = 2 with gradient_accumulation_steps = 6: the same rows per update" in text
    assert "now 32,000" in text
    assert "max_length = 128: 10 rows of 1,000 are longer" in text
    assert "gradient_checkpointing" not in text
    assert "lora = 16" in text


@given(batch=some.integers(1, 40), accumulation=some.integers(1, 12), least=some.integers(1, 2))
def test_a_batch_is_smaller_and_what_is_said_of_its_rows_is_true(batch, accumulation, least):
    line = next(
        (line for line in said(batch=batch, accumulation=accumulation, least=least).splitlines() if "batch" in line), ""
    )
    assert bool(line) == (batch > least)
    if line:
        smaller, steps = int(line.split()[2]), int(line.split()[6].rstrip(":"))
        assert least <= smaller < batch
        assert ("the same rows" in line) == (smaller * steps == batch * accumulation)
        assert smaller * steps >= batch * accumulation
        assert "the same rows" in line or least > 1


def test_one_row_a_step_says_nothing_of_batches():
    text = said({100: 5}, gradient_checkpointing=False)
    assert "batch" not in text
    assert "qlora" in text
    assert "gradient_checkpointing = true" in text


def test_nothing_is_named_that_is_so_or_cannot_be():
    assert "qlora" not in said(precision="qlora")
    assert "qlora" not in memory.for_loading(True, "qlora")
    assert "lora = 16" not in memory.for_loading(True, "bf16")
    assert "lora = 16" in memory.for_loading(False, "bf16")
    assert "activation_offloading" in said(activation_offloading=False)
    assert "activation_offloading" not in said()
    assert memory.for_evaluation({}, config(batch=4)) == "per_device_eval_batch_size = 2, now 4"
    assert "batch" not in memory.for_evaluation({10: 1}, config())


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory.advised(lambda: "less"):
        raise RuntimeError("shapes differ")
    with (
        pytest.raises(memory.OutOfMemory, match="out of memory: CUDA out of memory.") as caught,
        memory.advised(lambda: "less"),
    ):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 2.00 GiB")
    assert caught.value.hint == "less"
