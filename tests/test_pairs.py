"""unpair and pair: there and back without a change, whatever the order; and what pairs say about one another."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from itertools import combinations, count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datakit
from datakit.checks.kto import weight_bounds
from datakit.errors import UsageError
from datakit.pairing import rows as pairing_rows
from datakit.pairing.contents import as_ids, hashes, numbered
from datakit.pairing.relation import Relation
from datakit.pairing.selection import STRATEGIES, select
from tests.conversations import CORPORA

quick = settings(deadline=None, derandomize=True, max_examples=100)

ORDERS = ("pair", "blocked", "shuffle")


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def answer(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


def texts(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"q{number}?", "chosen": f"good {number}", "rejected": f"bad {number}", **more}


def chats(number: int, **more: Any) -> dict[str, Any]:
    pair = texts(number)
    sides = {side: answer(pair[side]) for side in ("chosen", "rejected")}
    return {"prompt": user(pair["prompt"]), **sides, **more}


RICH = [
    chats(1, tools=[tool("add")], note="é \n\t \u2028"),
    chats(2, chat_template_kwargs={"enable_thinking": False}),
    {"prompt": user("q3?"), "chosen": answer("a") + user("b") + answer("c"), "rejected": answer("-")},
    chats(4, score=0.1, rest=[1, None, {"x": 1e300}]),
    chats(4, score=0.2),
    chats(2, chat_template_kwargs={"enable_thinking": True}),
    chats(4, score=0.1),
]
"""Two rows with one content and different dk_meta among them, and one prompt with different arguments."""


class Folder:
    """Runs verbs in a folder of its own; every output gets a name."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, count()

    def new(self) -> Path:
        return self.path / f"out{next(self.number)}"

    def shards(self, *rows: dict[str, Any], **options: Any) -> Path:
        source, out = self.new().with_suffix(".jsonl"), self.new()
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        report = datakit.convert(source, out, workers=1, **options)
        assert report.exit_code == 0, report.to_json()
        return out

    def unpair(self, folder: Path | list[Path], **options: Any) -> tuple[Path, datakit.Report]:
        out = self.new()
        return out, datakit.unpair(folder, out, **options)

    def pair(self, folder: Path | list[Path], **options: Any) -> tuple[Path, datakit.Report]:
        out = self.new()
        return out, datakit.pair(folder, out, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def rows_of(folder: Path, split: str | None = None) -> list[dict[str, Any]]:
    return list(datakit.load(folder, split=split).rows(all=True))


def found(report: datakit.Report) -> dict[str, Any]:
    return {summary.id: summary for summary in report.findings}


def content(row: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in row.items() if not name.startswith("dk_")}, sort_keys=True)


def same(one: Path, other: Path) -> None:
    """Every column of every row, types included."""
    a, b = datakit.load(one), datakit.load(other)
    assert a.schema == b.schema
    assert a.to_arrow().equals(b.to_arrow())


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("rows", "to"), [(RICH, "preference:messages"), ([texts(n) for n in range(9)], "preference")])
def test_unpair_then_pair_gives_back_what_was(folder, rows, to, order):
    prefs = folder.shards(*rows, to=to)
    labelled, report = folder.unpair(prefs, order=order, seed=3)
    assert (report.exit_code, report.rows_in, report.rows_out) == (0, len(rows), 2 * len(rows))
    assert report.ledger["fanout"] == {"2": len(rows)}
    assert datakit.verify(labelled).exit_code == 0
    again, report = folder.pair(labelled)
    assert (report.rows_in, report.rows_out, report.rows_rejected) == (2 * len(rows), len(rows), 0)
    assert report.ledger["merged"] == 2 * len(rows)
    if order != "shuffle":
        same(prefs, again)
        return
    chosen = [row["dk_row"] for row in rows_of(labelled) if row["dk_side"] == "chosen"]
    assert [row["dk_row"] for row in rows_of(again)] == chosen  # the order of the chosen rows
    assert sorted(chosen) != chosen
    by_row = {row["dk_row"]: row for row in rows_of(prefs)}
    assert rows_of(again) == [by_row[row] for row in chosen]


