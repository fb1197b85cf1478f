"""What `format` writes is what the trainers of the installed TRL prepare themselves, and they train on it as it is.

Four things are unsound in TRL 1.16; there the test says what TRL does, and that datakit does otherwise:

- With `assistant_only_loss` TRL renders with a training template, which for Qwen 3 and others prints earlier answers
  otherwise than the model's own template does (an empty thought before each). datakit renders with the template of the
  model and takes only the borders from the training template, and only where both print the same text.
- ORPO and CPO leave out the tools of a row, and put a second EOS behind a template that ends on EOS and a line feed.
- With a completion of several turns TRL trains the words of the user and of tools in it.
- Where the end of a prompt is tokenised otherwise alone than before its completion, TRL's SFT trains that end too.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_DISABLED"] = "true"
trl = pytest.importorskip("trl")
torch = pytest.importorskip("torch")

import datasets  # noqa: E402
import trl.chat_template_utils as templates  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from trl import (  # noqa: E402  # noqa: E402
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402

import datakit  # noqa: E402
import trainglue  # noqa: E402
from datakit import preparation  # noqa: E402
from datakit.schema import IGNORED  # noqa: E402
from tests.conversations import ORDINARY, TOOLS  # noqa: E402
from tests.small_tokenizers import chatml, llama, shards, turns  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

MADE = {
    "qwen2.5": (chatml, templates.qwen2_5_chat_template),
    "qwen3 training": (chatml, templates.qwen3_training_chat_template),
    "qwen3": (chatml, templates.qwen3_chat_template),
    "llama3": (llama, templates.llama3_chat_template),
}
LOSSY: dict[str, Any] = {"severity": {"DK703": "warning"}, "control_tokens": "allow"}
"""The Llama 3 template prints no tool calls, and one of the conversations holds control tokens."""

CHATS: list[dict[str, Any]] = [
    {
        "messages": conversation.messages,
        **({"tools": conversation.tools} if conversation.tools else {}),
        **({"chat_template_kwargs": conversation.kwargs} if conversation.kwargs else {}),
    }
    for name, conversation in ORDINARY.items()
]
CALL = ORDINARY["tool call"].messages
PAIRS: list[dict[str, Any]] = [
    {"prompt": turns("one?"), "chosen": [turns("", "1")[1]], "rejected": [turns("", "  2\n")[1]]},
    {"prompt": turns("one?", "1", "two?"), "chosen": [turns("", "zwei 😀")[1]], "rejected": [turns("", "3")[1]]},
    {"prompt": CALL[:1], "chosen": CALL[1:], "rejected": [turns("", "No idea.")[1]], "tools": TOOLS},
    {
        "prompt": turns("one?"),
        "chosen": [turns("", "1")[1]],
        "rejected": [turns("", "2")[1]],
        "chat_template_kwargs": {"enable_thinking": False},
    },
]
TEXT_PAIRS: list[dict[str, Any]] = [
    {"prompt": "The question: ", "chosen": "the answer", "rejected": "another"},
    {"prompt": "The question:", "chosen": " the answer\n", "rejected": " and more"},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folders of the tokenizers."""
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: make(root / name, template) for name, (make, template) in MADE.items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folders of random models of one thin layer: one that writes and one that rates."""
    config = LlamaConfig(
        vocab_size=800, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    folder = tmp_path_factory.mktemp("models")
    LlamaForCausalLM(config).save_pretrained(folder / "writes")
    LlamaForSequenceClassification(config).save_pretrained(folder / "rates")
    return {name: str(folder / name) for name in ("writes", "rates")}


SHARED = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "max_steps": 1}


def sft(model, tokenizer, rows, tmp_path, kind=SFTTrainer, **options):
    options = {"max_length": None, **SHARED, **options}
    config = SFTConfig(output_dir=str(tmp_path / "run"), **options)
    return kind(model=model["writes"], args=config, train_dataset=rows, processing_class=tokenizer)


def ready(folder, tokenizer, out, **options):
    """Rows as `format` gives them."""
    report = preparation.format(folder, out, tokenizer=tokenizer, workers=1, **options)
    assert report.exit_code == 0, report.to_json()
    return list(datakit.load(out))


def only(rows, *names):
    return [{name: row[name] for name in names} for row in rows]


def unlike(ours, theirs):
    """Numbers of rows that differ."""
    assert len(ours) == len(theirs)
    return [number for number, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]


# ---------------------------------------------------------------- SFT


@pytest.mark.parametrize("everything", [False, True], ids=["assistant only", "everything"])
@pytest.mark.parametrize("name", MADE)
def test_conversations(name, everything, made, model, tmp_path):
    folder = shards(tmp_path / "shards", CHATS)
    ours = ready(folder, made[name], tmp_path / "out", train_on="everything" if everything else "all", **LOSSY)
    tokenizer = AutoTokenizer.from_pretrained(made[name])
    rows = trainglue.dataset(folder, method="sft")
    theirs = sft(model, tokenizer, rows, tmp_path, assistant_only_loss=not everything).train_dataset
    columns = ("input_ids", "labels")
    differ = unlike(only(ours, *columns), only(theirs, *columns))
    if name != "qwen3" or everything:
        assert not differ
        return
    assert 0 < len(differ) < len(CHATS)
    for number in differ:  # TRL trains on a text that the model's template does not print
        row = rows[number]
        options = {"tools": row["tools"], **row["chat_template_kwargs"]}
        printed = tokenizer.apply_chat_template(row["messages"], return_dict=False, **options)
        assert ours[number]["input_ids"] == printed != theirs[number]["input_ids"]


@pytest.mark.parametrize("everything", [False, True], ids=["completion", "everything"])
@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3"])
@pytest.mark.parametrize("conversational", [True, False], ids=["messages", "strings"])
def test_prompts_with_completions(name, conversational, everything, made, model, tmp_path):
    pairs = [row for row in PAIRS if len(row["chosen"]) == 1] if conversational else TEXT_PAIRS
    rows = [{"completion" if key == "chosen" else key: row[key] for key in row if key != "rejected"} for row in pairs]
    folder = shards(tmp_path / "shards", rows, to="sft:prompt_completion")
    ours = ready(folder, made[name], tmp_path / "out", train_on="everything" if everything else "all")
    tokenizer = AutoTokenizer.from_pretrained(made[name])
    rows = trainglue.dataset(folder, method="sft")
    theirs = sft(model, tokenizer, rows, tmp_path, completion_only_loss=not everything).train_dataset
    assert not unlike(only(ours, "input_ids", "labels"), only(theirs, "input_ids", "labels"))


def test_a_completion_of_several_turns_trains_the_assistant_only(made, model, tmp_path):
    folder = shards(tmp_path / "shards", [{"prompt": CALL[:1], "completion": CALL[1:], "tools": TOOLS}])
    ours = ready(folder, made["qwen2.5"], tmp_path / "out")[0]
    tokenizer = AutoTokenizer.from_pretrained(made["qwen2.5"])
    theirs = sft(model, tokenizer, trainglue.dataset(folder, method="sft"), tmp_path).train_dataset[0]
    trained = [tokenizer.decode([x for x in row["labels"] if x != IGNORED]) for row in (ours, theirs)]
    assert ours["input_ids"] == theirs["input_ids"]
    assert ["sunny\n</tool_response>" in text for text in trained] == [False, True]
    assert all('"name": "get_weather"' in text and "It is sunny.<|im_end|>" in text for text in trained)


def test_a_prompt_that_is_tokenised_otherwise_alone_is_not_trained(model, tmp_path):
    """GPT-2 reads two line feeds at the end of a text as one token, and before a word as two."""
    gpt2 = chatml(
        tmp_path / "gpt2", templates.qwen2_5_chat_template, r" ?\p{L}+| ?\p{N}+|\s+(?!\S)|\s+|[^\s\p{L}\p{N}]+"
    )
    folder = shards(tmp_path / "shards", [{"prompt": "The question\n\n", "completion": "answer"}])
    ours = ready(folder, gpt2, tmp_path / "out")[0]
    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    theirs = sft(model, tokenizer, trainglue.dataset(folder, method="sft"), tmp_path).train_dataset[0]
    trained = [tokenizer.decode([x for x in row["labels"] if x != IGNORED]) for row in (ours, theirs)]
    assert ours["input_ids"] == theirs["input_ids"]
    assert trained == ["answer<|im_end|>", "\n\nanswer<|im_end|>"]


@pytest.mark.parametrize("name", ["qwen2.5", "llama3"])
def test_plain_texts(name, made, model, tmp_path):
    folder = shards(tmp_path / "shards", [{"text": text} for text in ("one", "two\n", " three é", "x" * 40)])
    ours = ready(folder, made[name], tmp_path / "out")
    rows = trainglue.dataset(folder, method="sft")
    theirs = sft(model, AutoTokenizer.from_pretrained(made[name]), rows, tmp_path).train_dataset
    assert not unlike(only(ours, "input_ids", "labels"), only(theirs, "input_ids", "labels"))


# ---------------------------------------------------------------- preferences


def prepared(kind, config, model, tokenizer, rows, tmp_path, **options):
    """The dataset as a trainer prepares it, and the trainer."""
    arguments = config(output_dir=str(tmp_path / "run"), **{"max_length": None, **SHARED, **options})
    trainer = kind(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    return trainer.train_dataset, trainer


def pairs_of(form):
    if form == "strings":
        return TEXT_PAIRS, {}
    return PAIRS, {"to": "preference:implicit"} if form == "implicit" else {}


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "llama3"])
@pytest.mark.parametrize("form", ["messages", "implicit", "strings"])
def test_dpo(form, name, made, model, tmp_path):
    pairs, options = pairs_of(form)
    folder = shards(tmp_path / "shards", pairs, **options)
    ours = ready(folder, made[name], tmp_path / "out", **LOSSY)
    rows = trainglue.dataset(folder, method="dpo")
    tokenizer = AutoTokenizer.from_pretrained(made[name])
    theirs, _ = prepared(DPOTrainer, DPOConfig, model["writes"], tokenizer, rows, tmp_path)
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert not unlike(only(ours, *columns), only(theirs, *columns))


@pytest.mark.parametrize("name", ["qwen2.5", "llama3"])
@pytest.mark.parametrize("form", ["messages", "strings"])
def test_kto(form, name, made, model, tmp_path):
    pairs, _ = pairs_of(form)
    shared = ("prompt", "tools", "chat_template_kwargs")
    rows = [
        {**{key: row[key] for key in shared if key in row}, "completion": row[side], "label": side == "chosen"}
        for row in pairs
        for side in ("chosen", "rejected")
    ]
    folder = shards(tmp_path / "shards", rows)
    ours = ready(folder, made[name], tmp_path / "out", **LOSSY)
    tokenizer = AutoTokenizer.from_pretrained(made[name])
    rows = trainglue.dataset(folder, method="kto")
    theirs, _ = prepared(KTOTrainer, KTOConfig, model["writes"], tokenizer, rows, tmp_path)
    columns = ("prompt_ids", "completion_ids", "label")
    assert not unlike(only(ours, *columns), only(theirs, *columns))


@pytest.mark.parametrize("name", ["qwen2.5", "llama3"])
@pytest.mark.parametrize("form", ["messages", "implicit", "strings"])
def test_reward(form, name, made, model, tmp_path):
    pairs, options = pairs_of(form)
    folder = shards(tmp_path / "shards", pairs, **options)
    ours = ready(folder, made[name], tmp_path / "out", method="reward", **LOSSY)
    rows = trainglue.dataset(folder, method="reward")
    tokenizer = AutoTokenizer.from_pretrained(made[name])
    theirs, _ = prepared(RewardTrainer, RewardConfig, model["rates"], tokenizer, rows, tmp_path)
    columns = ("chosen_ids", "rejected_ids")
    assert not unlike(only(ours, *columns), only(theirs, *columns))


@pytest.mark.parametrize(("kind", "config"), [(ORPOTrainer, ORPOConfig), (CPOTrainer, CPOConfig)], ids=["orpo", "cpo"])
def test_orpo_and_cpo(kind, config, made, model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(made["qwen2.5"])

    def both(pairs, name):
        folder = shards(tmp_path / name, pairs)
        ours = ready(folder, made["qwen2.5"], tmp_path / f"{name} out", method=config.__name__[:-6].lower(), **LOSSY)
        rows = trainglue.dataset(folder, method="orpo")
        rows = datasets.Dataset.from_list(list(rows))  # they read no JSON columns
        theirs, _ = prepared(kind, config, model["writes"], tokenizer, rows, tmp_path, max_length=512)
        return [row["prompt_ids"] + row["chosen_ids"] for row in ours], theirs["chosen_input_ids"]

    ours, theirs = both(TEXT_PAIRS, "strings")
    assert ours == theirs
    ours, theirs = both(PAIRS[:2], "messages")
    twice = tokenizer.encode("<|im_end|>\n<|im_end|>")
    assert all(row[-3:] == twice for row in theirs)
    assert ours == [row[:-1] for row in theirs]


# ---------------------------------------------------------------- what is only passed on


def test_grpo_rows_go_through_as_they_are(made, model, tmp_path):
    rows = [{"prompt": row["prompt"], **({"tools": row["tools"]} if "tools" in row else {})} for row in PAIRS[:3]]
    folder = shards(tmp_path / "shards", rows)
    ours = ready(folder, made["qwen2.5"], tmp_path / "out")
    assert ours == list(datakit.load(folder))

    def reward(completions, **_):
        return [float(len(completion[0]["content"])) for completion in completions]

    options = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 4}
    arguments = GRPOConfig(output_dir=str(tmp_path / "run"), **SHARED, **options)
    trainer = GRPOTrainer(
        model=model["writes"],
        args=arguments,
        reward_funcs=reward,
        train_dataset=datakit.load(tmp_path / "out").to_datasets(),
        processing_class=AutoTokenizer.from_pretrained(made["qwen2.5"]),
    )
    trainer.train()
    assert trainer.state.global_step == 1


# ---------------------------------------------------------------- training without a tokenizer


class Encoded(Exception):
    """A tokenizer was asked for ids."""


@pytest.fixture
def mute(made, monkeypatch):
    """A tokenizer that can pad and decode and refuses to encode."""

    def refuse(*_, **__):
        raise Encoded

    tokenizer = AutoTokenizer.from_pretrained(made["qwen2.5"])
    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", refuse)
    with pytest.raises(Encoded):
        tokenizer("x")
    with pytest.raises(Encoded):
        tokenizer.apply_chat_template(turns("a", "b"))
    return tokenizer


def formatted(rows, made, tmp_path, **options):
    ready(shards(tmp_path / "shards", rows), made["qwen2.5"], tmp_path / "out", **options)
    return datakit.load(tmp_path / "out").to_datasets()


def trained(trainer):
    result = trainer.train()
    assert trainer.state.global_step == 1
    assert torch.isfinite(torch.tensor(result.training_loss))


@pytest.mark.parametrize("pack", [None, "bfd"])
def test_sft_trains_on_them(pack, made, model, mute, tmp_path):
    options = {"pack": pack, "max_length": 2048} if pack else {}
    rows = formatted(CHATS, made, tmp_path, **options, **LOSSY)
    skip = {"dataset_kwargs": {"skip_prepare_dataset": True}, "padding_free": bool(pack)}
    trainer = sft(model, mute, rows, tmp_path, per_device_train_batch_size=1, **skip)
    assert trainer.train_dataset.column_names == rows.column_names
    trained(trainer)


@pytest.mark.parametrize("margins", [False, True])
def test_reward_trains_on_them(margins, made, model, mute, tmp_path):
    pairs = [{**row, "margin": 0.5} for row in PAIRS[:1]] + PAIRS[1:] if margins else PAIRS
    rows = formatted(pairs, made, tmp_path, method="reward")
    assert sorted(rows["margin"]) == [0, 0, 0, 0.5 * margins]
    theirs, trainer = prepared(RewardTrainer, RewardConfig, model["rates"], mute, rows, tmp_path)
    assert list(theirs) == list(rows)
    trained(trainer)


class ReadyDPO(DPOTrainer):
    def _prepare_dataset(self, dataset, *_):
        return dataset


class ReadyKTO(KTOTrainer):
    def _prepare_dataset(self, dataset, *_):
        return dataset


def with_masks(row):
    """The columns that ORPO and CPO read."""
    made = {"prompt_input_ids": row["prompt_ids"], "prompt_attention_mask": [1] * len(row["prompt_ids"])}
    for side in ("chosen", "rejected"):
        whole = row["prompt_ids"] + row[f"{side}_ids"]
        made[f"{side}_input_ids"] = whole
        made[f"{side}_attention_mask"] = [1] * len(whole)
        made[f"{side}_labels"] = [IGNORED] * len(row["prompt_ids"]) + row[f"{side}_ids"]
    return made


class ReadyORPO(ORPOTrainer):
    def tokenize_row(self, row, model=None):
        return with_masks(row)


class ReadyCPO(CPOTrainer):
    def tokenize_row(self, row, model=None):
        return with_masks(row)


@pytest.mark.parametrize(
    ("kind", "config", "options"),
    [
        (ReadyDPO, DPOConfig, {}),
        (ReadyORPO, ORPOConfig, {"max_length": 512}),
        (ReadyCPO, CPOConfig, {"max_length": 512}),
    ],
    ids=["dpo", "orpo", "cpo"],
)
def test_preference_trainers_train_on_them(kind, config, options, made, model, mute, tmp_path):
    rows = formatted(PAIRS, made, tmp_path, method=config.__name__[:-6].lower())
    theirs, trainer = prepared(kind, config, model["writes"], mute, rows, tmp_path, **options)
    assert only(theirs, *rows.column_names) == list(rows)
    trained(trainer)


def test_kto_trains_on_them(made, model, mute, tmp_path):
    pairs = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": n % 2 == 0} for n, row in enumerate(PAIRS[:2])
    ]
    rows = formatted(pairs, made, tmp_path)
    options = {"loss_type": "apo_zero_unpaired"}  # the other loss wants the neighbours of a batch in a column
    theirs, trainer = prepared(ReadyKTO, KTOConfig, model["writes"], mute, rows, tmp_path, **options)
    assert list(theirs) == list(rows)
    trained(trainer)
