"""Model and tokenizer for a run: loaded once, the same way for every method, on either engine.

    fp32, or all weights trained   weights in fp32 (autocast makes 16 bits of them where the precision says so)
    LoRA                           frozen weights in the 16 bits of the precision, adapters in fp32
    qlora                          frozen weights in nf4 with double quantisation, adapters as TRL keeps them

A folder with an adapter goes on being trained as it is, over its base; what a loss compares with is then the adapter as
it was, of which TRL keeps a frozen copy.

No token is added and no embedding resized: the pad token is one that the tokenizer has.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, get_type_hints

from jinja2 import TemplateError

from datakit.errors import DatakitError, UsageError
from datakit.terminal import first_line
from datakit.tokens.compare import mismatch
from datakit.tokens.load import Tokenizer
from datakit.tokens.load import load as read_tokenizer
from trainglue import memory
from trainglue.config import check_names
from trainglue.methods import Method
from trainglue.options import typed

LORA: Final[Mapping[str, Any]] = {
    "r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": "all-linear",
}
"""Defaults of LoRA; lora_alpha is r unless it is given."""

TASKS: Final = {"causal": "CAUSAL_LM", "score": "SEQ_CLS", "step": "TOKEN_CLS"}
CLASSES: Final = {
    "causal": ("AutoModelForCausalLM", {}),
    "score": ("AutoModelForSequenceClassification", {"num_labels": 1}),
    "step": ("AutoModelForTokenClassification", {"num_labels": 2}),
}


@dataclass(slots=True)
class Loaded:
    """What a trainer is built from.

    Attributes:
        model: with the head of the method; Unsloth's has its adapters already.
        peft_config: of the adapters that the trainer is to add.
        reference: the frozen copy that the loss compares with, where it needs one and no adapter can be turned off.
        notes: what was decided, a sentence each.
    """

    model: Any
    peft_config: Any = None
    reference: Any = None
    notes: list[str] = field(default_factory=list)


def device_type(use_cpu: bool = False) -> str:
    """Where training runs: cuda, mps, xpu or cpu."""
    import torch

    found = None if use_cpu else torch.accelerator.current_accelerator()
    return str(found.type) if found is not None else "cpu"


def default_precision(device: str) -> str:
    """bf16 where the device has it, else fp16; fp32 without an accelerator."""
    import torch

    return "fp32" if device != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"


# ---------------------------------------------------------------- tokenizer


def load_tokenizer(found: Tokenizer, template: str | None) -> tuple[Any, list[str]]:
    """The tokenizer as transformers has it, with the template and the pad token of the data.

    Args:
        found: the same tokenizer as datakit read it.
        template: the chat template that the rows were rendered with.

    Raises:
        UsageError: no token can pad.
    """
    from transformers import AutoTokenizer

    name = found.path.partition("@")[0] if found.revision else found.path  # only names on the Hub have revisions
    tokenizer = AutoTokenizer.from_pretrained(name, revision=found.revision or "main")
    notes = []
    if template is not None:
        tokenizer.chat_template = template
    if found.pad is None:
        raise UsageError(f"{found.path} has no token that can pad", "Name one as pad_token in tokenizer_config.json.")
    if tokenizer.pad_token != found.pad.token:
        tokenizer.pad_token = found.pad.token
        notes.append(f"padding with {found.pad.token}: {found.pad.why}")
    return tokenizer, notes


def end_of_turn(tokenizer: Any) -> int | None:
    """The first control token that the chat template puts behind an answer, if it renders one and puts one there."""
    if not tokenizer.chat_template:
        return None
    answer = "It is 2two2."
    messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
    try:
        _, shown, behind = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(answer)
    except TemplateError:  # it wants other turns
        return None
    if not shown:
        return None
    control = {str(token): id for id, token in tokenizer.added_tokens_decoder.items()}
    control |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    found = [(behind.index(token), -len(token), id) for token, id in control.items() if token in behind]
    return min(found)[2] if found else None


def stop_at(model: Any, tokenizer: Any, *ends: int | None) -> tuple[list[str], list[str]]:
    """Let generation stop at more tokens, since a model that ends its turn with one that nobody stops at talks on.

    Returns:
        All tokens that it stops at now, and a sentence where some were news to the model.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return [], []
    known = config.eos_token_id
    ids = [] if known is None else [known] if isinstance(known, int) else [*known]
    if new := [end for end in dict.fromkeys(ends) if end is not None and end not in ids]:
        config.eos_token_id = [*ids, *new]
    said = f"generation also stops at {' and '.join(tokenizer.convert_ids_to_tokens(new))}"
    return tokenizer.convert_ids_to_tokens([*ids, *new]), [said] if new else []


