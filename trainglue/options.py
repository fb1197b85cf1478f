"""Options of the trainer's config: names that moved, defaults that a person can print, and none left to an engine.

Any field of the installed TRL's config class is an option under its own name. Between TRL 0.18 and 1.16, transformers
4.57 and 5.23, many were renamed or removed, and Unsloth changes the defaults of others (optimizer, learning rate,
seed, warm-up, batch). So: an old name is taken for its new one and said; an unknown one is an error that says where it
went; the defaults below are always set; and where Unsloth's config class stands in for TRL's, every other field is set
to TRL's default.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from difflib import get_close_matches
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from datakit.errors import UsageError
from trainglue.methods import Method

RENAMED: Final[Mapping[str, tuple[str, str]]] = {
    "max_seq_length": ("max_length", "TRL 0.16"),
    "evaluation_strategy": ("eval_strategy", "transformers 4.41"),
    "warmup_ratio": ("warmup_steps", "transformers 5.0: a warmup_steps below 1 is a share of all steps"),
    "epochs": ("num_train_epochs", "TRL, always"),
    "num_epochs": ("num_train_epochs", "TRL, always"),
    "lr": ("learning_rate", "TRL, always"),
    "batch_size": ("per_device_train_batch_size", "TRL, always"),
    "no_cuda": ("use_cpu", "transformers 4.34"),
    "per_gpu_train_batch_size": ("per_device_train_batch_size", "transformers 3"),
    "per_gpu_eval_batch_size": ("per_device_eval_batch_size", "transformers 3"),
    "push_to_hub_token": ("hub_token", "transformers 4.34"),
    "push_to_hub_model_id": ("hub_model_id", "transformers 4.34"),
    "gradient_checkpointing": ("activation_checkpointing", "transformers 5.23"),
    "gradient_checkpointing_kwargs": ("activation_checkpointing_kwargs", "transformers 5.23"),
    "loss_calculater": ("loss_type", "TRL 1.0"),
}
"""Old name of an option to the new one, and the release that has it first; taken either way, as the installed version
needs it."""

_LOADING: Final = (
    "an argument of the loading: --model-init-kwargs '{{\"{0}\": {1}}}', or the dict model_init_kwargs in Python"
)

DECIDED: Final[Mapping[str, str]] = {
    "max_seq_length": "it is max_length, an argument of trainglue",
    "processing_class": "give tokenizer, a path; trainglue loads it",
    "formatting_func": "never used: rows are rendered before training, by `datakit format`",
    "dataset_text_field": "not needed: shards have columns of fixed names",
    "dataset_kwargs": "set by trainglue: rows are tokenised already",
    "dataset_num_proc": "not needed: no row is tokenised in the process that trains",
    **dict.fromkeys(
        ("packing", "packing_strategy", "eval_packing"),
        "rows are packed when they are formatted: datakit format --pack, or format.pack",
    ),
    "padding_free": "set by trainglue, for packed rows",
    **dict.fromkeys(
        ("assistant_only_loss", "completion_only_loss"),
        "what is trained is decided when rows are formatted: format.train_on",
    ),
    "chat_template_path": "give chat_template, a file",
    "eos_token": "the end of a turn is read from the data and put into generation_config",
    "pad_token": "the rule of `datakit` chooses it",
    "truncation_mode": "rows are fitted when they are formatted: format.truncation",
    "resume_from_checkpoint": "resume, an argument of trainglue",
    "bf16": "give precision bf16",
    "fp16": "give precision fp16",
    "peft_config": "give lora: a rank, fields of LoraConfig, or such a config",
    "quantization_config": "give precision qlora",
    "trust_remote_code": _LOADING.format("trust_remote_code", "true"),
    "is_encoder_decoder": "read from the model",
    "reward_funcs": "give reward, a function or several: --reward NAME",
}
"""Options that trainglue decides, since the rows are tokenised and fitted already, to what to write instead."""

REMOVED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("dataset_batch_size", "chars_per_token", "num_of_sequences"), "removed in TRL 0.18"),
    "max_prompt_length": "removed in TRL 0.26-1.0; rows are fitted when they are formatted: format.truncation",
    "max_completion_length": "rows are fitted when they are formatted: format.truncation; an option of grpo",
    "padding_value": "removed in TRL 0.26-0.29; the pad token pads, and the rule of `datakit` chooses it",
    "tools": "removed in TRL 0.26-0.29; tools are a column of the rows, and rendered when these are formatted",
    "generate_during_eval": "removed in TRL 0.26-0.29 except for orpo and cpo; generate from a checkpoint",
    "use_liger": "removed in TRL 0.18; use_liger_kernel",
    "use_liger_loss": "removed in TRL 0.26-0.29; the fused loss is the default since 1.15, use_liger_kernel before",
    "loss_seq_chunk_size": "not needed: since TRL 1.15 the loss is computed in chunks and full logits are never built; "
    "before, use_liger_kernel",
    "label_pad_token_id": "removed in TRL 0.26-0.29; -100, always",
    "rpo_alpha": "removed in TRL 0.26-0.29; loss_type ['sigmoid', 'sft'] with loss_weights",
    "reference_free": "removed in TRL 0.26-0.29; cpo and orpo need no reference",
    **dict.fromkeys(("force_use_ref_model", "model_adapter_name", "ref_adapter_name"), "removed in TRL 0.26-0.29"),
    "ref_model_init_kwargs": "removed in TRL 0.26-0.29; model_init_kwargs holds for both",
    "overwrite_output_dir": "removed in transformers 5.0; overwrite, an argument of trainglue",
    "save_safetensors": "removed in transformers 5.0; always so",
    **dict.fromkeys(("half_precision_backend", "include_tokens_per_second"), "removed in transformers 5.0"),
    "include_inputs_for_metrics": "removed in transformers 5.0; include_for_metrics",
    "group_by_length": "removed in transformers 5.x; train_sampling_strategy = 'group_by_length'",
    "logging_dir": "removed in transformers 5.x; the environment variable TENSORBOARD_LOGGING_DIR",
    **dict.fromkeys(("load_in_4bit", "load_in_8bit"), "give precision qlora"),
    "torch_dtype": "give dtype",
    "attn_implementation": _LOADING.format("attn_implementation", '"sdpa"'),
    "device_map": _LOADING.format("device_map", '"auto"'),
    "low_cpu_mem_usage": _LOADING.format("low_cpu_mem_usage", "true"),
    "use_cache": _LOADING.format("use_cache", "false"),
    "lora_r": "give lora, a rank",
    "lora_alpha": "a field of lora: lora = {r = 16, lora_alpha = 32}",
    "lora_dropout": "a field of lora: lora = {r = 16, lora_dropout = 0.05}",
    "target_modules": "a field of lora: lora = {r = 16, target_modules = ['q_proj']}",
    "train_file": "give data",
    **dict.fromkeys(("model_name_or_path", "model_name"), "give model"),
    "bnb_4bit_quant_type": "nf4 with double quantisation, always: precision qlora",
}
"""Names that the newest TRL does not know, to where they went."""

UNREAD: Final = ("max_prompt_length", "max_completion_length")
"""Options of ORPO and CPO that cut while they tokenise, which they do not do here."""

LEARNING_RATES: Final[Mapping[str, float]] = {"sft": 2e-5, "reward": 1e-5, "prm": 1e-5, "orpo": 8e-6}
"""For full fine-tuning, 1e-6 for the others; with LoRA ten times that."""

LEAST: Final[Mapping[str, int]] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("num_train_epochs", "learning_rate", "weight_decay", "seed", "dataloader_num_workers"), 0),
}
"""The least value of options that a trainer would take below it, and then fail or train nothing."""

WORDS: Final[Mapping[Any, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list, with commas between",
    dict: "a table",
    NoneType: "null",
}
"""Types of fields, for a person."""

HOLD_OUT: Final = 0.1
"""The share of rows that is evaluated on and not trained on, where no evaluation data is named."""


def presets(method: str, *, lora: bool = False, evaluates: bool = False) -> dict[str, Any]:
    """The defaults of trainglue for a method, the same on every engine.

    Args:
        method: as in `METHODS`.
        lora: adapters are trained, which takes ten times the learning rate.
        evaluates: there are rows to evaluate on.
    """
    rate = LEARNING_RATES.get(method, 1e-6) * (10 if lora else 1)
    defaults: dict[str, Any] = {
        "num_train_epochs": 1 if method == "grpo" else 3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "learning_rate": float(f"{rate:.0e}"),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "seed": 42,
        "gradient_checkpointing": True,
        "logging_steps": 10,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": 100,
        "save_total_limit": 2,
        "eval_strategy": "steps" if evaluates else "no",
        "report_to": "none",
        "dataloader_num_workers": 0,
    }
    if evaluates:
        defaults["eval_steps"] = 100
    if method == "grpo":  # two prompts with eight answers each make an update
        defaults |= {"num_generations": 8, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
        defaults["gradient_accumulation_steps"] = 2
    return defaults


def settings(
    config_class: type[Any], method: Method, given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Everything that the config is made with, each default set that an engine might change.

    Args:
        config_class: of the installed TRL, or Unsloth's.
        method: whose trainer it is.
        given: what the user wrote, under any name that it ever had.
        defaults: `presets` and what trainglue decides, under today's names.

    Returns:
        The arguments, and a sentence for each option that was taken under another name.

    Raises:
        UsageError: as `checked`.
    """
    taken, notes = checked(config_class, method, given)
    ours = translated(config_class, defaults)
    for old, (new, _) in RENAMED.items():  # where a version has both names, the one that is given counts
        for one, other in ((old, new), (new, old)):
            if one in taken:
                ours.pop(other, None)
    return _stock_defaults(config_class) | ours | taken, notes


