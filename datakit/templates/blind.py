"""Whether a template looks at what is said, or only prints it: what need not be paid for every row.

Most templates of chat models decide by roles and places alone, and print each text as it is. Such a *blind* template
prints the same fixed text around the texts of any two rows with the same roles, so that one proven row (`skeletons`)
says what it prints for all of them, and nothing has to be rendered again. A template that asks whether a text begins
with `<tool_response>`, splits it at `</think>` or counts it is not blind.

This is decided once per template, by reading its syntax tree: every expression is one of five sorts, and a text may
only be printed, joined to other text, trimmed, tested for its type, or asked whether it is there. Variables have one
sort in the whole template, whatever the order of assignments and the scope.

All hangs on this: a clean value is plain data, and no text can be reached from it. So what is more than data (a loop, a
macro, a namespace, a function) has a name that nothing else bears, and this name is understood in a few forms only, as
`loop.first` or `range(...)`. Statements, expressions, filters, tests and attributes are listed likewise. What is not
known to be harmless is a look; so a gap in this file costs time, never correctness.

It speaks of plain rows only, whose messages are a role and a text that is not blank (`skeletons` keys them by roles).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

from jinja2 import nodes


class Sort(Enum):
    """What an expression can stand for."""

    CLEAN = "depends on roles and places only"
    TEXT = "holds the text of a message"
    MESSAGE = "a message"
    LIST = "messages"
    NAMESPACE = "holds variables of any sort"
    PARTS = "the parts of a text; of these `looks` knows"


CLEAN, TEXT, MESSAGE, LIST, NAMESPACE, PARTS = Sort

SPECIAL: Final = frozenset(
    "loop namespace raise_exception range dict strftime_now cycler joiner lipsum random shuffle caller varargs kwargs "
    "self super".split()
)
"""Names that stand for more than data, or change by the day or by chance."""
FUNCTIONS: Final = frozenset({"range", "dict"})
"""Those that make data out of data."""
OF_LOOP: Final = {
    **dict.fromkeys("index index0 revindex revindex0 first last length depth depth0".split(), CLEAN),
    **dict.fromkeys(("previtem", "nextitem"), MESSAGE),
}
TYPE_TESTS: Final = frozenset(
    "defined undefined none string mapping sequence iterable number boolean integer float callable true false".split()
)
CLEAN_TESTS: Final = frozenset(
    "eq equalto ne lt lessthan le gt greaterthan ge in odd even divisibleby lower upper".split()
)
OF_LIST: Final = {"length": CLEAN, "count": CLEAN, "first": MESSAGE, "last": MESSAGE, "list": LIST, "reverse": LIST}
OF_CLEAN: Final = frozenset(
    "trim string length count upper lower title capitalize default d tojson list first last replace items dictsort int "
    "float round abs indent reverse join".split()
)
"""Filters that make data out of data. Not `safe`: what it makes escapes the text that is added to it."""
PASSES: Final = 64
"""How often a template is read until the sorts of its variables must be settled."""


class Sight(Enum):
    """What a template does with the texts of plain rows."""

    LOOKS = "decides by them, or something that is not known here"
    TRIMS = "prints them, some without the white space around them"
    PRINTS = "prints them as they are"


class Looks(Exception):
    """The template does something with a text, or something that is not known here."""


def sight(tree: nodes.Template, pinned: bool = False) -> Sight:
    """What a template does with the texts of plain rows without tools.

    Args:
        tree: its syntax tree.
        pinned: whether the time that it is told stays the same.
    """
    reader = Reader(pinned)
    if not reader.reads(tree):
        return Sight.LOOKS
    return Sight.TRIMS if reader.trims else Sight.PRINTS


def _macros(tree: nodes.Template) -> dict[str, nodes.Macro]:
    """The macros by name; it is a look if anything else bears such a name, or anything a special one."""
    macros = list(tree.find_all(nodes.Macro))
    variables = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    names = [*(macro.name for macro in macros), *variables]
    if len(SPECIAL.union(names)) < len(SPECIAL) + len(names):
        raise Looks
    return {macro.name: macro for macro in macros}


def arguments_of(node: nodes.Call | nodes.Filter | nodes.Test) -> list[nodes.Node]:
    if node.dyn_args or node.dyn_kwargs:
        raise Looks
    return [*node.args, *node.kwargs]


def _either(one: Sort, other: Sort) -> Sort:
    """The sort of what is one or the other: the stricter, since whatever is allowed for it is allowed for clean."""
    if one is other or other is CLEAN:
        return one
    if one is CLEAN:
        return other
    raise Looks


class Reader:
    """Goes through a tree until the sorts of its variables are settled."""

    def __init__(self, pinned: bool) -> None:
        self.macros: dict[str, nodes.Macro] = {}
        self.functions = FUNCTIONS | {"strftime_now"} if pinned else FUNCTIONS
        self.names: dict[str, Sort] = {"messages": LIST}
        self.attributes: dict[str, Sort] = {}  # of namespaces, by name alone
        self.learned = False
        self.trims = False

    def reads(self, tree: nodes.Template) -> bool:
        """Whether nothing in a template is a look."""
        try:
            self.macros = _macros(tree)
            for _ in range(PASSES):
                self.learned = False
                self.once(tree)
                if not self.learned:
                    return True
        except (Looks, RecursionError):
            pass
        return False

    def once(self, tree: nodes.Template) -> None:
        self.body(tree.body)

    def learn(self, table: dict[str, Sort], name: str, sort: Sort) -> None:
        before = table.get(name, CLEAN)
        after = table[name] = _either(before, sort)
        self.learned |= after is not before

    # ---------------------------------------------------------------- statements

    def body(self, statements: Sequence[nodes.Node]) -> None:
        for statement in statements:
            self.statement(statement)

    def statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output(nodes=parts):
                self.printed(parts)
            case nodes.If(test=test, body=body, elif_=others, else_=rest):
                self.sort(test)
                self.body([*body, *others, *rest])
            case nodes.For(target=target, iter=over, body=body, else_=rest, test=test, recursive=False):
                self.bind(target, {LIST: MESSAGE, CLEAN: CLEAN}.get(self.sort(over)))
                if test is not None:
                    self.sort(test)
                self.body([*body, *rest])
            case nodes.Assign(target=target, node=value):
                self.bind(target, self.sort(value))
            case nodes.AssignBlock(target=target, filter=None, body=body):
                self.body(body)
                self.bind(target, TEXT)
            case nodes.Macro(body=body):
                for argument, default in zip(reversed(node.args), reversed(node.defaults), strict=False):
                    self.learn(self.names, argument.name, self.sort(default))
                self.body(body)
            case nodes.CallBlock(call=nodes.Call(node=nodes.ExtensionAttribute(), args=[]), body=body):
                self.body(body)  # {% generation %}
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                raise Looks

    def printed(self, parts: Sequence[nodes.Node]) -> None:
        if any(self.sort(part) not in (CLEAN, TEXT) for part in parts):
            raise Looks

    def bind(self, target: nodes.Node, sort: Sort | None) -> None:
        match target, sort:
            case nodes.Name(name=name), Sort():
                self.learn(self.names, name, sort)
            case nodes.NSRef(attr=name), Sort():
                self.learn(self.attributes, name, sort)
            case nodes.Tuple(items=items), Sort.CLEAN:
                for item in items:
                    self.bind(item, CLEAN)
            case _:
                raise Looks

    # ---------------------------------------------------------------- expressions

    def sort(self, node: Any) -> Sort:
        match node:
            case nodes.TemplateData() | nodes.Const():
                return CLEAN
            case nodes.Name(name=name):
                if name in SPECIAL or name in self.macros:
                    raise Looks
                return self.names.get(name, CLEAN)
            case nodes.Getattr(node=inner, attr=name):
                return self.member(inner, name)
            case nodes.Getitem(node=inner, arg=nodes.Const(value=str() as name)):
                return self.member(inner, name)
            case nodes.Getitem(node=inner, arg=where):
                return self.item(inner, where)
            case nodes.Filter():
                return self.filter(node)
            case nodes.Test():
                return self.test(node)
            case nodes.Compare():
                return self.compare(node)
            case nodes.Call():
                return self.call(node)
            case _:
                return self.combined(node)

    def combined(self, node: Any) -> Sort:
        """Operators and literals."""
        match node:
            case nodes.Not(node=inner):
                self.sort(inner)  # a text is there, so it counts as true
                return CLEAN
            case nodes.And(left=left, right=right) | nodes.Or(left=left, right=right):
                return _either(self.sort(left), self.sort(right))
            case nodes.CondExpr(test=test, expr1=one, expr2=other):
                self.sort(test)
                return _either(self.sort(one), CLEAN if other is None else self.sort(other))
            case nodes.Concat(nodes=parts):
                self.printed(parts)
                return TEXT
            case nodes.Add(left=left, right=right):
                sort = _either(self.sort(left), self.sort(right))
                return sort if sort in (CLEAN, TEXT, LIST) else self.look()
            case (
                nodes.BinExpr()
                | nodes.UnaryExpr()
                | nodes.List()
                | nodes.Tuple()
                | nodes.Dict()
                | nodes.Pair()
                | nodes.Keyword()
            ):
                self.clean(*node.iter_child_nodes())
                return CLEAN
            case _:
                raise Looks

    def look(self) -> Sort:
        raise Looks

    def clean(self, *parts: nodes.Node) -> None:
        if any(self.sort(part) is not CLEAN for part in parts):
            raise Looks

    def member(self, inner: nodes.Expr, name: str) -> Sort:
        """`inner.name` or `inner["name"]`."""
        if isinstance(inner, nodes.Name) and inner.name == "loop":
            return OF_LOOP.get(name) or self.look()
        owner = self.sort(inner)
        if owner is NAMESPACE:
            return self.attributes.get(name, CLEAN)
        if owner is MESSAGE and not hasattr(dict, name):
            return self.key(name)
        return CLEAN if owner is CLEAN else self.look()

    def key(self, name: str) -> Sort:
        """The value of a key of a message, which has no others than its role and its text in a plain row."""
        return TEXT if name == "content" else CLEAN

    def item(self, inner: nodes.Expr, where: nodes.Expr) -> Sort:
        """`inner[where]`, where the key is not a text of the template."""
        if isinstance(where, nodes.Slice):
            self.clean(*(part for part in (where.start, where.stop, where.step) if part is not None))
        else:
            self.clean(where)
        owner = self.sort(inner)
        if owner is LIST:
            return LIST if isinstance(where, nodes.Slice) else MESSAGE
        return CLEAN if owner is CLEAN else self.look()

    def filter(self, node: nodes.Filter) -> Sort:
        arguments, sort = arguments_of(node), self.sort(node.node)
        self.clean(*arguments)
        match sort:
            case Sort.CLEAN if node.name in OF_CLEAN:
                return CLEAN
            case Sort.TEXT if node.name in ("trim", "string") and not arguments:
                self.trims |= node.name == "trim"
                return TEXT
            case Sort.LIST if node.name in OF_LIST and not arguments:
                return OF_LIST[node.name]
            case Sort.LIST if node.name in ("selectattr", "rejectattr"):
                match node.args:
                    case [nodes.Const(value="role"), nodes.Const(value="equalto" | "eq" | "==" | "ne" | "in"), _]:
                        return LIST
        raise Looks

    def test(self, node: nodes.Test) -> Sort:
        self.clean(*arguments_of(node))
        if isinstance(node.node, nodes.Name) and node.name in ("defined", "undefined"):
            return CLEAN  # of any name, a special one too
        if (self.sort(node.node) is CLEAN and node.name in CLEAN_TESTS) or node.name in TYPE_TESTS:
            return CLEAN
        raise Looks

    def compare(self, node: nodes.Compare) -> Sort:
        others = [operand.expr for operand in node.ops]
        sorts = [self.sort(part) for part in (node.expr, *others)]
        if set(sorts) == {CLEAN}:
            return CLEAN
        if len(others) == 1:
            operator, (left, right) = node.ops[0].op, sorts
            if operator in ("in", "notin") and (left, right) == (CLEAN, MESSAGE):
                return CLEAN  # a key
            nothing = isinstance(others[0], nodes.Const) and others[0].value in (None, "")
            if operator in ("eq", "ne") and left is TEXT and nothing:
                return CLEAN  # no text of a plain row is empty
        raise Looks

    def call(self, node: nodes.Call) -> Sort:
        arguments = arguments_of(node)
        match node.node:
            case nodes.Name(name="raise_exception"):
                return CLEAN  # by places alone, so it is not reached where a row of the same roles was rendered
            case nodes.Name(name="namespace"):
                self.clean(*node.args)
                for keyword in node.kwargs:
                    self.learn(self.attributes, keyword.key, self.sort(keyword.value))
                return NAMESPACE
            case nodes.Name(name=name) if name in self.macros:
                for argument, value in zip(self.macros[name].args, node.args, strict=False):
                    self.learn(self.names, argument.name, self.sort(value))
                for keyword in node.kwargs:
                    self.learn(self.names, keyword.key, self.sort(keyword.value))
                return TEXT
            case nodes.Name(name=name) if name in self.functions:
                self.clean(*arguments)
                return CLEAN
            case nodes.Getattr(node=nodes.Name(name="loop"), attr="cycle"):
                self.clean(*arguments)
                return CLEAN
            case nodes.Getattr(node=inner, attr=name):
                self.clean(*arguments)
                return self.method(self.sort(inner), name, arguments)
        raise Looks

    def method(self, owner: Sort, name: str, arguments: Sequence[nodes.Node]) -> Sort:
        """A call of a method with clean arguments."""
        match owner, name, arguments:
            case Sort.CLEAN, _, _:
                return CLEAN
            case Sort.TEXT, "strip" | "lstrip" | "rstrip", []:
                self.trims = True
                return TEXT
            case Sort.MESSAGE, "get", [nodes.Const(value=str() as key), *_]:
                return self.key(key)
        raise Looks
