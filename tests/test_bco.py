"""BCO trains as TRL's own did while TRL had it, and goes on from a checkpoint as if it had not stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
pytest.importorskip("trl")
torch = pytest.importorskip("torch")

import datasets  # noqa: E402
from trl import KTOConfig  # noqa: E402

from datakit.errors import UsageError  # noqa: E402
from tests import bco_reference as reference  # noqa: E402
from trainglue import bco  # noqa: E402

torch.set_num_threads(1)  # more only wait for each other on models this small

pytestmark = pytest.mark.filterwarnings("default")

GOLDEN = json.loads((Path(__file__).parent / "bco_reference.json").read_text("utf-8"))


def trainer(folder, *, model=None, rows=None, peft_config=None, **options):
    class Ready(bco.trainer_class()):  # type: ignore[misc]
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    return Ready(
        model or reference.model(),
        None if peft_config else reference.model(),
        args=KTOConfig(output_dir=str(folder), **{**reference.OPTIONS, **options}),
        train_dataset=datasets.Dataset.from_list(rows or reference.rows()),
        processing_class=reference.tokenizer(),
        peft_config=peft_config,
    )


def steps(trainer):
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return [log["loss"] for log in logs], [log["delta"] for log in logs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without interruption, with a checkpoint in the middle."""
    made = trainer(tmp_path_factory.mktemp("whole"), save_strategy="steps", save_steps=5)
    made.train()
    return made


def test_losses_are_those_of_trl(whole):
    losses, deltas = steps(whole)
    assert len(losses) == len(GOLDEN) == reference.STEPS
    assert losses == pytest.approx([step["loss"] for step in GOLDEN], abs=2e-5)
    assert deltas == pytest.approx([step["delta"] for step in GOLDEN], abs=2e-5)
    assert max(losses) - min(losses) > 0.02, "a run that does not move compares nothing"
    assert max(map(abs, deltas)) > 0.02


def test_a_checkpoint_goes_on_with_its_mean(whole, tmp_path):
    checkpoint = Path(whole.args.output_dir) / "checkpoint-5"
    again = trainer(tmp_path, save_strategy="no")
    again.train(resume_from_checkpoint=str(checkpoint))
    losses, deltas = steps(again)
    assert losses == pytest.approx(steps(whole)[0], abs=1e-6)
    assert deltas == pytest.approx(steps(whole)[1], abs=1e-6)
    assert again.running.count == reference.STEPS * reference.BATCH


def test_a_checkpoint_without_the_mean_is_refused(whole, tmp_path):
    checkpoint = Path(whole.args.output_dir) / "checkpoint-10"
    (checkpoint / bco.STATE).unlink()
    with pytest.raises(UsageError, match="no running mean"):
        trainer(tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_the_reference_of_an_adapter_is_the_model_without_it(tmp_path):
    from peft import LoraConfig

    made = trainer(tmp_path, peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), max_steps=2)
    made.train()
    losses, deltas = steps(made)
    assert losses[0] == pytest.approx(GOLDEN[0]["loss"], abs=1e-5)
    assert deltas[0] == pytest.approx(0, abs=1e-6), "before the first step both are the same model"
    assert deltas[1] != 0


def test_evaluation_leaves_the_mean_alone(tmp_path):
    made = trainer(tmp_path)
    made.running.update(3.0, 2)
    rows = reference.rows()[:8]
    metrics = made.evaluate(datasets.Dataset.from_list(rows))
    assert (made.running.mean, made.running.count) == (1.5, 2)
    good = torch.tensor([row["label"] for row in rows])  # both models are the same: all rewards are zero
    expected = -torch.nn.functional.logsigmoid(torch.where(good, -1.5, 1.5)).mean()
    assert metrics["eval_loss"] == pytest.approx(float(expected), abs=1e-5)


def test_weights_of_answers_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no weights"):
        trainer(tmp_path, desirable_weight=2.0)


def test_the_mean_of_parts_is_the_mean_of_all():
    from hypothesis import given, settings
    from hypothesis import strategies as some

    @settings(deadline=None)
    @given(some.lists(some.lists(some.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=6))
    def law(parts):
        running = bco.RunningMean()
        for part in parts:
            running.update(sum(part), len(part))
        everything = [reward for part in parts for reward in part]
        assert running.count == len(everything)
        assert running.mean == pytest.approx(sum(everything) / len(everything), abs=1e-9)

    law()
