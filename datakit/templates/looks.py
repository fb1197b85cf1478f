"""What a template looks for in the texts of messages: the constants that it compares them with or splits them at.

Two rows of the same shape whose texts hold none of these constants go the same way through the template, so what was
proven of one holds for the other (`skeletons`). A row that does hold one is always tracked itself: the template may cut
something out of its text and print it again, and equal text would not mean equal origins.

    {% if '</think>' in message.content %}{% set parts = message.content.split('</think>') %}    looks for </think>
    {% if message.content | length > 100 %}                                             looks at something else

An expression counts as text if a content or a thought is read anywhere in it, or a variable that was given such a one.
This errs on the side of text, which costs time and never correctness.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from jinja2 import nodes

from datakit.templates.blind import TYPE_TESTS

TEXTS: Final = frozenset({"content", "reasoning_content", "thinking", "reasoning"})
"""Names of what people and models have said."""
SPLITS: Final = frozenset({"split", "rsplit", "partition", "rpartition"})
SEARCHES: Final = SPLITS.union("replace startswith endswith find index count removeprefix removesuffix".split())
TRIMS: Final = frozenset({"strip", "lstrip", "rstrip"})
SHOWS: Final = frozenset({"string", "safe", "trim", "default", "d", "tojson", "upper", "lower", "title", "capitalize"})
"""Filters and methods that decide nothing; letters are compared without their case."""
OF_PARTS: Final = frozenset({"first", "last", "list", "join", "length", "count", "reverse"})
"""Filters that say nothing about a text but how often a constant stands in it, when used on the parts of a split."""
OF_OTHERS: Final = frozenset({"selectattr", "rejectattr", "map", "dictsort", "items"})
"""Filters that make nothing of a text: its letters have no keys."""


class _Otherwise(Exception):
    """A text is looked at in a way that no constant says."""


def looked_for(*trees: nodes.Template) -> frozenset[str] | None:
    """The constants that templates look for in texts, in lower case; None where they look at something else too."""
    found: set[str] = set()
    try:
        for tree in trees:
            found |= _Reader(tree).constants()
    except (_Otherwise, RecursionError):
        return None
    return frozenset(found)


class _Reader:
    """One template: which of its expressions hold text, and what these are asked."""

    def __init__(self, tree: nodes.Template) -> None:
        self.tree = tree
        self.rows = {"messages"}  # names of variables that may hold messages
        self.texts: set[str] = set()  # names of variables that may hold text, and of attributes of namespaces
        self.parts: set[str] = set()  # those that hold the parts of a split
        self.items: set[str] = set()  # those that hold an item of a content: a part of another kind, or a letter
        self.macros = {node.name: node for node in tree.find_all(nodes.Macro)}
        self.keyed = {id(node.node) for node in tree.find_all(nodes.Getattr)}
        self.keyed |= {id(node.node) for node in tree.find_all(nodes.Getitem) if isinstance(node.arg, nodes.Const)}
        self.emptiness = {
            id(node.expr)
            for node in tree.find_all(nodes.Compare)
            if isinstance(node.expr, nodes.Filter) and node.expr.name in ("length", "count")
            if len(node.ops) == 1 and isinstance(node.ops[0].expr, nodes.Const) and node.ops[0].expr.value == 0
        }
        """Lengths that are compared with 0: no text of a row with a skeleton is empty."""
        before = -1
        while (known := sum(map(len, (self.rows, self.texts, self.parts, self.items)))) > before:
            before = known
            self._spread()

    # ---------------------------------------------------------------- where text goes

    def _spread(self) -> None:
        for node in self.tree.find_all((nodes.Assign, nodes.AssignBlock, nodes.For, nodes.Call, nodes.CallBlock)):
            match node:
                case nodes.Assign(target=target, node=value):
                    self._give(target, value)
                case nodes.AssignBlock(target=target, body=body):
                    self._give(target, *body)
                case nodes.For(target=target, iter=over):
                    self._give(target, over)
                    if isinstance(target, nodes.Name) and self.is_text(over) and not self.is_parts(over):
                        self.items.add(target.name)
                case nodes.Call(node=nodes.Name(name=name), args=args, kwargs=kwargs):
                    named = self.macros[name].args if name in self.macros else []
                    for argument in named:
                        self._give(argument, *args, *kwargs)
                    if name == "namespace":
                        for keyword in kwargs:
                            self._give(nodes.Name(keyword.key, "store"), keyword.value)
                case nodes.CallBlock(args=args, call=call):
                    for argument in args:
                        self._give(argument, call)

    def _give(self, target: nodes.Node, *values: nodes.Node) -> None:
        names = {node.name for node in _walk(target) if isinstance(node, nodes.Name)}
        names |= {node.attr for node in _walk(target) if isinstance(node, nodes.NSRef)}
        if any(map(self._is_row, values)):
            self.rows |= names
        if any(map(self.is_text, values)):
            self.texts |= names
        if len(values) == 1 and self.is_parts(values[0]):
            self.parts |= names

    def is_text(self, node: nodes.Node) -> bool:
        """Whether a text may be read in an expression."""
        for inner in _walk(node):
            match inner:
                case nodes.Const(value=name) | nodes.Getattr(attr=name) if name in TEXTS:
                    return True
                case nodes.Getattr(node=row, attr="items" | "values") if self._is_row(row):
                    return True
                case nodes.Filter(node=nodes.Name() as row, name="items" | "dictsort" | "tojson" | "string") if (
                    self._is_row(row)
                ):
                    return True
                case nodes.Name(name=name) | nodes.Getattr(attr=name) if name in self.texts:
                    return True
                case nodes.Getitem(arg=nodes.Const()):
                    continue
                case nodes.Getitem(arg=arg) if _constants([arg]):
                    return True  # a key that is put together
        return False

    def _is_row(self, node: nodes.Node) -> bool:
        """Whether an expression may be a message or several."""
        match node:
            case nodes.Name(name=name) | nodes.Getattr(attr=name) if name in self.rows:
                return True
            case nodes.Getattr(attr="previtem" | "nextitem"):
                return True
            case nodes.Getattr() | nodes.Call() | nodes.Compare() | nodes.Test():
                return False
        return not _is_item(node) and any(map(self._is_row, node.iter_child_nodes()))

    def is_parts(self, node: nodes.Node) -> bool:
        """Whether an expression is the parts of a text that was split at a constant, or those of some other kind."""
        match node:
            case nodes.Filter(name="selectattr" | "rejectattr", args=[nodes.Const(value=str() as key), *_]):
                return key not in TEXTS
            case nodes.Call(node=nodes.Getattr(attr=name)) if name in SPLITS:
                return True
            case nodes.Name(name=name) | nodes.Getattr(attr=name):
                return name in self.parts
            case nodes.Getitem(arg=nodes.Slice()) | nodes.Filter(name="list" | "reverse" | "map"):
                return node.node is not None and self.is_parts(node.node)
        return False

    # ---------------------------------------------------------------- what it is asked

    def constants(self) -> set[str]:
        found: set[str] = set()
        for node in _walk(self.tree):
            match node:
                case nodes.Compare() if not self._is_of_key(node):
                    found |= self._compared([node.expr, *(op.expr for op in node.ops)])
                case nodes.Call(node=nodes.Getattr(node=inner, attr=name), args=args) if self.is_text(inner):
                    found |= self._called(inner, name, args, node)
                case nodes.Filter(node=inner, name=name, args=args) if inner is not None and self.is_text(inner):
                    if id(node) not in self.emptiness:
                        found |= self._filtered(inner, name, args)
                case nodes.Test(node=inner, name=name, args=args) if name not in TYPE_TESTS and self.is_text(inner):
                    found |= self._said(args)
                case nodes.Getitem(node=inner, arg=arg) if self.is_text(inner):
                    self._picked(node, inner, arg)
                case nodes.FilterBlock(body=body, filter=nodes.Filter(name=name)) if name not in SHOWS:
                    if any(map(self.is_text, body)):
                        raise _Otherwise
                case nodes.Mul() | nodes.Mod() | nodes.Div() | nodes.FloorDiv() | nodes.Sub() if self.is_text(node):
                    if not self._counts(node):
                        raise _Otherwise
        return {constant.casefold() for constant in found}

    def _is_of_key(self, node: nodes.Compare) -> bool:
        """Whether a part of a content is asked for its kind; a letter of a text has none."""
        operator, right = node.ops[0].op, node.ops[0].expr
        if operator in ("in", "notin") and isinstance(node.expr, nodes.Const) and self._is_row(right):
            return not self.is_text(right)
        if operator in ("in", "notin") and isinstance(right, nodes.Name) and right.name in self.items:
            return isinstance(node.expr, nodes.Const) and len(str(node.expr.value)) > 1
        return all(self._is_key(part) for part in (node.expr, *(op.expr for op in node.ops)) if self.is_text(part))

    def _is_key(self, node: Any) -> bool:
        """`part.type` or `part["type"]`, of which a text has none."""
        key = node.attr if isinstance(node, nodes.Getattr) else node.arg.value if _is_item(node) else "content"
        return key not in TEXTS and key not in self.texts

    def _counts(self, node: nodes.Node) -> bool:
        """Whether an expression is made of the number of messages or parts, and not of a text."""
        return not any(
            self.is_text(leaf) and not (isinstance(leaf, nodes.Filter) and self._is_count(leaf))
            for leaf in _leaves(node)
        )

    def _is_count(self, node: nodes.Filter) -> bool:
        return node.name in ("length", "count") and node.node is not None and self.is_parts(node.node)

    def _compared(self, operands: list[nodes.Expr]) -> set[str]:
        if not any(self.is_text(part) and not self._counts(part) for part in operands):
            return set()
        if id(operands[0]) in self.emptiness:
            return set()
        said = [part.value for part in operands if isinstance(part, nodes.Const)]
        if all(value in (None, "", True, False) for value in said) and len(said) == len(operands) - 1:
            return set()
        if any(isinstance(value, int | float) and not isinstance(value, bool) for value in said):
            raise _Otherwise
        return self._said([part for part in operands if not self.is_text(part)] or operands[:0])

    def _called(self, inner: nodes.Expr, name: str, args: list[nodes.Expr], node: nodes.Node) -> set[str]:
        if name in SEARCHES:
            return self._said([arg for arg in args if not _is_number(arg)])
        if name in TRIMS:
            return {letter for text in self._said(args, none=True) for letter in text if not letter.isspace()}
        if name in SHOWS or name in ("get", "items", "values", "keys", "append"):
            return set()
        raise _Otherwise

    def _filtered(self, inner: nodes.Expr, name: str, args: list[nodes.Expr]) -> set[str]:
        if name in SHOWS or (name in OF_PARTS and self.is_parts(inner)) or name in OF_OTHERS:
            return set()
        if name == "replace":
            return self._said(args)
        raise _Otherwise

    def _picked(self, node: nodes.Node, inner: nodes.Expr, arg: nodes.Expr) -> None:
        """An item of a text would be a letter; one that is asked for a key is a part of another kind of content."""
        key = isinstance(arg, nodes.Const) and isinstance(arg.value, str)
        if not key and not self.is_parts(inner) and id(node) not in self.keyed and _is_position(arg):
            raise _Otherwise

    def _said(self, args: Iterable[nodes.Node], none: bool = False) -> set[str]:
        """The constants of arguments that are nothing else."""
        args = list(args)
        found = _constants(args)
        if not found and not none:
            raise _Otherwise
        if any(isinstance(inner, nodes.Name | nodes.Getattr | nodes.Call) for arg in args for inner in _walk(arg)):
            raise _Otherwise
        return {text for text in found if text}


def _is_item(node: Any) -> bool:
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for inner in node.iter_child_nodes():
        yield from _walk(inner)


def _leaves(node: nodes.Node) -> Iterator[nodes.Node]:
    """The operands of arithmetic."""
    if isinstance(node, nodes.BinExpr | nodes.UnaryExpr):
        for inner in node.iter_child_nodes():
            yield from _leaves(inner)
    else:
        yield node


def _constants(args: Iterable[nodes.Node]) -> set[str]:
    return {
        inner.value
        for arg in args
        for inner in _walk(arg)
        if isinstance(inner, nodes.Const) and isinstance(inner.value, str)
    }


def _is_number(arg: nodes.Node) -> bool:
    return isinstance(arg, nodes.Const) and isinstance(arg.value, int)


def _is_position(arg: Any) -> bool:
    """Whether what stands in brackets can only be a place in a sequence."""
    return isinstance(arg, nodes.Slice | nodes.Neg) or _is_number(arg)
