"""A trained model in the form that its next user takes.

    adapter   the LoRA weights alone, with tokenizer and chat template
    merged    a plain model: the base with the adapter's change added to its weights; loads without PEFT
    gguf      the same, with a Modelfile for Ollama and the commands that make a GGUF file of it

The merged folder is loaded again before it is handed over, and must give the logits that the trained model gave.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from datakit.errors import InternalError, NotWritten, UsageError
from datakit.terminal import first_line
from trainglue.handoff.modelfile import Frame, frame, modelfile
from trainglue.models import CLASSES, TASKS, end_of_turn, stop_at
from trainglue.precision.formats import among
from trainglue.runs import json_of

OUTTYPES: Final = ("f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0")
"""What llama.cpp's convert_hf_to_gguf.py writes itself; `auto` is its bf16 or f16."""
QUANTIZED: Final = (
    *("q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m"),
    *("q5_k_s", "q5_k_m", "q6_k", "iq3_s", "iq3_m", "iq4_nl", "iq4_xs"),
)
"""What its llama-quantize makes of a bf16 file without an importance matrix."""

TOLERANCE: Final = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""How far logits may lie apart after a merge, as a share of their standard deviation: rounding, and no more."""

SHOWN: Final = "the Modelfile's template prints chats as the chat template does; tools and thoughts are not in it"
LEFT_OUT: Final = (
    "the Modelfile has no template: what this chat template prints cannot be written for Ollama, which takes the "
    "nearest of its own, perhaps a wrong one. llama-server --jinja runs the chat template itself"
)

PROBE: Final = 32
"""Tokens of the text whose logits are compared."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        folder: where it is.
        to: the form.
        base: the model that the adapter belongs to, or the model itself.
        dtype: of the weights; empty for an adapter.
        stops: the tokens that end an answer, now in generation_config.json too.
        difference: the greatest distance between the logits of the trained model and of the written one, as a share of
            their standard deviation; None where it was not asked for.
        notes: what was decided, a sentence each.
        commands: what to run next.
    """

    folder: str
    to: str
    base: str
    dtype: str = ""
    stops: tuple[str, ...] = ()
    difference: float | None = None
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str = "merged",
    base: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    quantization: str = "q4_k_m",
    check: bool = True,
) -> Exported:
    """Write a trained model in another form; whole, or not at all.

    Args:
        source: a run folder, a checkpoint, or a folder that `save_model` wrote.
        output: a new folder.
        to: adapter, merged or gguf.
        base: the model under the adapter, where it is no longer where it was during training.
        dtype: float32, bfloat16 or float16; by default that of the base.
        quantization: gguf: one of `OUTTYPES` or `QUANTIZED`.
        check: load what was written and compare logits; needs the time and memory of loading the model twice.

    Raises:
        UsageError: the source is no trained model, or the options do not fit.
        NotWritten: the output exists, or cannot be written.
        InternalError: the written model computes something else.
    """
    folder = _trained(Path(source))
    among("form", to, ("adapter", "merged", "gguf"))
    among("quantization", quantization, (*OUTTYPES, *QUANTIZED))
    if dtype is not None:
        among("dtype", dtype, tuple(TOLERANCE))
    target = Path(output)
    if target.exists():
        raise NotWritten(f"{target} exists", "Name a new folder, or remove it.")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        made = _adapter(folder, partial) if to == "adapter" else _merged(folder, partial, base, dtype, check)
        if to == "gguf":
            made = _gguf(made, partial, target, quantization)
        partial.rename(target)
    except OSError as error:
        raise NotWritten(f"{target}: {error}", "Nothing was written there.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return replace(made, folder=str(target), to=to)


# ---------------------------------------------------------------- what was trained


def _trained(folder: Path) -> Path:
    """A folder with a model or an adapter.

    Raises:
        UsageError: there is none, with the checkpoints that there are.
    """
    if any((folder / name).is_file() for name in ("adapter_config.json", "config.json")):
        return folder
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    if checkpoints:
        hint = f"Name a checkpoint: {checkpoints[-1]} is the last of {len(checkpoints)}."
    else:
        hint = "Name a run folder after training, a checkpoint, or a saved model."
    raise UsageError(f"{folder} holds no trained model", hint)


def _adapter(folder: Path, partial: Path) -> Exported:
    """The adapter's own files, without what a checkpoint keeps for training."""
    config = json_of(folder / "adapter_config.json")
    if config is None:
        raise UsageError(f"{folder} is a whole model; no adapter was trained", "Export it with --to merged.")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(folder / name, partial / name)
    base = str(config["base_model_name_or_path"])
    tokenizer = _save_tokenizer(folder, base, partial)
    note = f"it needs {base}" + ("" if tokenizer.chat_template else "; neither has a chat template")
    return Exported("", "", base, notes=(note,))


