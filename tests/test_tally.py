"""The tally: counts that add up in any grouping, travel as JSON, and balance."""

import copy
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import InternalError
from datakit.tally import PLACES, Tally

settings.register_profile("tally", deadline=None, derandomize=True)
quick = settings(settings.get_profile("tally"), max_examples=150)

IDS = ("DK101", "DK202", "DK801")
numbers = st.integers(0, 50)
counters = st.dictionaries(st.sampled_from(IDS), st.integers(0, 9), max_size=3)


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    """A tally as a block leaves it: findings, and a sequence of labels that was stepped through."""
    tally = Tally()
    for name in ("rows_in", "rows_out", "blank", "single", "merged", "groups"):
        setattr(tally, name, draw(numbers))
    tally.rejected.update(draw(counters))
    tally.fanout.update(draw(st.dictionaries(st.sampled_from(["0", "1", "2", "10"]), st.integers(1, 9), max_size=3)))
    tally.counts.update(draw(st.dictionaries(st.sampled_from(["pairs", "label true"]), st.integers(1, 9), max_size=2)))
    for number, id in enumerate(draw(st.lists(st.sampled_from(IDS), max_size=25))):
        place = ["a.jsonl", draw(numbers), f"messages[{number}]", 'é\n"']
        tally.see(id, place.copy)
    for name, value in draw(st.lists(st.tuples(st.sampled_from(["label", "other"]), st.booleans()), max_size=8)):
        tally.step(name, value)
    return tally


def total(*parts: Tally) -> Tally:
    result = Tally()
    for part in parts:
        result.add(copy.deepcopy(part))
    return result


@quick
@given(tallies(), tallies(), tallies())
def test_the_grouping_does_not_matter(a: Tally, b: Tally, c: Tally) -> None:
    left = total(a, b)
    left.add(copy.deepcopy(c))
    right = copy.deepcopy(a)
    right.add(total(b, c))
    assert left == right == total(a, b, c)


@quick
@given(tallies())
def test_nothing_added_changes_nothing(a: Tally) -> None:
    assert total(a) == a
    again = copy.deepcopy(a)
    again.add(Tally())
    assert again == a


@quick
@given(tallies(), tallies())
def test_what_is_added_stays_as_it_was(a: Tally, b: Tally) -> None:
    before = copy.deepcopy(b)
    a.add(b)
    a.see("DK101", lambda: ["late", 1, "", ""])
    a.step("label", True)
    assert b == before


@quick
@given(st.lists(st.booleans(), max_size=30), st.lists(st.integers(0, 30), max_size=3))
def test_changes_are_counted_across_any_cuts(labels: list[bool], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(labels)) for cut in cuts), len(labels)]
    parts = []
    for start, end in pairwise(edges):
        part = Tally()
        for label in labels[start:end]:
            part.step("label", label)
        parts.append(part)
    whole = total(*parts)
    assert whole.counts["label changes"] == sum(a != b for a, b in pairwise(labels))
    assert whole.edges == ({"label": [labels[0], labels[-1]]} if labels else {})


@quick
@given(tallies())
def test_json_and_back(a: Tally) -> None:
    text = orjson.dumps(a.to_json())
    back = Tally.from_json(orjson.loads(text))
    assert back == a
    assert orjson.dumps(back.to_json()) == text
    back.seen["DK101"] += 1  # still a counter
    back.add(a)


def test_the_first_places_are_kept() -> None:
    parts = []
    for block in range(4):
        part = Tally()
        for row in range(4):
            part.see("DK101", [block, row].copy)
        parts.append(part)
    whole = total(*parts)
    assert whole.seen == {"DK101": 16}
    assert whole.places["DK101"] == [[row // 4, row % 4] for row in range(PLACES)]


@st.composite
def balanced(draw: st.DrawFn) -> Tally:
    """A ledger that balances: single rows, merged groups and rejects."""
    tally = Tally(blank=draw(numbers))
    outcomes = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(IDS)), max_size=12))
    for members, gave, id in outcomes:
        tally.rows_in += max(1, members)
        if gave == 0:
            tally.rejected[id] += max(1, members)
            continue
        if members:
            tally.merged += members
            tally.groups += 1
        else:
            tally.single += 1
        tally.fanout[str(gave)] += 1
        tally.rows_out += gave
    return tally


@quick
@given(balanced(), balanced())
def test_ledgers_balance_and_so_does_their_sum(a: Tally, b: Tally) -> None:
    a.balance()
    a.add(b)
    a.balance()
    ledger = a.ledger()
    assert ledger["rows_in"] == ledger["single"] + ledger["merged"] + ledger["rows_rejected"]
    assert ledger["rows_out"] == sum(int(k) * n for k, n in ledger["fanout"].items())


@quick
@given(balanced(), st.sampled_from([1, -1]))
def test_one_count_off_by_one_is_seen(tally: Tally, off: int) -> None:
    def unbalanced(changed: Tally) -> None:
        with pytest.raises(InternalError, match="does not balance"):
            changed.balance()

    for name in ("rows_in", "rows_out", "single", "merged", "groups"):
        changed = copy.deepcopy(tally)
        setattr(changed, name, getattr(tally, name) + off)
        unbalanced(changed)
    for name, keys in (("rejected", {*tally.rejected, "DK999"}), ("fanout", {*tally.fanout, "1", "7"})):
        for key in keys:
            changed = copy.deepcopy(tally)
            counter: Any = getattr(changed, name)
            counter[key] += off
            unbalanced(changed)


def test_a_fanout_of_none_is_still_an_outcome() -> None:
    tally = Tally(rows_in=1, single=1)
    tally.fanout["0"] += 1
    tally.balance()
    tally.fanout["0"] += 1
    with pytest.raises(InternalError):
        tally.balance()
