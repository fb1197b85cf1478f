"""`format` from end to end: every row accounted for, every check raised, every option with the effect that it names."""

from __future__ import annotations

import json
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datakit
from datakit import preparation, ready
from datakit.checks.formatting import FORMATTING
from datakit.control import ESCAPE, ControlTokens
from datakit.errors import UsageError
from datakit.formatter import _places, _spread
from datakit.policies import POLICIES
from datakit.schema import IGNORED
from datakit.shards import Shards
from tests.conversations import CORPORA, ORDINARY, TOOLS
from tests.small_tokenizers import chatml, llama, shards, turns

transformers = pytest.importorskip("transformers")
templates = pytest.importorskip("trl.chat_template_utils")

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The shortest template with ends."""
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
"""A template without any word of its own."""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return chatml(tmp_path_factory.mktemp("qwen"), PLAIN)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def run(tmp_path, qwen):
    """Formats rows; the report, and the rows with all their columns."""
    converted: dict[str, Path] = {}
    number = count()

    def run(rows, tokenizer=qwen, to=None, template=None, **options):
        key = json.dumps([rows, to])
        if key not in converted:
            converted[key] = shards(tmp_path / f"shards{len(converted)}", rows, **({"to": to} if to else {}))
        folder = converted[key]
        if template is not None:
            options["chat_template"] = tmp_path / "template.jinja"
            options["chat_template"].write_text(template, "utf-8")
        out = tmp_path / f"out{next(number)}"
        report = preparation.format(folder, out, tokenizer=tokenizer, workers=1, **options)
        assert report.exit_code == 0 or not out.exists()
        return report, list(datakit.load(out).rows(all=True)) if out.exists() else []

    return run


def chats(*conversations):
    return [{"messages": turns(*texts)} for texts in conversations]


def found(report):
    """Findings by id."""
    return {summary.id: summary for summary in report.findings}


def note(report, id):
    return found(report)[id].first[0]["note"]


def tokenizer_of(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def trained(row, folder):
    """The trained text of a row, one string per stretch."""
    tokenizer, last = tokenizer_of(folder), -2
    stretches: list[list[int]] = []
    for at, label in enumerate(row["labels"]):
        if label != IGNORED:
            assert label == row["input_ids"][at]
            stretches += [[]] if last != at - 1 else []
            stretches[-1].append(label)
            last = at
    return [tokenizer.decode(stretch) for stretch in stretches]


# ---------------------------------------------------------------- rows


def test_every_row_is_accounted_for(run):
    rows = chats(("a", "b"), ("c", "<|im_end|>"), ("d", "e", "f"), ("g", "h", "i", "j"))
    report, made = run(rows, on_bad_row="quarantine", max_bad="1 row")
    assert (report.rows_in, report.rows_out, report.rejected) == (4, 3, {"DK707": 1})
    assert [row["dk_row"] for row in made] == [1, 3, 4]
    assert all(row["dk_length"] == len(row["input_ids"]) == len(row["labels"]) for row in made)
    assert all(row["dk_trained"] == sum(label != IGNORED for label in row["labels"]) > 0 for row in made)
    folder = Path(report.output)
    assert datakit.verify(folder).exit_code == 0
    reject = json.loads((folder / "rejects" / "train-00000.jsonl").read_text())
    assert (reject["rule"], reject["row"], reject["path"]) == ("DK707", 2, "messages[1].content")


def test_no_good_row_means_no_output(run):
    report, made = run(chats(("a", "<|im_end|>")))
    assert report.exit_code == 1
    assert not made
    report, made = run(chats(("a", "<|im_end|>")), on_bad_row="quarantine", max_bad="100 %")
    assert report.exit_code == 1
    assert report.verdict == "no rows" or "bad" in report.verdict


def test_the_report_tells_the_share_of_trained_tokens(run, qwen):
    report, made = run(chats(("a", "b"), ("c", "d")))
    supervised = next(iter(report.facts["supervised"].values()))
    assert supervised["tokens"] == sum(row["dk_length"] for row in made)
    assert supervised["trained"] == sum(row["dk_trained"] for row in made)
    assert report.facts["prepared"]["tokenizer"]["path"] == str(qwen)


def test_workers_do_not_change_a_byte_and_a_rerun_writes_nothing(tmp_path, qwen):
    rows = [{"messages": turns(f"ask {number}", "say " * 300 + str(number))} for number in range(6000)]
    folder = shards(tmp_path / "shards", rows)
    reports = {}
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        reports[workers] = preparation.format(folder, out, tokenizer=qwen, workers=workers, shard_size="2MiB")
    first, second = (report.to_json() for report in reports.values())
    assert first["content_id"] == second["content_id"]
    assert first["shards"] == second["shards"]
    assert len(first["shards"]) > 1
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out1").rglob("*")}
    again = preparation.format(folder, tmp_path / "out1", tokenizer=qwen, workers=2, shard_size="2MiB")
    assert again.verdict.startswith("already complete")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out1").rglob("*")} == before
    with pytest.raises(UsageError, match="exists"):
        preparation.format(folder, tmp_path / "out1", tokenizer=qwen, train_on="last", workers=1)


# ---------------------------------------------------------------- checks

REFUSING = "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}" + PLAIN
BACKWARDS = PLAIN.replace("{{ m.content }}", "{{ m.content | reverse }}")
OTHER_PROMPT = PLAIN.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant<think>\n{% endif")
PAIR: dict[str, Any] = {"prompt": turns("one?"), "chosen": turns("", "1")[1:], "rejected": turns("", "2")[1:]}
STEPS: dict[str, Any] = {"prompt": "p\n", "completions": ["a\n", "\n"], "labels": [True, False]}
CALLS: dict[str, Any] = {"messages": ORDINARY["tool call"].messages, "tools": TOOLS}

RAISED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "DK701": (chats(("bad", "x")), {"template": REFUSING}),
    "DK702": (chats(("a", "b " * 40)), {"max_length": 20}),
    "DK703": ([CALLS], {"template": PLAIN}),
    "DK704": (chats(("a", "b")), {"train_on": "tagged"}),
    "DK705": ([{"text": "<|begin_of_text|>a"}], {"tokenizer": "llama3", "control_tokens": "allow"}),
    "DK706": (chats(("a", "b")), {"template": BARE}),
    "DK707": (chats(("<|im_end|>", "b")), {}),
    "DK708": ([PAIR], {"template": OTHER_PROMPT}),
    "DK710": (chats(("ab", "cd")), {"template": BACKWARDS}),
    "DK713": ([{"prompt": "the ques", "completion": "tion"}], {}),
    "DK714": (chats(("a", "b " * 40)), {"max_length": 20, "truncation": "keep_start"}),
}


def test_engines_are_compared_on_rows_from_all_over_the_data(tmp_path):
    folders = [
        shards(tmp_path / name, [{"messages": turns(f"{name} {number}", "yes")} for number in range(6)])
        for name in ("first", "second", "third")
    ]
    files = [str(path) for folder in folders for path in Shards.open(folder).paths]
    assert list(_places(files)) == [(file, 0, 6) for file in files]
    assert _spread(range(10), 4) == [0, 3, 6, 9]
    assert _spread([7, 8], 4) == [7, 8]


@pytest.mark.parametrize("id", [check.id for check in FORMATTING])
def test_every_check_is_raised_by_a_row_made_for_it(id, run, llama3):
    rows, options = RAISED[id]
    if options.get("tokenizer"):
        options = {**options, "tokenizer": llama3}
    report, _ = run(rows, **options)
    assert id in found(report)
    severity = next(check.severity for check in FORMATTING if check.id == id)
    assert found(report)[id].severity == severity
    assert (report.exit_code == 1) == (severity == "error" or not report.rows_out)


def test_a_good_row_has_no_finding(run):
    assert not run(chats(("a", "b")))[0].findings


def test_a_row_that_the_template_refuses_can_be_set_aside(run):
    report, made = run(chats(("bad", "x"), ("good", "y")), template=REFUSING, on_bad_row="quarantine", max_bad="1 row")
    assert report.rejected == {"DK701": 1}
    assert "no" in note(report, "DK701")
    assert len(made) == 1


# ---------------------------------------------------------------- control tokens

PLACES: dict[str, dict[str, Any]] = {
    "user": {"messages": turns("x <|im_end|> y", "b")},
    "system": {"messages": [{"role": "system", "content": "<|im_start|>user"}, *turns("a", "b")]},
    "assistant": {"messages": turns("a", "<think>so</think> <|im_end|>\n<|im_start|>user")},
    "another family": {"messages": turns("a", "[INST] <|eot_id|>")},
    "a key": {"messages": turns("a", "b"), "chat_template_kwargs": {"<|im_end|>": 1}},
    "a template argument": {"messages": turns("a", "b"), "chat_template_kwargs": {"mood": "<|im_end|>"}},
    "a tool": {
        "messages": turns("a", "b"),
        "tools": [{"type": "function", "function": {"name": "f", "description": "<|im_end|>", "parameters": {}}}],
    },
    "an argument": json.loads(json.dumps(CALLS).replace('"Oslo"', '"Oslo<|im_end|>"')),
    "a key of an argument": json.loads(json.dumps(CALLS).replace('"city": "Oslo"', '"<|im_end|>": "Oslo"')),
    "a tool's result": json.loads(json.dumps(CALLS).replace("sunny", "<|im_end|>")),
    "escaped in the file": json.loads(json.dumps({"messages": turns("a<|im_end|>", "b")}).replace("<", "\\u003c")),
}
QWEN = {"template": templates.qwen2_5_chat_template}


def test_control_tokens_are_found_everywhere(run, qwen):
    rows = [*PLACES.values(), *chats(("good", "row"))]
    bad = len(PLACES)
    loud, made = run(rows, **QWEN)
    assert loud.exit_code == 1
    assert loud.rejected == {"DK707": bad}
    assert not made
    quiet, made = run(rows, control_tokens="quarantine", **QWEN)
    assert quiet.exit_code == 0
    assert quiet.rejected == {"DK707": bad}
    assert [row["dk_row"] for row in made] == [bad + 1]
    allowed, raw = run(rows, control_tokens="allow", **QWEN)
    assert not allowed.findings
    escaped, safe = run(rows, control_tokens="escape", **QWEN)
    assert escaped.exit_code == 0
    assert found(escaped)["DK707"].count == bad
    assert "escaped" in note(escaped, "DK707")
    assert len(safe) == len(raw) == len(rows)
    assert safe[-1] == raw[-1]
    marks = tokenizer_of(qwen).convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    for row, messages in zip(safe, (row["messages"] for row in rows), strict=True):
        system = messages[0]["role"] != "system"  # this template prints one where a row has none
        counts = Counter(token for token in row["input_ids"] if token in marks)
        assert counts[marks[0]] == counts[marks[1]] == len(messages) + system


def test_a_thought_in_an_answer_is_no_finding(run, tmp_path):
    own = templates.qwen3_chat_template
    rows = [
        {"messages": turns("a", "<think>\nso\n</think>\n\nb")},
        {"messages": turns("a", "b", "</think>", "c")},
    ]
    report, made = run(rows[:1], template=own, control_tokens="escape")
    assert not report.findings
    assert len(made) == 1
    report, _ = run(rows[1:], template=own)
    assert report.rejected == {"DK707": 1}


def test_control_tokens_are_found_in_steps(run):
    report, _ = run([{**STEPS, "completions": ["a", "<|im_end|>"]}])
    assert report.rejected == {"DK707": 1}
    assert found(report)["DK707"].first[0]["path"] == "completions[1]"


def test_rows_for_an_online_method_are_escaped_too(run):
    report, made = run([{"prompt": turns("<|im_end|>")}], control_tokens="escape")
    assert report.exit_code == 0
    assert made[0]["prompt"] == turns(f"<{ESCAPE}|im_end|>")


pieces = st.sampled_from(
    ["<|im_end|>", "<|im_start|>", "<", "|im_end|>", "[INST]", "[", "a", "é", '"x"', "<think>", " "]
)
texts = st.lists(pieces, max_size=6).map("".join)


@settings(deadline=None, derandomize=True)
@given(texts, texts, texts)
def test_what_is_escaped_holds_none_and_can_be_read_back(user, answer, key):
    control = ControlTokens(["<|im_end|>", '"x"'], ["<think>"], "<think>")
    record = {"messages": turns(user, answer), "tools": [{key: [user]}], "label": True}
    escaped = control.escaped(record)
    assert not control.found(escaped)
    assert json.loads(json.dumps(escaped).replace("\\\\", "")) == record
    stored = json.dumps(record, ensure_ascii=False).encode()
    assert control.may_hold(stored) or not control.found(record)


# ---------------------------------------------------------------- what is trained

LONG = turns("one", "1", "two", "2", "three", "3")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["1<|im_end|>", "2<|im_end|>", "3<|im_end|>"]),
        ({"train_on": "last"}, ["3<|im_end|>"]),
        ({"leave_out": ["[23]"]}, ["1<|im_end|>"]),
        ({"train_on": "last", "leave_out": ["3"]}, ["2<|im_end|>"]),
    ],
)
def test_which_turns_are_trained(options, expected, run, qwen):
    _, made = run([{"messages": LONG}], **options)
    assert trained(made[0], qwen) == expected


def test_weights_decide_where_a_row_has_some(run, qwen):
    weighed = [
        {**message, "weight": weight} if weight is not None else message
        for message, weight in zip(LONG, [None, 0, None, 1, None, None], strict=True)
    ]
    rows = [{"messages": weighed}]
    assert trained(run(rows)[1][0], qwen) == ["2<|im_end|>", "3<|im_end|>"]
    assert trained(run(rows, train_on="tagged")[1][0], qwen) == ["2<|im_end|>"]
    whole = run(rows, train_on="everything")[1][0]
    assert whole["labels"] == whole["input_ids"]


def test_options_reach_completions_too(run, qwen):
    rows: list[Any] = [{"prompt": turns("one", "1", "two"), "completion": turns("", "2", "three", "3")[1:]}]
    assert trained(run(rows, to="sft:prompt_completion")[1][0], qwen) == ["2<|im_end|>", "3<|im_end|>"]
    assert trained(run(rows, to="sft:prompt_completion", train_on="last")[1][0], qwen) == ["3<|im_end|>"]
    rows = [{"prompt": "the question:\n", "completion": word} for word in ("answer", "none")]
    report, made = run(rows, leave_out=["none"])
    assert report.rejected == {"DK704": 1}
    assert trained(made[0], qwen) == ["answer<|im_end|>"]


# ---------------------------------------------------------------- length

TALK = turns(*(word for number in range(6) for word in (f"ask {number} " * 4, f"say {number} " * 4)))


def test_an_error_shows_what_each_policy_loses(run):
    rows = [{"messages": TALK}, *chats(("a", "b"))]
    report, _ = run(rows, max_length=60)
    assert report.exit_code == 1
    assert report.rejected == {"DK702": 1}
    losses = next(iter(report.facts["losses"].values()))
    assert losses["rows"]["rows"] == 2
    assert losses["error"]["over"] == 1
    assert set(losses) >= set(POLICIES) - {"per_part"}
    assert losses["window"]["trained_lost"] == 0 < losses["keep_start"]["trained_lost"] < losses["drop"]["trained_lost"]
    total = sum(row["dk_trained"] for row in run(rows)[1])
    assert {counts["trained"] for policy, counts in losses.items() if policy != "rows"} == {total}


@pytest.mark.parametrize("policy", ["drop", "keep_start", "keep_end", "per_part", "window"])
def test_what_was_foretold_is_what_is_lost(policy, run):
    rows = [
        {"messages": [{"role": "system", "content": "be brief"}, *TALK]},
        {"messages": TALK[:4]},
        *chats(("a", "b")),
    ]
    limit = 80
    whole = {row["dk_row"]: row for row in run(rows)[1]}
    foretold = next(iter(run(rows, max_length=limit)[0].facts["losses"].values()))[policy]
    report, made = run(rows, max_length=limit, truncation=policy)
    assert report.exit_code == 0
    assert all(row["dk_length"] <= limit for row in made)
    lost = sum(row["dk_trained"] for row in whole.values()) - sum(row["dk_trained"] for row in made)
    assert lost == foretold["trained_lost"]
    assert len(made) == foretold["rows_out"]
    assert report.rejected == ({"DK702": foretold["dropped"]} if policy == "drop" else {})
    first = [row for row in made if row["dk_row"] == 1]
    if policy == "keep_start":
        assert first[0]["input_ids"] == whole[1]["input_ids"][:limit]
    elif policy == "keep_end":
        assert first[0]["input_ids"] == whole[1]["input_ids"][-limit:]
        assert first[0]["labels"] == whole[1]["labels"][-limit:]


def test_the_share_of_trained_tokens_is_that_of_the_rows_that_are_written(run, qwen):
    rows = chats(("a", "yes"), ("b", "no " * 90), ("c", "well"))
    for truncation in ("drop", "keep_start"):
        report, made = run(rows, qwen, max_length=60, truncation=truncation, on_bad_row="quarantine", max_bad="2 rows")
        (told,) = report.facts["supervised"].values()
        assert told["tokens"] == sum(row["dk_length"] for row in made)
        assert told["trained"] == sum(row["dk_trained"] for row in made)


def test_what_is_lost_is_told_of_all_rows_however_many_are_too_long(run):
    report, _ = run(chats(*[(f"ask {n}", "long " * 40) for n in range(1500)]), max_length=30)
    (losses,) = report.facts["losses"].values()
    assert (report.exit_code, report.complete, losses["error"]["over"]) == (1, True, 1500)


def test_a_text_that_is_lost_is_named_where_it_stands(run):
    silent = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    pair = {**PAIR, "prompt": [{"role": "system", "content": "Be kind."}, *turns("one?")]}
    report, _ = run([pair], template=silent, to="preference:messages")
    assert found(report)["DK703"].first[0]["path"] == "prompt[0]"


@pytest.mark.parametrize("limit", [60, 75, 100])
def test_windows_train_every_turn_once_behind_the_same_head(limit, run, qwen):
    system = {"role": "system", "content": "be brief"}
    _, made = run([{"messages": [system, *TALK]}], max_length=limit, truncation="window")
    assert len(made) > 1
    assert [text for row in made for text in trained(row, qwen)] == [f"{m['content']}<|im_end|>" for m in TALK[1::2]]
    head = tokenizer_of(qwen).encode("<|im_start|>system\nbe brief<|im_end|>\n")
    assert all(row["input_ids"][: len(head)] == head for row in made)


def test_a_window_that_trains_nothing_is_told(run):
    rows = [{"messages": [*turns("1", "2"), {"role": "assistant", "content": "3"}]}]
    report, made = run(rows, template=BARE, max_length=2, truncation="window")
    assert len(made) == 1
    assert "1 window left out, whose 1 trained tokens" in note(report, "DK714")


def test_answers_are_cut_and_what_they_lose_is_told(run):
    pair = {**PAIR, "chosen": turns("", "yes " * 40)[1:]}
    report, _ = run([pair, PAIR], max_length=30)
    losses = next(iter(report.facts["losses"].values()))
    assert losses["error"]["over"] == losses["keep_start"]["cut"] == 1
    report, made = run([pair, PAIR], max_length=30, truncation="keep_start")
    assert "tokens cut to 30" in note(report, "DK714")
    assert len(made[0]["prompt_ids"]) + len(made[0]["chosen_ids"]) == 30
    alike = {**PAIR, "chosen": turns("", "no " * 40 + "a")[1:], "rejected": turns("", "no " * 40 + "b")[1:]}
    report, _ = run([alike, PAIR], max_length=30, truncation="keep_start")
    assert report.rejected == {"DK704": 1}


def test_a_bos_counts(run, llama3):
    rows = [{"text": "1 2 3"}]
    size = run(rows, tokenizer=llama3)[1][0]["dk_length"]
    assert run(rows, tokenizer=llama3, max_length=size)[0].exit_code == 0
    report, _ = run(rows, tokenizer=llama3, max_length=size - 1)
    assert report.rejected == {"DK702": 1}
    assert next(iter(report.facts["losses"].values()))["error"]["over"] == 1


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize("pack", ["bfd", "bfd_split", "wrapped"])
def test_packing_loses_no_token(pack, run):
    rows = [{"messages": turns(f"ask {n}", "say " * (n % 5 + 1))} for n in range(40)] + [{"messages": TALK}]
    _, single = run(rows)
    size = single[-1]["dk_length"] - (pack != "bfd")
    report, made = run(rows, max_length=size, pack=pack)
    assert report.exit_code == 0
    assert report.rows_out == len(made) < len(single)
    assert all(row["dk_length"] == len(row["input_ids"]) == sum(row["seq_lengths"]) <= size for row in made)
    for column in ("input_ids", "labels"):
        there, here = (Counter(token for row in rows for token in row[column]) for rows in (single, made))
        assert there == here
    if pack == "bfd":
        apart = []
        for row in made:
            ends = [sum(row["seq_lengths"][: at + 1]) for at in range(len(row["seq_lengths"]))]
            apart += [row["input_ids"][begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        assert sorted(apart) == sorted(row["input_ids"] for row in single)


def test_a_row_that_is_longer_than_a_packed_one_is_told(run):
    report, _ = run([{"messages": TALK}, *chats(("a", "b"))], max_length=40, pack="bfd")
    assert report.rejected == {"DK702": 1}
    report, made = run([{"messages": TALK}, *chats(("a", "b"))], max_length=40, pack="bfd", truncation="drop")
    assert report.exit_code == 0
    assert len(made) == 1


# ---------------------------------------------------------------- texts instead of ids


@pytest.mark.parametrize("family", ["qwen", "llama3"])
@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "kto", "strings", "grpo"])
def test_texts_are_tokenised_to_the_same_ids(kind, family, run, qwen, llama3):
    """As trainers do it: an EOS where there is none, then the tokenizer with what it puts around."""
    folder = {"qwen": qwen, "llama3": llama3}[family]
    kinds: dict[str, list[Any]] = {
        "sft": chats(("a", "b"), ("c", "d", "e", "f ")),
        "kto": [{"prompt": PAIR["prompt"], "completion": PAIR["chosen"], "label": True}],
        "strings": [{"prompt": "the question:\n", "chosen": "answer", "rejected": "other"}],
        "grpo": [{"prompt": turns("a", "b", "c")}],
    }
    rows = kinds.get(kind, [PAIR])
    method = {"reward": "reward"}.get(kind)
    texts = run(rows, tokenizer=folder, method=method, render_only=True)[1]
    ids = run(rows, tokenizer=folder, method=method)[1]
    tokenizer = tokenizer_of(folder)
    feed = tokenizer.encode("\n", add_special_tokens=False)
    for text, row in zip(texts, ids, strict=True):
        if kind == "grpo":
            printed = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
            assert tokenizer(text["prompt"])["input_ids"] == printed
            continue
        prompt = text.get("prompt", "")
        for side in {"text", "completion", "chosen", "rejected"} & text.keys():
            assert text[side].endswith(tokenizer.eos_token)
            whole = row["input_ids"] if side == "text" else row.get("prompt_ids", []) + row[f"{side}_ids"]
            if family == "qwen" and kind != "strings":  # the line feed behind the end of the turn is left out
                assert whole[-1:] == feed
                whole = whole[:-1]
            assert tokenizer(prompt + text[side])["input_ids"] == whole
        if prompt:
            assert tokenizer(prompt)["input_ids"] == row["prompt_ids"]


# ---------------------------------------------------------------- other kinds


def test_pairs_with_their_prompt_inside(run):
    explicit, implicit = (run([PAIR], to=to)[1] for to in (None, "preference:implicit"))
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [[row[name] for name in columns] for row in explicit] == [
        [row[name] for name in columns] for row in implicit
    ]


def test_steps_have_their_label_behind_them(run, qwen, llama3):
    rows = [{"prompt": "2 + 2 ", "completions": ["is 4.", "so\nfour", "no"], "labels": [True, False, True]}]
    for folder in (qwen, llama3):
        _, made = run(rows, tokenizer=folder)
        tokenizer = tokenizer_of(folder)
        labelled = [(at, label) for at, label in enumerate(made[0]["labels"]) if label != IGNORED]
        assert [label for _, label in labelled] == [1, 0, 1]
        steps = [
            tokenizer.decode(made[0]["input_ids"][: at + 1]).removeprefix("<|begin_of_text|>") for at, _ in labelled
        ]
        assert steps == ["2 + 2 is 4.\n", "2 + 2 is 4.\nso\nfour\n", "2 + 2 is 4.\nso\nfour\nno\n"]
        assert made[0]["dk_trained"] == 3


def test_steps_that_end_in_one_token_are_refused(run):
    report, _ = run([STEPS])
    assert report.rejected == {"DK710": 1}


# ---------------------------------------------------------------- refusals and the clock


def test_a_base_tokenizer_is_refused_with_the_way_out(run, tmp_path):
    base = chatml(tmp_path / "base", None)
    with pytest.raises(UsageError, match="no chat template") as caught:
        run(chats(("a", "b")), tokenizer=base)
    assert "--chat-template" in caught.value.hint
    assert run(chats(("a", "b")), tokenizer=base, template=PLAIN)[0].exit_code == 0
    assert run([{"text": "a"}], tokenizer=base)[0].exit_code == 0


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (chats(("a", "b")), {"method": "dpo"}, "takes preference rows; these are sft"),
        ([PAIR], {"method": "sft"}, "takes sft or trajectory rows; these are preference"),
        ([PAIR], {"method": "bco"}, "takes kto rows; these are preference"),
        (chats(("a", "b")), {"method": "ppo"}, "--for ppo"),
        ([{**chats(("a", "b"))[0], "images": ["cat.png"]}], {}, "images"),
        ([PAIR], {"train_on": "last"}, "--train-on last and --for dpo"),
        ([PAIR], {"leave_out": ["x"]}, "--leave-out and --for dpo"),
        ([{"text": "a"}], {"train_on": "last"}, "texts without turns"),
        ([STEPS], {"render_only": True}, "--render-only and --for stepwise"),
        ([{"chosen": "ab", "rejected": "ac"}], {"to": "preference:implicit"}, "needs prompts"),
        ([PAIR], {"pack": "bfd", "max_length": 100}, "--pack and --for dpo"),
    ],
)
def test_refusals(rows, options, message, run):
    with pytest.raises(UsageError, match=message) as caught:
        run(rows, **options)
    assert caught.value.hint


@pytest.mark.parametrize(("method", "command"), [("sft", "datakit convert"), ("kto", "datakit unpair")])
def test_rows_of_another_kind_are_refused_with_the_command_that_makes_them(method, command, run):
    with pytest.raises(UsageError) as caught:
        run([PAIR], method=method)
    assert caught.value.hint.startswith(command)


def test_a_pinned_clock(run):
    dated = "{{ strftime_now('%d %b %Y') }}\n" + PLAIN
    report, made = run(chats(("a", "b")), template=dated, now="2026-01-31", render_only=True)
    assert made[0]["text"].startswith("31 Jan 2026\n")
    assert not report.facts["notes"]
    report, _ = run(chats(("a", "b")), template=dated)
    assert "--now" in report.facts["notes"][0]


def test_without_trl_it_is_said_that_its_marks_are_not_known(run, monkeypatch):
    """They decide about fixed text, so the labels can be others where it is installed."""
    assert not run(chats(("a", "b")), template=PLAIN)[0].facts["notes"]
    monkeypatch.setattr(ready, "find_spec", lambda name: None)
    assert "TRL is not installed" in run(chats(("a", "b")), template=PLAIN)[0].facts["notes"][0]
    assert not run(chats(("a", "b")), template=PLAIN, render_only=True)[0].facts["notes"]


def test_lengths_agree_with_what_is_written(tmp_path, qwen):
    folder = shards(tmp_path / "shards", [{"messages": TALK}, *chats(("a", "b"))])
    facts = preparation.lengths(folder, tokenizer=qwen, workers=1).facts
    preparation.format(folder, tmp_path / "out", tokenizer=qwen, workers=1)
    sizes = [row["dk_length"] for row in datakit.load(tmp_path / "out").rows(all=True)]
    assert facts["rows"] == 2
    assert facts["tokens"]["max"] == max(sizes)


# ---------------------------------------------------------------- real rows and tokenizers

REAL = {
    "alpaca": "hiyouga__LLaMA-Factory__data__alpaca_en_demo.json",
    "sharegpt with tools": "hiyouga__LLaMA-Factory__data__glaive_toolcall_en_demo.json",
    "chat": "lm-sys__FastChat__data__dummy_conversation.json",
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The real files as shards."""
    root = tmp_path_factory.mktemp("real")
    for name, file in REAL.items():
        options: dict[str, Any] = {"on_bad_row": "quarantine", "max_bad": "5 %", "workers": 1}
        assert datakit.convert(CORPORA / "sft" / file, root / name, **options).exit_code == 0
    return {name: root / name for name in REAL}


