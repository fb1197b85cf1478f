"""What a template looks for in the texts of messages: the constants that it compares them with or splits them at.

Two rows of the same shape whose texts hold none of these constants go the same way through the template, so what was
proven of one holds for the other (`skeletons`), and it is known what is printed for it. A row that does hold one is
always tracked itself: the template may cut something out of its text and print it again, and equal text would not mean
equal origins.

    {% if '</think>' in message.content %}{% set parts = message.content.split('</think>') %}    looks for </think>
    {% if message.content | length > 100 %}                                             looks at something else

It is found by the reader of `blind`, which is content with templates that look at no text. This one also allows what a
constant decides: in a text without it, `in` is false, `split` gives the text itself, and so on. Where the text is not
*bare*, a message's own without any of the template's around it, the constant may also come about where they meet; so
then no text of a row may begin with an end of it, end with a beginning, or be a part of it (`Wanted.borders`).
Two texts, or two messages, that are compared with each other are the same only where they are one, if no two texts of
a row are alike (`Wanted.apart`). Whether a text is empty is settled by the shape of a row, since none of its own is
blank. Whatever else is done with a text is a look, and then there are no constants to tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from jinja2 import nodes
from markupsafe import Markup

from datakit.templates.blind import (
    CLEAN,
    MESSAGE,
    NAMESPACE,
    PARTS,
    SPECIAL,
    TEXT,
    Looks,
    Reader,
    Sight,
    Sort,
    arguments_of,
)

TRIMS: Final = frozenset({"strip", "lstrip", "rstrip"})
SPLITS: Final = frozenset({"split", "rsplit", "partition", "rpartition"})
KINDS: Final = {"string": True, "iterable": True, "sequence": True, "defined": True, "mapping": False, "none": False}
"""Tests of a text that is there."""


class Wanted(NamedTuple):
    """What templates look for in texts.

    Attributes:
        constants: that they compare texts with or split them at.
        borders: those of them that they look for in texts with some of the template's own beside them.
        apart: whether they compare texts with each other too.
        sight: what they do with texts that hold none of them; `LOOKS` where these are printed as JSON, or the day is.
    """

    constants: frozenset[str] = frozenset()
    borders: frozenset[str] = frozenset()
    apart: bool = False
    sight: Sight = Sight.PRINTS

    def allows(self, texts: Sequence[str], bare: bool) -> bool:
        """Whether a row goes the same way as all others of its shape that are allowed.

        Args:
            texts: of its messages.
            bare: none of them has white space around it.
        """
        if (self.apart or self.borders) and not bare:
            return False
        if self.apart and len(set(texts)) < len(texts):
            return False
        return not (self.borders and any(map(self._meets, texts))) and not self._stands_in(texts)

    def allows_all(self, texts: Sequence[str]) -> bool:
        """Whether all rows that are made of these texts are allowed; seen at one glance, and often true."""
        return not self.apart and not self.borders and not self._stands_in(texts)

    def _stands_in(self, texts: Sequence[str]) -> bool:
        whole = "\0".join(texts) if self.constants else ""
        return any(constant in whole for constant in self.constants)

    def _meets(self, text: str) -> bool:
        """Whether a text can be a part of a constant together with what stands beside it."""
        return any(
            text in constant or text.startswith(_ends(constant)) or text.endswith(_beginnings(constant))
            for constant in self.borders
        )


@cache
def _ends(constant: str) -> tuple[str, ...]:
    return tuple(constant[at:] for at in range(1, len(constant)))


@cache
def _beginnings(constant: str) -> tuple[str, ...]:
    return tuple(constant[:at] for at in range(1, len(constant)))


def looked_for(*trees: nodes.Template, pinned: bool = False) -> Wanted | None:
    """The constants that templates look for in texts; None where they look at something else too.

    Args:
        trees: of one template and its twin.
        pinned: whether the time that they are told stays the same.
    """
    readers = [_Reader(tree) for tree in trees]
    if not all(reader.reads(tree) for reader, tree in zip(readers, trees, strict=True)):
        return None
    constants = frozenset[str]().union(*(reader.constants for reader in readers))
    borders = frozenset[str]().union(*(reader.borders for reader in readers))
    renders = any(reader.coded or (reader.dated and not pinned) for reader in readers)
    sight = Sight.LOOKS if renders else Sight.TRIMS if readers[0].trims else Sight.PRINTS
    return Wanted(constants, borders, any(reader.apart for reader in readers), sight)


class _Reader(Reader):
    """Reads on where a constant decides, and keeps it."""

    def __init__(self, tree: nodes.Template) -> None:
        super().__init__(pinned=True)
        self.constants: set[str] = set()
        self.borders: set[str] = set()
        self.apart = False
        self.coded = False  # whether a text is printed as JSON, where it has other characters
        self.dated = False
        self.mixed: set[str] = set()  # names, and attributes of namespaces, that hold more than a message's own text
        self.loose: set[tuple[str, str]] = set()  # arguments of macros that may be neither a text nor a message
        self.certain: frozenset[str] = frozenset()  # names that hold a text at this place, whatever way led here
        self.unsure: set[str] = set()  # names that are something else somewhere
        self.inside: list[str] = []  # the macros that are being read
        self.done: set[str] = set()  # those that were read in this pass
        self.padded = False  # whether a macro prints white space around a text
        self.speaks: set[str] = set()  # macros that print text
        targets = [node.target.name for node in tree.find_all(nodes.For) if isinstance(node.target, nodes.Name)]
        stored = [node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"]
        self.rows = {name for name in targets if stored.count(name) == targets.count(name)}  # only loops give these
        assigned = [node.target.name for node in tree.find_all(nodes.Assign) if isinstance(node.target, nodes.Name)]
        in_loops = {n.name for loop in tree.find_all(nodes.For) if loop.else_ for n in loop.find_all(nodes.Name)}
        self.set_alone = {name for name in assigned if stored.count(name) == assigned.count(name)} - in_loops
        given = [node.node for node in tree.find_all(nodes.Assign) if getattr(node.target, "name", "") == "tools"]
        others = [node for node in tree.find_all(nodes.Name) if node.name == "tools" and node.ctx != "load"]
        self.tools_set = bool(others)
        self.no_tools = len(others) == len(given) and all(map(_is_nothing, given))  # no value of it counts as true

    def once(self, tree: nodes.Template) -> None:
        self.done.clear()
        super().once(tree)

    def ask(self, node: nodes.Node, text: nodes.Expr) -> None:
        """Keep a constant that a text is asked for."""
        if not isinstance(node, nodes.Const) or not isinstance(node.value, str) or not node.value:
            raise Looks
        if self.padded and node.value != node.value.strip():
            raise Looks
        self.constants.add(node.value)
        if not self.is_bare(text):
            self.learned |= node.value not in self.borders
            self.borders.add(node.value)
        if self.borders and self.coded:
            raise Looks

    # ---------------------------------------------------------------- bare texts

    def is_bare(self, node: Any) -> bool:
        """Whether a text is a message's own, or a part of it."""
        match node:
            case nodes.Name(name=name):
                return name not in self.mixed
            case nodes.Getattr(node=inner, attr=name) | nodes.Getitem(node=inner, arg=nodes.Const(value=str() as name)):
                return self.sort(inner) is MESSAGE or (self.sort(inner) is NAMESPACE and name not in self.mixed)
            case nodes.Filter(name="tojson"):
                return False
            case nodes.Getitem(node=inner) | nodes.Filter(node=inner):
                return inner is not None and self.is_bare(inner)
            case nodes.Call(node=nodes.Name(name=name)):
                return name in self.macros and name not in self.mixed
            case nodes.Call(node=nodes.Getattr(node=inner)):
                return self.sort(inner) is MESSAGE or self.is_bare(inner)
            case nodes.CondExpr(expr1=one, expr2=other):
                return all(part is None or self.is_bare(part) for part in (one, other))
            case nodes.Or(left=left, right=right):
                return self.is_bare(left) and self.is_bare(right)
            case nodes.Const(value="" | None):
                return True
        return False

    def _mix(self, name: str, *values: nodes.Node) -> None:
        """Remember that a name holds other text too."""
        texts = [value for value in values if self.sort(value) in (TEXT, PARTS)]
        if name not in self.mixed and not all(map(self.is_bare, texts)):
            self.mixed.add(name)
            self.learned = True

    def is_string(self, node: nodes.Node) -> bool:
        """Whether an expression is a text for every plain row, and never another thing or nothing."""
        match node:
            case nodes.Const(value=str()) | nodes.Concat():
                return True
            case nodes.Add(left=left, right=right):
                return self.is_string(left) or self.is_string(right)
            case nodes.Name(name=name):
                sure = name in self.certain and name in self.set_alone - self.unsure
                return sure or (self._is_given(name) and self.sort(node) is not MESSAGE)
            case nodes.Filter(node=inner, name="trim" | "string"):
                return inner is not None and self.is_string(inner)
            case nodes.Filter(node=inner, name="default" | "d", args=args) if _is_empty(args[:1]):
                return inner is not None and self.is_string(inner)
        return self._is_content(node)

    def _is_content(self, node: nodes.Node) -> bool:
        """Whether an expression is the text of a message for every plain row, so that it is not blank."""
        match node:
            case (
                nodes.Getattr(node=inner, attr="content")
                | nodes.Getitem(node=inner, arg=nodes.Const(value="content"))
                | nodes.Call(node=nodes.Getattr(node=inner, attr="get"), args=[nodes.Const(value="content"), *_])
            ):
                return self._is_there(inner)
            case nodes.Filter(node=inner, name="trim" | "string"):
                return inner is not None and self._is_content(inner)
        return False

    def _is_given(self, name: str) -> bool:
        """Whether a name is an argument that its macro does not set, and that every call gives a text or a message."""
        if not self.inside:
            return False
        macro = self.macros[self.inside[-1]]
        names = [inner.name for inner in macro.find_all(nodes.Name) if inner.ctx == "store"]
        own = name in [argument.name for argument in macro.args] and name not in names
        return own and (macro.name, name) not in self.loose

    def _is_there(self, node: nodes.Expr) -> bool:
        """Whether an expression is a message for every plain row: that of a loop, or the first."""
        match node:
            case nodes.Name(name=name):
                return (name in self.rows or self._is_given(name)) and self.sort(node) is MESSAGE
            case nodes.Getitem(node=nodes.Name(name="messages"), arg=nodes.Const(value=0)):
                return self.sort(node) is MESSAGE
        return False

    def _give(self, macro: nodes.Macro, node: nodes.Call) -> None:
        """Learn what the arguments of a macro are given by a call."""
        named = {keyword.key: keyword.value for keyword in node.kwargs}
        values = dict(zip([argument.name for argument in macro.args], node.args, strict=False)) | named
        for argument in macro.args:
            value = values.get(argument.name)
            if value is not None:
                self._mix(argument.name, value)
            sure = value is not None and (self.is_string(value) or self._is_there(value))
            if (macro.name, argument.name) not in self.loose and not sure:
                self.loose.add((macro.name, argument.name))
                self.learned = True

    def printed(self, parts: Sequence[nodes.Node]) -> None:
        super().printed(parts)
        for part in parts if self.inside else ():
            if self.sort(part) is TEXT and self.inside[-1] not in self.speaks:
                self.speaks.add(self.inside[-1])
                self.learned = True
            said = part.data if isinstance(part, nodes.TemplateData) else None
            if said is not None and not said.strip():
                self.learned |= bool(said) and not self.padded
                self.padded |= bool(said)
            elif self.inside[-1] not in self.mixed and not (self.sort(part) is TEXT and self.is_bare(part)):
                self.mixed.add(self.inside[-1])
                self.learned = True

    # ---------------------------------------------------------------- statements

    def body(self, statements: Sequence[nodes.Node]) -> None:
        """Names that become certain in a body may be something else behind it."""
        before = self.certain
        super().body(statements)
        self.certain = before

    def statement(self, node: nodes.Node) -> None:
        self._statement(node)
        match node:
            case nodes.Assign(target=nodes.Name(name=name), node=value) if self.is_string(value):
                self.certain |= {name}
            case nodes.Assign(target=nodes.Name(name=name)):
                self.learned |= name not in self.unsure
                self.unsure.add(name)

    def _statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.If(test=test, body=body, elif_=others, else_=rest):
                return self._branch(test, body, others, rest)
            case nodes.For(target=nodes.Name() as target, iter=over, body=body, else_=rest, test=None, recursive=False):
                if self.sort(over) is PARTS:
                    self.bind(target, TEXT)
                    self._mix(target.name, over)
                    return self.body([*body, *rest])
            case nodes.Assign(target=nodes.Name(name=name) | nodes.NSRef(attr=name), node=value):
                self._mix(name, value)
            case nodes.For(iter=over, else_=rest, recursive=False) if self.known(over) is False:
                return self.body(rest)
            case nodes.Macro():
                return None  # read where it is called from
            case nodes.AssignBlock(target=nodes.Name(name=name) | nodes.NSRef(attr=name)):
                self.learned |= name not in self.mixed
                self.mixed.add(name)
        return super().statement(node)

    def _branch(self, test: nodes.Node, body: list[nodes.Node], others: list[nodes.If], rest: list[nodes.Node]) -> None:
        """Only the branch that a plain row can take, where its kind says which."""
        known = self.known(test)
        if known is None:
            self.sort(test)
        if known is not False:
            self.body(body)
        if known is True:
            return
        if others:
            self._branch(others[0].test, others[0].body, others[1:], rest)
        else:
            self.body(rest)

    def known(self, test: nodes.Node) -> bool | None:
        """What a test gives for every plain row, where it asks for the kind of a text, for tools or for other keys."""
        match test:
            case nodes.Name(name="tools"):
                return False if self.no_tools else None
            case nodes.Test(node=nodes.Name(name="tools"), name=name, args=[]) if not self.tools_set:
                return {"none": True, "defined": True, "undefined": False}.get(name, False if name in KINDS else None)
            case nodes.Test(node=nodes.Name(name=name)) if name in SPECIAL:
                return None
            case nodes.Test(node=inner, name=name, args=[]) if name in KINDS or name == "undefined":
                if self._is_absent(inner):
                    return name == "undefined"
                text = self.sort(inner) is TEXT and self.is_string(inner)
                return KINDS.get(name, False) if text else None
            case nodes.Compare(
                expr=nodes.Const(value=str() as key), ops=[nodes.Operand(op="in" | "notin" as op, expr=row)]
            ) if self.sort(row) is MESSAGE:
                there = key in ("role", "content")
                return None if there and not self._is_there(row) else there == (op == "in")
            case nodes.Compare(expr=inner, ops=[nodes.Operand(op="eq" | "ne" as op, expr=nodes.Const(value=""))]):
                return op == "ne" if self._is_content(inner) else None
            case nodes.Compare(
                expr=nodes.Filter(node=inner, name="length" | "count"),
                ops=[nodes.Operand(op=op, expr=nodes.Const(value=0))],
            ) if inner is not None and self._is_content(inner):
                return op in ("gt", "gteq", "ne")
            case nodes.Not(node=inner):
                known = self.known(inner)
                return None if known is None else not known
            case nodes.And(left=left, right=right):
                both = self.known(left), self.known(right)
                return False if both[0] is False else True if both == (True, True) else None
            case nodes.Or(left=left, right=right):
                both = self.known(left), self.known(right)
                return True if both[0] is True else False if both == (False, False) else None
        return False if self._is_absent(test) else None

    def _is_absent(self, node: nodes.Node) -> bool:
        """Whether an expression is the value of a key that no message of a plain row has, or one of its text."""
        match node:
            case nodes.Getattr(node=inner, attr=str() as key) if self._is_content(inner):
                return not hasattr(Markup, key)
            case (
                nodes.Getattr(node=inner, attr=str() as key)
                | nodes.Getitem(node=inner, arg=nodes.Const(value=str() as key))
                | nodes.Call(node=nodes.Getattr(node=inner, attr="get"), args=[nodes.Const(value=str() as key)])
            ):
                loops = isinstance(inner, nodes.Name) and inner.name in SPECIAL
                return (
                    not loops
                    and key not in ("role", "content")
                    and not hasattr(dict, key)
                    and self.sort(inner) is MESSAGE
                )
        return False

    # ---------------------------------------------------------------- expressions

    def combined(self, node: Any) -> Sort:
        match node:
            case nodes.And(left=left) if self.known(left) is False:
                return CLEAN
            case nodes.Or(left=left) if self.known(left) is True:
                return self.sort(left)
            case nodes.CondExpr(test=test, expr1=one, expr2=other) if (known := self.known(test)) is not None:
                taken = one if known else other
                return CLEAN if taken is None else self.sort(taken)
        return super().combined(node)

    def compare(self, node: nodes.Compare) -> Sort:
        if len(node.ops) == 1:
            left, operator, right = node.expr, node.ops[0].op, node.ops[0].expr
            match left, right:
                case nodes.Filter(node=inner, name="length" | "count"), nodes.Const(value=0) if inner is not None:
                    if self.sort(inner) is TEXT:
                        return CLEAN  # no text of a plain row is empty, so the shape of a row says which is
            sorts = self.sort(left), self.sort(right)
            alike = sorts == (MESSAGE, MESSAGE) or (
                sorts == (TEXT, TEXT) and self.is_bare(left) and self.is_bare(right)
            )
            if operator in ("eq", "ne") and alike:
                self.apart = True
                return CLEAN
            if operator in ("in", "notin") and sorts == (CLEAN, TEXT):
                self.ask(left, right)
                return CLEAN
            if operator in ("eq", "ne") and TEXT in sorts and CLEAN in sorts:
                text, constant = (left, right) if sorts[0] is TEXT else (right, left)
                if isinstance(constant, nodes.Const) and not isinstance(constant.value, str):
                    return CLEAN  # no text is false, or a number
                if not (isinstance(constant, nodes.Const) and constant.value == ""):
                    self.ask(constant, text)
                    return CLEAN
        return super().compare(node)

    def item(self, inner: nodes.Expr, where: nodes.Expr) -> Sort:
        if self.sort(inner) is PARTS:
            parts = where.iter_child_nodes() if isinstance(where, nodes.Slice) else [where]
            self.clean(*parts)
            return PARTS if isinstance(where, nodes.Slice) else TEXT
        return super().item(inner, where)

    def filter(self, node: nodes.Filter) -> Sort:
        inner = node.node
        if inner is None:
            raise Looks
        if node.name == "tojson" and isinstance(inner, nodes.Dict):
            self.clean(*arguments_of(node), *(pair.key for pair in inner.items))
            self.printed([pair.value for pair in inner.items])
            return self._code()
        arguments, sort = arguments_of(node), self.sort(inner)
        self.clean(*arguments)
        if sort is PARTS and not arguments:
            return {"first": TEXT, "last": TEXT, "length": CLEAN, "count": CLEAN, "list": PARTS, "reverse": PARTS}.get(
                node.name
            ) or self.look()
        if sort is CLEAN and node.name != "random":
            return CLEAN
        if sort is TEXT and node.name == "tojson" and not node.args:
            return self._code()
        if sort is TEXT and not node.kwargs:
            if node.name in ("default", "d") and _is_empty(node.args[:1]):
                return TEXT
            if node.name == "replace" and len(node.args) == 2:
                self.ask(node.args[0], inner)
                return TEXT
        return super().filter(node)

    def _code(self) -> Sort:
        """A text as JSON."""
        self.learned |= not self.coded
        self.coded = True
        return TEXT

    def member(self, inner: nodes.Expr, name: str) -> Sort:
        known = isinstance(inner, nodes.Name) and inner.name in SPECIAL
        if not known and self.sort(inner) is TEXT and not hasattr(Markup, name):
            return CLEAN  # undefined
        return super().member(inner, name)

    def call(self, node: nodes.Call) -> Sort:
        match node.node:
            case nodes.Name(name="namespace"):
                for keyword in node.kwargs:
                    self._mix(keyword.key, keyword.value)
            case nodes.Name(name="strftime_now"):
                self.dated = True
            case nodes.Name(name=name) if name in self.macros:
                self._give(self.macros[name], node)
                super().call(node)
                self._read(name)
                return TEXT if name in self.speaks else CLEAN
            case nodes.Getattr(node=inner, attr=name) if not isinstance(inner, nodes.Name) or inner.name != "loop":
                if self.sort(inner) is TEXT and not (node.kwargs or node.dyn_args or node.dyn_kwargs):
                    return self._asked(inner, name, node.args)
        return super().call(node)

    def _read(self, name: str) -> None:
        """A macro, once in a pass: what it is given is known by then, or in the next."""
        if name not in self.done:
            self.done.add(name)
            self.inside.append(name)
            outside, self.certain = self.certain, frozenset()
            super().statement(self.macros[name])
            self.certain = outside
            self.inside.pop()

    def _asked(self, text: nodes.Expr, name: str, args: Sequence[nodes.Expr]) -> Sort:
        """A method of a text."""
        match name, args:
            case "startswith" | "endswith", [constant]:
                self.ask(constant, text)
                return CLEAN
            case _, [constant] if name in SPLITS:
                self.ask(constant, text)
                return PARTS
            case _, [constant, nodes.Const(value=int())] if name in ("split", "rsplit"):
                self.ask(constant, text)
                return PARTS
            case "replace", [constant, nodes.Const(value=str())]:
                self.ask(constant, text)
                return TEXT
            case _, [nodes.Const(value=str() as letters)] if name in TRIMS:
                self.constants |= {letter for letter in letters if not letter.isspace()}
                self.trims = True
                return TEXT
            case _, [] if name in TRIMS:
                self.trims = True
                return TEXT
        raise Looks


def _is_empty(args: Sequence[nodes.Node]) -> bool:
    return all(isinstance(arg, nodes.Const) and arg.value == "" for arg in args)


def _is_nothing(node: nodes.Node) -> bool:
    """Whether `tools`, which a plain row does not have, stays none or empty by an assignment."""
    match node:
        case nodes.Const(value=value):
            return not value
        case nodes.Name(name="tools") | nodes.List(items=[]):
            return True
        case nodes.CondExpr(expr1=one, expr2=other):
            return all(part is None or _is_nothing(part) for part in (one, other))
        case nodes.Or(left=left, right=right):
            return _is_nothing(left) and _is_nothing(right)
    return False
