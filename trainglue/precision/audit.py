"""The callback that stops a run which asked for FP8 and does not compute in it.

In the first step every converted layer is watched, and the step is run without `torch.compile` so that there is
something to watch. Before the optimizer moves a weight:

- each converted layer that the step came by has multiplied in FP8: torchao's matrix products are seen as they are
  dispatched, Transformer Engine's layers have scales;
- a gradient has reached every decoder layer that has something to train.

A step whose gradients are all zero, as with rewards that are all alike, says nothing about the second; the next one is
looked at then.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from math import isfinite
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from datakit.errors import UsageError
from trainglue.precision.float8 import FLOAT8, TELinear
from trainglue.precision.formats import Conversion, PrecisionNotUsed

DECODER_LAYER = re.compile(r"(.*?\.(?:layers|h|blocks)\.\d+)\.")


class Audit(TrainerCallback):
    """Checks the first step of a run.

    Args:
        conversion: what `prepare` returned for the model of the trainer.

    Raises, from within `train()`:
        PrecisionNotUsed: the step did not compute in FP8, or gradients are missing or not finite.
        UsageError: the run is of a kind that this cannot check.
    """

    def __init__(self, conversion: Conversion) -> None:
        self.conversion = conversion
        self.matmuls: dict[str, int] = {}
        """FP8 products of each converted layer in the training forward of the first step."""
        self._watch: ExitStack | None = None
        self._passed_by: set[str] = set()
        self._computed = self._reached = conversion.fp8 is None

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:
        fp8 = self.conversion.fp8
        if fp8 is None:
            return
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise UsageError("fp8 is not checked under DeepSpeed or FSDP, so it is refused", "Use plain torchrun.")
        if fp8.recipe == "delayed" and any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
            raise UsageError(
                "delayed scaling counts a layer twice that gradient checkpointing runs again",
                "Use recipe current, or gradient_checkpointing=False.",
            )
        present = {id(module) for module in model.modules()}
        if lost := [name for name, layer in self.conversion.layers.items() if id(layer) not in present]:
            raise PrecisionNotUsed(f"{len(lost)} converted layers are not in the trainer's model, such as {lost[0]}")

    def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:
        if not self._computed:
            self._watch = self._watching(model)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
            self._must_have_computed()
            self._computed = True
        if not self._reached:
            self._reached = gradients_reach(model)

    def _must_have_computed(self) -> None:
        idle = [name for name in self._passed_by if not self.matmuls.get(name)]
        if idle or not self._passed_by:
            raise PrecisionNotUsed(
                f"fp8 was asked for, and in the first step {len(idle) or 'all'} of {len(self.conversion.layers)} "
                f"converted layers did not multiply in it{f', such as {min(idle)}' if idle else ''}",
                "Something calls their weights directly, or switched FP8 off. Use precision bf16, or --engine trl.",
            )

    def _watching(self, model: nn.Module) -> ExitStack:
        """Counts FP8 products per layer, and notes which layers the step came by, until it is closed."""
        watch = ExitStack()
        watch.enter_context(torch.compiler.set_stance("force_eager"))
        names = {id(layer): name for name, layer in self.conversion.layers.items()}
        modules = dict(model.named_modules())
        inside: dict[str, set[str]] = defaultdict(set)
        for path, module in modules.items():
            if name := names.get(id(module)):
                inside[path.removesuffix(".base_layer").rpartition(".")[0]].add(name)
                watch.callback(_instead(module, self._counted(name, module)))
        for path, members in inside.items():
            watch.callback(_instead(modules[path], self._noted(members, modules[path])))
        return watch

    def _counted(self, name: str, layer: nn.Module) -> Callable[..., Any]:
        forward = layer.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            with _Float8Products() as products:
                output = forward(*args, **kwargs)
            if layer.training:
                self.matmuls[name] = self.matmuls.get(name, 0) + (
                    layer.scaled if isinstance(layer, TELinear) else products.count
                )
            return output

        return counted

    def _noted(self, members: set[str], parent: nn.Module) -> Callable[..., Any]:
        forward = parent.forward

        def noted(*args: Any, **kwargs: Any) -> Any:
            if parent.training:
                self._passed_by |= members
            return forward(*args, **kwargs)

        return noted


def gradients_reach(model: nn.Module) -> bool:
    """Whether each decoder layer with trainable weights has a gradient; False if all gradients are zero.

    Raises:
        PrecisionNotUsed: some have one and others do not, or it is not finite.
    """
    largest: dict[str, float] = {}  # gradient of each decoder layer; below zero if there is none
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (layer := DECODER_LAYER.match(name)):
            size = -1.0 if parameter.grad is None else float(parameter.grad.abs().max())
            if not isfinite(size):
                raise PrecisionNotUsed(f"the gradient of {name} is not finite", "Try precision bf16 or another recipe.")
            largest[layer[1]] = max(largest.get(layer[1], -1.0), size)
    if set(largest.values()) == {0.0}:
        return False
    if missing := [layer for layer, size in largest.items() if size <= 0]:
        raise PrecisionNotUsed(
            f"no gradient reaches {len(missing)} of {len(largest)} decoder layers, such as {missing[0]}",
            "With gradient checkpointing use use_reentrant=False, so that gradients pass frozen embeddings.",
        )
    return True


class _Float8Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts matrix products whose operands hold FP8 numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten._scaled_mm):
            operands = [getattr(operand, "_data", operand) for operand in args[:3]]
            self.count += sum(getattr(operand, "dtype", None) in FLOAT8 for operand in operands) == 2
        return func(*args, **kwargs or {})


def _instead(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Sets the forward of one module, and gives the way back."""
    own = module.__dict__.get("forward")
    module.forward = forward

    def back() -> None:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.forward = own

    return back
