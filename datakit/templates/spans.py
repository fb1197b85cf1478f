"""Which characters of a rendered conversation the assistant wrote: proven for every row, or refused with the reason.

The law. The span of an assistant message holds its content, reasoning and tool calls as the template prints them, and
the end of its turn; it holds nothing of any other message, of the tools or of the template's arguments. Fixed text of
the template before it is not trained, unless it opens a reasoning or a tool call, which the model has to write itself;
white space behind the end of the turn is not trained either. Where the template, or its training twin, marks what is
generated (`{% generation %}`) and the marks keep the law, they decide about that fixed text.

How it is shown. The row is rendered a second time with tracked strings. Both texts are equal, so it is the same
execution; the origin of every character is then known, and the stretch of the output that the template printed for each
message. Four things follow without looking at the meaning of any text:

    start   the first character of the message's own data; where that is not the beginning of its text (a reasoning, a
            call, a thought that the template has cut out of the text), or a call stands behind the text, the end of the
            template's own prompt for an answer, found in the fixed text before it
    end     the end of the stretch that the template printed for this message, without trailing white space; where the
            template closes a turn elsewhere, what the whole text and the conversation cut behind the turn agree on
    inside  no data of another origin between them
    outside no data of the message outside, but for copies, such as a tool's name over its result

Anything else is refused. Nothing here knows a template, a name or a hash.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

from datakit.templates.environment import REASONING, Refused
from datakit.templates.output import Interval, Output, Run
from datakit.templates.tracked import TOOLS, Origin

Render = Callable[[Sequence[Mapping[str, Any]], bool], Output]
"""Renders messages of one row, tracked, with its tools and arguments; the flag asks for the prompt of an answer.
It raises `Refused` where the template does, and `Unproven` for text of unknown origin."""

CONTROL: Final = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]")
"""What looks like a control token, for borders that must not fall inside one."""


class Span(NamedTuple):
    """Characters start to end, written in assistant message `message`."""

    message: int
    start: int
    end: int


class Unproven(Exception):
    """Why the law could not be shown for a row."""


class _Joined(Unproven):
    """An end cannot be told from what follows, unless the template marks it."""


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation and its tracked render, whose text is known to equal the plain one.

    Attributes:
        messages: the conversation.
        output: its tracked render.
        render: makes further renders of the same row.
        tools: its tool definitions, if any.
        kwargs: its template arguments, if any.
        alike: whether its texts hold none of the template's constants, so that its own text around the turns is that
            of other such rows with the same outline.
    """

    messages: Sequence[Mapping[str, Any]]
    output: Output
    render: Render
    tools: Any = None
    kwargs: Mapping[str, Any] | None = None
    alike: bool = False

    def outline(self, number: int) -> tuple[Any, ...]:
        """All of the row up to a message but what its texts say."""
        messages = tuple(
            tuple((key, _outlined(key, value)) for key, value in message.items())
            for message in self.messages[: number + 1]
        )
        return messages, None if self.tools is None else str(self.tools), str(self.kwargs)


def _outlined(key: str, value: Any) -> Any:
    """A value of a message without its texts: whether they are blank, and how many there are."""
    if key in ("content", *REASONING, "tool_call_id", "id"):
        return not value.strip() if isinstance(value, str) else (type(value).__name__, bool(value))
    return (len(value), bool(value)) if isinstance(value, list) else str(value)


class Proof(NamedTuple):
    """What is known about a row.

    Attributes:
        spans: one per assistant message, in order, disjoint.
        marked: whether the borders are those of generation marks.
        unended: assistant messages behind which the template prints no end of turn.
        lost: parts of the row that the template does not print: message number (-1 for the tools) and field.
    """

    spans: list[Span]
    marked: bool = False
    unended: Sequence[int] = ()
    lost: Sequence[tuple[int, str]] = ()


