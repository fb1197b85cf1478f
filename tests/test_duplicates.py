"""dedup: the first stays, what goes is counted and named, and near-duplicates are those of a plain all-pairs search."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datakit
from datakit.cleaning import keys, minhash
from datakit.cleaning.words import normal, runs, words
from datakit.errors import UsageError
from datakit.schema import layout

quick = settings(deadline=None, derandomize=True, max_examples=100)


def chat(question: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def shards(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    datakit.convert(folder / "rows.jsonl", folder / "shards", workers=1, **options).raise_for_status()
    return folder / "shards"


def kept(folder: Path) -> list[int]:
    return [row["dk_row"] for row in datakit.load(folder).rows(all=True)]


def rejects(folder: Path) -> dict[int, str]:
    """Row -> what the reject says, without folders."""
    found = {}
    for path in sorted((folder / "rejects").glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            value = orjson.loads(line)
            words = value["message"].split(" ")
            words[-1] = words[-1].split("/")[-1]
            found[value["row"]] = f"{value['rule']} {' '.join(words)}"
    return found


# ---------------------------------------------------------------- exact


def test_the_first_stays_and_the_others_are_named(tmp_path):
    rows = [chat("a"), chat("b"), chat("a"), chat("a ", "yes"), chat("a"), chat("b", "no")]
    report = datakit.dedup(shards(tmp_path / "in", rows), tmp_path / "out")
    assert (report.exit_code, report.rows_in, report.rows_out, report.rejected) == (0, 6, 4, {"DK802": 2})
    assert kept(tmp_path / "out") == [1, 2, 4, 6]
    assert rejects(tmp_path / "out") == {
        3: "DK802 the same as rows.jsonl:1",
        5: "DK802 the same as rows.jsonl:1",
    }
    assert datakit.verify(tmp_path / "out").exit_code == 0
    assert [s.severity for s in report.findings if s.id == "DK802"] == ["note"]


def test_what_trainers_read_decides_and_a_missing_column_is_an_empty_one(tmp_path):
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    plain = shards(tmp_path / "a", [chat("q", mood="calm"), chat("p")])
    more = shards(
        tmp_path / "b", [chat("q", mood="wild"), chat("q", tools=[tool]), chat("p", chat_template_kwargs={"x": 1})]
    )
    report = datakit.dedup([plain, more], tmp_path / "out")
    assert report.rows_out == 4
    assert rejects(tmp_path / "out") == {1: "DK802 the same as rows.jsonl:1"}
    rows = list(datakit.load(tmp_path / "out"))
    assert [bool(row["tools"]) for row in rows] == [False, False, True, False]
    assert [row["chat_template_kwargs"] for row in rows] == [{}, {}, {}, {"x": 1}]


@quick
@given(st.lists(st.binary(max_size=2), max_size=60))
def test_firsts_are_those_of_a_dictionary(values):
    seen: dict[bytes, int] = {}
    expected = [seen.setdefault(value, at) for at, value in enumerate(values)]
    assert keys.firsts(keys.digests(values)).tolist() == expected


VALUES = st.one_of(st.none(), st.text(max_size=4))


@quick
@given(
    st.lists(st.tuples(VALUES, st.lists(st.integers(-1, 2), max_size=3), st.booleans()), max_size=20), st.integers(0, 3)
)
def test_digests_are_equal_where_rows_are(rows, start):
    """Of slices too, whose buffers begin before their first row."""
    table = pa.table(
        {
            "a": pa.array([row[0] for row in rows], pa.string()),
            "b": pa.array([row[1] for row in rows], pa.list_(pa.int32())),
            "c": pa.array([row[2] for row in rows], pa.bool_()),
        }
    ).slice(start)
    made = [tuple(key) for key in keys.of_contents(table, ["c", "a", "b"]).tolist()]
    values = [(row[0], tuple(row[1]), row[2]) for row in rows[start:]]
    for one, other in combinations(range(len(values)), 2):
        assert (made[one] == made[other]) == (values[one] == values[other])


def test_the_held_out_row_stays_and_the_one_of_train_goes(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, texts in {"train": "abca", "test": "xbx"}.items():
        (raw / f"{name}.jsonl").write_text("".join(json.dumps(chat(text)) + "\n" for text in texts), "utf-8")
    datakit.convert(raw, tmp_path / "s", split=["train=train.jsonl", "test=test.jsonl"], workers=1).raise_for_status()
    report = datakit.dedup(tmp_path / "s", tmp_path / "out")
    assert report.rejected == {"DK802": 2, "DK805": 1}
    assert [s.severity for s in report.findings] == ["warning", "note"]
    assert datakit.load(tmp_path / "out").manifest["splits"] == ["train", "test"]
    assert [row["messages"][0]["content"] for row in datakit.load(tmp_path / "out", split="test")] == ["x", "b"]
    assert [row["messages"][0]["content"] for row in datakit.load(tmp_path / "out", split="train")] == ["a", "c"]
    (line,) = (x for x in (tmp_path / "out" / "rejects" / "train-00000.jsonl").read_text().splitlines() if "DK805" in x)
    assert "test.jsonl:2 in split test; the held-out row stays" in line


def test_a_split_that_would_be_empty_fails(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("train", "test"):
        (raw / f"{name}.jsonl").write_text(json.dumps(chat("a")) + "\n", "utf-8")
    datakit.convert(
        raw, tmp_path / "s", split=["train=train.jsonl", "test=test.jsonl"], workers=1, severity={"DK123": "note"}
    )
    report = datakit.dedup(tmp_path / "s", tmp_path / "out")
    assert report.exit_code == 1
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- prompts


def test_prompts_are_what_the_model_did_not_write(tmp_path):
    def two(first: str, said: str, second: str, answer: str) -> dict[str, Any]:
        roles = ("user", "assistant", "user", "assistant")
        return {
            "messages": [{"role": r, "content": c} for r, c in zip(roles, (first, said, second, answer), strict=True)]
        }

    rows = [two("hi", "ho", "sum?", "3"), two("hi", "hello", "sum?", "4"), two("hi", "ho", "product?", "3"), chat("hi")]
    report = datakit.dedup(shards(tmp_path / "in", rows), tmp_path / "out", by="prompt")
    assert report.rejected == {"DK803": 1}
    assert rejects(tmp_path / "out") == {2: "DK803 the same prompt as rows.jsonl:1"}


@pytest.mark.parametrize(
    ("rows", "any_answer", "stay"),
    [
        (["a 1 2", "a 1 3", "a 1 2", "b 1 2"], False, [1, 2, 4]),
        (["a 1 2", "a 1 3", "a 1 2", "b 1 2"], True, [1, 4]),
    ],
)
def test_answers_to_one_prompt_are_no_duplicates_unless_asked(tmp_path, rows, any_answer, stay):
    made = [dict(zip(("prompt", "chosen", "rejected"), row.split(), strict=True)) for row in rows]
    source = shards(tmp_path / "in", made)
    datakit.dedup(source, tmp_path / "out", by="prompt", any_answer=any_answer)
    assert kept(tmp_path / "out") == stay


# ---------------------------------------------------------------- near


WORDS = [f"w{n}" for n in range(400)]


def text(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def changed(rng: random.Random, value: str, times: int) -> str:
    parts = value.split()
    for _ in range(times):
        parts[rng.randrange(len(parts))] = f"x{rng.randrange(10**6)}"
    return " ".join(parts)


def family(seed: int, count: int = 120) -> list[dict[str, Any]]:
    """Rows of which many are near an earlier one, at all distances and lengths."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        if rows and rng.random() < 0.6:
            old = [m["content"] for m in rng.choice(rows)["messages"]]
            rows.append(chat(changed(rng, old[0], rng.randrange(3)), changed(rng, old[1], rng.randrange(12))))
        else:
            rows.append(chat(text(rng, rng.randrange(4, 60)), text(rng, rng.randrange(4, 120))))
    return rows


