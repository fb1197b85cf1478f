"""`datakit mix`: plans that hold their weights to a row, the same bytes for the same plan, and every row accounted for."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tomllib
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import datakit
from datakit.errors import DataFailed, UnreadableInput, UsageError
from datakit.jsonschema import all_schemas
from datakit.mixing.apportion import Lengths
from datakit.mixing.arrangement import Arrangement, Size, arrange
from datakit.mixing.filters import Filter
from datakit.mixing.order import BLOCK, ROWS, Order, permutation
from datakit.mixing.recipe import parse, read
from datakit.mixing.writing import seen as findings_of

CORPORA = Path(__file__).resolve().parent.parent.parent / "shared" / "corpora"


def chat(question: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def shards(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    datakit.convert(source, folder, **options).raise_for_status()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards `a` with 300 rows, `b` with 50, `c` with 7; several row groups in `a`."""
    base = tmp_path_factory.mktemp("mix")
    for name, count in (("a", 300), ("b", 50), ("c", 7)):
        rows = [chat(f"{name} {i}", "x" * (1 + i % 9)) for i in range(count)]
        shards(base / name, rows, shard_size="4kiB")
    return base


def recipe(**keys: Any) -> dict[str, Any]:
    """A recipe of sources whose paths are not looked at."""
    weights = keys.pop("weights", None) or [1]
    sources = {f"s{i}": {"path": "x", **({} if w is None else {"weight": w})} for i, w in enumerate(weights)}
    return {"sources": sources, **keys}


def plan(sizes: list[int], **keys: Any) -> Arrangement:
    read_ = parse(recipe(**{"weights": [1] * len(sizes), **keys}))
    return arrange(read_, [Size(f"s{i}", size) for i, size in enumerate(sizes)])


def measured(lengths: list[list[int]], **keys: Any) -> Arrangement:
    read_ = parse(recipe(**{"weights": [1] * len(lengths), **keys}))
    sizes = [
        Size(f"s{i}", len(own), Lengths(np.array(own, np.int64), Order(read_.order, len(own), read_.seed, i)))
        for i, own in enumerate(lengths)
    ]
    return arrange(read_, sizes)


def questions(folder: Path) -> list[str]:
    return [row["messages"][0]["content"] for row in datakit.load(folder)]


# ---------------------------------------------------------------- laws of the plan

weight = st.one_of(st.integers(1, 100), st.floats(1e-4, 1e3, allow_nan=False))


@given(st.lists(weight, min_size=1, max_size=8), st.sampled_from([1, 2, 3, 7, 100]), st.integers(1, 1500))
@settings(deadline=None, max_examples=150)
def test_rows_are_exact_to_one_row_at_every_block(weights: list[float], block: int, rows: int) -> None:
    made = plan([5] * len(weights), weights=weights, block_size=block, rows=rows, stop="restart")
    assert len(made) == rows
    exact = [Fraction(str(w)) for w in weights]
    for start, taken in zip(made.starts.tolist(), made.taken.tolist(), strict=True):
        assert sum(taken) == start
        assert all(abs(n - w / sum(exact) * start) < 1 for n, w in zip(taken, exact, strict=True))
    assert set(np.diff(made.starts)[:-1]) <= {block}
    assert (np.diff(made.taken, axis=0) >= 0).all()


