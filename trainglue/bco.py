"""Binary classifier optimisation, as TRL had it until 1.13.

Each answer is judged alone, good or bad. Its reward is `beta` times how much likelier the model finds it than the
reference does, and the loss is that of a classifier that parts good from bad at `delta`, the mean of all rewards so
far:

    good: -log sigmoid(reward - delta)        bad: -log sigmoid(delta - reward)

The trainer is the KTO trainer of the installed TRL with another loss; rows and options are those of KTO. The mean is
part of a checkpoint. TRL's weighting by a classifier of prompts (`embedding_func`) is not here.
"""

from __future__ import annotations

import copy
import inspect
import json
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
from torch.nn import functional

from datakit.errors import UsageError
from datakit.schema import IGNORED

STATE: Final = "running.json"
"""The file of a checkpoint that holds the running mean."""

NEEDED: Final = ("compute_ref_log_probs", "_save_optimizer_and_scheduler", "_load_optimizer_and_scheduler")


@cache
def trainer_class() -> type[Any]:
    """`BCOTrainer`: a subclass of the KTO trainer that the installed TRL, or Unsloth in its place, has now.

    Raises:
        UsageError: TRL's KTO trainer is of another make than this class knows.
    """
    kto: type[Any] = import_module("trl").KTOTrainer
    if missing := [name for name in NEEDED if not hasattr(kto, name)]:
        raise UsageError(f"TRL's KTOTrainer has no {missing[0]}, which BCO is built on", "pip install 'trl>=1.9,<1.17'")
    fused = "fused_lm_head" in inspect.getsource(kto.compute_ref_log_probs)
    return type("BCOTrainer", (BCOLoss, kto), {"_name": "BCO", "fused": fused, "__module__": __name__})


class RunningMean:
    """The mean of all rewards that training has seen."""

    def __init__(self, mean: float = 0.0, count: int = 0) -> None:
        self.mean, self.count = mean, count

    def update(self, total: float, count: int) -> None:
        """Adds `count` rewards that sum up to `total`."""
        self.count += count
        self.mean += (total - count * self.mean) / self.count


class BCOLoss:
    """What makes a `KTOTrainer` one of BCO. `loss_type` has no say."""

    fused: bool
    """Whether models have TRL's language-model head that builds no logits."""

    args: Any
    accelerator: Any
    model: Any
    ref_model: Any
    beta: float
    aux_loss_enabled: bool

    def __init__(self, *arguments: Any, args: Any, **options: Any) -> None:
        if (args.desirable_weight, args.undesirable_weight) != (1.0, 1.0):
            raise UsageError("BCO has no weights of good and bad answers", "Leave out desirable_weight.")
        args = copy.copy(args)
        args.loss_type = "apo_zero_unpaired"  # the loss of KTO that needs no neighbours in a batch
        self.running = RunningMean()
        super().__init__(*arguments, args=args, **options)  # type: ignore[call-arg]

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of a batch; in training its rewards move `delta` first."""
        inputs = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        outputs, logps = self.completion_logps(model, inputs)
        rewards = self.beta * (logps - self.reference_logps(inputs))
        good = torch.as_tensor(inputs["label"], dtype=torch.bool, device=rewards.device)
        if self.model.training:
            seen = rewards.detach().double()
            total, count = self.accelerator.reduce(torch.stack([seen.sum(), seen.new_tensor(len(seen))])).tolist()
            self.running.update(total, int(count))
        delta = self.running.mean
        loss = -functional.logsigmoid(torch.where(good, rewards - delta, delta - rewards)).mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss  # type: ignore[attr-defined]
        self.note(rewards.detach(), good)
        return (loss, outputs) if return_outputs else loss

    def completion_logps(self, model: Any, inputs: Any) -> tuple[Any, torch.Tensor]:
        """The outputs of a model, and the log-probability of each completion."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
        tokens = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        if self.aux_loss_enabled:
            tokens["output_router_logits"] = True
        width = labels.size(1) - 1  # prompt-learning adapters put more in front
        if self.fused:
            outputs = model(**tokens, labels=labels, fused_lm_head=True)
            return outputs, outputs.log_probs[:, -width:].sum(-1)
        outputs = model(**tokens)
        logits = outputs.logits[:, -width - 1 : -1].float().transpose(1, 2)
        return outputs, -functional.cross_entropy(logits, labels[:, 1:], ignore_index=IGNORED, reduction="none").sum(-1)

    def reference_logps(self, inputs: Any) -> torch.Tensor:
        """The same of the reference, precomputed or not."""
        if "ref_logps" in inputs:
            return inputs["ref_logps"]
        return self.compute_ref_log_probs(self.ref_model or self.model, inputs)[0]  # type: ignore[attr-defined]

    def note(self, rewards: torch.Tensor, good: torch.Tensor) -> None:
        """Metrics of a batch over all processes, for the log."""
        metrics = self._metrics["train" if self.model.training else "eval"]  # type: ignore[attr-defined]
        sums = torch.stack([rewards[good].sum(), good.sum(), rewards[~good].sum(), (~good).sum()])
        chosen, good_count, rejected, bad_count = self.accelerator.reduce(sums).tolist()
        if good_count:
            metrics["rewards/chosen"].append(chosen / good_count)
        if bad_count:
            metrics["rewards/rejected"].append(rejected / bad_count)
        if good_count and bad_count:
            metrics["rewards/margins"].append(chosen / good_count - rejected / bad_count)
        metrics["delta"].append(self.running.mean)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.args.should_save:
            (Path(output_dir) / STATE).write_text(json.dumps(vars(self.running)), "utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            if not (path := Path(checkpoint) / STATE).is_file():
                raise UsageError(
                    f"{checkpoint} holds no running mean of BCO, so its loss cannot go on",
                    "Resume from a checkpoint of a BCO run.",
                )
            self.running = RunningMean(**json.loads(path.read_text("utf-8")))