# ---------------------------------------------------------------- model


def load(
    model: Any,
    *,
    method: Method,
    engine: str,
    precision: Any,
    lora: int | Mapping[str, Any] | Any | None,
    dtype: Any,
    longest: int,
    device: str,
    checkpointing: bool,
    options: Mapping[str, Any],
    seed: int,
    reference: bool,
    ref_model: Any = None,
) -> Loaded:
    """Load a model, or take one that was loaded, and settle adapters and reference.

    Args:
        model: a folder, a name on the Hub, or a model; of an adapter with its base too.
        method: whose head it needs.
        engine: trl or unsloth.
        precision: fp32, bf16, fp16, qlora, fp8 or fp8_weights; or an `Fp8`.
        lora: a rank, fields of `LoraConfig`, such a config, or None: the adapter of the model, or all weights.
        dtype: of the weights, a word or a `torch.dtype`, if not by the table above.
        longest: tokens of the longest row; Unsloth reserves them.
        device: cuda, cpu, ...
        checkpointing: activations are computed again in the backward pass; Unsloth decides that here.
        options: for `from_pretrained`, such as attn_implementation.
        seed: of the weights of adapters and new heads.
        reference: whether a frozen copy may be needed; adapters are turned off instead.
        ref_model: what to compare with in its place, as `model`.

    Raises:
        UsageError: the model cannot be loaded so, or options contradict each other.
        OutOfMemory: with what takes less.
    """
    from transformers import set_seed

    set_seed(seed)
    adapter = adapter_of(model)
    adapted = bool(lora or adapter)
    if precision in ("qlora", "fp8_weights") and not adapted:
        raise UsageError(f"precision {precision} trains adapters only", "Give lora, for example 16.")

    def plain(given: Any) -> Any:
        named = isinstance(given, str | os.PathLike)
        return _load_plain(os.fspath(given), method, precision, adapted, dtype, device, options) if named else given

    named = isinstance(model, str | os.PathLike)
    if adapter:
        _check_adapter(model, adapter, method, lora)
    if not named and precision == "qlora" and not getattr(model, "is_loaded_in_4bit", False):
        raise UsageError("the model was loaded without 4 bits", "Give its path; trainglue loads it in nf4.")
    with memory.advised(lambda: memory.for_loading(adapted, precision)):
        if named and engine == "unsloth" and method.head == "causal":
            name = os.fspath(model)
            loaded = _load_unsloth(name, precision, lora, adapted, dtype, longest, checkpointing, options, seed)
        elif named and adapter:
            loaded = Loaded(_trainable(plain(adapter.base_model_name_or_path), os.fspath(model)))
        else:
            loaded = Loaded(plain(model), peft_config(lora, method) if lora else None)
        if adapter:
            loaded.notes.append(f"the adapter of {name_of(model)} is trained on")
        if ref_model is None and reference and method.reference and not adapted:
            ref_model = copy.deepcopy(loaded.model)
            loaded.notes += [] if named else ["the reference is a copy of the model in memory"]
        elif ref_model is None and method.reference and adapter:
            loaded.notes.append("the reference is the adapter as it is now")
        if ref_model is not None:
            loaded.reference = plain(ref_model).requires_grad_(False).eval()
    return loaded


def adapter_of(model: Any) -> Any:
    """The config of the adapter in a folder, in a repository on the Hub, or of a model in memory; None without one."""
    if not isinstance(model, str | os.PathLike):
        return next(iter(getattr(model, "peft_config", {}).values()), None)
    from transformers.utils import find_adapter_config_file

    try:
        file = find_adapter_config_file(os.fspath(model))
    except OSError:  # there is no such model, which loading it says
        return None
    if file is None:
        return None
    check_peft(f"{os.fspath(model)} has an adapter")
    from peft import PeftConfig

    return PeftConfig.from_pretrained(os.fspath(model))


def _check_adapter(model: Any, adapter: Any, method: Method, lora: Any) -> None:
    """Refuse a second adapter over the one that was trained, and one that was trained for another head.

    Raises:
        UsageError: with the command that merges it.
    """
    merged = f"Merge it first: trainglue export {shlex.quote(name_of(model) or 'RUN')} -o merged/"
    if lora:
        raise UsageError(
            f"{name_of(model) or 'the model'} has an adapter, and lora asks for another one",
            f"Leave out lora to train this one on. {merged}",
        )
    if adapter.task_type not in (None, TASKS[method.head]):
        raise UsageError(
            f"{name_of(model) or 'the model'} has an adapter for {adapter.task_type}; {method.name} trains one for "
            f"{TASKS[method.head]}",
            merged,
        )


