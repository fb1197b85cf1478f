"""A chat template at work: text of a row, and the spans in it that the assistant wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from jinja2.environment import Template as Compiled

from datakit.errors import InternalError
from datakit.templates.blind import Sight
from datakit.templates.compiler import TrackedEnvironment, as_tracked
from datakit.templates.environment import MAX_TEXT, Environment, Refused, variables
from datakit.templates.foresight import Foreseen, foresee
from datakit.templates.output import Interval, Output, read
from datakit.templates.skeletons import Skeletons, plain
from datakit.templates.spans import Proof, Prover, Row, Unproven, said

LOOKED_AT: Final = 64
"""Of so many rows whose text was predicted, one is rendered to see that it is so."""

Messages = Sequence[Mapping[str, Any]]


class Template:
    """One chat template with the special tokens of its tokenizer.

    Args:
        source: the Jinja text.
        special: special tokens by name, as templates read them.
        now: the pinned time, or None.
        twin: a template that prints the same text with generation marks, if there is one.
        ends: control tokens of the tokenizer.

    Raises:
        Refused: it does not compile.
    """

    def __init__(
        self,
        source: str,
        special: Mapping[str, str],
        now: datetime | None = None,
        twin: str | None = None,
        ends: Sequence[str] = (),
    ) -> None:
        self.source, self.special, self.now, self.twin = source, dict(special), now, twin
        self.environment = Environment(now)
        self.compiled = self.environment.compile_template(source)
        self.prover = Prover(ends)
        self.skeletons = Skeletons()
        self.looked_for, self.constants = self.environment.reading_of(source, twin)
        self.sight = self.looked_for.sight if self.looked_for is not None else Sight.LOOKS
        self.predicted = 0

    @cached_property
    def _tracked(self) -> tuple[TrackedEnvironment, Compiled]:
        environment = TrackedEnvironment(self.now)
        return environment, environment.compile_template(self.source)

    @cached_property
    def _twin(self) -> tuple[TrackedEnvironment, Compiled] | None:
        if self.twin is None:
            return None
        environment = TrackedEnvironment(self.now)
        return environment, environment.compile_template(self.twin)

    def render(
        self, messages: Messages, tools: Any = None, kwargs: Mapping[str, Any] | None = None, prompt: bool = False
    ) -> str:
        """The text of a conversation, as `apply_chat_template(tokenize=False)` gives it.

        Raises:
            Refused: the template refuses the row, or a limit is reached.
        """
        text: str = self.environment.render_template(
            self.compiled, variables(messages, self.special, tools, kwargs, prompt)
        )
        return text

    def tracked(
        self, messages: Messages, tools: Any = None, kwargs: Mapping[str, Any] | None = None, prompt: bool = False
    ) -> Output:
        """The same render, with what is known about every character.

        Raises:
            Refused: as `render`.
        """
        environment, compiled = self._tracked
        values = as_tracked(variables(messages, self.special, tools, kwargs, prompt))
        return read(environment.render_template(compiled, values))

    def prove(
        self, messages: Messages, tools: Any = None, kwargs: Mapping[str, Any] | None = None
    ) -> tuple[str, Proof]:
        """The text of a conversation and its spans.

        Raises:
            Refused: the template refuses the row.
            Unproven: the law cannot be shown; with the reason.
        """
        simple = plain(messages, tools, kwargs)
        if simple is not None and (self.looked_for is None or not self.looked_for.allows(simple.texts, simple.bare)):
            simple = None
        if simple is not None and self.sight is not Sight.LOOKS:
            made = self.skeletons.predict(simple, self.sight is Sight.TRIMS)
            if made is not None and len(made[0]) <= MAX_TEXT:
                self.predicted += 1
                if self.predicted % LOOKED_AT == 1:
                    self._look_at(made[0], messages, tools, kwargs)
                return made
        text = self.render(messages, tools, kwargs)
        known = self.skeletons.match(simple, text) if simple is not None else None
        if known is not None:
            return text, known
        try:
            output = self.tracked(messages, tools, kwargs)
        except Refused as refused:
            raise Unproven(f"it can be rendered, but not tracked: {refused}") from None
        if output.text != text:
            raise Unproven("the tracked render differs from the plain one")

        def again(other: Messages, prompt: bool) -> Output:
            part = self.tracked(other, tools, kwargs, prompt)
            if part.unknown() is not None:
                raise Unproven("the template prints text of unknown origin for a part of the conversation")
            return part

        row = Row(messages, output, again, tools, kwargs, self._is_alike(messages))
        try:
            proof = self.prover.prove(row, self._marks(output, messages, tools, kwargs))
        except Refused as refused:
            raise Unproven(f"a part of the conversation cannot be rendered: {refused}") from None
        if simple is not None:
            self.skeletons.learn(simple, output, proof)
        return text, proof

    def _is_alike(self, messages: Messages) -> bool:
        """Whether no constant of the template stands in a row."""
        whole = "\0".join(said(list(messages))).casefold()
        return not any(constant in whole for constant in self.constants)

    def foresee(self, rows: Sequence[Messages]) -> list[Foreseen | None]:
        """What `prove` would say of many rows without tools and arguments; None for those that it is to be asked about.

        For short texts that takes half the time.
        """
        if self.looked_for is None or self.sight is Sight.LOOKS:
            return [None] * len(rows)
        made = foresee(rows, self.skeletons, self.looked_for)
        known = [(row, own) for row, own in zip(rows, made, strict=True) if own is not None]
        try:
            for row, own in known[-self.predicted % LOOKED_AT :: LOOKED_AT]:
                self._look_at(own.text, row, None, None)
        except Refused:
            return [None] * len(rows)  # all are left to `prove`, as if nothing were known
        self.predicted += len(known)
        return made

    def _look_at(self, text: str, messages: Messages, tools: Any, kwargs: Mapping[str, Any] | None) -> None:
        """Render a row whose text was predicted, and compare."""
        if self.render(messages, tools, kwargs) != text:
            raise InternalError(
                "a chat template that was read as one that prints texts as they are prints a row otherwise",
                "Please report the template.",
            )

    def _marks(
        self, output: Output, messages: Messages, tools: Any, kwargs: Mapping[str, Any] | None
    ) -> list[Interval]:
        """Generation blocks of the same text: the template's own, else its twin's."""
        if output.blocks or self._twin is None:
            return output.blocks
        environment, compiled = self._twin
        values = as_tracked(variables(messages, self.special, tools, kwargs))
        try:
            other = read(environment.render_template(compiled, values))
        except Refused:
            return []
        return other.blocks if other.text == output.text else []