values = st.text(st.characters(codec="utf-8"), max_size=6)
pairs: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["a", "b"]) | values, "chosen": values, "rejected": values},
    optional={"kept": st.none() | st.integers(-9, 9) | values},
)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(
    rows=st.lists(pairs, min_size=1, max_size=12),
    order=st.sampled_from(ORDERS),
    form=st.sampled_from(["strings", "messages"]),
)
def test_any_pairs_there_and_back(tmp_path_factory, rows, order, form):
    folder = Folder(tmp_path_factory.mktemp("pairs"))
    options = {"format": "dpo", "to": f"preference:{form}", "on_bad_row": "quarantine", "max_bad": "100 %"}
    prefs = folder.shards({"prompt": "a", "chosen": "b", "rejected": "c"}, *rows, **options)
    labelled, _ = folder.unpair(prefs, order=order)
    again, _ = folder.pair(labelled)
    if order == "shuffle":
        key = lambda row: json.dumps(row, sort_keys=True)  # noqa: E731
        assert sorted(rows_of(again), key=key) == sorted(rows_of(prefs), key=key)
    else:
        same(prefs, again)


def test_new_rows_keep_everything_else(folder):
    prefs = folder.shards(*RICH, to="preference:messages")
    labelled, _ = folder.unpair(prefs)
    for pair, chosen, rejected in zip(rows_of(prefs), rows_of(labelled)[::2], rows_of(labelled)[1::2], strict=True):
        for side, label, row in (("chosen", True, chosen), ("rejected", False, rejected)):
            gone = {"completion", "label", "dk_id", "dk_pair_id", "dk_side"}
            assert {k: v for k, v in row.items() if k not in gone} == {
                k: v for k, v in pair.items() if k not in {"chosen", "rejected", "dk_id"}
            }
            assert (row["completion"], row["label"]) == (pair[side], label)
            assert (row["dk_pair_id"], row["dk_side"]) == (pair["dk_id"], side)
    assert chosen.keys() >= {"tools", "chat_template_kwargs", "dk_meta"}


@pytest.mark.parametrize("to", ["preference:messages", "preference:strings"])
def test_ids_are_those_that_convert_gives(folder, to):
    rows = RICH[:2] + RICH[3:] if to == "preference:messages" else [texts(n) for n in range(4)]
    labelled, _ = folder.unpair(folder.shards(*rows, to=to))
    crossed, _ = folder.pair(labelled, by="prompt")
    for made in (labelled, crossed):
        out = folder.new()
        assert datakit.convert(made, out, workers=1).exit_code == 0
        assert [row["dk_id"] for row in rows_of(out)] == [row["dk_id"] for row in rows_of(made)]


def test_whole_conversations_are_split_as_convert_splits_them(folder):
    implicit = folder.shards(*RICH[:3], to="preference:implicit")
    explicit = folder.shards(*RICH[:3], to="preference:messages")
    a, _ = folder.unpair(implicit)
    b, _ = folder.unpair(explicit)
    drop = {"dk_pair_id", "dk_source"}
    assert [{k: v for k, v in row.items() if k not in drop} for row in rows_of(a)] == [
        {k: v for k, v in row.items() if k not in drop} for row in rows_of(b)
    ]


@pytest.mark.parametrize("order", ORDERS)
def test_a_conversation_without_a_shared_prompt_fails_the_run(folder, order):
    alike = {"chosen": answer("a"), "rejected": answer("a")}
    whole = {"chosen": user("q") + answer("a"), "rejected": user("q") + answer("b")}
    implicit = folder.shards(whole, alike, to="preference:implicit", severity={"DK401": "note"})
    out, report = folder.unpair(implicit, order=order)
    assert (report.exit_code, report.rejected, report.rows_in) == (1, {"DK403": 1}, 2)
    assert not out.exists()


def test_splits_stay_apart(folder, tmp_path):
    for name, numbers in (("train", range(3)), ("test", range(3, 5))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(texts(n)) + "\n" for n in numbers))
    prefs = folder.new()
    splits = [f"{name}={tmp_path}/{name}.jsonl" for name in ("train", "test")]
    datakit.convert([], prefs, split=splits, workers=1).raise_for_status()
    labelled, report = folder.unpair(prefs, order="shuffle")
    assert [(s["split"], s["rows"]) for s in report.shards] == [("train", 6), ("test", 4)]
    assert {row["prompt"] for row in rows_of(labelled, "test")} == {"q3?", "q4?"}
    again, report = folder.pair(labelled)
    assert [(s["split"], s["rows"]) for s in report.shards] == [("train", 3), ("test", 2)]
    assert {row["prompt"] for row in rows_of(again, "test")} == {"q3?", "q4?"}


def test_folders_with_different_columns_are_united(folder):
    plain, rich = folder.shards(chats(1), to="preference:messages"), folder.shards(RICH[0], RICH[1])
    labelled, report = folder.unpair([plain, rich])
    assert [entry["rows"] for entry in report.inputs] == [1, 2]
    rows = rows_of(labelled)
    assert [row.get("tools") for row in rows[::2]] == [None, RICH[0]["tools"], None]
    assert datakit.convert(labelled, folder.new(), workers=1).exit_code == 0
    again, _ = folder.pair(labelled)
    assert [content(row) for row in rows_of(again)][1:] == [content(row) for row in rows_of(rich)]


