"""Whether two tokenizers give the same ids, as after `save_pretrained`, which writes the same one as another text.

Compared are tokens with their ids, merges or scores, and the ids of texts: each token's own, and those on which
engines disagree if on anything, with spaces, digits, accents and control tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from datakit.errors import UsageError
from datakit.terminal import plural
from datakit.tokens.encode import hostile
from datakit.tokens.engines import exact_engine
from datakit.tokens.load import Tokenizer, added_of, definition_of, load, vocabulary_of


class Mismatch(NamedTuple):
    """How two tokenizers differ.

    Attributes:
        sentence: the first difference that was found.
        moved: a token that both have has another id.
    """

    sentence: str
    moved: bool = False


def recorded(entry: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a manifest names.

    Raises:
        UsageError: it is not there any more, or is not the same any more.
    """
    name, revision = entry["path"], entry.get("revision")
    found = load(f"{name}@{revision}" if revision and "@" not in name else name)
    if found.sha256 != entry["sha256"]:
        raise UsageError(f"{name} has changed since then", "Name the one that made the shards.")
    return found


def mismatch(one: Tokenizer, other: Tokenizer) -> Mismatch | None:
    """What makes two tokenizers give other ids; None where nothing does.

    Raises:
        UsageError: the text of one cannot be read by the installed `tokenizers`.
    """
    if one.sha256 == other.sha256:
        return None
    key = (one.path, one.sha256, other.path, other.sha256)
    if key not in _compared:
        _compared[key] = _mismatch(one, other)
    return _compared[key]


_compared: Final[dict[tuple[str, ...], Mismatch | None]] = {}
"""What was found; it takes seconds, and the sources of a stream often have one tokenizer."""


def _mismatch(one: Tokenizer, other: Tokenizer) -> Mismatch | None:
    documents = definition_of(one), definition_of(other)
    ids, known = ({**vocabulary_of(own), **{t["content"]: t["id"] for t in added_of(own)}} for own in documents)
    if moved := [token for token, id in ids.items() if known.get(token, id) != id]:
        return Mismatch(
            f"{one.path} gives {plural(len(moved), 'token')} other ids than the tokenizer of {other.path}: "
            f"{moved[0]!r} is {ids[moved[0]]:,}, there {known[moved[0]]:,}",
            moved=True,
        )
    for here, there, new in ((one, other, ids.keys() - known.keys()), (other, one, known.keys() - ids.keys())):
        if new:
            return Mismatch(f"{here.path} has {plural(len(new), 'token')} that {there.path} lacks, such as {min(new)}")
    if _rules(documents[0]) != _rules(documents[1]):
        return Mismatch(f"{one.path} joins its tokens by other rules than {other.path}")
    engines = [_engine(tokenizer) for tokenizer in (one, other)]
    texts = [*hostile([token.content for token in one.added]), *(engines[0].decode([id], False) for id in ids.values())]
    read = [[row.ids for row in engine.encode_batch_fast(texts)] for engine in engines]
    for text, left, right in zip(texts, *read, strict=True):
        if left != right:
            return Mismatch(
                f"{one.path} and {other.path} have the same tokens, but read {text[:40]!r} as {left[:6]} "
                f"and {right[:6]}"
            )
    return None


def _rules(document: Mapping[str, Any]) -> Any:
    """The merges, which are pairs or texts, or the scores of a tokenizer."""
    model = document["model"]
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model.get("merges") or ()] or (
        model["vocab"] if isinstance(model["vocab"], list) else None
    )


def _engine(tokenizer: Tokenizer) -> Any:
    try:
        engine = exact_engine(tokenizer.definition())
    except Exception as error:
        raise UsageError(
            f"{tokenizer.path} cannot be read: {error}", "Save it again with the installed transformers."
        ) from error
    engine.no_truncation()
    engine.no_padding()
    engine.encode_special_tokens = tokenizer.split_special
    return engine
