"""Where each token lies in its text, from the ids alone.

The fast engine gives no offsets, and those of the exact one cost a hundred times as much as the ids. But a token of a
byte-level vocabulary *is* a string of bytes, its surface. If the surfaces of the ids, one after the other, are the
bytes of the text, then they tile it, and cumulative lengths are the positions. That is checked for every text, byte by
byte, so nothing is assumed about normalizers, unknown tokens or tokens that swallow spaces: what they change does not
tile, and `tokenizers` is asked instead.

    " hello<|im_end|>"   ids  23811, 151645    surfaces  " hello", "<|im_end|>"    starts 0, 6    ends 6, 16

In SentencePiece vocabularies a space is written `▁`, and one space may stand before a text, or a stretch of text, that
is not there. There a *walk* along the text decides what each piece stands for: a `▁` for a space or for itself, the
first piece of a stretch with or without its space. It too has to end where the text ends.

A token can hold a part of a character. Its position is exact in bytes here; `tokenizers` gives the whole character. A
span of text that is to be trained ends between characters, so both overlap the same spans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datakit.tokens.encode import Encoder, Ids, Offsets
from datakit.tokens.load import Tokenizer, definition_of, steps_of, vocabulary_of

Places = NDArray[Any]
"""Byte positions in the UTF-8 of a text, or of several joined."""

LINE: Final = "\u2581"
"""What SentencePiece writes for a space."""
_LINE: Final = LINE.encode()

Leading = Literal["never", "always", "unless", "first"]
"""When a stretch of text gets a space before it: never, always, unless it has one, at the start of the text unless it
has one."""


class Positions:
    """Positions of tokens, and the count of texts for which the exact engine had to be asked.

    Args:
        encoder: gives offsets where the ids do not tell.

    Attributes:
        texts: texts seen.
        asked: those of them for which `tokenizers` was asked.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.texts = 0
        self.asked = 0
        self._encoder = encoder
        self._surfaces = Surfaces.of(encoder.tokenizer)

    def of(self, text: str, ids: Ids) -> tuple[Places, Places]:
        """First byte and end of each token of a text.

        Args:
            text: as it was encoded.
            ids: of the text, encoded without special tokens.
        """
        self.texts += 1
        found = self._surfaces.positions(text, ids)
        if found is None:
            self.asked += 1
            pairs = np.array(self._encoder.offsets(text, ids), np.int64).reshape(-1, 2)
            found = to_bytes(text, pairs[:, 0]), to_bytes(text, pairs[:, 1])
        return found

    def of_batch(self, texts: Sequence[str], ids: Ids, offsets: Offsets) -> tuple[Places, Places, Places]:
        """The same for many texts as `Encoder.encode_flat` gives them.

        Returns:
            First byte and end of each token in the texts joined, and where each text begins there, with the end.
        """
        joined = "".join(texts)
        sizes = list(map(len, texts)) if joined.isascii() else [len(text.encode()) for text in texts]
        bases = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(sizes, out=bases[1:])
        found = self._surfaces.positions_of_batch(joined, bases, ids, offsets)
        if found is not None:
            self.texts += len(texts)
            return (*found, bases)
        borders = offsets.tolist()
        rows = [self.of(text, ids[borders[at] : borders[at + 1]]) for at, text in enumerate(texts)]
        empty = np.empty(0, np.int64)
        starts, ends = (
            np.concatenate([empty, *(row[side] + base for row, base in zip(rows, bases[:-1], strict=True))])
            for side in (0, 1)
        )
        return starts, ends, bases


def to_bytes(text: str, characters: Places) -> Places:
    """Positions in characters, up to and with the end of the text, as positions in its UTF-8."""
    if text.isascii():
        return characters
    raw = np.frombuffer(text.encode(), np.uint8)
    firsts = np.flatnonzero((raw & 0xC0) != 0x80)
    return np.append(firsts, len(raw))[characters]