# ---------------------------------------------------------------- orders


def test_orders(folder):
    prefs = folder.shards(*(texts(n) for n in range(30)))
    pair, report = folder.unpair(prefs)
    assert [row["label"] for row in rows_of(pair)] == [True, False] * 30
    assert "DK505" not in found(report)
    blocked, report = folder.unpair(prefs, order="blocked")
    assert [row["label"] for row in rows_of(blocked)] == [True] * 30 + [False] * 30
    assert "labels change 1 times" in found(report)["DK505"].first[0]["note"]
    shuffled, report = folder.unpair(prefs, order="shuffle")
    assert "DK505" not in found(report)
    assert sorted(map(content, rows_of(shuffled))) == sorted(map(content, rows_of(pair)))
    same(shuffled, folder.unpair(prefs, order="shuffle")[0])
    other, _ = folder.unpair(prefs, order="shuffle", seed=1)
    assert rows_of(other) != rows_of(shuffled)


def test_rows_are_gathered_window_by_window(folder, monkeypatch):
    """Many row groups and small windows give the same rows as one that holds everything."""
    prefs = folder.shards(*(texts(n, n=n) for n in range(200)), shard_size="2kB")
    assert len(datakit.load(prefs).groups) > 4
    whole, _ = folder.unpair(prefs, order="shuffle")
    monkeypatch.setattr(pairing_rows, "WINDOW", 1)
    parts, _ = folder.unpair(prefs, order="shuffle")
    assert rows_of(parts) == rows_of(whole)
    assert len(datakit.load(parts).groups) > 4
    again, _ = folder.pair(parts)
    assert sorted(map(content, rows_of(again))) == sorted(map(content, rows_of(prefs)))


def test_classes_and_weights_are_told(folder):
    prefs = folder.shards(*(texts(n) for n in range(3)))
    labelled, report = folder.unpair(prefs)
    told = {"desirable": 3, "undesirable": 3, "desirable_weight": [1.0, 1.33], "undesirable_weight": [0.75, 1.0]}
    assert report.facts["unpaired"] == told
    assert datakit.load(labelled).manifest["plan"]["prepared"]["unpaired"] == told


@quick
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_weights_keep_the_classes_between_one_and_four_thirds(good, bad):
    (low, high), (lower, upper) = weight_bounds(good, bad)
    for weight, ratio in ((low, 1), (high, 1.33)):
        assert abs(weight * good - ratio * bad) <= 0.005 * good + 1e-9
    for weight, ratio in ((lower, 1.33), (upper, 1)):
        assert abs(ratio * weight * bad - good) <= 0.005 * 1.33 * bad + 1e-9


def test_what_is_done_is_not_done_again(folder):
    prefs = folder.shards(texts(1))
    out, first = folder.unpair(prefs)
    assert "already complete" in datakit.unpair(prefs, out).verdict
    with pytest.raises(UsageError, match="made with other inputs or options"):
        datakit.unpair(prefs, out, order="blocked")
    assert datakit.unpair(prefs, out, order="blocked", overwrite=True).content_id != first.content_id


# ---------------------------------------------------------------- which rows become pairs


def kto(prompt: str, completion: str, label: bool, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label, **more}


def rejects_of(folder: Path) -> list[tuple[int, str]]:
    lines = [line for path in sorted((folder / "rejects").iterdir()) for line in path.read_text("utf-8").splitlines()]
    return [(reject["row"], reject["rule"]) for reject in map(json.loads, lines)]


def test_rows_without_a_partner_are_listed(folder):
    labelled, _ = folder.unpair(folder.shards(*(texts(n) for n in range(4))))
    rows = rows_of(labelled)
    kept = [row for at, row in enumerate(rows) if at not in (1, 4)]
    part = folder.shards(*(kto(r["prompt"], r["completion"], r["label"], i=r["dk_row"]) for r in kept))
    out, report = folder.pair(part, by="prompt")
    assert [row["prompt"] for row in rows_of(out)] == ["q1?", "q3?"]
    assert report.rejected == {"DK413": 2}
    assert report.facts["paired"]["left"] == {"DK413": 2}
    assert rejects_of(out) == [(1, "DK413"), (4, "DK413")]
    assert report.ledger["rows_in"] == 6 == report.ledger["merged"] + report.ledger["rows_rejected"]


