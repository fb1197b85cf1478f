"""The one place where chat templates are compiled and rendered, byte for byte as `transformers` renders them.

A chat template is a program from a stranger. It runs in Jinja's immutable sandbox, whose escapes are known and closed
in the version that is required, but a sandbox limits neither time nor memory: constants are folded when a template is
compiled, and one multiplication can take all memory before a timer fires. So this module is used in worker processes
only, which have a memory limit (see `limit`). Inside it `deadline` stops what runs too long between two operations, and
`call_binop` what would be too large, without losing the worker; a single operation that does not come back ends it.

Source of what must be equal: `transformers/utils/chat_template_utils.py` and `apply_chat_template` (5.x).
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.environment import Template as Compiled
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from datakit.templates.blind import Sight, sight
from datakit.templates.looks import Wanted, looked_for

if TYPE_CHECKING:
    from jinja2.parser import Parser
    from jinja2.runtime import Context

MAX_TEXT: Final = 8 << 20
"""Characters of one rendered row."""

SECONDS: Final = 2.0
"""Time that one render may take."""

GRACE: Final = 0.5
"""Time of the processor that a single operation may take beyond it."""

MAX_REPEATED: Final = 1 << 20
"""Items that one multiplication may make, and bits of a power."""

NEVER_THE_SAME: Final = ("strftime_now", "random", "lipsum", "shuffle")
"""Names in a template that make its output depend on the day or on chance."""

Variables = Mapping[str, Any]


class Refused(Exception):
    """A template does not compile, or refuses a row; the text says why."""


class Slow(Refused):
    """A render was stopped because it took too long."""


class TooLong(BaseException):
    """A render ran out of time. Not an Exception, so that no template and no library catches it."""


class _Dict:
    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace without underscore names, through which CPython's internals could be reached."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works
        self, given = args[0], args[1:]
        values = dict(*given, **kwargs)
        for name in values:
            _checked(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _checked(name)
        Namespace.__setitem__(self, name, value)


def _checked(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the underscore name {name!r}")


class Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: text that the assistant writes. Here it only prints its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Macro) -> str:
        text: str = caller()
        return text


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Reading(NamedTuple):
    """What is known of a template, with its twin, from the syntax trees.

    Attributes:
        looked_for: what it looks for in the texts of plain rows, None where it looks at what no constant says.
        constants: all texts that it may compare others with, in lower case, but for single letters.
    """

    looked_for: Wanted | None
    constants: frozenset[str]


class Environment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates know it.

    The operators that make much out of little are checked, and are therefore never folded when a template is compiled.

    Args:
        now: what `strftime_now` says; None for the time of the call.
        generation: the extension that stands for the generation tag.
    """

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, now: datetime | None = None, generation: type[Generation] = Generation) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[generation, jinja2.ext.loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.now = now
        self.globals["strftime_now"] = self.strftime
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]  # random text, and a way to make much of it

    def strftime(self, format: str) -> str:
        """The pinned time, or the time of the call, as the template wants it written."""
        return (self.now or datetime.now()).strftime(format)

    def compile_template(self, source: str) -> Compiled:
        """A template, or the reason why it is none.

        Raises:
            Refused: a syntax error, or constants that cannot be folded within the limits.
        """
        try:
            with deadline():
                return self.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise Refused(f"line {error.lineno}: {error.message}") from None
        except TooLong:
            raise Refused(f"compiling it takes more than {SECONDS:g} s") from None
        except (MemoryError, RecursionError, OverflowError, SyntaxError, ValueError) as error:
            raise Refused(f"it does not compile: {type(error).__name__}") from None

    def reading_of(self, source: str, twin: str | None = None) -> Reading:
        """What a template that compiles, and its twin, do with texts."""
        pinned = self.now is not None
        try:
            with deadline():
                trees = [self.parse(text) for text in (source, twin) if text is not None]
                sights = [sight(tree, pinned) for tree in trees]
                found = [node.value for node in trees[0].find_all(nodes.Const) if isinstance(node.value, str)]
                constants = frozenset(text.casefold() for text in found if len(text.strip()) > 1)
                blind = Sight.LOOKS not in sights
                return Reading(Wanted(sight=sights[0]) if blind else looked_for(*trees, pinned=pinned), constants)
        except (jinja2.TemplateSyntaxError, TooLong):
            return Reading(None, frozenset({""}))

    def render_template(self, template: Compiled, variables: Variables) -> Any:
        """The text of one row.

        Raises:
            Refused: the template raises, takes too long, or prints too much.
        """
        try:
            with deadline():
                text = self.concat(template.root_render_func(template.new_context(dict(variables))))
        except TooLong:
            raise Slow(f"it takes more than {SECONDS:g} s") from None
        except (MemoryError, RecursionError) as error:
            raise Refused(f"it takes too much memory ({type(error).__name__})") from None
        except Exception as error:
            said = str(error).strip().splitlines()
            raise Refused(f"{type(error).__name__}: {said[0] if said else ''}"[:300]) from None
        if len(text) > MAX_TEXT:
            raise Refused(f"it prints more than {MAX_TEXT} characters")
        return text

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operation, if what it makes is of a reasonable size."""
        if _makes_too_much(operator, left, right):
            raise jinja2.exceptions.SecurityError(f"the operator {operator} would make too much")
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox does it, without its detour for keys of objects from the row."""
        if type(obj) is dict and attribute not in _OF_DICT:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


