"""Reward functions: what they say of texts and of messages, how they are found, and that GRPO can call them."""

from __future__ import annotations

import asyncio
import os
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as some

from datakit.errors import UsageError
from trainglue import rewards


def chat(*texts):
    return [{"role": ("assistant", "tool")[at % 2], "content": text} for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        (chat("said"), "said"),
        (chat("a call", "a result", "the answer"), "the answer"),
        (chat("a call", "a result"), "a call"),
        (chat(None), ""),
        ([{"role": "assistant", "tool_calls": []}], ""),
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]}],
            "in parts",
        ),
        ([], ""),
    ],
)
def test_texts(completion, text):
    assert rewards.text_of(completion) == text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        (" 3 * 4 = 12\n#### 12 ", "12"),
        ("#### 1\nno:\n#### 2\n", "2"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"So $\boxed{\frac{\sqrt{3}}{2}}$.", r"\frac{\sqrt{3}}{2}"),
        (r"\boxed{1} and \boxed{\sqrt{\frac{\sqrt{3}}{2}}}", r"\sqrt{\frac{\sqrt{3}}{2}}"),
        (r"\boxed{1} or \boxed{2", "1"),
        (r"\boxed{\boxed{1}}", r"\boxed{1}"),
        ("<answer> yes\n</answer>", "yes"),
        ("<think>\\boxed{1}? #### 2?</think> 3", "3"),
        ("a </think>\n<answer>x</answer>", "x"),
        ("", ""),
    ],
)
def test_final_answers(text, answer):
    assert rewards.final_answer(text) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1,234.50", "1234.5", True),
        ("-1,234,567", "-1234567", True),
        ("1,2", "12", False),
        ("0,5", "5", False),
        ("1,2345", "12345", False),
        ("1234,567", "1234567", False),
        ("$12", "12.", True),
        ("50%", "50", True),
        ("-3", "3", False),
        ("12", "12 apples", False),
        ("Paris.", " paris ", True),
        ("New  York", "new york", True),
        ("Paris", "London", False),
        ("nan", "NaN", True),
        ("inf", "-inf", False),
        ("", "", True),
        ("1 2", "12", False),
        ("1_2", "12", False),
    ],
)
def test_same_answers(one, other, same):
    assert rewards.same_answer(one, other) is same
    assert rewards.same_answer(other, one) is same


@given(some.integers(-(10**12), 10**12), some.integers(0, 3))
def test_a_number_is_its_own_answer_in_any_dress(number, places):
    written = (
        f"{number:,}",
        f"#### {number}",
        f"\\boxed{{{number}}}",
        f"{number}.{'0' * places}",
        f"<answer>${number}</answer>",
    )
    answers = [rewards.final_answer(text) for text in written]
    assert all(rewards.same_answer(answer, str(number)) for answer in answers)
    assert not any(rewards.same_answer(answer, str(number + Fraction(1, 1))) for answer in answers)


BRACED = some.recursive(
    some.text("ab \\1/", max_size=4),
    lambda inner: some.lists(some.one_of(inner, inner.map("{{{}}}".format)), max_size=3).map("".join),
)
"""Texts of which every brace is closed, to any depth."""


@given(some.lists(BRACED, max_size=3), BRACED)
def test_a_box_ends_with_its_own_brace(inside, between):
    text = between + "".join(f"\\boxed{{{one}}}{between}" for one in inside)
    assert rewards.boxed(text) == inside
    assert rewards.answer_format([text]) == [float(len(inside) == 1)]
    assert rewards.boxed(text + "\\boxed{" + between) == inside


@given(some.text(), some.text())
def test_texts_are_compared_without_error(one, other):
    assert rewards.same_answer(one, one)
    assert rewards.same_answer(one, other) == rewards.same_answer(other, one)


def test_exact_match_takes_the_answer_of_the_row():
    completions = ["It is 12.\n#### 12", chat("#### 13"), "12", "whatever"]
    answers = ["3 * 4 = 12\n#### 12", "#### 12", "12", None]
    assert rewards.exact_match(completions, prompts=[""] * 4, answer=answers) == [1.0, 0.0, 1.0, None]
    assert rewards.exact_match(["7"], solution=[7]) == [1.0]
    assert rewards.exact_match(["7"], answer=["7"], solution=["8"]) == [1.0]


def test_exact_match_without_answers_is_an_error():
    with pytest.raises(UsageError, match="the rows have level, prompts") as caught:
        rewards.exact_match(["7"], prompts=["?"], level=[1])
    assert "answer or solution" in caught.value.hint


def test_formats():
    texts = [
        "#### 1",
        chat("<answer>1</answer>"),
        "1",
        "#### 1\n#### 2",
        "#### 1 \\boxed{1}",
        "<think>#### 1</think> #### 2",
    ]
    assert rewards.answer_format(texts, answer=[]) == [1, 1, 0, 0, 0, 1]
    thoughts = [
        "<think>\nso\n</think>\n\nyes\nyes",
        chat("so</think>yes"),
        "<think></think>yes",
        "<think>so</think>  ",
        "yes",
        "<think>so</think>yes</think>no",
        "<think><think>so</think>yes",
        "first <think>so</think>yes",
    ]
    assert rewards.think_format(thoughts) == [1, 1, 1, 0, 0, 0, 0, 0]


