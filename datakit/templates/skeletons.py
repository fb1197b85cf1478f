"""What a proof teaches about rows of one shape, so that the next such row is proven by one comparison.

Most rows are plain: every message is a role and a text, and a template prints fixed text between those texts. Once such
a row has been proven, its fixed text is kept as a skeleton. For another row with the same roles the skeleton is filled
with that row's texts; if the result equals what the template printed, every character has the same origin as in the
proven row, and the spans follow from the lengths. A row that differs in any character goes the long way and teaches a
new skeleton. Nothing is guessed: a skeleton decides where data stands, and equality decides whether it may.

Where the template is known to look at no text (`blind`), the skeleton says what it prints, and only every 64th such row
is rendered, to see that it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import add
from typing import Any, Final

import orjson

from datakit.templates.output import Output
from datakit.templates.spans import Proof, Span

FORMS: Final[tuple[Callable[[str], str], ...]] = (str, str.strip, str.rstrip, str.lstrip)
"""What templates make of a text."""

VARIANTS: Final = 4
SHAPES: Final = 4096

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """Fixed texts around the messages' own, and where each span lies relative to its message's text."""

    fixed: tuple[str, ...]
    forms: tuple[int, ...]
    spans: tuple[tuple[int, int, int], ...]
    """(message, characters before the text, characters behind it)"""
    proof: Proof


class Skeletons:
    """The skeletons of one template."""

    def __init__(self) -> None:
        self._known: dict[Key, list[_Skeleton]] = {}
        self.hits = self.misses = 0

    def predict(self, key: Key, messages: Sequence[Mapping[str, Any]], trims: bool) -> tuple[str, Proof] | None:
        """What a blind template prints for a row of this shape, and its proof; None where none was proven yet.

        Args:
            trims: whether the template may take white space off a text; a row with any is then not predicted.
        """
        variants = self._known.get(key)
        if not variants:
            return None
        texts = [message["content"] for message in messages]
        if trims and any(text[0].isspace() or text[-1].isspace() for text in texts):
            return None
        self.hits += 1
        return _mixed(variants[0], texts), _fill(variants[0], texts)

    def match(self, key: Key | None, messages: Sequence[Mapping[str, Any]], text: str) -> Proof | None:
        """The proof of a row that a skeleton fits."""
        for known in self._known.get(key, ()) if key is not None else ():
            texts = [
                FORMS[form](m["content"]) if form else m["content"]
                for m, form in zip(messages, known.forms, strict=True)
            ]
            if _mixed(known, texts) == text:
                self.hits += 1
                return _fill(known, texts)
        self.misses += 1
        return None

    def learn(self, key: Key | None, messages: Sequence[Mapping[str, Any]], output: Output, proof: Proof) -> None:
        """Keep the skeleton of a proven row, if it is plain and every text stands in it once."""
        if key is None or proof.lost:
            return
        if [run.origin for run in output.data] != [(number, "content", 0) for number in range(len(messages))]:
            return
        fixed, forms, at = [], [], 0
        for run, message in zip(output.data, messages, strict=True):
            text = output.text[run.start : run.end]
            form = next((n for n, made in enumerate(FORMS) if made(message["content"]) == text), None)
            if form is None:
                return
            fixed.append(output.text[at : run.start])
            forms.append(form)
            at = run.end
        fixed.append(output.text[at:])
        runs = output.data
        spans = tuple(
            (span.message, runs[span.message].start - span.start, span.end - runs[span.message].end)
            for span in proof.spans
        )
        variants = self._known.setdefault(key, []) if len(self._known) < SHAPES else self._known.get(key, [])
        variants.insert(0, _Skeleton(tuple(fixed), tuple(forms), spans, proof))
        del variants[VARIANTS:]


def shape(messages: Sequence[Mapping[str, Any]], tools: Any, kwargs: Mapping[str, Any] | None) -> Key | None:
    """The key of a plain row; None for other rows."""
    if tools:
        return None
    roles = []
    for message in messages:
        content = message.get("content")
        if len(message) != 2 or type(content) is not str or not content or content.isspace():
            return None
        roles.append(message["role"])
    key = tuple(roles)
    return (key, orjson.dumps(kwargs, option=orjson.OPT_SORT_KEYS)) if kwargs else key


def _mixed(known: _Skeleton, texts: Sequence[str]) -> str:
    """The fixed text with the texts in it."""
    mixed = [""] * (2 * len(texts) + 1)
    mixed[0::2] = known.fixed
    mixed[1::2] = texts
    return "".join(mixed)


def _fill(known: _Skeleton, texts: Sequence[str]) -> Proof:
    ends = list(accumulate(map(add, map(len, known.fixed), map(len, texts))))
    spans = [
        Span(number, ends[number] - len(texts[number]) - before, ends[number] + behind)
        for number, before, behind in known.spans
    ]
    return Proof(spans, known.proof.marked, known.proof.unended, [])