def checked(config_class: type[Any], method: Method, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the user wrote, as the config takes it, and a sentence for each option taken under another name.

    Raises:
        UsageError: an option is unknown, with the nearest name and where it went; or its value is not of its type.
    """
    names = _accepted(config_class)
    types = get_type_hints(config_class)
    made: dict[str, Any] = {}
    notes: list[str] = []
    given_as: dict[str, str] = {}
    for name, value in given.items():
        found, changed = _current(name, value, names)
        if found not in names or name in refused(method):
            raise _unknown(name, method, names)
        if (other := given_as.setdefault(found, name)) != name:
            raise UsageError(f"{other} and {name} are the same option", "Leave out one of them.")
        made[found] = typed(f"--{name.replace('_', '-')}", changed, types[found], LEAST.get(found))
        if found != name:
            notes.append(f"{name} is taken as {found} = {made[found]!r}")
    return made, notes


def refused(method: Method) -> set[str]:
    """Options that would do nothing or harm where a trainer has them; `where_it_went` says what to write instead."""
    return {*DECIDED, *(UNREAD if method.hook == "pair_rows" else ())}


def typed(name: str, value: Any, annotation: Any, least: int | None = None) -> Any:
    """A value as the type of its field has it: text is read as a number where the field is one, and the reverse.

    Raises:
        UsageError: it is of another type, or less than it may be.
    """
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    made = _as_kind(value, kinds)
    if any(_is(made, kind) for kind in kinds) and (least is None or made is None or made >= least):
        return made
    allowed = " or ".join(dict.fromkeys(_told(kind) for kind in kinds)) + (f", {least} or more" * (least is not None))
    given = f"{name} has no value, or true" if value is True else f"{name} {value!r}"
    raise UsageError(given, f"Allowed: {allowed}.")


def _as_kind(value: Any, kinds: tuple[Any, ...]) -> Any:
    of_lists = [get_args(kind) for kind in kinds if get_origin(kind) is list]
    if isinstance(value, str) and "," in value and of_lists:
        return [_as_kind(part.strip(), of_lists[0]) for part in value.split(",")]
    number = {int, float}.intersection(kinds)
    if isinstance(value, str) and number and str not in kinds:
        try:
            value = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)  # 1e3
    if isinstance(value, int | float) and not isinstance(value, bool) and str in kinds and not number:
        return str(value)  # a name such as 7, which the command line reads as a number
    return value


def _is(value: Any, kind: Any) -> bool:
    """Whether a value may stand in a field of one type; TRL takes one text for a list of them."""
    plain = get_origin(kind) or kind
    if plain is Literal:
        return value in get_args(kind)
    if plain is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if plain is float:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    if plain is list:
        return isinstance(value, list | tuple) or (isinstance(value, str) and kind == list[str])
    if plain is str:
        return isinstance(value, str | os.PathLike)
    if plain is dict:  # or an object of a library that holds the same
        return isinstance(value, Mapping) or not isinstance(value, NoneType | Real | str | list | tuple)
    return plain is Any or not isinstance(plain, type) or isinstance(value, plain)


def _told(kind: Any) -> str:
    plain = get_origin(kind) or kind
    if plain is Literal:
        return " or ".join(map(repr, get_args(kind)))
    return WORDS.get(plain) or str(getattr(plain, "__name__", plain))


def _accepted(config_class: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class) if field.init}


def _stock_defaults(config_class: type[Any]) -> dict[str, Any]:
    """TRL's defaults of every field, where the class is not TRL's own: Unsloth's `__init__` has others."""
    if config_class.__module__.split(".")[0] == "trl":
        return {}
    return {
        field.name: field.default
        for field in dataclasses.fields(config_class)
        if field.init and field.default is not dataclasses.MISSING
    }


def translated(config_class: type[Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults under the names of the installed version; those that it does not have are not needed."""
    names = _accepted(config_class)
    pairs = (_current(name, value, names) for name, value in defaults.items())
    return {name: value for name, value in pairs if name in names}


def _current(name: str, value: Any, names: set[str]) -> tuple[str, Any]:
    """Name and value as the installed version takes them."""
    if name == "warmup_steps" and isinstance(value, float) and value < 1 and "warmup_ratio" in names:
        return "warmup_ratio", value  # transformers 4 takes whole steps only
    if name in names:
        return name, value
    if name in RENAMED and RENAMED[name][0] in names:
        return RENAMED[name][0], value
    return next((old for old, (new, _) in RENAMED.items() if new == name and old in names), name), value


def _unknown(name: str, method: Method, names: set[str]) -> UsageError:
    where = where_it_went(name)
    near = get_close_matches(name, sorted({*names, *RENAMED} - refused(method)), 3, 0.6)
    hint = where or (f"Did you mean {' or '.join(near)}?" if near else f"`trainglue api {method.name}` lists them all.")
    return UsageError(f"{method.name} has no option {name}", hint)


def where_it_went(name: str) -> str:
    """What became of an option, in a sentence; empty where nothing is known of it."""
    text = DECIDED.get(name) or REMOVED.get(name) or ""
    if not text and name in RENAMED:
        text = "it is {} ({})".format(*RENAMED[name])
    return f"{text[0].upper()}{text[1:]}." if text else ""
