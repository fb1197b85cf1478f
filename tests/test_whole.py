"""Findings about the whole set: equal keys, the places of rows, conflicts, and KTO's balance."""

import ast
import importlib.util
import json
import types
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import datakit
from datakit.checks import kto
from datakit.tally import PLACES, Tally
from datakit.whole import Keys, whole_set

settings.register_profile("whole", deadline=None, derandomize=True)
quick = settings(settings.get_profile("whole"), max_examples=150)

# few distinct values in either half, in the first and in the last byte
halves = st.sampled_from([bytes(8), b"\x01" + bytes(7), bytes(7) + b"\x01", bytes(7) + b"\x80", b"\xff" * 8])
keys = st.builds(bytes.__add__, halves, halves)
key_lists = st.lists(keys, max_size=40)


def collected(values: list[bytes], cuts: list[int]) -> Keys:
    """Keys in several blocks; row numbers begin at 100 in each and leave out every second."""
    made = Keys()
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    for number, (start, end) in enumerate(pairwise(edges)):
        made.add(b"".join(values[start:end]), f"file-{number}", range(100, 100 + 2 * (end - start), 2))
    return made


def naive(values: list[bytes]) -> list[list[int]]:
    groups: dict[bytes, list[int]] = {}
    for index, key in enumerate(values):
        groups.setdefault(key, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


@quick
@given(key_lists, st.lists(st.integers(0, 40), max_size=4))
def test_equal_keys_are_found(values: list[bytes], cuts: list[int]) -> None:
    assert list(collected(values, cuts).equal()) == naive(values)


@quick
@given(key_lists, st.sampled_from([1, 0x80, 0xFF]))
def test_bits_of_the_last_byte_are_left_out(values: list[bytes], mask: int) -> None:
    masked = [key[:15] + bytes([key[15] & ~mask]) for key in values]
    assert list(collected(values, []).equal(mask)) == naive(masked)


@quick
@given(st.integers(0, 3000), st.integers(1, 60))
def test_many_keys(count: int, distinct: int) -> None:
    values = [(number * 7919 % distinct).to_bytes(8, "big") + bytes(8) for number in range(count)]
    assert list(collected(values, [count // 2]).equal()) == naive(values)


@quick
@given(st.lists(st.integers(0, 5), max_size=8), st.booleans())
def test_places(sizes: list[int], lists: bool) -> None:
    made, expected = Keys(), []
    for number, size in enumerate(sizes):
        rows: Any = range(7, 7 + size)
        rows = [row * row for row in rows] if lists else rows
        made.add(bytes(16 * size), f"file-{number}", rows)
        expected += [(f"file-{number}", row) for row in rows]
    assert [made.place(index) for index in range(len(expected))] == expected


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30), st.sampled_from(["preference", "kto"]))
def test_conflicts_are_equal_questions_with_both_verdicts(answers: list[tuple[int, bool]], kind: str) -> None:
    values = [bytes([question]) * 15 + bytes([0x10 | verdict]) for question, verdict in answers]
    id = {"preference": "DK404", "kto": "DK504"}[kind]
    found = {f.id: f for f in whole_set(Tally(), kind, Keys(), collected(values, [11]))}
    firsts: dict[int, int] = {}
    against: dict[int, int] = {}
    for index, (question, verdict) in enumerate(answers):
        if verdict != answers[firsts.setdefault(question, index)][1]:
            against.setdefault(question, index)
    if not against:
        assert id not in found
        return
    places = collected(values, [11])
    assert found[id].rows == len(against)
    questions = sorted(against, key=lambda question: firsts[question])
    for (source, row, path, note), question in zip(found[id].places, questions, strict=True):
        first = places.place(firsts[question])
        assert (source, row) == places.place(against[question])
        assert note.endswith(f"of {first[0]} row {first[1]}")
        assert path == ""


def test_conflicts_are_no_matter_of_other_kinds() -> None:
    values = [bytes(16), bytes(15) + b"\x01"]
    assert whole_set(Tally(), "sft", Keys(), collected(values, [])) == []


def test_few_places_are_kept_and_all_rows_counted() -> None:
    (found,) = whole_set(Tally(), "sft", collected([bytes(16)] * 50, [20]), Keys())
    assert (found.id, found.rows, len(found.places)) == ("DK801", 49, PLACES)
    assert found.places[0] == ["file-0", 102, "", "the same as file-0 row 100"]


# ---------------------------------------------------------------- through validate


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def findings(*paths: str, **options: Any) -> dict[str, Any]:
    report = datakit.validate(list(paths), workers=1, **options)
    return {summary.id: summary for summary in report.findings}


def test_duplicates_are_named_by_file_and_line(tmp_path: Path) -> None:
    first = written(tmp_path / "a.jsonl", [{"text": "one"}, "\n", "not JSON\n", {"text": "two"}, {"text": "one"}])
    second = written(tmp_path / "b.jsonl", [{"text": "three"}, {"text": "two", "id": 7}, {"text": "one"}])
    found = findings(first, second)["DK801"]
    assert found.count == 3
    assert found.severity == "warning"
    assert [(place["source"], place["row"], place["note"]) for place in found.first] == [
        (first, 5, f"the same as {first} row 1"),
        (second, 3, f"the same as {first} row 1"),
        (second, 2, f"the same as {first} row 4"),
    ]


def test_rows_of_one_tree_are_no_duplicates_of_each_other(tmp_path: Path) -> None:
    answer = {"role": "assistant", "text": "Hi.", "replies": []}
    other = {"role": "assistant", "text": "Hello.", "replies": []}
    tree = {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "Hey!", "replies": [answer, other]}}
    again = {**tree, "message_tree_id": "u"}
    assert "DK801" not in findings(written(tmp_path / "a.jsonl", [tree]))
    found = findings(written(tmp_path / "b.jsonl", [tree, again]))["DK801"]
    assert found.count == 2
    assert {place["row"] for place in found.first} == {2}


def test_opposite_preferences_are_named(tmp_path: Path) -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    rows = [
        pair("Tea or coffee?", "Tea.", "Coffee."),
        pair("Cats or dogs?", "Cats.", "Dogs."),
        pair("Tea or coffee?", "Tea.", "Coffee."),
        pair("Tea or coffee?", "Tea!", "Coffee."),
        pair("Tea or coffee?", "Coffee.", "Tea."),
        pair("Coffee or tea?", "Coffee.", "Tea."),
    ]
    path = written(tmp_path / "pairs.jsonl", rows)
    found = findings(path)
    assert found["DK404"].count == 1
    (place,) = found["DK404"].first
    assert (place["source"], place["row"]) == (path, 5)
    assert place["note"] == f"the opposite preference of {path} row 1"
    assert found["DK801"].count == 1  # row 3; the opposite is no duplicate


def test_opposite_labels_are_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "2 + 2?", "completion": "4", "label": True},
        {"prompt": "2 + 3?", "completion": "5", "label": True},
        {"prompt": "2 + 2?", "completion": "5", "label": False},
        {"prompt": "2 + 2?", "completion": "4", "label": False},
    ]
    path = written(tmp_path / "labels.jsonl", rows)
    found = findings(path)
    assert found["DK504"].count == 1
    (place,) = found["DK504"].first
    assert (place["row"], place["note"]) == (4, f"the opposite label of {path} row 1")