def _trainable(base: Any, folder: str) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base, folder, is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        if memory.ends(error):
            raise
        raise UsageError(
            f"the adapter of {folder} cannot be loaded over {name_of(base)}: {first_line(error)}",
            "Its adapter_config.json names the base, as base_model_name_or_path.",
        ) from error


def check_trainable(model: Any) -> None:
    """Refuse a model of which nothing would be trained.

    Raises:
        UsageError: every weight is frozen.
    """
    if not any(weight.requires_grad for weight in model.parameters()):
        raise UsageError(
            "no weight of the model is trainable",
            "Give lora; or an adapter by its folder, or loaded with PeftModel.from_pretrained(..., is_trainable=True).",
        )


def _load_plain(
    name: str, method: Method, precision: Any, lora: bool, dtype: Any, device: str, options: Mapping[str, Any]
) -> Any:
    import torch
    import transformers

    class_name, head = CLASSES[method.head]
    given: dict[str, Any] = {"dtype": _dtype(precision, lora, dtype), **head, **options}
    if precision == "qlora":
        given["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        if device == "cuda":
            given["device_map"] = {"": int(os.environ.get("LOCAL_RANK", torch.cuda.current_device()))}
    try:
        return getattr(transformers, class_name).from_pretrained(name, **given)
    except TypeError as error:
        raise UsageError(
            f"{name} cannot be loaded: {first_line(error)}",
            f"Of model_init_kwargs its class {class_name} gets {', '.join(options) or 'nothing'}.",
        ) from error
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(
            f"{name} cannot be loaded: {first_line(error)}", "Give a folder with config.json, or a name on the Hub."
        ) from error


def _dtype(precision: Any, lora: bool, dtype: Any) -> Any:
    """The type of the weights."""
    import torch

    if dtype is not None:
        found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if dtype != "auto" and not isinstance(found, torch.dtype):
            raise UsageError(f"dtype {dtype}", "float32, bfloat16, float16 or auto.")
        return "auto" if dtype == "auto" else found
    if precision == "qlora":
        return torch.bfloat16
    if precision == "fp32" or not lora:
        return torch.float32
    return torch.float16 if precision == "fp16" else torch.bfloat16


def peft_config(lora: int | Mapping[str, Any] | Any, method: Method) -> Any:
    """The `LoraConfig` of a rank, of some of its fields, or of itself."""
    from peft import LoraConfig, PeftConfig

    return lora if isinstance(lora, PeftConfig) else LoraConfig(task_type=TASKS[method.head], **lora_fields(lora))


def check_lora(lora: int | Mapping[str, Any] | Any | None) -> None:
    """Refuse adapters without peft, and fields that its `LoraConfig` does not have.

    Raises:
        UsageError: with the nearest names.
    """
    if not lora:
        return
    check_peft("lora")
    if isinstance(lora, Mapping):
        from peft import LoraConfig

        check_names(lora, [field.name for field in fields(LoraConfig) if field.name != "task_type"], "lora")
        types = get_type_hints(LoraConfig)
        for name, value in lora.items():
            typed(f"lora {name}", value, types[name])


def check_peft(what: str) -> None:
    """Refuse adapters where the package for them is missing."""
    if find_spec("peft") is None:
        raise UsageError(f"{what}: peft is not installed", "pip install 'datakit-trainglue[train]'")


def lora_fields(lora: int | Mapping[str, Any]) -> dict[str, Any]:
    """Rank and fields with the defaults of trainglue."""
    given: dict[str, Any] = {"r": lora} if isinstance(lora, int) else dict(lora)
    modules = given.get("target_modules")
    if isinstance(modules, str) and modules != LORA["target_modules"] and re.fullmatch(r"[\w.]+", modules):
        given["target_modules"] = [modules]  # peft takes a text for a pattern of the whole path
    fields = {**LORA, **given}
    return {**fields, "lora_alpha": given.get("lora_alpha", fields["r"])}


def _load_unsloth(
    name: str,
    precision: Any,
    lora: int | Mapping[str, Any] | Any | None,
    adapted: bool,
    dtype: Any,
    longest: int,
    checkpointing: bool,
    options: Mapping[str, Any],
    seed: int,
) -> Loaded:
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]

    from trainglue import precision as precisions

    activations = {"use_gradient_checkpointing": "unsloth" if checkpointing else False}
    given: dict[str, Any] = {
        "model_name": name,
        "max_seq_length": longest,
        "dtype": _dtype(precision, adapted, dtype),
        "load_in_4bit": False,
        "full_finetuning": not adapted,
        "use_exact_model_name": True,  # else a name of the Hub becomes that of another repository
        **activations,
        **precisions.unsloth(precision, lora=adapted),
        **options,
    }
    try:
        model, _ = FastLanguageModel.from_pretrained(**given)
        if lora:
            wanted = lora_fields(lora if isinstance(lora, int | Mapping) else _fields_of(lora))
            if wanted["target_modules"] == "all-linear":
                wanted["target_modules"] = _linear_names(model)
            model = FastLanguageModel.get_peft_model(model, **wanted, **activations, random_state=seed)
    except (OSError, TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        if memory.ends(error):
            raise
        raise UsageError(
            f"Unsloth cannot load {name}: {first_line(error)}", "--engine trl may; `trainglue doctor` says more."
        ) from error
    return Loaded(model)


def _fields_of(config: Any) -> dict[str, Any]:
    """What a `LoraConfig` says: the fields that have a default here, and those that differ from peft's defaults."""
    stock = type(config)()
    made = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name in LORA or getattr(config, field.name) != getattr(stock, field.name)
    }
    made.pop("task_type", None)  # Unsloth sets it
    return {name: sorted(value) if isinstance(value, set) else value for name, value in made.items()}