@dataclass(slots=True)
class _Turn:
    """An assistant message in the output: its own data, and the stretch that was printed for it."""

    number: int
    start: int
    end: int
    plain: bool
    """Whether its text begins it, so that only a call behind it can have opened it; true of an empty message too."""
    interval: Interval | None
    field: str = ""
    """Of its last data: content, reasoning or calls; empty for an empty message."""
    alone: Output | None = None
    """The conversation up to this message, where it was needed to tell the turn from what follows."""
    last: int = 0
    """Where the last data of the turn ends in `alone`."""


class Prover:
    """Proves rows of one template; remembers the prompts that it has seen.

    Args:
        ends: texts that end a turn, such as the tokenizer's control tokens; borders do not fall inside one.
    """

    def __init__(self, ends: Sequence[str] = ()) -> None:
        inner = "|".join(map(re.escape, sorted((e for e in ends if e), key=len, reverse=True)))
        self._control = re.compile(f"{inner}|{CONTROL.pattern}" if inner else CONTROL.pattern)
        self._openings: dict[tuple[Any, ...], int] = {}
        self._endings: dict[tuple[Any, ...], str | None] = {}

    def prove(self, row: Row, marks: Sequence[Interval]) -> Proof:
        """The spans of a row.

        Args:
            row: the row.
            marks: generation blocks of the same text, if a template marks them.

        Raises:
            Unproven: with the reason.
        """
        output = row.output
        _check_origins(row)
        turns = [self._turn(n, row) for n, message in enumerate(row.messages) if message["role"] == "assistant"]
        joined: _Joined | None = None
        try:
            ends = self._ends(turns, row)
        except _Joined as found:
            joined = found
            marked_ends = zip(turns, _by_turn(turns, marks), strict=True)
            ends = [mine[-1].end if mine else turn.end for turn, mine in marked_ends]
        unended = self._unended(turns, ends, row)
        spans = _from_marks(turns, ends, marks, output)
        marked = spans is not None
        if spans is None and joined is not None:
            raise joined
        if spans is None:
            spans = [Span(turn.number, self._start(turn, row), end) for turn, end in zip(turns, ends, strict=True)]
        _check(spans, output)
        return Proof(spans, marked, unended, lost(row, spans))

    # ------------------------------------------------------------ the turn

    def _turn(self, number: int, row: Row) -> _Turn:
        output = row.output
        own = output.of(number)
        interval = _interval(number, own, output)
        if interval is None or _foreign(output, number, own, interval):
            return self._turn_alone(number, row)
        inside = [run for run in own if interval.start <= run.start and run.end <= interval.end]
        _only_copies(own, inside, output, number)
        if inside:
            return _Turn(number, inside[0].start, inside[-1].end, _plain(row, inside), interval, inside[-1].origin[1])
        places = [at for at in output.empty[number] if interval.start <= at <= interval.end]
        at = places[-1] if places else self._empty_place(number, row, interval)
        return _Turn(number, at, at, True, interval)

    @staticmethod
    def _empty_place(number: int, row: Row, interval: Interval) -> int:
        """Where the text of a message would stand of which the template prints nothing."""
        messages = row.messages
        filled = [*messages[:number], {**messages[number], "content": "x"}, *messages[number + 1 :]]
        other = row.render(filled, False)
        own = other.of(number)
        if len(own) != 1:
            raise Unproven(f"nothing of assistant message {number} is printed")
        head, tail = other.text[: own[0].start], other.text[own[0].end :]
        if head + tail != row.output.text or not interval.start <= own[0].start <= interval.end:
            raise Unproven(f"nothing of assistant message {number} is printed")
        return own[0].start

    @staticmethod
    def _turn_alone(number: int, row: Row) -> _Turn:
        """A turn that other messages are printed into: its extent is that in the conversation cut behind it."""
        output = row.output
        alone = row.render(row.messages[: number + 1], False)
        mine, all_own = alone.of(number), output.of(number)
        mine = [run for run in mine if run.start >= _last_foreign(alone, number)] or mine
        if not any(run.origin[1] == "reasoning" for run in all_own):
            mine = [run for run in mine if run.origin[1] != "reasoning"]  # left out where more follows
        own = all_own[: len(mine)]
        if not mine and not all_own:
            raise Unproven(f"nothing of assistant message {number} is printed")
        same = [alone.text[a.start : a.end] == output.text[b.start : b.end] for a, b in zip(mine, own, strict=False)]
        if not mine or len(own) < len(mine) or not all(same):
            raise Unproven(f"assistant message {number} depends on the messages behind it")
        _only_copies(all_own, own, output, number)
        if any(run.start >= mine[-1].end for run in alone.data if run.origin[0] != number):
            raise Unproven(f"the template prints other data behind the text of assistant message {number}")
        if len({_passes(run, output) for run in own}) > 1:
            raise Unproven(f"the template prints parts of assistant message {number} in the turns of others")
        interval = _interval(number, own, output)
        last = own[-1].origin[1]
        return _Turn(number, own[0].start, own[-1].end, _plain(row, own), interval, last, alone, mine[-1].end)

    # ------------------------------------------------------------ the start

    def _start(self, turn: _Turn, row: Row) -> int:
        """The first character to train."""
        if turn.plain and turn.field != "calls":
            return turn.start
        before = _data_before(row.output, turn.start)
        stretch = row.output.text[before : turn.start]
        key = (stretch, turn.plain, *row.outline(turn.number))
        at = self._openings.get(key) if row.alike else None
        if at is None:
            try:
                at = self._opening(stretch, turn.number, row)
            except Unproven:
                if not turn.plain:
                    raise
                at = len(stretch)  # where a plain answer starts
            if row.alike:
                self._openings[key] = at
        return turn.start if turn.plain and not stretch[at:].strip() else before + at

    def _opening(self, stretch: str, number: int, row: Row) -> int:
        """How much of the fixed text before a reasoning or a call is not part of it: the prompt, an empty thought."""
        heads = [head for head in _heads(number, row) if head.strip()]
        fits = [len(head) for head in heads if stretch.startswith(head)]
        if fits:
            return max(fits)
        for head in heads:  # the prompt has other white space than the text
            at = _past(stretch, head)
            if at is not None and self._whole(stretch, (), at) == at:
                return at + _blank(stretch[at:])
        cut = self._whole(stretch, heads, min((shared(stretch, head) for head in heads), default=0))
        if stretch[:cut].strip() and len(heads) > 1:
            return cut  # the header that all answers have
        raise Unproven(f"the start of assistant message {number} is not where the template's own prompt ends")

    def _whole(self, stretch: str, others: Sequence[str], cut: int) -> int:
        """A border in fixed text, moved back where it falls inside a control token or a word of either text."""
        for text in (stretch, *others):
            for match in self._control.finditer(text):
                if match.start() < cut < match.end():
                    cut = match.start()
        while 0 < cut < len(stretch) and stretch[cut - 1].isalnum() and stretch[cut].isalnum():
            cut -= 1
        return cut

    # ------------------------------------------------------------ the end

    def _ends(self, turns: Sequence[_Turn], row: Row) -> list[int]:
        """Behind the end of every turn; the end of its data where the template prints no end."""
        text = row.output.text
        own = [self._own_end(turn, row) for turn in turns]
        ends = [
            self._shared_end(turn, turn.end, row) if end is None else end for turn, end in zip(turns, own, strict=True)
        ]
        ends = [self._with_usual_end(turn, end, row) for turn, end in zip(turns, ends, strict=True)]
        closers = {self._closer(text[turn.end : end]) for turn, end in zip(turns, ends, strict=True)}
        for index, turn in enumerate(turns) if len(closers) > 1 else ():
            further = self._shared_end(turn, ends[index], row)
            if text[ends[index] : further].strip() in closers:  # the next pass of the loop prints it
                ends[index] = further
        return ends

    def _own_end(self, turn: _Turn, row: Row) -> int | None:
        """Where the stretch of the turn ends; None where the template closes it elsewhere."""
        if turn.interval is None or turn.alone is not None:
            return None
        text = row.output.text
        closing = text[turn.end : turn.interval.end].rstrip()
        tokens = [run for run in row.output.tokens if run.origin[1] == "eos_token" and run.start >= turn.end]
        for run in tokens:
            if run.end <= turn.interval.end:
                return run.end
        if closing:
            return turn.end + (len(closing) if self._is_one(closing) else self._without_header(turn, closing, row))
        if turn.number == len(row.messages) - 1 and tokens and not text[turn.end : tokens[0].start].strip():
            return tokens[0].end
        return None

    def _is_one(self, closing: str) -> bool:
        """Whether a closing is one control token, so that no header of what follows can be in it."""
        return self._control.fullmatch(closing.strip()) is not None

    def _without_header(self, turn: _Turn, closing: str, row: Row) -> int:
        """How much of a longer closing stays the same where a question follows; its header has to come behind it."""
        if turn.number < len(row.messages) - 1:
            return len(closing)
        other = self._followed(turn.number, row)
        own = other.of(turn.number) if other is not None else []
        if other is None or not own:
            return len(closing)
        last = own[-1].end
        behind = other.text[last : _next_data(other, last)]
        kept = len(closing[: self._whole(closing, [behind], shared(closing, behind))].rstrip())
        header = closing[kept:].strip()
        if header and not (self._closer(closing[:kept]) and header in other.text[last + len(behind) :]):
            return len(closing)  # an end of its own
        if not header and not behind[kept:].strip():
            raise _Joined(f"the template prints what follows on assistant message {turn.number} together with its end")
        return kept

    @staticmethod
    def _followed(number: int, row: Row) -> Output | None:
        """The conversation up to a message with a question behind it, or a question and an answer; None if refused."""
        question, answer = _short("user", row), _short("assistant", row)
        for more in ([question], [question, answer]):
            with suppress(Refused):
                return row.render([*row.messages[: number + 1], *more], False)
        return None

    def _with_usual_end(self, turn: _Turn, end: int, row: Row) -> int:
        """The end of a turn that is closed as any answer, where a call's own closing or nothing was taken for it."""
        text = row.output.text
        behind = text[end : _next_data(row.output, end)]
        first = self._control.match(behind.lstrip())
        if turn.field == "content" or first is None:
            return end
        usual = self._closer(self._usual_end(turn.number, row) or "")
        if usual != first.group() or usual == self._closer(text[turn.end : end]):
            return end
        return end + _blank(behind) + first.end()

    def _unended(self, turns: Sequence[_Turn], ends: Sequence[int], row: Row) -> list[int]:
        """The turns that no end was found for; what closes a call ends no turn where a plain answer has no end."""
        closers = [self._closer(row.output.text[turn.end : end]) for turn, end in zip(turns, ends, strict=True)]
        of_texts = {closer for turn, closer in zip(turns, closers, strict=True) if closer and turn.field == "content"}
        return [
            turn.number
            for turn, end, closer in zip(turns, ends, closers, strict=True)
            if end == turn.end
            or (turn.field == "calls" and closer not in of_texts and self._usual_end(turn.number, row, False) == "")
        ]

    def _usual_end(self, number: int, row: Row, last: bool = True) -> str | None:
        """What closes a plain answer in the place of a message; None where it cannot be known.

        Args:
            number: the message.
            row: the row.
            last: whether nothing is to follow on it; else a question does if something follows on the message.
        """
        last = last or number == len(row.messages) - 1
        key = (number, last, *row.outline(number - 1))
        if not row.alike:
            return self._plain_end(number, row, last)
        if key not in self._endings:
            self._endings[key] = self._plain_end(number, row, last)
        return self._endings[key]

    def _plain_end(self, number: int, row: Row, last: bool) -> str | None:
        """The same, not remembered."""
        messages = [*row.messages[:number], {"role": "assistant", "content": "x"}, _short("user", row)]
        messages = messages[: number + 1] if last else messages
        try:
            output = row.render(messages, False)
            plain = Row(messages, output, row.render, row.tools, row.kwargs)
            turn = self._turn(number, plain)
            end = self._own_end(turn, plain)
            end = self._shared_end(turn, turn.end, plain) if end is None else end
        except (Refused, Unproven):
            return None
        return output.text[turn.end : end]

    def _closer(self, closing: str) -> str:
        """The control token that closes a turn, if one does."""
        found = [match for match in self._control.finditer(closing) if not closing[match.end() :].strip()]
        return found[-1].group() if found else ""

    def _shared_end(self, turn: _Turn, at: int, row: Row) -> int:
        """What the conversation cut behind the turn prints from `at` on, as far as the whole text agrees.

        What begins a turn does not end one, unless it is all that is printed where nothing follows.
        """
        number, messages, output = turn.number, row.messages, row.output
        alone = turn.alone or row.render(messages[: number + 1], False)
        if turn.alone is not None:
            last = turn.last
        else:
            own = alone.of(number)
            last = own[-1].end if own else max(alone.empty[number], default=-1)
            if last < 0:
                return at
        tail = alone.text[last + at - turn.end :]
        if number == len(messages) - 1:
            asked = self._followed(number, row)
            own = asked.of(number) if asked is not None else []
            if asked is None and len(self._control.findall(tail)) <= 1:
                return at + len(tail.rstrip())  # nothing can follow on it, so all of it belongs to its end
            if asked is None or not own or not any(run.origin[0] == number + 1 for run in asked.data):
                return at
            begin = own[-1].end + at - turn.end
            other = asked.text[begin : _next_data(asked, begin)]
        else:
            other = output.text[at : _next_data(output, at)]
            asked = output
        cut = self._whole(tail, [other], shared(tail, other))
        closing = tail[:cut].rstrip()
        if not closing:
            return at
        last_of = {message["role"]: n for n, message in enumerate(messages[: number + 1])}
        headers = [header[1].strip() for n in last_of.values() if (header := _header(n, asked)) is not None]
        if closing.strip() in headers:
            return at  # the whole of what begins a turn
        if closing == tail.rstrip():
            return at + len(closing)  # it is all that is printed where nothing follows
        if any(header.startswith(closing.strip()) for header in headers):
            return at  # the first of it
        return self._before_header(turn, at + len(closing), at, asked, row)

    def _before_header(self, turn: _Turn, end: int, at: int, output: Output, row: Row) -> int:
        """An end without what the next message prints before any text of its role.

        Args:
            turn: the turn.
            end: as far as two renders agree.
            at: where the closing begins.
            output: a render in which something follows.
            row: the row.
        """
        own = output.of(turn.number)
        role = row.messages[turn.number + 1]["role"] if turn.number + 1 < len(row.messages) else "user"
        following, first = _header(turn.number + 1, output), _header(0, output)
        if not own or following is None or first is None or row.messages[0]["role"] != role:
            return end
        begin, text = following
        behind = own[-1].end + at - turn.end
        if output.text[behind:begin].strip() or not text.endswith(first[1]) or not first[1].strip():
            return end
        return end if text.removesuffix(first[1]).strip() else at


