"""Texts as words, and runs of words as numbers, whole columns at a time.

The normal form: Unicode NFKC, lower case, and only letters, digits and their marks; everything else parts words. In
scripts that are written without spaces every character is a word. Equal words have equal 64-bit hashes on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]

_ALONE: Final = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_BETWEEN: Final = r"[^\p{L}\p{N}\p{M}]+"
_ASCII: Final = bytes(code if chr(code).isalnum() else 32 for code in range(128)).lower().ljust(256)
_BASE: Final = np.uint64(0x9E3779B97F4A7C15)


def normal(texts: Sequence[str]) -> Any:
    """The normal form of texts, words parted by one space, as an Arrow array of strings."""
    made = [b" ".join(text.encode().translate(_ASCII).split()) if text.isascii() else None for text in texts]
    others = [at for at, value in enumerate(made) if value is None]
    for at, value in zip(others, _normal([texts[at] for at in others]), strict=True):
        made[at] = value.encode()
    return pa.array(made, pa.large_string())


def _normal(texts: Sequence[str]) -> list[str]:
    """The same for texts of any script."""
    compute: Any = pc
    column = compute.utf8_normalize(pa.array(texts, pa.large_string()), form="NFKC")
    column = pc.replace_substring_regex(column, pattern=_ALONE, replacement=r" \1 ")
    column = pc.replace_substring_regex(pc.utf8_lower(column), pattern=_BETWEEN, replacement=" ")
    trimmed: list[str] = pc.ascii_trim(column, " ").to_pylist()
    return trimmed


class Words(NamedTuple):
    """The words of some texts.

    Attributes:
        hashes: one per word, text behind text.
        offsets: the words of text `i` are `offsets[i]` to before `offsets[i + 1]`.
        flat: the words themselves, an Arrow array.
    """

    hashes: Hashes
    offsets: Offsets
    flat: Any

    def told(self, start: int, stop: int, limit: int = 25) -> str:
        """Words as one text, at most `limit` of them."""
        more = " …" if stop - start > limit else ""
        return " ".join(self.flat.slice(start, min(stop - start, limit)).to_pylist()) + more


def words(texts: Sequence[str]) -> Words:
    """Take texts apart."""
    lists: Any = pc.split_pattern(normal(texts), pattern=" ")
    flat: Any = lists.flatten()
    sizes = np.diff(lists.offsets.to_numpy())
    there: Any = pc.cast(pc.binary_length(flat), pa.bool_())
    if not pc.all(there).as_py():  # a text without a word is split into one empty word
        sizes = sizes - (~there.to_numpy(zero_copy_only=False))[lists.offsets.to_numpy()[:-1]]
        flat = flat.filter(there)
    encoded: Any = flat.dictionary_encode()
    data = b"".join(blake2b(word.encode(), digest_size=8).digest() for word in encoded.dictionary.to_pylist())
    hashes = np.frombuffer(data, "<u8")[encoded.indices.to_numpy()]
    return Words(hashes, np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))), flat)


class Runs(NamedTuple):
    """Runs of neighbouring words.

    Attributes:
        values: one number per run.
        starts: the word that each begins with.
        offsets: the runs of text `i` are `offsets[i]` to before `offsets[i + 1]`.
    """

    values: Hashes
    starts: Offsets
    offsets: Offsets


def runs(hashes: Hashes, offsets: Offsets, length: int, short: bool = False) -> Runs:
    """All runs of so many words inside each text.

    Args:
        hashes, offsets: as in `Words`.
        length: words per run.
        short: whether a text with fewer words is one run of all that it has; else it has none.
    """
    sizes = np.diff(offsets)
    counts = np.maximum(sizes - length + 1, 0)
    if short:
        counts = np.where((sizes > 0) & (counts == 0), 1, counts)
    own = np.concatenate(([0], np.cumsum(counts)))
    starts = np.repeat(offsets[:-1] - own[:-1], counts) + np.arange(own[-1])
    width = np.minimum(np.repeat(sizes, counts), length)
    values = width.astype(np.uint64)
    for k in range(length):
        inside = width > k
        if inside.all():
            values = values * _BASE + hashes[starts + k]
        else:
            values[inside] = values[inside] * _BASE + hashes[starts[inside] + k]
    return Runs(mixed(values), starts, own)


def mixed(values: Hashes) -> Hashes:
    """Numbers whose every bit depends on every bit of the given ones (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
