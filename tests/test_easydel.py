"""EasyDeL's columns say the same as TRL's, under the names and in the shapes that its trainers read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.easydel import columns
from datakit.schema import IGNORED

IDS = st.lists(st.integers(0, 2**31 - 1), max_size=6)


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6), max_size=4))
def test_sft(rows):
    ids = [[id for id, _ in row] for row in rows]
    labels = [[id if trained else IGNORED for id, trained in row] for row in rows]
    arrow = {"input_ids": pa.array(ids, pa.list_(pa.int32())), "labels": pa.array(labels, pa.list_(pa.int32()))}
    made = columns("sft", {**arrow, "dk_length": [len(row) for row in rows]})
    assert set(made) == {"input_ids", "attention_mask", "assistant_masks", "dk_length"}
    assert [row.tolist() for row in made["input_ids"]] == ids
    assert [row.tolist() for row in made["assistant_masks"]] == [[int(trained) for _, trained in row] for row in rows]
    assert [row.tolist() for row in made["attention_mask"]] == [[1] * len(row) for row in rows]


@settings(deadline=None)
@given(st.lists(st.tuples(IDS, IDS, IDS), max_size=4))
def test_answers_have_their_prompt_before_them(rows):
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    given_columns = {name: [np.array(row[at], np.int32) for row in rows] for at, name in enumerate(names)}
    made = columns("preference", given_columns)
    for number, (prompt, chosen, rejected) in enumerate(rows):
        for side, answer in (("chosen", chosen), ("rejected", rejected)):
            assert made[f"{side}_input_ids"][number].tolist() == prompt + answer
            assert made[f"{side}_labels"][number].tolist() == [IGNORED] * len(prompt) + answer
            assert made[f"{side}_attention_mask"][number].tolist() == [1] * len(prompt + answer)
        assert made["prompt_input_ids"][number].tolist() == prompt
    kto = {
        "prompt_ids": given_columns["prompt_ids"],
        "completion_ids": given_columns["chosen_ids"],
        "label": [True] * len(rows),
    }
    made = columns("kto", kto)
    assert [row.tolist() for row in made["completion_input_ids"]] == [prompt + answer for prompt, answer, _ in rows]
    assert made["label"] == kto["label"]


def test_reward():
    made = columns("reward", {"chosen_ids": [np.array([1, 2])], "rejected_ids": [np.array([3])], "margin": [0.5]})
    assert made["input_ids_chosen"][0].tolist() == [1, 2]
    assert made["attention_mask_rejected"][0].tolist() == [1]
    assert made["margin"] == [0.5]