def _short(role: str, row: Row) -> Mapping[str, Any]:
    """A message of a role, in parts if the row writes those of this role so: a template may print nothing else."""
    written = (message.get("content") for message in row.messages if message["role"] == role)
    in_parts = any(isinstance(content, list) for content in written)
    return {"role": role, "content": [{"type": "text", "text": "x"}] if in_parts else "x"}


def _plain(row: Row, own: Sequence[Run]) -> bool:
    """Whether the first data of a turn is the beginning of its text, from which nothing was cut out behind it."""
    origin = own[0].origin
    number, field, _ = origin
    if field != "content":
        return False
    source = _source(row.messages[number], origin) or ""
    first = row.output.text[own[0].start : own[0].end].strip()
    printed = "".join(row.output.text[run.start : run.end] for run in own if run.origin == origin)
    return source.lstrip().startswith(first) and _squeezed(source).startswith(_squeezed(printed))


def _heads(number: int, row: Row) -> list[str]:
    """Fixed text before an answer: what the template prompts for one with, and what it prints before a plain one."""
    heads = []
    if number:
        with suppress(Refused):
            prompt = row.render(row.messages[:number], True)
            head = prompt.text[_data_before(prompt, len(prompt.text)) :]
            if not _is_of_any(head, number, prompt, row):
                heads.append(head)
    with suppress(Refused):
        answered = row.render([*row.messages[:number], {"role": "assistant", "content": "x"}], False)
        own = answered.of(number)
        if not own:
            raise Unproven(f"the template prints no text in the place of assistant message {number}")
        heads.append(answered.text[_data_before(answered, own[0].start) : own[0].start])
    return heads