def _linear_names(model: Any) -> list[str]:
    """The last parts of the names of linear layers in the decoder: what `all-linear` stands for."""
    layers = {
        name for name, module in model.named_modules() if "Linear" in type(module).__name__ and ".layers." in name
    }
    return sorted({name.rpartition(".")[2] for name in layers})


def check_tokenizer(tokenizer: Tokenizer, model: Any) -> list[str]:
    """Compare a tokenizer with the one that lies beside a model: a token that both have must have one id.

    Returns:
        A sentence where they differ in something else. Nothing is known of a model without a tokenizer of its own.

    Raises:
        UsageError: ids mean other tokens to the model. To one in memory new embeddings may have been given; a sentence
            says so.
    """
    name = name_of(model)
    if name in ("", tokenizer.path):
        return []
    try:
        own = read_tokenizer(name)
    except DatakitError:
        return []
    found = mismatch(tokenizer, own)
    if found is None:
        return []
    if found.moved and isinstance(model, str | os.PathLike):
        raise UsageError(
            found.sentence,
            "Name one that fits, or leave tokenizer out. A model that has learnt these ids has it in its folder.",
        )
    return [found.sentence]


def check_vocabulary(loaded: Loaded, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer with ids that the model, or what it is compared with, has no embedding for.

    Raises:
        UsageError: with both numbers.
    """
    for name, model in (("model", loaded.model), ("reference", loaded.reference)):
        rows = tokenizer.vocabulary if model is None else model.get_input_embeddings().weight.shape[0]
        if tokenizer.vocabulary > rows:
            raise UsageError(
                f"{tokenizer.path} has {tokenizer.vocabulary:,} ids, the {name} {rows:,} embeddings",
                "Give the tokenizer of this model.",
            )


def fingerprint(model: Any, adapters: bool) -> str:
    """A hash of the names, shapes and first numbers of all weights: is it the model of another session?

    Adapters count where they were trained before; new ones are drawn by chance. Numbers are rounded to 16 bits, so that
    it does not matter in which type the weights were loaded.
    """
    import torch

    found = sha256()
    for name, weight in model.named_parameters():
        if (adapters or "lora_" not in name) and not weight.is_meta:
            head = weight.detach().reshape(-1)[:8].to("cpu", torch.bfloat16).view(torch.int16)
            found.update(f"{name} {tuple(weight.shape)} {head.tolist()}\n".encode())
    return found.hexdigest()


def name_of(model: Any) -> str:
    """The path or name of a model, as far as it is known; empty for one that was made in memory."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")


def template_text(path: str | os.PathLike[str] | None, own: str | None) -> str | None:
    """The chat template: of a file, else the tokenizer's own.

    Raises:
        UsageError: the file cannot be read.
    """
    if path is None:
        return own
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--chat-template {path}: {error}", "A Jinja file in UTF-8.") from None
