"""Expressions as C++ statements: fused, in the order of fewest live values, with their prices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flashrnn.ir.expression import CONSTANT, INPUT, Expression, walk
from flashrnn.ir.ops import OPS
from flashrnn.passes.schedule import Statements, schedule

Fused = Mapping[Expression, Expression]


def emit_assignments(
    targets: Sequence[str],
    roots: Sequence[Expression],
    inputs: Mapping[tuple[str, str], str],
    remarks: Mapping[str, str],
    recomputed: Mapping[Expression, float],
    indent: str = "    ",
) -> str:
    """Statements that assign each root to its target.

    inputs: how each (kind, name) is spelled. remarks: comments of targets. recomputed: the
    operations that are marked as such, with their costs. A product that a sum alone uses becomes
    one fused multiply-add.
    """
    fused = fuse(roots)
    names: dict[Expression, str] = {}
    for node in walk(roots):
        if node.op == CONSTANT:
            names[node] = f"S::broadcast({_number(node.value)})"
        elif node.op == INPUT:
            names[node] = inputs[(node.kind, node.name)]
    lines: list[str] = []
    for node in schedule(statements(roots, fused), roots):
        names[node] = f"x{len(lines)}"
        kind = "auto" if node.is_condition else "Vec"
        text = _fma(node, fused[node], names) if node in fused else _spell(node, names)
        price = sum(recomputed.get(n, 0) for n in {node, fused.get(node, node)})
        remark = f"recomputed: {price:g}" if node in recomputed else ""
        lines.append(f"{indent}const {kind} {names[node]} = {text};{_comment(remark)}")
    for target, root in zip(targets, roots, strict=True):
        lines.append(f"{indent}{target} = {names[root]};{_comment(remarks.get(target, ''))}")
    return "\n".join(lines)


def fuse(roots: Sequence[Expression]) -> Fused:
    """Sums, each with the product among its operands that it takes in."""
    uses: dict[Expression, int] = {}
    for node in walk(roots):
        for argument in node.arguments:
            uses[argument] = uses.get(argument, 0) + 1
    for root in roots:
        uses[root] = uses.get(root, 0) + 1
    products = {n: _product_in(n, uses) for n in walk(roots) if n.op in ("add", "sub")}
    return {node: product for node, product in products.items() if product is not None}


def statements(roots: Sequence[Expression], fused: Fused) -> Statements:
    """What is computed, in written order, and what each statement reads."""
    taken_in = set(fused.values())
    return {
        node: [
            operand
            for argument in node.arguments
            for operand in (argument.arguments if argument is fused.get(node) else (argument,))
        ]
        for node in walk(roots)
        if node.op not in (CONSTANT, INPUT) and node not in taken_in
    }


def _product_in(node: Expression, uses: Mapping[Expression, int]) -> Expression | None:
    """The operand that can be fused: a product used here alone, the later one if both are."""
    for argument in reversed(node.arguments):
        if argument.op == "mul" and uses[argument] == 1:
            return argument
    return None


def _fma(node: Expression, product: Expression, names: Mapping[Expression, str]) -> str:
    left, right = (names[a] for a in product.arguments)
    first = node.arguments[0] is product
    other = names[node.arguments[1 if first else 0]]
    if node.op == "add":
        return f"S::fma({left}, {right}, {other})"
    return f"S::fma({left}, {right}, -{other})" if first else f"S::fma(-{left}, {right}, {other})"


def _spell(node: Expression, names: Mapping[Expression, str]) -> str:
    return OPS[node.op].spelling["cpp"].format(*(names[a] for a in node.arguments))


def _number(value: float) -> str:
    if math.isinf(value):
        return "__builtin_inf()" if value > 0 else "-__builtin_inf()"
    return repr(value)


def _comment(text: str) -> str:
    return f"  // {text}" if text else ""