def _is_of_any(head: str, number: int, prompt: Output, row: Row) -> bool:
    """Whether what stands before an answer stands before a question too: the template knows of no prompt."""
    before = row.messages[:number]
    if prompt.text != row.render(before, False).text:
        return False
    try:
        asked = row.render([*before, {"role": "user", "content": "x"}], False)
    except Refused:
        return True
    own = [run for run in asked.data if run.origin[0] == number]
    return bool(own) and asked.text[_data_before(asked, own[0].start) : own[0].start].startswith(head)


def _data_before(output: Output, at: int) -> int:
    """Where the last data before a place ends."""
    return max((run.end for run in output.data if run.end <= at), default=0)


def _interval(number: int, own: Sequence[Run], output: Output) -> Interval | None:
    """The stretch that the outermost loop printed for a message: the largest that holds its data."""
    found = output.intervals.get(number, [])
    if own:
        found = [i for i in found if i.start <= own[0].start and own[0].end <= i.end]
    elif output.empty[number]:
        found = [i for i in found if any(i.start <= at <= i.end for at in output.empty[number])]
    found = [i for i in found if i.end > i.start]
    return max(found, key=lambda i: i.end - i.start, default=None)


def _foreign(output: Output, number: int, own: Sequence[Run], interval: Interval) -> bool:
    """Whether data of another origin stands in the stretch behind the first of the message's own."""
    begin = own[0].start if own else min(output.empty[number], default=interval.start)
    return any(run.origin[0] != number and begin <= run.start and run.end <= interval.end for run in output.data)


