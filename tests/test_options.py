"""Options: names that moved, unknown ones, and defaults that no engine changes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from jsonschema import Draft202012Validator

from datakit.errors import UsageError
from trainglue import config, options
from trainglue.methods import METHODS
from trainglue.options import DECIDED, REMOVED, RENAMED, presets, settings, where_it_went
from trainglue.training import trainer

ROOT = Path(__file__).resolve().parent.parent
SFT = METHODS["sft"]


@dataclasses.dataclass
class Today:
    """A config as transformers 5 has it."""

    max_length: int | None = 1024
    learning_rate: float = 5e-5
    warmup_steps: float = 0
    eval_strategy: str = "no"
    optim: str = "adamw_torch"
    seed: int = 42


@dataclasses.dataclass
class Before:
    """A config as transformers 4 had it."""

    max_seq_length: int | None = 1024
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    evaluation_strategy: str = "no"
    gradient_checkpointing: bool = False


Today.__module__ = Before.__module__ = "trl.somewhere"


def made(config_class, given, defaults=()):
    return settings(config_class, SFT, given, dict(defaults))


# ---------------------------------------------------------------- names


def test_an_old_name_is_taken_for_the_new_one_and_said():
    found, notes = made(Today, {"lr": 1e-4, "evaluation_strategy": "steps", "warmup_ratio": 0.1})
    assert found == {"learning_rate": 1e-4, "eval_strategy": "steps", "warmup_steps": 0.1}
    assert len(notes) == 3
    assert "lr is taken as learning_rate = 0.0001" in notes


def test_a_new_name_is_taken_for_the_old_one_where_the_version_is_old():
    found, _ = made(Before, {"eval_strategy": "steps", "warmup_steps": 0.1}, {"max_length": 2048}.items())
    assert found == {"max_seq_length": 2048, "evaluation_strategy": "steps", "warmup_ratio": 0.1}
    assert made(Before, {"warmup_steps": 5})[0] == {"warmup_steps": 5}
    assert made(Before, {"activation_checkpointing": True})[0] == {"gradient_checkpointing": True}


@pytest.mark.parametrize("given", [{"warmup_steps": 0}, {"warmup_steps": 7}, {"warmup_ratio": 0.2}])
def test_one_warm_up_counts_where_a_version_has_two_options(given):
    assert made(Before, given, {"warmup_steps": 0.05}.items())[0] == given
    assert made(Before, given, {"warmup_steps": 3}.items())[0] == given


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learning_rat", "learning_rate"),
        ("max_prompt_length", "Removed in TRL"),
        ("formatting_func", "never used"),
        ("use_liger", "use_liger_kernel"),
        ("attn_implementation", '--model-init-kwargs \'{"attn_implementation": "sdpa"}\''),
        ("trust_remote_code", "model_init_kwargs"),
        ("torch_dtype", "give dtype"),
        ("padding_value", "the pad token pads"),
        ("max_completion_length", "format.truncation"),
        ("generate_during_eval", "orpo and cpo"),
        ("is_encoder_decoder", "read from the model"),
        ("tools", "a column of the rows"),
        ("xyzzy", "trainglue api sft"),
    ],
)
def test_an_unknown_option_says_where_it_went(name, hint):
    with pytest.raises(UsageError) as caught:
        made(Today, {name: 1})
    assert f"sft has no option {name}" in caught.value.message
    assert hint.lower() in caught.value.hint.lower()


@pytest.mark.parametrize("name", ["max_length", "seed"])
def test_options_that_follow_from_the_rows_are_refused(name, monkeypatch):
    monkeypatch.setitem(options.DECIDED, name, "it follows from the rows")
    with pytest.raises(UsageError, match="sft has no option") as caught:
        made(Today, {name: 1})
    assert caught.value.hint == "It follows from the rows."


def test_no_option_is_suggested_that_would_be_refused():
    """`padding_free` is the nearest name of the config, and trainglue decides it."""

    @dataclasses.dataclass
    class Padded(Today):
        padding_free: bool = False

    Padded.__module__ = "trl.somewhere"
    with pytest.raises(UsageError) as caught:
        made(Padded, {"padding_fre": 1})
    assert "padding_free" not in caught.value.hint


@pytest.mark.parametrize("name", ["max_prompt_length", "max_completion_length"])
def test_lengths_that_pairs_would_be_cut_to_are_refused(name):
    """ORPO and CPO have them, and cut where they tokenise; tokenised rows are not cut."""
    Cutting = dataclasses.make_dataclass("Cutting", [(name, int, 8)])
    Cutting.__module__ = "trl.somewhere"
    for method in ("orpo", "cpo"):
        with pytest.raises(UsageError, match=f"{method} has no option {name}") as caught:
            settings(Cutting, METHODS[method], {name: 8}, {})
        assert "format.truncation" in caught.value.hint
    assert settings(Cutting, METHODS["grpo"], {name: 8}, {})[0] == {name: 8}


def test_every_name_of_the_tables_has_an_answer():
    for name in (*RENAMED, *REMOVED, *DECIDED):
        assert where_it_went(name).endswith(".")
    assert not REMOVED.keys() & {*RENAMED, *DECIDED}
    assert where_it_went("learning_rate") == ""


# ---------------------------------------------------------------- values


@dataclasses.dataclass
class Values:
    """A field of each type that configs have."""

    learning_rate: float = 1.0
    per_device_train_batch_size: int = 8
    seed: int = 42
    num_train_epochs: float = 3.0
    max_steps: int = -1
    tf32: bool | None = None
    run_name: str | None = None
    report_to: str | list[str] | None = None
    loss_type: list[str] = dataclasses.field(default_factory=list)
    optim_args: dict[str, str] | str | None = None


Values.__module__ = "trl.somewhere"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("learning_rate", True, "a number, 0 or more"),
        ("learning_rate", "abc", "a number"),
        ("learning_rate", float("nan"), "a number"),
        ("learning_rate", None, "a number"),
        ("lr", "abc", "a number"),
        ("num_train_epochs", "1e", "a number"),
        ("per_device_train_batch_size", 0, "a whole number, 1 or more"),
        ("seed", 1.5, "a whole number"),
        ("tf32", "yes", "true or false or null"),
        ("run_name", True, "text or null"),
        ("report_to", False, "text or a list"),
        ("loss_type", 1, "a list"),
        ("optim_args", [1], "a table or text or null"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_is_allowed(name, value, allowed):
    with pytest.raises(UsageError) as caught:
        made(Values, {name: value})
    assert f"--{name.replace('_', '-')}" in caught.value.message
    assert ("no value" if value is True else repr(value)) in caught.value.message
    assert allowed in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("learning_rate", "1e-3", 1e-3),
        ("learning_rate", 0, 0),
        ("seed", "7", 7),
        ("max_steps", 1e3, 1000),
        ("max_steps", -1, -1),
        ("tf32", None, None),
        ("run_name", 7, "7"),
        ("report_to", ["wandb"], ["wandb"]),
        ("loss_type", "sigmoid", "sigmoid"),
        ("optim_args", {"a": 1}, {"a": 1}),
        ("epochs", "2", 2),
    ],
)
def test_a_value_that_fits_is_taken(name, value, taken):
    found, _ = made(Values, {name: value})
    assert list(found.values()) == [taken]
    assert type(next(iter(found.values()))) is type(taken)


# ---------------------------------------------------------------- defaults


def test_given_values_come_before_defaults_and_defaults_before_stock():
    found, _ = made(Today, {"learning_rate": 1.0}, presets("sft").items())
    assert found["learning_rate"] == 1.0
    assert (found["warmup_steps"], found["seed"], found["optim"]) == (0.05, 42, "adamw_torch")
    assert "max_length" not in found


def test_no_default_of_another_engine_is_left():
    """A config class that is not TRL's own changes defaults in its `__init__`."""

    @dataclasses.dataclass
    class Patched(Today):
        def __init__(self, **given):
            super().__init__(**{"optim": "adamw_8bit", "seed": 3407, "max_length": 7, **given})

    Patched.__module__ = "unsloth_compiled_cache"
    stock = Today(**made(Today, {}, presets("sft").items())[0])
    patched = Patched(**made(Patched, {}, presets("sft").items())[0])
    assert dataclasses.asdict(patched) == dataclasses.asdict(stock)
    assert Patched().seed == 3407