@given(some.integers(0, 1500))
def test_length_falls_evenly(size):
    reward, longer = rewards.length([[0] * size, [0] * (size + 1)])
    assert -1 <= longer <= reward <= 0
    assert (reward == 0) == (size <= 512)
    assert (reward == -1) == (size >= 1024)


# ---------------------------------------------------------------- how they are found


def test_ready_ones_are_listed_and_found():
    listed = rewards.listing()
    assert list(listed) == ["exact_match", "answer_format", "think_format", "length"]
    assert all(text.endswith(".") and len(text) < 120 for text in listed.values())
    for name in listed:
        assert rewards.find(name) is rewards.READY[name]
        assert rewards.find(rewards.READY[name]) is rewards.READY[name]


def test_dotted_paths_are_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine.py").write_text(
        "def polite(completions, **columns):\n    return [1.0 for _ in completions]\n\ndef narrow(completions): ...\n\nfive = 5\n"
    )
    (tmp_path / "rewards_of_theirs.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert rewards.find("rewards_of_mine.polite")(["a", "b"]) == [1.0, 1.0]
    assert rewards.find("rewards_of_mine:polite")(["a"]) == [1.0]
    for name, match in (
        ("rewards_of_mine.rude", "has no rude"),
        ("rewards_of_mine.five", "is of type int"),
        ("rewards_of_mine.narrow", "takes no \\*\\*columns"),
        ("rewards_of_nobody.polite", "there is no module rewards_of_nobody"),
        ("rewards_of_mine.deeper.polite", "there is no module rewards_of_mine.deeper"),
        ("polite", "no reward 'polite'"),
    ):
        with pytest.raises(UsageError, match=match):
            rewards.find(name)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        rewards.find("rewards_of_theirs.polite")


def test_objects_are_taken_as_they_are():
    class Judge:
        def __call__(self, completions, **columns):
            return [0.0] * len(completions)

    judge = Judge()
    assert rewards.find(judge) is judge
    with pytest.raises(UsageError, match=r"takes no \*\*columns"):
        rewards.find(lambda completions: [])
    with pytest.raises(UsageError, match="is of type int"):
        rewards.find(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="reward max does not say what it takes"):
        rewards.find(max)


def lacking(completions, **columns):
    """A reward that fails in a function of its own."""
    return [_gold(columns) for _ in completions]


def _gold(columns):
    return columns["gold"]


def once(completions, **columns):
    return [1.0]


async def later(completions, scale=1.0, **columns):
    return [scale] * len(completions)


async def never(completions, **columns):
    raise ValueError("no judge")


def texts(completions, **columns):
    return ["0.5"] * len(completions)


class Judge:
    def __call__(self, completions, **columns):
        return 1.0


class Slow:
    async def __call__(self, completions, **columns):
        return [0.5] * len(completions)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lacking, r"reward lacking, .*test_rewards.py:\d+: KeyError: 'gold'"),
        (once, "reward once returned 1 value for 2 completions"),
        (Judge(), "reward Judge returned a float for 2 completions"),
        (texts, "reward texts returned '0.5' for a completion"),
        (never, r"reward never, .*test_rewards.py:\d+: ValueError: no judge"),
    ],
)
def test_a_reward_that_fails_is_named(reward, said):
    made = rewards.checked(reward)
    with pytest.raises(UsageError, match=said) as caught:
        asyncio.run(made(completions=["a", "b"])) if reward is never else made(completions=["a", "b"])
    assert "returns a number or None" in caught.value.hint
    if reward is lacking:
        assert f":{_gold.__code__.co_firstlineno + 1}:" in caught.value.message


def test_a_reward_that_is_right_is_called_as_it_is():
    assert rewards.checked(rewards.length)(completions=["a"], completion_ids=[[1]]) == [0.0]
    twice = rewards.checked(partial(later, scale=2.0))
    assert asyncio.run(twice(completions=["a", "b"])) == [2.0, 2.0]
    assert asyncio.run(rewards.checked(Slow())(completions=["a"])) == [0.5]
    assert [rewards.checked(one).__name__ for one in (partial(later), Slow(), rewards.length)] == [
        "later",
        "Slow",
        "length",
    ]
    assert rewards.checked(lambda completions, **_: (1.0 for _ in completions))(completions=["a", "b"]) == [1.0, 1.0]
    with pytest.raises(UsageError, match="exact_match needs a column"):
        rewards.checked(rewards.exact_match)(completions=["a"])

    def full(completions, **columns):
        raise RuntimeError("CUDA out of memory.")

    with pytest.raises(RuntimeError, match="out of memory"):
        rewards.checked(full)(completions=["a"])


# ---------------------------------------------------------------- GRPO calls them


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("form", ["strings", "messages"])
def test_grpo_calls_them(form, tmp_path):
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    pytest.importorskip("trl")
    import datasets
    from trl import GRPOConfig, GRPOTrainer

    from tests import bco_reference

    tokenizer = bco_reference.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    words = ["w4 w5 w6", "w7 w8"]
    prompts = words if form == "strings" else [[{"role": "user", "content": text}] for text in words]
    dataset = datasets.Dataset.from_dict({"prompt": prompts, "answer": ["w9", None]})
    trainer = GRPOTrainer(
        model=bco_reference.model(),
        reward_funcs=[rewards.find(name) for name in rewards.READY],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=6,
            beta=0.0,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {
        f"rewards/{name}/mean" for name in ("exact_match", "answer_format", "think_format", "length")
    } <= logged.keys()