def _passes(run: Run, output: Output) -> frozenset[int]:
    """The messages in whose passes a run was printed."""
    found = output.intervals.items()
    return frozenset(n for n, own in found if any(i.start <= run.start and run.end <= i.end for i in own))


def _header(number: int, output: Output) -> tuple[int, str] | None:
    """Where the pass of a message begins, and the fixed text there before the first data."""
    own = [run for run in output.data if run.origin[0] == number]
    interval = _interval(number, own, output) if own else None
    if interval is None:
        return None
    return interval.start, output.text[interval.start : _next_data(output, interval.start)]


def _last_foreign(output: Output, number: int) -> int:
    return max((run.end for run in output.data if run.origin[0] != number), default=0)


def _next_data(output: Output, at: int) -> int:
    return min((run.start for run in output.data if run.start >= at), default=len(output.text))


def _only_copies(own: Sequence[Run], inside: Sequence[Run], output: Output, number: int) -> None:
    """What a message prints outside its turn must be a copy of a part of its calls, such as a name over a result."""
    text = output.text
    there = "\0".join(text[run.start : run.end] for run in inside)
    for run in own:
        printed = text[run.start : run.end].strip()
        if run not in inside and printed and (run.origin[1] != "calls" or printed not in there):
            raise Unproven(f"the template prints a part of assistant message {number} outside its turn")