@given(st.data(), st.sampled_from(["step", "linear", "cosine"]), st.sampled_from([1, 3, 10]))
@settings(deadline=None, max_examples=80)
def test_schedules_are_exact_to_one_row(data: st.DataObject, interpolation: str, block: int) -> None:
    names = [f"s{i}" for i in range(data.draw(st.integers(2, 4)))]
    places = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=4, unique=True))
    weights = st.lists(st.sampled_from([0, 0.1, 1, 3]), min_size=len(names), max_size=len(names)).filter(any)
    points = [{"at": at, "weights": dict(zip(names, data.draw(weights), strict=True))} for at in sorted(places)]
    made = plan([9] * len(names), weights=[None] * len(names), rows=400, stop="restart", block_size=block,
                schedule={"interpolation": interpolation, "points": points})  # fmt: skip
    schedule = made.recipe.schedule
    assert schedule is not None
    due = np.zeros(len(names))
    for start, stop, taken in zip(made.starts.tolist(), made.starts.tolist()[1:], made.taken[1:], strict=False):
        due += np.array(list(schedule.scheduler.get_weights(start).values())) * (stop - start)
        assert np.abs(taken - due).max() < 1 + 1e-6


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=3, max_size=40), min_size=1, max_size=3),
    st.integers(1, 30),
    st.sampled_from(["source", "window:4", "shuffle"]),
)
@settings(deadline=None, max_examples=100)
def test_tokens_are_exact_to_one_row_at_every_block(lengths: list[list[int]], block: int, order: str) -> None:
    weights = [1 + 2 * i for i in range(len(lengths))]
    made = measured(lengths, weights=weights, tokens=3000, stop="restart", block_size=block, order=order)
    longest = max(map(max, lengths))
    for taken in made.taken:
        tokens = [size.lengths.tokens(int(n)) for size, n in zip(made.sizes, taken, strict=True) if size.lengths]
        due = [w / sum(weights) * sum(tokens) for w in weights]
        assert all(abs(n - want) <= longest for n, want in zip(tokens, due, strict=True))
    assert abs(sum(n or 0 for n in made.tokens) - 3000) <= longest * len(lengths) / 2


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 20), st.sampled_from(["source", "window:3", "shuffle"]))  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_every_row_appears_once_or_n_times(sizes: list[int], block: int, order: str) -> None:
    for stop, times in (("all_exhausted", 1), ("repeat:3", 3)):
        made = plan(sizes, weights=[1 + i for i in range(len(sizes))], stop=stop, block_size=block, order=order)
        assert made.rows == [times * size for size in sizes]
        sources, numbers = made.origins(0, len(made))
        for i, size in enumerate(sizes):
            own = numbers[sources == i]
            assert sorted(own.tolist()) == list(range(times * size))
            rows = Order(order, size, 0, i).at(np.arange(times * size))
            for epoch in range(times):
                assert sorted(rows[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


@given(st.integers(0, 500), st.integers(0, 500), st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_a_range_is_a_part_of_the_whole(start: int, more: int, block: int) -> None:
    made = plan([100, 30, 7], weights=[5, 3, 0.01], rows=500, stop="restart", block_size=block)
    stop = min(start + more, len(made))
    start = min(start, stop)
    for whole, part in zip(made.origins(0, len(made)), made.origins(start, stop), strict=True):
        assert whole[start:stop].tolist() == part.tolist()


def test_all_exhausted_keeps_the_ratio_of_the_rest() -> None:
    made = plan([10, 100, 200], weights=[2, 1, 1], stop="all_exhausted", block_size=8)
    taken = made.taken[np.argmax(made.taken[:, 0] == 10) :]
    alive = taken[taken[:, 1] < 100]
    given_ = alive[-1] - alive[0]
    assert abs(given_[1] - given_[2]) <= 1
    assert given_.sum() > 100


def test_each_order_is_a_permutation_of_its_own() -> None:
    windows = Order("window:10", 95, 1, 0).at(np.arange(190))
    assert all(sorted(windows[i : i + 10]) == list(range(i, min(i + 10, 95))) for i in range(0, 90, 10))
    assert windows[:95].tolist() != windows[95:].tolist()  # each epoch is shuffled anew
    whole = Order("shuffle", 95, 1, 0).at(np.arange(190))
    assert whole[:95].tolist() != whole[95:].tolist() != list(range(95))
    assert Order("source", 95, 1, 0).at(np.arange(94, 97)).tolist() == [94, 0, 1]
    pieces = [Order("window:10", 95, 1, 0).at(np.arange(a, a + 7)) for a in range(0, 189, 7)]
    assert np.concatenate(pieces).tolist() == windows[:189].tolist()


def test_shuffles_do_not_change_with_versions() -> None:
    assert permutation(6, 42, BLOCK, 1).tolist() == [4, 3, 2, 1, 0, 5]


# ---------------------------------------------------------------- defects of others, which are none here


def test_all_exhausted_ends_after_all_rows() -> None:
    assert len(plan([10, 30], stop="all_exhausted", block_size=1000)) == 40
    assert len(plan([8, 1000], stop="all_exhausted", block_size=20)) == 1008


def test_a_small_weight_does_not_starve() -> None:
    made = plan([1000, 1000], weights=[0.9995, 0.0005], rows=20_000, stop="restart", block_size=1000)
    assert made.rows == [19_990, 10]


def test_seeds_and_blocks_do_not_collide() -> None:
    keys = [(seed, what, a) for seed in range(6) for what in (BLOCK, ROWS) for a in range(6)]
    assert len({tuple(permutation(50, *key).tolist()) for key in keys}) == len(keys)
    assert permutation(50, 42, BLOCK, 1).tolist() != permutation(50, 43, BLOCK, 0).tolist()


def test_seed_zero_is_a_seed(folder: Path, tmp_path: Path) -> None:
    words = [folder / "a", folder / "b"]
    ids = [datakit.mix(words, tmp_path / name, seed=seed).content_id for name, seed in (("x", 0), ("y", None))]
    assert ids[0] == ids[1] != datakit.mix(words, tmp_path / "z", seed=1).content_id


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"weights": [1, -1]}, "weight"),
        ({"weights": [1, 0]}, "weight"),
        ({"weights": [1, float("nan")]}, "weight"),
        ({"weights": [1, float("inf")]}, "weight"),
        ({"weights": [1, True]}, "weight"),
        ({"weights": [1, None]}, "s1: no weight"),
        ({"weights": [1, 1e-13]}, "1e-12"),
        ({"stop": "first_exausted"}, "did you mean 'first_exhausted'"),
        ({"stop": "repeat:0"}, "repeat:0"),
        ({"stop": "restart"}, "has no end"),
        ({"order": "windows:9"}, "unknown order"),
        ({"order": "window:x"}, "window:x"),
        ({"block_size": 0}, "block_size"),
        ({"blocksize": 10}, "did you mean 'block_size'"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "64 bits"),
        ({"rows": 10, "tokens": 10}, "rows and tokens"),
        ({"rows": 1.5}, "whole number"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": 0.001}, "temperature = 0.001 leaves 's0'"),
        ({"temperature": 2, "weights": [1, 1]}, "weights and a temperature"),
        ({"filter": "dk_length <"}, "cannot be read"),
        ({"filter": "__import__('os')"}, "no condition"),
        ({"filter": "len(text) > 3"}, "neither a column nor a value"),
        ({"weigh_by": "row"}, "did you mean 'rows'"),
    ],
)
def test_a_wrong_recipe_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        arrange(parse(recipe(**{"weights": [None, None], **keys})), [Size("s0", 5), Size("s1", 9)])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"interpolation": "sigmoid"}, "unknown value 'sigmoid'"),
        ({"axis": "row"}, "did you mean 'rows'"),
        ({"axis": "steps"}, 'axis = "steps" without rows_per_step'),
        ({"rows_per_step": 8}, "rows_per_step with axis = 'rows'"),
        ({"points": [{"at": at, "weights": {"s0": 1, "s1": 1}} for at in (5, 0)]}, "at = 0 behind at = 5"),
        ({"points": []}, "without points"),
        ({"points": [{"at": 0, "weights": {"s0": 1, "s1": 1}}] * 2}, "two schedule points at 0"),
        ({"points": [{"at": 0, "weights": {"s0": 1}}]}, "no weight for s1"),
        ({"points": [{"at": 0, "weights": {"s0": 1, "s1": 1, "s2": 1}}]}, "unknown source 's2'"),
        ({"points": [{"at": 0, "weights": {"s0": 0, "s1": 0}}]}, "all weights are 0"),
        ({"points": [{"at": 0, "weights": {"s0": -1, "s1": 2}}]}, "weights"),
        ({"points": [{"weights": {"s0": 1, "s1": 1}}]}, "needs at"),
    ],
)
def test_a_wrong_schedule_is_refused(schedule: dict[str, Any], said: str) -> None:
    whole = {"points": [{"at": 0, "weights": {"s0": 1, "s1": 1}}], **schedule}
    with pytest.raises(UsageError) as caught:
        parse(recipe(weights=[None, None], schedule=whole))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("interpolation", "at", "rows", "unseen"),
    [
        ("step", [0, 300], 1000, [300]),
        ("step", [0, 300, 600], 3000, [300]),
        ("step", [0, 1000], 3000, []),
        ("step", [0, 3000], 3000, [3000]),
        ("linear", [0, 300], 1000, [300]),
        ("linear", [0, 300, 600], 3000, [300]),
        ("linear", [0, 3000], 3000, []),
        ("cosine", [100, 5000, 9000], 3000, [9000]),
        ("step", [40], 3000, []),
    ],
)
def test_points_without_a_block_are_told(interpolation: str, at: list[int], rows: int, unseen: list[int]) -> None:
    points = [{"at": place, "weights": {"s0": 1 + place, "s1": 1}} for place in at]
    schedule = {"points": points, "interpolation": interpolation}
    made = plan([5000, 5000], weights=[None, None], stop="restart", rows=rows, schedule=schedule)
    told = [finding.note for finding in findings_of(made) if finding.id == "DK824"]
    assert [note.split(" point at ")[1] for note in told] == [f"{place:,} rows" for place in unseen]
    steps = {**schedule, "axis": "steps", "rows_per_step": 1}
    same = plan([5000, 5000], weights=[None, None], stop="restart", rows=rows, schedule=steps)
    assert len([finding for finding in findings_of(same) if finding.id == "DK824"]) == len(unseen)