def test_lora_takes_ten_times_the_learning_rate():
    assert presets("sft")["learning_rate"] == 2e-5
    for name in METHODS:
        assert presets(name, lora=True)["learning_rate"] == pytest.approx(10 * presets(name)["learning_rate"])


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [name for name in METHODS if name != "prm"])
def test_the_presets_are_fields_of_the_installed_config(name, tmp_path):
    pytest.importorskip("trl")
    from trainglue.methods import resolve

    _, config_class = resolve(name)
    defaults = presets(name, evaluates=True) | {"use_cpu": True, "bf16": False, "output_dir": str(tmp_path)}
    found, notes = settings(config_class, METHODS[name], {}, defaults)
    assert set(found) == set(defaults)
    assert not notes
    built = config_class(**found)
    assert built.learning_rate == defaults["learning_rate"]


@pytest.mark.filterwarnings("default")
def test_what_is_said_to_be_gone_is_gone_or_ours():
    """No option of the installed SFTConfig is refused by the table without a reason of our own."""
    pytest.importorskip("trl")
    from trainglue.methods import resolve

    fields = {field.name for field in dataclasses.fields(resolve("sft")[1])}
    removed = {name for name, text in REMOVED.items() if text.startswith("removed in") and name in fields}
    assert not removed
    assert {new for new, _ in RENAMED.values()} - fields == set()


