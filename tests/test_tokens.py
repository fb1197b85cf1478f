"""Tokens: what a name loads as, the two engines, and positions that equal those of `tokenizers` or are not claimed."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datakit.errors import InternalError, UnreadableInput, UsageError
from datakit.tokens import encode
from datakit.tokens.encode import DIFFERENT, Encoder, Verdict, hostile
from datakit.tokens.load import DEFAULTS, LARGEST_BESIDE, NAMED, Added, Tokenizer, added_of, load, vocabulary_of
from datakit.tokens.positions import Positions, Surfaces, to_bytes

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

REAL = Path(__file__).resolve().parents[2] / "shared/corpora/tokenizer"
real = pytest.mark.parametrize(
    "folder",
    [pytest.param(path, id=path.name) for path in (sorted(REAL.iterdir()) if REAL.is_dir() else [])]
    or [pytest.param(None, marks=pytest.mark.skip(reason="no corpora"))],
)

settings.register_profile("tokens", deadline=None, derandomize=True)
quick = settings(settings.get_profile("tokens"), max_examples=60)

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and it's 1234 times  faster.\n\nIsn't it? 你好 naïve café",
    "Größe, façade, Ελλάδα, привет; tabs\tand  runs   of    spaces\r\n👩‍👩‍👧 e\u0301 it's don't",
] * 20
CONTROL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
LOOSE = [AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True), AddedToken("word", single_word=True)]


# ---------------------------------------------------------------- tokenizers of every kind


def byte_bpe(normalizer=None, more=(), **options):
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=420, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False),
    )
    made.add_tokens(list(more))
    return made


def piece_bpe(normalizer=None, pre_tokenizer=None):
    """A vocabulary as SentencePiece makes it: pieces with `▁`, and tokens for bytes."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(
        CORPUS[:1] * 3, trainers.BpeTrainer(vocab_size=250, special_tokens=CONTROL, show_progress=False)
    )
    model = orjson.loads(trained.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for token in (*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁"):
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(pair) for pair in model["merges"]] + [("▁", "▁")]
    made = tokenizers.Tokenizer(
        models.BPE(vocabulary, list(dict.fromkeys(merges)), unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.normalizer, made.pre_tokenizer = normalizer, pre_tokenizer
    made.add_special_tokens(CONTROL)
    return made


def unigram():
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=200, special_tokens=CONTROL, unk_token="<unk>", show_progress=False)
    )
    return made


def word_level():
    made = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(
        CORPUS, trainers.WordLevelTrainer(vocab_size=100, special_tokens=CONTROL, show_progress=False)
    )
    return made


MAKE = {
    "bytes": byte_bpe,
    "bytes, spaces trimmed": lambda: with_post_processor(byte_bpe(), processors.ByteLevel(trim_offsets=True)),
    "bytes, NFC": lambda: byte_bpe(normalizers.NFC()),
    "bytes, NFKC": lambda: byte_bpe(normalizers.NFKC()),
    "bytes, lower case": lambda: byte_bpe(normalizers.Lowercase()),
    "bytes, tokens that strip": lambda: byte_bpe(more=LOOSE),
    "bytes, NFC, normalized tokens": lambda: byte_bpe(normalizers.NFC(), more=[AddedToken("\u00e9t", normalized=True)]),
    "pieces": lambda: piece_bpe(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")),
    "pieces, runs added": lambda: with_added(
        piece_bpe(normalizers.Replace(" ", "▁")), [AddedToken("▁▁", normalized=False)]
    ),
    "pieces, prepended": lambda: piece_bpe(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
    "pieces, metaspace first": lambda: piece_bpe(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "pieces, metaspace always": lambda: piece_bpe(None, pre_tokenizers.Metaspace(prepend_scheme="always")),
    "unigram": unigram,
    "words": word_level,
}
PROVEN = {"bytes", "bytes, spaces trimmed", "pieces", "pieces, runs added"}
"""Kinds whose surfaces tile every text."""
OVERLAPPING = {"pieces, prepended", "pieces, metaspace first", "pieces, metaspace always", "unigram"}
"""Kinds for which `tokenizers` gives a token of a space that is not in the text a place that others have too."""

every_kind = pytest.mark.parametrize("kind", MAKE)


def with_post_processor(made, processor):
    made.post_processor = processor
    return made


def with_added(made, tokens):
    made.add_tokens(tokens)
    return made


def of(text):
    """A tokenizer from the text of a tokenizer.json alone."""
    document = orjson.loads(text)
    added = tuple(
        Added(token["id"], token["content"], token["special"], token["normalized"]) for token in added_of(document)
    )
    ids = [*vocabulary_of(document).values(), *(token.id for token in added)]
    size, fallback = max(ids) + 1, bool(document["model"].get("byte_fallback"))
    return Tokenizer("made", "made", text, "", None, None, {}, {}, (), (), False, fallback, None, added, size)


@cache
def made(kind):
    return of(MAKE[kind]().to_str())


@cache
def judged(kind):
    """An encoder with a verdict."""
    encoder = Encoder(made(kind))
    encoder.compare(CORPUS[:2])
    return encoder


@cache
def exact(kind):
    return Encoder(made(kind))


@cache
def surfaces(kind):
    return Surfaces.of(made(kind))


pieces = st.sampled_from(
    [
        *CONTROL,
        "<left>",
        "<right>",
        "word",
        " ",
        "  ",
        "\n",
        "\r\n",
        "▁",
        "▁▁",
        "e\u0301",
        "é",
        "你好",
        "👩‍👩‍👧",
        "é",
        "ét",
        " The",
        "it's",
        "1234",
        "\x00",
        "<0x41>",
        "ﬁ",
        "Ġ",
    ]
)
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(pieces | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=12).map("".join),
)


# ---------------------------------------------------------------- engines


@every_kind
def test_engines_agree_or_the_exact_one_is_used(kind):
    verdict = judged(kind).verdict
    assert (verdict["engine"] == "fastokens") == (not verdict["why"])
    assert orjson.loads(orjson.dumps(verdict)) == verdict
    rows = exact(kind)._encode_exactly(CORPUS[:2] + hostile([]))
    assert list(map(list, judged(kind).encode(CORPUS[:2] + hostile([])))) == list(map(list, rows))


@every_kind
@given(batch=st.lists(texts, max_size=4))
@quick
def test_ids_are_those_of_the_exact_engine(kind, batch):
    judged_rows, exact_rows = judged(kind).encode(batch), exact(kind).encode(batch)
    assert list(map(list, judged_rows)) == list(map(list, exact_rows))


@pytest.mark.parametrize("kind", ["bytes", "bytes, NFC", "pieces"])
def test_fastokens_is_used_for_common_kinds(kind):
    pytest.importorskip("fastokens")
    assert judged(kind).engine == "fastokens"
    assert judged(kind).why == ""


def test_without_a_verdict_the_exact_engine_encodes():
    encoder = Encoder(made("bytes"))
    encoder.encode(["a text"])
    assert encoder.engine == "tokenizers"
    assert encoder.why == "the engines were not compared yet"
    assert "_fast" not in vars(encoder)


def test_with_a_verdict_the_exact_engine_is_not_loaded():
    pytest.importorskip("fastokens")
    encoder = Encoder(made("bytes"), judged("bytes").verdict)
    assert list(encoder.encode(["The quick"])[0]) == list(exact("bytes").encode(["The quick"])[0])
    assert "_exact" not in vars(encoder)


def test_a_difference_decides_for_the_exact_engine(monkeypatch):
    pytest.importorskip("fastokens")
    encoder = Encoder(made("bytes"))
    same = Encoder._encode_fast

    def wrong(self, texts):
        ids, offsets = same(self, texts)
        return ids + 1, offsets

    monkeypatch.setattr(Encoder, "_encode_fast", wrong)
    verdict = encoder.compare(["The quick brown fox"])
    assert (verdict["engine"], verdict["why"]) == ("tokenizers", DIFFERENT)
    assert verdict["differences"] > len(verdict["examples"]) == encode.SHOWN
    first = verdict["examples"][0]
    assert first["text"] == "The quick brown fox"
    assert first["fastokens"][0] == first["tokenizers"][0] + 1


def test_without_fastokens_the_verdict_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    verdict = Encoder(made("bytes")).compare(["x"])
    assert (verdict["engine"], verdict["why"]) == ("tokenizers", "fastokens is not installed")


def test_a_text_that_fastokens_refuses_is_encoded_exactly_and_counted():
    """A vocabulary without a token for the byte of a space: `tokenizers` leaves spaces out, fastokens refuses."""
    pytest.importorskip("fastokens")
    document = orjson.loads(made("bytes").text)
    kept = [token for token in document["model"]["vocab"] if len(token) == 1 and token != "Ġ"]
    document["model"] |= {"vocab": {token: id for id, token in enumerate(kept)}, "merges": []}
    document["added_tokens"] = []
    tokenizer = of(orjson.dumps(document).decode())
    assert "refuses a text" in Encoder(tokenizer).compare([])["why"]
    trusting = Verdict(engine="fastokens", why="", versions={}, texts=0, hostile=0, differences=0, examples=[])
    encoder = Encoder(tokenizer, trusting)
    batch = ["abc", "a c", "", "x y"]
    assert list(map(list, encoder.encode(batch))) == list(map(list, Encoder(tokenizer).encode(batch)))
    assert encoder.exactly == 2


def test_letters_that_fastokens_takes_for_a_byte_are_encoded_exactly():
    """The comparison would find the difference; then one such text would cost the fast engine for all."""
    pytest.importorskip("fastokens")
    encoder = Encoder(made("pieces"), judged("pieces").verdict)
    batch = ["The fox", "a <0x41> b", "<0x41>"]
    assert not np.array_equal(encoder._encode_fast(batch[2:])[0], exact("pieces").encode(batch[2:])[0])
    assert list(map(list, encoder.encode(batch))) == list(map(list, exact("pieces").encode(batch)))
    assert encoder.exactly == 2


def test_a_text_that_no_engine_encodes_is_named():
    tokenizer = of(
        tokenizers.Tokenizer(models.WordLevel({"a": 0}, "<unk>"))
        .to_str()
        .replace(
            '"added_tokens":[]',
            '"added_tokens":[{"id":1,"content":"<b>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}]',
        )
    )
    with pytest.raises(UsageError, match="made: tokenizers cannot encode a text"):
        Encoder(tokenizer).encode(["zzz"])


def test_special_tokens_stand_around_each_text():
    tokenizer = Tokenizer.from_json({**made("bytes").to_json(), "prefix": [1, 2], "suffix": [3]})
    plain, framed = (Encoder(tokenizer).encode(["The fox", ""], special=special) for special in (False, True))
    assert [list(row) for row in framed] == [[1, 2, *row, 3] for row in plain]
    assert all(row.dtype == np.int32 for row in (*plain, *framed))


def test_no_texts_have_no_ids():
    ids, offsets = judged("bytes").encode_flat([])
    assert (list(ids), list(offsets)) == ([], [0])
    assert judged("bytes").encode([]) == exact("bytes").encode([]) == []


def test_truncation_and_padding_of_the_file_do_not_apply():
    cutting = tokenizers.Tokenizer.from_str(made("bytes").text)
    cutting.enable_truncation(3)
    cutting.enable_padding(length=900)
    encoder = Encoder(of(cutting.to_str()))
    encoder.compare(CORPUS[:2])
    assert list(encoder.encode(CORPUS[:1])[0]) == list(exact("bytes").encode(CORPUS[:1])[0])


def test_control_tokens_are_text_where_the_configuration_says_so():
    split = Tokenizer.from_json({**made("bytes").to_json(), "split_special": True})
    encoder = Encoder(split)
    control = tokenizers.Tokenizer.from_str(split.text).token_to_id("<|im_end|>")
    for _ in range(2):
        ids = list(encoder.encode(["a<|im_end|>"])[0])
        assert control not in ids
        encoder.compare([])
    assert control in list(exact("bytes").encode(["a<|im_end|>"])[0])


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_engines_start_as_many_threads_as_were_asked_for(threads, tmp_path):
    pytest.importorskip("fastokens")
    (tmp_path / "tokenizer.json").write_text(made("bytes").text, "utf-8")
    code = f"""
import os, numpy, time
from datakit.tokens.encode import Encoder
from datakit.tokens.load import load

def running():
    # one that was joined stands in /proc a moment longer
    return min((time.sleep(0.01), len(os.listdir("/proc/self/task")))[1] for _ in range(20))

before = running()
encoder = Encoder(load({str(tmp_path)!r}), threads={threads})
encoder.compare(["hello " * 20000] * 8)
assert encoder.engine == "fastokens"
print(running() - before)
"""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAYON", "TOKENIZERS", "FASTOKENS"))
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert (int(done.stdout) > 0) == (threads > 1)


def test_hostile_texts_are_the_same_every_time_and_hold_every_added_token():
    texts = hostile(["<a>", "<b>"])
    assert texts == hostile(["<a>", "<b>"])
    assert {"a<a>b", "  <b>  "} <= set(texts)
    seen = set("".join(texts))
    assert {max(map(ord, seen)) > 0xFFFF, "\x00" in seen, "\u200d" in seen, "\u0301" in seen} == {True}
    assert any(not unicodedata.is_normalized("NFC", text) for text in texts)


# ---------------------------------------------------------------- positions


def widened(text, starts, ends):
    """Positions in bytes, widened to whole characters: what `tokenizers` can say."""
    borders = to_bytes(text, np.arange(len(text) + 1))
    return borders[np.searchsorted(borders, starts, "right") - 1], borders[np.searchsorted(borders, ends, "left")]


@every_kind
@given(text=texts)
@example("")
@example(" ")
@example("<s> a<s>b </s>")
@example("▁a ▁")
@example("  <left>  <right>  x")
@quick
def test_positions_are_those_of_tokenizers_or_not_claimed(kind, text):
    ids = exact(kind).encode([text])[0]
    found = surfaces(kind).positions(text, ids)
    if found is None:
        assert kind not in PROVEN
        return
    starts, ends = found
    assert len(starts) == len(ends) == len(ids)
    assert list(starts) == [0, *ends[:-1]][: len(ids)]
    assert (ends[-1] if len(ends) else 0) == len(text.encode())
    pairs = np.array(exact(kind).offsets(text, ids), np.int64).reshape(-1, 2)
    theirs = to_bytes(text, pairs[:, 0]), to_bytes(text, pairs[:, 1])
    ours = widened(text, starts, ends)
    there = ends > starts if kind in OVERLAPPING else slice(None)
    assert np.array_equal(ours[1][there], theirs[1][there])
    assert kind in OVERLAPPING or np.array_equal(ours[0], theirs[0])


@every_kind
@given(batch=st.lists(texts, max_size=5))
@quick
def test_a_batch_gives_what_its_texts_give(kind, batch):
    positions = Positions(exact(kind))
    ids, offsets = exact(kind).encode_flat(batch)
    starts, ends, bases = positions.of_batch(batch, ids, offsets)
    assert positions.texts == len(batch)
    single = Positions(exact(kind))
    for at, text in enumerate(batch):
        row = slice(*offsets[at : at + 2])
        one = single.of(text, ids[row])
        assert np.array_equal(starts[row] - bases[at], one[0])
        assert np.array_equal(ends[row] - bases[at], one[1])
    assert single.asked == positions.asked


def test_tokens_of_one_text_cannot_prove_another():
    """Two texts whose tokens tile them together but not one by one."""
    ids, _ = exact("bytes").encode_flat(["The fox"])
    assert len(ids) > 1
    assert surfaces("bytes").positions_of_batch("The fox", np.array([0, 5, 7]), ids, np.array([0, 1, len(ids)])) is None


def test_wrong_ids_prove_nothing():
    text = "The quick brown fox"
    ids = exact("bytes").encode([text])[0].copy()
    assert surfaces("bytes").positions(text, ids) is not None
    ids[[0, -1]] = ids[[-1, 0]]
    assert surfaces("bytes").positions(text, ids) is None
    with pytest.raises(InternalError, match="different ids"):
        Positions(exact("bytes")).of(text, ids)


@given(surface=st.text("ab", min_size=1, max_size=40), data=st.data())
@quick
def test_every_byte_of_a_surface_is_compared(surface, data):
    at = data.draw(st.integers(0, len(surface) - 1))
    other = surface[:at] + "c" + surface[at + 1 :]
    tokenizer = of(tokenizers.Tokenizer(models.WordLevel({surface: 0, other: 1}, "a")).to_str())
    table = Surfaces.of(tokenizer)
    text = surface * 2
    assert table.positions(text, np.array([0, 0], np.int32)) is not None
    assert table.positions(text, np.array([0, 1], np.int32)) is None
    assert table.positions(text, np.array([1, 0], np.int32)) is None


def test_what_is_not_proven_is_asked_for_and_counted():
    text = "un e\u0301te\u0301"
    encoder = exact("bytes, NFC")
    positions = Positions(encoder)
    ids = encoder.encode([text])[0]
    starts, ends = positions.of(text, ids)
    assert (positions.texts, positions.asked) == (1, 1)
    assert list(starts) == list(to_bytes(text, np.array([start for start, _ in encoder.offsets(text, ids)])))
    assert (starts < ends).all()
    positions.of("plain", encoder.encode(["plain"])[0])
    assert (positions.texts, positions.asked) == (2, 1)


def test_a_prepended_space_has_no_width():
    encoder = exact("pieces, prepended")
    text = "<|im_start|>   The<|im_end|>x"
    starts, ends = surfaces("pieces, prepended").positions(text, encoder.encode([text])[0])
    words = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    assert "".join(words) == text
    assert {"<|im_start|>", "<|im_end|>"} <= set(words)


@given(text=texts)
@quick
def test_characters_to_bytes(text):
    places = np.arange(len(text) + 1)
    assert list(to_bytes(text, places)) == [len(text[:place].encode()) for place in places]


# ---------------------------------------------------------------- loading


def folder(path, kind="bytes", **files):
    """A folder with a tokenizer.json and what stands beside it, by name with `_` for the dot."""
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(made(kind).text, "utf-8")
    for name, value in files.items():
        stem, suffix = name.rsplit("_", 1)
        (path / f"{stem}.{suffix}").write_text(
            value if isinstance(value, str) else orjson.dumps(value).decode(), "utf-8"
        )
    return str(path)


def auto(path):
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    return transformers.AutoTokenizer.from_pretrained(path)


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "named": {
        "tokenizer_config_json": {
            "bos_token": "<s>",
            "eos_token": {
                "__type": "AddedToken",
                "content": "</s>",
                "lstrip": False,
                "rstrip": False,
                "normalized": True,
                "single_word": False,
            },
            "pad_token": None,
        }
    },
    "not in the vocabulary": {
        "tokenizer_config_json": {"eos_token": "<end>", "pad_token": "<fill>", "extra_special_tokens": ["<x1>", "<x2>"]}
    },
    "additional": {"tokenizer_config_json": {"eos_token": "</s>", "additional_special_tokens": ["<a>", "<b>"]}},
    "of a model": {
        "tokenizer_config_json": {
            "eos_token": "</s>",
            "image_token": "<image>",
            "extra_special_tokens": {"audio_token": "<audio>"},
        }
    },
    "map": {
        "tokenizer_config_json": {"eos_token": "<s>"},
        "special_tokens_map_json": {
            "eos_token": "</s>",
            "pad_token": {"content": "<p>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False},
        },
    },
    "decoder": {
        "special_tokens_map_json": {"eos_token": "<not read>"},
        "tokenizer_config_json": {
            "eos_token": "</s>",
            "added_tokens_decoder": {
                "700": {
                    "content": "<tool>",
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "single_word": False,
                    "special": False,
                },
                "600": {
                    "content": "<late>",
                    "lstrip": True,
                    "rstrip": False,
                    "normalized": True,
                    "single_word": False,
                    "special": True,
                },
            },
        },
    },
    "bos asked for": {
        "tokenizer_config_json": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True}
    },
    "gpt2": {"tokenizer_config_json": {"tokenizer_class": "GPT2TokenizerFast"}},
    "llama": {"tokenizer_config_json": {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "</s>"}},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations_are_read_as_transformers_reads_them(name, tmp_path):
    path = folder(tmp_path / "t", **CONFIGURATIONS[name])
    ours, theirs = load(path), auto(path)
    assert ours.special == theirs.special_tokens_map
    assert ours.vocabulary == len(theirs)
    encoder = Encoder(ours)
    texts = [*CORPUS[:2], *hostile([token for token in theirs.get_added_vocab() if token])]
    for special in (False, True):
        rows = encoder.encode(texts, special=special)
        assert [list(row) for row in rows] == theirs(texts, add_special_tokens=special).input_ids


def test_a_class_of_transformers_has_named_tokens_of_its_own(tmp_path):
    """Of which the configuration may take some away."""
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "unk_token": None}
    path = folder(tmp_path / "t", tokenizer_config_json=config)
    ours = load(path).special
    assert ours == auto(path).special_tokens_map == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


@real
def test_real_tokenizers_are_read_as_transformers_reads_them(folder):
    ours, theirs = load(str(folder)), auto(folder)
    assert ours.special == theirs.special_tokens_map
    assert ours.vocabulary == len(theirs)
    assert (ours.chat_templates or None) == (theirs.chat_template and {"default": theirs.chat_template})
    encoder = Encoder(ours)
    encoder.compare(CORPUS[:2])
    texts = [*CORPUS[:2], *hostile(["<|im_end|>", "</s>"])]
    for special in (False, True):
        rows = encoder.encode(texts, special=special)
        assert [list(row) for row in rows] == theirs(texts, add_special_tokens=special).input_ids
    positions = Positions(encoder)
    starts, ends, _ = positions.of_batch(texts, *encoder.encode_flat(texts))
    assert (starts <= ends).all()


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    parameters = inspect.signature(getattr(transformers, name).__init__).parameters
    theirs = {key: parameters[key].default for key in NAMED if key in parameters}
    assert {key: value for key, value in theirs.items() if value is not None} == DEFAULTS[name]


BOS_EOS = processors.TemplateProcessing(
    single="<s> $A </s> </s>", pair="$A $B", special_tokens=[("<s>", 0), ("</s>", 1)]
)


@pytest.mark.parametrize(
    ("processor", "prefix", "suffix"),
    [
        (None, (), ()),
        (processors.ByteLevel(), (), ()),
        (BOS_EOS, (0,), (1, 1)),
        (processors.Sequence([processors.ByteLevel(), BOS_EOS]), (0,), (1, 1)),
        (processors.BertProcessing(("</s>", 1), ("<s>", 0)), (0,), (1,)),
        (processors.RobertaProcessing(("</s>", 1), ("<s>", 0)), (0,), (1,)),
    ],
)
def test_what_stands_around_a_text(processor, prefix, suffix, tmp_path):
    made = with_post_processor(byte_bpe(), processor)
    made.save(str(tmp_path / "tokenizer.json"))
    ours = load(str(tmp_path))
    assert (ours.prefix, ours.suffix) == (prefix, suffix)
    assert (ours.add_bos, ours.add_eos) == (bool(prefix), bool(suffix))
    assert list(Encoder(ours).encode(["The fox"], special=True)[0]) == made.encode("The fox").ids


def test_a_tokenizer_travels_as_json(tmp_path):
    ours = load(folder(tmp_path / "t", **CONFIGURATIONS["not in the vocabulary"]))
    assert ours.text is not None
    assert ours.pad is not None
    assert Tokenizer.from_json(orjson.loads(orjson.dumps(ours.to_json()))) == ours


def test_a_bare_file_has_no_configuration(tmp_path):
    path = folder(tmp_path / "t", **CONFIGURATIONS["named"])
    ours = load(f"{path}/tokenizer.json")
    assert (ours.special, ours.chat_template) == ({}, None)
    assert "name the folder" in ours.notes[0]
    assert ours.definition() == made("bytes").text


def test_a_file_that_changes_is_refused(tmp_path):
    path = folder(tmp_path / "t")
    ours = load(path)
    (tmp_path / "t/tokenizer.json").write_text("{}")
    with pytest.raises(UnreadableInput, match="changed while it was in use"):
        ours.definition()


LIST = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]


@pytest.mark.parametrize(
    ("files", "templates"),
    [
        ({}, {}),
        ({"tokenizer_config_json": {"chat_template": "C"}}, {"default": "C"}),
        ({"tokenizer_config_json": {"chat_template": LIST}}, {"default": "D", "tool_use": "T"}),
        ({"tokenizer_config_json": {"chat_template": "C"}, "chat_template_jinja": "J\n"}, {"default": "J\n"}),
        ({"chat_template_json": {"chat_template": "O"}}, {"default": "O"}),
        ({"tokenizer_config_json": {"chat_template": [7, {"name": "default"}]}}, {}),
    ],
)
def test_chat_templates(files, templates, tmp_path):
    ours = load(folder(tmp_path / "t", **files))
    assert ours.chat_templates == templates
    assert ours.chat_template == templates.get("default")


def test_more_templates_stand_in_a_folder(tmp_path):
    path = folder(tmp_path / "t", chat_template_jinja="J")
    (tmp_path / "t/additional_chat_templates").mkdir()
    (tmp_path / "t/additional_chat_templates/rag.jinja").write_text("R")
    assert load(path).chat_templates == {"default": "J", "rag": "R"} == auto(path).chat_template


@pytest.mark.parametrize(
    ("config", "token", "by_length"),
    [
        ({"pad_token": "<unk>", "eos_token": "</s>"}, "<unk>", False),
        ({"pad_token": "</s>", "eos_token": "</s>"}, "</s>", True),
        (
            {
                "eos_token": "</s>",
                "extra_special_tokens": ["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"],
            },
            "<|finetune_right_pad_id|>",
            False,
        ),
        ({"eos_token": "</s>", "extra_special_tokens": ["<|endoftext|>"]}, "<|endoftext|>", False),
        ({"eos_token": "<|endoftext|>", "unk_token": "<unk>"}, "<unk>", False),
        ({"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}, "<|endoftext|>", True),
        ({"eos_token": "</s>"}, "</s>", True),
    ],
)
def test_the_pad_token(config, token, by_length, tmp_path):
    pad = load(folder(tmp_path / "t", tokenizer_config_json=config)).pad
    assert pad is not None
    assert (pad.token, pad.by_length) == (token, by_length)
    assert ("masked by length" in pad.why) == by_length


def test_no_token_can_pad(tmp_path):
    assert load(folder(tmp_path / "t")).pad is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "a JSON list, not an object"),
        ("{}", "not a tokenizer.json; its keys are none"),
        ('{"model": {"vocab": 5}}', "not a tokenizer.json; its keys are model"),
        ('{"model": {"vocab": {"a": "b"}}}', "not a tokenizer.json"),
        ('{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}', "not a tokenizer.json"),
        ('{"model": {"vocab": {"a": 0}}, "post_processor": {"type": "Odd"}}', "unknown post-processor 'Odd'"),
        (
            '{"model": {"vocab": {"a": 0}}, "post_processor": {"type": "TemplateProcessing"}}',
            "a post-processor that cannot be read",
        ),
        ("version https://git-lfs.github.com/spec/v1\noid", "it may be a pointer"),
    ],
)
def test_what_is_no_tokenizer_is_refused(text, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        load(str(tmp_path))


def test_a_tokenizer_that_the_engine_cannot_read_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}, "type": "Future"}}')
    with pytest.raises(UsageError, match="cannot read it"):
        Encoder(load(str(tmp_path))).encode(["a"])


