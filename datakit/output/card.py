"""The dataset card: the README.md whose head tells `datasets` and the Hub which files are which split.

The head carries the content id. `datasets` keys its cache on the card's configuration and on file names, so without
something that changes with the rows it goes on to serve the old ones after an overwrite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render(body: Mapping[str, Any], content_id: str) -> bytes:
    """The card of a manifest without its `run`."""
    head = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in body["splits"]:
        head += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    head += [f"  description: datakit {content_id}", f"datakit_content_id: {content_id}", "---"]
    kind = f"{body['kind']}:{body['form']}"
    lines = [
        "",
        f"# {kind}, {body['ledger']['rows_out']:,} rows",
        "",
        f"Written by datakit {body['tool']}. `manifest.json` says from what, how, and with which hashes;",
        "`datakit verify` compares. Load it with `datasets.load_dataset` or `datakit.load` on this folder.",
        "",
        "| split | shards | rows |",
        "|---|---:|---:|",
    ]
    for split in body["splits"]:
        shards = [s for s in body["shards"] if s["split"] == split]
        lines.append(f"| {split} | {len(shards)} | {sum(s['rows'] for s in shards):,} |")
    lines += ["", "| column | type | |", "|---|---|---|"]
    lines += [f"| `{c['name']}` | {c['type']} | {c['doc']} |" for c in body["columns"]]
    return ("\n".join(head + lines) + "\n").encode()
