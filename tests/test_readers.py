"""Shards as others read them: `datasets` map-style and streaming, pyarrow, polars, and TRL's own preparation."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

import datakit
import trainglue

datasets = pytest.importorskip("datasets")

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "unit": None}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "héllo\n"}]},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "sun", "tool_call_id": "c1"},
            {"role": "assistant", "content": "sunny", "reasoning_content": "so", "weight": 1},
        ],
        "tools": [TOOL],
        "chat_template_kwargs": {"enable_thinking": False},
    },
]
TRAINER = [
    {"messages": ROWS[0]["messages"], "tools": None, "chat_template_kwargs": {}},
    {k: ROWS[1][k] for k in ("messages", "tools", "chat_template_kwargs")},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shards(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    report = datakit.convert(source, tmp_path / "shards")
    assert report.exit_code == 0, report.to_json()
    return tmp_path / "shards"


def _load(folder, tmp_path, **options):
    return datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), **options)


def _bare(row):
    return {key: value for key, value in row.items() if not key.startswith("dk_")}


def test_datasets_without_arguments_gives_the_rows_and_nothing_else(shards, tmp_path):
    loaded = _load(shards, tmp_path)
    assert list(loaded) == ["train"]
    assert [_bare(row) for row in loaded["train"]] == TRAINER
    streamed = _load(shards, tmp_path, streaming=True)["train"]
    assert [_bare(row) for row in streamed] == TRAINER


def test_datakit_pyarrow_and_polars_agree(shards):
    opened = datakit.load(shards)
    assert list(opened) == TRAINER
    assert len(opened) == 2
    path = shards / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    assert [json.loads(str(text)) for text in table["messages"].to_pylist()] == [row["messages"] for row in TRAINER]
    frame = opened.to_polars()
    assert [json.loads(text) for text in frame["messages"]] == [row["messages"] for row in TRAINER]
    assert pl.scan_parquet(path).select("dk_row").collect()["dk_row"].to_list() == [1, 2]


def test_an_overwrite_is_not_served_from_the_cache(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "shards"
    for word in ("old", "new"):
        source.write_text(json.dumps({"text": word}) + "\n", "utf-8")
        datakit.convert(source, out, overwrite=True)
        assert _load(out, tmp_path)["train"][0]["text"] == word
    again = datakit.convert(source, out)
    assert again.verdict.startswith("already complete")


def test_splits_have_their_names(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n", "utf-8")
    datakit.convert(
        split=[f"train={tmp_path}/a.jsonl", f"test.held_out={tmp_path}/b.jsonl"], output=tmp_path / "shards"
    )
    loaded = _load(tmp_path / "shards", tmp_path)
    assert {name: rows[0]["text"] for name, rows in loaded.items()} == {"train": "a", "test.held_out": "b"}


def test_columns_exist_only_where_a_row_has_them(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(ROWS[0]) + "\n", "utf-8")
    datakit.convert(source, tmp_path / "plain")
    assert "tools" not in pq.read_schema(next((tmp_path / "plain" / "data").iterdir())).names


def test_a_late_row_brings_its_column(tmp_path):
    plain = [
        {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "x" * 900}]}
        for i in range(6000)
    ]
    plain[2500] = {**ROWS[1], "messages": [*ROWS[1]["messages"]]}
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in plain), "utf-8")
    report = datakit.convert(source, tmp_path / "shards")
    assert report.exit_code == 0
    rows = list(datakit.load(tmp_path / "shards"))
    assert rows[2500]["tools"] == [TOOL]
    assert rows[0]["tools"] is None
    assert rows[0]["chat_template_kwargs"] == {}


def test_rows_from_the_library(tmp_path):
    made = datasets.Dataset.from_list([{"text": f"row {i}"} for i in range(5)])
    datakit.convert(made, tmp_path / "a")
    datakit.convert(({"text": f"row {i}"} for i in range(5)), tmp_path / "b")
    assert list(datakit.load(tmp_path / "a")) == list(datakit.load(tmp_path / "b")) == list(made)
    assert datakit.validate([{"text": "x"}]).rows_in == 1
    made.save_to_disk(str(tmp_path / "saved"))
    datakit.convert(tmp_path / "saved", tmp_path / "c")
    assert list(datakit.load(tmp_path / "c")) == list(made)
    shutil.rmtree(tmp_path / "saved")
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(str(tmp_path / "saved"))
    datakit.convert(tmp_path / "saved", tmp_path / "d")
    assert len(datakit.load(tmp_path / "d", split="test")) == 1


def test_hub_names_go_through_datasets(tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text('{"text": "from the hub"}\n', "utf-8")
    report = datakit.convert(f"hf:{tmp_path}/hub", tmp_path / "shards")
    assert report.rows_out == 1
    assert list(datakit.load(tmp_path / "shards")) == [{"text": "from the hub"}]


def test_shards_are_an_input_like_any_other(shards, tmp_path):
    report = datakit.convert(shards, tmp_path / "again", to="sft:prompt_completion")
    assert report.format == "datakit"
    rows = list(datakit.load(tmp_path / "again").rows(all=True))
    assert rows[0]["completion"] == ROWS[0]["messages"][1:]
    assert [row["dk_row"] for row in rows] == [1, 2]
    back = datakit.convert(tmp_path / "again", tmp_path / "back", to="sft:messages")
    assert back.exit_code == 0
    assert list(datakit.load(tmp_path / "back")) == TRAINER


def test_trainglue_gives_a_trainer_its_columns(shards, tmp_path):
    rows = trainglue.dataset(shards, method="sft")
    assert rows.column_names == ["messages", "tools", "chat_template_kwargs"]
    assert list(rows) == TRAINER
    with pytest.raises(datakit.UsageError, match="kind sft"):
        trainglue.dataset(shards, method="dpo")
    with pytest.raises(datakit.UsageError, match="sft, dpo"):
        trainglue.dataset(shards, method="ppo")


# ---------------------------------------------------------------- TRL

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tokenizer trained on nothing but bytes, and a random model of two thin layers."""
    pytest.importorskip("trl")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|im_start|>", "<|im_end|>", "<pad>"]
    vocabulary = {piece: number for number, piece in enumerate([*special, *alphabet])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder), tokenizer


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_trl_trains_on_them(kind, shards, tiny, tmp_path):
    import torch
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    os.environ["WANDB_DISABLED"] = "true"
    torch.manual_seed(0)
    path, tokenizer = tiny
    if kind == "preference":
        source = tmp_path / "pairs.jsonl"
        user, good, bad = (
            {"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "a"), ("assistant", "bb"))
        )
        source.write_text(json.dumps({"chosen": [user, good], "rejected": [user, bad]}) + "\n", "utf-8")
        shards = tmp_path / "pairs"
        datakit.convert(source, shards, to="preference:messages")
    rows = trainglue.dataset(shards, method="sft" if kind == "sft" else "dpo")
    shared = {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
    }
    config, trainer = (SFTConfig, SFTTrainer) if kind == "sft" else (DPOConfig, DPOTrainer)
    arguments = config(output_dir=str(tmp_path / "run"), bf16=False, **shared)
    made = trainer(model=path, args=arguments, train_dataset=rows, processing_class=tokenizer)
    if kind == "sft":
        text = tokenizer.decode(made.train_dataset[1]["input_ids"])
        assert '{"name": "weather", "arguments": {"city": "Zürich", "unit": null}}' in text
        assert text.count("<|im_start|>") == 5
    assert made.train().training_loss > 0