# ---------------------------------------------------------------- the configuration


def test_schema_is_in_sync():
    made = orjson.dumps(config.schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    assert (ROOT / "schemas" / "run.json").read_bytes() == made, "run: python -m trainglue.config schemas/run.json"
    Draft202012Validator.check_schema(config.schema())


def test_command_line_and_library_are_twins():
    named = {
        name
        for name, parameter in inspect.signature(trainer).parameters.items()
        if parameter.kind.name != "VAR_KEYWORD"
    }
    assert named == {"method", *(field.name for field in config.FIELDS)}


def test_a_run_toml_is_read_and_its_paths_are_beside_it(tmp_path):
    (tmp_path / "ready").mkdir()
    path = tmp_path / "run.toml"
    path.write_text(
        'method = "sft"\nmodel = "org/name"\ndata = "ready"\noutput_dir = "out"\nlora = {r = 4}\nseed = 1\n'
    )
    found = config.load(path)
    assert found == {
        "method": "sft",
        "model": "org/name",
        "data": str(tmp_path / "ready"),
        "output_dir": str(tmp_path / "out"),
        "lora": {"r": 4},
        "seed": 1,
    }
    Draft202012Validator(config.schema()).validate(found)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('method = "ppo"', "method"),
        ('lora = "x"', "lora"),
        ("resume = 1", "resume"),
        ('engine = "x"', "engine"),
        ("eval_share = 1", "eval_share"),
        ("max_length = 0", "max_length"),
        ("lora = 0", "lora"),
        ('format = {truncatoin = "drop"}', "format has no truncatoin"),
        ("format = {max_length = 9}", "format has no max_length"),
        ('fp8 = {backnd = "te"}', "fp8 has no backnd"),
    ],
)
def test_a_wrong_value_names_its_place_as_the_schema_does(line, place, tmp_path):
    path = tmp_path / "run.toml"
    base = {"method": '"sft"', "model": '"m"', "data": '"d"', "output_dir": '"o"'}
    name, _, value = line.partition(" = ")
    path.write_text("".join(f"{key} = {text}\n" for key, text in (base | {name: value}).items()))
    with pytest.raises(UsageError, match=place):
        config.load(path)
    import tomllib

    assert not Draft202012Validator(config.schema()).is_valid(tomllib.loads(path.read_text()))


def test_a_missing_name_is_an_error(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('method = "sft"\n')
    with pytest.raises(UsageError, match="no model"):
        config.load(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("2e-5", 2e-5),
        ("true", True),
        ("null", None),
        ("none", "none"),
        ("steps", "steps"),
        ('["a", "b"]', ["a", "b"]),
        ('{"a": 1}', {"a": 1}),
    ],
)
def test_values_are_read_as_typed(text, value):
    assert config.value_of(text) == value


def test_words_with_commas_are_a_list():
    assert config.fields_of(["r=4", "target_modules=q_proj,v_proj", "layers=1,2", "pattern=(a,b)"], "--lora") == {
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "layers": [1, 2],
        "pattern": "(a,b)",
    }


def test_printed_toml_is_read_back():
    import tomllib

    given = {"a": 1, "b": 2e-5, "c": 'x"y', "d": [1, "z"], "e": {"r": 4}, "f": True, "g": None}
    assert tomllib.loads(config.to_toml(given, {"a": "one"})) == {k: v for k, v in given.items() if v is not None}


# ---------------------------------------------------------------- the house


def test_importing_trainglue_is_light():
    code = (
        "import sys, trainglue, trainglue.cli, trainglue.config; print([m for m in sys.argv[1:] if m in sys.modules])"
    )
    heavy = ["torch", "transformers", "datasets", "trl", "peft", "unsloth", "polars"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_there():
    import trainglue

    assert trainglue.__all__ == sorted(trainglue.__all__)
    assert all(hasattr(trainglue, name) for name in trainglue.__all__)
    assert json.dumps(options.presets("dpo"))
