"""Expressions and constraints as text, with the brackets that are needed and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from constrint.constraint import Constraint
    from constrint.expression import Expression

# How tightly each operation binds; a part that binds less tightly than its place is bracketed.
IMPLIES, OR, AND, NOT, COMPARE, SUM, PRODUCT, UNARY, POWER, ATOM = range(10)

_SYMBOLS = {
    "+": (SUM, "+"),
    "-": (SUM, "-"),
    "*": (PRODUCT, "*"),
    "/": (PRODUCT, "/"),
    "//": (PRODUCT, "//"),
    "%": (PRODUCT, "%"),
}
_CALLS = {"cdiv": "cdiv", "min": "min", "max": "max", "abs": "abs"}


def expression_text(node: Expression) -> str:
    """The expression in Python's notation (``if(c, a, b)`` for the conditional)."""
    return _expression(node)[0]


def constraint_text(node: Constraint) -> str:
    """The constraint in words close to Python's, as the text form writes it."""
    return _constraint(node)[0]


def _expression(node: Expression) -> tuple[str, int]:  # noqa: PLR0911 (one return per operation)
    op, args = node.op, node.args
    if op == "const":
        value = args[0]
        return str(value), ATOM if value >= 0 else UNARY
    if op == "var":
        return node.name, ATOM  # type: ignore[attr-defined]
    if op in _SYMBOLS:
        level, symbol = _SYMBOLS[op]
        left = _place(_expression(args[0]), level)
        right = _place(_expression(args[1]), level + 1)
        return f"{left} {symbol} {right}" if level == SUM else f"{left}{symbol}{right}", level
    if op == "neg":
        return "-" + _place(_expression(args[0]), UNARY), UNARY
    if op == "**":
        left, right = _place(_expression(args[0]), ATOM), _place(_expression(args[1]), UNARY)
        return f"{left}**{right}", POWER
    if op == "if":
        parts = [constraint_text(args[0]), expression_text(args[1]), expression_text(args[2])]
        return f"if({', '.join(parts)})", ATOM
    return f"{_CALLS[op]}({', '.join(expression_text(arg) for arg in _flat(node))})", ATOM


def _flat(node: Expression) -> list[Expression]:
    """min(min(a, b), c) reads as min(a, b, c)."""
    if node.op in {"min", "max"} and node.args[0].op == node.op:
        return [*_flat(node.args[0]), node.args[1]]
    return list(node.args)


def _constraint(node: Constraint) -> tuple[str, int]:  # noqa: PLR0911 (one return per operation)
    op, args = node.op, node.args
    if op in {"and", "or"}:
        level = AND if op == "and" else OR
        left, right = _place(_constraint(args[0]), level), _place(_constraint(args[1]), level + 1)
        return f"{left} {op} {right}", level
    if op == "not":
        return "not " + _place(_constraint(args[0]), NOT), NOT
    if op == "implies":
        left, right = _place(_constraint(args[0]), OR), _place(_constraint(args[1]), OR)
        return f"{left} implies {right}", IMPLIES
    if op == "in":
        return f"{_term(args[0])} in {{{', '.join(map(str, args[1]))}}}", COMPARE
    if op == "table":
        rows = ", ".join(f"({', '.join(map(str, row))})" for row in args[1])
        return f"table([{_listed(args[0])}], [{rows}])", ATOM
    if op == "different":
        return f"all_different([{_listed(args[0])}])", ATOM
    if op == "call":
        name = getattr(args[0], "__name__", "function")
        return f"{name}({_listed(args[1])})", ATOM
    if op in {"true", "false"}:
        return op, ATOM
    return f"{_term(args[0])} {op} {_term(args[1])}", COMPARE


def _term(node: Expression) -> str:
    return _place(_expression(node), SUM)


def _listed(nodes: tuple[Expression, ...]) -> str:
    return ", ".join(expression_text(node) for node in nodes)


def _place(part: tuple[str, int], level: int) -> str:
    text, own = part
    return text if own >= level else f"({text})"
