"""What a format is: a declaration that detection, conversion, the documentation and the tests all read.

`signature` says which columns with which shapes a row must have; `columns` says which *slot* of the normaliser each
input column fills. A parse function is for formats that hide turns inside strings or in nested records of their own.

Slots, by what they build:

    context   system, system_prompt, history, messages, prompt, user, input     what the model is given
    answer    assistant, completion, chosen, rejected, completions, first, second
    verdict   label, winner, scores, labels, reward
    carried   text, tools, images, chat_template_kwargs, input_ids, attention_mask, ...
    copies    copy_of_user, copy_of_chosen, copy_of_prompt: repeat another column; kept in dk_meta where they differ
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from datakit.formats.shapes import fits, weight
from datakit.messages import OPENAI, Context, Turn
from datakit.schema import Layout

Record = dict[str, Any]
Row = dict[str, Any]
Parse = Callable[[Row, Context], tuple[Row, frozenset[str]]]
"""From a raw row to a row with slots as columns, and the input columns that were taken."""
Join = Callable[[list[Row]], Row]
"""From the rows of one group to one raw row."""
Expand = Callable[[Row, Context], list[Row]]
"""From one raw row to several, such as the paths of a tree."""


SYSTEM: Final[Mapping[str, str]] = {"system": "system", "system_prompt": "system_prompt"}
"""The two names under which a system text stands beside its conversation, each with its slot."""


@dataclass(frozen=True)
class Format:
    """One source format.

    Attributes:
        name: what `--format` takes.
        layout: kind and form of what it becomes.
        doc: one line for `datakit formats`.
        signature: column -> shape, all of which a row must show.
        columns: slot -> column (a dotted path reaches into objects).
        example: a minimal row.
        optional: columns that strengthen the match where they are present.
        absent: columns that rule the format out.
        marks: column -> shape that at least one sampled row must show.
        turn: keys and role words of its turns.
        wins: for comparisons, what each value of the `winner` column says: first, second or tie.
        labels: for labelled rows, words that stand for true and false.
        lower_is_better: for rankings.
        group: column whose equal neighbours form one record, such as the id of a message tree.
        join: with `group`, makes one raw row of the neighbours.
        expand: makes several raw rows of one, such as the paths of a tree.
        parse: for formats that columns alone cannot describe.
        on_request: considered only where `--format` or `--to` asks for it.
        source: where the shape is documented.
        verified: False where no real row could be looked at.
        base: for a map that only adds words to a format, the name of that.
    """

    name: str
    layout: Layout
    doc: str
    signature: Mapping[str, str]
    columns: Mapping[str, str]
    example: Row
    optional: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    marks: Mapping[str, str] = field(default_factory=dict)
    turn: Turn = OPENAI
    wins: Mapping[object, str] = field(default_factory=dict)
    labels: Mapping[object, bool] = field(default_factory=dict)
    lower_is_better: bool = False
    group: str | None = None
    join: Join | None = None
    expand: Expand | None = None
    parse: Parse | None = None
    on_request: bool = False
    source: str = ""
    verified: bool = True
    base: str = ""

    def matches(self, row: Row) -> int:
        """How many points of evidence a row gives for this format; 0 where it does not match at all."""
        points = 0
        for path, shape in self.signature.items():
            found, value = look(row, path)
            if not found or not fits(value, shape):
                return 0
            points += weight(shape)
        if any(row.get(name) is not None for name in self.absent):
            return 0
        return points + sum(name in row for name in self.optional) + self.marked(row)

    def marked(self, row: Row) -> bool:
        return any(fits(look(row, path)[1], shape) for path, shape in self.marks.items())

    @cached_property
    def taken(self) -> frozenset[str]:
        """The input columns that the slots use."""
        return frozenset(self.columns.values())

    @cached_property
    def slot_of(self) -> Mapping[str, str]:
        """Column -> slot, where every slot has a plain column of its own; empty otherwise."""
        if any("." in path for path in self.taken) or len(self.taken) < len(self.columns):
            return {}
        return {column: slot for slot, column in self.columns.items()}

    @cached_property
    def starts(self) -> tuple[str, ...]:
        """The slots of the context that a row must fill."""
        return tuple(slot for slot in ("messages", "prompt", "user") if slot in self.columns)

    @cached_property
    def copies(self) -> tuple[str, ...]:
        return tuple(slot for slot in self.columns if slot.startswith("copy_of_"))


def look(row: Row, path: str) -> tuple[bool, Any]:
    """Whether a dotted path exists in a row, and its value.

    A key that contains the dots wins; a number is a step into a list: `choices.0.message`.
    """
    if path in row:
        return True, row[path]
    value: Any = row
    for key in path.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and (index := _index(key, value)) is not None:
            value = value[index]
        else:
            return False, None
    return True, value


def _index(key: str, values: list[Any]) -> int | None:
    index = int(key) if key.isascii() and key.isdigit() else len(values)
    return index if index < len(values) else None


def leftover(row: Row, taken: frozenset[str]) -> Row:
    """The parts of a row that no slot took."""
    rest = {key: value for key, value in row.items() if key not in taken}
    for path in taken:
        if "." in path and path not in row:
            head, _, tail = path.partition(".")
            value = rest.get(head)
            if isinstance(value, dict | list):
                inner = _without(value, tail)
                rest = {k: inner if k == head else v for k, v in rest.items() if k != head or inner or inner == value}
    return rest


def _without(value: Any, path: str) -> Any:
    """What is left of a value without one path; what is taken out of a list leaves a null, so that nothing moves."""
    if isinstance(value, dict):
        return leftover(value, frozenset({path}))
    key, _, tail = path.partition(".")
    index = _index(key, value) if isinstance(value, list) else None
    if index is None:
        return value
    inner = _without(value[index], tail) if tail else None
    kept = inner if inner or inner == value[index] else None
    left = [*value[:index], kept, *value[index + 1 :]]
    return left if any(item is not None for item in left) else []
