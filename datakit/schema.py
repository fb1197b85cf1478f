"""Kinds, forms and columns: the one definition of what a shard may hold.

A *layout* is a kind (`sft`, `preference`, ...) in a form (`messages`, `strings`, ...) with exactly one set of trainer
columns. Arrow schemas, JSON Schemas, the reader and the documentation are all derived from `LAYOUTS`.

Messages, tools and everything else whose keys vary from row to row are stored as one `arrow.json` string per field.
An Arrow struct would pad every absent key with null, and trainers no longer strip that padding
(https://github.com/huggingface/trl/pull/5376). One string per field rather than a list of them, because
`datasets` 4.7 and later returns both exactly, and polars 2.1 writes only the flat form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import pyarrow as pa

from datakit.errors import UsageError

Kind = Literal["sft", "preference", "kto", "prompt", "trajectory", "ranked", "stepwise", "tokenized"]
Type = Literal["text", "messages", "json", "chats", "texts", "bool", "bools", "int", "ints", "float", "floats"]

JSON: Final = pa.json_()

ARROW: Final[Mapping[Type, pa.DataType]] = {
    "text": pa.string(),
    "messages": JSON,
    "json": JSON,
    "chats": JSON,
    "texts": pa.list_(pa.string()),
    "bool": pa.bool_(),
    "bools": pa.list_(pa.bool_()),
    "int": pa.int64(),
    "ints": pa.list_(pa.int32()),
    "float": pa.float64(),
    "floats": pa.list_(pa.float64()),
}
IS_JSON: Final[frozenset[str]] = frozenset({"messages", "json", "chats"})

ROLES: Final = ("system", "developer", "user", "assistant", "tool")

# Columns that describe where a row came from. They never reach a trainer.
ID: Final = "dk_id"
SOURCE: Final = "dk_source"
ROW: Final = "dk_row"
META: Final = "dk_meta"

# Columns that `datakit format` adds beside them.
LENGTH: Final = "dk_length"
TRAINED: Final = "dk_trained"
IGNORED: Final = -100
"""The label of a token that is not trained, as torch has it."""

# Columns that `datakit mix` and `datakit unpair` add.
MIXED: Final = "dk_mixed_from"
PAIR_ID: Final = "dk_pair_id"
SIDE: Final = "dk_side"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a layout.

    Attributes:
        name: the name that trainers expect.
        type: how the value is stored; see `ARROW`.
        doc: one line for people.
        nullable: whether a row may have no value here.
    """

    name: str
    type: Type
    doc: str
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """The trainer columns of one kind in one form.

    `conversational` says, in TRL's sense, whether texts are lists of messages or plain strings.
    """

    kind: Kind
    form: str
    conversational: bool
    columns: tuple[Column, ...]
    doc: str = field(compare=False)

    @property
    def name(self) -> str:
        """`KIND:FORM`, with `:strings` or `:messages` behind it where the form alone does not say."""
        return ":".join(self.spec)

    @property
    def spec(self) -> tuple[str, ...]:
        values = "messages" if self.conversational else "strings"
        alike = [x for x in LAYOUTS if (x.kind, x.form) == (self.kind, self.form)]
        return (self.kind, self.form) if len(alike) == 1 else (self.kind, self.form, values)


def _layout(kind: Kind, form: str, conversational: bool, columns: str, doc: str) -> Layout:
    value: Type = "messages" if conversational else "text"
    made: list[Column] = []
    for word in columns.split():
        name, _, type_ = word.partition("=")
        optional = name.endswith("?")
        name = name.rstrip("?")
        chosen: Type = value if not type_ else TYPE_OF[type_]
        made.append(Column(name, chosen, COLUMN_DOCS[name], optional))
    return Layout(kind, form, conversational, tuple(made), doc)


TYPE_OF: Final[Mapping[str, Type]] = {t: t for t in ARROW}

_PARTS: Final = {
    "prompt": "prompt",
    "chosen": "prompt and the preferred answer",
    "rejected": "prompt and the other answer",
    "completion": "prompt and the answer",
}

