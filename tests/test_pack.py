"""Packing: TRL's results where TRL is sound, and laws: no token lost, no row over the length, boundaries kept."""

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import UsageError
from datakit.pack import bins, gather, pack, plan
from datakit.policies import STRATEGIES

quick = settings(deadline=None, derandomize=True, max_examples=200)
sizes = st.integers(1, 20)
lengths = st.lists(st.integers(0, 45), max_size=40)
strategies = st.sampled_from(STRATEGIES)


def table(lengths, large=False):
    """Rows whose tokens are all different, so that each can be followed; every third token is trained."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64 if large else np.int32)
    ids = np.arange(offsets[-1], dtype=np.int32)
    labels = np.where(ids % 3 == 0, ids, -100).astype(np.int32)
    kind = pa.LargeListArray if large else pa.ListArray
    arrays = {
        name: kind.from_arrays(pa.array(offsets), pa.array(x)) for name, x in (("input_ids", ids), ("labels", labels))
    }
    return pa.table(arrays)


def lists(packed: pa.Table, name: str) -> list[list[int]]:
    rows: Any = packed[name].to_pylist()
    return rows


def fitting(lengths, size, strategy):
    return [min(n, size) for n in lengths] if strategy == "bfd" else lengths


@quick
@given(lengths, sizes, strategies)
def test_laws(counts, size, strategy):
    counts = fitting(counts, size, strategy)
    source = table(counts)
    packed = pack(source, size, strategy)
    rows = lists(packed, "input_ids")

    assert sorted(chain(*rows)) == list(range(sum(counts)))
    assert all(0 < len(row) <= size for row in rows)
    assert lists(packed, "labels") == [[i if i % 3 == 0 else -100 for i in row] for row in rows]

    borders = set(np.cumsum([0, *counts]).tolist())
    for row, pieces in zip(rows, lists(packed, "seq_lengths"), strict=True):
        assert sum(pieces) == len(row)
        assert min(pieces) > 0
        for stop, count in zip(np.cumsum(pieces).tolist(), pieces, strict=True):
            piece = row[stop - count : stop]
            assert piece == list(range(piece[0], piece[0] + count)), "a piece is one stretch of one document"
            assert not borders & set(piece[1:]), "no piece runs over the end of a document"
            if strategy == "bfd":
                assert piece[0] in borders
                assert piece[-1] + 1 in borders


@quick
@given(lengths, sizes, strategies)
def test_the_plan_knows_what_it_does(counts, size, strategy):
    counts = fitting(counts, size, strategy)
    packing = plan(counts, size, strategy)
    packed = gather(table(counts), packing)
    rows = [len(row) for row in lists(packed, "input_ids")]
    assert packing.rows == len(rows) == packed.num_rows
    assert packing.tokens == sum(rows) == sum(counts)
    assert packing.fill == pytest.approx(sum(rows) / (len(rows) * size) if rows else 1.0)
    assert packing.cuts == len(packing.length) - sum(n > 0 for n in counts)
    assert (packing.length > 0).all()


@quick
@given(lengths, sizes)
def test_a_histogram_tells_the_number_of_rows(counts, size):
    assert bins(Counter(counts), size) == plan(counts, size, "bfd_split").rows


@quick
@given(lengths, sizes, strategies, st.integers(0, 9), st.integers(0, 9))
def test_a_part_gathers_the_same_rows(counts, size, strategy, first, more):
    counts = fitting(counts, size, strategy)
    packing = plan(counts, size, strategy)
    first = min(first, packing.rows)
    last = min(first + more, packing.rows)
    assert gather(table(counts), packing.part(first, last)).equals(
        pack(table(counts), size, strategy).slice(first, last - first)
    )


@quick
@given(lengths, sizes, strategies, st.data())
def test_slices_chunks_and_large_lists_are_the_same_to_it(counts, size, strategy, data):
    counts = fitting(counts, size, strategy)
    cut = data.draw(st.integers(0, len(counts)))
    whole = pack(table(counts), size, strategy)
    around = table([7, *counts, 3]).slice(1, len(counts))
    chunked = pa.concat_tables([around.slice(0, cut), around.slice(cut)])
    for source in (around, chunked):
        rows = lists(pack(source, size, strategy), "input_ids")
        assert [[i - 7 for i in row] for row in rows] == lists(whole, "input_ids")
    large = pack(table(counts, large=True), size, strategy)
    assert large.to_pydict() == whole.to_pydict()
    assert large.schema.field("input_ids").type == pa.large_list(pa.int32())


def test_types():
    packed = pack(table([3, 2]), 4)
    assert packed.schema == pa.schema([(name, pa.list_(pa.int32())) for name in ("input_ids", "labels", "seq_lengths")])


# The installed TRL


@pytest.fixture(scope="module")
def trl_pack():
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from trl import pack_dataset

    def run(source, size, strategy):
        datasets.disable_progress_bars()
        rows = datasets.Dataset(source)
        packed = pack_dataset(rows, size, strategy, map_kwargs={"batch_size": len(rows), "keep_in_memory": True})
        return packed.with_format(None)[:]

    return run


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seed", range(6))
def test_the_result_is_that_of_trl(trl_pack, strategy, seed):
    random = np.random.default_rng(seed)
    size = int(random.choice([1, 7, 16, 33, 100]))
    counts = random.integers(0, 2 * size + 1 if strategy != "bfd" else size + 1, 400)
    if seed == 5:
        counts[:] = min(5, size)  # one length only: every row is opened by the run itself
    ours = pack(table(counts), size, strategy)
    theirs = trl_pack(table(counts), size, strategy)
    for name in theirs:
        assert ours[name].to_pylist() == theirs[name], name
    assert ("seq_lengths" in theirs) == (strategy != "wrapped")


@quick
@given(lengths.filter(any), sizes)
def test_best_fit_is_that_of_trl_row_by_row(counts, size):
    data_utils = pytest.importorskip("trl.data_utils")
    theirs = data_utils._pack_bfd(table(counts), size, "split")
    assert pack(table(counts), size, "bfd_split").to_pydict() == theirs.to_pydict()


# Defects of other packers


def test_a_document_many_times_the_length_loses_nothing():
    packed = pack(table([30]), 8, "bfd_split")
    assert sorted(chain(*lists(packed, "input_ids"))) == list(range(30))
    assert [len(row) for row in lists(packed, "input_ids")] == [8, 8, 8, 6]
    assert plan([30], 8, "wrapped").rows == 4


def test_bfd_refuses_what_it_would_truncate():
    with pytest.raises(UsageError, match=r"1 of 3 documents .* number 1 with 31; bfd would truncate") as caught:
        pack(table([8, 31, 2]), 8, "bfd")
    assert "bfd_split" in caught.value.hint


def test_every_column_is_packed_in_every_row():
    packed = pack(table([5, 5, 5, 2]), 8, "bfd")
    assert [len(x) for x in lists(packed, "labels")] == [len(x) for x in lists(packed, "input_ids")]


def test_the_order_of_random_numbers_does_not_matter():
    np.random.seed(1)
    first = pack(table([3, 9, 4, 4, 1]), 10)
    np.random.seed(2)
    assert pack(table([3, 9, 4, 4, 1]), 10).equals(first)


def test_rows_are_packed_over_the_whole_set():
    counts = [6, 4] * 1500
    assert plan(counts, 10).fill == 1.0
    assert plan(sorted(counts), 10).rows == 1500


def test_no_documents():
    for strategy in STRATEGIES:
        for counts in ([], [0, 0]):
            assert plan(counts, 8, strategy).to_json() == {
                "size": 8,
                "rows": 0,
                "pieces": 0,
                "cuts": 0,
                "tokens": 0,
                "fill": 1.0,
            }
            assert pack(table(counts), 8, strategy).num_rows == 0


# Wrong calls


def test_wrong_calls_say_what_is_wrong():
    good = table([2, 3])
    flat = pa.table({"input_ids": [1, 2]})
    uneven = pa.table({"input_ids": [[1, 2], [3]], "labels": [[1, 2], [3, 4]]})
    null = pa.table({"input_ids": pa.array([[1], None])})
    unknown: Any = "ffd"
    cases = [
        (lambda: pack(good, 0), "0 tokens"),
        (lambda: pack(good, 8, unknown), "'ffd'"),
        (lambda: pack(flat, 8), "input_ids is int64, not a list"),
        (lambda: pack(uneven, 8), "row 1 has 1 tokens in input_ids, 2 in labels"),
        (lambda: pack(null, 8), "1 null rows"),
        (lambda: pack(pack(good, 8), 8), "packed already"),
        (lambda: pack(good.select([]), 8), "without columns"),
        (lambda: bins({1: 1}, 0), "0 tokens"),
    ]
    for call, words in cases:
        with pytest.raises(UsageError, match=words) as caught:
            call()
        assert caught.value.hint.endswith(".")
