"""`datakit.stream`: the rows that `mix` writes, in its order, from any row on, for any number of processes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datakit
from datakit.errors import UsageError

Row = dict[str, Any]
ORDERS = ("source", "window:16", "shuffle")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe of two sources whose rows are used more than once; the first has many row groups."""
    base = tmp_path_factory.mktemp("stream")
    for name, count in (("a", 200), ("b", 30)):
        source = base / f"{name}.jsonl"
        turns = [[{"role": "user", "content": f"{name} {i}"}, {"role": "assistant", "content": "x" * (i % 7 + 1)}] for i in range(count)]  # fmt: skip
        source.write_text("".join(json.dumps({"messages": t, "n": i}) + "\n" for i, t in enumerate(turns)), "utf-8")
        datakit.convert(source, base / name, shard_size="1kiB").raise_for_status()
    sources = {"a": {"path": str(base / "a"), "weight": 0.8}, "b": {"path": str(base / "b"), "weight": 0.2}}
    return {"sources": sources, "rows": 300, "stop": "restart", "block_size": 25, "seed": 3}


@pytest.fixture(scope="module", params=ORDERS)
def ordered(request: pytest.FixtureRequest, words: dict[str, Any]) -> tuple[dict[str, Any], list[Row]]:
    """A recipe of each order, and its rows."""
    recipe = {**words, "order": request.param}
    return recipe, list(datakit.stream(recipe))


def test_a_stream_gives_the_rows_that_mix_writes(ordered: tuple[dict[str, Any], list[Row]], tmp_path: Path) -> None:
    recipe, rows = ordered
    datakit.mix(recipe, tmp_path / "m").raise_for_status()
    assert rows == list(datakit.load(tmp_path / "m"))
    assert rows[0].keys() == {"messages"}
    assert isinstance(rows[0]["messages"], list)


def test_every_row_is_one_to_resume_at(ordered: tuple[dict[str, Any], list[Row]]) -> None:
    recipe, rows = ordered
    stream = datakit.stream(recipe)
    states = [stream.state_dict()]
    for _ in rows:
        next(stream)
        states.append(stream.state_dict())
    assert next(stream, None) is None
    for k, state in enumerate(states):
        assert state["position"] == k
        stream.load_state_dict(json.loads(json.dumps(state)))
        assert len(stream) == len(rows) - k
        assert list(stream) == rows[k:]
    assert len(json.dumps(states[-1])) < 200


