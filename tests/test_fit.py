"""Truncation: what each policy keeps, that windows train every turn once, and that the losses told are those made."""

from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datakit.errors import UsageError
from datakit.fit import (
    Loss,
    Shapes,
    Shares,
    Turns,
    cut,
    cut_answers,
    loss,
    window,
)
from datakit.policies import ANSWER_POLICIES, CUTS, POLICIES, Cut
from datakit.schema import IGNORED

quick = settings(deadline=None, derandomize=True, max_examples=300)
limits = st.integers(2, 25)
TIGHT = Shares(0.75, 1)


def ints(values) -> Any:
    return np.array(values, dtype=np.int32)


def row(trained):
    """Ids that tell their position, and labels for the positions that are trained."""
    ids = np.arange(len(trained), dtype=np.int32)
    return ids, np.where(np.array(trained, bool), ids, IGNORED).astype(np.int32)


rows = st.lists(st.booleans(), max_size=60).map(row)


# Cuts


@quick
@given(st.sampled_from(CUTS), rows, limits)
def test_a_cut_keeps_one_stretch_with_its_labels(policy: Cut, source, limit):
    ids, labels = source
    fit = cut(policy, ids, labels, limit, TIGHT)
    assert len(fit.input_ids) == len(fit.labels) == min(len(ids), limit)
    assert fit.cut == len(ids) - len(fit.input_ids)
    start = fit.input_ids[0] if len(fit.input_ids) else 0
    assert fit.input_ids.tolist() == list(range(start, start + len(fit.input_ids)))
    assert fit.labels.tolist() == labels[fit.input_ids].tolist()
    assert fit.input_ids.dtype == fit.labels.dtype == np.int32
    assert fit.trains == any(label != IGNORED for label in fit.labels.tolist()[1:])


def test_which_end_is_kept():
    ids, labels = row([0] * 6 + [1] * 6)
    assert cut("keep_start", ids, labels, 8).input_ids.tolist() == [*range(8)]
    assert cut("keep_end", ids, labels, 8).input_ids.tolist() == [*range(4, 12)]
    assert cut("per_part", ids, labels, 8, TIGHT).input_ids.tolist() == [*range(4, 12)]
    assert cut("per_part", ids, labels, 8, Shares(0.5, 1)).input_ids.tolist() == [*range(2, 10)]
    assert cut("per_part", ids, labels, 8, Shares(1.0, 3)).input_ids.tolist() == [*range(3, 11)]


def test_a_cut_that_leaves_nothing_to_train_says_so():
    ids, labels = row([0] * 6 + [1] * 2)
    fit = cut("keep_start", ids, labels, 6)
    assert (len(fit.input_ids), fit.trains) == (6, False)
    ids, labels = row([0, 0, 1, 0])
    assert not cut("keep_end", ids, labels, 2).trains, "the first token is predicted from nothing"
    assert cut("keep_end", ids, labels, 3).trains


def test_a_cut_answer_does_not_end_with_the_end_token():
    end = 99
    ids = ints([1, 2, 3, 4, 5, end])
    labels = ints([IGNORED, 2, 3, 4, 5, end])
    for policy in ("keep_start", "per_part"):
        assert end not in cut(policy, ids, labels, 4, Shares(0.75, 1)).input_ids
    answers = cut_answers("per_part", ints([1, 2]), [ints([3, 4, 5, end]), ints([6, end])], 5, Shares(0.6, 2))
    assert [a.tolist() for a in answers.answers] == [[3, 4, 5], [6, end]]
    assert answers.cut == [1, 0]


# Prompts with answers

parts = st.lists(st.integers(0, 3), max_size=40).map(ints)


@quick
@given(parts, st.lists(parts, min_size=1, max_size=3), limits, st.floats(0.1, 1), st.integers(0, 24))
def test_prompt_and_answers(prompt, answers, limit, share, prompt_min):
    shares = Shares(share, prompt_min)
    assume(min(int(share * limit), limit - prompt_min) >= 1)
    fit = cut_answers("per_part", prompt, answers, limit, shares)
    assert len(fit.prompt) + max(map(len, fit.answers)) <= limit
    assert fit.prompt.tolist() == prompt[fit.prompt_cut :].tolist(), "the prompt keeps its end"
    for was, now, gone in zip(answers, fit.answers, fit.cut, strict=True):
        assert now.tolist() == was[: len(was) - gone].tolist(), "an answer keeps its start"
        assert len(now) >= min(len(was), shares.answer_cap(limit)), "an answer has its share"
    assert len(fit.prompt) >= min(len(prompt), prompt_min), "the prompt has its minimum"
    if len(prompt) + max(map(len, answers)) >= limit:
        assert len(fit.prompt) + max(map(len, fit.answers)) == limit, "no room is wasted"
    if sum(fit.cut) and fit.prompt_cut:
        assert max(map(len, fit.answers)) == shares.answer_cap(limit)


