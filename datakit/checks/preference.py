"""Preferences: two answers to one prompt, of which one is better."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import orjson

from datakit.checks.declare import Check, Row, Seen
from datakit.checks.turns import BLANK
from datakit.findings import BadRow
from datakit.formats.parse import common_prompt

PAIRS: Final = ("preference",)

SCORES: Final = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)


def answer_text(value: Any) -> str:
    """The texts of an answer, one after the other."""
    if isinstance(value, str):
        return value
    texts: list[str] = []
    for message in value:
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            texts += [str(part.get("text", "")) for part in content]
    return "\n".join(texts)


def equal_answers(record: Row, rest: Row) -> Seen:
    chosen, rejected = record["chosen"], record["rejected"]
    if chosen == rejected:
        if isinstance(chosen, str) or _encoded(chosen) == _encoded(rejected):
            yield "", "chosen and rejected are the same"
        return
    a, b = answer_text(chosen), answer_text(rejected)
    if (
        a.split(None, 8)[:8] == b.split(None, 8)[:8]
        and a.split() == b.split()
        and _in_words(chosen) == _in_words(rejected)
    ):
        yield "", "chosen and rejected differ in white space only"


def _encoded(side: Any) -> bytes:
    """An answer as JSON; true and 1 are equal in Python and not in tool arguments."""
    return orjson.dumps(side, option=orjson.OPT_SORT_KEYS)


def _in_words(side: Any) -> Any:
    """An answer with its texts cut into words."""
    if isinstance(side, str):
        return side.split()
    return [{**m, "content": c.split() if isinstance(c := m.get("content"), str) else c} for m in side]


def no_shared_prompt(record: Row, rest: Row) -> Seen:
    if "prompt" not in record and isinstance(record["chosen"], list) and record["chosen"] != record["rejected"]:
        try:
            common_prompt(record["chosen"], record["rejected"])
        except BadRow as bad:
            yield "", bad.finding.note


def empty_answer(record: Row, rest: Row) -> Seen:
    for side in ("chosen", "rejected", "completion"):
        if side in record and not record[side].strip(BLANK):
            yield side, "an empty answer"
    if "scores" in record:
        for index, answer in enumerate(record["completions"]):
            if not answer.strip(BLANK):
                yield f"completions[{index}]", "an empty answer"


def margin_inverted(record: Row, rest: Row) -> Seen:
    for better, worse in SCORES:
        a, b = rest.get(better), rest.get(worse)
        if isinstance(a, int | float) and isinstance(b, int | float) and a <= b:
            yield better, f"{better} {a} is not above {worse} {b}"


def prefix_answer(record: Row, rest: Row) -> Seen:
    chosen, rejected = answer_text(record["chosen"]), answer_text(record["rejected"])
    if chosen and rejected and chosen != rejected and (chosen.startswith(rejected) or rejected.startswith(chosen)):
        yield "", "one answer is the beginning of the other"


# Trivial marks that may give the better answer away. A mark on one side only is a vote for or against that side.
LEAKS: Final[dict[str, Callable[[str], bool]]] = {
    "ends with white space": lambda t: t != t.rstrip(),
    "begins with white space": lambda t: t != t.lstrip(),
    "has a code fence": lambda t: "```" in t,
    "has a list": lambda t: re.search(r"\n[ \t]*([-*]|\d+\.) ", "\n" + t) is not None,
    "has a heading": lambda t: re.search(r"\n#{1,4} ", "\n" + t) is not None,
    "has an end token": lambda t: re.search(r"<\|(im_end|endoftext|eot_id)\|>|</s>", t) is not None,
    "refuses": lambda t: re.match(r"\s*(I'm sorry|I am sorry|Sorry|I can(no|')t|As an AI)", t) is not None,
}


def count_pair(record: Row, counts: Counter[str]) -> None:
    """What the whole-set checks need to know about one pair."""
    chosen, rejected = answer_text(record["chosen"]), answer_text(record["rejected"])
    counts["pairs"] += 1
    counts["chosen chars"] += len(chosen)
    counts["rejected chars"] += len(rejected)
    counts["chosen longer"] += len(chosen) > len(rejected)
    counts["rejected longer"] += len(chosen) < len(rejected)
    for mark, has in LEAKS.items():
        a, b = has(chosen), has(rejected)
        if a != b:
            counts[f"{mark} in chosen only" if a else f"{mark} in rejected only"] += 1


def length_bias(counts: Counter[str]) -> str | None:
    """Said where the longer answer wins, or loses, in three of four pairs."""
    longer, shorter = counts["chosen longer"], counts["rejected longer"]
    if longer + shorter < 50 or max(longer, shorter) < 0.75 * (longer + shorter):
        return None
    ratio = counts["chosen chars"] / max(1, counts["rejected chars"])
    return f"chosen is the longer answer in {longer} of {longer + shorter} pairs, {ratio:.2f} times as long on average"


def format_leak(counts: Counter[str]) -> list[str]:
    """Marks that tell the sides apart in nine of ten pairs that have them, and in a tenth of all pairs."""
    said = []
    for mark in LEAKS:
        a, b = counts[f"{mark} in chosen only"], counts[f"{mark} in rejected only"]
        if a + b >= max(20, 0.1 * counts["pairs"]) and max(a, b) >= 0.9 * (a + b):
            side = "chosen" if a > b else "rejected"
            said.append(f"only {side} {mark} in {max(a, b)} of {a + b} pairs where one side does")
    return said


PREFERENCE: Final = (
    Check("DK401", "chosen-equals-rejected", "error", "Chosen and rejected differ.", "Remove the pair; it has no signal.", "row", equal_answers, PAIRS),
    Check("DK402", "prompt-mismatch", "error", "Both answers follow the prompt of the row.", "Correct the prompt column, or drop it and convert with --format dpo-implicit."),
    Check("DK403", "no-shared-prompt", "error", "Two whole conversations share their prompt.", "Remove the pair; the two answer different questions.", "row", no_shared_prompt, PAIRS, raised=True),
    Check("DK404", "conflicting-preference", "warning", "No two rows prefer opposite answers to one prompt.", "Decide which of the two holds.", "set", kinds=PAIRS),
    Check("DK405", "margin-inverted", "warning", "The chosen answer has the higher score.", "Look whether the columns are swapped.", "row", margin_inverted, PAIRS),
    Check("DK406", "length-bias", "warning", "Length alone does not tell which answer is chosen.", "Balance the pairs, or expect longer answers.", "set", kinds=PAIRS),
    Check("DK407", "prefix-answer", "warning", "No answer is the beginning of the other.", "Look whether one was cut off.", "row", prefix_answer, PAIRS),
    Check("DK408", "format-leak", "warning", "No trivial mark tells which answer is chosen.", "Clean the mark from both sides.", "set", kinds=PAIRS),
    Check("DK410", "tie", "warning", "One of two compared answers wins. A tie has no pair; it goes to rejects/ and is counted.", "Nothing; a tie holds no preference."),
    Check("DK411", "empty-answer", "error", "An answer has a text.", "Remove the row.", "texts", empty_answer, ("sft", "preference", "kto", "ranked")),
)  # fmt: skip