def test_by_prompt_every_good_answer_meets_every_bad_one(folder):
    rows = [kto("q", "a", True), kto("p", "z", True), kto("q", "b", False), kto("q", "c", True), kto("q", "d", False)]
    out, report = folder.pair(folder.shards(*rows, format="kto"))
    made = [(row["chosen"], row["rejected"], row["dk_row"]) for row in rows_of(out)]
    assert made == [("a", "b", 1), ("a", "d", 1), ("c", "b", 4), ("c", "d", 4)]
    assert report.ledger | {"rejected": {"DK413": 1}} == report.ledger
    assert report.ledger["fanout"] == {"4": 1}
    assert rows_of(out)[1]["dk_meta"]["rejected"]["dk_row"] == 5


def test_one_answer_with_both_labels_is_no_pair(folder):
    rows = [kto("q", "a", True), kto("q", "a", False), kto("q", "b", False)]
    out, report = folder.pair(folder.shards(*rows, format="kto"))
    assert [(row["chosen"], row["rejected"]) for row in rows_of(out)] == [("a", "b")]
    assert report.facts["paired"]["alike"] == 1
    assert rejects_of(out) == [(2, "DK413")]


def test_tools_are_part_of_the_question(folder):
    rows = [
        {"prompt": user("q"), "completion": answer("a"), "label": True, "tools": [tool("add")]},
        {"prompt": user("q"), "completion": answer("b"), "label": False, "tools": [tool("sub")]},
        {"prompt": user("q"), "completion": answer("c"), "label": False, "tools": [tool("add")]},
    ]
    out, _ = folder.pair(folder.shards(*rows))
    assert [row["rejected"] for row in rows_of(out)] == [answer("c")]


SCORED = [kto("q", text, text < "c", s=score) for text, score in zip("abcd", (1, 4, 4, 2), strict=True)]


@pytest.mark.parametrize(
    ("strategy", "margin", "expected", "ties", "close"),
    [
        ("best-worst", 0, ["ba"], 0, 0),
        ("all", 0, ["ba", "bd", "ca", "cd", "da"], 1, 0),
        ("all", 2, ["ba", "bd", "ca", "cd"], 1, 1),
        ("adjacent", 0, ["cd", "da"], 1, 0),
        ("adjacent", 1.5, ["cd"], 1, 1),
    ],
)
def test_by_score(folder, strategy, margin, expected, ties, close):
    rows = [*SCORED, kto("p", "x", True, s=3), kto("p", "y", True, s=3), kto("r", "z", True), kto("o", "w", True, s=1)]
    out, report = folder.pair(
        folder.shards(*rows, format="kto"), by="score", score="s", strategy=strategy, min_margin=margin
    )
    assert [row["chosen"] + row["rejected"] for row in rows_of(out)] == expected
    long = datakit.pair(
        report.inputs[0]["path"], out, by="score", score="dk_meta.s", strategy=strategy, min_margin=margin
    )
    assert long.verdict.startswith("already complete")
    facts = report.facts["paired"]
    assert (facts["ties"], facts["close"]) == (ties + 1, close)
    assert facts["left"] == {"DK410": 2, "DK413": 1, "DK415": 1}
    assert sorted(rejects_of(out)) == [(5, "DK410"), (6, "DK410"), (7, "DK415"), (8, "DK413")]


RANKED: list[tuple[str, dict[str, float]]] = [
    ("q", {"a": 0.5, "b": 2, "c": 1}),
    ("p", {"x": 1, "y": 1}),
    ("o", {"v": 1, "w": 1.25}),
    ("n", {"u": 3}),
]


def ranked(folder: Folder, form: str) -> Path:
    rows = [
        {
            "instruction": prompt,
            "completions": [{"response": text, "overall_score": score} for text, score in answers.items()],
            "id": prompt,
        }
        for prompt, answers in RANKED
    ]
    return folder.shards(*rows, to=f"ranked:{form}", format="ultrafeedback")


@pytest.mark.parametrize("form", ["strings", "messages"])
@pytest.mark.parametrize(
    ("options", "expected", "rejected"),
    [
        ({}, ["ba", "wv"], {"DK410": 1, "DK413": 1}),
        ({"strategy": "all"}, ["bc", "ba", "ca", "wv"], {"DK410": 1, "DK413": 1}),
        ({"strategy": "adjacent", "min_margin": 0.5}, ["bc", "ca"], {"DK410": 1, "DK413": 1, "DK414": 1}),
    ],
)
def test_ranked_rows(folder, form, options, expected, rejected):
    shards = ranked(folder, form)
    out, report = folder.pair(shards, **options)
    assert (report.kind, report.form, report.rejected) == ("preference", form, rejected)
    side = (lambda value: value) if form == "strings" else (lambda value: value[0]["content"])
    rows = rows_of(out)
    assert [side(row["chosen"]) + side(row["rejected"]) for row in rows] == expected
    scores = {text: score for _, answers in RANKED for text, score in answers.items()}
    for row in rows:
        meta = row["dk_meta"]
        assert (meta["score_chosen"], meta["score_rejected"]) == (
            scores[side(row["chosen"])],
            scores[side(row["rejected"])],
        )
        assert meta.items() >= rows_of(shards)[0]["dk_meta"].items() or row["dk_row"] != 1
    assert datakit.validate(out, workers=1).exit_code == 0
    ledger = report.ledger
    assert ledger["rows_in"] == 4 == ledger["single"] + ledger["rows_rejected"]
    if options.get("strategy") == "all":
        assert ledger["fanout"] == {"1": 1, "3": 1}
    with pytest.raises(UsageError, match="hold the answers to one prompt each"):
        folder.pair(shards, by="prompt")