def test_a_schedule_that_starves_a_source_for_ever_ends() -> None:
    points = [{"at": 0, "weights": {"s0": 1, "s1": 0}}]
    for stop in ("all_exhausted", "all_exhausted_restart"):
        with pytest.raises(UsageError, match="gives no weight to s1"):
            plan([5, 5], weights=[None, None], stop=stop, schedule={"points": points})


def test_a_mix_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match="blocks"):
        plan([10**6, 10**6], weights=[1, 1e-9], stop="all_exhausted_restart", block_size=1)


def test_the_scheduler_of_seed_names() -> None:
    points = [
        datakit.WeightSchedulePoint(10, {"a": 0.0, "b": 1.0}),
        datakit.WeightSchedulePoint(0, {"a": 1.0, "b": 0.0}),
    ]
    at = {i: datakit.WeightScheduler(points, i).get_weights(5)["a"] for i in ("step", "linear", "cosine")}
    assert at == {"step": 1.0, "linear": 0.5, "cosine": pytest.approx(0.5)}
    linear = datakit.WeightScheduler(schedule=points, interpolation="linear")
    assert [linear.get_weights(step)["a"] for step in (-1, 0, 2, 10, 99)] == [1.0, 1.0, 0.8, 0.0, 0.0]
    assert datakit.WeightScheduler(points, "cosine").get_weights(2)["a"] == pytest.approx(0.904508)
    for wrong in ({"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": float("nan"), "b": 1.0}):
        with pytest.raises(UsageError):
            datakit.WeightSchedulePoint(0, wrong)
    for args in (([], "step"), (points * 2, "step"), (points, "sigmoid"), ([points[0], datakit.WeightSchedulePoint(0, {"c": 1.0})], "step")):  # fmt: skip
        with pytest.raises(UsageError):
            datakit.WeightScheduler(*args)


# ---------------------------------------------------------------- budgets, caps, temperature


def test_budgets_are_exact() -> None:
    sources: dict[str, Any] = {name: {"path": "x", "rows": rows} for name, rows in (("s0", 77), ("s1", 100), ("s2", 3))}
    made = arrange(parse({"sources": sources, "block_size": 7}), [Size(f"s{i}", 100) for i in range(3)])
    assert made.rows == [77, 100, 3]
    sources["s1"] = {"path": "x", "weight": 2}
    sources["s2"] = {"path": "x", "weight": 1}
    made = arrange(parse({"sources": sources, "rows": 137}), [Size(f"s{i}", 100) for i in range(3)])
    assert made.rows == [77, 40, 20]
    for wrong in ({"sources": sources}, {"sources": sources, "rows": 77}):
        with pytest.raises(UsageError):
            arrange(parse(wrong), [Size(f"s{i}", 100) for i in range(3)])


def test_a_source_too_small_for_its_budget_is_named() -> None:
    sources = {"big": {"path": "x", "rows": 50}, "small": {"path": "x", "rows": 30}}
    sizes = [Size("big", 100), Size("small", 20)]
    with pytest.raises(UsageError, match="used up: small"):
        arrange(parse({"sources": sources}), sizes)
    assert arrange(parse({"sources": sources, "stop": "restart"}), sizes).rows == [50, 30]