def test_findings_about_the_set_can_be_silenced_and_raised(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "one"}])
    assert "DK801" not in findings(path, severity={"exact-duplicate": "off"})
    report = datakit.validate(path, workers=1, severity={"DK801": "error"})
    assert report.exit_code == 1
    assert report.rows_rejected == 0
    assert report.verdict == "failed by DK801 exact-duplicate"


# ---------------------------------------------------------------- KTO


@cache
def trl_lines() -> str:
    """The lines of TRL's trainer that judge the balance, without importing it."""
    spec = importlib.util.find_spec("trl")
    folders = spec.submodule_search_locations if spec else None
    for path in (found for folder in folders or () for found in Path(folder).rglob("kto_trainer.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.If) and "dataset_name" in ast.unparse(node.test):
                text = ast.unparse(ast.Module(node.body, []))
                if text.startswith("num_desirable = "):
                    return text
    return ""


def trl_advice(good: int, bad: int) -> str | None:
    """What TRL says to these labels with its default weights."""
    said: list[str] = []
    scope = {
        "dataset": {"label": [True] * good + [False] * bad},
        "self": types.SimpleNamespace(desirable_weight=1.0, undesirable_weight=1.0),
        "logger": types.SimpleNamespace(warning=said.append),
    }
    exec(trl_lines(), scope)
    return said[0] if said else None


@pytest.mark.skipif(not trl_lines(), reason="no TRL, or one of another shape")
@quick
@given(st.integers(1, 400), st.integers(1, 400))
@example(1, 1)
@example(133, 100)
@example(134, 100)
@example(300, 399)
@example(399, 300)
@example(200, 201)
@example(1, 400)
@example(400, 1)
def test_weights_are_those_of_trl(good: int, bad: int) -> None:
    advice = trl_advice(good, bad)
    note = kto.imbalance(Counter({"label true": good, "label false": bad}))
    assert (note is None) == (advice is None)
    if note and advice:
        bounds = [part.split("]")[0].split(", ") for part in advice.split("[")[1:]]
        for name, (low, high) in zip(("desirable_weight", "undesirable_weight"), bounds, strict=True):
            assert f" {name} between {float(low):.2f} and {float(high):.2f}" in note


def test_one_class_has_no_balance() -> None:
    for good, bad in ((3, 0), (0, 3), (0, 0)):
        counts = Counter({"label true": good, "label false": bad})
        assert kto.imbalance(counts) is None
        assert kto.in_blocks(counts) is None
        assert (kto.one_class(counts) is None) == (good == bad == 0)
