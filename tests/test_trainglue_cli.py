"""The command line: a newcomer's two commands, flags of the trainer's own config, files, and errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("trl")
pytest.importorskip("torch")

from datakit.commandline import Interrupted
from datakit.errors import UsageError
from trainglue import cli

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("tiny")]

ROOT = Path(__file__).resolve().parent.parent
FIXTURE = ROOT / "fixtures" / "dolly" / "good.jsonl"
STEPS = [
    "--max-steps",
    "2",
    "--per-device-train-batch-size=2",
    "--gradient-accumulation-steps",
    "1",
    "--eval-share",
    "0",
]


@pytest.fixture
def run(capsys):
    """Calls the command line in this process: exit code, stdout, stderr."""

    def called(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(list(map(str, arguments)))
        output = capsys.readouterr()
        return caught.value.code, output.out, output.err

    return called


def test_a_newcomer_trains_an_adapter_with_two_commands(tiny, tmp_path):
    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
        "TRAINGLUE_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }

    def typed(module, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    typed("datakit", "convert", FIXTURE, "-o", "shards")
    printed = typed(
        "trainglue",
        *("sft", "--data", "shards", "--model", tiny.model, "--output", "out", "--lora", 8, "--use-cpu"),
        *("--max-steps", 12, "--learning-rate", 0.02, "--logging-steps", 1, "--eval-share", 0),
    )
    losses = [float(text) for text in re.findall(r"  loss (\S+)", printed)]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.05  # embeddings and head are random and frozen, so there is not far to go
    assert {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "run.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["command"][1:3] == ["sft", "--data"]
    assert record["status"] == "finished"


def test_a_printed_config_is_a_run(tiny, run, tmp_path):
    code, out, _ = run(
        *("dpo", "--data", tiny.formatted("dpo"), "--model", tiny.model, "--output-dir", tmp_path / "out"),
        *("--lora", "r=4", "--lora", "lora_alpha=8", "--beta", "0.2", "--print-config", *STEPS),
    )
    assert code == 0
    told = tomllib.loads(out)
    assert told["learning_rate"] == 1e-5
    assert told["lora"] == {"r": 4, "lora_alpha": 8}
    assert (told["beta"], told["max_steps"], told["gradient_accumulation_steps"]) == (0.2, 2, 1)
    path = tmp_path / "run.toml"
    path.write_text(out)
    code, out, err = run("train", path, "--max-steps", 1, "--use-cpu")
    assert code == 0, err
    assert out.startswith("dpo trained, 1 step, loss 0.69")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"]["beta"] == 0.2
    assert (tmp_path / "out" / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "chats"],
        ["--data", "packed"],
        ["--data", "mix.toml"],
        ["--data", "mix.toml", "--streaming"],
        ["--data", "packed.toml"],
        ["--data", "chats", "--eval-strategy", "no"],
        ["--data", "chats", "--evaluation-strategy", "no"],
        ["--data", "chats", "--eval-share", "0"],
        ["--data", "chats", "--eval-data", "ready-sft"],
        ["--data", "chats", "--early-stopping", "2", "--eval-steps", "30", "--eval-share", "0.4", "--lora", "2"],
    ],
    ids=" ".join,
)
def test_a_printed_config_is_the_run_without_it(arguments, tiny, run, tmp_path, monkeypatch):
    from trainglue import config, training

    for name, folder in (("mix", tiny.formatted("sft")), ("packed", tiny.packed())):
        (tiny.root / f"{name}.toml").write_text(f'[sources.one]\npath = "{folder}"\nweight = 1.0\n')
    monkeypatch.chdir(tiny.root)
    words = [*arguments, "--model", "writes", "--output-dir", tmp_path / "out", "--report-to", "none"]
    told: list[dict[str, object]] = []
    monkeypatch.setattr(cli, "_run", lambda method, given, printed: told.append(given))
    run("sft", *words)
    monkeypatch.undo()
    monkeypatch.chdir(tiny.root)
    code, out, err = run("sft", *words, "--print-config")
    assert code == 0, err
    path = tmp_path / "run.toml"
    path.write_text(out)
    printed = config.load(path)
    assert printed.pop("method") == "sft"
    made = [training.trainer("sft", **given, overwrite=True) for given in (told[0], printed)]
    options = [{name: value for name, value in one.args.to_dict().items() if name != "logging_dir"} for one in made]
    assert options[1] == options[0]
    assert len(made[1].eval_dataset or ()) == len(made[0].eval_dataset or ())


def test_grpo_with_named_rewards(tiny, run, tmp_path):
    code, out, err = run(
        *("grpo", "--data", tiny.canonical("grpo"), "--model", tiny.model, "--output-dir", tmp_path / "out"),
        *("--reward", "exact_match", "--reward", "tests.test_trainglue_cli.short", "--use-cpu", "--max-steps", 1),
        *("--num-generations", 2, "--max-completion-length", 4, "--per-device-train-batch-size", 2),
    )
    assert code == 0, err
    assert "grpo trained, 1 step" in out
    code, out, _ = run("rewards")
    assert code == 0
    assert "exact_match" in out


def test_a_run_that_is_interrupted_goes_on_with_a_word(run, monkeypatch):
    def interrupted(*_):
        raise Interrupted(2)

    monkeypatch.setattr(cli, "_run", interrupted)
    code, _, err = run("sft", "--data", "x")
    assert code == 130
    assert "--resume" in err


def test_the_words_of_a_method_are_those_of_a_file_too(run, tmp_path, monkeypatch):
    (tmp_path / "run.toml").write_text('method = "sft"\nmodel = "m"\ndata = "d"\noutput_dir = "one"\n')
    told = []
    monkeypatch.setattr(cli, "_run", lambda method, given, printed: told.append(given))
    assert run("train", tmp_path / "run.toml", "--output", "two", "--no-cuda")[0] == 0
    assert (told[0]["output_dir"], told[0]["no_cuda"]) == ("two", True)


@pytest.mark.parametrize("words", [["--eval-strategy", "epoch"], ["--save-steps", "50"], ["--eval-steps", "7"]])
def test_early_stopping_saves_when_it_evaluates(words, run):
    code, out, err = run("sft", "--print-config", "--early-stopping", "2", *words)
    assert code == 0, err
    told = tomllib.loads(out)
    assert (told["eval_strategy"], told["eval_steps"]) == (told["save_strategy"], told["save_steps"])


def short(completions, **_):
    return [1.0 / (1 + len(str(completion))) for completion in completions]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sft"], ["no model", "--model"]),
        (["ppo"], ["No such command 'ppo'"]),
        (["sft", "--lora", "x"], ["NAME=VALUE"]),
        (["sft", "lost"], ["belongs to no option"]),
        (["train", "missing.toml"], ["missing.toml", "--print-config"]),
        (
            ["sft", "--print-config", "--learning-rate", "--eval-share", "0"],
            ["--learning-rate has no value", "a number"],
        ),
        (["sft", "--print-config", "--learning-rat", "1"], ["learning_rate"]),
        (["sft", "--print-config", "--eval-share", "2"], ["eval_share = 2.0", "below 1"]),
        (["sft", "--print-config", "--max-length", "0"], ["max_length = 0", "at least 1"]),
        (["grpo", "--print-config", "--reward-funcs", "x"], ["--reward NAME"]),
        (["sft", "--print-config", "--format", "truncatoin=drop"], ["no truncatoin", "truncation?"]),
        (["sft", "--print-config", "--format", "max_length=9"], ["an option of the run itself"]),
        (["sft", "--print-config", "--fp8", "backnd=te"], ["no backnd", "backend?"]),
        (["sft", "--print-config", "--lora", "lora_alfa=1"], ["no lora_alfa", "lora_alpha"]),
        (["sft", "--print-config", "--lora", "rank=8"], ["no rank", "Did you mean r?"]),
        (["sft", "--lora"], ["--lora", "trainglue --help"]),
        (["sft", "--print-config", "--lr", "1", "--learning-rate", "2"], ["lr and learning_rate are the same option"]),
        (["sft", "--print-config", "--optim", "foo"], ["foo is not a valid"]),
        (["sft", "--print-config", "--num-train-epochs", "0"], ["num_train_epochs 0"]),
        (["orpo", "--print-config", "--ref-model", "x"], ["ref_model is not for orpo", "dpo, kto, bco"]),
        (["sft", "--print-config", "--reward", "x"], ["reward is not for sft", "grpo"]),
        (["sft", "--data", FIXTURE, "--model", "m", "--output", "o"], [f"datakit convert {FIXTURE} -o shards/"]),
        (["sft", "--data", FIXTURE.parent, "--model", "m", "--output", "o"], ["without a manifest", "datakit convert"]),
    ],
)
def test_wrong_calls_say_what_to_write(arguments, words, run):
    code, _, err = run(*arguments)
    assert code in (2, 3)
    for word in words:
        assert word in err


def test_a_printed_config_has_todays_names_and_no_resume(run):
    code, out, err = run("sft", "--print-config", "--lr", "1e-3", "--resume", "--overwrite", "--epochs", "2")
    assert code == 0, err
    told = tomllib.loads(out)
    assert (told["learning_rate"], told["num_train_epochs"]) == (1e-3, 2)
    assert not told.keys() & {"lr", "epochs", "resume", "overwrite"}
    assert "lr is taken as learning_rate" in err


@pytest.mark.parametrize(
    ("method", "of", "hint"),
    [
        ("kto", "dpo", "datakit unpair {} -o NEW"),
        ("bco", "dpo", "datakit unpair {} -o NEW"),
        ("dpo", "kto", "datakit pair {} -o NEW"),
        ("sft", "kto", "No conversion makes sft rows of kto rows"),
        ("dpo", "sft", "No conversion makes preference rows of sft rows"),
    ],
)
def test_rows_of_another_kind_come_with_a_command_that_works(method, of, hint, tiny):
    from trainglue.data import dataset

    folder = tiny.canonical(of)
    with pytest.raises(UsageError) as caught:
        dataset(folder, method=method)
    assert hint.format(folder) in caught.value.hint
    assert of in caught.value.hint
    assert "prm" not in caught.value.hint


@pytest.mark.parametrize("kind", ["canonical", "formatted"])
def test_rows_above_the_length_name_a_way_out(kind, tiny, run, tmp_path):
    folder = getattr(tiny, kind)("sft")
    code, _, err = run(
        *("sft", "--data", folder, "--model", tiny.model, "--output", tmp_path / "out", "--use-cpu"),
        *("--max-length", 10, "--eval-share", 0),
    )
    assert code == (1 if kind == "canonical" else 2)
    assert "--format truncation=drop" in err


def test_an_unknown_option_of_the_trainer_is_named(tiny, run, tmp_path):
    base = ["sft", "--data", tiny.formatted("sft"), "--model", tiny.model, "--output-dir", tmp_path / "out"]
    code, _, err = run(*base, "--max-stepz", 2)
    assert code == 2
    assert "max_steps" in err
    code, _, err = run(*base, "--loss-seq-chunk-size", 1024)
    assert code == 2
    assert "computed in chunks" in err


def test_old_names_are_taken_and_said(tiny, run, tmp_path):
    code, _, err = run(
        *("sft", "--data", tiny.formatted("sft"), "--model", tiny.model, "--output-dir", tmp_path / "out"),
        *(
            *STEPS,
            "--use-cpu",
            "--report-to",
            "none",
            "--lr",
            "1e-3",
            "--evaluation-strategy",
            "no",
            "--activation-offloading",
            "false",
        ),
    )
    assert code == 0, err
    assert "lr is taken as learning_rate" in err


def test_what_a_run_refuses_without_its_data_a_printed_config_refuses_too(run):
    code, _, err = run("sft", "--eval-share", "0", "--early-stopping", "2", "--print-config")
    assert (code, "early_stopping needs rows" in err) == (2, True)
    code, _, err = run("grpo", "--reward", "nope", "--print-config")
    assert (code, "no reward 'nope'" in err) == (2, True)


def test_lists_are_told_with_commas(run):
    code, out, err = run("grpo", "--reward", "length", "--reward-weights", "0.3,1", "--print-config")
    assert code == 0, err
    assert tomllib.loads(out)["reward_weights"] == [0.3, 1.0]
    code, out, _ = run("sft", "--report-to", "wandb,tensorboard", "--print-config")
    assert tomllib.loads(out)["report_to"] == ["wandb", "tensorboard"]


def test_a_flag_changes_a_field_of_a_table_in_the_file(run, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'method = "sft"\nmodel = "m"\ndata = "d"\noutput_dir = "o"\nlora = { r = 16, lora_dropout = 0.1 }\n'
    )
    for words, lora in (
        (["--lora", "8"], {"r": 8, "lora_dropout": 0.1}),
        (["--lora", "4", "--lora", "lora_alpha=9"], {"r": 4, "lora_alpha": 9, "lora_dropout": 0.1}),
    ):
        code, out, err = run("train", file, *words, "--print-config")
        assert code == 0, err
        assert tomllib.loads(out)["lora"] == lora


def test_the_metrics_of_a_line():
    from trainglue.callbacks import metrics

    logs = {"loss": 0.5, "reward_std": 0.25, "rewards/length/mean": -1, "clip_ratio/low": 0.0, "epoch": 1.0}
    assert metrics(logs) == "loss 0.5  reward_std 0.25  rewards/length/mean -1  epoch 1"
    assert metrics({"epoch": 1.0, "train_runtime": 2.0}) == ""


def test_how_flags_are_read():
    read = cli._others(["--max-steps", "2", "--no-bf16", "--beta=0.2", "--flag", "--name", "-1"])
    assert read == {"max_steps": 2, "bf16": False, "beta": 0.2, "flag": True, "name": -1}
    with pytest.raises(UsageError):
        cli._others(["stray"])
