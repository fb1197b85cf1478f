r"""Reward functions for GRPO: some that are ready, and yours by dotted path.

    trainglue grpo ... --reward exact_match --reward my_rewards.polite

A reward function is called with keyword arguments for a whole batch: `completions`, `prompts`, `completion_ids`, and
every further column of the shards by its name. It returns one number per completion, or None where it has nothing to
say; GRPO leaves those out. A completion is a text, or messages if the prompt was:

    def polite(completions, **columns):
        return [float("please" in rewards.text_of(completion)) for completion in completions]
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from functools import partial
from itertools import product
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any, Final

from datakit.errors import DatakitError, UsageError
from datakit.terminal import plural
from trainglue import memory

if TYPE_CHECKING:
    from trainglue.data import Rows

Completion = str | Sequence[Mapping[str, Any]]
Reward = Callable[..., Sequence[float | None]]

ANSWER_COLUMNS: Final = ("answer", "solution", "ground_truth", "reference_answer", "target")
BOXED: Final = "\\boxed{"

GROUPED: Final = re.compile(r"\s*[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?\s*")
"""A number with commas between thousands; any other comma is no part of a number."""

SCORED: Final = {"prompt", "completion", "completion_ids"}
"""Columns that TRL does not pass to a reward function."""

PASSED: Final = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""What TRL passes to a reward function beside the columns."""

THOUGHT: Final = re.compile(
    r"\s*(?:<think>)?(?:(?!</?think>).)*</think>\s*(?:(?!</?think>)\S)(?:(?!</?think>).)*", re.DOTALL
)
"""One thought and an answer behind it."""

LONG: Final = 512

WRITE: Final = "Write def my_reward(completions, **columns), which returns a number or None for each completion."

DOTTED: Final = "Give it as module.function: my_rewards.polite for a function of my_rewards.py in this folder."


def find(reward: str | Reward) -> Reward:
    """A reward function by its name here, by a dotted path such as `my_rewards.polite`, or itself.

    Modules are looked for where Python does, and in the current folder.

    Raises:
        UsageError: there is none, or GRPO could not call it.
    """
    if not isinstance(reward, str):
        return _callable(reward, name_of(reward))
    if reward in READY:
        return READY[reward]
    module_name, _, name = reward.replace(":", ".").rpartition(".")
    if not module_name:
        raise UsageError(f"no reward {reward!r}", f"Ready are {', '.join(READY)}; give others as module.function.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there and misses another one
        raise UsageError(f"reward {reward}: there is no module {error.name}", DOTTED) from None
    except AttributeError:
        raise UsageError(f"reward {reward}: {module_name} has no {name}", DOTTED) from None
    return _callable(found, reward)


def several(reward: str | Reward | Sequence[str | Reward] | None) -> list[Reward]:
    """The reward functions of a run; a module of the user's is imported after the engine.

    Raises:
        UsageError: there is none, or as `find`.
    """
    if reward is None:
        raise UsageError("GRPO needs a reward function", "`trainglue rewards` lists those that are ready.")
    return [find(one) for one in ([reward] if isinstance(reward, str) or callable(reward) else reward)]


def check_prompts(rewards: Sequence[Any], template: str | None, *given: Rows | None) -> None:
    """Refuse prompts that would fail at the first step of GRPO: without a template, or a column that a reward needs.

    Raises:
        UsageError: with the function, the column, and those that there are.
    """
    first = [next(iter(rows.dataset)) for rows in given if rows and rewards]
    if template is None and any(not isinstance(row["prompt"], str) for row in first):
        raise UsageError(
            "the prompts are messages, and the tokenizer has no chat template", "Give one with --chat-template FILE."
        )
    for rows, reward in product(filter(None, given), rewards):
        there = [name for name in rows.dataset.column_names or () if name not in SCORED]
        if reward is exact_match:
            reward([], **{name: [] for name in there})  # of no rows, so that it looks at their columns only
        if missing := [name for name in _needed(reward) if name not in there]:
            raise UsageError(
                f"reward {name_of(reward)} needs the column {missing[0]}; the rows have {', '.join(there) or 'none'}",
                "Name it so in the source, or give the parameter a default.",
            )


def _needed(reward: Any) -> list[str]:
    """The columns that a function cannot do without; a reward model has none."""
    parameters = [] if hasattr(reward, "forward") else inspect.signature(reward).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.default is p.empty and p.name not in PASSED]


def listing() -> dict[str, str]:
    """The rewards that are ready, each with a sentence."""
    return {name: (reward.__doc__ or "").strip().splitlines()[0] for name, reward in READY.items()}


def name_of(reward: Any) -> str:
    """What GRPO calls a reward in its log."""
    while isinstance(reward, partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def checked(reward: Any) -> Any:
    """A reward function that says where it failed; a reward model is itself.

    The function raises `UsageError` where the reward raises, or returns another number of values than completions.
    """
    if hasattr(reward, "forward"):
        return reward
    name = name_of(reward)

    def counted(values: Any, completions: Sequence[Any]) -> list[Any]:
        found = list(values) if isinstance(values, Iterable) else None
        if found is None or len(found) != len(completions):
            what = f"a {type(values).__name__}" if found is None else plural(len(found), "value")
            raise UsageError(f"reward {name} returned {what} for {plural(len(completions), 'completion')}", WRITE)
        for value in found:
            if value is not None and not hasattr(value, "__float__"):
                raise UsageError(f"reward {name} returned {value!r} for a completion", WRITE)
        return found

    def called(*, completions: Sequence[Any], **columns: Any) -> Any:
        with _placed(name):
            return counted(reward(completions=completions, **columns), completions)

    async def awaited(*, completions: Sequence[Any], **columns: Any) -> Any:
        with _placed(name):
            return counted(await reward(completions=completions, **columns), completions)

    called.__name__ = awaited.__name__ = name
    return awaited if _is_async(reward) else called


def _is_async(reward: Any) -> bool:
    while isinstance(reward, partial):
        reward = reward.func
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__)