def _blank(text: str) -> int:
    """Characters of white space that a text begins with."""
    return len(text) - len(text.lstrip())


def _past(text: str, head: str) -> int | None:
    """Where a text goes on that begins with a head printed with other white space; None where it does not."""
    at = 0
    for character in "".join(head.split()):
        at += _blank(text[at:])
        if not text.startswith(character, at):
            return None
        at += 1
    return at


def shared(a: str, b: str) -> int:
    """Characters that two texts begin with."""
    size = min(len(a), len(b))
    return next((i for i in range(size) if a[i] != b[i]), size)


def _from_marks(
    turns: Sequence[_Turn], ends: Sequence[int], marks: Sequence[Interval], output: Output
) -> list[Span] | None:
    """The spans of generation marks, where every turn has its own and the law holds for them."""
    spans = []
    for turn, end, own in zip(turns, ends, _by_turn(turns, marks), strict=True):
        if not own or own[0].start > turn.start or own[-1].end < turn.end:
            return None
        if any(a.end != b.start for a, b in pairwise(own)):
            return None
        closed = output.text[turn.end : own[-1].end].strip()
        if output.text[turn.end : end].strip() and not closed:
            return None  # marks that leave out the end of a turn teach a model never to stop
        spans.append(Span(turn.number, own[0].start, own[-1].end))
    try:
        _check(spans, output)
    except Unproven:
        return None
    others = [i for n, own in output.intervals.items() for i in own if n not in {turn.number for turn in turns}]
    if any(span.start <= i.start < i.end <= span.end for span in spans for i in others):
        return None
    return spans