def test_a_file_beyond_the_cap_is_not_read(tmp_path):
    path = folder(tmp_path / "t")
    with (tmp_path / "t/tokenizer_config.json").open("wb") as file:
        file.truncate(LARGEST_BESIDE + 1)
    with pytest.raises(UsageError, match="no plausible size"):
        load(path)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no such file or folder"):
        load(str(tmp_path / "absent"))
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(UsageError, match=r"no tokenizer in this folder; found weights\.safetensors"):
        load(str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="huggingface_hub is not installed"):
        load("some/name")


def test_a_hub_name_is_looked_for_in_the_cache_first(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--some--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    (repo / "snapshots").mkdir()
    folder(repo / "snapshots" / commit, **CONFIGURATIONS["named"])
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    ours = load("some/name")
    assert (ours.path, ours.revision) == ("some/name", commit)
    assert ours.special == {"bos_token": "<s>", "eos_token": "</s>"}
    assert load(f"some/name@{commit}").revision == commit
    with pytest.raises(UsageError, match="not in the local cache, and not downloaded"):
        load("some/other")


def test_a_folder_without_a_tokenizer_json_is_converted(tmp_path, monkeypatch):
    byte_bpe().model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "chat_template": "T"}')
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.json", "merges.txt", "tokenizer_config.json"}
    ours, theirs = load(str(tmp_path)), auto(tmp_path)
    assert ours.special == theirs.special_tokens_map
    assert (ours.notes, ours.chat_template) == (("converted by transformers",), "T")
    assert [list(row) for row in Encoder(ours).encode(CORPUS[:2], special=True)] == theirs(CORPUS[:2]).input_ids
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match="only transformers can read this tokenizer"):
        load(str(tmp_path))