def test_a_mix_that_ends_too_soon_is_refused() -> None:
    assert len(plan([8, 10], stop="all_exhausted", rows=18)) == 18
    for sizes, keys in (([8, 7], {"stop": "all_exhausted"}), ([8, 7], {}), ([8, 7], {"stop": "repeat:1"})):
        with pytest.raises(UsageError, match="of the 18 that are asked for"):
            plan(sizes, rows=18, **keys)
    with pytest.raises(UsageError, match="give 60 tokens of the 80"):
        measured([[10] * 3, [10] * 3], tokens=80, stop="all_exhausted")


def test_epochs_limit_what_a_source_gives() -> None:
    sources = {"s0": {"path": "x", "epochs": 0.5}, "s1": {"path": "x", "epochs": 2}}
    made = arrange(parse({"sources": sources, "stop": "all_exhausted"}), [Size("s0", 11), Size("s1", 10)])
    assert made.rows == [5, 20]
    with pytest.raises(UsageError, match="no row is left"):
        arrange(parse({"sources": {"s0": {"path": "x", "epochs": 0.01}}}), [Size("s0", 11)])


def test_temperature_flattens_sizes() -> None:
    made = plan([900, 100], weights=[None, None], temperature=2, rows=400, stop="restart")
    assert made.rows == [300, 100]
    assert plan([900, 100], weights=[None, None], temperature=1, rows=100).rows == [90, 10]


def test_all_exhausted_restart_ends_with_the_last_row_of_the_last_source() -> None:
    made = plan([10, 95], stop="all_exhausted_restart", block_size=8)
    assert made.rows == [95, 95] or made.rows == [94, 95]
    assert plan([10, 95], stop="restart", rows=37).rows == [19, 18]


def test_a_mix_of_other_units() -> None:
    lengths = [[3] * 40, [7] * 40]
    by_rows = measured(lengths, weigh_by="rows", tokens=100, stop="restart", block_size=6)
    assert by_rows.rows == [10, 10]
    by_tokens = measured(lengths, weigh_by="tokens", rows=53, stop="restart", block_size=6)
    assert len(by_tokens) == 53
    assert abs(3 * by_tokens.rows[0] - 7 * by_tokens.rows[1]) <= 7