def _by_turn(turns: Sequence[_Turn], marks: Sequence[Interval]) -> list[list[Interval]]:
    """The blocks of each turn: those with its data, and those without any that follow on them."""
    found: list[list[Interval]] = [[] for _ in turns]
    last: int | None = None
    for block in sorted(marks):
        own = [n for n, turn in enumerate(turns) if block.start <= turn.end and turn.start <= block.end]
        inside = [n for n in own if block.start <= turns[n].start and turns[n].end <= block.end]
        last = next(iter(inside or own), last)
        if last is not None and (block.end > block.start or not found[last]):
            found[last].append(block)
    return found


def _check_origins(row: Row) -> None:
    """What was tracked, against the row: all text has an origin, and what the assistant said stands in its message."""
    text = row.output.text
    if (unknown := row.output.unknown()) is not None:
        raise Unproven(f"the template prints text whose origin is not known: {unknown[:60]!r}")
    for run in row.output.data:
        number, field, *_ = *run.origin, ""
        if isinstance(number, int) and field in ("content", "reasoning"):
            message = row.messages[number]
            source = _source(message, run.origin) if message["role"] == "assistant" else None
            if source is not None and not _stands(text[run.start : run.end], source):
                raise Unproven(f"the template rewrites the text of assistant message {number}")


def _source(message: Mapping[str, Any], origin: Origin) -> str | None:
    """The text of a message that a run comes from; None for an image and the like."""
    _, field, part = origin
    if field == "reasoning":
        return next((message[name] for name in REASONING if isinstance(message.get(name), str)), None)
    content = message.get("content")
    if isinstance(content, str):
        return content
    text = content[part].get("text") if isinstance(content, list) and isinstance(content[part], Mapping) else None
    return text if isinstance(text, str) else None


def _stands(text: str, source: str) -> bool:
    """Whether a text is a part of its source, or is left of it where a template cuts something out of the middle."""
    if text in source:
        return True
    text, left = text.casefold(), iter(source.casefold())
    return all(character in left for character in text)


