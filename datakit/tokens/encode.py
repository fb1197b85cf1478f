"""Texts to ids, in a worker process: by fastokens where it was seen to agree with `tokenizers`, else by `tokenizers`.

`tokenizers` is the definition: its ids are the right ones. fastokens gives the same ids several times as fast, for the
tokenizers that it supports. That it does for this one is not believed but compared, once per run and in one worker, on
texts of the data and on texts that were made to break it (`hostile`). The verdict is plain JSON: it goes to the other
workers and into the manifest. Without a verdict an encoder uses `tokenizers`.

One thing is known beforehand: fastokens reads the six letters `<0x41>` in a text as the token of that byte. Where there
are such tokens, texts with these letters are left to `tokenizers`.

Both engines load lazily, since a worker with a verdict needs only one of them. What stands around a text (BOS, EOS)
is put there by this module from `Tokenizer.prefix` and `suffix`, so no engine's post-processor takes part.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from datakit.errors import InternalError, UsageError
from datakit.tokens import engines
from datakit.tokens.engines import Engine, limit_threads, reraise_foreign, taken
from datakit.tokens.load import Tokenizer

if TYPE_CHECKING:
    import tokenizers

Ids = NDArray[np.int32]
Offsets = NDArray[np.int64]

SHOWN: Final = 5
"""Differences that a verdict shows; all are counted."""

DIFFERENT: Final = "the engines differ"


class Difference(TypedDict):
    """A text on which the engines differ: its head, and the first token that does."""

    text: str
    token: int
    fastokens: list[int]
    tokenizers: list[int]


class Verdict(TypedDict):
    """The outcome of a comparison.

    `texts` of the data and `hostile` ones were encoded by both engines. On `differences` of them the ids differed, or
    fastokens gave an error.
    """

    engine: Engine
    why: str
    versions: dict[str, str | None]
    texts: int
    hostile: int
    differences: int
    examples: list[Difference]


class Encoder:
    """Encodes the texts of one process.

    Args:
        tokenizer: what `load` gave.
        verdict: what `compare` gave in this run, here or in another process.
        threads: how many threads the engines may use. It is set through environment variables that the engines read
            once, so the first encoder of a process decides.

    Attributes:
        verdict: as given, or of the last comparison.
        exactly: texts that `tokenizers` encoded though fastokens is the engine: it refused or would misread them.
    """

    def __init__(self, tokenizer: Tokenizer, verdict: Verdict | None = None, *, threads: int = 1) -> None:
        self.tokenizer = tokenizer
        self.verdict = verdict
        self.exactly = 0
        self._loading: Future[Any] | None = None
        limit_threads(threads)

    @property
    def engine(self) -> Engine:
        """The engine that encodes."""
        return self.verdict["engine"] if self.verdict else "tokenizers"

    @property
    def why(self) -> str:
        """Why not fastokens; empty where it is."""
        return self.verdict["why"] if self.verdict else "the engines were not compared yet"

    def preload(self) -> None:
        """Begin to load the fast engine beside other work, which takes most of a second and no lock of Python."""
        if self._loading is None:
            thread = ThreadPoolExecutor(1)
            self._loading = thread.submit(self._load_fast)
            thread.shutdown(wait=False)  # a process that is left with a thread cannot be forked

    def encode(self, texts: Sequence[str], special: bool = False) -> list[Ids]:
        """The ids of every text.

        Args:
            texts: valid Unicode, without lone surrogates.
            special: put around each text what `tokenizer(text)` of transformers puts there. Without it the ids are
                those of a rendered conversation.
        """
        ids, offsets = self.encode_flat(texts)
        rows = _rows(ids, offsets)
        prefix, suffix = self.tokenizer.prefix, self.tokenizer.suffix
        if not special or not (prefix or suffix):
            return rows
        head, tail = np.array(prefix, np.int32), np.array(suffix, np.int32)
        return [np.concatenate((head, row, tail)) for row in rows]

    def encode_flat(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        """The ids of all texts in one array, and the offsets between texts: `ids[offsets[i]:offsets[i + 1]]` are one's.

        Raises:
            UsageError: the tokenizer has no ids for a text, since it has no unknown token.
        """
        if self.engine == "tokenizers":
            return _joined(self._encode_exactly(texts))
        if not (self.tokenizer.byte_fallback and any(map(self._is_misread, texts))):
            try:
                return self._encode_fast(texts)
            except BaseException as problem:
                reraise_foreign(problem)
        return _joined([self._encode_one(text) for text in texts])

    def offsets(self, text: str, ids: Ids) -> list[tuple[int, int]]:
        """Where each token of a text lies, in characters, by `tokenizers`; a hundred times as slow as `Positions`.

        Raises:
            InternalError: `tokenizers` gives other ids.
        """
        encoding = self._exact.encode(text, add_special_tokens=False)
        if not np.array_equal(np.array(encoding.ids, np.int32), ids):
            raise InternalError(
                f"{self.tokenizer.path}: {self.engine} and tokenizers give different ids for {text[:80]!r}",
                "Report it with the text, and encode with tokenizers.",
            )
        offsets: list[tuple[int, int]] = encoding.offsets
        return offsets

    def compare(self, texts: Sequence[str]) -> Verdict:
        """Decide the engine: encode texts of the data and hostile ones with both, and demand the same ids.

        Loads both engines, which takes about a second where the vocabulary is large. The verdict is kept.
        """
        texts, trials = (
            [text for text in some if not self._is_misread(text)]
            for some in (texts, hostile([token.content for token in self.tokenizer.added]))
        )
        verdict = Verdict(
            engine="tokenizers",
            why="",
            versions={name: _version(name) for name in ("fastokens", "tokenizers")},
            texts=len(texts),
            hostile=len(trials),
            differences=0,
            examples=[],
        )
        self.verdict = verdict
        try:
            _ = self._fast
        except BaseException as problem:
            reraise_foreign(problem)
            missing = isinstance(problem, ImportError)
            verdict["why"] = "fastokens is not installed" if missing else f"fastokens refuses to load: {_said(problem)}"
            return verdict
        both = [*texts, *trials]
        with ThreadPoolExecutor(1) as thread:  # tokenizers holds no lock of Python
            other = thread.submit(self._try_exactly, both)
            ids = self._try_fast(both)
        for text, fast, exact in zip(both, ids, other.result(), strict=True):
            if isinstance(fast, str) and isinstance(exact, str):
                continue
            if isinstance(fast, str) or isinstance(exact, str) or not np.array_equal(fast, exact):
                verdict["differences"] += 1
                verdict["why"] = verdict["why"] or (fast if isinstance(fast, str) else DIFFERENT)
                if len(verdict["examples"]) < SHOWN:
                    verdict["examples"].append(_difference(text, fast, exact))
        if not verdict["differences"]:
            verdict["engine"] = "fastokens"
        return verdict

    def _try_fast(self, texts: Sequence[str]) -> list[Ids | str]:
        """The ids of each text by fastokens, or what it said instead; together as in use, one by one if that fails."""
        try:
            return [*_rows(*self._encode_fast(texts))]
        except BaseException as problem:
            reraise_foreign(problem)
            if len(texts) == 1:
                return [f"fastokens refuses a text: {_said(problem)}"]
            return [self._try_fast([text])[0] for text in texts]

    def _try_exactly(self, texts: Sequence[str]) -> list[Ids | str]:
        """The ids of each text by `tokenizers`, or what it said instead."""
        try:
            return [*self._encode_exactly(texts)]
        except UsageError as problem:
            return [problem.message] if len(texts) == 1 else [self._try_exactly([text])[0] for text in texts]

    def _encode_fast(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        split = self.tokenizer.split_special
        ids, offsets = self._fast.encode_batch_flat(list(texts), split_special_tokens=split)
        return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64)

    def _encode_one(self, text: str) -> Ids:
        """One text of a batch that fastokens cannot have whole."""
        if not self._is_misread(text):
            try:
                return self._encode_fast([text])[0]
            except BaseException as problem:
                reraise_foreign(problem)
        self.exactly += 1
        return self._encode_exactly([text])[0]

    def _is_misread(self, text: str) -> bool:
        return self.tokenizer.byte_fallback and "<0x" in text

    def _encode_exactly(self, texts: Sequence[str]) -> list[Ids]:
        try:
            rows = self._exact.encode_batch_fast(list(texts), add_special_tokens=False)
        except BaseException as problem:
            reraise_foreign(problem)
            raise UsageError(
                f"{self.tokenizer.path}: tokenizers cannot encode a text: {_said(problem)}",
                "Give the tokenizer an unknown token, or byte fallback.",
            ) from problem
        return [np.array(row.ids, np.int32) for row in rows]

    @cached_property
    def _fast(self) -> Any:
        """The fastokens engine. It has no type hints that a checker can see."""
        return self._loading.result() if self._loading else self._load_fast()

    def _load_fast(self) -> Any:
        return taken("fastokens", self.tokenizer.sha256) or engines.fast_engine(self.tokenizer.definition())

    @cached_property
    def _exact(self) -> tokenizers.Tokenizer:
        try:
            from tokenizers import Tokenizer as Exact
        except ImportError:
            raise UsageError("tokenizers is not installed", "pip install 'datakit-trainglue[hf]'") from None
        try:
            engine = taken("tokenizers", self.tokenizer.sha256) or Exact.from_str(self.tokenizer.definition())
        except Exception as problem:
            raise UsageError(
                f"{self.tokenizer.path}: tokenizers {_version('tokenizers')} cannot read it: {_said(problem)}",
                "Upgrade tokenizers, or save the tokenizer again with the installed transformers.",
            ) from problem
        engine.no_truncation()
        engine.no_padding()
        engine.encode_special_tokens = self.tokenizer.split_special
        engine.post_processor = None  # it would trim spaces off the offsets
        return engine


def _rows(ids: Ids, offsets: Offsets) -> list[Ids]:
    return [ids[start:end] for start, end in pairwise(offsets.tolist())]


def _difference(text: str, fast: Ids | str, exact: Ids | str) -> Difference:
    """The first place at which two encodings differ; an engine that refused has no ids."""
    one, other = ([] if isinstance(ids, str) else ids.tolist() for ids in (fast, exact))
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return Difference(text=text[:80], token=at, fastokens=one[at : at + 4], tokenizers=other[at : at + 4])


def _joined(rows: Sequence[Ids]) -> tuple[Ids, Offsets]:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.concatenate([np.empty(0, np.int32), *rows]), offsets


def _said(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ---------------------------------------------------------------- texts made to break an engine

_PIECES: Final = (
    *(
        "",
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        " \n ",
        "\x00",
        "\x7f",
        "\u0085",
        "\u00a0",
        "\u2028",
        "\u200b",
        "\u3000",
    ),
    *("'s", "'LL", "\u2019ve", "don't", "I'm", "a'b", "''"),
    *("0", "12", "123", "1234567890", "3.14", "1,000", "\u0661\u0662", "\u2163", "\u00bd", "\uff11"),
    *(
        "e\u0301",
        "\u00e9",
        "\u0301",
        "a\u0323\u0307",
        "a\u0307\u0323",
        "\u1100\u1161\u11a8",
        "\uac01",
        "\u212b",
        "\u2126",
        "\ufb01",
    ),
    *("\u0130", "\u0131", "\u00df", "\u1e9e", "\u03c2", "\u01c5", "\ud7a3", "\u0958", "\U0001d15e", "\u0344"),
    *(
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "\U0001f44d\U0001f3fd",
        "\U0001f3fd",
        "\ufe0f",
        "\u200d",
        "\U0001f1e9\U0001f1ea",
    ),
    *(
        "\u4f60\u597d",
        "\u65e5\u672c\u8a9e\u30c6",
        "\ud55c\uad6d",
        "\u0645\u0631\u062d\u0628\u0627",
        "\u05e9\u05b8",
        "\u0e2a\u0e27\u0e31\u0e2a",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
    ),
    *(
        "\ufeff",
        "\ufffd",
        "\uffff",
        "\ue000",
        "\U0001ffff",
        "\U000e0041",
        "\U000f0000",
        "\U0010ffff",
        "\u2581",
        "\u0120",
        "\u010a",
        "<0x41>",
    ),
    *(
        "<|",
        "|>",
        "</s>",
        "[INST]",
        "<think>",
        "http://a.b/c?d=e",
        "x_y",
        "CamelCase",
        "!!!",
        "...",
        "\\n",
        "```py\n",
        "#!/",
    ),
)
_PLANES: Final = ((0, 0x80), (0x80, 0x800), (0x300, 0x370), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000))


def hostile(added: Sequence[str]) -> list[str]:
    """Texts that engines disagree on if on anything; always the same ones for the same added tokens.

    Args:
        added: the added tokens of the tokenizer. Each is put between letters, spaces and lines, and doubled.
    """
    draw = random.Random(0)  # noqa: S311  # the same texts every time
    texts = [first + second for first in _PIECES for second in ("", " x", "\n", first)]
    texts += ["".join(draw.choices(_PIECES, k=12)) for _ in range(200)]
    texts += ["".join(_letters(draw, plane, 24)) for plane in _PLANES for _ in range(40)]
    texts += ["ab" * 4000, "a" * 3000, " " * 3000, "\n" * 999, "1" * 999, "\u00e9" * 999, "x \t" * 999, "\u4f60" * 999]
    for token in added:
        texts += [
            f"a{token}b",
            f"  {token}  ",
            f" {token}",
            f"x\n{token}\n\ny",
            token * 2,
            token[:-1],
            f"{token} {token}",
        ]
    pieces = (*added, *_PIECES) if added else _PIECES
    return texts + ["".join(draw.choices(pieces, k=16)) for _ in range(200)]


def _letters(draw: random.Random, plane: tuple[int, int], count: int) -> Iterator[str]:
    """Characters of a plane, with spaces and letters between."""
    others = iter(draw.choices(" a1\n", k=count))
    wide = map(chr, draw.choices(range(*plane), k=count))
    return (letter if draw.random() < 0.8 else next(others) for letter in wide)
