"""The instrumented compilation of a chat template: it prints what the plain one prints, as tracked strings.

The same source, sandbox and options. Text and string constants of the template become tracked constants of the
compiled module; what is printed or joined goes through `tracked`. Every loop that prints gets marks around its body,
which travel with the text through macros, blocks and filters to where it really lands; so a message's own stretch of
the output is known. Generation blocks are marked in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import filters, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Template as Compiled
from jinja2.runtime import Macro
from jinja2.utils import pass_eval_context
from jinja2.visitor import NodeTransformer

from datakit.templates.environment import Environment, Generation
from datakit.templates.tracked import (
    KWARGS,
    LITERAL,
    TOOLS,
    VALUE,
    Message,
    Tracked,
    concat,
    formatted,
    mark,
    message,
    of,
    printed,
    tojson,
    tracked,
)


class _Marked(Generation):
    def body(self, caller: Macro) -> str:
        return concat([mark("begin", "generation", -1), caller(), mark("end", "generation", -1)])


class _Generator(CodeGenerator):
    """Writes names of tracked constants where Jinja writes strings."""

    environment: TrackedEnvironment

    def _output_const_repr(self, group: Any) -> str:
        return self.environment.constant("".join(map(str, group)))

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:  # noqa: N802
        self.write(self.environment.constant(node.data))

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802
        self.write(self.environment.constants_in(node.value))

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):  # only a key, never printed
            self.write("environment.getitem(")
            self.visit(node.node, frame)
            self.write(f", {node.arg.value!r})")
        else:
            super().visit_Getitem(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("_concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("_printed(")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write(")")


class TrackedEnvironment(Environment):
    """The environment whose templates print tracked strings."""

    code_generator_class = _Generator
    concat = staticmethod(concat)

    def __init__(self, now: datetime | None = None) -> None:
        super().__init__(now, _Marked)
        self.constants: dict[str, Tracked] = {}
        self.names: dict[str, str] = {}
        self.globals["strftime_now"] = lambda layout: tracked(self.strftime(layout), VALUE)
        self.globals["_mark"] = _mark
        self.filters |= {"tojson": tojson, "string": printed, "safe": printed}
        self.filters |= {"join": _do_join, "indent": _do_indent, "title": _do_title}

    def constant(self, text: str) -> str:
        """The name of a text of the template in the compiled module."""
        name = self.names.setdefault(text, f"_k{len(self.names)}")
        self.constants[name] = tracked(text, LITERAL)
        return name

    def constants_in(self, value: Any) -> str:
        """The code of a constant, whose texts are tracked wherever they stand in it."""
        if isinstance(value, str):
            return self.constant(value)
        if isinstance(value, list | tuple):
            inner = "".join(self.constants_in(item) + ", " for item in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if isinstance(value, dict):
            return "{" + "".join(f"{self.constants_in(k)}: {self.constants_in(v)}, " for k, v in value.items()) + "}"
        return repr(value)

    def from_string(self, source: Any, globals: Any = None, template_class: Any = None) -> Compiled:
        """Compile with marks around loops that print, and with tracked constants."""
        tree = self._parse(source, None, None)
        tree = _Marks().visit(tree)
        code = self._compile(self._generate(tree, None, None), "<template>")
        namespace: dict[str, Any] = {"environment": self, "__file__": "<template>"}
        exec(code, namespace)  # noqa: S102 - what Template.from_code does; the source went through the sandbox's compiler
        namespace |= {"_printed": printed, "_concat": concat, **self.constants}
        return self.template_class._from_namespace(self, namespace, self.make_globals(globals))

    def wrap_str_format(self, value: Any) -> Any:
        """As the sandbox does it, and with origins where all fields are plain."""
        method = super().wrap_str_format(value)
        text = getattr(value, "__self__", None)
        if method is None or type(text) is not Tracked or value.__name__ != "format":
            return method

        def tracking(*args: Any, **kwargs: Any) -> str:
            plain: str = method(*args, **kwargs)
            known = formatted(text, args, kwargs)
            return known if known is not None and known == plain else plain

        return tracking

    def getitem(self, obj: Any, argument: Any) -> Any:
        """As the sandbox does it, without its detour for the plain case."""
        if type(obj) is Message or type(obj) is dict:
            try:
                return obj[argument]
            except (KeyError, TypeError):
                pass
        return super().getitem(obj, argument)


def _mark(kind: str, loop: int, value: Any) -> Tracked:
    if kind == "after":
        return mark("after", loop, -1)
    return mark(str(kind), loop, value._number) if type(value) is Message else tracked("", VALUE)


class _Marks(NodeTransformer):
    """Marks at the start and the end of the body of every loop that prints, and one behind the loop."""

    def __init__(self) -> None:
        self.loops = 0

    def visit_For(self, loop: nodes.For) -> nodes.Node | list[nodes.Node]:  # noqa: N802
        self.generic_visit(loop)
        if not isinstance(loop.target, nodes.Name) or not any(
            True for _ in loop.find_all((nodes.Output, nodes.CallBlock))
        ):
            return loop
        number, self.loops = self.loops, self.loops + 1
        value = loop.target.name
        loop.body = [_call_mark(loop, "begin", number, value), *loop.body, _call_mark(loop, "end", number, value)]
        return [loop, _call_mark(loop, "after", number, None)]


def _call_mark(loop: nodes.For, kind: str, number: int, name: str | None) -> nodes.Output:
    value: nodes.Expr = nodes.Const(None) if name is None else nodes.Name(name, "load")
    call = nodes.Call(nodes.Name("_mark", "load"), [nodes.Const(kind), nodes.Const(number), value], [], None, None)
    output = nodes.Output([call])
    for node in (output, *output.find_all(nodes.Node)):
        node.set_lineno(loop.lineno)
        node.environment = loop.environment
    return output


@pass_eval_context
def _do_join(context: nodes.EvalContext, value: Any, d: str = "", attribute: Any = None) -> Tracked:
    parts = list(value)
    if attribute is not None:
        parts = list(map(filters.make_attrgetter(context.environment, attribute), parts))
    glue: list[Any] = []
    for index, part in enumerate(parts):
        glue += [d, part] if index and d else [part]
    return concat(glue)


def _do_indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Tracked:
    gap = printed(width) if isinstance(width, str) else tracked(" " * width, LITERAL)
    newline = tracked("\n", LITERAL)
    text = printed(s) + newline
    if blank:
        lines = text.splitlines()
        done = (newline + gap).join(lines)
    else:
        lines = text.splitlines()
        done = lines.pop(0) if lines else tracked("", LITERAL)
        for line in lines:
            done = concat([done, newline, *([gap, line] if line else [line])])
    return gap + done if first else done


def _do_title(s: Any) -> Tracked:
    text = printed(s)
    return text._same_length(filters.do_title(str.__str__(text)))


def as_tracked(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a template can read, every text in it with its origin; see `environment.variables`."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name == "messages":
            made[name] = [message(number, item) for number, item in enumerate(value)]
        elif name == "tools":
            made[name] = of(value, TOOLS)
        elif name.endswith("_token") and isinstance(value, str):
            made[name] = tracked(value, ("token", name))
        else:
            made[name] = of(value, KWARGS)
    return made
