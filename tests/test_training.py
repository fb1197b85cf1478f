"""Runs: what is refused before anything is loaded, evaluation, checkpoints that resume, records, streams, processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("torch")
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

import datakit
import trainglue
from datakit.errors import NotWritten, UnreadableInput, UsageError
from tests.small_tokenizers import chatml, llama, shards, turns
from tests.tiny_models import QUIET, ROWS
from trainglue import METHODS, data, engines, runs, trainer
from trainglue.data import lengths_of
from trainglue.methods import resolve

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("tiny")]

ROOT = Path(__file__).resolve().parent.parent
STEPS = {**QUIET, "logging_steps": 1, "learning_rate": 1e-3, "warmup_steps": 0, "lr_scheduler_type": "constant"}


def sft(tiny, tmp_path, **options):
    given = {"model": tiny.model, "data": tiny.formatted("sft"), "output_dir": tmp_path / "run", **STEPS, **options}
    return trainer("sft", **given)


def losses(made):
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def record(folder):
    return json.loads((folder / "run.json").read_text())


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def unloaded(monkeypatch):
    """Nothing is loaded: a model that is would fail the test."""
    from trainglue import models

    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))


def refused(tiny, tmp_path, method="sft", **options):
    given = {"model": tiny.model, "data": tiny.formatted("sft"), "output_dir": tmp_path / "run", **STEPS, **options}
    with pytest.raises(UsageError) as caught:
        trainer(method, **given)
    return caught.value


def test_rows_of_another_kind(tiny, tmp_path, unloaded):
    error = refused(tiny, tmp_path, "dpo")
    assert "dpo trains on preference" in error.message
    error = refused(tiny, tmp_path, data=tiny.formatted("dpo"))
    assert "--for sft" in error.hint


def test_pairs_of_token_ids_are_unpaired_as_they_are(tiny, tmp_path, unloaded):
    hint = refused(tiny, tmp_path, "kto", data=tiny.formatted("dpo")).hint
    assert hint.startswith(f"datakit unpair {tiny.formatted('dpo')} -o NEW.")
    assert datakit.unpair(tiny.formatted("dpo"), tmp_path / "unpaired").exit_code == 0


def test_rows_that_formatting_leaves_out_are_said_and_recorded(tiny, tmp_path, capsys):
    """Every time, not only where the cache is filled."""
    lengths = sorted(row["dk_length"] for row in datakit.load(tiny.formatted("sft")).rows(all=True))
    limit = lengths[len(lengths) // 2]
    over = sum(length > limit for length in lengths)
    for name in ("one", "two"):
        options = {"max_length": limit, "format": {"truncation": "drop"}, "data": tiny.canonical("sft")}
        sft(tiny, tmp_path / name, **options, max_steps=1, eval_share=0).train()
        said = f"{len(lengths) - over} rows of {len(lengths)} of {tiny.canonical('sft')} formatted; left out: {over} by DK702"
        assert said in capsys.readouterr().err
        assert record(tmp_path / name / "run")["data"]["rejected"] == {"DK702": over}


def test_other_errors_of_formatting_name_the_way_out(tiny, tmp_path):
    raw = tmp_path / "raw.jsonl"
    said = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "a"}]
    raw.write_text(json.dumps({"messages": said}) + "\n", "utf-8")
    datakit.convert(raw, tmp_path / "shards").raise_for_status()
    with pytest.raises(datakit.DataFailed) as caught:
        sft(tiny, tmp_path, data=tmp_path / "shards")
    assert "--format control_tokens=escape" in caught.value.hint


def test_both_answers_of_a_pair_are_on_one_side(tiny, tmp_path):
    datakit.unpair(tiny.formatted("dpo"), tmp_path / "kto").raise_for_status()
    rows, held = data.hold_out(data.all_rows(datakit.load(tmp_path / "kto")), 0.5)
    pairs = [row["dk_pair_id"] for row in datakit.load(tmp_path / "kto").rows(all=True)]
    assert held is not None
    sides = [{pairs[at] for at in side.positions} for side in (rows, held)]  # type: ignore[union-attr]
    assert sides[0].isdisjoint(sides[1])
    assert len(pairs) == 2 * len(set(pairs)) == len(rows) + len(held)


def test_a_share_that_no_row_falls_into_is_said(tiny, tmp_path, capsys):
    made = sft(tiny, tmp_path, eval_share=1e-9)
    assert made.eval_dataset is None
    assert "no evaluation: none of" in capsys.readouterr().err
    assert "no row was held out" in refused(tiny, tmp_path / "b", eval_share=1e-9, early_stopping=1).message


def test_ids_of_another_tokenizer(tiny, tmp_path, unloaded):
    other, foreign = llama(tmp_path / "other"), tmp_path / "foreign"
    datakit.format(tiny.canonical("sft"), foreign, tokenizer=other, method="sft", workers=1).raise_for_status()
    error = refused(tiny, tmp_path, data=foreign)
    assert str(other) in error.message
    assert "datakit format" in error.hint


def test_text_of_another_template(tiny, tmp_path, unloaded):
    other = chatml(tmp_path / "other", "{% for m in messages %}{{ m.content }}{% endfor %}")
    error = refused(tiny, tmp_path, tokenizer=other)
    assert "another chat template" in error.message
    assert "--chat-template" in error.hint


def test_shards_that_were_changed(tiny, tmp_path, unloaded):
    import shutil

    copied = tmp_path / "copied"
    shutil.copytree(tiny.formatted("sft"), copied)
    path = next((copied / "data").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UnreadableInput, match="bytes have changed"):
        trainer("sft", model=tiny.model, data=copied, output_dir=tmp_path / "run", **STEPS)


def test_rows_above_a_length(tiny, tmp_path, unloaded):
    error = refused(tiny, tmp_path, max_length=10)
    assert f"{ROWS} rows" in error.message
    assert "--max-length 10" in error.hint


def test_canonical_rows_above_a_length_fail_or_are_dropped(tiny, tmp_path):
    with pytest.raises(datakit.DataFailed, match="DK702"):
        sft(tiny, tmp_path, data=tiny.canonical("sft"), max_length=10, max_steps=1)


def test_options_that_do_not_exist_or_contradict(tiny, tmp_path, unloaded):
    assert "learning_rate" in refused(tiny, tmp_path, learning_rat=1).hint
    assert "format.pack" in refused(tiny, tmp_path, packing=True).hint
    assert "truncation" in refused(tiny, tmp_path, format={"truncation": "drop"}).message
    assert "pip install" in refused(tiny, tmp_path, report_to="wandb").hint
    assert "eval_share" in refused(tiny, tmp_path, eval_share=0.1, eval_data=tiny.formatted("sft")).message
    for strategy in ("no", "steps"):
        assert "early_stopping" in refused(tiny, tmp_path, early_stopping=1, save_strategy=strategy).message


def test_a_stream_refuses_what_would_do_nothing(tiny, recipe, tmp_path, unloaded):
    stream = {"data": recipe, "streaming": True}
    assert "split of each source" in refused(tiny, tmp_path, **stream, split="train").hint
    assert "eval_data" in refused(tiny, tmp_path, **stream, eval_split="test").hint
    assert "datakit format" in refused(tiny, tmp_path, **stream, format={"truncation": "drop"}).hint
    assert (
        f"{ROWS} rows of {tiny.formatted('sft')} above 10" in refused(tiny, tmp_path, **stream, max_length=10).message
    )
    assert "memory-mapped" in refused(tiny, tmp_path, streaming=True).hint
    epoch = refused(tiny, tmp_path, **stream, save_strategy="epoch")
    assert epoch.message == "save_strategy and a stream exclude each other"
    assert epoch.hint == f"--save-strategy steps --save-steps N; an epoch has {(ROWS + 5 + 1) // 2}."
    for options, said in (
        ({"eval_strategy": "epoch"}, "--eval-steps"),
        ({"logging_strategy": "epoch"}, "--logging-steps"),
        ({"auto_find_batch_size": True}, "per_device_train_batch_size"),
        ({"accelerator_config": {"split_batches": True}}, "per_device_train_batch_size"),
        ({"dataloader_drop_last": True}, f"--max-steps {3 * (ROWS + 5) // 2} "),
    ):
        given = {"eval_data": tiny.formatted("sft"), "eval_share": None, "num_train_epochs": 3, **options}
        assert said in refused(tiny, tmp_path, **stream, **given).hint


def test_what_grpo_would_not_do(tiny, tmp_path, unloaded):
    def wanting(completions, difficulty, **_):
        return [0.0 for _ in completions]

    path = tmp_path / "mix.toml"
    path.write_text(f'[sources.one]\npath = "{tiny.canonical("grpo")}"\nweight = 1.0\n')
    grpo = {"method": "grpo", "data": tiny.canonical("grpo"), "reward": "exact_match", "eval_share": None}
    assert "order of a stream" in refused(tiny, tmp_path, **{**grpo, "data": path}, streaming=True).message
    assert "max_completion_length" in refused(tiny, tmp_path, **grpo, max_length=10).hint
    assert "no reward 'exact'" in refused(tiny, tmp_path, **{**grpo, "reward": "exact"}).message
    error = refused(tiny, tmp_path, **{**grpo, "reward": ["length", wanting]}, num_generations=2)
    assert "reward wanting needs the column difficulty; the rows have answer" in error.message
    bare = shards(tmp_path / "bare", [{"prompt": "What?"}], to="prompt")
    assert "column of answers" in refused(tiny, tmp_path, **{**grpo, "data": bare}, num_generations=2).message


def test_unknown_formatting_options(tiny, tmp_path, unloaded):
    assert "trunkation" in refused(tiny, tmp_path, data=tiny.canonical("sft"), format={"trunkation": "drop"}).message


def test_a_model_without_room_for_the_tokenizer(tiny, tmp_path):
    small = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    error = refused(tiny, tmp_path, model=LlamaForCausalLM(small), tokenizer=tiny.model)
    assert "64 embeddings" in error.message


def test_one_engine_in_a_process(monkeypatch):
    monkeypatch.setattr(engines, "_used", "trl")
    with pytest.raises(UsageError, match="already trains with trl"):
        engines.choose("unsloth", "out")
    monkeypatch.setattr(engines, "_used", None)
    with pytest.raises(UsageError, match="not installed|must come first"):
        engines.choose("unsloth", "out")


# ---------------------------------------------------------------- the model and the data agree


def test_the_model_stops_where_the_data_ends_a_turn(tiny, tmp_path):
    made = sft(tiny, tmp_path, max_steps=1)
    end = made.processing_class.convert_tokens_to_ids("<|im_end|>")
    assert made.model.generation_config.eos_token_id == [0, end]


def test_another_template_is_saved_with_the_model(tiny, tmp_path):
    from trl.chat_template_utils import qwen2_5_chat_template

    template = tmp_path / "template.jinja"
    template.write_text(qwen2_5_chat_template.replace("You are Qwen", "You are"))
    made = sft(tiny, tmp_path, data=tiny.canonical("sft"), chat_template=template, max_steps=1)
    made.save_model()
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == template.read_text()


def test_a_model_in_memory_is_trained_with_a_copy_as_reference(tiny, tmp_path, capsys):
    model = LlamaForCausalLM.from_pretrained(tiny.model)
    made = trainer(
        "dpo",
        model=model,
        tokenizer=tiny.model,
        data=tiny.formatted("dpo"),
        output_dir=tmp_path / "run",
        **{**STEPS, "max_steps": 2},
    )
    made.train()
    moved = [not torch.equal(a, b) for a, b in zip(made.model.parameters(), made.ref_model.parameters(), strict=True)]
    assert any(moved)
    assert "copy of the model in memory" in capsys.readouterr().err


def test_bf16_and_fields_of_lora(tiny, tmp_path):
    made = sft(tiny, tmp_path, max_steps=2, precision="bf16", lora={"r": 4, "target_modules": ["q_proj"]})
    made.train()
    adapted = {name for name, _ in made.model.named_parameters() if "lora_" in name}
    assert adapted
    assert all("q_proj" in name for name in adapted)
    assert made.args.bf16
    assert made.model.get_base_model().lm_head.weight.dtype is torch.bfloat16


def test_fp8_is_computed_in_or_the_run_stops(tiny, tmp_path, capsys):
    pytest.importorskip("torchao")
    made = sft(tiny, tmp_path, max_steps=2, precision="fp8", fp8={"emulate": True}, lora=4)
    made.train()
    assert made.state.global_step == 2
    assert made.args.pad_to_multiple_of == 16
    assert "linear layers converted" in capsys.readouterr().err
    assert record(tmp_path / "run")["precision"].startswith("fp8 (torchao")


def test_ids_that_others_made(tiny, tmp_path):
    ids = [{"input_ids": [1, 5, 6, 7 + n], "labels": [-100, 5, 6, 7 + n]} for n in range(4)]
    folder = shards(tmp_path / "ids", ids)
    made = sft(tiny, tmp_path, data=folder, max_steps=1)
    made.train()
    assert record(tmp_path / "run")["data"]["tokens"] == 16
    foreign = shards(tmp_path / "foreign", [{"input_ids": [1, 100_000], "labels": [1, 100_000]}])
    with pytest.raises(UsageError, match="token id 100000"):
        sft(tiny, tmp_path / "b", data=foreign)


def test_packed_rows(tiny, tmp_path):
    made = sft(tiny, tmp_path, data=tiny.packed(), max_steps=1, eval_share=None, per_device_train_batch_size=1)
    made.train()
    assert made.padding_free
    assert made.eval_dataset is None


# ---------------------------------------------------------------- evaluation


def test_rows_are_held_out_by_content(tiny, tmp_path):
    made = sft(tiny, tmp_path, eval_share=0.4, max_steps=2, eval_steps=1)
    ids = {tuple(row["input_ids"]) for row in trainglue.dataset(tiny.formatted("sft"), method="sft")}
    train = {tuple(row["input_ids"]) for row in made.train_dataset}
    evaluated = {tuple(row["input_ids"]) for row in made.eval_dataset}
    assert train | evaluated == ids
    assert not train & evaluated
    assert 0 < len(evaluated) < len(train)
    again = sft(tiny, tmp_path, eval_share=0.4, max_steps=2, data=tiny.canonical("sft"))
    assert {tuple(row["input_ids"]) for row in again.eval_dataset} == evaluated
    made.train()
    assert len([entry for entry in made.state.log_history if "eval_loss" in entry]) == 2
    assert record(tmp_path / "run")["data"]["evaluated_on"] == len(evaluated)


def test_a_split_to_evaluate_on(tiny, tmp_path):
    files = []
    for name in ("train", "test"):
        files.append(tmp_path / f"{name}.jsonl")
        rows = [{"messages": turns(f"{name} {n}?", "Yes.")} for n in range(4 if name == "train" else 2)]
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "shards"
    datakit.convert(files, folder, split=[f"train={files[0]}", f"test={files[1]}"]).raise_for_status()
    made = sft(tiny, tmp_path, data=folder, eval_share=None, eval_split="test", max_steps=1)
    assert (len(made.train_dataset), len(made.eval_dataset)) == (4, 2)
    with pytest.raises(UsageError, match="has the splits train, test"):
        sft(tiny, tmp_path, eval_data=folder, eval_share=None)


def test_training_ends_where_it_no_longer_helps(tiny, tmp_path):
    made = sft(
        tiny,
        tmp_path,
        eval_share=0.4,
        eval_steps=1,
        early_stopping=1,
        max_steps=20,
        learning_rate=10.0,  # the loss explodes
        save_strategy="steps",
    )
    made.train()
    assert made.state.global_step < 20
    assert made.state.best_model_checkpoint is not None


def test_early_stopping_remembers_what_a_checkpoint_had_seen(tiny, tmp_path):
    options: dict[str, Any] = {"eval_share": 0.4, "eval_steps": 1, "early_stopping": 2, "max_steps": 20}
    options |= {"learning_rate": 10.0, "save_strategy": "steps", "save_total_limit": None}
    whole = sft(tiny, tmp_path, **options)
    whole.add_callback(_Copies(tmp_path / "run", tmp_path))
    whole.train()
    for step in range(1, whole.state.global_step):
        again = sft(tiny, tmp_path / f"at {step}", **options, resume=True)
        again.train()
        assert again.state.global_step == whole.state.global_step < 20, f"from step {step}"


# ---------------------------------------------------------------- the run folder and going on


def test_a_run_goes_on_with_the_same_losses(tiny, tmp_path):
    whole = sft(tiny, tmp_path / "a", max_steps=8)
    whole.train()
    saves = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8}
    first = sft(tiny, tmp_path / "b", **saves)
    first.add_callback(_Stop(5))
    first.train()
    assert first.state.global_step == 5
    with pytest.raises(UsageError, match="holds an earlier run"):
        sft(tiny, tmp_path / "b", **saves)
    second = sft(tiny, tmp_path / "b", **saves, resume=True)
    second.train()
    assert losses(second)[-5:] == pytest.approx(losses(whole)[-5:], rel=1e-6)
    assert second.state.global_step == 8
    sessions = record(tmp_path / "b" / "run")["sessions"]
    assert [session["from_step"] for session in sessions] == [0, 3]
    assert [session["status"] for session in sessions] == ["finished", "finished"]


@pytest.mark.parametrize("streamed", [False, True], ids=["folder", "stream"])
def test_a_run_goes_on_from_every_checkpoint(streamed, tiny, recipe, tmp_path):
    steps = (ROWS + 5) // 2 + 3 if streamed else 7  # more than the recipe has rows for, so that it begins again
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": steps, "save_total_limit": None}
    options |= {"data": recipe, "streaming": True} if streamed else {}
    whole = sft(tiny, tmp_path, **options)
    whole.add_callback(_Copies(tmp_path / "run", tmp_path))
    whole.train()
    for step in range(1, steps):
        again = sft(tiny, tmp_path / f"at {step}", **options, resume=True)
        again.train()
        assert losses(again) == pytest.approx(losses(whole), rel=1e-6), f"from step {step}"
    assert len(losses(whole)) == steps


@pytest.mark.parametrize("streamed", [False, True], ids=["folder", "stream"])
def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(streamed, tiny, recipe, tmp_path, capsys):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5, "save_total_limit": None}
    options |= {"data": recipe, "streaming": True} if streamed else {}
    first = sft(tiny, tmp_path, **options)
    first.add_callback(_Stop(4))
    first.train()
    last = "stream.json" if streamed else "trainer_state.json"
    (tmp_path / "run" / "checkpoint-3" / last).unlink()
    half = tmp_path / "run" / "checkpoint-2" / last
    half.write_text(half.read_text()[:10])
    again = sft(tiny, tmp_path, **options, resume=True)
    again.train()
    assert record(tmp_path / "run")["sessions"][-1]["from_step"] == 1
    assert losses(again)[:4] == pytest.approx(losses(first), rel=1e-6)
    told = capsys.readouterr().err
    assert f"checkpoint-2 is incomplete: it has no readable {last}" in told
    assert "checkpoint-3 is incomplete" in told
    for path in (tmp_path / "run").glob("checkpoint-*"):
        (path / last).unlink()
    with pytest.raises(UsageError, match="no checkpoint") as caught:
        sft(tiny, tmp_path, **options, resume=True)
    assert "--overwrite" in caught.value.hint


def test_going_on_with_other_rows_is_refused(tiny, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    sft(tiny, tmp_path, **saves).train()
    other = shards(tmp_path / "other", [{"messages": turns("other?", "yes")}] * 4)
    with pytest.raises(UsageError, match="was begun with content_id"):
        sft(tiny, tmp_path, **saves, data=other, resume=True)
    with pytest.raises(UsageError, match="no checkpoint") as caught:
        sft(tiny, tmp_path / "empty", resume=True)
    assert caught.value.hint == "Leave out --resume to begin."
    sft(tiny, tmp_path, **saves, data=other, overwrite=True)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_another_run_is_not_gone_on_with(tiny, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    sft(tiny, tmp_path, **saves, eval_share=0).train()
    other = LlamaForCausalLM.from_pretrained(tiny.model)
    torch.nn.init.normal_(other.model.norm.weight)
    other.save_pretrained(chatml(tmp_path / "other"))
    for change, said in (
        ({}, "holds a finished run, step 2 of 2"),
        ({"model": str(tmp_path / "other"), "max_steps": 3}, "was begun with model"),
        ({"learning_rate": 0.5, "max_steps": 3}, "was begun with learning_rate"),
        ({"eval_share": 0.4, "max_steps": 3}, f"was begun with trained_on {ROWS}, now"),
        ({"lora": 2, "max_steps": 3}, "was begun with lora None, now 2"),
        ({"data_seed": 9, "max_steps": 3}, "was begun with data_seed None, now 9"),
        ({"dtype": "bfloat16", "max_steps": 3}, "was begun with dtype torch.float32, now torch.bfloat16"),
        ({"per_device_train_batch_size": 4, "max_steps": 3}, "was begun with rows_per_update 2, now 4"),
        ({"overwrite": True}, "exclude each other"),
    ):
        with pytest.raises(UsageError, match=said):
            sft(tiny, tmp_path, **{**saves, "eval_share": 0, **change}, resume=True)
    older = record(tmp_path / "run")
    for name in ("told", "weights", "precision", "dtype", "rows_per_update"):
        del older[name]
    del older["config"]["data_seed"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(older))
    other_machine = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    other_watch = {"logging_steps": 2, "save_steps": 5, "run_name": "again", "dataloader_num_workers": 1}
    longer = sft(tiny, tmp_path, **{**saves, "max_steps": 3, **other_machine, **other_watch}, eval_share=0, resume=True)
    longer.train()
    assert longer.state.global_step == 3


def begun(folder):
    """A folder with a checkpoint."""
    (folder / "run" / "checkpoint-1").mkdir(parents=True)
    (folder / "run" / "checkpoint-1" / "trainer_state.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("dpo", {"sync_ref_model": True}, "no checkpoint keeps the reference"),
        ("sft", {"train_sampling_strategy": "group_by_length"}, "another order"),
        ("sft", {"save_strategy": "steps", "save_only_model": True}, "no optimizer"),
    ],
    ids=lambda value: value if value in ("dpo", "sft") else None,
)
def test_what_no_checkpoint_keeps_is_not_gone_on_with(method, options, said, tiny, tmp_path):
    error = refused(tiny, begun(tmp_path), method, data=tiny.formatted(method), resume=True, **options)
    assert said in error.message


def test_a_loss_over_neighbours_goes_on_with_the_same_batch(tiny, tmp_path):
    def kto(**options):
        given = {**STEPS, "data": tiny.formatted("kto"), "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
        return trainer("kto", model=tiny.model, output_dir=tmp_path / "run", **{**given, **options})

    kto(per_device_train_batch_size=4).train()
    with pytest.raises(UsageError, match="was begun with per_device_train_batch_size 4, now 2"):
        kto(per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=2, resume=True)


def test_what_may_change_are_options_of_trainers():
    names = {field.name for method in METHODS if method != "prm" for field in fields(resolve(method)[1])}
    free = {*runs.FREE, *runs.BATCH}
    assert {part for part in free if not any(name.startswith(part) for name in names)} == set()
    assert names >= runs.UNKEPT.keys()


def test_other_adapters_are_not_gone_on_with(tiny, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    sft(tiny, tmp_path, **saves, lora=2).train()
    for lora, said in (
        (4, "was begun with lora 2, now 4"),
        ({"r": 2, "lora_alpha": 16}, "was begun with lora lora_alpha 2, now 16"),
        ({"r": 2, "target_modules": ["q_proj"]}, "was begun with lora target_modules"),
        (None, "was begun with lora 2, now None"),
    ):
        with pytest.raises(UsageError, match=said):
            sft(tiny, tmp_path, **{**saves, "max_steps": 2}, lora=lora, resume=True)
    longer = sft(tiny, tmp_path, **{**saves, "max_steps": 2}, lora=2, resume=True)
    longer.train()
    assert longer.state.global_step == 2


def test_grpo_counts_prompts_that_fill_no_batch_and_keeps_its_rewards(tiny, tmp_path):
    data = shards(
        tmp_path / "prompts", [{"prompt": f"What is {n}?", "answer": str(n)} for n in range(ROWS)], to="prompt"
    )

    def grpo(**options):
        given = {"reward": ["exact_match", _short], "num_generations": 2, "max_completion_length": 2, "max_steps": 1}
        given |= {"per_device_train_batch_size": 10, "save_strategy": "steps", "save_steps": 1} | options
        return trainer("grpo", model=tiny.model, data=data, output_dir=tmp_path / "run", **{**STEPS, **given})

    made = grpo()
    made.train()
    found = record(tmp_path / "run")
    assert found["rows_left_out_per_epoch"] == ROWS - len(set(made._get_train_sampler())) == 2
    assert found["told"]["reward"] == ["trainglue.rewards.exact_match", f"{__name__}._short"]
    with pytest.raises(UsageError, match="was begun with reward"):
        grpo(reward="length", resume=True, max_steps=2)
    with pytest.raises(UsageError, match=f"takes 20 rows at a time .* there are {ROWS}"):
        grpo(per_device_train_batch_size=40, overwrite=True)


def _short(completions, **_):
    return [1.0 / (1 + len(completion)) for completion in completions]


def test_an_earlier_run_stays_until_nothing_can_be_refused(tiny, tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    sft(tiny, tmp_path, **saves, lora=2).train()
    (tmp_path / "run" / "adapter_model.safetensors").write_bytes(b"of the first run")
    for change in ({"max_step": 1}, {"lora": {"aplha": 3}}, {"loss_type": "foo"}):
        with pytest.raises(UsageError):
            sft(tiny, tmp_path, **{**saves, **change}, overwrite=True)
        assert (tmp_path / "run" / "checkpoint-1").is_dir()
        assert (tmp_path / "run" / "run.json").exists()
    sft(tiny, tmp_path, **saves, overwrite=True)
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()
    (tmp_path / "kept" / "run").mkdir(parents=True)
    (tmp_path / "kept" / "run" / ".gitkeep").touch()
    sft(tiny, tmp_path / "kept", **saves)
    (tmp_path / "other" / "run").mkdir(parents=True)
    (tmp_path / "other" / "run" / "model.safetensors").write_bytes(b"somebody's")
    with pytest.raises(UsageError, match="no run of trainglue"):
        sft(tiny, tmp_path / "other", **saves)


def test_what_a_run_begins_with_is_not_overwritten(tiny, tmp_path, unloaded):
    (tmp_path / "run").mkdir()
    model = shutil.copytree(tiny.model, tmp_path / "run" / "checkpoint-4")
    data = shutil.copytree(tiny.formatted("sft"), tmp_path / "run" / "data")
    adapter = shutil.copytree(tiny.model, tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    for inputs in (
        *({name: model} for name in ("model", "tokenizer")),
        *({name: data} for name in ("data", "eval_data")),
        {"model": adapter},
    ):
        error = refused(tiny, tmp_path, overwrite=True, **{"eval_share": None, **inputs})
        assert "would remove what this run begins with" in error.message
    dpo = {"data": tiny.formatted("dpo"), "ref_model": model, "overwrite": True}
    assert "would remove" in refused(tiny, tmp_path, "dpo", **dpo).message


@pytest.mark.parametrize(
    "command",
    [
        ["sft", "--hub-token", "hf_SECRET", "--lr", "1"],
        ["sft", "--hub_token=hf_SECRET"],
        ["sft", "--push-to-hub-token=hf_SECRET"],
        ["sft", "--model-init-kwargs", '{"token": "hf_SECRET", "a": 1}'],
        ["sft", "--model-init-kwargs", "token=hf_SECRET"],
    ],
    ids=" ".join,
)
def test_a_command_is_recorded_without_its_tokens(command):
    told = runs.concealed(command)
    assert len(told) == len(command)
    assert told == [word.replace("hf_SECRET", "<TOKEN>") for word in command]
    assert runs.concealed(["--tokenizer", "m", "--data=my-token/x"]) == ["--tokenizer", "m", "--data=my-token/x"]


def test_a_token_is_not_recorded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["trainglue", "sft", "--hub-token", "hf_SECRET"])
    sft(tiny, tmp_path, max_steps=1, hub_token="hf_SECRET").train()
    assert "hf_SECRET" not in (tmp_path / "run" / "run.json").read_text()


@pytest.mark.parametrize("error", [ValueError("a bad step"), KeyboardInterrupt()], ids=["failed", "interrupted"])
def test_the_record_says_how_a_run_ended(error, tiny, tmp_path):
    made = sft(tiny, tmp_path, max_steps=3)
    made.add_callback(_Raises(2, error))
    with pytest.raises(type(error)):
        made.train()
    found = record(tmp_path / "run")
    status = "failed" if isinstance(error, ValueError) else "interrupted"
    assert (found["status"], found["sessions"][-1]["status"], found["step"]) == (status, status, 2)
    assert found["sessions"][-1]["error"] == f"{type(error).__name__}: {error}"


def test_rows_that_fill_no_batch_are_not_left_out_altogether(tiny, tmp_path):
    given = {"dataloader_drop_last": True, "per_device_train_batch_size": ROWS + 1}
    assert f"takes {ROWS + 1} rows at a time" in refused(tiny, tmp_path, **given).message


@pytest.mark.parametrize(
    "words", [{"lora": 0}, {"reward": "exact_match"}, {"early_stopping": 0}, {"max_steps": 0}], ids=str
)
def test_words_that_would_do_nothing_are_refused(words, tiny, tmp_path):
    with pytest.raises(UsageError):
        sft(tiny, tmp_path, **words)


def test_without_evaluation_nothing_is_held_out(tiny, tmp_path):
    made = sft(tiny, tmp_path, max_steps=1, eval_strategy="no", eval_share=None)
    assert made.eval_dataset is None


def test_the_record_says_what_a_run_was_made_of(tiny, tmp_path):
    made = sft(tiny, tmp_path, max_steps=2)
    made.train()
    found = record(tmp_path / "run")
    manifest = json.loads((tiny.formatted("sft") / "manifest.json").read_text())
    assert found["status"] == "finished"
    assert (found["method"], found["engine"], found["precision"], found["step"]) == ("sft", "trl", "fp32", 2)
    assert found["data"]["content_id"] == manifest["content_id"]
    assert found["data"]["trained_on"] == ROWS
    assert found["data"]["tokens"] == sum(len(row["input_ids"]) for row in made.train_dataset)
    assert found["versions"]["trl"]
    assert found["config"]["learning_rate"] == 1e-3
    assert found["adapters"] is None
    assert found["told"]["data"] == str(tiny.formatted("sft"))
    assert (found["told"]["eval_share"], found["told"]["engine"], found["told"]["precision"]) == (0, "auto", None)
    assert json.loads((tmp_path / "run" / "data_manifest.json").read_text()) == manifest


def test_out_of_memory_gives_advice(tiny, tmp_path, monkeypatch):
    made = sft(tiny, tmp_path, max_steps=1)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(made, "training_step", full)
    with pytest.raises(trainglue.OutOfMemory) as caught:
        made.train()
    assert "per_device_train_batch_size = 1 with gradient_accumulation_steps = 2" in caught.value.hint


def test_out_of_memory_in_evaluation_gives_other_advice(tiny, tmp_path, monkeypatch):
    options = {"eval_data": tiny.formatted("sft"), "eval_strategy": "steps", "eval_steps": 1, "eval_share": None}
    made = sft(tiny, tmp_path, max_steps=1, **options)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(made, "prediction_step", full)
    for work in (made.evaluate, made.train):
        with pytest.raises(trainglue.OutOfMemory) as caught:
            work()
        assert "per_device_eval_batch_size = 1, now 2" in caught.value.hint


def test_kto_is_not_advised_a_batch_that_it_refuses(tiny, tmp_path):
    made = trainer("kto", model=tiny.model, data=tiny.formatted("kto"), output_dir=tmp_path / "run", **STEPS)
    assert "batch" not in made.advice()
    made = trainer("bco", model=tiny.model, data=tiny.formatted("bco"), output_dir=tmp_path / "bco", **STEPS)
    assert "per_device_train_batch_size = 1 " in made.advice()


@pytest.fixture
def full_disk():
    """A file of this process may have no more than 20 kB; the system refuses the rest."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY if hard < 0 else hard, hard))

    return full