# ---------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("n > 2", [False, False, True, False]),
        ("n != None", [True, True, True, False]),
        ("2 <= n <= 3 or name == 'd'", [False, True, True, True]),
        ("not (n < 3)", [False, False, True, True]),
        ("meta.kind in ['x', 'y'] and meta.deep.er == 1", [True, False, False, False]),
        ("flag", [True, False, False, False]),
        ("n == -1 or name not in ('a', 'b', 'c')", [False, False, False, True]),
        ("meta.kind > 3", [False, False, False, False]),
    ],
)
def test_filter(text: str, holds: list[bool]) -> None:
    import pyarrow as pa

    meta = ['{"kind":"x","deep":{"er":1}}', '{"kind":"y"}', "null", None]
    table = pa.table({"n": [1, 2, 3, None], "name": list("abcd"), "flag": [True, False, None, None], "meta": meta})
    assert Filter.parse(text).holds(table).tolist() == holds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dk_row", "'dk_row' alone is no condition"),
        ("dk_row > 1 and not dk_source", "'dk_source' alone is no condition"),
        ("dk_row > '100'", "compares a number with a text"),
        ("dk_id in [1, 2]", "compares a text with a number"),
        ("1 < dk_row < 'x'", "compares a number with a text"),
        ("dk_row < None", "never holds"),
    ],
)
def test_filters_that_decide_nothing_are_refused(folder: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        datakit.mix({"sources": {"a": str(folder / "a")}, "filter": text}, plan_only=True)


def test_filters_leave_rows_out_and_count_them(folder: Path, tmp_path: Path) -> None:
    file = folder / "a.jsonl"
    words = {"sources": {"a": {"path": str(folder / "a"), "filter": "dk_row > 100"}, "b": str(folder / "b")}}
    report = datakit.mix({**words, "filter": "dk_row <= 150", "stop": "all_exhausted"}, tmp_path / "m")
    assert report.rows_out == 50 + 50
    assert report.facts["sources"]["a"]["left_out_by_filter"] == 250
    assert report.ledger["fanout"] == {"0": 250, "1": 100}
    places = {row["dk_row"] for row in datakit.load(tmp_path / "m").rows(all=True) if row["dk_source"] == str(file)}
    assert places == set(range(101, 151))
    for text, said in (("dk_rows > 1", "did you mean 'dk_row'"), ("dk_row > 1000", "no rows")):
        with pytest.raises(UsageError) as caught:
            datakit.mix({**words, "filter": text}, tmp_path / "n")
        assert said in str(caught.value)


# ---------------------------------------------------------------- what is written


def test_a_mix_holds_the_rows_of_the_plan(folder: Path, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    words = {"sources": {n: {"path": str(folder / n), "weight": w} for n, w in zip(names, (6, 3, 1), strict=True)}}
    for order in ("source", "window:20", "shuffle"):
        report = datakit.mix({**words, "rows": 400, "stop": "restart", "order": order, "block_size": 30}, tmp_path / "m", overwrite=True)  # fmt: skip
        assert (report.exit_code, report.rows_in, report.rows_out) == (0, 357, 400)
        rows = list(datakit.load(tmp_path / "m").rows(all=True))
        counts = Counter(row["dk_mixed_from"] for row in rows)
        assert counts == {"a": 240, "b": 120, "c": 40}
        assert all(row["messages"][0]["content"].startswith(row["dk_mixed_from"] + " ") for row in rows)
        assert all(row["dk_source"].endswith(f"{row['dk_mixed_from']}.jsonl") and row["dk_row"] for row in rows)
        used = Counter(row["dk_id"] for row in rows)
        assert Counter(used.values()) == {1: 240, 2: 30, 3: 20, 5: 2, 6: 5}
        assert report.ledger["fanout"] == {"0": 60, "1": 240, "2": 30, "3": 20, "5": 2, "6": 5}
        own = [row["messages"][0]["content"] for row in rows if row["dk_mixed_from"] == "a"]
        assert (own == [f"a {i}" for i in range(240)]) == (order == "source")
        assert datakit.verify(tmp_path / "m").exit_code == 0
        for start in range(0, 390, 30):
            block = Counter(row["dk_mixed_from"] for row in rows[start : start + 30])
            assert block == {"a": 18, "b": 9, "c": 3}


def test_the_same_plan_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    raw = {"a": str(folder / "a.jsonl"), "b": str(folder / "b")}
    words = {"sources": raw, "order": "shuffle", "stop": "all_exhausted"}
    made = [datakit.mix(words, tmp_path / str(n), workers=n) for n in (1, 2)]
    assert made[0].content_id == made[1].content_id
    assert [s["sha256"] for s in made[0].shards] == [s["sha256"] for s in made[1].shards]
    again = datakit.mix(words, tmp_path / "1")
    assert again.verdict == "already complete; nothing was written"
    with pytest.raises(UsageError, match="--overwrite"):
        datakit.mix({**words, "seed": 3}, tmp_path / "1")
    assert datakit.mix({**words, "seed": 3}, tmp_path / "1", overwrite=True).content_id != made[0].content_id


def test_the_plan_comes_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def planned(report: Any) -> None:
        seen.append(report.facts)
        assert not (tmp_path / "m").exists()

    report = datakit.mix([folder / "a", folder / "b"], tmp_path / "m", weights=[0.7, 0.3], planned=planned)
    entry = report.facts["sources"]["a"]
    assert seen == [report.facts]
    assert (entry["asked"], entry["rows"], entry["given"]) == (0.7, 119, round(119 / 169, 6))
    assert abs(entry["expected"] - 0.7 * 169) < 0.1
    assert datakit.load(tmp_path / "m").manifest["plan"]["prepared"]["mix"] == report.facts
    only = datakit.mix([folder / "a", folder / "b"], weights=[0.7, 0.3], plan_only=True)
    assert only.facts == report.facts
    assert only.verdict == "planned; nothing was written"
    Draft202012Validator(all_schemas()["report.json"]).validate(json.loads(json.dumps(only.to_json())))


def test_findings_of_a_plan(folder: Path, tmp_path: Path) -> None:
    sources = {
        "a": {"path": str(folder / "a"), "weight": 500},
        "b": {"path": str(folder / "b"), "weight": 500, "epochs": 3},
        "c": {"path": str(folder / "c"), "weight": 1},
    }
    words = {"sources": sources, "rows": 600, "stop": "restart", "block_size": 100}
    report = datakit.mix(words, tmp_path / "m")
    assert {s.id for s in report.findings} == {"DK821", "DK822", "DK823"}
    assert report.exit_code == 1
    assert not (tmp_path / "m").exists()
    assert "more than epochs = 3" in next(s for s in report.findings if s.id == "DK821").first[0]["note"]
    sources["b"]["epochs"] = 6
    report = datakit.mix(words, tmp_path / "m")
    assert report.exit_code == 0
    assert {s.id for s in report.findings} == {"DK820", "DK822", "DK823"}


def test_rows_and_splits_that_are_not_used_are_told(folder: Path, tmp_path: Path) -> None:
    datakit.split(folder / "a", tmp_path / "parts", test="20 %").raise_for_status()
    parts = {name: len(datakit.load(tmp_path / "parts", split=name)) for name in ("train", "test")}
    sources = {"a": {"path": str(tmp_path / "parts"), "weight": 1}, "b": {"path": str(folder / "b"), "weight": 1}}
    report = datakit.mix({"sources": sources, "rows": 20, "stop": "restart"}, plan_only=True)
    unused = next(s for s in report.findings if s.id == "DK823")
    notes = [entry["note"] for entry in unused.first]
    assert len(notes) == 3
    assert f"split train is taken, not test ({parts['test']} row" in notes[2]
    rows_of_b = len(datakit.load(folder / "b"))
    assert unused.count == parts["train"] - 10 + rows_of_b - 10 + parts["test"]


def test_findings_of_a_plan_fail_the_run_as_asked(folder: Path, tmp_path: Path) -> None:
    sources = {name: {"path": str(folder / name), "weight": weight} for name, weight in (("a", 500), ("c", 1))}
    words = {"sources": sources, "rows": 300, "stop": "restart", "block_size": 10}
    for options in ({"fail_on": "warning"}, {"severity": {"rare-source": "error"}}):
        for plan_only in (True, False):
            seen: list[Any] = []
            report = datakit.mix(words, tmp_path / "m", plan_only=plan_only, planned=seen.append, **options)
            assert (report.exit_code, report.verdict) == (1, "failed by DK822 rare-source")
            assert seen == [report]
        assert not (tmp_path / "m").exists()
    assert datakit.mix(words, tmp_path / "m", severity={"DK822": "off"}, fail_on="warning").exit_code == 0
    for wrong in ({"fail_on": "notes"}, {"severity": {"DK000": "off"}}):
        with pytest.raises(UsageError):
            datakit.mix(words, plan_only=True, **wrong)


def test_columns_that_differ_are_united(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    plain = shards(tmp_path / "plain", [chat(f"p{i}") for i in range(4)])
    rich = shards(
        tmp_path / "rich", [chat(f"r{i}", tools=tools, chat_template_kwargs={"thinking": i}) for i in range(4)]
    )
    datakit.mix([plain, rich], tmp_path / "m").raise_for_status()
    for row in datakit.load(tmp_path / "m"):
        mine = row["messages"][0]["content"].startswith("r")
        assert row["tools"] == (tools if mine else None)
        assert row["chat_template_kwargs"] == ({"thinking": int(row["messages"][0]["content"][1:])} if mine else {})
    with pytest.raises(UsageError, match="filter of 'plain' reads 'tools'"):
        datakit.mix({"sources": {"plain": str(plain), "rich": str(rich)}, "filter": "tools != None"}, tmp_path / "n")


def test_side_columns_outlive_a_mix(tmp_path: Path) -> None:
    one = shards(tmp_path / "one", [{"prompt": f"p{i}", "answer": str(i)} for i in range(4)], to="prompt")
    two = shards(tmp_path / "two", [{"prompt": f"q{i}", "difficulty": i} for i in range(4)], to="prompt")
    datakit.mix([one, two], tmp_path / "m").raise_for_status()
    rows = list(datakit.load(tmp_path / "m"))
    assert {(r["prompt"], r["answer"], r["difficulty"]) for r in rows} == (
        {(f"p{i}", str(i), None) for i in range(4)} | {(f"q{i}", None, i) for i in range(4)}
    )
    datakit.convert(tmp_path / "m", tmp_path / "again").raise_for_status()
    assert list(datakit.load(tmp_path / "again")) == rows
    assert datakit.load(tmp_path / "m").manifest["plan"]["side"].keys() == {"answer", "difficulty"}  # format keeps them
    three = shards(tmp_path / "three", [{"prompt": "x", "answer": 3}], to="prompt")
    with pytest.raises(UsageError, match="the column 'answer' is string in one source and int64 in another"):
        datakit.mix([one, three], tmp_path / "n")


def test_kinds_have_to_agree_or_are_converted(folder: Path, tmp_path: Path) -> None:
    text = shards(tmp_path / "pairs", [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(5)], to="sft")
    words: dict[str, Any] = {"sources": {"a": str(folder / "a"), "pairs": str(text)}, "stop": "all_exhausted"}
    with pytest.raises(UsageError, match="a is sft:messages, pairs is sft:prompt_completion") as caught:
        datakit.mix(words, tmp_path / "m")
    assert 'to = "sft:messages"' in caught.value.hint
    report = datakit.mix({**words, "to": "sft:messages"}, tmp_path / "m")
    assert (report.exit_code, report.rows_out) == (0, 305)
    assert {"q0", "a 0"} <= set(questions(tmp_path / "m"))
    assert {row["dk_mixed_from"] for row in datakit.load(tmp_path / "m").rows(all=True)} == {"a", "pairs"}


def test_sources_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "asistant", "content": "x"}]}\n', "utf-8")
    with pytest.raises(DataFailed, match="'bad.jsonl' cannot be converted on the way: 1 of 1 row is bad"):
        datakit.mix([folder / "a", bad], tmp_path / "m")
    with pytest.raises(UnreadableInput):
        datakit.mix([folder / "a", tmp_path / "missing"], tmp_path / "m")
    with pytest.raises(UsageError, match="named twice"):
        datakit.mix([folder / "a", folder / "a"], tmp_path / "m")
    with pytest.raises(UsageError, match="2 weights for 1 source"):
        datakit.mix([folder / "a"], tmp_path / "m", weights=[1, 2])
    for wrong in (["a", 2], {"a": 1, "b": 2}, "12", [1, True]):
        with pytest.raises(UsageError, match="A list of numbers"):
            datakit.mix([folder / "a", folder / "b"], tmp_path / "m", weights=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no dk_length"):
        datakit.mix([folder / "a"], tmp_path / "m", tokens=100)
    with pytest.raises(UsageError, match="overlap"):
        datakit.mix([folder / "a"], folder / "a" / "m")
    with pytest.raises(UsageError, match="no output"):
        datakit.mix([folder / "a"])
    with pytest.raises(UsageError, match="give 169 rows of the 1,000.*used up: b"):
        datakit.mix([folder / "a", folder / "b"], tmp_path / "m", weights=[0.7, 0.3], rows=1000)


def test_a_glob_names_folders(folder: Path, tmp_path: Path) -> None:
    for name in ("f_a", "f_c"):
        (tmp_path / name).symlink_to(folder / name[-1])
    report = datakit.mix(str(tmp_path / "f_*"), plan_only=True, weights=[2, 1])
    assert [entry["asked"] for entry in report.facts["sources"].values()] == [0.666667, 0.333333]
    assert list(report.facts["sources"]) == ["f_a", "f_c"]
    files = datakit.mix(str(folder / "[bc].jsonl"), plan_only=True)
    assert [entry["available"] for entry in files.facts["sources"].values()] == [57]


def test_splits(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(chat(name)) + "\n", "utf-8")
    both = tmp_path / "both"
    datakit.convert(output=both, split=[f"{n}={tmp_path}/{n}.jsonl" for n in ("train", "test")]).raise_for_status()
    datakit.mix([both], tmp_path / "m").raise_for_status()
    assert questions(tmp_path / "m") == ["train"]
    datakit.mix({"sources": {"x": {"path": str(both), "split": "test"}}}, tmp_path / "n").raise_for_status()
    assert questions(tmp_path / "n") == ["test"]
    with pytest.raises(UsageError, match="no split named 'tset'"):
        datakit.mix({"sources": {"x": {"path": str(both), "split": "tset"}}}, tmp_path / "o")


def test_a_mix_of_a_mix(folder: Path, tmp_path: Path) -> None:
    datakit.mix([folder / "a", folder / "b"], tmp_path / "inner").raise_for_status()
    datakit.mix([tmp_path / "inner", folder / "c"], tmp_path / "outer", stop="all_exhausted").raise_for_status()
    rows = list(datakit.load(tmp_path / "outer").rows(all=True))
    assert Counter(row["dk_mixed_from"] for row in rows) == {"inner": 101, "c": 7}


def test_a_killed_run_goes_on(folder: Path, tmp_path: Path) -> None:
    words = {"sources": {"a": str(folder / "a"), "b": str(folder / "b")}, "order": "window:50", "stop": "all_exhausted"}
    whole = datakit.mix(words, tmp_path / "whole")
    code = (
        "import os, sys, json, datakit\nfrom datakit.output import disk\n"
        "def hook(name, path):\n    if name == 'rename': os._exit(9)\n"
        "disk.hook = hook\ndatakit.mix(json.loads(sys.argv[1]), sys.argv[2])"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(words), str(tmp_path / "m")], check=False)
    assert done.returncode == 9
    assert not (tmp_path / "m").exists()
    assert datakit.mix(words, tmp_path / "m").content_id == whole.content_id