# ---------------------------------------------------------------- selection, as a law

groups_of_scores = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=6)


@quick
@given(groups_of_scores, st.sampled_from(STRATEGIES), st.sampled_from([0.0, 1.0, 2.0]), st.integers(0, 3))
def test_selection_is_what_it_says(groups, strategy, margin, seed):
    scores = np.array([score for group in groups for score in group], float)
    of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    made = select(of, scores, strategy, margin, seed)
    got = list(zip(made.better.tolist(), made.worse.tolist(), strict=True))
    assert len(set(got)) == len(got)
    candidates = ties = 0
    for group in range(len(groups)):
        own = np.flatnonzero(of == group).tolist()
        mine = [(a, b) for a, b in got if of[a] == group]
        assert all(b in own and scores[a] - scores[b] >= max(margin, 1e-9) for a, b in mine)
        both = [(scores[a], scores[b]) for a, b in combinations(own, 2)]
        best, worst = max(scores[own]), min(scores[own])
        enough = lambda x: x > 0 and x >= margin  # noqa: E731
        ordered = sorted(scores[own], reverse=True)
        if strategy == "all":
            expected = sum(enough(abs(a - b)) for a, b in both)
            candidates, ties = candidates + len(both), ties + sum(a == b for a, b in both)
        elif strategy == "adjacent":
            steps = [a - b for a, b in pairwise(ordered)]
            expected = sum(map(enough, steps))
            candidates, ties = candidates + len(steps), ties + sum(step == 0 for step in steps)
        else:
            expected = int(len(own) > 1 and enough(best - worst))
            candidates, ties = candidates + (len(own) > 1), ties + (len(own) > 1 and best == worst)
            assert all(scores[a] == best for a, _ in mine)
            assert strategy == "best-random" or all(scores[b] == worst for _, b in mine)
        assert len(mine) == expected
    assert (made.ties, len(got) + made.ties + made.close) == (ties, candidates)


def test_the_random_one_is_drawn_evenly():
    groups, scores = np.repeat(np.arange(3000), 4), np.tile([3.0, 2.0, 1.0, 3.0], 3000)
    made = select(groups, scores, "best-random", 0, 0)
    drawn = Counter((made.worse % 4).tolist())
    assert drawn.keys() == {1, 2}
    assert abs(drawn[1] - drawn[2]) < 300
    other = select(groups, scores, "best-random", 0, 1)
    assert (other.worse != made.worse).any()


# ---------------------------------------------------------------- what pairs say about one another


def test_conflicts_are_found_and_placed(folder):
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "c", "rejected": "d"},
        {"prompt": "q", "chosen": "b", "rejected": "a"},
        {"prompt": "p", "chosen": "x", "rejected": "y"},
        {"prompt": "p", "chosen": "y", "rejected": "z"},
        {"prompt": "p", "chosen": "z", "rejected": "x"},
        {"prompt": "r", "chosen": "b", "rejected": "a"},
    ]
    prefs = folder.shards(*rows)
    labelled, report = folder.unpair(prefs)
    seen = found(report)
    assert seen["DK404"].count == seen["DK412"].count == 1
    assert (seen["DK404"].first[0]["row"], seen["DK412"].first[0]["row"]) == (3, 4)
    assert "the opposite preference of" in seen["DK404"].first[0]["note"]
    assert "row 1" in seen["DK404"].first[0]["note"]
    assert "3 answers in a circle" in seen["DK412"].first[0]["note"]
    assert seen["DK504"].count == 5
    _, report = folder.pair(labelled)
    assert found(report).keys() == {"DK404", "DK412"}
    _, report = folder.unpair(prefs, order="shuffle", severity={"preference-cycle": "error"})
    assert (report.exit_code, "DK412" in report.verdict) == (1, True)


