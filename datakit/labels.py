"""Spans of text to labels: a token is trained if it overlaps a span, all others are -100.

So a token that straddles a border is trained, as in transformers' assistant masks. With a control token at the end of
turns there are none at the end, and one at the start only where a text begins with white space that the tokenizer joins
to the prompt's; they are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datakit.schema import IGNORED

Ids = NDArray[np.int32]
Places = NDArray[Any]
ByteSpan = tuple[int, int]


class Labelled(NamedTuple):
    """Labels of many texts.

    Attributes:
        labels: like the ids, -100 where not trained.
        trained: trained tokens of each text.
        straddling: tokens of each text that overlap a border.
    """

    labels: Ids
    trained: Places
    straddling: Places


def label(
    ids: Ids, offsets: Places, starts: Places, ends: Places, bases: Places, spans: Sequence[Sequence[ByteSpan]]
) -> Labelled:
    """The labels of a batch of texts.

    Args:
        ids: of all texts, one after the other.
        offsets: where each text's ids begin, and the end.
        starts, ends: byte positions of each token in the texts joined.
        bases: where each text begins there, and the end.
        spans: for each text, disjoint spans in order, in bytes from its own start.
    """
    rows = len(offsets) - 1
    number = np.repeat(np.arange(rows), list(map(len, spans)))
    places = chain.from_iterable(chain.from_iterable(spans))
    flat = np.fromiter(places, np.int64, 2 * len(number)).reshape(-1, 2) + bases[number][:, None]
    begin, end = flat.astype(starts.dtype).T  # as the positions are, since searching would make them so
    first = np.searchsorted(ends, begin, "right")
    after = np.maximum(np.searchsorted(starts, end, "left"), first)
    used = after > first
    early = used & (starts[np.minimum(first, len(ids) - 1)] < begin) if len(ids) else used
    late = used & (ends[np.maximum(after - 1, 0)] > end) if len(ids) else used
    straddling = np.bincount(number, weights=early.astype(np.int64) + late, minlength=rows).astype(np.int64)
    first[1:] = np.maximum(first[1:], after[:-1])  # a token that overlaps two spans counts once
    after = np.maximum(after, first)
    trained = np.bincount(number, weights=after - first, minlength=rows).astype(np.int64)
    return Labelled(_inside(ids, first, after), trained, straddling)


def _inside(ids: Ids, first: Places, after: Places) -> Ids:
    """The ids in disjoint stretches, and -100 between them."""
    borders = np.concatenate(([0], np.stack((first, after), 1).ravel(), [len(ids)]))
    inside = np.repeat(np.arange(len(borders) - 1) % 2 == 1, np.diff(borders))
    return np.where(inside, ids, np.int32(IGNORED))


def to_bytes(text: str, spans: Sequence[ByteSpan]) -> Sequence[ByteSpan]:
    """Spans in characters as spans in the UTF-8 of the text."""
    if text.isascii():
        return spans
    done: list[ByteSpan] = []
    at = size = 0
    for start, end in spans:
        size += len(text[at:start].encode())
        begin = size
        size += len(text[start:end].encode())
        done.append((begin, size))
        at = end
    return done