# ---------------------------------------------------------------- formatted rows and tokens


@pytest.fixture(scope="module")
def formatted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`a` and `b` formatted with one tokenizer, `other` with another template; and the tokenizer."""
    from tests.small_tokenizers import chatml, llama

    base = tmp_path_factory.mktemp("formatted")
    own, other = chatml(base / "chatml"), llama(base / "llama")
    for name, tokenizer in (("a", own), ("b", own), ("other", other)):
        source = folder / ("a" if name == "other" else name)
        datakit.format(source, base / name, tokenizer=tokenizer, workers=1).raise_for_status()
    return {"tokenizer": own, "llama": other, **{name: base / name for name in ("a", "b", "other")}}


def test_token_weights_hold_to_a_row(formatted: dict[str, Path], tmp_path: Path) -> None:
    words = [formatted["a"], formatted["b"]]
    report = datakit.mix(words, tmp_path / "m", weights=[0.25, 0.75], tokens=6000, stop="restart", block_size=20)
    rows = list(datakit.load(tmp_path / "m").rows(all=True))
    longest = max(row["dk_length"] for row in rows)
    tokens = Counter[str]()
    for row in rows:
        tokens[row["dk_mixed_from"]] += row["dk_length"]
        assert row["dk_length"] == len(row["input_ids"])
    assert abs(tokens.total() - 6000) <= longest
    assert abs(tokens["a"] - 0.25 * tokens.total()) <= longest
    assert {name: entry["tokens"] for name, entry in report.facts["sources"].items()} == dict(tokens)
    assert report.facts["tokens"] == tokens.total()
    assert datakit.show(tmp_path / "m", row=3).facts["columns"]["input_ids"]


def test_a_plan_without_rows_fails_as_the_mix_does(formatted: dict[str, Path], tmp_path: Path) -> None:
    for plan_only in (True, False):
        report = datakit.mix([formatted["a"]], tmp_path / "m", tokens=1, plan_only=plan_only)
        assert (report.rows_out, report.exit_code, report.verdict) == (0, 1, "no rows")
    assert not (tmp_path / "m").exists()


def test_rows_are_measured_as_they_will_be_formatted(folder: Path, formatted: dict[str, Path], tmp_path: Path) -> None:
    sources = {name: {"path": str(formatted[name]), "weight": 1} for name in "ab"}
    keys = {"tokens": 3000, "stop": "restart"}
    ready = datakit.mix({"sources": sources, **keys}, plan_only=True)
    raw = {name: {"path": str(folder / f"{name}.jsonl"), "weight": 1} for name in "ab"}
    plain = datakit.mix({"sources": raw, **keys}, plan_only=True, tokenizer=formatted["tokenizer"], workers=1)
    counted = [[entry[n] for n in ("rows", "tokens", "given")] for r in (ready, plain) for entry in r.facts["sources"].values()]  # fmt: skip
    assert counted[:2] == counted[2:]


def test_tokens_of_two_tokenizers_do_not_mix(folder: Path, formatted: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another tokenizer and another chat template"):
        datakit.mix([formatted["a"], formatted["other"]], tmp_path / "m")
    with pytest.raises(UsageError, match="different kinds or forms.*\n?.*Format .*/b first, with the tokenizer"):
        datakit.mix([formatted["a"], folder / "b"], tmp_path / "m")
    pairs = [{"prompt": user("q"), "chosen": answer("a"), "rejected": answer(f"b{i}")} for i in range(3)]
    raw = shards(tmp_path / "raw", pairs)
    datakit.format(raw, tmp_path / "pairs", tokenizer=formatted["tokenizer"], workers=1).raise_for_status()
    with pytest.raises(UsageError, match="two methods cannot be mixed"):
        datakit.mix([formatted["a"], tmp_path / "pairs"], tmp_path / "m")


def test_a_tokenizer_has_to_be_that_of_the_lengths(formatted: dict[str, Path], tmp_path: Path) -> None:
    words = [formatted["a"], formatted["b"]]
    assert datakit.mix(words, plan_only=True, tokenizer=formatted["tokenizer"]).exit_code == 0
    with pytest.raises(UsageError, match="was counted with another one"):
        datakit.mix(words, plan_only=True, tokenizer=formatted["llama"])
    with pytest.raises(UsageError, match="no such file"):
        datakit.mix(words, plan_only=True, tokenizer=tmp_path / "none")


def test_a_row_that_cannot_be_measured_is_named(tmp_path: Path, formatted: dict[str, Path]) -> None:
    thought = {"role": "assistant", "content": "a", "reasoning_content": "not printed by this template"}
    rows = [chat("fine"), {"messages": [{"role": "user", "content": "q"}, thought]}]
    folder = shards(tmp_path / "x", rows)
    words = {"sources": {"x": {"path": str(folder)}}, "tokens": 10, "stop": "restart"}
    with pytest.raises(DataFailed, match=r"1 row of 'x' cannot be rendered .*/x.jsonl:2"):
        datakit.mix(words, plan_only=True, tokenizer=formatted["tokenizer"], workers=1)
    left = datakit.mix({**words, "filter": "dk_row < 2"}, plan_only=True, tokenizer=formatted["tokenizer"], workers=1)
    assert left.facts["sources"]["x"]["available"] == 1


def test_a_schedule_by_tokens_and_by_steps(formatted: dict[str, Path], tmp_path: Path) -> None:
    sources = {name: str(formatted[name]) for name in "ab"}
    points = [{"at": 0, "weights": {"a": 1, "b": 0}}, {"at": 1000, "weights": {"a": 0, "b": 1}}]
    words = {"sources": sources, "rows": 200, "stop": "restart", "block_size": 10}
    datakit.mix({**words, "schedule": {"axis": "tokens", "points": points}}, tmp_path / "m").raise_for_status()
    rows = list(datakit.load(tmp_path / "m").rows(all=True))
    sums = list(itertools.accumulate((row["dk_length"] for row in rows), initial=0))
    for start in range(0, 200, 10):
        wanted = "a" if sums[start] < 1000 else "b"
        assert {row["dk_mixed_from"] for row in rows[start : start + 10]} == {wanted}
    points[1]["at"] = 5
    schedule = {"axis": "steps", "rows_per_step": 16, "points": points}
    datakit.mix({**words, "schedule": schedule}, tmp_path / "n").raise_for_status()
    names = [row["dk_mixed_from"] for row in datakit.load(tmp_path / "n").rows(all=True)]
    assert names == ["a"] * 80 + ["b"] * 120


# ---------------------------------------------------------------- the recipe and the command


RECIPE = """
seed = 7
stop = "restart"
rows = 200
block_size = 50
order = "window:16"