@given(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4), st.data())
@settings(deadline=None, max_examples=25)
def test_world_sizes_may_change(words: dict[str, Any], worlds: list[int], data: st.DataObject) -> None:
    recipe = {**words, "rows": 60, "order": "window:16"}
    rows = list(datakit.stream(recipe))
    whole = datakit.stream(recipe)
    state, taken = whole.state_dict(), list[Row]()
    for world in worlds:
        whole.load_state_dict(state)
        parts = [whole.part(rank, world) for rank in range(world)]
        steps = data.draw(st.integers(0, 60 // world // len(worlds)))
        for _ in range(steps):
            taken += [next(part) for part in parts]
        assert len({part.position for part in parts}) == 1
        state = parts[-1].state_dict()
    whole.load_state_dict(state)
    assert taken + list(whole) == rows


def test_ranks_divide_the_rows_1_4_2(words: dict[str, Any]) -> None:
    rows = list(datakit.stream(words))
    for world in (1, 4, 2, 7):
        parts = [datakit.stream(words, rank=rank, world_size=world) for rank in range(world)]
        assert [len(part) for part in parts] == [len(rows[rank::world]) for rank in range(world)]
        assert [list(part) for part in parts] == [rows[rank::world] for rank in range(world)]
        assert {part.position for part in parts} == {len(rows)}  # whoever ends first does not give rows again
    with pytest.raises(UsageError, match="rank 2 of 2"):
        datakit.stream(words, rank=2, world_size=2)


def test_resuming_reads_only_the_row_groups_it_needs(words: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = datakit.stream(words)
    stream.load_state_dict({**stream.state_dict(), "position": 230})
    read: list[tuple[str, int]] = []
    whole = pq.ParquetFile.read_row_group

    def watched(self: Any, number: int, **options: Any) -> Any:
        read.append((str(self), number))
        return whole(self, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", watched)
    stream._chunk = 5
    next(stream)
    assert 1 <= len(read) <= 3
    groups = [len(source.shards.groups) for source in stream.sources]
    assert sum(groups) > 20


def test_a_state_of_another_plan_is_refused(words: dict[str, Any]) -> None:
    state = datakit.stream(words).state_dict()
    for change in ({"seed": 4}, {"order": "shuffle"}, {"rows": 301}, {"filter": "dk_row > 1"}):
        with pytest.raises(UsageError, match="another plan"):
            datakit.stream({**words, **change}, state)
    sources = {**words["sources"], "b": {**words["sources"]["b"], "epochs": 1}}
    with pytest.raises(UsageError, match="more than epochs = 1"):
        datakit.stream({**words, "sources": sources})
    for wrong in (
        {},
        {**state, "position": -1},
        {**state, "position": 301},
        {**state, "position": "1"},
        {**state, "position": True},
        "3",
        [1],
        3,
    ):
        with pytest.raises(UsageError, match="not a state"):
            datakit.stream(words, wrong)  # type: ignore[arg-type]


def test_a_plan_is_its_rows_and_not_its_paths(words: dict[str, Any], tmp_path: Path) -> None:
    moved = {name: {**entry, "path": str(tmp_path / name)} for name, entry in words["sources"].items()}
    for name, entry in words["sources"].items():
        (tmp_path / name).symlink_to(entry["path"])
    assert list(datakit.stream({**words, "sources": moved}, {**datakit.stream(words).state_dict(), "position": 298}))


def test_raw_files_stream_too(words: dict[str, Any]) -> None:
    raw = {name: {**entry, "path": f"{entry['path']}.jsonl"} for name, entry in words["sources"].items()}
    stream = datakit.stream({**words, "sources": raw}, workers=1)
    part = stream.part(1, 2)
    del stream  # what was converted stays for the part
    assert list(part) == list(datakit.stream(words))[1::2]


def test_a_stream_travels_to_another_process(words: dict[str, Any]) -> None:
    stream = datakit.stream(words)
    first = [next(stream) for _ in range(7)]
    assert first + list(pickle.loads(pickle.dumps(stream))) == list(datakit.stream(words))


def test_a_stream_needs_little(words: dict[str, Any]) -> None:
    heavy = ("polars", "rich", "click", "torch", "transformers", "datasets")
    code = (
        f"import sys, json, datakit\nfor name in {heavy!r}: sys.modules[name] = None\n"
        "print(sum(1 for _ in datakit.stream(json.loads(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(words)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "300", done.stderr


# ---------------------------------------------------------------- in trainers


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_as_a_torch_dataset(words: dict[str, Any]) -> None:
    data = pytest.importorskip("torch.utils.data")
    rows = list(datakit.stream(words))
    assert list(data.DataLoader(datakit.stream(words).to_torch(), batch_size=None)) == rows
    for workers in (1, 2):
        loader = data.DataLoader(datakit.stream(words).to_torch(), batch_size=None, num_workers=workers)
        assert list(loader) == rows  # workers take turns, and so do ranks
    dataset = datakit.stream(words).to_torch()
    assert list(dataset) == list(dataset) == rows
    given_ = iter(dataset)
    first = [next(given_) for _ in range(11)]
    other = datakit.stream(words).to_torch()
    other.load_state_dict(dataset.state_dict())
    assert first + list(other) == rows
    spawned = data.DataLoader(datakit.stream(words).to_torch(), batch_size=None, num_workers=1, multiprocessing_context="spawn")  # fmt: skip
    assert list(spawned) == rows


def test_as_an_iterable_dataset(words: dict[str, Any]) -> None:
    pytest.importorskip("datasets")
    from datasets.distributed import split_dataset_by_node

    rows = list(datakit.stream(words))
    dataset = datakit.stream(words).to_datasets()
    assert list(dataset) == rows
    given_ = iter(dataset)
    first = [next(given_) for _ in range(123)]
    again = datakit.stream(words).to_datasets()
    again.load_state_dict(dataset.state_dict())
    assert first + list(again) == rows
    for world in (2, 4, 3):
        parts = [list(split_dataset_by_node(datakit.stream(words).to_datasets(), r, world)) for r in range(world)]
        texts = [json.dumps(row) for part in parts for row in part]
        assert sorted(texts) == sorted(map(json.dumps, rows))
        assert max(map(len, parts)) - min(map(len, parts)) <= len(rows) // 32
    rest = datakit.stream(words, {**datakit.stream(words).state_dict(), "position": 290}, rank=1, world_size=2)
    assert list(rest.to_datasets()) == rows[291::2]


# ---------------------------------------------------------------- block_mixture_interleave


def numbers(start: int, count: int) -> list[dict[str, int]]:
    return [{"n": n} for n in range(start, start + count)]


def mixed(*counts: int, **options: Any) -> Any:
    pytest.importorskip("datasets")
    sources = {f"s{i}": numbers(1000 * i, count) for i, count in enumerate(counts)}
    return datakit.block_mixture_interleave(sources, **options)


def taken(rows: Iterator[dict[str, int]], count: int) -> list[int]:
    return [next(rows)["n"] for _ in range(count)]


def test_all_exhausted_ends_and_gives_every_row_once() -> None:
    for counts in ((10, 30), (8, 900), (0, 5)):
        rows = [row["n"] for row in mixed(*counts, block_size=20, stop="all_exhausted")]
        assert sorted(rows) == [1000 * i + n for i, count in enumerate(counts) for n in range(count)]


def test_restart_holds_small_weights() -> None:
    weights = {"s0": 0.9995, "s1": 0.0005}
    rows = taken(iter(mixed(100, 100, weights=weights, block_size=1000)), 20_000)
    assert sum(n >= 1000 for n in rows) == 10


def test_other_stops() -> None:
    rows = [row["n"] for row in mixed(10, 95, block_size=8, stop="first_exhausted")]
    assert rows.count(9) == 1
    assert len(rows) <= 24
    rows = [row["n"] for row in mixed(10, 95, block_size=8, stop="all_exhausted_restart")]
    assert set(rows) == {*range(10), *range(1000, 1095)}
    assert max(rows.count(n) for n in range(1000, 1095)) == 1
    ids = [taken(iter(mixed(50, 50, seed=seed)), 40) for seed in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


def test_datasets_of_any_kind() -> None:
    library = pytest.importorskip("datasets")
    own = library.Dataset.from_list(numbers(0, 20))
    endless = datakit.block_mixture_interleave({"a": own, "b": own.to_iterable_dataset()}, block_size=4)
    assert isinstance(endless, library.IterableDataset)
    rows = taken(iter(endless), 80)
    assert all(rows.count(n) == 4 for n in range(20))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([],), "datasets must be a dict, got list"),
        (({},), "No datasets to mix"),
        (({"a": []}, [1.0]), "weights must be a dict or None"),
        (({"a": []}, {"b": 1.0}), "Missing: \\['a'\\]. Extra: \\['b'\\]"),
        (({"a": []}, {"a": -1.0}), "weight"),
        (({"a": []}, {"a": float("nan")}), "weight"),
        (({"a": []}, None, 0), "block_size"),
        (({"a": []}, None, 10, 1, "restarts"), "stop"),
    ],
)
def test_what_cannot_be_interleaved(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        datakit.block_mixture_interleave(*arguments)


def test_an_empty_dataset_cannot_restart() -> None:
    with pytest.raises(UsageError, match="'s1' is empty and cannot be restarted"):
        taken(iter(mixed(5, 0)), 20)