def _check(spans: Sequence[Span], output: Output) -> None:
    """The law: nothing of another origin inside, and in order."""
    at = 0
    for span in spans:
        if span.start < at or span.end < span.start:
            raise Unproven("turns overlap")
        at = span.end
    number = 0
    for run in output.data:
        while number < len(spans) and spans[number].end <= run.start:
            number += 1
        if number < len(spans) and run.end > spans[number].start and run.origin[0] != spans[number].message:
            raise Unproven(f"text of another origin stands inside the turn of message {spans[number].message}")


# ------------------------------------------------------------ what is not printed


def lost(row: Row, spans: Sequence[Span]) -> list[tuple[int, str]]:
    """Parts of a row that do not appear in the text: (message, field), and (-1, "tools")."""
    text = row.output.text
    printed: dict[tuple[int, str, int], list[str]] = defaultdict(list)
    for run in row.output.data:
        if isinstance(run.origin[0], int):
            printed[run.origin].append(text[run.start : run.end])
    found: list[tuple[int, str]] = []
    if row.tools and not any(run.origin == TOOLS for run in row.output.data):
        found.append((-1, "tools"))
    for number, message in enumerate(row.messages):
        content = message.get("content")
        texts = [(0, content)] if isinstance(content, str) else _part_texts(content)
        missing = [wanted for part, wanted in texts if _missing(wanted, printed[number, "content", part])]
        if missing and not _reprinted(missing, _stretches(number, row.output, spans)):
            found.append((number, "content"))
        reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
        if isinstance(reasoning, str) and _missing(reasoning, printed[number, "reasoning", 0]):
            found.append((number, "reasoning"))
        for part, call in enumerate(message.get("tool_calls") or []):
            there = "".join(printed[number, "calls", part] + printed[number, "calls", 0])
            function = call.get("function", {})
            if any(not _found(leaf, there) for leaf in leaves([function.get("name"), function.get("arguments")])):
                found.append((number, "calls"))
                break
    return found


def _stretches(number: int, output: Output, spans: Sequence[Span]) -> list[str]:
    """What the template printed for a message."""
    own = [Interval(span.start, span.end) for span in spans if span.message == number]
    return [output.text[start:end] for start, end in (*output.intervals[number], *own)]


def _reprinted(missing: Sequence[str], stretches: Sequence[str]) -> bool:
    """Whether fixed text stands for what was cut out of texts, such as the `<think>` of a thought."""
    there = [_squeezed(stretch) for stretch in stretches]
    return all(any(_squeezed(text) in stretch for stretch in there) for text in missing)


def _part_texts(content: Any) -> list[tuple[int, str]]:
    if not isinstance(content, list):
        return []
    return [
        (part, item["text"])
        for part, item in enumerate(content)
        if isinstance(item, dict) and isinstance(item.get("text"), str)
    ]


def _missing(text: str, printed: Sequence[str]) -> bool:
    """Whether characters other than white space are missing from what was printed of a text."""
    return len(_squeezed("".join(printed))) < len(_squeezed(text))


def _squeezed(text: str) -> str:
    """A text without its white space."""
    return "".join(text.split())


def leaves(value: Any) -> list[str]:
    """The texts in a value, and its keys."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [leaf for key, item in value.items() for leaf in (key, *leaves(item))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return []


KINDS: Final = ("role", "type", "id", "tool_call_id")
"""Keys whose values are words of the format, or no words at all."""


def said(value: Any) -> list[str]:
    """The texts in a value that people, models and tools have written."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, item in value.items() if key not in KINDS for text in said(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in said(item)]
    return []


def _found(leaf: str, there: str) -> bool:
    bare = leaf.strip()
    if bare in there:
        return True
    forms = (json.dumps(bare, ensure_ascii=False)[1:-1], json.dumps(bare)[1:-1], repr(bare)[1:-1])
    return any(form in there for form in forms)