_OF_DICT: Final = frozenset(dir(dict))
_WIDE: Final = re.compile(r"%[^%a-zA-Z]*(\*|\d{5})")
"""A width or precision of five digits, or one that is given apart."""


def _makes_too_much(operator: str, left: Any, right: Any) -> bool:
    if operator == "%":
        return isinstance(left, str) and _WIDE.search(left) is not None
    if operator == "**":
        return isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_REPEATED
    if isinstance(left, int):
        left, right = right, left
    return isinstance(left, Sequence) and isinstance(right, int) and len(left) * right > MAX_REPEATED


class deadline:  # noqa: N801 - used as `with deadline():`
    """Raise `TooLong` where the block takes more of the processor's time than it may; in the main thread only.

    Attributes:
        ends: the time of the thread at which it does.
        lethal: whether to end the process where `TooLong` cannot be raised, because one operation of C takes all the
            time. Workers set it: whoever runs them finds the row.
    """

    __slots__ = ("seconds",)
    ends: ClassVar[float] = 0.0
    lethal: ClassVar[bool] = False

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        if _armed():
            deadline.ends = time.thread_time() + self.seconds
            signal.setitimer(signal.ITIMER_REAL, self.seconds)
            if deadline.lethal:
                signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds + GRACE)  # its signal ends the process

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if deadline.lethal:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _stop(number: int, frame: FrameType | None) -> None:
    """A machine that is busy with other work is no reason to refuse a template."""
    left = deadline.ends - time.thread_time()
    if left < 0.01:
        raise TooLong
    signal.setitimer(signal.ITIMER_REAL, left)


@cache
def _armed() -> bool:
    """Whether this process can be interrupted; sees to it once."""
    try:
        signal.signal(signal.SIGALRM, _stop)
    except ValueError:
        return False
    return True


REASONING: Final = ("reasoning_content", "thinking", "reasoning")
"""Names that templates read a message's reasoning under."""


def as_templates_see(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a template is given them: no null keys, no loss weights, and reasoning under the names in use."""
    made: list[Any] = []
    for message in messages:
        if len(message) == 2 and message.get("content") is not None and "role" in message:
            made.append(message)  # nothing to leave out; the sandbox lets no template change it
            continue
        plain = {key: value for key, value in message.items() if value is not None and key != "weight"}
        reasoning = next((plain[key] for key in REASONING if plain.get(key) is not None), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        made.append(plain)
    return made


def variables(
    messages: Sequence[Mapping[str, Any]],
    special: Mapping[str, str],
    tools: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    prompt: bool = False,
) -> dict[str, Any]:
    """What a template can read.

    Args:
        messages: one conversation.
        special: the tokenizer's special tokens by name.
        tools: tool definitions, or None.
        kwargs: the row's `chat_template_kwargs`.
        prompt: whether to end on the prompt for the next answer.

    Raises:
        Refused: the arguments would take the place of the messages or the tools.
    """
    for name in ("messages", "tools"):
        if kwargs and name in kwargs:
            raise Refused(f"chat_template_kwargs cannot hold {name!r}, which the row itself has")
    shared = {**special, **(kwargs or {})}
    shared.pop("add_generation_prompt", None)
    return {
        "messages": as_templates_see(messages),
        "tools": tools,
        "documents": None,
        "add_generation_prompt": prompt,
        **shared,
    }


def never_the_same(source: str) -> list[str]:
    """Names in a template that make its output change from day to day or from call to call."""
    tree = Environment().parse(source)
    called = {node.name for node in tree.find_all(nodes.Name)} | {node.name for node in tree.find_all(nodes.Filter)}
    return [name for name in NEVER_THE_SAME if name in called]
