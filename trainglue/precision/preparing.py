"""From the word of a run to a model that computes so, and to the arguments that trainers and Unsloth want for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datakit.errors import UsageError
from trainglue.precision.formats import PRECISIONS, Conversion, Fp8, PrecisionNotUsed, among

if TYPE_CHECKING:
    from torch import nn


def prepare(model: nn.Module, precision: str | Fp8) -> Conversion:
    """Turns a loaded model into one that computes in `precision`. Call it before PEFT and before the trainer is built.

    Only `fp8` changes the model: in place, layer by layer. Weights stay the same parameters: frozen ones stay frozen,
    tied ones tied, and a checkpoint has the names and numbers that it would have had.

    Args:
        precision: one of `PRECISIONS`, or an `Fp8`; the word fp8 stands for `Fp8()`.

    Raises:
        UsageError: no such precision, or the model or the machine cannot do it.
        PrecisionNotUsed: no layer can compute in it, or the model was not loaded with the weights that it names.
    """
    if isinstance(precision, str):
        among("precision", precision, PRECISIONS)
    if isinstance(precision, Fp8) or precision == "fp8":
        from trainglue.precision import float8

        return float8.convert(model, precision if isinstance(precision, Fp8) else Fp8())
    if precision == "fp8_weights":
        from trainglue.precision import float8

        if not float8.stores_fp8(model):
            raise PrecisionNotUsed(
                "fp8_weights was asked for and no weight of the model is stored in FP8",
                "It is a way of Unsloth to load a model: use --engine unsloth, or precision fp8.",
            )
    if precision == "qlora":
        _keep_four_bits(model)
    return Conversion(precision)


def _keep_four_bits(model: Any) -> None:
    """On some CPUs evaluation repacks 4-bit weights for good, and no gradient flows through them any more."""
    layers = [module for module in model.modules() if type(module).__name__ == "Linear4bit"]
    if not layers:
        raise PrecisionNotUsed(
            "qlora was asked for and the model has no 4-bit layer",
            "Load it with a BitsAndBytesConfig(load_in_4bit=True), or choose bf16.",
        )
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False


def arguments(precision: str | Fp8, device: str = "cuda") -> dict[str, bool]:
    """The training arguments of a precision: `bf16`, `fp16`, `use_cpu`.

    FP8 runs with `bf16=True`: that is the format of everything but the converted layers.

    Args:
        device: the type of the device, such as `cuda` or `cpu`.
    """
    name = "fp8" if isinstance(precision, Fp8) else precision
    among("precision", name, PRECISIONS)
    if name == "fp16" and device == "cpu":
        raise UsageError("fp16 needs a GPU: gradients are scaled there only", "Choose bf16 or fp32.")
    return {"bf16": name not in ("fp32", "fp16"), "fp16": name == "fp16", "use_cpu": device == "cpu"}


def unsloth(precision: str | Fp8, *, lora: bool) -> dict[str, Any]:
    """The arguments of Unsloth's `from_pretrained` for a precision that it has; it converts by itself.

    Unsloth trains all weights in FP8 with torchao, or LoRA over weights that are stored in FP8. LoRA over layers that
    compute in FP8 it does not have: its fused kernels read the weights and pass the converted layers by.

    Raises:
        UsageError: Unsloth does not offer it.
    """
    asked = Fp8() if precision == "fp8" else precision
    if isinstance(asked, Fp8):
        if lora:
            raise UsageError(
                "Unsloth has no LoRA in fp8: its kernels multiply the weights themselves, past the converted layers",
                "Use --engine trl; or precision fp8_weights (weights stored in FP8); or train all weights.",
            )
        if asked.backend != "torchao":
            raise UsageError("Unsloth has no Transformer Engine", "Use backend torchao, or --engine trl.")
        from trainglue.precision import float8

        float8.must_run(asked)
        return {"full_finetuning": True, "float8_training": float8.torchao_config(asked)}
    among("precision", asked, PRECISIONS)
    if asked == "fp8_weights":
        if not lora:
            raise UsageError(
                "fp8_weights are frozen, so they train with LoRA only", "Give --lora, or use precision fp8."
            )
        return {"load_in_fp8": True}
    return {"load_in_4bit": asked == "qlora"}


# ---------------------------------------------------------------- the names of the guide to FP8 with Unsloth

_pending: list[Fp8] = []


def setup_fp8_mixed_precision_training(
    backend: str = "te",
    fp8_format: str = "HYBRID",
    amax_history_len: int | None = None,
    amax_compute_algo: str | None = None,
    *,
    recipe: str | None = None,
) -> Fp8:
    """The next `trainglue.trainer(...)` computes in FP8.

    Sets no environment variable. For a trainer that you build yourself, give what this returns to
    `trainglue.precision.prepare(model, ...)`, and the audit of the result to the trainer as a callback.

    Args:
        backend: `te` or `torchao`.
        fp8_format: see `Fp8`.
        amax_history_len: steps, 32 unless given. With it or the next, or with te by default, scaling is delayed.
        amax_compute_algo: `max` unless given.
        recipe: see `Fp8`; te: `delayed` unless given.

    Raises:
        UsageError: the combination does not exist, or this machine cannot compute in it.
    """
    from trainglue.precision import float8

    te = backend.lower() == "te"
    recipe = recipe or ("delayed" if te else "")
    if recipe == "delayed":
        amax_history_len, amax_compute_algo = amax_history_len or 32, amax_compute_algo or "max"
    if not te and fp8_format == "HYBRID":
        fp8_format = "HYBRID" if recipe.startswith("rowwise") else ""  # tensorwise is hybrid
    asked = Fp8(backend, recipe, fp8_format, amax_history_len, amax_compute_algo or "")
    float8.must_run(asked)
    _pending[:] = [asked]
    return asked


def check_fp8_training_support(backend: str = "te") -> bool:
    """Whether this machine can train in FP8: a GPU of compute capability 9.0 or later, and the backend installed."""
    from trainglue.precision import float8

    return not float8.unsupported(Fp8(backend))


def settle(precision: str | Fp8 | None, default: str = "bf16") -> str | Fp8:
    """The precision of a run that is being built: as given, else as `setup_fp8_mixed_precision_training` asked for.

    A request is used up by the first run that takes it.

    Raises:
        UsageError: FP8 was asked for and another precision is given.
    """
    asked = _pending.pop() if _pending else None
    if asked and precision not in (None, "fp8", asked):
        raise UsageError(
            f"setup_fp8_mixed_precision_training asked for {asked}, and precision is {precision}",
            "Leave out one of them.",
        )
    return asked or precision or default