@quick
@given(parts, parts, limits)
def test_one_answer_is_cut_as_a_row_with_its_labels_is(prompt, answer, limit):
    ids = np.concatenate((prompt, answer))
    labels = np.concatenate((np.full(len(prompt), IGNORED, np.int32), answer))
    for policy in ("keep_start", "per_part"):
        fit = cut_answers(policy, prompt, [answer], limit, TIGHT)
        assert (
            np.concatenate((fit.prompt, *fit.answers)).tolist()
            == cut(policy, ids, labels, limit, TIGHT).input_ids.tolist()
        )
        assert fit.trains == cut(policy, ids, labels, limit, TIGHT).trains


def test_a_preference_that_a_cut_has_ended():
    prompt, chosen, rejected = ints([1]), ints([5, 6, 7, 8]), ints([5, 6, 7, 9])
    assert cut_answers("keep_start", prompt, [chosen, rejected], 4).alike
    assert not cut_answers("keep_start", prompt, [chosen, rejected], 5).alike
    assert not cut_answers("keep_start", prompt, [chosen, chosen], 4).alike, "they were never different"
    assert not cut_answers("keep_start", ints(range(9)), [chosen, rejected], 4).trains


# Windows


@st.composite
def conversations(draw):
    """Labels, turns and how many are fixed; turns of a few tokens, trained in part, whole or not at all."""
    before = draw(st.integers(0, 2))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=14))
    turns = (before + np.cumsum([0, *sizes[:-1]])).tolist()
    trained = [False] * before
    for size in sizes:
        header = draw(st.integers(0, size)) if draw(st.booleans()) else size
        trained += [False] * header + [True] * (size - header)
    return row(trained), turns, draw(st.integers(0, min(2, len(sizes))))


contexts = st.sampled_from([0.0, 0.3, 0.5, 0.9])


@quick
@given(conversations(), limits, contexts)
def test_windows_train_every_token_once(conversation, limit, context):
    (ids, labels), turns, fixed = conversation
    plan = window(labels, turns, fixed, limit, context)
    fits = plan.rows(ids, labels)
    head = turns[fixed] if fixed < len(turns) else len(ids)
    assert plan.head == head

    told = {i for first, last in plan.lost for i in range(first, last)}
    trained = Counter(fit.input_ids[i] for fit in fits for i in np.flatnonzero(fit.labels != IGNORED).tolist())
    assert trained == Counter(i for i in ids.tolist() if labels[i] != IGNORED and i not in told)
    borders = {0, *turns, len(ids)}
    for fit, span in zip(fits, plan.spans, strict=True):
        assert len(fit.input_ids) <= limit
        assert fit.input_ids.tolist() == [*range(head), *range(span.first, span.last)]
        assert {span.first, span.last} <= borders, "no turn is cut"
        assert all(
            label in (IGNORED, id) for id, label in zip(fit.input_ids.tolist(), fit.labels.tolist(), strict=True)
        )
        assert fit.cut == len(ids) - len(fit.input_ids)


@quick
@given(conversations(), limits, contexts)
def test_only_what_cannot_fit_is_reported(conversation, limit, context):
    (ids, labels), turns, fixed = conversation
    plan = window(labels, turns, fixed, limit, context)
    if len(ids) <= limit:
        assert (len(plan.spans), plan.lost) == (1, [])
        assert plan.rows(ids, labels)[0].labels.tolist() == labels.tolist()
    for first, last in plan.lost:
        assert (labels[first:last] != IGNORED).any()
        assert first == 0 or plan.head + last - first > limit
        assert first > 0 or last > limit or plan.head == 0


@quick
@given(conversations(), limits, contexts)
def test_a_window_has_as_much_of_the_past_as_fits(conversation, limit, context):
    (ids, labels), turns, fixed = conversation
    plan = window(labels, turns, fixed, limit, context)
    if len(ids) <= limit:
        return
    for span in plan.spans:
        earlier = [turn for turn in turns if plan.head <= turn < span.first]
        assert not earlier or plan.head + span.last - earlier[-1] > limit
        if span.last > plan.head:
            final = max(turn for turn in turns if turn < span.last)
            assert (labels[final : span.last] != IGNORED).any(), "a window ends with a trained turn"


