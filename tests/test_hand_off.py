"""The hand-off changes nothing: TRL's own loss curves on the same rows are ours."""

from __future__ import annotations

import pytest

pytest.importorskip("trl")
pytest.importorskip("torch")
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import trainglue
from tests.tiny_models import QUIET
from trainglue.methods import resolve

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("tiny")]

STEPS = 5


def curve(made):
    made.train()
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("sft", {"assistant_only_loss": True}),
        ("dpo", {}),
        ("kto", {}),
        ("reward", {}),
    ],
)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_loss_curves_are_equal(method, own, lora, tiny, tmp_path):
    shared = {"logging_steps": 1, "max_steps": STEPS, "learning_rate": 1e-3, "warmup_steps": 0, "seed": 7}
    ours = trainglue.trainer(
        method,
        model=tiny.model_for(method),
        data=tiny.formatted(method),
        output_dir=tmp_path / "ours",
        lora=4 if lora else None,
        **{**QUIET, **shared},
    )
    trainer_class, config_class = resolve(method)
    config = config_class(
        output_dir=str(tmp_path / "theirs"),
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
        lr_scheduler_type="cosine",
        optim="adamw_torch",
        weight_decay=0.0,
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **shared,
        **own,
    )
    loads = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    from trainglue.models import peft_config

    theirs = trainer_class(
        model=loads.from_pretrained(tiny.model_for(method)),
        args=config,
        train_dataset=trainglue.dataset(tiny.canonical(method), method=method),
        processing_class=AutoTokenizer.from_pretrained(tiny.model),
        peft_config=peft_config(4, trainglue.METHODS[method]) if lora else None,
    )
    mine, their = curve(ours), curve(theirs)
    assert len(mine) == STEPS
    assert mine[-1] != mine[0]
    assert mine == pytest.approx(their, rel=1e-5, abs=1e-6)
