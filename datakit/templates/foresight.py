"""What a template prints for many plain rows, without rendering any.

This is `Skeletons.predict` for the rows of a batch side by side, since to ask for each row alone takes longer than to
put its text together. A row that is not plain, that may go another way through the template, or whose shape was not
proven yet, is left to `Template.prove`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from datakit.templates.blind import Sight
from datakit.templates.environment import MAX_TEXT
from datakit.templates.looks import Wanted
from datakit.templates.skeletons import ONLY_TEXT, ONLY_TWO, Skeleton, Skeletons, mixed, plain

Messages = Sequence[Mapping[str, Any]]
Pair = tuple[int, int]


class Foreseen(NamedTuple):
    """What is known of a row whose template prints all of it and ends every turn.

    Attributes:
        text: as printed.
        spans: characters that the assistant wrote, disjoint and in order.
    """

    text: str
    spans: list[Pair]


class _Flat(NamedTuple):
    """Plain rows side by side: of all messages the role, the text, and the text without white space around it."""

    roles: list[str]
    texts: list[str]
    bare: list[str]


def foresee(rows: Sequence[Messages], skeletons: Skeletons, wanted: Wanted) -> list[Foreseen | None]:
    """What is known beforehand of rows without tools and arguments; None where that is nothing."""
    flat = _flat(rows)
    if flat is None:
        simple = [number for number, row in enumerate(rows) if plain(row, None, None) is not None]
        some = dict(zip(simple, foresee([rows[number] for number in simple], skeletons, wanted), strict=True))
        return [some.get(number) for number in range(len(rows))]
    borders = [0, *accumulate(map(len, rows))]
    known: dict[int, Skeleton] = {}
    texts: list[str] = []
    allowed = wanted.allows_all(flat.texts)
    for number, (first, last) in enumerate(pairwise(borders)):
        skeleton = skeletons.first(tuple(flat.roles[first:last]))
        if skeleton is None or skeleton.proof.unended:
            continue
        own = flat.texts[first:last]
        bare = flat.bare[first:last] == own
        if (allowed or wanted.allows(own, bare)) and (bare or wanted.sight is not Sight.TRIMS):
            text = mixed(skeleton, own)
            if len(text) <= MAX_TEXT:
                known[number] = skeleton
                texts.append(text)
    made: list[Foreseen | None] = [None] * len(rows)
    spans = _spans([borders[number] for number in known], known.values(), flat.texts)
    for number, row in zip(known, map(Foreseen, texts, spans), strict=True):
        made[number] = row
    return made


def _flat(rows: Sequence[Messages]) -> _Flat | None:
    """The rows side by side; None unless all are plain."""
    messages = list(chain.from_iterable(rows))
    texts: list[Any] = [message.get("content") for message in messages]
    if not ONLY_TWO.issuperset(map(len, messages)) or not ONLY_TEXT.issuperset(map(type, texts)):
        return None
    bare = [text.strip() for text in texts]
    return _Flat([message["role"] for message in messages], texts, bare) if all(bare) else None


def _spans(firsts: Sequence[int], skeletons: Iterable[Skeleton], texts: Sequence[str]) -> Iterator[list[Pair]]:
    """The spans of each row.

    Args:
        firsts: the first message of each row.
        skeletons: of each row.
        texts: of all messages.
    """
    places = [skeleton.places for skeleton in skeletons]
    if not places:
        return
    counts = list(map(len, places))
    message, start, end = np.concatenate(places).T
    before = np.fromiter(accumulate(map(len, texts), initial=0), np.int64, len(texts) + 1)
    first = np.repeat(firsts, counts)
    begins = start + before[first + message] - before[first]
    ends = end + before[first + message + 1] - before[first]
    pairs = list(zip(begins.tolist(), ends.tolist(), strict=True))
    for a, b in pairwise(accumulate(counts, initial=0)):
        yield pairs[a:b]
