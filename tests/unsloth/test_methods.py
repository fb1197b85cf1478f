"""The eight methods with engine="unsloth", in the environment that docs/unsloth-env.sh builds.

The tests train in this process, which Unsloth patches for good; whatever needs stock TRL runs in another.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("unsloth") is None:
    pytest.skip("needs the environment of docs/unsloth-env.sh (make unsloth)", allow_module_level=True)
else:
    from trainglue import engines, trainer

pytestmark = pytest.mark.filterwarnings("default")

METHODS = ["sft", "dpo", "orpo", "cpo", "reward", "kto", "bco", "grpo"]
STEPS = {
    "max_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "save_strategy": "no",
    "eval_share": 0.0,
}
SAME_BY_ANOTHER_NAME = {"optim", "gradient_checkpointing_kwargs"}
"""On a CPU Unsloth takes the fused kernel of the same AdamW, and spells out the checkpointing that is the default."""
GENERATION = {"num_generations": 2, "max_completion_length": 4}


def length_of(completions, **_):
    """A reward that differs between completions."""
    return [float(len(str(completion))) for completion in completions]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with a model, and formatted shards for each method."""
    root = tmp_path_factory.mktemp("made")
    run("-m", "tests.unsloth.made", str(root))
    return root


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    done = subprocess.run([sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def built(method, made, output, **options):
    if method == "grpo":
        options |= {"reward": length_of, **GENERATION}
    model = str(made / ("rates" if method == "reward" else "writes"))
    return trainer(
        method,
        data=made / f"ready-{method}",
        output_dir=output,
        **{"engine": "unsloth", "model": model, **STEPS, **options},
    )


def losses_of(trained):
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


@pytest.mark.parametrize("lora", [4, None], ids=["lora", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_two_steps(method, lora, made, tmp_path):
    ours = built(method, made, tmp_path / "run", lora=lora)
    before = {name: weight.detach().clone() for name, weight in ours.model.named_parameters()}
    ours.train()
    assert ours.state.global_step == 2
    assert len(losses_of(ours)) == 2
    assert all(math.isfinite(loss) for loss in losses_of(ours))
    changed = {name for name, weight in ours.model.named_parameters() if not weight.equal(before[name])}
    assert changed
    if lora:
        assert all("lora" in name or "score" in name for name in changed)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["engine"] == "unsloth"


def weights_of(model, name):
    """The weights of one adapter of a model."""
    from peft import get_peft_model_state_dict

    return {key: weight.detach().clone() for key, weight in get_peft_model_state_dict(model, adapter_name=name).items()}


def test_an_adapter_goes_on_being_trained_and_is_its_own_reference(made, tmp_path):
    from datakit import UsageError

    first = built("sft", made, tmp_path / "first", lora=4)
    first.train()
    first.save_model()
    learnt = weights_of(first.model, "default")
    for method in ("sft", "dpo", "kto", "bco"):
        ours = built(method, made, tmp_path / method, model=str(tmp_path / "first"))
        assert ours.args.learning_rate == STEPS["learning_rate"]
        now = weights_of(ours.model, "default")
        assert now.keys() == learnt.keys()
        assert all(now[key].equal(learnt[key]) for key in learnt)
        trained = {name for name, weight in ours.model.named_parameters() if weight.requires_grad}
        assert trained
        assert all("lora" in name for name in trained)
        ours.train()
        assert any(not weight.equal(learnt[key]) for key, weight in weights_of(ours.model, "default").items())
        if method != "sft":
            assert all(weight.equal(learnt[key]) for key, weight in weights_of(ours.model, "ref").items())
        if method == "dpo":
            assert losses_of(ours)[0] == pytest.approx(math.log(2))
    with pytest.raises(UsageError, match="lora asks for another one"):
        built("dpo", made, tmp_path / "more", model=str(tmp_path / "first"), lora=16)


def test_a_refused_call_leaves_unsloth_possible(made, tmp_path):
    code = (
        "import sys, trainglue\n"
        "try: trainglue.trainer('dpo', model=sys.argv[1], data=sys.argv[2], output_dir=sys.argv[3], engine='unsloth')\n"
        "except trainglue.data.UsageError as error: print(error.message)\n"
        "from trainglue import engines; print(engines.choose('unsloth', sys.argv[3])[0])"
    )
    said = run("-c", code, str(made / "writes"), str(made / "ready-sft"), str(tmp_path)).stdout
    assert "dpo trains on preference" in said
    assert said.splitlines()[-1] == "unsloth"


def test_a_lora_config_is_taken_as_its_fields_are(made, tmp_path):
    engines.choose("unsloth", tmp_path)
    from peft import LoraConfig

    fields: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}
    curves = []
    for name, lora in (("fields", fields), ("config", LoraConfig(task_type="CAUSAL_LM", **fields))):
        ours = built("sft", made, tmp_path / name, lora=lora)
        ours.train()
        config = ours.model.peft_config["default"]
        assert {field: getattr(config, field) for field in fields} == {**fields, "target_modules": {"q_proj", "v_proj"}}
        curves.append(losses_of(ours))
    assert curves[0] == curves[1]


def test_the_model_that_was_named_is_loaded_and_no_other(made, tmp_path, monkeypatch):
    """Without this word Unsloth takes names of the Hub for those of its own repositories."""
    engines.choose("unsloth", tmp_path)
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]

    given: dict[str, Any] = {}
    real = FastLanguageModel.from_pretrained
    monkeypatch.setattr(FastLanguageModel, "from_pretrained", lambda **words: given.update(words) or real(**words))
    built("sft", made, tmp_path / "run", lora=4)
    assert given["use_exact_model_name"] is True
    built("sft", made, tmp_path / "other", lora=4, model_init_kwargs={"use_exact_model_name": False})
    assert given["use_exact_model_name"] is False


@pytest.mark.parametrize("lora", [4, None], ids=["lora", "full"])
@pytest.mark.parametrize("wanted", [True, False])
def test_activations_are_kept_where_that_is_asked_for(wanted, lora, made, tmp_path):
    ours = built("sft", made, tmp_path / "run", lora=lora, gradient_checkpointing=wanted)
    ours.train()
    flags = {bool(m.gradient_checkpointing) for m in ours.model.modules() if hasattr(m, "gradient_checkpointing")}
    assert flags == {wanted}


def test_it_is_unsloth_that_trains(made, tmp_path):
    import trl

    ours = built("sft", made, tmp_path / "run", lora=4)
    assert "unsloth" in sys.modules
    assert hasattr(ours.model, "for_training"), "the model comes from FastLanguageModel"
    assert isinstance(ours, trl.SFTTrainer)
    assert not Path("unsloth_compiled_cache").exists(), "what Unsloth generates stays in the run folder"


STOCK = """
import json, sys
from pathlib import Path
from tests.unsloth.test_methods import METHODS, built, losses_of
made, output = map(Path, sys.argv[1:])
for method in METHODS:
    ours = built(method, made, output / method, engine="trl", lora=4)
    if method in ("orpo", "cpo", "reward"):  # TRL 1.15 trains no other without triton
        ours.train()
    print(json.dumps([method, ours.args.to_dict(), losses_of(ours)], default=str))
"""


@pytest.fixture(scope="session")
def stock(made, tmp_path_factory):
    """Each method's hyper-parameters, and losses where it trains, on the stock TRL of this environment."""
    lines = run("-c", STOCK, str(made), str(tmp_path_factory.mktemp("stock"))).stdout.splitlines()
    return {method: rest for method, *rest in map(json.loads, filter(lambda line: line.startswith("["), lines))}


@pytest.mark.parametrize("method", METHODS)
def test_hyper_parameters_are_those_of_stock_trl(method, made, stock, tmp_path):
    theirs, losses = stock[method]
    ours = built(method, made, tmp_path / "run", lora=4)
    own = json.loads(json.dumps(ours.args.to_dict(), default=str))
    assert {name for name in theirs if own[name] != theirs[name]} <= {"output_dir", *SAME_BY_ANOTHER_NAME}
    if losses:
        ours.train()
        assert losses_of(ours) == pytest.approx(losses, rel=1e-4)


def test_unsloth_must_come_before_transformers():
    code = "import transformers; from trainglue import engines; engines.choose('unsloth', '.')"
    assert "must come first" in run("-c", code, code=1).stderr


def test_auto_takes_unsloth():
    code = "from trainglue import engines; print(engines.choose('auto', '.')[0])"
    assert run("-c", code).stdout.splitlines()[-1] == "unsloth"


def test_one_engine_per_process(made, tmp_path):
    from datakit import UsageError

    built("sft", made, tmp_path / "run", lora=4)
    with pytest.raises(UsageError, match="already trains with unsloth"):
        built("sft", made, tmp_path / "other", engine="trl", lora=4)


def test_packed_rows_never_see_each_other(made, tmp_path):
    """Unsloth turns padding_free off where its kernels do not run; packed rows would be one long row then."""
    from datakit import UsageError

    options = {"data": made / "packed", "eval_share": None, "engine": "unsloth", "lora": 4}
    try:
        ours = trainer("sft", model=str(made / "writes"), output_dir=tmp_path / "run", **{**STEPS, **options})
    except UsageError as error:
        assert "attend to each other" in error.message
    else:
        assert ours.padding_free
        assert ours.data_collator.return_position_ids