@pytest.mark.corpora
@pytest.mark.skipif(not CORPORA.is_dir(), reason="no corpora")
@pytest.mark.parametrize("folder", ["qwen2_5", "deepseek_v3", "mistral_nemo", "gpt2"])
@pytest.mark.parametrize("name", REAL)
def test_real_rows_are_tokenised_as_transformers_does(name, folder, real, tmp_path):
    path = CORPORA / "tokenizer" / folder
    options = {}
    if folder == "gpt2":
        options["chat_template"] = tmp_path / "template.jinja"
        options["chat_template"].write_text(PLAIN, "utf-8")
    report = preparation.format(
        real[name],
        tmp_path / "out",
        tokenizer=path,
        on_bad_row="quarantine",
        max_bad="100 %",
        control_tokens="quarantine",
        severity={"DK703": "warning"},
        workers=1,
        **options,
    )
    assert report.exit_code == 0
    assert report.rows_in == report.rows_out + report.rows_rejected
    tokenizer = tokenizer_of(path)
    if folder == "gpt2":
        tokenizer.chat_template = PLAIN
    canonical = {row["dk_row"]: row for row in datakit.load(real[name]).rows(all=True)}
    seen = 0
    for row in datakit.load(tmp_path / "out").rows(all=True):
        if row["dk_row"] % 5 and seen > 20:
            continue
        source = canonical[row["dk_row"]]
        text = tokenizer.apply_chat_template(source["messages"], tools=source.get("tools"), tokenize=False)
        assert row["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
        seen += 1
    assert seen


def test_shards_have_the_columns_that_trainers_read(run):
    report, _ = run(chats(("a", "b")))
    path = next((Path(report.output) / "data").iterdir())
    types = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert types["input_ids"] == types["labels"] == "list<element: int32>"