def shingle_sets(row: dict[str, Any], length: int = 3) -> list[set[tuple[str, ...]]]:
    made = []
    for turn in row["messages"]:
        parts = turn["content"].split()
        own = {tuple(parts[i : i + length]) for i in range(len(parts) - length + 1)}
        made.append(own or {tuple(parts)})
    return made


def all_pairs(rows: list[dict[str, Any]], threshold: float) -> list[int]:
    """Rows that stay, by comparing each with every earlier one that stays."""
    stay: list[int] = []
    sets = [shingle_sets(row) for row in rows]
    for index, own in enumerate(sets):
        near = any(
            all(len(a & b) >= threshold * len(a | b) for a, b in zip(own, sets[other], strict=True)) for other in stay
        )
        if not near:
            stay.append(index)
    return stay


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_near_duplicates_are_those_of_all_pairs(tmp_path, threshold):
    rows = family(7)
    expected = [index + 1 for index in all_pairs(rows, threshold)]
    assert 40 < len(expected) < 119
    report = datakit.dedup(shards(tmp_path / "in", rows), tmp_path / "out", by="near", threshold=threshold)
    assert kept(tmp_path / "out") == expected
    assert report.rejected["DK804"] + report.rejected.get("DK802", 0) == 120 - len(expected)


def test_near_is_the_same_in_any_run_and_for_any_folders(tmp_path):
    rows = family(3)
    whole = shards(tmp_path / "a", rows)
    parts = [shards(tmp_path / "b", rows[:50]), shards(tmp_path / "c", rows[50:])]
    one = datakit.dedup(whole, tmp_path / "one", by="near")
    two = datakit.dedup(whole, tmp_path / "two", by="near")
    assert one.content_id == two.content_id
    datakit.dedup(parts, tmp_path / "three", by="near")
    texts = [[row["messages"] for row in datakit.load(tmp_path / name)] for name in ("one", "three")]
    assert texts[0] == texts[1]