COLUMN_DOCS: Final[Mapping[str, str]] = {
    "messages": "the conversation, oldest message first",
    "prompt": "what the model is given",
    "completion": "what the model answers",
    "text": "text to continue or to train on as it stands",
    "chosen": "the preferred answer",
    "rejected": "the other answer",
    "label": "true where the completion is desirable",
    "reward": "the reward of the whole trajectory",
    "completions": "several answers, or the steps of one",
    "scores": "one score per completion; higher is better",
    "labels": "one label per step, or per token (-100 is not trained)",
    "input_ids": "token ids",
    "attention_mask": "1 where a token is attended to",
    "position_ids": "position of each token in its sequence",
    "completion_mask": "1 on the tokens of the completion",
    "assistant_masks": "1 on the tokens of assistant turns",
    "seq_lengths": "tokens of each row that was packed into this one",
    "prompt_ids": "token ids of the prompt",
    "chosen_ids": "token ids of the preferred answer; of prompt and answer where there is no prompt_ids",
    "rejected_ids": "token ids of the other answer; of prompt and answer where there is no prompt_ids",
    "completion_ids": "token ids of the answer",
    **{f"{part}_input_ids": f"token ids of the {what}" for part, what in _PARTS.items()},
    **{f"{part}_attention_mask": f"1 for each token of the {what}" for part, what in _PARTS.items()},
    **{f"{part}_labels": "the ids of the answer, and -100 on the prompt before it" for part in _PARTS},
    **{f"input_ids_{side}": f"token ids of prompt and {side} answer" for side in ("chosen", "rejected")},
    **{f"attention_mask_{side}": f"1 for each token of prompt and {side} answer" for side in ("chosen", "rejected")},
    "margin": "by how much the preferred answer is better",
}

LAYOUTS: Final[tuple[Layout, ...]] = (
    _layout("sft", "messages", True, "messages", "supervised conversations"),
    _layout("sft", "prompt_completion", False, "prompt completion", "a text and its continuation"),
    _layout("sft", "prompt_completion", True, "prompt completion", "messages and the messages that answer them"),
    _layout("sft", "text", False, "text", "plain text, for language modelling"),
    _layout("preference", "strings", False, "prompt chosen rejected", "a prompt text with a better and a worse answer"),
    _layout("preference", "messages", True, "prompt chosen rejected", "a prompt with a better and a worse answer"),
    _layout("preference", "implicit", False, "chosen rejected", "two whole texts, the prompt being their common start"),
    _layout("preference", "implicit", True, "chosen rejected", "two whole conversations that share their prompt"),
    _layout("kto", "strings", False, "prompt completion label=bool", "an answer text that is desirable or not"),
    _layout("kto", "messages", True, "prompt completion label=bool", "an answer that is desirable or not"),
    _layout("prompt", "strings", False, "prompt", "a prompt text for online methods such as GRPO"),
    _layout("prompt", "messages", True, "prompt", "a prompt for online methods such as GRPO"),
    _layout("trajectory", "messages", True, "messages reward?=float", "an agent's run with its reward"),
    _layout("ranked", "strings", False, "prompt completions=texts scores=floats", "scored answer texts"),
    _layout("ranked", "messages", True, "prompt completions=chats scores=floats", "scored answers"),
    _layout("stepwise", "strings", False, "prompt completions=texts labels=bools", "labelled reasoning steps"),
    _layout(
        "tokenized", "sft", False, "input_ids=ints labels=ints", "token ids and labels, as `datakit format` writes them"
    ),
    _layout(
        "tokenized", "packed", False, "input_ids=ints labels=ints seq_lengths=ints", "several rows in one sequence"
    ),
    _layout("tokenized", "preference", False, "prompt_ids=ints chosen_ids=ints rejected_ids=ints", "a tokenised pair"),
    _layout("tokenized", "kto", False, "prompt_ids=ints completion_ids=ints label=bool", "a tokenised labelled answer"),
    _layout("tokenized", "reward", False, "chosen_ids=ints rejected_ids=ints", "two tokenised conversations"),
    _layout("tokenized", "easydel_sft", False, "input_ids=ints attention_mask=ints assistant_masks=ints", "as EasyDeL"),
    _layout(
        "tokenized",
        "easydel_preference",
        False,
        "prompt_input_ids=ints prompt_attention_mask=ints chosen_input_ids=ints chosen_attention_mask=ints "
        "chosen_labels=ints rejected_input_ids=ints rejected_attention_mask=ints rejected_labels=ints",
        "a tokenised pair, as EasyDeL reads it",
    ),
    _layout(
        "tokenized",
        "easydel_kto",
        False,
        "prompt_input_ids=ints prompt_attention_mask=ints completion_input_ids=ints completion_attention_mask=ints "
        "completion_labels=ints label=bool",
        "a tokenised labelled answer, as EasyDeL reads it",
    ),
    _layout(
        "tokenized",
        "easydel_reward",
        False,
        "input_ids_chosen=ints attention_mask_chosen=ints input_ids_rejected=ints attention_mask_rejected=ints",
        "two tokenised conversations, as EasyDeL reads them",
    ),
    _layout(
        "tokenized",
        "tokens",
        False,
        "input_ids=ints labels?=ints attention_mask?=ints position_ids?=ints completion_mask?=ints "
        "assistant_masks?=ints",
        "token ids that need no further preparation",
    ),
)

