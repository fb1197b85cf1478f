"""What a proof teaches about rows of one shape, so that the next such row is proven by one comparison.

Most rows are plain: every message is a role and a text, and a template prints fixed text between those texts. Once such
a row has been proven, its fixed text is kept as a skeleton. For another row with the same roles, whose texts hold
nothing that the template looks for (`looks`), the skeleton is filled with that row's texts; if the result equals what
the template printed, every character has the same origin as in the proven row, and the spans follow from the lengths. A
row that differs in any character goes the long way and teaches a new skeleton. Nothing is guessed: what is looked for
says whether the template goes the same way, a skeleton where data stands, and equality whether it may.

Where the template is known to print such texts as they are, the skeleton says what it prints, and only every 64th of
these rows is rendered, to see that it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datakit.templates.output import Output
from datakit.templates.spans import Proof, Span

FORMS: Final[tuple[Callable[[str], str], ...]] = (str, str.strip, str.rstrip, str.lstrip)
"""What templates make of a text."""

ONLY_TWO: Final = frozenset({2})
ONLY_TEXT: Final = frozenset({str})
VARIANTS: Final = 4
SHAPES: Final = 4096

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Skeleton:
    """Fixed texts around the messages' own, and where each span lies relative to its message's text."""

    fixed: tuple[str, ...]
    forms: tuple[int, ...]
    spans: tuple[tuple[int, int, int], ...]
    """(message, start, end), less the characters of all texts before the two places"""
    proof: Proof

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """The spans as an array[spans, 3]."""
        return np.array(self.spans, np.int64).reshape(-1, 3)


class Plain(NamedTuple):
    """A row whose messages are a role and a text that is not blank.

    Attributes:
        key: its roles, and the arguments of the template.
        texts: of its messages.
        bare: whether none of them has white space around it.
    """

    key: Key
    texts: Sequence[str]
    bare: bool


class Skeletons:
    """The skeletons of one template."""

    def __init__(self) -> None:
        self._known: dict[Key, list[Skeleton]] = {}
        self.hits = self.misses = 0

    def predict(self, row: Plain, trims: bool) -> tuple[str, Proof] | None:
        """What a blind template prints for a row, and its proof; None where no row of this shape was proven yet.

        Args:
            row: the row.
            trims: whether the template may take white space off a text; a row with any is then not predicted.
        """
        known = self.first(row.key)
        if known is None or (trims and not row.bare):
            return None
        self.hits += 1
        return mixed(known, row.texts), _fill(known, row.texts)

    def first(self, key: Key) -> Skeleton | None:
        """The skeleton that rows of a shape are predicted by."""
        variants = self._known.get(key)
        return variants[0] if variants else None

    def match(self, row: Plain, text: str) -> Proof | None:
        """The proof of a row that a skeleton fits, printed as this text."""
        for known in self._known.get(row.key, ()):
            texts = [FORMS[form](own) if form else own for own, form in zip(row.texts, known.forms, strict=True)]
            if mixed(known, texts) == text:
                self.hits += 1
                return _fill(known, texts)
        self.misses += 1
        return None

    def learn(self, row: Plain, output: Output, proof: Proof) -> None:
        """Keep the skeleton of a proven row, if every text stands in it once."""
        if proof.lost:
            return
        if [run.origin for run in output.data] != [(number, "content", 0) for number in range(len(row.texts))]:
            return
        fixed, forms, at = [], [], 0
        for run, own in zip(output.data, row.texts, strict=True):
            text = output.text[run.start : run.end]
            form = next((n for n, made in enumerate(FORMS) if made(own) == text), None)
            if form is None:
                return
            fixed.append(output.text[at : run.start])
            forms.append(form)
            at = run.end
        fixed.append(output.text[at:])
        before = list(accumulate((run.end - run.start for run in output.data), initial=0))
        spans = tuple(
            (span.message, span.start - before[span.message], span.end - before[span.message + 1])
            for span in proof.spans
        )
        variants = self._known.setdefault(row.key, []) if len(self._known) < SHAPES else self._known.get(row.key, [])
        variants.insert(0, Skeleton(tuple(fixed), tuple(forms), spans, proof))
        del variants[VARIANTS:]


def plain(messages: Sequence[Mapping[str, Any]], tools: Any, kwargs: Mapping[str, Any] | None) -> Plain | None:
    """A row as its roles and texts; None where there is more to it."""
    if tools is not None:
        return None
    try:
        texts = [message["content"] for message in messages]
    except KeyError:
        return None
    if not ONLY_TWO.issuperset(map(len, messages)) or not ONLY_TEXT.issuperset(map(type, texts)):
        return None
    inner = [text.strip() for text in texts]
    if not all(inner):
        return None
    key = tuple([message["role"] for message in messages])
    return Plain((key, repr(kwargs)) if kwargs else key, texts, inner == texts)


def mixed(known: Skeleton, texts: Sequence[str]) -> str:
    """The fixed text with the texts in it."""
    parts = [""] * (2 * len(texts) + 1)
    parts[0::2] = known.fixed
    parts[1::2] = texts
    return "".join(parts)


def _fill(known: Skeleton, texts: Sequence[str]) -> Proof:
    before = [0, *accumulate(map(len, texts))]
    new = tuple.__new__  # half of the time that Span(...) takes
    spans = [
        new(Span, (number, start + before[number], end + before[number + 1])) for number, start, end in known.spans
    ]
    return Proof(spans, *known.proof[1:])
