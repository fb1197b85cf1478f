"""What only shows when rows are rendered and tokenised. `datakit format` raises these; there is no function to run."""

from __future__ import annotations

from typing import Final

from datakit.checks.declare import Check

FORMATTING: Final = (
    Check("DK701", "template-error", "error", "The chat template renders the row.", "Repair the row, or take another --chat-template.", "format", raised=True),
    Check("DK702", "over-max-length", "error", "A row has at most --max-length tokens.", "Choose a longer --max-length, or a --truncation after looking at the table of what each loses.", "format", raised=True),
    Check("DK703", "content-lost-in-render", "error", "The template prints every text, thought, tool call and tool of the row.", "Take a template that prints them, or allow the loss with --severity DK703=warning.", "format"),
    Check("DK704", "nothing-trained", "warning", "A row has a trained token. One without goes to rejects/ and is counted.", "Look at --train-on, --leave-out, the weights and --max-length.", "format"),
    Check("DK705", "two-beginnings", "error", "A row begins with one beginning-of-sequence token at most.", "Take it out of the template or of the text.", "format"),
    Check("DK706", "end-not-printed", "warning", "The template prints an end behind every assistant turn.", "A model trained so does not learn to stop there; give the template an end, or stop on the next header.", "format"),
    Check("DK707", "control-token-in-data", "error", "No text or key of a row holds a control token.", "Remove it, or choose --control-tokens escape, quarantine or allow.", "format"),
    Check("DK708", "prompt-not-a-prefix", "warning", "The prompt as the model gets it is how the trained text begins.", "Training and inference differ by the end of the prompt; take a template that prints both alike.", "format"),
    Check("DK710", "mask-not-proven", "error", "It can be proven which text the assistant wrote.", "See docs/masks.md for templates; quarantine such rows, or train on everything.", "format", raised=True),
    Check("DK713", "token-over-a-border", "note", "No token reaches over the border of a trained span.", "Nothing; such tokens are trained.", "format"),
    Check("DK714", "cut-to-length", "warning", "No row is shortened to fit --max-length.", "See the table of losses in the report.", "format"),
)  # fmt: skip