KINDS: Final[tuple[Kind, ...]] = tuple(dict.fromkeys(x.kind for x in LAYOUTS))

# Exist in an output only where a row has them. Without tools the value is null, never []: Llama templates print their
# tool boilerplate for []. Without arguments for the template it is {}, never null: TRL unpacks it with **.
OPTIONAL: Final[tuple[Column, ...]] = (
    Column("tools", "json", "tool definitions as JSON Schema, OpenAI style", True),
    Column("chat_template_kwargs", "json", "extra arguments for the chat template"),
    Column("images", "texts", "paths or addresses of the images, in the order of their placeholders", True),
)

PROVENANCE: Final[tuple[Column, ...]] = (
    Column(ID, "text", "first 16 bytes of the SHA-256 of the trainer columns, in hex"),
    Column(SOURCE, "text", "the input file, as it was typed"),
    Column(ROW, "int", "line of the file (JSON Lines), else row number, from 1"),
    Column(META, "json", "input keys that no trainer column took, with their values", True),
)

# Exist where a verb that writes shards from shards has added them; those that lie on later ones keep them.
KEPT: Final[tuple[Column, ...]] = (
    Column(MIXED, "text", "the source in the recipe that the row was taken from"),
    Column(PAIR_ID, "text", "the same for the two rows that were one pair"),
    Column(SIDE, "text", "chosen or rejected: the side of the pair that the row was"),
)

# Trainers look for any of these; a side column must not bear such a name.
TRAINER_NAMES: Final[frozenset[str]] = frozenset(
    c.name for x in LAYOUTS for c in x.columns if c.name != "reward"
) | frozenset(c.name for c in OPTIONAL)


def layout(kind: str, form: str | None = None, conversational: bool | None = None) -> Layout:
    """The layout that a kind, a form and a value type name.

    Raises:
        UsageError: there is none; the message lists those that exist.
    """
    found = [x for x in LAYOUTS if x.kind == kind and form in (None, x.form)]
    found = [x for x in found if conversational in (None, x.conversational)]
    if not found:
        known = ", ".join(dict.fromkeys(f"{x.kind}:{x.form}" for x in LAYOUTS))
        raise UsageError(f"no such kind and form: {kind}{':' + form if form else ''}", f"There are: {known}.")
    return found[-1] if conversational is None else found[0]


@dataclass(frozen=True, slots=True)
class Target:
    """What `--to KIND[:FORM[:strings|messages]]` asks for; None leaves a part as the input has it."""

    kind: Kind
    form: str | None = None
    conversational: bool | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `sft`, `sft:prompt_completion`, `sft:prompt_completion:messages`, `preference:implicit`, ...

        Raises:
            UsageError: the words name no layout.
        """
        kind, *rest = text.split(":")
        form = rest[0] if rest else None
        values = {"strings": False, "messages": True}
        if len(rest) > 2 or (len(rest) == 2 and rest[1] not in values):
            raise UsageError(
                f"--to {text}: not of the form KIND[:FORM[:strings|messages]]",
                "For example: --to sft:prompt_completion:messages.",
            )
        conversational = values[rest[1]] if len(rest) == 2 else None
        return cls(layout(kind, form, conversational).kind, form, conversational)

    def accepts(self, x: Layout) -> bool:
        return x.kind == self.kind and self.form in (None, x.form) and self.conversational in (None, x.conversational)

    def __str__(self) -> str:
        values = {None: None, False: "strings", True: "messages"}[self.conversational]
        return ":".join(part for part in (self.kind, self.form, values) if part)
