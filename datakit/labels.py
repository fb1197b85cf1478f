"""Spans of text to labels: a token is trained if it overlaps a span, all others are -100.

So a token that straddles a border is trained, as in transformers' assistant masks. With a control token at the end of
turns there are none at the end, and one at the start only where a text begins with white space that the tokenizer joins
to the prompt's; they are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORED: Final = -100
"""The label of a token that is not trained."""

Ids = NDArray[np.int32]
Places = NDArray[np.int64]
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


def label(ids: Ids, offsets: Places, starts: Places, ends: Places, spans: Sequence[Sequence[ByteSpan]]) -> Labelled:
    """The labels of a batch of texts.

    Args:
        ids: of all texts, one after the other.
        offsets: where each text's ids begin, and the end.
        starts, ends: byte positions of each token in its own text.
        spans: for each text, disjoint spans in order, in bytes.
    """
    rows = len(offsets) - 1
    counts = np.diff(offsets)
    last = np.zeros(rows, np.int64)
    filled = counts > 0
    last[filled] = ends[offsets[1:][filled] - 1]
    begins = np.concatenate(([0], np.cumsum(last + 1)))[:-1]  # texts one byte apart, so that borders cannot touch
    shift = np.repeat(begins, counts)
    wide_starts, wide_ends = starts + shift, ends + shift
    number = np.repeat(np.arange(rows), [len(own) for own in spans])
    flat = np.array([span for own in spans for span in own], np.int64).reshape(-1, 2) + begins[number][:, None]
    first = np.searchsorted(wide_ends, flat[:, 0], "right")
    after = np.maximum(np.searchsorted(wide_starts, flat[:, 1], "left"), first)
    depth = np.zeros(len(ids) + 1, np.int64)
    np.add.at(depth, first, 1)
    np.add.at(depth, after, -1)
    mask = np.cumsum(depth[:-1]) > 0
    total = np.concatenate(([0], np.cumsum(mask)))
    used = after > first
    early = used & (wide_starts[np.minimum(first, len(ids) - 1)] < flat[:, 0]) if len(ids) else used
    late = used & (wide_ends[np.maximum(after - 1, 0)] > flat[:, 1]) if len(ids) else used
    straddling = np.bincount(number, weights=early.astype(np.int64) + late, minlength=rows).astype(np.int64)
    return Labelled(
        np.where(mask, ids, np.int32(IGNORED)).astype(np.int32), total[offsets[1:]] - total[offsets[:-1]], straddling
    )


def to_bytes(text: str, spans: Sequence[tuple[int, int]]) -> list[ByteSpan]:
    """Spans in characters as spans in the UTF-8 of the text."""
    if text.isascii():
        return list(spans)
    done = []
    at = size = 0
    for start, end in spans:
        size += len(text[at:start].encode())
        begin = size
        size += len(text[start:end].encode())
        done.append((begin, size))
        at = end
    return done