def test_conflicts_are_those_that_validate_finds(folder):
    rows = [texts(n % 3) if n < 6 else {"prompt": "q1?", "chosen": "bad 1", "rejected": "good 1"} for n in range(8)]
    prefs = folder.shards(*rows)
    theirs = found(datakit.validate(prefs, workers=1))["DK404"]
    ours = found(folder.unpair(prefs)[1])["DK404"]
    assert (ours.count, ours.severity) == (theirs.count, theirs.severity)
    labelled, report = folder.unpair(prefs)
    assert found(report)["DK504"].count == 2
    assert "DK504" in found(datakit.validate(labelled, workers=1))


def test_length_bias_is_told_as_validate_tells_it(folder):
    prefs = folder.shards(*(texts(n) | {"chosen": "long " * (n + 2)} for n in range(60)))
    theirs = found(datakit.validate(prefs, workers=1))["DK406"].first[0]["note"]
    labelled, report = folder.unpair(prefs)
    assert found(report)["DK406"].first[0]["note"] == theirs
    assert found(folder.pair(labelled)[1])["DK406"].first[0]["note"] == theirs


def _slowly(arrows: list[tuple[int, int]]) -> tuple[int, bool]:
    """Opposite preferences, and whether other arrows go round in a circle; by following every path."""
    real = {(a, b) for a, b in arrows if a != b}
    opposite = {frozenset(arrow) for arrow in real if arrow[::-1] in real}
    rest = {arrow for arrow in real if frozenset(arrow) not in opposite}
    reach = set(rest)
    while True:
        more = reach | {(a, d) for a, b in reach for c, d in rest if b == c}
        if more == reach:
            return len(opposite), any(a == b for a, b in reach)
        reach = more


@quick
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_relations_as_a_law(arrows):
    relation = Relation(len(arrows))
    for side in (0, 1):
        names = [b"%d" % arrow[side] for arrow in arrows]
        if names:
            relation.put(slice(None), side, hashes(names), np.ones(len(names), np.int64))
    seen = {finding.id: finding for finding in relation.findings(lambda pair: ("f", pair), labels=True)}
    opposites, circle = _slowly(arrows)
    assert (seen["DK404"].rows if "DK404" in seen else 0) == opposites
    assert ("DK412" in seen) == circle
    both = {a for a, _ in arrows} & {b for _, b in arrows}
    assert (seen["DK504"].rows if "DK504" in seen else 0) == len(both)


@quick
@given(st.lists(st.binary(max_size=2)))
def test_numbers_are_equal_where_keys_are(values):
    numbers = numbered(hashes(values)).tolist() if values else []
    for a, b in combinations(range(len(values)), 2):
        assert (numbers[a] == numbers[b]) == (values[a] == values[b])


def test_ids_are_hexadecimal_digits_of_hashes():
    from hashlib import sha256

    assert as_ids(hashes([b"a", b"b"])).to_pylist() == [sha256(x).hexdigest()[:32] for x in (b"a", b"b")]


# ---------------------------------------------------------------- wrong calls


def test_wrong_calls(folder):
    prefs = folder.shards(texts(1))
    labelled, _ = folder.unpair(prefs)
    chat = folder.shards({"messages": user("q") + answer("a")})
    whole = folder.shards({"chosen": "q a", "rejected": "q b"}, format="dpo-implicit-strings")
    wrong: list[tuple[Any, Path, dict[str, Any], str]] = [
        (datakit.unpair, prefs, {"order": "random"}, "--order random"),
        (datakit.unpair, prefs, {"severity": {"DK000": "off"}}, "no check named"),
        (datakit.unpair, chat, {}, "are no pairs"),
        (datakit.unpair, labelled, {}, "are no pairs"),
        (datakit.unpair, whole, {}, "no turns at which the prompt could be split off"),
        (datakit.pair, prefs, {}, "cannot be paired"),
        (datakit.pair, labelled, {"by": "luck"}, "--by luck"),
        (datakit.pair, labelled, {"by": "score"}, "--by score needs --score"),
        (datakit.pair, labelled, {"by": "prompt", "score": "s"}, "goes with --by score only"),
        (datakit.pair, labelled, {"strategy": "all"}, "are about scores"),
        (datakit.pair, labelled, {"min_margin": 1.0}, "are about scores"),
        (datakit.pair, labelled, {"by": "score", "score": "s", "strategy": "worst"}, "--strategy worst"),
        (datakit.pair, labelled, {"by": "score", "score": "s", "min_margin": float("nan")}, "--min-margin nan"),
        (datakit.pair, labelled, {"by": "score", "score": "s", "min_margin": "1"}, "--min-margin 1"),
        (datakit.pair, labelled, {"by": "score", "score": "prompt"}, "the column is string"),
        (
            datakit.pair,
            folder.shards(kto("q", "a", True), kto("q", "b", False)),
            {"by": "pair_id"},
            "have no dk_pair_id",
        ),
    ]
    for verb, given_, options, words in wrong:
        with pytest.raises(UsageError, match=words) as caught:
            verb(given_, folder.new(), **options)
        assert caught.value.hint
    with pytest.raises(UsageError, match="is preference:strings"):
        datakit.unpair([prefs, folder.shards(chats(1), to="preference:messages")], folder.new())


