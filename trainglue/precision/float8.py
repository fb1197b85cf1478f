"""Linear layers that compute in FP8, and the swap that puts them into a model.

A converted layer is an `nn.Linear` with the very parameters of the layer it replaces. So optimizers, PEFT (merging
too), ties, frozen weights and checkpoints know nothing of FP8, and a saved model loads without the libraries.

- torchao gives such a layer itself: `Float8Linear`.
- Transformer Engine's `Linear` is another class with extra state, so `TELinear` holds one beside the module tree and
  lends it its parameters.

Both find FP8 state per call (torchao, te `current` and `mxfp8`), so a layer that gradient checkpointing runs again
computes the same. `delayed` keeps a history and does not go together with it; the audit refuses that.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from datakit.errors import UsageError
from trainglue.precision.formats import Conversion, Fp8, PrecisionNotUsed

FLOAT8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)
TRAINABLE: Final = (torch.float32, torch.bfloat16, torch.float16)
ROUTERS: Final = ("gate", "router")
MODULE_OF: Final = {"torchao": "torchao", "te": "transformer_engine"}

Make = Callable[[nn.Linear], nn.Linear]


def convert(model: nn.Module, fp8: Fp8, *, make: Make | None = None) -> Conversion:
    """Swaps the linear layers of a model that can compute in FP8, in place; one that Unsloth converted stays as it is.

    Args:
        make: gives the new layer for an old one. By default that of the backend, if this machine can run it.

    Raises:
        UsageError: the machine cannot, or the model is quantised.
        PrecisionNotUsed: there is no layer to convert.
    """
    if getattr(model, "is_quantized", False) or getattr(model, "is_loaded_in_4bit", False):
        raise UsageError(
            "fp8 and quantised weights exclude each other: both replace the same layers",
            "Choose precision fp8 with a model in bf16, or qlora.",
        )
    if any(is_fp8(module) for module in model.modules()):
        return found(model, fp8)
    if make is None:
        must_run(fp8)
        make = _torchao(fp8) if fp8.backend == "torchao" else _transformer_engine(fp8, model)
    if fp8.emulate:
        warnings.warn("FP8 is emulated in fp32: right numbers for tests, at a fraction of the speed", stacklevel=3)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    made: dict[nn.Linear, nn.Linear] = {}
    layers: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    linears = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)]
    for name, linear in linears:
        reason = "output head" if linear is head else left_alone(name, linear, fp8.block)
        if reason:
            skipped[name] = reason
            continue
        if linear not in made:
            made[linear] = make(linear).train(linear.training)
        model.set_submodule(name, made[linear])
        layers[name] = made[linear]
    if not layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:4]) or "it has no nn.Linear"
        raise PrecisionNotUsed("fp8 was asked for and no layer of the model can compute in it", reasons)
    return Conversion("fp8", fp8, layers, skipped)


def left_alone(name: str, linear: nn.Linear, block: int) -> str:
    """Why a layer stays as it is; empty if it is to be converted."""
    *above, own = name.split(".")
    if own in ("lm_head", "score", "classifier"):
        return "output head"
    if any(part.startswith("lora_") for part in above):
        return "adapter: too thin to gain"
    if own in ROUTERS:
        return "router: its choices are sensitive to rounding"
    if type(linear) is not nn.Linear:
        return f"is a {type(linear).__name__}"
    if linear.weight.dtype not in TRAINABLE:
        return f"weights stored as {str(linear.weight.dtype).removeprefix('torch.')}"
    if hasattr(linear, "_hf_hook"):
        return "moved between devices by device_map"
    odd = [size for size in (linear.in_features, linear.out_features) if size % block]
    return f"size {odd[0]} is not a multiple of {block}" if odd else ""


def is_fp8(module: nn.Module) -> bool:
    """Whether a module is a converted layer."""
    return isinstance(module, TELinear) or type(module).__name__ == "Float8Linear"


def found(model: nn.Module, fp8: Fp8) -> Conversion:
    """The conversion that a model has already."""
    layers = {name: module for name, module in model.named_modules() if is_fp8(module)}
    left = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in layers)
    return Conversion("fp8", fp8, layers, dict.fromkeys(left, "left alone by who converted it"))


def stores_fp8(model: nn.Module) -> bool:
    """Whether some weights are kept in FP8, as with `fp8_weights`."""
    return any(parameter.dtype in FLOAT8 or "Float8" in type(parameter).__name__ for parameter in model.parameters())


# ---------------------------------------------------------------- what the machine can do


def unsupported(fp8: Fp8) -> str:
    """Why this machine cannot run it; empty if it can."""
    module = MODULE_OF[fp8.backend]
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    if fp8.emulate:
        return ""
    if not torch.cuda.is_available() or torch.version.hip:
        return "FP8 needs an NVIDIA GPU of compute capability 9.0 or later, and there is none"
    capability = torch.cuda.get_device_capability()
    needed = (10, 0) if fp8.recipe == "mxfp8" else (9, 0)
    if capability >= needed:
        return ""
    text = "FP8 ({}) needs compute capability {}.{} and this GPU has {}.{}".format(fp8.recipe, *needed, *capability)
    if capability == (8, 9):
        text += ": it multiplies in FP8, but tensorwise scaling with gradient checkpointing is reported to give NaN"
    return text


def must_run(fp8: Fp8) -> None:
    """Raises a UsageError if this machine cannot run it."""
    if reason := unsupported(fp8):
        raise UsageError(reason, "Choose precision bf16, or another machine; docs/fp8.md says what FP8 needs.")


# ---------------------------------------------------------------- torchao


def torchao_config(fp8: Fp8) -> Any:
    """The `Float8LinearConfig` of torchao. The inner size is padded, so a batch may have any number of tokens."""
    from dataclasses import replace

    from torchao.float8 import Float8LinearConfig

    return replace(Float8LinearConfig.from_recipe_name(fp8.recipe), pad_inner_dim=True, emulate=fp8.emulate)


def _torchao(fp8: Fp8) -> Make:
    from torchao.float8 import convert_to_float8_training

    config = torchao_config(fp8)
    return lambda linear: convert_to_float8_training(linear, config=config)


# ---------------------------------------------------------------- Transformer Engine


class TELinear(nn.Linear):
    """A linear layer that trains in Transformer Engine and is an ordinary one in evaluation.

    Args:
        linear: gives its parameters.
        engine: Transformer Engine's `Linear` class, or one that is built and called alike.
        region: gives the context in which the engine computes in FP8. The layer enters it itself, so a forward pass
            that is run again for the backward pass does too.
        block: tokens are padded with zeros to a multiple of this; the engine takes no others.
    """

    engine: Any

    def __init__(
        self,
        linear: nn.Linear,
        engine: Callable[..., nn.Module],
        region: Callable[[], AbstractContextManager[Any]],
        block: int,
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.region, self.block = region, block
        built = engine(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            params_dtype=linear.weight.dtype,
            device="meta",
        )
        self.__dict__["engine"] = built  # not a submodule: its parameters are ours, its state is not for checkpoints

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        for name in ("weight", "bias"):  # lent anew each time: the trainer may have replaced them
            if (own := getattr(self, name)) is not None and getattr(self.engine, name) is not own:
                setattr(self.engine, name, own)
        rows = input.reshape(-1, self.in_features)
        short = -len(rows) % self.block
        with self.region():
            output = self.engine(functional.pad(rows, (0, 0, 0, short)) if short else rows)
        return output[: len(rows)].reshape(*input.shape[:-1], self.out_features)

    @property
    def scaled(self) -> bool:
        """Whether the last training forward was in FP8 and left scales behind."""
        meta = getattr(self.engine, "fp8_meta", {}).get("scaling_fwd")
        history = getattr(meta, "amax_history", None)
        quantizers = getattr(self.engine, "quantizers", {}).get("scaling_fwd")
        has_scales = bool(history.any()) if history is not None else bool(quantizers)
        return bool(getattr(self.engine, "fp8", False)) and has_scales


def _transformer_engine(fp8: Fp8, model: nn.Module) -> Make:
    import transformer_engine.pytorch as te

    recipe = _recipe(fp8)

    def region() -> AbstractContextManager[Any]:
        return te.autocast(enabled=True, recipe=recipe)

    if fp8.recipe == "delayed":
        _advance_once(model, region)
    return lambda linear: TELinear(linear, te.Linear, region, fp8.block)


def _recipe(fp8: Fp8) -> Any:
    from transformer_engine.common import recipe

    options: dict[str, Any] = {"fp8_format": recipe.Format[fp8.fp8_format]} if fp8.fp8_format else {}
    if fp8.recipe == "delayed":
        if fp8.amax_history_len is not None:
            options["amax_history_len"] = fp8.amax_history_len
        if fp8.amax_compute_algo:
            options["amax_compute_algo"] = fp8.amax_compute_algo
        return recipe.DelayedScaling(**options)
    return {"current": recipe.Float8CurrentScaling, "mxfp8": recipe.MXFP8BlockScaling}[fp8.recipe](**options)


def _advance_once(model: nn.Module, region: Callable[[], AbstractContextManager[Any]]) -> None:
    """One region around the whole decoder: the history of delayed scaling moves on when the outermost one ends."""
    decoder = getattr(model, getattr(model, "base_model_prefix", ""), model)
    open_regions: list[AbstractContextManager[Any]] = []

    def enter(module: nn.Module, _: Any) -> None:
        if module.training:
            open_regions.append(region())
            open_regions[-1].__enter__()

    def leave(*_: Any) -> None:
        if open_regions:
            open_regions.pop().__exit__(None, None, None)

    decoder.register_forward_pre_hook(enter)
    decoder.register_forward_hook(leave, always_call=True)
