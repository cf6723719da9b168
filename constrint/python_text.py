"""Conditions written as Python expressions, as auto-tuning spaces state them.

Names are variables; ``and``, ``or``, ``not``, chained comparisons, conditional expressions,
``in``, ``min``, ``max``, ``abs``, ``sum`` and arithmetic mean what they mean in Python, except
that arithmetic is exact: ``/`` is the exact quotient, and ``0.5`` is one half.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import NoReturn

from constrint.constraint import Constraint, member
from constrint.errors import ParseError
from constrint.expression import (
    Expression,
    Variable,
    either,
    expression,
    largest_of,
    smallest_of,
    total,
)

Node = Constraint | Expression

_BINARY = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
}
_COMPARE = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_CALLS: dict[str, Callable[..., Expression]] = {
    "min": smallest_of,
    "max": largest_of,
    "abs": abs,
    "sum": lambda *terms: total(terms),
}


def parse_condition(source: str, variables: Mapping[str, Variable]) -> Constraint:
    """The constraint that the Python expression ``source`` states; ParseError where it is none."""
    try:
        tree = ast.parse(source.strip(), mode="eval")
    except SyntaxError as error:
        line, column = error.lineno or 1, error.offset or 1
        raise ParseError(error.msg, source.strip(), line, column) from error
    return _Reader(source.strip(), variables).condition(tree.body)


class _Reader:
    """Turns the syntax tree of one condition into constraints and expressions."""

    def __init__(self, source: str, variables: Mapping[str, Variable]) -> None:
        self.source = source
        self.variables = variables

    def condition(self, node: ast.expr) -> Constraint:
        """``node`` where its truth counts: an integer is true unless it is 0."""
        read = self.read(node)
        return read if isinstance(read, Constraint) else read != 0

    def number(self, node: ast.expr) -> Expression:
        """``node`` where its value counts: a truth value is 1 or 0."""
        read = self.read(node)
        return read if isinstance(read, Expression) else either(read, 1, 0)

    def read(self, node: ast.expr) -> Node:
        """Whatever ``node`` is."""
        reader = getattr(self, f"_read_{type(node).__name__}", None)
        if reader is None:
            self._refuse(node, f"{type(node).__name__} is not part of a condition on integers")
        result: Node = reader(node)
        return result

    def _read_Name(self, node: ast.Name) -> Node:
        variable = self.variables.get(node.id)
        if variable is None:
            self._refuse(node, f"unknown name {node.id!r}; known: {', '.join(self.variables)}")
        return variable

    def _read_Constant(self, node: ast.Constant) -> Node:
        value = node.value
        if isinstance(value, bool):
            return Constraint("true" if value else "false")
        if isinstance(value, int):
            return Expression("const", value)
        if isinstance(value, float):
            exact = Fraction(str(value))
            above = Expression("const", exact.numerator)
            return above if exact.denominator == 1 else above / exact.denominator
        return self._refuse(node, f"{value!r} is not a number")

    def _read_BinOp(self, node: ast.BinOp) -> Node:
        left, right = self.number(node.left), self.number(node.right)
        if isinstance(node.op, ast.Pow):
            return left**right
        op = _BINARY.get(type(node.op))
        if op is None:
            self._refuse(node, f"{type(node.op).__name__} is not an operation on these integers")
        return Expression(op, left, right)

    def _read_UnaryOp(self, node: ast.UnaryOp) -> Node:
        if isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node.op, ast.Invert):
            self._refuse(node, "~ inverts bits in Python; write `not`")
        operand = self.number(node.operand)
        if isinstance(node.op, ast.UAdd):
            return operand
        return Expression("const", -operand.args[0]) if operand.op == "const" else -operand

    def _read_BoolOp(self, node: ast.BoolOp) -> Node:
        parts = [self.read(value) for value in node.values]
        is_and = isinstance(node.op, ast.And)
        if all(isinstance(part, Expression) for part in parts):
            # Python's `a or b` is a value: a unless it is 0, else b.
            result = parts[-1]
            for part in reversed(parts[:-1]):
                assert isinstance(part, Expression) and isinstance(result, Expression)
                result = (
                    either(part != 0, result, part) if is_and else either(part != 0, part, result)
                )
            return result
        joined = self.condition(node.values[0])
        for value in node.values[1:]:
            joined = Constraint("and" if is_and else "or", joined, self.condition(value))
        return joined

    def _read_Compare(self, node: ast.Compare) -> Node:
        result: Constraint | None = None
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            part = self._compared(node, left, op, right)
            result = part if result is None else result & part
            left = right
        assert result is not None
        return result

    def _compared(
        self, node: ast.expr, left: ast.expr, op: ast.cmpop, right: ast.expr
    ) -> Constraint:
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple | ast.Set):
                self._refuse(right, "`in` takes a list of integers")
            items = [self.number(item) for item in right.elts]
            if any(item.op != "const" for item in items):
                self._refuse(right, "`in` takes a list of integers")
            held = member(self.number(left), [item.args[0] for item in items])
            return held if isinstance(op, ast.In) else ~held
        symbol = _COMPARE.get(type(op))
        if symbol is None:
            self._refuse(node, f"{type(op).__name__} does not compare integers")
        return Constraint(symbol, self.number(left), self.number(right))

    def _read_IfExp(self, node: ast.IfExp) -> Node:
        condition = self.condition(node.test)
        then, otherwise = self.read(node.body), self.read(node.orelse)
        if isinstance(then, Constraint) and isinstance(otherwise, Constraint):
            return (condition & then) | (~condition & otherwise)
        return either(condition, self.number(node.body), self.number(node.orelse))

    def _read_Call(self, node: ast.Call) -> Node:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in _CALLS or node.keywords or not node.args:
            self._refuse(node, f"only {', '.join(_CALLS)} can be called, with their arguments")
        listed = node.args
        if len(listed) == 1 and isinstance(listed[0], ast.List | ast.Tuple):
            listed = listed[0].elts
        return _CALLS[name](*(expression(self.number(arg), name) for arg in listed))

    def _refuse(self, node: ast.expr, message: str) -> NoReturn:
        raise ParseError(message, self.source, node.lineno, node.col_offset + 1)