def test_pairs_of_none_are_a_failure(folder):
    out, report = folder.pair(folder.shards(kto("q", "a", True), kto("p", "b", False)))
    assert (report.exit_code, report.verdict, report.rejected) == (1, "no rows", {"DK413": 2})
    assert not out.exists()


# ---------------------------------------------------------------- on to other kinds


@pytest.mark.parametrize("form", ["strings", "messages", "implicit"])
def test_pairs_become_conversations_and_prompts(folder, form):
    prefs = folder.shards(texts(1, more=1), texts(2), to=f"preference:{form}")
    sft, prompts = folder.new(), folder.new()
    assert datakit.convert(prefs, sft, to="sft", workers=1).exit_code == 0
    expected = [{"prompt": user(f"q{n}?"), "completion": answer(f"good {n}")} for n in (1, 2)]
    assert list(datakit.load(sft)) == expected
    metas = [row["dk_meta"] for row in rows_of(sft)]
    rejected = rows_of(prefs)[0]["rejected"]
    assert metas[0] == {"more": 1, "rejected": rejected}  # nothing is lost
    assert datakit.convert(prefs, prompts, to="prompt", workers=1).exit_code == 0
    assert list(datakit.load(prompts)) == [{"prompt": user(f"q{n}?")} for n in (1, 2)]
    assert rows_of(prompts)[1]["dk_meta"].keys() == {"chosen", "rejected"}
    out = folder.new()
    assert datakit.convert(prefs, out, to="sft:messages", workers=1).exit_code == 0
    assert list(datakit.load(out)) == [{"messages": user(f"q{n}?") + answer(f"good {n}")} for n in (1, 2)]


# ---------------------------------------------------------------- beside TRL


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets
        from trl import data_utils
    datasets.disable_progress_bars()
    return data_utils, datasets


@pytest.mark.filterwarnings("ignore")
def test_trl_puts_all_chosen_before_all_rejected_and_loses_the_pair(folder, trl):
    data_utils, datasets = trl
    rows = [texts(n % 50) | {"chosen": f"good {n}"} for n in range(1200)]
    theirs = data_utils.unpair_preference_dataset(datasets.Dataset.from_list(rows), keep_in_memory=True)
    labels = theirs["label"][:]
    assert labels == [True] * 1000 + [False] * 1000 + [True] * 200 + [False] * 200
    assert set(theirs.column_names) == {"prompt", "completion", "label"}  # 24 pairs share each prompt
    labelled, report = folder.unpair(folder.shards(*rows))
    ours = rows_of(labelled)
    assert [row["label"] for row in ours] == [True, False] * 1200
    assert sorted(map(content, ours)) == sorted(content(dict(row)) for row in theirs)
    assert "DK505" not in found(report)


@pytest.mark.parametrize(
    ("chosen", "rejected", "theirs", "ours"),
    [
        # split inside a word
        (
            "\n\nHuman: 5+7?\n\nAssistant: 12",
            "\n\nHuman: 5+7?\n\nAssistant: 13",
            "\n\nHuman: 5+7?\n\nAssistant: 1",
            "5+7?",
        ),
        # one answer begins with the other: a part of the answer goes into the prompt
        (
            "\n\nHuman: Sky?\n\nAssistant: Blue",
            "\n\nHuman: Sky?\n\nAssistant: Blue today",
            "\n\nHuman: Sky?\n\nAssistant: Blu",
            "Sky?",
        ),
    ],
)
def test_trl_cuts_prompts_inside_words(folder, trl, chosen, rejected, theirs, ours):
    data_utils, _ = trl
    pair = {"chosen": chosen, "rejected": rejected}
    assert data_utils.extract_prompt(pair)["prompt"] == theirs
    [row] = rows_of(folder.shards(pair))
    assert row["prompt"] == user(ours)
    assert row["chosen"][0]["content"] == chosen.rpartition("Assistant: ")[2]
    assert row["rejected"][0]["content"] == rejected.rpartition("Assistant: ")[2]