def test_a_long_shared_question_does_not_make_two_short_answers_one(tmp_path):
    question = text(random.Random(1), 500)
    rows = [chat(question, "yes"), chat(question, "no"), chat(question + " please", "Yes!"), chat(question, "yes")]
    datakit.dedup(shards(tmp_path / "in", rows), tmp_path / "out", by="near")
    assert kept(tmp_path / "out") == [1, 2]
    assert rejects(tmp_path / "out")[3].startswith("DK804")
    assert rejects(tmp_path / "out")[4].startswith("DK802")


def test_kto_rows_of_opposite_labels_are_not_near(tmp_path):
    prompt, answer = text(random.Random(1), 50), text(random.Random(2), 50)
    rows = [{"prompt": prompt, "completion": answer + end, "label": label} for end, label in (("", True), (" x", False), (" y", True))]  # fmt: skip
    datakit.dedup(shards(tmp_path / "in", rows), tmp_path / "out", by="near")
    assert kept(tmp_path / "out") == [1, 2]


@quick
@given(st.integers(1, 400), st.floats(0.1, 1.0), st.integers(0, 5))
def test_the_estimate_is_near_the_truth(size, share, seed):
    rng = np.random.default_rng(seed)
    common = rng.integers(0, 2**64, max(1, int(size * share)), np.uint64)
    own = [rng.integers(0, 2**64, size - len(common), np.uint64) for _ in range(2)]
    sets = [np.concatenate((common, more)) for more in own]
    offsets = np.cumsum([0, *map(len, sets)])
    signed = minhash.signatures(np.concatenate(sets), offsets)
    truth = minhash.jaccard(*(np.unique(x) for x in sets))
    assert abs((signed[0] == signed[1]).mean() - truth) < 0.19  # 4.3 deviations of 128 draws


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8, 0.9, 0.99, 1.0])
def test_bands_find_what_they_promise(threshold):
    count, width = minhash.bands(threshold)
    assert count * width <= minhash.PERMUTATIONS
    assert 1 - (1 - threshold**width) ** count >= minhash.RECALL or width == 1


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("Hello,  World!\n", "hello world"),
        ("don't 3.14", "don t 3 14"),
        ("ﬁne_x", "fine x"),
        ("e\u0301TÉ", "été"),
        ("你好 abc中文def", "你 好 abc 中 文 def"),
        ("हिन्दी भाषा", "हिन्दी भाषा"),
        ("한국어 말", "한국어 말"),
        ("???", ""),
        ("", ""),
    ],
)
def test_normal_form(given_, expected):
    assert normal([given_]).to_pylist() == [expected]
    found = words(["x", given_, "y"])
    assert found.flat.to_pylist() == ["x", *expected.split(), "y"]
    assert np.diff(found.offsets).tolist() == [1, len(expected.split()), 1]