def test_a_folder_that_transformers_cannot_convert_is_refused(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(UsageError, match="transformers cannot convert this tokenizer"):
        load(str(tmp_path))


def test_what_transformers_rebuilds_can_be_taken_from_it(tmp_path):
    """LlamaTokenizer of transformers 5 puts a space before the text only, not after every control token."""
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    path = folder(tmp_path / "t", "pieces, prepended", tokenizer_config_json=config)
    text = "<|im_start|>The fox<|im_end|>"
    theirs = auto(path)(text, add_special_tokens=False).input_ids
    ours = load(path)
    assert "rebuilds a LlamaTokenizer" in ours.notes[0]
    assert list(Encoder(ours).encode([text])[0]) != theirs
    assert list(Encoder(load(path, through_transformers=True)).encode([text])[0]) == theirs


def test_loading_imports_nothing_heavy(tmp_path):
    path = folder(tmp_path / "t")
    heavy = ("tokenizers", "transformers", "fastokens", "huggingface_hub", "torch")
    code = f"import sys; from datakit.tokens.load import load; load({path!r}); import datakit.tokens.positions; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_engine_that_was_loaded_early_is_taken_over(tmp_path, monkeypatch):
    fastokens = pytest.importorskip("fastokens")
    from datakit.tokens import engines

    path = tmp_path / "tokenizer.json"
    path.write_text(byte_bpe().to_str(), "utf-8")
    tokenizer = load(str(tmp_path))
    engines.load_early(str(tmp_path))
    encoder = Encoder(tokenizer)
    engine = encoder._load_fast()
    assert isinstance(engine, fastokens.Tokenizer)
    assert encoder._exact.get_vocab_size() == tokenizer.vocabulary
    assert not engines._loaded
    engines.load_early(str(tmp_path / "missing.json"))  # says nothing; whoever needs it will
    monkeypatch.setattr(engines, "fast_engine", lambda definition: definition)
    assert encoder._load_fast() == tokenizer.definition()