@pytest.mark.parametrize("only_model", [True, False])
def test_a_full_disk_is_said(only_model, tiny, tmp_path, full_disk):
    made = sft(tiny, tmp_path, max_steps=1, save_strategy="steps", save_steps=1, save_only_model=only_model)
    with full_disk(), pytest.raises(NotWritten, match="could not be written") as caught:
        made.train()
    assert "--resume" in caught.value.hint
    with full_disk(), pytest.raises(NotWritten, match=str(tmp_path / "run")):
        made.save_model()
    made.save_model()


def test_the_disk_may_end_in_the_optimizer(tiny, tmp_path, full_disk, monkeypatch):
    """torch says it in words of its own."""
    made = sft(tiny, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    monkeypatch.setattr(made, "save_model", lambda folder, **_: Path(folder).mkdir(parents=True))
    with full_disk(), pytest.raises(NotWritten, match="could not be written"):
        made.train()


def test_a_reward_that_fails_ends_the_run_in_words(tiny, tmp_path):
    def lacking(completions, **columns):
        return [columns["gold"] for _ in completions]

    class Unnamed:
        def __call__(self, completions, gold, **columns):
            return [0.0] * len(completions)

    options = {"model": tiny.model, "data": tiny.canonical("grpo"), "num_generations": 2, "max_completion_length": 4}
    given = {**STEPS, **options, "max_steps": 1, "eval_share": None, "output_dir": tmp_path / "run"}
    with pytest.raises(UsageError, match="reward Unnamed needs the column gold"):
        trainer("grpo", reward=Unnamed(), **given)
    with pytest.raises(UsageError, match=r"reward lacking, .*test_training.py:\d+: KeyError"):
        trainer("grpo", reward=lacking, **given).train()


def test_paths_in_hints_are_quoted(tiny, tmp_path, unloaded):
    raw = tmp_path / "my chats.jsonl"
    raw.write_text("{}")
    assert f"datakit convert '{raw}' -o shards/" in refused(tiny, tmp_path, data=raw).hint
    shutil.copytree(tiny.canonical("dpo"), tmp_path / "my pairs")
    assert f"datakit convert '{tmp_path / 'my pairs'}'" in refused(tiny, tmp_path, data=tmp_path / "my pairs").hint
    recipe = tmp_path / "mix.toml"
    recipe.write_text("")
    assert f"datakit mix {recipe} -o shards/" in refused(tiny, tmp_path, eval_data=recipe, eval_share=None).hint


def test_a_refused_folder_does_not_import_the_trainers(tiny, tmp_path):
    """An import of TRL before Unsloth would keep this process from Unsloth."""
    code = (
        "import sys, trainglue\n"
        "try: trainglue.trainer('dpo', model=sys.argv[1], data=sys.argv[2], output_dir=sys.argv[3])\n"
        "except trainglue.data.UsageError as error: print(error.message)\n"
        "print([name for name in ('trl', 'transformers', 'peft') if name in sys.modules])"
    )
    given = [tiny.model, str(tiny.formatted("sft")), str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "dpo trains on preference" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("name", "value"), [("seed", 3407), ("bf16", True)])
def test_options_that_a_trainer_changes_are_said_and_number_formats_refused(
    name, value, tiny, tmp_path, capsys, monkeypatch
):
    from trainglue import hooks

    class Changing:
        def __init__(self, *arguments, args, **options):
            setattr(args, name, value)
            super().__init__(*arguments, args=args, **options)  # type: ignore[call-arg]

    monkeypatch.setattr(hooks, "Guarded", type("Both", (hooks.Guarded, Changing), {}))
    if name == "bf16":
        with pytest.raises(UsageError, match="bf16 = True"):
            sft(tiny, tmp_path)
    else:
        sft(tiny, tmp_path)
        assert "SFTTrainer takes seed = 3407 for 42" in capsys.readouterr().err


def test_what_trainglue_settles_is_not_told_as_the_trainers_doing(tiny, tmp_path, capsys):
    sft(tiny, tmp_path, hub_token="hf_of_mine")
    told = capsys.readouterr().err
    assert " takes " not in told
    assert "hf_of_mine" not in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": {}}, "lora is empty"),
        ({"fp8": {}}, "fp8 is empty"),
        ({"num_train_epochs": 0}, "num_train_epochs 0"),
        ({"activation_offloading": True}, "this is a CPU"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message, tiny, tmp_path, unloaded):
    assert message in refused(tiny, tmp_path, **{"max_steps": -1, **options}).message


def test_canonical_rows_are_packed_and_padded_as_format_is_told(tiny, tmp_path):
    made = sft(tiny, tmp_path, data=tiny.canonical("sft"), max_length=256, format={"pack": "bfd", "pad_multiple": 16})
    assert made.padding_free
    assert made.args.pad_to_multiple_of == 16
    assert len(made.train_dataset) < ROWS


def test_packed_rows_to_evaluate_on_need_packed_rows_to_train_on(tiny, tmp_path):
    with pytest.raises(UsageError, match="attend to each other"):
        sft(tiny, tmp_path, eval_data=tiny.packed(), eval_share=None)


def test_prompts_of_messages_need_a_chat_template(tiny, tmp_path, unloaded):
    bare = chatml(tmp_path / "bare", None)
    error = refused(
        tiny,
        tmp_path,
        "grpo",
        data=tiny.canonical("grpo"),
        tokenizer=bare,
        reward="length",
        per_device_train_batch_size=8,
    )
    assert "no chat template" in error.message


def test_a_row_that_the_trainer_leaves_out_is_named(tiny, tmp_path, monkeypatch):
    from trainglue import hooks

    monkeypatch.setattr(hooks.Prepared, "_prepare_dataset", lambda self, dataset, *_, **__: dataset.select([0, 2, 3]))
    with pytest.raises(datakit.InternalError) as caught:
        trainer("dpo", model=tiny.model, data=tiny.formatted("dpo"), output_dir=tmp_path / "run", **STEPS)
    row = list(datakit.load(tiny.formatted("dpo")).rows(all=True))[1]
    assert f"left out {ROWS - 3} rows of {ROWS}" in caught.value.message
    assert row["dk_id"] in caught.value.message


class _Copies(TrainerCallback):
    """Copies the run folder at every save: what is left where a run is killed then."""

    def __init__(self, folder, into):
        self.folder, self.into = folder, into

    def on_save(self, args, state, control, **_):
        shutil.copytree(self.folder, self.into / f"at {state.global_step}" / "run")


class _Raises(TrainerCallback):
    """Ends training after a step with an error."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise self.error


class _Stop(TrainerCallback):
    """Ends training after a step, as an interrupt would, without a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step
        control.should_save = False if state.global_step == self.step else control.should_save


# ---------------------------------------------------------------- recipes


@pytest.fixture
def recipe(tiny, tmp_path):
    path = tmp_path / "mix.toml"
    path.write_text(
        f"""stop = "all_exhausted"
block_size = 4
seed = 3
order = "shuffle"

[sources.one]
path = "{tiny.formatted("sft")}"
weight = 0.7

[sources.two]
path = "{second(tiny)}"
weight = 0.3
"""
    )
    return path


def _watched(made):
    """The rows that a trainer takes, as it takes them."""
    given: list[list[int]] = []
    collate = made.data_collator

    def watched(rows):
        given.extend(list(row["input_ids"]) for row in rows)
        return collate(rows)

    made.data_collator = watched
    return given


def second(tiny):
    out = tiny.root / "second ready"
    if not out.exists():
        folder = shards(tiny.root / "second", [{"messages": turns(f"Colour {n}?", "Blue.")} for n in range(5)])
        datakit.format(folder, out, tokenizer=tiny.model, workers=1).raise_for_status()
    return out


def test_a_written_mix(tiny, recipe, tmp_path):
    made = sft(tiny, tmp_path, data=recipe, max_steps=2)
    assert len(made.train_dataset) == ROWS + 5
    assert made.args.num_train_epochs == 1
    made.train()


def test_a_stream_says_how_many_rows_fill_its_last_step(tiny, recipe, tmp_path):
    made = sft(tiny, tmp_path, data=recipe, streaming=True, per_device_train_batch_size=5)
    given = _watched(made)
    made.train()
    assert record(tmp_path / "run")["rows_repeated_per_epoch"] == 3
    assert made.state.global_step * 5 == ROWS + 5 + 3
    assert given[ROWS + 5 :][:3] == given[:3]


def test_a_streamed_mix_gives_the_rows_of_the_plan_and_resumes_at_its_place(tiny, recipe, tmp_path):
    expected = [row["input_ids"] for row in datakit.stream(recipe)]
    options = {"data": recipe, "streaming": True, "save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2}
    whole = sft(tiny, tmp_path / "a", **options)
    given = _watched(whole)
    whole.train()
    assert whole.state.max_steps == (2 * len(expected) + 1) // 2
    assert given[: 2 * len(expected)] == expected * 2
    assert [log["epoch"] for log in whole.state.log_history] == pytest.approx(
        [step * 2 / len(expected) for step in (*range(1, whole.state.max_steps + 1), whole.state.max_steps)], abs=1e-3
    )

    first = sft(tiny, tmp_path / "b", **options)
    first.add_callback(_Stop(5))
    first.train()
    resumed = sft(tiny, tmp_path / "b", **options, resume=True)
    given = _watched(resumed)
    resumed.train()
    assert given[: 2 * len(expected) - 6] == (expected * 2)[6:]
    assert losses(resumed)[-8:] == pytest.approx(losses(whole)[-8:], rel=1e-6)
    assert record(tmp_path / "b" / "run")["epoch"] == whole.state.epoch == 2 * len(expected) / len(expected)


def test_a_stream_goes_on_from_no_other_checkpoint(tiny, recipe, tmp_path, monkeypatch):
    made = sft(tiny, tmp_path, data=recipe, streaming=True, max_steps=2)
    with pytest.raises(UsageError, match="the stream was opened at its first row"):
        made.train(resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-1"))
    made.resume = "run/checkpoint-1"
    with pytest.raises(UsageError, match="where run/checkpoint-1 left it"):
        made.train(resume_from_checkpoint=str(tmp_path / "other" / "checkpoint-1"))


def test_a_small_part_of_a_stream_is_a_step(tiny, recipe, tmp_path):
    made = sft(tiny, tmp_path, data=recipe, streaming=True, num_train_epochs=0.01)
    made.train()
    assert made.state.global_step == 1


def test_rows_that_a_filter_leaves_out_of_a_stream_may_be_longer(tiny, recipe, tmp_path):
    shorter = sorted(lengths_of(datakit.load(tiny.formatted("sft"))))[-2]
    recipe.write_text(f'filter = "dk_length <= {shorter}"\n{recipe.read_text()}')
    made = sft(tiny, tmp_path, data=recipe, streaming=True, max_length=shorter)
    made.train()
    assert record(tmp_path / "run")["data"]["trained_on"] < ROWS + 5
    with pytest.raises(UsageError, match=f"above {shorter - 1} tokens"):
        sft(tiny, tmp_path, data=recipe, streaming=True, max_length=shorter - 1, overwrite=True)


def test_a_stream_of_rows_that_are_not_formatted_is_refused(tiny, tmp_path):
    path = tmp_path / "mix.toml"
    path.write_text(f'[sources.one]\npath = "{tiny.canonical("sft")}"\nweight = 1.0\n')
    with pytest.raises(UsageError, match="is not formatted"):
        sft(tiny, tmp_path, data=path, streaming=True)


@pytest.mark.parametrize("method", ["orpo", "cpo", "dpo", "kto"])
def test_other_methods_take_streams_too(method, tiny, tmp_path):
    path = tmp_path / "mix.toml"
    path.write_text(f'[sources.one]\npath = "{tiny.formatted(method)}"\nweight = 1.0\n')
    every = {"per_device_train_batch_size": ROWS, "max_steps": 2, "output_dir": tmp_path / "run", "overwrite": True}
    found = []
    for options in ({"data": path, "streaming": True}, {"data": tiny.formatted(method)}):  # all rows in every batch
        made = trainer(method, model=tiny.model, **{**STEPS, **every, **options, "eval_share": 0})
        made.train()
        found.append(losses(made))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


# ---------------------------------------------------------------- machines that only train

BLOCKED = """
import sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, *arguments):
    return None if name.split(".")[0] in ("polars", "rich", "click") else found(name, *arguments)

PathFinder.find_spec = staticmethod(find_spec)
import datakit, trainglue, trainglue.training, trainglue.streams
rows = trainglue.dataset(sys.argv[1], method="sft")
streamed = sum(1 for _ in datakit.stream(sys.argv[2]))
print(len(rows), streamed)
"""


def test_rows_are_loaded_and_streamed_without_polars_rich_and_click(tiny, recipe, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tiny.formatted("sft")), str(recipe)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(ROWS), str(ROWS + 5)]


# ---------------------------------------------------------------- processes

TWO = """
import json, os, sys
from trainglue import trainer
model, data, out, options = sys.argv[1:]
made = trainer("sft", model=model, data=data, output_dir=out, **json.loads(options))
collate, seen = made.data_collator, []
def watched(rows):
    seen.extend(list(row["input_ids"]) for row in rows)
    return collate(rows)
made.data_collator = watched
made.train()
made.save_model()
with open(f"{out}/seen-{os.environ['RANK']}.json", "w") as file:
    json.dump({"seen": seen, "losses": [e["loss"] for e in made.state.log_history if "loss" in e]}, file)
made.accelerator.end_training()
"""


def test_two_processes_take_every_row_once(tiny, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO)
    out = tmp_path / "run"
    out.mkdir()
    options = {**STEPS, "num_train_epochs": 1, "use_cpu": True, "overwrite": True}
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_DATASETS_CACHE": str(tiny.root / "datasets two"),
        "TRAINGLUE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)),
            *(tiny.model, str(tiny.canonical("sft")), str(out), json.dumps(options)),
        ],
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((out / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    taken = Counter(tuple(ids) for part in found for ids in part["seen"])
    rows = Counter(tuple(row["input_ids"]) for row in trainglue.dataset(tiny.formatted("sft"), method="sft"))
    assert taken == rows
    assert [len(part["seen"]) for part in found] == [ROWS // 2, ROWS // 2]
    facts = record(out)
    assert (facts["processes"], facts["rows_per_update"], facts["rows_repeated_per_epoch"]) == (2, 4, 0)
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("streamed", [False, True], ids=["folder", "stream"])
def test_a_run_goes_on_with_another_number_of_processes(streamed, tiny, recipe, tmp_path):
    """One process, then two, then one: the losses of one process all along, as long as an update has as many rows."""
    script = tmp_path / "train.py"
    script.write_text(TWO)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_DATASETS_CACHE": str(tiny.root / "datasets two"),
        "TRAINGLUE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    data = recipe if streamed else tiny.canonical("sft")

    def run(out, processes, **options):
        out.mkdir(exist_ok=True)
        options = {**STEPS, "num_train_epochs": 2, "use_cpu": True, "logging_steps": 1, "save_strategy": "steps",
                   "save_steps": 2, "per_device_train_batch_size": 4 // processes,
                   "gradient_accumulation_steps": 1, "lr_scheduler_type": "constant", "streaming": streamed,
                   **options}  # fmt: skip
        if processes == 1:
            made = trainer("sft", model=tiny.model, data=data, output_dir=out, **options)
            made.train()
            return losses(made)
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
        words = [*torchrun, str(script), tiny.model, str(data), str(out), json.dumps(options)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=180, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((out / "seen-0.json").read_text())["losses"]

    whole = run(tmp_path / "whole", 1, max_steps=6)
    for processes, steps in ((1, 2), (2, 4), (1, 6)):
        parts = run(tmp_path / "parts", processes, max_steps=steps, resume=steps > 2)
    assert len(whole) == 6
    assert parts == pytest.approx(whole, rel=1e-4)