@quick
@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_has_the_normal_form_of_any_text(value):
    """The short way of plain texts against the long one, which a letter of another script forces."""
    assert normal([value]).to_pylist()[0] == normal([f"{value} ж"]).to_pylist()[0].removesuffix("ж").strip()


@quick
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=6), st.integers(1, 4), st.booleans())
def test_runs_are_equal_where_words_are(texts, length, short):
    found = words([" ".join(own) for own in texts])
    made = runs(found.hashes, found.offsets, length, short)
    expected: list[tuple[str, ...]] = []
    for number, own in enumerate(texts):
        mine = [tuple(own[i : i + length]) for i in range(len(own) - length + 1)]
        mine = mine or ([tuple(own)] if short and own else [])
        assert made.offsets[number + 1] - made.offsets[number] == len(mine)
        expected += mine
    values = made.values.tolist()
    assert len(set(values)) == len(set(expected)) == len(set(zip(values, expected, strict=True)))


# ---------------------------------------------------------------- formatted shards and wrong calls


def test_formatted_rows_by_their_tokens(tmp_path):
    rows = [{"input_ids": [1, 2], "labels": [1, n % 2]} for n in range(4)]
    source = shards(tmp_path / "in", rows)
    datakit.dedup(source, tmp_path / "out")
    assert kept(tmp_path / "out") == [1, 2]
    for by in ("prompt", "near"):
        with pytest.raises(UsageError, match="token ids") as caught:
            datakit.dedup(source, tmp_path / "no", by=by)
        assert "before `datakit format`" in caught.value.hint


@pytest.mark.parametrize("verb", ["split", "dedup", "decontaminate"])
def test_packed_rows_are_refused(verb, tmp_path, monkeypatch):
    source = shards(tmp_path / "in", [{"input_ids": [1, 2], "labels": [1, 2]}])
    packed = layout("tokenized", "packed")
    monkeypatch.setattr(datakit.Shards, "layout", property(lambda _: packed))
    options = {"split": {"test": "5%"}, "dedup": {}, "decontaminate": {"against": "x"}}[verb]
    with pytest.raises(UsageError, match="packed"):
        getattr(datakit, verb)(source, tmp_path / "out", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "near", "threshold": 0.0}, "--threshold"),
        ({"by": "near", "threshold": 1.1}, "--threshold"),
        ({"by": "near", "ngram": 0}, "--ngram"),
        ({"any_answer": True}, "--any-answer"),
        ({"by": "nea"}, "--by nea"),
        ({"by": "near", "threshold": "0.5"}, "--threshold '0.5'"),
        ({"by": "near", "threshold": True}, "--threshold True"),
        ({"by": "near", "ngram": 2.5}, "--ngram 2.5"),
        ({"threshold": 0.8}, "--threshold without --by near"),
        ({"by": "prompt", "ngram": 3}, "--ngram without --by near"),
    ],
)
def test_wrong_calls(tmp_path, options, said):
    with pytest.raises(UsageError, match=said):
        datakit.dedup(shards(tmp_path / "in", [chat("q")]), tmp_path / "out", **options)


def test_folders_of_two_kinds_are_refused(tmp_path):
    one = shards(tmp_path / "a", [chat("q")])
    two = shards(tmp_path / "b", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(UsageError, match="holds sft"):
        datakit.dedup([one, two], tmp_path / "out")
