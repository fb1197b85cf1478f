"""Filters: which rows of a source are used, as one condition on its columns.

    dk_length <= 4096 and dk_meta.category in ["math", "code"]

A filter is a comparison, or several with `and`, `or`, `not` and parentheses. Names are columns; a name with a dot is a
key inside a JSON column, such as `dk_meta`. Values are texts, numbers, True, False and None. It is read with Python's
grammar and nothing of it is executed. A comparison with a value that is absent, or of another type, does not hold.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from datakit.errors import UsageError

HINT: Final = "Such as \"dk_length <= 4096 and dk_meta.category in ['math', 'code']\"."
COMPARISONS: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], Any]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, allowed: value in allowed,
    ast.NotIn: lambda value, refused: value not in refused,
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition, parsed.

    Attributes:
        text: as it was written.
        columns: the columns that it reads.
    """

    text: str
    tree: ast.expr
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, place: str = "filter") -> Self:
        """Read a condition.

        Raises:
            UsageError: it is none, with the part that is not understood.
        """
        try:
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise UsageError(f"{place}: {text!r} cannot be read", HINT) from None
        _check(tree, place)
        return cls(text, tree, tuple(dict.fromkeys(path[0] for path in _names(tree))))

    def check(self, schema: pa.Schema, place: str = "filter") -> None:
        """Refuse what no row of these columns can meet, and what every row does.

        Raises:
            UsageError: a column alone that is not of booleans, or a comparison of texts with numbers.
        """
        for node in _conditions(self.tree):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                for one, other in pairwise(_kinds(side, schema) for side in sides):
                    if one and other and not one & other:
                        words = f"a {' or '.join(sorted(one))} with a {' or '.join(sorted(other))}"
                        raise UsageError(f"{place}: {ast.unparse(node)!r} compares {words}", HINT)
                order = any(isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops)
                if order and any(isinstance(side, ast.Constant) and side.value is None for side in sides):
                    raise UsageError(f"{place}: {ast.unparse(node)!r} never holds", "Write: name == None.")
            elif isinstance(node, ast.Name) and _kinds(node, schema) != {"boolean", "number"}:
                raise UsageError(f"{place}: {node.id!r} alone is no condition", f"Compare it with a value. {HINT}")

    def holds(self, table: pa.Table) -> NDArray[np.bool_]:
        """For which rows of a table it holds; JSON columns as strings or parsed objects."""
        columns = {name: table.column(name).to_pylist() for name in self.columns}
        dotted = {path[0] for path in _names(self.tree) if len(path) > 1}
        for name in dotted:
            columns[name] = [orjson.loads(value) if isinstance(value, str) else value for value in columns[name]]
        names = list(columns)
        rows = zip(*columns.values(), strict=True)
        found = (_value(self.tree, dict(zip(names, row, strict=True))) is True for row in rows)
        return np.fromiter(found, np.bool_, table.num_rows)


def _path(node: ast.expr) -> tuple[str, ...] | None:
    """A name with its keys, or None for anything else."""
    if isinstance(node, ast.Name):
        return (node.id,)
    inner = _path(node.value) if isinstance(node, ast.Attribute) else None
    return (*inner, node.attr) if inner and isinstance(node, ast.Attribute) else None


def _constant(node: ast.expr) -> bool:
    if isinstance(node, ast.List | ast.Tuple):
        return all(_constant(item) for item in node.elts)
    minus = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    inner = node.operand if isinstance(node, ast.UnaryOp) and minus else node
    return isinstance(inner, ast.Constant) and isinstance(inner.value, str | int | float | None)


def _check(node: ast.expr, place: str) -> None:
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value, place)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand, place)
    elif isinstance(node, ast.Compare):
        for side in (node.left, *node.comparators):
            if not (_path(side) or _constant(side)):
                raise UsageError(f"{place}: {ast.unparse(side)!r} is neither a column nor a value", HINT)
        for op, right in zip(node.ops, node.comparators, strict=True):
            if type(op) not in COMPARISONS:
                raise UsageError(f"{place}: {ast.unparse(node)!r} compares in a way that is not known", HINT)
            if isinstance(op, ast.In | ast.NotIn) and not isinstance(right, ast.List | ast.Tuple):
                raise UsageError(f"{place}: {ast.unparse(node)!r}: `in` takes a list of values", HINT)
    elif not _path(node):
        raise UsageError(f"{place}: {ast.unparse(node)!r} is no condition", HINT)


def _conditions(tree: ast.expr) -> Iterator[ast.expr]:
    """The comparisons and single names of a condition."""
    parts = tree.values if isinstance(tree, ast.BoolOp) else [tree.operand] if isinstance(tree, ast.UnaryOp) else []
    for part in parts:
        yield from _conditions(part)
    if not parts:
        yield tree


def _kinds(node: ast.expr, schema: pa.Schema) -> set[str]:
    """What a side of a comparison may be, as words; none where anything may come, as inside JSON."""
    if isinstance(node, ast.Name):
        type_ = schema.field(node.id).type
        if pa.types.is_boolean(type_):
            return {"boolean", "number"}  # True == 1
        if pa.types.is_integer(type_) or pa.types.is_floating(type_):
            return {"number"}
        return {"text"} if pa.types.is_string(type_) or isinstance(type_, pa.JsonType) else set()
    if not _constant(node):
        return set()
    value = ast.literal_eval(node)
    words = [_WORDS[type(item)] for item in (value if isinstance(value, list | tuple) else [value])]
    return set() if None in words else {word for word in words if word}


_WORDS: Final[Mapping[type, str | None]] = {
    str: "text",
    int: "number",
    float: "number",
    bool: "number",
    type(None): None,
}


def _names(tree: ast.expr) -> Iterator[tuple[str, ...]]:
    path = _path(tree)
    if path:
        yield path
        return
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):
            yield from _names(node)


def _value(node: ast.expr, row: Mapping[str, Any]) -> Any:
    """The value of a part of the condition in one row."""
    path = _path(node)
    if path:
        value: Any = row[path[0]]
        for key in path[1:]:
            value = value.get(key) if isinstance(value, dict) else None
        return value
    if isinstance(node, ast.BoolOp):
        values = (_value(part, row) is True for part in node.values)
        return all(values) if isinstance(node.op, ast.And) else any(values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _value(node.operand, row) is not True
    if isinstance(node, ast.Compare):
        return _compared(node, row)
    return ast.literal_eval(node)


def _compared(node: ast.Compare, row: Mapping[str, Any]) -> bool:
    left = _value(node.left, row)
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        right = _value(comparator, row)
        try:
            if not COMPARISONS[type(op)](left, right):
                return False
        except TypeError:  # None < 3, "a" < 3
            return False
        left = right
    return True