def test_trl_makes_up_prompts_where_there_are_none(folder, trl, tmp_path):
    data_utils, _ = trl
    same_text = {"chosen": "The end.", "rejected": "The end."}
    assert data_utils.extract_prompt(same_text) == {"prompt": "The end", "chosen": ".", "rejected": "."}
    apart = {"chosen": "Paris ", "rejected": "London"}
    assert data_utils.extract_prompt(apart) == {"prompt": "Paris", "chosen": " ", "rejected": "n"}
    for pair, rule in ((same_text, "DK401"), (apart, None)):
        source = tmp_path / f"{rule}.jsonl"
        source.write_text(json.dumps(pair) + "\n")
        report = datakit.convert(source, folder.new(), format="dpo-implicit-strings", workers=1)
        assert report.rejected == ({rule: 1} if rule else {})
        with pytest.raises(UsageError, match="without loss"):  # and no prompt is made up later
            datakit.convert(source, folder.new(), format="dpo-implicit-strings", to="preference:messages", workers=1)
    no_prompt = {"chosen": user("a") + answer("b"), "rejected": user("c") + answer("b")}
    assert data_utils.extract_prompt(no_prompt)["prompt"] == []
    source.write_text(json.dumps(no_prompt) + "\n")
    assert datakit.convert(source, folder.new(), workers=1).rejected == {"DK403": 1}


# ---------------------------------------------------------------- formatted rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    pytest.importorskip("trl")
    from tests.small_tokenizers import chatml

    return chatml(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("style", ["trl", "easydel"])
def test_formatted_rows_there_and_back(folder, tokenizer, style):
    prefs = folder.shards(*(chats(n) for n in range(5)), to="preference:messages")
    ready, labelled = folder.new(), folder.new()
    options: dict[str, Any] = {"tokenizer": tokenizer, "layout": style, "workers": 1}
    datakit.format(prefs, ready, **options).raise_for_status()
    ids, report = folder.unpair(ready)
    assert (report.kind, report.rows_out) == ("tokenized", 10)
    assert report.form == ("kto" if style == "trl" else "easydel_kto")
    for order in ORDERS:
        again, _ = folder.pair(folder.unpair(ready, order=order)[0])
        if order == "shuffle":
            assert sorted(map(str, rows_of(again))) == sorted(map(str, rows_of(ready)))
        else:
            same(ready, again)
    # unpaired and then formatted is the same as formatted and then unpaired
    texts_, _ = folder.unpair(prefs)
    datakit.format(texts_, labelled, **options).raise_for_status()
    assert [content(row) for row in rows_of(ids)] == [content(row) for row in rows_of(labelled)]
    assert [row["dk_length"] for row in rows_of(ids)] == [row["dk_length"] for row in rows_of(labelled)]
    same(ready, folder.pair(labelled)[0])  # they still know which were one pair
    prepared = datakit.load(ids).manifest["plan"]["prepared"]
    assert prepared["tokenizer"] == datakit.load(labelled).manifest["plan"]["prepared"]["tokenizer"]
    crossed, report = folder.pair(ids, by="prompt")
    assert len({row["dk_id"] for row in rows_of(crossed)}) == 5


@pytest.mark.filterwarnings("ignore")
def test_formatted_rows_that_do_not_go(folder, tokenizer, tmp_path):
    prefs = folder.shards(*(chats(n) for n in range(3)), to="preference:messages")
    reward = folder.new()
    datakit.format(prefs, reward, tokenizer=tokenizer, method="reward", workers=1).raise_for_status()
    with pytest.raises(UsageError, match="ids do not say where the prompt ends"):
        datakit.unpair(reward, folder.new())
    ready, other = folder.new(), folder.new()
    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    datakit.format(prefs, ready, tokenizer=tokenizer, workers=1).raise_for_status()
    datakit.format(prefs, other, tokenizer=tokenizer, chat_template=template, workers=1).raise_for_status()
    with pytest.raises(UsageError, match="another chat template each"):
        datakit.unpair([ready, other], folder.new())


# ---------------------------------------------------------------- real files


@pytest.mark.corpora
@pytest.mark.skipif(not CORPORA.is_dir(), reason="no corpora")
@pytest.mark.parametrize(
    "name",
    [
        "anthropics__hh-rlhf__harmless-base__test.jsonl.gz",
        "hiyouga__LLaMA-Factory__data__dpo_en_demo.json",
        "hiyouga__LLaMA-Factory__data__v1_dpo_demo.jsonl",
    ],
)
def test_real_pairs_there_and_back(folder, name):
    prefs = folder.new()
    report = datakit.convert(CORPORA / "pref" / name, prefs, on_bad_row="quarantine", max_bad="5 %", workers=1)
    assert report.exit_code == 0, report.verdict
    labelled, made = folder.unpair(prefs)
    assert made.rows_out == 2 * report.rows_out
    same(prefs, folder.pair(labelled)[0])
