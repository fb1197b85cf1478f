"""Lengths: exact numbers from counts, equal to those of the rows themselves, in any grouping of parts."""

from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import UsageError
from datakit.pack import plan
from datakit.sizes import (
    PERCENTILES,
    Lengths,
    by_source,
    histogram,
    padding,
    report,
    suggest_batch,
    suggest_length,
    summary,
)

quick = settings(deadline=None, derandomize=True, max_examples=200)
sizes = st.one_of(st.integers(0, 40), st.integers(0, 5000))
pairs = st.lists(sizes.flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1, max_size=60)
counted = st.lists(sizes, min_size=1, max_size=60)


def seen(rows) -> Lengths:
    lengths = Lengths()
    lengths.see([n for n, _ in rows], [t for _, t in rows])
    return lengths


# Counting


@quick
@given(pairs, st.integers(0, 60))
def test_parts_add_up_in_any_order_and_travel_as_json(rows, at):
    left, right = seen(rows[:at]), seen(rows[at:])
    other = Lengths.from_json(orjson.loads(orjson.dumps(right.to_json())))
    assert other == right
    other.add(left)
    left.add(right)
    assert left == other == seen(rows)
    assert left.rows.total() == left.trained_rows.total() == len(rows)
    assert left.trained.total() == sum(t for _, t in rows)


@quick
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=40))
def test_sources_are_counted_apart(rows):
    lengths, sources = [n for n, _ in rows], [s for _, s in rows]
    found = by_source(lengths, lengths, sources)
    assert found == {s: seen([(n, n) for n, m in rows if m == s]) for s in set(sources)}


def test_memory_is_one_entry_per_length():
    lengths = Lengths()
    for _ in range(50):
        lengths.see(np.arange(2000) % 7, np.zeros(2000))
    assert {name: len(entries) for name, entries in lengths.to_json().items()} == {
        "rows": 7,
        "trained": 7,
        "trained_rows": 1,
    }
    assert lengths.rows.total() == 100_000


# Summary


@quick
@given(counted)
def test_the_summary_is_that_of_the_rows(rows):
    found = summary(Counter(rows))
    ordered = sorted(rows)
    assert found["total"] == sum(rows)
    assert found["mean"] == pytest.approx(sum(rows) / len(rows), abs=0.006)
    assert (found["min"], found["max"]) == (ordered[0], ordered[-1])
    for name in PERCENTILES:
        enough = Fraction(name) / 100 * len(rows)
        assert found[f"p{name}"] == next(n for n in ordered if sum(m <= n for m in rows) >= enough)


def test_a_percentile_is_not_moved_by_rounding():
    assert summary(Counter(range(1, 1001)))["p99.9"] == 999
    assert summary(Counter(range(1, 101)))["p99"] == 99


# Histogram


@quick
@given(counted, st.integers(1, 20))
def test_bins_hold_every_row_once(rows, limit):
    bars = histogram(Counter(rows), limit)
    for bar in bars:
        assert bar["rows"] == sum(bar["first"] <= n <= bar["last"] for n in rows)
    assert sum(bar["rows"] for bar in bars) == len(rows)
    assert all(a["last"] + 1 == b["first"] for a, b in pairwise(bars))
    assert bars[0]["rows"] > 0
    assert bars[-1]["rows"] > 0
    assert sum(bar["share"] for bar in bars) == pytest.approx(1, abs=1e-4)
    assert len(bars) <= max(limit, max(rows).bit_length() + 1)


def test_a_long_tail_gets_doubling_bins():
    bars = histogram(Counter({100: 50, 300: 20, 801: 1}))
    assert [(bar["first"], bar["last"]) for bar in bars[:2]] == [(64, 127), (128, 255)]
    assert bars[-1] == {"first": 512, "last": 1023, "rows": 1, "share": round(1 / 71, 6)}
    even = histogram(Counter({110: 1, 190: 1, 260: 2}))
    assert [(bar["first"], bar["last"]) for bar in even][:2] == [(110, 119), (120, 129)]
    assert len(even) == 16
    assert even[-1]["rows"] == 2


# Suggestions