[sources.first]
path = "{a}"
weight = 0.8

[sources.second]
path = "{b}"
weight = 0.2
epochs = 4
"""


def test_a_recipe_is_a_file_or_what_it_says(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mix.toml"
    path.write_text(RECIPE.format(a=folder / "a", b=folder / "b"), "utf-8")
    one = datakit.mix(path, tmp_path / "m")
    assert {name: entry["rows"] for name, entry in one.facts["sources"].items()} == {"first": 160, "second": 40}
    body = tomllib.loads(path.read_text("utf-8"))
    assert datakit.mix(body, tmp_path / "n").content_id == one.content_id
    Draft202012Validator(all_schemas()["mix.json"]).validate(body)
    assert datakit.mix(path, plan_only=True, rows=100, weights=[1, 1]).facts["sources"]["first"]["rows"] == 50
    assert not Draft202012Validator(all_schemas()["mix.json"]).is_valid({**body, "blocksize": 3})
    for text, said in (("seed = ", "mix.toml: "), ("seed = 1", "no sources"), ("[sources.a]\npth = 'x'", "sources.a: unknown key 'pth'; did you mean 'path'")):  # fmt: skip
        path.write_text(text, "utf-8")
        with pytest.raises(UsageError) as caught:
            read(path)
        assert said in str(caught.value)
    with pytest.raises(UnreadableInput):
        read(tmp_path / "missing.toml")


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "datakit", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_command(folder: Path) -> None:
    words = ("mix", "a", "b", "--weights", "0.7,0.3")
    shown = run(*words, "--plan-only", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "70.000 %" in shown.stdout
    assert "planned; nothing was written" in shown.stdout
    done = run(*words, "-o", "command", "--json", "--rows", 500, "--stop", "restart", cwd=folder)
    report = json.loads(done.stdout)
    assert (done.returncode, report["rows_out"], report["facts"]["sources"]["a"]["rows"]) == (0, 500, 350)
    assert report["facts"] == datakit.load(folder / "command").manifest["plan"]["prepared"]["mix"]
    again = run(*words, "-o", "plain", "--rows", 500, "--stop", "restart", cwd=folder)
    assert again.stdout.index("plan: 500 rows") < again.stdout.index("1 shard in plain")
    for more in (
        ("--weights", "0.7"),
        ("--stop", "sometime"),
        ("--rows", 10**6),
        ("--weights", "a,b"),
        ("--order", "x"),
    ):
        refused = run(*words, *more, "-o", "no", cwd=folder)
        assert refused.returncode == 2, more
        assert refused.stderr.startswith("error: ")
    assert run("mix", "a", "b", "--tokens", 100, "--plan-only", cwd=folder).returncode == 2


@pytest.mark.corpora
@pytest.mark.skipif(not CORPORA.is_dir(), reason="needs the corpora")
def test_a_real_mixture(tmp_path: Path) -> None:
    """Alpaca, GSM8K and conversations with tools as one mix, 50, 30 and 20 % of the tokens of Qwen2.5."""
    files = {
        "alpaca": ("hiyouga__LLaMA-Factory__data__alpaca_en_demo.json", 0.5),
        "gsm8k": ("openai__grade-school-math__grade_school_math__data__train.jsonl", 0.3),
        "tools": ("hiyouga__LLaMA-Factory__data__glaive_toolcall_en_demo.json", 0.2),
    }
    sources = {n: {"path": str(CORPORA / "sft" / file), "weight": w} for n, (file, w) in files.items()}
    words = {"sources": sources, "to": "sft:messages", "stop": "restart", "tokens": 300_000, "order": "shuffle"}
    report = datakit.mix(words, tmp_path / "m", tokenizer=CORPORA / "tokenizer" / "qwen2_5")
    assert report.exit_code == 0
    for name, (_, weight_) in files.items():
        assert abs(report.facts["sources"][name]["given"] - weight_) < 0.005
    assert report.findings == [] or {s.severity for s in report.findings} <= {"note"}
