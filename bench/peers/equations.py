"""A cell's equations as a plain Python function, spelled with any array library's functions.

What one would write by hand, written from the cell's declaration: a line per operation, no
interpretation while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flashrnn.ir.cell import Cell
from flashrnn.ir.expression import CONSTANT, INPUT, Expression, walk

Function = Callable[..., Any]

_OPERATORS = {
    "add": "{} + {}",
    "sub": "{} - {}",
    "mul": "{} * {}",
    "div": "{} / {}",
    "neg": "-{}",
    "equal": "{} == {}",
    "less": "{} < {}",
    "less_equal": "{} <= {}",
}


def source(cell: Cell) -> str:
    """The function: gates by name, states by name, weights by kind and name -> the new states."""
    lines = [f"def {cell.name}(gate, state, weight):"]
    names: dict[Expression, str] = {}
    for node in walk(cell.new_states):
        operands = [names[a] for a in node.arguments]
        if node.op == CONSTANT:
            names[node] = repr(node.value) if node.value >= 0 else f"({node.value!r})"
            continue
        if node.op == INPUT:
            known = {"gate": "gate", "state": "state"}.get(node.kind)
            told = f"{known}[{node.name!r}]" if known else f"weight[{(node.kind, node.name)!r}]"
        elif node.op in _OPERATORS:
            told = _OPERATORS[node.op].format(*operands)
        else:
            told = f"{node.op}({', '.join(operands)})"
        names[node] = f"v{len(names)}"
        lines.append(f"    {names[node]} = {told}")
    results = "".join(f"{names[root]}, " for root in cell.new_states)
    return "\n".join([*lines, f"    return ({results.strip()})", ""])


def step(cell: Cell, functions: Mapping[str, Function]) -> Function:
    """The function, ready to be called; functions: those that have no operator, by name."""
    scope: dict[str, Any] = dict(functions)
    exec(compile(source(cell), f"<{cell.name} step by step>", "exec"), scope)
    made: Function = scope[cell.name]
    return made


def gates(cell: Cell, wx: Any, h: Any, weights: Mapping[str, Any], split: Function, product: Any
          ) -> dict[str, Any]:  # fmt: skip
    """Each gate's pre-activation in one step.

    wx [..., G_w * D] with the biases of its gates, weights["R"] [..., P, G_r * D] and
    weights["b"] of the other gates [..., G_r * D]; split(array, count) along the last axis;
    product(c, a, b) = c + a b.
    """
    count = len(cell.product_gates)
    if count and cell.recurrent == cell.input:  # one product on top of the other
        parts = split(product(wx, h, weights["R"]), count)
        return dict(zip(cell.recurrent, parts, strict=True))
    found = dict(zip(cell.input, split(wx, len(cell.input)), strict=True))
    if count:
        sums = split(product(weights["b"], h, weights["R"]), count)
        for name, part in zip(cell.recurrent, sums, strict=True):
            found[name] = found[name] + part if name in found else part
    return found