# ---------------------------------------------------------------- merging


def _merged(
    folder: Path, partial: Path, base: str | os.PathLike[str] | None, dtype: str | None, check: bool
) -> Exported:
    """Load, merge, save, compare."""
    import torch

    adapter = json_of(folder / "adapter_config.json")
    name = os.fspath(base or (adapter["base_model_name_or_path"] if adapter else folder))
    notes: list[str] = []
    model = _load(name, adapter, dtype)
    ids = (torch.arange(PROBE) * 7919 % model.config.get_text_config().vocab_size).unsqueeze(0)
    if adapter is not None:
        model, notes = _with_adapter(model, folder)
    expected = _logits(model, ids) if check else None
    if adapter is not None:
        model = model.merge_and_unload(safe_merge=True)
    tokenizer = _save_tokenizer(folder, name, partial)
    stops, more = stop_at(model, tokenizer, tokenizer.eos_token_id, end_of_turn(tokenizer))
    model.save_pretrained(partial)
    written = str(model.dtype).removeprefix("torch.")
    kind = type(model)
    del model
    difference = None
    if expected is not None:
        difference = _distance(expected, _logits(kind.from_pretrained(partial, dtype="auto"), ids))
        if difference > TOLERANCE[written]:
            raise InternalError(
                f"the merged model gives other logits than the trained one, {difference:.2g} of their spread apart",
                "Nothing was written. Please report this with the versions of transformers and peft.",
            )
    return Exported("", "", name, written, tuple(stops), difference, (*notes, *more))