def test_windows_of_a_known_conversation():
    # system 2, then four exchanges of question 2 and answer 3
    trained = [0, 0] + [0, 0, 1, 1, 1] * 4
    ids, labels = row(trained)
    turns = [0, 2, 4, 7, 9, 12, 14, 17, 19]
    plan = window(labels, turns, 1, 12, 0.5)
    assert plan.spans == [(2, 12, 4), (7, 17, 14), (12, 22, 19)]
    assert [fit.input_ids.tolist()[:3] for fit in plan.rows(ids, labels)] == [[0, 1, 2], [0, 1, 7], [0, 1, 12]]
    assert plan.cold == 0
    apart = window(labels, turns, 1, 12, 0.0)
    assert apart.spans == [(2, 12, 4), (12, 22, 14)]
    assert apart.cold == 0, "each answer stands with its question"
    whole = window(labels, turns, 1, 22)
    assert whole.spans == [(2, 22, 2)]
    assert whole.cold == 0
    narrow = window(labels, turns, 1, 5)
    assert [span[:2] for span in narrow.spans] == [(4, 7), (9, 12), (14, 17), (19, 22)]
    assert narrow.cold == 4, "no answer stands with its question"
    assert window(labels, turns, 1, 4).lost == [(4, 7), (9, 12), (14, 17), (19, 22)]


def test_a_head_that_is_trained_or_does_not_fit():
    ids, labels = row([0, 1, 0, 0, 0, 0, 1, 1, 1])
    plan = window(labels, [0, 2, 6], 1, 4)
    assert plan.spans == [(2, 2, 2)]
    assert plan.lost == [(6, 9)]
    assert plan.rows(ids, labels)[0].labels.tolist() == [IGNORED, 1]
    assert window(labels, [0, 2, 6], 1, 1).lost == [(0, 2), (6, 9)]
    assert window(labels, [0, 2, 6], 1, 1).spans == []


# Losses


def told(policy, shapes, limit, context=0.5):
    return sum(loss(policy, shapes, limit, TIGHT, context).values(), Loss())


def made(policy, sources, limit):
    """The losses of `error`, `drop` and the cuts, row by row."""
    total = Loss()
    for ids, labels in sources:
        trained = int((labels != IGNORED).sum())
        over = len(ids) > limit
        total += Loss(rows=1, over=over, trained=trained)
        if not over:
            total += Loss(rows_out=1, tokens_out=len(ids))
        elif policy in ("error", "drop"):
            total += Loss(dropped=1, trained_lost=trained)
        else:
            fit = cut(policy, ids, labels, limit, TIGHT)
            if not fit.trains:
                total += Loss(cut=1, emptied=1, trained_lost=trained)
                continue
            kept = int((fit.labels != IGNORED).sum())
            spans = "".join(map(str, (labels != IGNORED).astype(int))).rstrip("0")
            end = len(spans)
            last = set(range(spans.rfind("0") + 1, end))
            total += Loss(cut=1, rows_out=1, tokens_out=len(fit.input_ids), trained_lost=trained - kept)
            total += Loss(last_cut=not last <= set(fit.input_ids.tolist()))
    return total


def shapes_of(sources, **more):
    labels = np.concatenate([labels for _, labels in sources]) if sources else ints([])
    return Shapes.of_labels(labels, np.cumsum([0, *(len(ids) for ids, _ in sources)]), **more)


@quick
@given(st.lists(rows, max_size=8), limits, st.sampled_from(("error", "drop", *CUTS)))
def test_the_loss_told_is_the_loss_made(sources, limit, policy):
    assert told(policy, shapes_of(sources), limit) == made(policy, sources, limit)


@quick
@given(st.lists(st.tuples(parts, parts, parts), max_size=6), limits, st.sampled_from(["keep_start", "per_part"]))
def test_the_loss_of_preferences(pairs, limit, policy: Cut):
    total = Loss()
    for prompt, *answers in pairs:
        trained = sum(map(len, answers))
        over = len(prompt) + max(map(len, answers)) > limit
        fit = cut_answers(policy, prompt, answers, limit, TIGHT)
        out = fit.trains or not over
        kept = sum(map(len, fit.answers)) * out
        total += Loss(
            1, over, 0, over, not out, over and out and any(fit.cut), out, trained=trained, trained_lost=trained - kept
        )
        total += Loss(tokens_out=out * sum(len(fit.prompt) + len(answer) for answer in fit.answers))
    prompts = [len(prompt) for prompt, *_ in pairs]
    shapes = Shapes.of_answers(prompts, np.array([[len(a), len(b)] for _, a, b in pairs]).reshape(-1, 2))
    assert told(policy, shapes, limit) == total