@quick
@given(pairs, st.sampled_from([0.5, 0.9, 0.99, 1.0]), st.sampled_from([1, 8, 64]))
def test_the_suggested_length_is_the_smallest_that_keeps_enough(rows, keep, multiple):
    found = suggest_length(seen(rows), keep, multiple)

    def keeps(length):
        share = Fraction(str(keep))
        kept = [(n, t) for n, t in rows if n <= length]
        return len(kept) >= share * len(rows) and sum(t for _, t in kept) >= share * sum(t for _, t in rows)

    length = int(found["length"])
    assert length % multiple == 0 < length
    assert keeps(length)
    assert length == multiple or not keeps(length - multiple)
    over = [(n, t) for n, t in rows if n > length]
    assert found["rows_over"] == len(over)
    assert found["rows_over_share"] == pytest.approx(len(over) / len(rows), abs=1e-6)
    assert found["trained_over"] == sum(t for _, t in over)
    assert found["tokens_over"] == sum(n - length for n, _ in over)


def test_trained_tokens_count_as_much_as_rows():
    rows = [(100, 50)] * 199 + [(4000, 3900)]
    assert suggest_length(seen(rows))["length"] == 4032
    assert suggest_length(seen([(n, 1) for n, _ in rows]))["length"] == 128


def test_a_share_is_not_moved_by_rounding():
    assert 0.55 * 100 > 55
    assert suggest_length(seen([(64, 1)] * 55 + [(640, 1)] * 45), keep=0.55)["length"] == 64


def test_a_batch_within_a_budget():
    counts = Counter({100: 90, 1000: 10})
    found = suggest_batch(counts, 1024, 16_384)
    assert found["rows"] == 16
    packed = plan(list(counts.elements()), 1024)
    assert found["documents"] == pytest.approx(16 * 100 / packed.rows, abs=0.05)
    assert suggest_batch(counts, 1024, 1000)["rows"] == 0


# Padding


@quick
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 35))
def test_padding_is_that_of_the_batches(rows, batch, length):
    found = padding(Counter(rows), length, batch)
    cut = sorted(min(n, length) for n in rows)

    def waste(padded):
        return pytest.approx(1 - sum(cut) / padded if padded else 0, abs=1e-5)

    size = min(batch, len(cut))
    drawn = [max(chosen) for chosen in combinations(cut, size)]
    assert found["random"] == waste(len(cut) * sum(drawn) / len(drawn))
    assert found["grouped"] == waste(
        sum(len(cut[i : i + batch]) * max(cut[i : i + batch]) for i in range(0, len(cut), batch))
    )
    assert found["packed"] == pytest.approx(1 - plan(cut, length).fill, abs=1e-5)
    if len(cut) % batch == 0:
        assert found["grouped"] <= found["random"] + 1e-6


def test_rows_of_one_length_need_no_padding():
    assert padding(Counter({64: 100}), 64, 8) == {"batch": 8, "random": 0, "grouped": 0, "packed": 0}


# The report


@quick
@given(pairs)
def test_the_report_is_plain(rows):
    found = report(seen(rows))
    assert orjson.loads(orjson.dumps(found)) == found
    assert found["rows"] == len(rows)
    assert found["tokens"]["total"] == sum(n for n, _ in rows)
    assert found["trained"]["total"] == sum(t for _, t in rows)
    assert [batch["budget"] for batch in found["batches"]] == [16_384, 32_768]


def test_no_rows():
    assert report(Lengths()) == {"rows": 0}


def test_wrong_calls_say_what_is_wrong():
    one = Counter({5: 1})
    cases = [
        (lambda: summary(Counter()), "no rows"),
        (lambda: histogram(one, 0), "bins of 0"),
        (lambda: suggest_length(Lengths(one, one, one), 0), "0 of the rows"),
        (lambda: suggest_length(Lengths(one, one, one), 0.9, 0), "multiple of 0"),
        (lambda: suggest_batch(one, 64, 0), "token budget of 0"),
        (lambda: padding(one, 0, 1), "length of 0"),
        (lambda: padding(one, 64, 0), "batch of 0"),
    ]
    for call, words in cases:
        with pytest.raises(UsageError, match=words) as caught:
            call()
        assert caught.value.hint.endswith(".")
