"""Statistics of a shard folder: what a person wants to know before training on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from datakit.checks.preference import answer_text
from datakit.schema import SOURCE
from datakit.shards import Shards

IDS = ("input_ids", "prompt_ids", "completion_ids", "chosen_ids", "rejected_ids")
QUANTILES = (0.0, 0.05, 0.5, 0.95, 0.99, 1.0)


def compute(shards: Shards) -> dict[str, Any]:
    """Counts, and quantiles of turns and of characters, or tokens where rows are formatted."""
    lengths: dict[str, list[int]] = {}
    turns: list[int] = []
    counts: dict[str, Counter[str]] = {
        "roles": Counter(),
        "labels": Counter(),
        "sources": Counter(),
        "rows with": Counter(),
    }
    for row in shards.rows(all=True):
        counts["sources"][row.get(SOURCE) or "several"] += 1
        if row.get("tools"):
            counts["rows with"]["tools"] += 1
        if row.get("images"):
            counts["rows with"]["images"] += 1
        if "label" in row:
            counts["labels"][str(row["label"]).lower()] += 1
        _columns(row, lengths, turns, counts)
    facts: dict[str, Any] = {"rows": len(shards)}
    facts |= {name: dict(sorted(counter.items())) for name, counter in counts.items() if counter}
    unit = "tokens" if shards.manifest["kind"] == "tokenized" else "characters"
    facts[unit] = {name: _quantiles(values) for name, values in lengths.items()}
    if turns:
        facts["turns"] = _quantiles(turns)
    splits = shards.manifest["splits"]
    facts["splits"] = {s: sum(x["rows"] for x in shards.manifest["shards"] if x["split"] == s) for s in splits}
    return facts


def _columns(
    row: dict[str, Any], lengths: dict[str, list[int]], turns: list[int], counts: dict[str, Counter[str]]
) -> None:
    """Lengths and roles of the text columns of one row."""
    total = 0
    for name in ("messages", "prompt", "completion", "chosen", "rejected", "text"):
        value = row.get(name)
        if value is None:
            continue
        lengths.setdefault(name, []).append(len(answer_text(value)))
        if isinstance(value, list):
            total += len(value)
            counts["roles"].update(message["role"] for message in value)
            counts["rows with"]["tool calls"] += any("tool_calls" in message for message in value)
            counts["rows with"]["reasoning"] += any("reasoning_content" in message for message in value)
    for name in IDS:
        if name in row:
            lengths.setdefault(name, []).append(len(row[name]))
    if total:
        turns.append(total)


def _quantiles(values: Sequence[int]) -> dict[str, float]:
    import polars as pl

    series = pl.Series(values)
    found = {f"p{q * 100:g}": float(series.quantile(q, "nearest") or 0) for q in QUANTILES}
    return {**found, "mean": round(float(series.mean() or 0), 1)}  # type: ignore[arg-type]