@contextmanager
def _placed(name: str) -> Iterator[None]:
    """Name the reward and the last line of its own file where it raises."""
    try:
        yield
    except DatakitError:
        raise
    except Exception as error:
        if memory.ends(error):
            raise
        frames = extract_tb(error.__traceback__)[2:]  # behind `_placed` and `called`
        own = [frame for frame in frames if frame.filename == frames[0].filename]
        place = f", {own[-1].filename}:{own[-1].lineno}" if own else ""
        raise UsageError(f"reward {name}{place}: {type(error).__name__}: {error}", WRITE) from error


# ---------------------------------------------------------------- what completions say


def text_of(completion: Completion) -> str:
    """The text of a completion; of messages, that of the last one of the assistant."""
    if isinstance(completion, str):
        return completion
    content = next((message.get("content") for message in reversed(completion) if message["role"] == "assistant"), "")
    if isinstance(content, str | None):
        return content or ""
    return "".join(part.get("text") or "" for part in content)


def final_answer(text: str) -> str:
    """What a text marks as its answer, the last time that it does; without a mark, all that follows its thoughts."""
    said = text.rpartition("</think>")[2]
    return next((found[-1].strip() for mark in MARKS if (found := mark(said))), said.strip())


def boxed(text: str) -> list[str]:
    """What stands in each \\boxed{} of a text that has its closing brace; one inside another belongs to the outer."""
    found, at = [], text.find(BOXED)
    while at >= 0:
        start = at + len(BOXED)
        end = _closing(text, start)
        if end is not None:
            found.append(text[start:end])
        at = text.find(BOXED, start if end is None else end)
    return found


def _closing(text: str, start: int) -> int | None:
    """Where the brace is that closes the one before `start`."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return start + brace.start()
    return None


MARKS: Final[Sequence[Callable[[str], list[str]]]] = (
    re.compile(r"<answer>(.*?)</answer>", re.DOTALL).findall,
    boxed,
    re.compile(r"####[ \t]*([^\n]*)").findall,
)
"""How a text marks its final answer, in this order: each gives all answers that it finds."""


def same_answer(one: str, other: str) -> bool:
    """Whether two answers are equal: as numbers if both are, else as texts but for case, spaces and a final stop."""
    numbers = _number(one), _number(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _plain(one) == _plain(other)


# ---------------------------------------------------------------- rewards


def exact_match(completions: Sequence[Completion], **columns: Any) -> list[float | None]:
    """1 if the final answer is that of the row, else 0; rows without an answer are left out.

    The final answer stands in <answer> tags, in \\boxed{} or after ####, or is the whole text. The answer of the row is
    in the first of the columns `ANSWER_COLUMNS`.

    Raises:
        UsageError: the shards have no such column.
    """
    column = next((name for name in ANSWER_COLUMNS if name in columns), None)
    if column is None:
        raise UsageError(
            f"exact_match needs a column of answers; the rows have {', '.join(sorted(columns)) or 'none'}",
            f"Name it {' or '.join(ANSWER_COLUMNS)} in the source.",
        )
    return [
        None if expected is None else float(same_answer(final_answer(text_of(one)), final_answer(str(expected))))
        for one, expected in zip(completions, columns[column], strict=True)
    ]


def answer_format(completions: Sequence[Completion], **_: Any) -> list[float]:
    """1 if the text marks exactly one final answer, by <answer> tags, \\boxed{} or ####, else 0."""
    texts = [text_of(completion).rpartition("</think>")[2] for completion in completions]
    return [float(sum(len(mark(text)) for mark in MARKS) == 1) for text in texts]


def think_format(completions: Sequence[Completion], **_: Any) -> list[float]:
    """1 if there is one thought, ended by </think>, and an answer after it, else 0; <think> may stand in the prompt."""
    return [float(THOUGHT.fullmatch(text_of(completion)) is not None) for completion in completions]


def length(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """0 up to 512 tokens, then falling evenly to -1 at 1024, where it stays."""
    return [-min(max(len(ids) - LONG, 0) / LONG, 1.0) for ids in completion_ids]


READY: Final[Mapping[str, Reward]] = {
    "exact_match": exact_match,
    "answer_format": answer_format,
    "think_format": think_format,
    "length": length,
}


# ---------------------------------------------------------------- numbers, texts and names


def _callable(reward: Any, name: str) -> Reward:
    if not callable(reward):
        raise UsageError(
            f"reward {name} is of type {type(reward).__name__}", "Give a function of completions and **columns."
        )
    if hasattr(reward, "forward"):
        return reward  # a reward model
    try:
        parameters = inspect.signature(reward).parameters.values()
    except ValueError:
        raise UsageError(
            f"reward {name} does not say what it takes", f"Give a function that calls it. {WRITE}"
        ) from None
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        raise UsageError(f"reward {name} takes no **columns, and GRPO passes it every column", WRITE)
    return reward


def _number(text: str) -> Decimal | None:
    said = text.strip().rstrip(".").strip().strip("$€£%").replace("_", " ")
    try:
        number = Decimal(said.replace(",", "") if GROUPED.fullmatch(said) else said)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".").strip()