def _load(name: str, adapter: dict[str, Any] | None, dtype: str | None) -> Any:
    """The base with the head that was trained, or the whole model.

    Raises:
        UsageError: it cannot be found, or its weights are stored in 4 or 8 bits.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if getattr(config, "quantization_config", None) is not None:
            raise UsageError(
                f"{name} is stored quantised, so an adapter cannot be added to its weights",
                "Give the model that it was quantised from: --base NAME.",
            )
        if adapter is None:
            return getattr(transformers, config.architectures[0]).from_pretrained(name, dtype=dtype or "auto")
        head = next((head for head, task in TASKS.items() if task == adapter["task_type"]), "causal")
        class_name, options = CLASSES[head]
        return getattr(transformers, class_name).from_pretrained(name, dtype=dtype or "auto", **options)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be loaded: {first_line(error)}", "Say where it is: --base NAME.") from error


def _with_adapter(model: Any, folder: Path) -> tuple[Any, list[str]]:
    """The model with the adapter beside its weights.

    Where input and output share one matrix and only one of them was adapted, a merge would change both, and loading
    would tie them again. They are parted before, so that each gets its own.
    """
    import torch
    from peft import PeftModel
    from safetensors import safe_open

    notes = []
    own, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is not None and output.weight is own.weight:
        names = {path.rpartition(".")[2] for path, module in model.named_modules() if module in (own, output)}
        with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
            adapted = {name for name in names if any(f".{name}." in key for key in weights.keys())}  # noqa: SIM118
        if adapted:
            output.weight = torch.nn.Parameter(output.weight.detach().clone(), requires_grad=False)
            for config in (model.config, model.config.get_text_config()):
                config.tie_word_embeddings = False
            notes.append(f"{' and '.join(sorted(adapted))} was adapted, so input and output no longer share a matrix")
    return PeftModel.from_pretrained(model, folder).eval(), notes


def _logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()


def _distance(expected: Any, found: Any) -> float:
    """The greatest difference, as a share of the spread of what is expected (of its size, for a single score)."""
    spread = expected.std() if expected.numel() > 1 else expected.abs()
    return float((expected - found).abs().max() / spread.clamp_min(1e-6))


# ---------------------------------------------------------------- tokenizer


def _save_tokenizer(folder: Path, base: str, partial: Path) -> Any:
    """The tokenizer that was trained with, and its chat template, beside the weights."""
    from transformers import AutoTokenizer

    own = (folder / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder if own else base)
    tokenizer.save_pretrained(partial)
    return tokenizer


# ---------------------------------------------------------------- GGUF and Ollama


def _gguf(made: Exported, partial: Path, target: Path, quantization: str) -> Exported:
    """The Modelfile, and a script with llama.cpp's commands."""
    from transformers import AutoTokenizer

    if not made.stops and not (partial / "generation_config.json").is_file():
        raise UsageError("the model does not write text, so Ollama cannot run it", "Export it with --to merged.")
    tokenizer = AutoTokenizer.from_pretrained(partial)
    words = _frame(tokenizer)
    file = f"model-{quantization}.gguf"
    (partial / "Modelfile").write_text(modelfile(file, words, made.stops), "utf-8")
    steps = commands(quantization)
    (partial / "gguf.sh").write_text(_script(steps), "utf-8")
    step = f"LLAMA_CPP=llama.cpp sh {shlex.quote(str(target / 'gguf.sh'))}"
    return replace(made, notes=(*made.notes, SHOWN if words else LEFT_OUT), commands=(step,))


def _frame(tokenizer: Any) -> Frame | None:
    if not tokenizer.chat_template:
        return None
    added = tokenizer.bos_token_id in tokenizer("x")["input_ids"][:1]
    return frame(
        lambda messages, opened: tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened),
        tokenizer.bos_token if added else "",
    )


def commands(quantization: str) -> tuple[str, ...]:
    """llama.cpp's commands from a merged folder to a GGUF file, and Ollama's behind them.

    The converter knows 16 bits, q8_0 and two ternary types; everything else is made by llama-quantize from its bf16.
    """
    convert = 'python "$LLAMA_CPP/convert_hf_to_gguf.py" . --outfile model-{0}.gguf --outtype {0}'
    create = "ollama create NAME -f Modelfile"
    if quantization in OUTTYPES:
        return convert.format(quantization), create
    quantize = f'"$LLAMA_CPP/build/bin/llama-quantize" model-bf16.gguf model-{quantization}.gguf {quantization.upper()}'
    return convert.format("bf16"), quantize, create


def _script(steps: Sequence[str]) -> str:
    head = [
        "#!/bin/sh",
        "# A GGUF file of this folder, and how to run it. LLAMA_CPP is a checkout of llama.cpp that was built.",
        "set -eu",
        'LLAMA_CPP=$(cd "${LLAMA_CPP:?the folder of llama.cpp}" && pwd)',
        'cd "$(dirname "$0")"',
    ]
    return "\n".join([*head, *steps[:-1], f"echo 'Next: {steps[-1]}'"]) + "\n"


def describe(made: Exported) -> str:
    """What was written, for a person."""
    lines = [f"{made.folder}: {made.to}, of {made.base}" + (f", {made.dtype}" if made.dtype else "")]
    if made.difference is not None:
        lines.append(f"logits as the trained model's, within {made.difference:.1e} of their spread")
    if made.stops:
        lines.append(f"an answer ends at {' or '.join(made.stops)}")
    lines += made.notes
    if made.commands:
        lines += ["next:", *(f"  {command}" for command in made.commands)]
    return "\n".join(lines)
