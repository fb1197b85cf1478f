"""decontaminate: what is shared is found in any file, shown with its place, and nothing else goes."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datakit
from datakit.errors import UnreadableInput, UsageError

LONG = "A train leaves the station at nine and drives forty miles per hour; when will it arrive in Oslo?"
SHORT = "Who wrote Romeo and Juliet?"


def chat(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def shards(folder: Path, rows: list[dict[str, Any]]) -> Path:
    datakit.convert(lines(folder / "rows.jsonl", rows), folder / "shards", workers=1).raise_for_status()
    return folder / "shards"


def rejects(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for path in sorted((folder / "rejects").glob("*")) for line in path.read_text().splitlines()
    ]


ROWS = [
    chat("Hello!"),
    chat(f"Please solve this: {LONG.upper()} Thanks."),
    chat("tell me", f"Well. {LONG.replace(' ', chr(10))}"),
    chat(LONG[:50]),
    chat("who wrote “Romeo and Juliet”"),
    chat("Who wrote Romeo and Juliet? And Hamlet?"),
    chat("Where?", "Paris"),
]


def test_shared_words_are_found_and_shown(tmp_path):
    against = lines(
        tmp_path / "evals" / "e.jsonl", [{"question": "What?", "answer": "Paris"}, {"question": LONG}, {"q": SHORT}]
    )
    report = datakit.decontaminate(shards(tmp_path / "in", ROWS), tmp_path / "out", against=against)
    assert (report.exit_code, report.rows_in, report.rows_out, report.rejected) == (0, 7, 4, {"DK806": 3})
    found = {reject["row"]: reject["message"] for reject in rejects(tmp_path / "out")}
    words = "a train leaves the station at nine and drives forty miles per hour when will it arrive in oslo"
    assert found == {
        2: f"19 words of {against}:2: {words}",
        3: f"19 words of {against}:2: {words}",
        5: f"the same text as {against}:3: who wrote romeo and juliet",
    }
    facts = report.facts["against"][str(against)]
    assert facts == {"rows": 3, "texts": 4, "too short": 2, "runs of words": 7}
    assert report.facts["rows with a text of"] == {str(against): 3}
    assert report.findings[0].severity == "warning"
    assert datakit.verify(tmp_path / "out").exit_code == 0
    again = datakit.decontaminate(tmp_path / "in" / "shards", tmp_path / "out", against=[against])
    assert again.verdict.startswith("already complete")


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    suffix = path.suffix
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".csv":
        path.write_text("id,question\n" + "".join(f'{n},"{row["question"]}"\n' for n, row in enumerate(rows)))
    elif suffix == ".txt":
        path.write_text("".join(row["question"] + "\n" for row in rows))
    elif suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif suffix == ".bz2":
        path.write_bytes(bz2.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("e.jsonl", ":3"),
        ("e.json", " row 3"),
        ("e.parquet", " row 3"),
        ("e.csv", " row 3"),
        ("e.txt", ":3"),
        ("e.jsonl.gz", ":3"),
        ("e.jsonl.bz2", ":3"),
    ],
)
def test_files_of_all_kinds(tmp_path, name, place):
    path = _write(tmp_path / name, [{"question": "one"}, {"question": "two"}, {"question": LONG}])
    datakit.decontaminate(shards(tmp_path / "in", ROWS), tmp_path / "out", against=path)
    assert [r["row"] for r in rejects(tmp_path / "out")] == [2, 3]
    assert f"{path}{place}: a train" in rejects(tmp_path / "out")[0]["message"]


def test_shard_folders_folders_and_globs(tmp_path):
    held = shards(tmp_path / "held", [chat("x"), chat(LONG)])
    source = shards(tmp_path / "in", ROWS)
    datakit.decontaminate(source, tmp_path / "a", against=held)
    assert f"{held} row 2" in rejects(tmp_path / "a")[0]["message"]
    lines(tmp_path / "e" / "one.jsonl", [{"q": LONG}])
    lines(tmp_path / "e" / "two.jsonl", [{"q": SHORT}])
    for name, against in {"b": tmp_path / "e", "c": str(tmp_path / "e" / "*.jsonl")}.items():
        assert datakit.decontaminate(source, tmp_path / name, against=against).rows_rejected == 3


def test_the_first_line_of_csv_is_looked_for_too(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text(f'"{LONG}",Oslo\nAnother question of many words,Rome\n')
    report = datakit.decontaminate(shards(tmp_path / "in", ROWS), tmp_path / "out", against=path)
    assert [r["row"] for r in rejects(tmp_path / "out")] == [2, 3]
    assert f"19 words of the first line of {path}: a train" in rejects(tmp_path / "out")[0]["message"]
    assert report.facts["against"][str(path)]["rows"] == 1


@pytest.mark.parametrize("text", ["", "\n\n", '{"q": ""}\n', '{"q": "Paris"}\n{"q": 3}\n'])
def test_an_evaluation_with_nothing_to_look_for_is_refused(tmp_path, text):
    path = tmp_path / "e.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match="nothing to look for"):
        datakit.decontaminate(shards(tmp_path / "in", ROWS), tmp_path / "out", against=path)


def test_nothing_is_found_across_two_messages(tmp_path):
    words = LONG.split()
    turns = [chat(" ".join(words[:10]), " ".join(words[10:])), chat(LONG, "At noon, says the conductor of it.")]
    against = lines(tmp_path / "e.jsonl", [{"q": LONG, "a": "At noon, says the conductor of it."}])
    source = shards(tmp_path / "in", turns)
    datakit.decontaminate(source, tmp_path / "out", against=against, min_overlap="100%")
    assert [reject["row"] for reject in rejects(tmp_path / "out")] == [2]


def test_what_many_rows_of_an_evaluation_share_tells_nothing(tmp_path):
    head = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    evals = [{"q": f"{head} {n}", "choice": "None of the above is right"} for n in range(12)] + [{"q": LONG}]
    rows = [chat(head), chat("Which?", "None of the above is right"), *ROWS]
    against = lines(tmp_path / "e.jsonl", evals)
    datakit.decontaminate(shards(tmp_path / "in", rows), tmp_path / "out", against=against)
    assert [r["row"] for r in rejects(tmp_path / "out")] == [4, 5]


def test_min_overlap_and_ngram(tmp_path):
    half = " ".join(LONG.split()[:14])
    source = shards(tmp_path / "in", [chat(half), chat(LONG), chat("x")])
    against = lines(tmp_path / "e.jsonl", [{"q": LONG}])

    def gone(name: str, **options: Any) -> list[int]:
        datakit.decontaminate(source, tmp_path / name, against=against, **options)
        return [r["row"] for r in rejects(tmp_path / name)]

    assert gone("a") == [1, 2]
    assert gone("b", min_overlap="50%") == [2]
    assert gone("c", ngram=15) == [2]
    assert gone("d", ngram=8, min_overlap="50%") == [1, 2]


def test_all_parts_of_a_row_count(tmp_path):
    call = {"type": "function", "function": {"name": "search", "arguments": {"query": LONG}}}
    agent = {
        "messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    }
    agent["messages"] += [
        {"role": "tool", "content": "nothing", "name": "search"},
        {"role": "assistant", "content": "no"},
    ]
    against = lines(tmp_path / "e.jsonl", [{"deep": [{"question": {"text": LONG}}]}])
    rows = [agent, chat("x")]
    assert datakit.decontaminate(shards(tmp_path / "a", rows), tmp_path / "x", against=against).rows_rejected == 1
    pairs = [{"prompt": "p", "chosen": "c", "rejected": LONG}, {"prompt": "p", "chosen": "c", "rejected": "d"}]
    assert datakit.decontaminate(shards(tmp_path / "b", pairs), tmp_path / "y", against=against).rows_rejected == 1


WORD = st.sampled_from("ab")
TEXTS = st.lists(st.lists(WORD, min_size=0, max_size=12), min_size=1, max_size=6)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(TEXTS, TEXTS)
def test_hits_are_those_of_a_plain_search(tmp_path_factory, evals, rows):
    """Runs of 5 words over two letters, so that they meet often; against sets of tuples."""
    from datakit.cleaning.contamination import _Wanted
    from datakit.cleaning.evaluation import evaluations
    from datakit.cleaning.words import words

    path = lines(tmp_path_factory.mktemp("e") / "e.jsonl", [{"q": " ".join(own)} for own in evals])
    wanted = _Wanted.of(evaluations([str(path)]), 5)
    own = words([" ".join(row) for row in rows])
    bounds = pa.array(range(len(rows) + 1)).to_numpy()

    def runs(texts: list[list[str]]) -> list[set[tuple[str, ...]]]:
        return [{tuple(text[i : i + 5]) for i in range(len(text) - 4)} for text in texts]

    asked = set().union(*runs(evals))
    expected = {at for at, mine in enumerate(runs(rows)) if mine & asked}
    assert set(wanted.hits(own, bounds, 0.0)) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"against": []}, "no evaluation files"),
        ({"against": "E", "ngram": 4}, "--ngram"),
        ({"against": "E", "ngram": "13"}, "--ngram '13'"),
        ({"against": "E", "min_overlap": 0.5}, "--min-overlap 0.5: a float"),
        ({"against": "E", "min_overlap": "0.5"}, "--min-overlap"),
        ({"against": "E", "min_overlap": "101%"}, "--min-overlap"),
    ],
)
def test_wrong_calls(tmp_path, options, said):
    path = lines(tmp_path / "e.jsonl", [{"q": LONG}])
    options = {name: str(path) if value == "E" else value for name, value in options.items()}
    with pytest.raises(UsageError, match=said):
        datakit.decontaminate(shards(tmp_path / "in", ROWS), tmp_path / "out", **options)


def test_a_damaged_line_of_an_evaluation_stops_the_run(tmp_path):
    (tmp_path / "e.jsonl").write_text('{"q": "a"}\n\n{"q": \n')
    with pytest.raises(UnreadableInput, match=r"e\.jsonl:3"):
        datakit.decontaminate(shards(tmp_path / "in", ROWS), tmp_path / "out", against=tmp_path / "e.jsonl")
    with pytest.raises(UnreadableInput, match="no such file"):
        datakit.decontaminate(tmp_path / "in" / "shards", tmp_path / "out", against=tmp_path / "none.jsonl")


def test_formatted_rows_are_refused(tmp_path):
    source = shards(tmp_path / "in", [{"input_ids": [1, 2], "labels": [1, 2]}])
    with pytest.raises(UsageError, match="token ids"):
        datakit.decontaminate(source, tmp_path / "out", against=lines(tmp_path / "e.jsonl", [{"q": LONG}]))


def test_another_evaluation_is_another_output(tmp_path):
    source = shards(tmp_path / "in", ROWS)
    against = lines(tmp_path / "e.jsonl", [{"q": LONG}])
    datakit.decontaminate(source, tmp_path / "out", against=against)
    lines(against, [{"q": SHORT}])
    with pytest.raises(UsageError, match="other inputs or options"):
        datakit.decontaminate(source, tmp_path / "out", against=against)
    assert datakit.decontaminate(source, tmp_path / "out", against=against, overwrite=True).rows_rejected == 1
