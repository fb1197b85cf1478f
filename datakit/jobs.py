"""From one canonical row to the texts that are encoded, and what is trained in each: one function per method.

A `Job` is everything about a row that can be said before tokens: its texts, spans in characters, and findings. The
prompt of a pair is a text of its own, because the trainer's prompt ids must be a prefix of both sides' ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Final

from datakit.errors import UsageError
from datakit.findings import BadRow, Finding
from datakit.formats.declare import Record
from datakit.formats.reshape import reshape
from datakit.messages import Message
from datakit.schema import Layout, layout
from datakit.templates.environment import Refused, Slow
from datakit.templates.spans import Proof, Span, Unproven, shared
from datakit.templates.template import Template

PATIENCE: Final = 5
"""Rows on which a template may be too slow before it is given up."""

Spans = list[tuple[int, int]]


@dataclass(slots=True)
class Text:
    """A text to encode.

    Attributes:
        text: as the tokenizer gets it.
        spans: characters that are trained, disjoint and in order.
        special: whether the tokenizer's own BOS and EOS go around it.
        edges: characters at which a window of a conversation may begin: behind its head, and behind each answer; none
            where the text is surely short enough.
        head: the first of them, where the system message and the tools end; 0 where there is no such stretch.
    """

    text: str
    spans: Spans = field(default_factory=list)
    special: bool = False
    edges: Sequence[int] = ()
    head: int = 0


@dataclass(slots=True)
class Job:
    """A row before tokens.

    Attributes:
        texts: by name: `text`, or `prompt`, `chosen`, `rejected`, `completion`; answers with their prompt before them.
        extra: further columns of the output.
        notes: findings.
    """

    texts: dict[str, Text]
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[Finding] = field(default_factory=list)


class Jobs:
    """Makes the jobs of one plan.

    Args:
        method: what the rows are for.
        source: layout of the rows.
        template: the chat template; None where rows are plain texts.
        tool_template: another one for rows with tools, where the tokenizer has one.
        train_on: all, last, tagged or everything.
        leave_out: assistant contents that are not trained; whole texts that one of them matches.
        eos: the end of sequence token, put behind plain texts.
        windows: tokens over which a row may become windows; a row of fewer characters cannot have as many.
    """

    def __init__(
        self,
        method: str,
        source: Layout,
        template: Template | None,
        tool_template: Template | None,
        train_on: str,
        leave_out: Sequence[str],
        eos: str,
        windows: int | None = None,
    ) -> None:
        self.method, self.source, self.train_on, self.eos = method, source, train_on, eos
        self.template, self.tool_template = template, tool_template
        self.leave_out = [re.compile(pattern, re.DOTALL) for pattern in leave_out]
        self.windows = windows
        self.slow = 0
        whole = source.conversational and any(column.name == "messages" for column in source.columns)
        self.foresees = whole and method == "sft" and train_on == "all" and not leave_out
        self.explicit: Layout | None = None
        if source.kind == "preference" and source.form == "implicit" and source.conversational:
            self.explicit = layout("preference", "messages", True)

    def foresee(self, rows: Sequence[Record]) -> list[Job | None]:
        """The jobs of those rows of a batch of which everything is known beforehand; `make` is for all others."""
        if not self.foresees or self.template is None:
            return [None] * len(rows)
        alone = [not row.get("tools") and not row.get("chat_template_kwargs") for row in rows]
        foreseen = iter(self.template.foresee([row["messages"] for row in compress(rows, alone)]))
        jobs: list[Job | None] = []
        for row, own in zip(rows, alone, strict=True):
            known = next(foreseen) if own else None
            jobs.append(None if known is None else Job({"text": self._text(*known, row["messages"])}))
        return jobs

    def make(self, record: Record) -> Job:
        """The job of a row.

        Raises:
            BadRow: the template refuses it, or nothing can be proven about it.
        """
        if self.explicit is not None:
            record = reshape(record, self.source, self.explicit)
        try:
            if self.method == "stepwise":
                return _stepwise(record)
            if self.method == "grpo":
                return self._grpo(record)
            if "messages" in record:
                return self._conversation(record)
            if "text" in record:
                text = self._ended(record["text"])
                return Job({"text": Text(text, [(0, len(text))], special=True)})
            sides = [name for name in ("completion", "chosen", "rejected") if name in record]
            made = self._answers(record, sides) if _is_chat(record[sides[0]]) else self._strings(record, sides)
        except Refused as refused:
            if isinstance(refused, Slow):
                self._count_slow()
            raise BadRow("DK701", "", str(refused)) from None
        except Unproven as unproven:
            raise BadRow("DK710", "", str(unproven)) from None
        if self.method == "sft":
            made.texts = {"text": made.texts["completion"]}
        elif self.method == "reward":
            del made.texts["prompt"]
        if "label" in record:
            made.extra["label"] = record["label"]
        return made

    def _count_slow(self) -> None:
        """Give up on a template that is slow again and again; every such row costs seconds."""
        self.slow += 1
        if self.slow >= PATIENCE:
            raise UsageError(
                f"the chat template took too long on {self.slow} rows, and was stopped",
                "It may be meant to; look at its loops, or take another --chat-template.",
            )

    # ------------------------------------------------------------ plain texts

    def _ended(self, text: str) -> str:
        return text if text.endswith(self.eos) else text + self.eos

    def _strings(self, record: Record, sides: Sequence[str]) -> Job:
        prompt = record.get("prompt", "")
        texts = {"prompt": Text(prompt, special=True)}
        for side in sides:
            whole = prompt + self._ended(record[side])
            everything = self.method == "sft" and self.train_on == "everything"
            left_out = self.method == "sft" and self._matches(record[side])
            spans = [] if left_out else [(0 if everything else len(prompt), len(whole))]
            texts[side] = Text(whole, spans, special=True)
        return Job(texts)

    # ------------------------------------------------------------ conversations

    def _for(self, tools: Any) -> Template:
        template = (self.tool_template if tools else None) or self.template
        if template is None:
            raise Refused("the tokenizer has no chat template")
        return template

    def _conversation(self, record: Record) -> Job:
        messages, tools, kwargs = record["messages"], record.get("tools"), record.get("chat_template_kwargs")
        text, proof = self._for(tools).prove(messages, tools, kwargs)
        made = self._text(text, self._chosen(messages, text, proof), messages, tools, kwargs, proof.spans)
        return Job({"text": made}, notes=_notes(proof, "messages"))

    def _text(
        self,
        text: str,
        spans: Spans,
        messages: Sequence[Message],
        tools: Any = None,
        kwargs: Any = None,
        turns: Sequence[Span] | None = None,
    ) -> Text:
        """The text of a conversation, with the places at which it can be cut into windows if it may be long.

        Args:
            turns: the spans of all assistant turns, where `spans` are not those.
        """
        made = Text(text, spans)
        if self._may_be_long(text):
            ends = [span[-1] for span in (spans if turns is None else turns)]
            made.head = self._head(messages, tools, kwargs, text)
            made.edges = [made.head] * (made.head > 0) + ends[:-1]
        return made

    def _may_be_long(self, text: str) -> bool:
        """Whether a text may have more tokens than a row; it has no more than bytes, four to a letter at most."""
        return self.windows is not None and 4 * len(text) > self.windows and len(text.encode()) > self.windows

    def _head(self, messages: Sequence[Message], tools: Any, kwargs: Any, text: str) -> int:
        """Where the system messages and the tools end, as far as the template prints them first and alone."""
        count = next((n for n, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages))
        if not count and not tools:
            return 0
        try:
            alone = self._for(tools).render(messages[:count], tools, kwargs) if count else ""
        except Refused:
            return 0
        return len(alone) if alone and text.startswith(alone) else 0

    def _chosen(self, messages: Sequence[Message], text: str, proof: Proof) -> Spans:
        """The spans that are trained, of those that could be."""
        if self.train_on == "everything":
            return [(0, len(text))]
        if self.train_on == "tagged":
            spans = [span for span in proof.spans if (messages[span.message].get("weight") or 0) > 0]
        else:
            spans = [span for span in proof.spans if messages[span.message].get("weight") != 0]
        if self.leave_out:
            spans = [span for span in spans if not self._matches(messages[span.message].get("content"))]
        if self.train_on == "last":
            spans = spans[-1:]
        return [(start, end) for _, start, end in spans]

    def _matches(self, content: Any) -> bool:
        """Whether an answer is one of those that are left out."""
        return isinstance(content, str) and any(pattern.fullmatch(content) for pattern in self.leave_out)

    def _answers(self, record: Record, sides: Sequence[str]) -> Job:
        """Prompt and answers as messages; the border is where the prompt ends, as the template prints it."""
        tools, kwargs = record.get("tools"), record.get("chat_template_kwargs")
        template = self._for(tools)
        prompt: list[Message] = record["prompt"]
        head = template.render(prompt, tools, kwargs, prompt=True)
        job = Job({"prompt": Text(head)})
        for side in sides:
            text, proof = template.prove([*prompt, *record[side]], tools, kwargs)
            border = self._border(head, text, proof, len(prompt), job, side)
            spans = [(border, len(text))]
            if self.method == "sft":
                spans = self._completion([*prompt, *record[side]], text, proof, border, len(record[side]))
            job.texts[side] = Text(text, spans)
            job.notes += [note for note in _notes(proof, side, len(prompt)) if note not in job.notes]
        return job

    def _completion(self, messages: Sequence[Message], text: str, proof: Proof, border: int, own: int) -> Spans:
        """What is trained of a completion: all of it, unless other voices speak in it or an option leaves turns out."""
        chosen = self._chosen(messages, text, proof)
        if self.train_on == "everything":
            return chosen
        inside = [(max(start, border), end) for start, end in chosen if end > border]
        return [(border, len(text))] if self.train_on == "all" and len(inside) == own else inside

    def _border(self, head: str, text: str, proof: Proof, count: int, job: Job, side: str) -> int:
        """Where the answer begins: where the text goes on after the prompt, or leaves it."""
        own = [span for span in proof.spans if span.message >= count]
        before = [span for span in proof.spans if span.message < count]
        if not own:
            raise Unproven(f"{side} has no assistant message")
        common = len(head) if text.startswith(head) else shared(head, text)
        if common < len(head):
            job.notes.append(
                Finding("DK708", side, f"the prompt alone ends on {head[common:][:40]!r}, which the text lacks")
            )
        if common > own[0].start and text[own[0].start : common].strip() and not text.startswith(head):
            raise Unproven(f"the prompt and {side} share a part of the answer")
        if before and common < before[-1].end:
            raise Unproven(f"the template prints the prompt otherwise where {side} follows")
        return common

    def _grpo(self, record: Record) -> Job:
        prompt = record["prompt"]
        if not _is_chat(prompt):
            return Job({"prompt": Text(prompt, special=True)})
        tools, kwargs = record.get("tools"), record.get("chat_template_kwargs")
        return Job({"prompt": Text(self._for(tools).render(prompt, tools, kwargs, prompt=True))})


def _is_chat(value: Any) -> bool:
    return isinstance(value, list)


FIELDS: Final[Mapping[str, str]] = {
    "content": "text",
    "reasoning": "reasoning",
    "calls": "tool calls",
    "tools": "tools",
}


def _notes(proof: Proof, column: str, prompt: int = 0) -> list[Finding]:
    """What is to be said about a row.

    Args:
        proof: of the messages of the prompt and of the column.
        column: where the messages behind the prompt stand.
        prompt: how many messages the prompt has.
    """
    if not proof.lost and not proof.unended:
        return []

    def place(number: int) -> str:
        return f"prompt[{number}]" if number < prompt else f"{column}[{number - prompt}]"

    notes = []
    for number, part in proof.lost:
        path = "tools" if number < 0 else place(number)
        notes.append(Finding("DK703", path, f"the template does not print the {FIELDS[part]}, or not all of it"))
    if proof.unended:
        none = "no end of the turn stands behind it, or none that can be told from what follows"
        notes.append(Finding("DK706", place(proof.unended[0]), none))
    return notes


def _stepwise(record: Record) -> Job:
    """A prompt and its steps, each ended by a line feed whose label is the step's."""
    text = record["prompt"]
    marks: Spans = []
    for step in record["completions"]:
        text += step + "\n"
        marks.append((len(text) - 1, len(text)))
    return Job({"text": Text(text, marks, special=True)}, {"steps": record["labels"]})
