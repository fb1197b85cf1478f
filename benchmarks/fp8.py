"""How fast and how heavy a training step is in FP8, beside bf16 in the same run.

    python benchmarks/fp8.py [--shapes 1b 7b] [--lengths 2048 8192] [--precisions bf16 torchao te]
                             [--weights full lora] [--compiled no yes] [--steps 20] [--rounds 2] [--out FILE]
    python benchmarks/fp8.py --device cpu --shapes tiny --lengths 64 --steps 2     # does the script itself work?

Models have random weights in bf16 and the shapes of Llama 3.2 1B and Mistral 7B; a batch holds about 16,384 random
tokens. A step is forward, backward, AdamW, with gradient checkpointing and bf16 autocast, as a trainer does it. Each
case runs in a process of its own, in turn (A B C, A B C, ...), so that a card that drifts drifts for all.

A case counts only if it is what it says: the first step goes through the audit of `trainglue`, which sees that every
converted layer multiplied in FP8 and that a gradient reached every decoder layer, and the loss must have fallen at the
end. Otherwise, and out of memory, it stands in the results with the reason. Prints a table of medians with ratios to
bf16 of the same shape, length, weights and compilation, and of peak memory. On a CPU FP8 is emulated: no figure of such
a run says anything.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOKENS = 16_384
WARM_UP = 5

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
PRECISIONS: dict[str, dict[str, str]] = {
    "bf16": {},
    "torchao": {"backend": "torchao", "recipe": "tensorwise"},
    "rowwise": {"backend": "torchao", "recipe": "rowwise"},
    "te": {"backend": "te", "recipe": "current"},
    "delayed": {"backend": "te", "recipe": "delayed"},
}


@dataclass(frozen=True)
class Case:
    shape: str
    length: int
    weights: str
    compiled: bool
    precision: str
    device: str
    steps: int

    @property
    def setting(self) -> tuple[Any, ...]:
        """All but the precision: what ratios are taken within."""
        return self.shape, self.length, self.weights, self.compiled


def build(case: Case) -> tuple[Any, Any]:
    """The model of a case, on its device, and what was converted."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainglue import precision

    torch.manual_seed(0)
    heads = max(1, SHAPES[case.shape]["num_attention_heads"] // 4)
    config = LlamaConfig(
        vocab_size=32_000 if case.shape != "tiny" else 512, num_key_value_heads=heads, **SHAPES[case.shape]
    )
    with torch.device(case.device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    options = PRECISIONS[case.precision]
    asked = precision.Fp8(**options, emulate=case.device == "cpu") if options else "bf16"  # type: ignore[arg-type]
    conversion = precision.prepare(model, asked)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if case.weights == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
        model.enable_input_require_grads()
    return model.train(), conversion


def train(case: Case) -> dict[str, Any]:
    """Seconds of a step and bytes at the peak. Raises what `trainglue` raises if FP8 is not what it computes in."""
    import torch

    from trainglue.precision.audit import Audit, gradients_reach

    model, conversion = build(case)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if case.weights == "lora":
        for weight in weights:
            weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, lr=1e-4 if case.weights == "full" else 1e-3, fused=case.device == "cuda")
    tokens = TOKENS if case.device == "cuda" else 4 * case.length
    vocabulary = model.get_input_embeddings().num_embeddings
    batch = torch.randint(vocabulary, (max(1, tokens // case.length), case.length), device=case.device)
    run = torch.compile(model) if case.compiled else model
    audit = Audit(conversion)
    losses, seconds = [], []

    def synchronise() -> None:
        if case.device == "cuda":
            torch.cuda.synchronize()

    for number in range(WARM_UP + case.steps):
        synchronise()
        start = time.perf_counter()
        audit.on_step_begin(None, None, None, model=model)
        with torch.autocast(case.device, torch.bfloat16):
            loss = run(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        audit.on_pre_optimizer_step(None, None, None, model=model)
        if number == 0 and not gradients_reach(model):
            raise RuntimeError("all gradients are zero")
        optimizer.step()
        optimizer.zero_grad()
        synchronise()
        if number == WARM_UP - 1 and case.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - start)
        losses.append(loss.detach())
    first, last = float(losses[0]), float(losses[-1])
    if not last < first:
        raise RuntimeError(f"the loss went from {first:.3f} to {last:.3f}")
    return {
        "step_seconds": statistics.median(seconds),
        "tokens_per_second": batch.numel() / statistics.median(seconds),
        "peak_bytes": torch.cuda.max_memory_allocated() if case.device == "cuda" else 0,
        "loss": [first, last],
        "converted": len(conversion.layers),
        "watched": sum(map(bool, audit.matmuls.values())),
    }


def one(case: Case) -> dict[str, Any]:
    """A case in its own process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode == 0:
        outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return outcome
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if "Error" in line or "NotUsed" in line), lines[-1] if lines else "")
    return {"failed": told[:300]}


def summarise(results: dict[Case, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row per case: medians over the rounds, and ratios to bf16."""
    rows = []
    times = {(case.setting, case.precision): outcome for case, outcome in results.items()}
    for case, outcomes in results.items():
        row: dict[str, Any] = {**asdict(case), "rounds": outcomes}
        fine = [outcome for outcome in outcomes if "failed" not in outcome]
        plain = [outcome for outcome in times.get((case.setting, "bf16"), []) if "failed" not in outcome]
        if fine:
            row["step_seconds"] = statistics.median(outcome["step_seconds"] for outcome in fine)
        if fine and plain:
            row["speed"] = statistics.median(outcome["step_seconds"] for outcome in plain) / row["step_seconds"]
            peak = max(outcome["peak_bytes"] for outcome in plain)
            row["memory"] = max(outcome["peak_bytes"] for outcome in fine) / peak if peak else None
        rows.append(row)
    return rows


def machine() -> dict[str, Any]:
    import torch

    packages = ("torch", "transformers", "torchao", "peft", "transformer_engine")
    found: dict[str, Any] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            found[package] = None
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {"device": name, "cuda": torch.version.cuda, "python": sys.version.split()[0], **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1b", "7b"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["bf16", "torchao", "te"])
    parser.add_argument("--weights", nargs="+", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument("--compiled", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(train(Case(**given.case))))
        return
    settings = itertools.product(
        given.shapes, given.lengths, given.weights, (c == "yes" for c in given.compiled), given.precisions
    )
    cases = [Case(*setting, device=given.device, steps=given.steps) for setting in settings]
    results: dict[Case, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(given.rounds):
        for case in cases:
            results[case].append(one(case))
            print(*case.setting, case.precision, results[case][-1], file=sys.stderr, flush=True)
    rows = summarise(results)
    print(json.dumps(machine()))
    for row in rows:
        names = ("step_seconds", "speed", "memory")
        figures = " ".join(f"{name} {row[name]:.3f}" for name in names if row.get(name) is not None)
        compiled = "compiled" if row["compiled"] else "eager"
        print(row["shape"], row["length"], row["weights"], compiled, row["precision"], figures or row["rounds"][0])
    if given.out:
        given.out.write_text(json.dumps({"machine": machine(), "cases": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