@dataclass(frozen=True, slots=True)
class Surfaces:
    """What each id stands for in a text.

    Attributes:
        table: the bytes of each id; none for an id without a token.
        literal: for a SentencePiece vocabulary, the pieces with a `▁`, as they are written.
        control: ids of added tokens, which end a stretch of text.
        leading: when a stretch has a space before it that is not in the text.
    """

    table: pa.LargeBinaryArray
    literal: Mapping[int, bytes]
    control: frozenset[int]
    leading: Leading

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """The surfaces of a tokenizer; for one of an unknown kind they are its tokens, which seldom tile a text."""
        document = definition_of(tokenizer)
        tokens = [""] * tokenizer.vocabulary
        for token, id in vocabulary_of(document).items():
            tokens[id] = token
        literal: dict[int, bytes] = {}
        if _has(document, "pre_tokenizer", "pretokenizers", "ByteLevel"):
            table = _byte_level(tokens)
        else:
            literal = {id: token.encode() for id, token in enumerate(tokens) if LINE in token}
            table = pa.array(_pieces(document, tokens), pa.large_binary())
        # In Gemma's vocabulary runs of spaces are both pieces and added tokens.
        added = {token.id: token.content.encode() for token in tokenizer.added if token.id not in literal}
        places = np.arange(len(tokens))
        places[list(added)] = len(tokens) + np.arange(len(added))
        both: Any = pa.concat_arrays([table, pa.array(list(added.values()), pa.large_binary())])
        leading = _leading(document)
        return cls(both.take(_arrow(places)), literal, _control(tokenizer, leading), leading)

    def surface(self, id: int) -> bytes:
        """The bytes of an id."""
        surface: bytes = self.table[id].as_py()
        return surface

    def positions(self, text: str, ids: Ids) -> tuple[Places, Places] | None:
        """First byte and end of each token; None where the surfaces do not prove them."""
        raw = text.encode()
        bounds = self._tiled(raw, ids)
        return self._walked(raw, ids) if bounds is None else (bounds[:-1], bounds[1:])

    def positions_of_batch(
        self, joined: str, bases: Places, ids: Ids, offsets: Offsets
    ) -> tuple[Places, Places] | None:
        """The same in many texts joined, which begin at `bases`; None where one of them cannot be proven this way."""
        bounds = self._tiled(joined.encode(), ids)
        return None if bounds is None or not np.array_equal(bounds[offsets], bases) else (bounds[:-1], bounds[1:])

    def _tiled(self, raw: bytes, ids: Ids) -> Places | None:
        """Where each token begins, with the end of the last, if the surfaces joined are the text."""
        buffers: Any = self.table.take(_arrow(ids)).buffers()
        bounds = np.frombuffer(buffers[1], np.int64, len(ids) + 1)
        size = int(bounds[-1])
        if size != len(raw) or (size and not buffers[2].slice(0, size).equals(pa.py_buffer(raw))):
            return None
        return bounds

    def _walked(self, raw: bytes, ids: Ids) -> tuple[Places, Places] | None:
        """Positions by a walk along the text, which decides what a `▁` stands for."""
        if not self.literal:
            return None
        ends: list[int] = []
        at, fresh = 0, True
        for id in ids.tolist():
            surface = self.surface(id)
            added = fresh and id not in self.control and self._adds_space(raw, at)
            if added:
                surface = surface.removeprefix(b" ")
            if raw.startswith(surface, at):
                at += len(surface)
            else:
                literal = self.literal.get(id)
                end = None if literal is None else _fit(raw, at, literal.removeprefix(_LINE) if added else literal)
                if end is None:
                    return None
                at = end
            ends.append(at)
            fresh = id in self.control
        if at != len(raw):
            return None
        places = np.array(ends, np.int64)
        return np.append(0, places[:-1])[: len(places)], places

    def _adds_space(self, raw: bytes, at: int) -> bool:
        """Whether the stretch that begins here got a space."""
        if self.leading in ("never", "always"):
            return self.leading == "always"
        begins = raw.startswith((b" ", _LINE), at)
        return not begins and (self.leading == "unless" or at == 0)


def _fit(raw: bytes, at: int, piece: bytes) -> int | None:
    """The end of a piece that stands in the text from `at` on, each `▁` of it for a space or for itself."""
    for number, part in enumerate(piece.split(_LINE)):
        if number:
            if not raw.startswith((b" ", _LINE), at):
                return None
            at += 1 if raw.startswith(b" ", at) else len(_LINE)
        if not raw.startswith(part, at):
            return None
        at += len(part)
    return at


# ---------------------------------------------------------------- from tokenizer.json


def _pieces(document: Mapping[str, Any], tokens: Sequence[str]) -> list[bytes]:
    """The surface of each piece of a vocabulary that is written as it is read, but for spaces and single bytes."""
    surfaces = [token.replace(LINE, " ").encode() for token in tokens]
    if document["model"].get("byte_fallback"):
        vocabulary = vocabulary_of(document)
        for byte in range(256):
            if (token := f"<0x{byte:02X}>") in vocabulary:
                surfaces[vocabulary[token]] = bytes([byte])
    return surfaces


FOREIGN: Final = 0x100
"""Stands for no byte."""


def _alphabet() -> NDArray[np.uint16]:
    """The byte that each character of a byte-level vocabulary stands for, by its code; `FOREIGN` for other characters.

    Bytes that print in Latin-1 stand for themselves. The others have the characters from U+0100 on, in order.
    """
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(prints))
    table = np.full(1 << 16, FOREIGN, np.uint16)
    table[prints] = prints
    table[0x100 : 0x100 + len(others)] = others
    return table


_ALPHABET: Final = _alphabet()


def _byte_level(tokens: Sequence[str]) -> pa.LargeBinaryArray:
    """The bytes of tokens in the byte alphabet; none for a foreign token."""
    codes = _ALPHABET[np.frombuffer("".join(tokens).encode("utf-16-le"), np.uint16)]
    if (codes == FOREIGN).any():
        return _byte_level(["" if _is_foreign(token) else token for token in tokens])
    ends = np.zeros(len(tokens) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, tokens), np.int64, len(tokens)), out=ends[1:])
    buffers: list[Any] = [None, _buffer(ends), _buffer(codes.astype(np.uint8))]
    return cast(pa.LargeBinaryArray, pa.Array.from_buffers(pa.large_binary(), len(tokens), buffers))


def _is_foreign(token: str) -> bool:
    return any(_ALPHABET[min(ord(letter), 0xFFFF)] == FOREIGN for letter in token)


def _arrow(numbers: NDArray[Any]) -> pa.Array[Any]:
    """An array of numbers as one of Arrow, by reference; given the array itself, Arrow would look for pandas."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, _buffer(numbers)])


def _buffer(numbers: Any) -> pa.Buffer:
    return pa.py_buffer(numbers)


def _has(document: Mapping[str, Any], part: str, inner: str, kind: str) -> bool:
    return any(step.get("type") == kind for step in steps_of(document.get(part), inner))


_SCHEMES: Final[Mapping[str, Leading]] = {"always": "unless", "first": "first"}


def _leading(document: Mapping[str, Any]) -> Leading:
    if _has(document, "normalizer", "normalizers", "Prepend"):
        return "always"
    for step in steps_of(document.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            return _SCHEMES.get(scheme, "never")
    return "never"


def _control(tokenizer: Tokenizer, leading: Leading) -> frozenset[int]:
    """The added tokens that end a stretch. A normalizer runs before those that are looked for in normalized text."""
    return frozenset(token.id for token in tokenizer.added if not (leading == "always" and token.normalized))