@quick
@given(st.lists(conversations(), max_size=5), limits, contexts)
def test_the_loss_of_windows(conversations, limit, context):
    total = Loss()
    for (ids, labels), turns, fixed in conversations:
        over = len(ids) > limit
        plan = window(labels, turns, fixed, limit, context)
        fits = plan.rows(ids, labels)
        trained = np.flatnonzero(labels != IGNORED)
        kept = sum(int((fit.labels != IGNORED).sum()) for fit in fits)
        last_cut = bool(len(fits) and any(first <= trained[-1] < last for first, last in plan.lost))
        total += Loss(1, over, 0, over, not fits, last_cut, len(fits), sum(len(fit.input_ids) for fit in fits))
        total += Loss(trained=len(trained), trained_lost=len(trained) - kept)
    turns = Turns(
        np.array([turn for _, turns, _ in conversations for turn in turns], np.int64),
        np.cumsum([0, *(len(turns) for _, turns, _ in conversations)]),
        np.array([fixed for _, _, fixed in conversations], np.int64),
    )
    shapes = shapes_of([source for source, _, _ in conversations], turns=turns)
    assert told("window", shapes, limit, context) == total


@quick
@given(st.lists(st.tuples(rows, st.integers(0, 2)), max_size=8), limits, st.sampled_from(CUTS), st.integers(0, 8))
def test_losses_of_sources_and_of_blocks_add_up(pairs, limit, policy, at):
    sources = [source for source, _ in pairs]
    numbers = [number for _, number in pairs]
    whole = loss(policy, shapes_of(sources, source=numbers), limit, TIGHT)
    assert whole == {n: made(policy, [s for s, m in pairs if m == n], limit) for n in sorted(set(numbers))}
    assert told(policy, shapes_of(sources[:at]), limit) + told(policy, shapes_of(sources[at:]), limit) == sum(
        whole.values(), Loss()
    )


def test_labels_as_they_lie_in_a_slice():
    _, labels = row([1, 1, 0, 1, 1, 1, 0])
    shapes = Shapes.of_labels(labels, [1, 3, 3, 5, 7])
    assert shapes.lengths.tolist() == [2, 0, 2, 2]
    spans = zip(shapes.owner.tolist(), shapes.first.tolist(), shapes.last.tolist(), strict=True)
    assert list(spans) == [(0, 0, 1), (2, 0, 2), (3, 0, 1)], "a span ends with its row"


def test_a_loss_is_plain():
    assert list(Loss().to_json()) == [
        *("rows", "over", "dropped", "cut", "emptied", "last_cut", "rows_out", "tokens_out", "trained", "trained_lost")
    ]
    (found,) = loss("drop", Shapes.of_answers([3, 3], [[2], [9]]), 6).values()
    assert found == Loss(rows=2, over=1, dropped=1, rows_out=1, tokens_out=5, trained=11, trained_lost=9)
    assert all(type(value) is int for value in found.to_json().values())


# Wrong calls


def test_wrong_calls_say_what_is_wrong():
    ids, labels = row([0, 1, 1])
    pairs = Shapes.of_answers([3], [[2, 9]])
    unknown: Any = "middle"
    cases = [
        (lambda: cut(unknown, ids, labels, 2), "'middle' cannot be used"),
        (lambda: cut("keep_end", ids, labels, 0), "0 tokens"),
        (lambda: cut("per_part", ids, labels, 2), "of 2 tokens none are left for an answer"),
        (lambda: cut("per_part", ids, labels, 2, Shares(0.0)), "share of 0"),
        (lambda: cut_answers("keep_end", ids, [ids], 2), "'keep_end'"),
        (lambda: window(labels, [0, 2, 2], 1, 2), "do not ascend"),
        (lambda: window(labels, [0, 3], 1, 2), "do not ascend"),
        (lambda: window(labels, [-1, 2], 1, 2), "do not ascend"),
        (lambda: window(labels, [0, 2], 3, 2), "3 of 2 turns"),
        (lambda: window(labels, [0, 2], 1, 2, 1.0), "context of 1"),
        (lambda: loss("window", shapes_of([(ids, labels)]), 2), "where turns begin"),
        (lambda: loss("window", pairs, 2), "'window'"),
        (lambda: loss("keep_end", pairs, 2), "'keep_end'"),
    ]
    for call, words in cases:
        with pytest.raises(UsageError, match=words) as caught:
            call()
        assert caught.value.hint.endswith(".")


def test_the_policies_are_told_apart():
    assert set(CUTS) | {"error", "drop", "window"} == set(POLICIES) > set(ANSWER_POLICIES)
    assert get_args(Cut) == CUTS
