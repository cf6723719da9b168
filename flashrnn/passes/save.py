"""Choose what the forward pass saves for the backward pass, and what that recomputes.

The backward expressions need some forward values. Each can be saved (it is written once and read
once) or recomputed from others; states and parameters are at hand anyway, gates are not. The
cheapest choice is a minimum cut: a needed value is either cut (saved) or opened, which costs its
operation and makes its operands needed.

The unit of all costs is one multiplication of a vector, that of `ir/ops.py`. Bytes turn into it
here and nowhere else: see SAVE_COST.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from flashrnn.ir.expression import CONSTANT, INPUT, Expression, leaf, substitute, walk
from flashrnn.ir.ops import OPS

# A processor that multiplies two vectors of 64 bytes per cycle moves about 16 bytes per cycle to or
# from its outer caches, where what is saved lies until the backward pass. The choice is one per
# cell, so it cannot depend on the machine; per element it does not depend on the dtype either.
VECTOR_BYTES = 64
BYTES_PER_MULTIPLICATION = 8.0
# Writing and reading one vector.
SAVE_COST = 2 * VECTOR_BYTES / BYTES_PER_MULTIPLICATION

_FORWARD = frozenset({"gate", "state", "parameter", "recurrent", "new_state", "saved"})


@dataclass(frozen=True)
class Saved:
    """saved: forward expressions to store, in order. backward: the roots in terms of them.

    instead: per saved expression, what doing without would cost in the place of its SAVE_COST: its
    operation, and whatever that reads, saved or recomputed; infinity for what only a gate holds.
    """

    saved: tuple[Expression, ...]
    backward: tuple[Expression, ...]
    instead: tuple[float, ...]


def choose_saved(
    new_states: Sequence[tuple[str, Expression]], backward: Sequence[Expression]
) -> Saved:
    """Rewrite the backward roots so that they read only what a backward kernel has.

    new_states: (name, expression) of each state; a state's new value is at hand in the backward
    pass as the input new_state.<name>. Afterwards the roots have no gate inputs: inputs are
    state, new_state, parameter, recurrent, cotangent and saved.0, saved.1, ….
    """
    at_hand: dict[Expression, Expression] = {
        e: leaf("new_state", name) for name, e in new_states if e.op not in (CONSTANT, INPUT)
    }
    backward = substitute(backward, at_hand)
    graph = _choices(backward)
    _, (inside, _outside) = nx.minimum_cut(graph, "source", "sink")
    needs = [n for n in walk(backward) if ("need", n) in graph]
    chosen = [n for n in needs if ("need", n) in inside and ("open", n) not in inside]
    opened = _opened(backward, set(chosen))
    names = {e: leaf("saved", str(k)) for k, e in enumerate(chosen)}
    in_forward = {new: e for e, new in at_hand.items()}  # there, the new states are being computed
    return Saved(
        tuple(substitute(chosen, in_forward)),
        tuple(substitute(backward, names)),
        tuple(opened[n] for n in chosen),
    )


def recomputed(backward: Sequence[Expression]) -> dict[Expression, float]:
    """The operations of such roots that need no cotangent, with their costs."""
    return {n: OPS[n.op].cost for n in _forward_nodes(backward) if n.op in OPS}


def _choices(backward: Sequence[Expression]) -> nx.DiGraph:
    """Each forward value that the roots may need, between needing and opening it."""
    forward = _forward_nodes(backward)
    priced = [n for n in forward if n.op != CONSTANT and not (n.op == INPUT and n.kind != "gate")]
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(("source", "sink"))
    for node in priced:
        save = math.inf if node.is_condition else SAVE_COST
        graph.add_edge(("need", node), ("open", node), capacity=save)
        price = math.inf if node.op == INPUT else OPS[node.op].cost
        graph.add_edge(("open", node), "sink", capacity=price)
        for argument in set(node.arguments) & set(priced):
            graph.add_edge(("open", node), ("need", argument))  # no capacity: infinite
    users = [n for n in walk(backward) if n not in forward and n.op not in (CONSTANT, INPUT)]
    direct = {a for n in users for a in n.arguments} | set(backward)
    for node in direct & set(priced):
        graph.add_edge("source", ("need", node))
    return graph


def _opened(backward: Sequence[Expression], saved: set[Expression]) -> dict[Expression, float]:
    """Per forward value, the cost of computing it where only what is saved is at hand."""
    opened: dict[Expression, float] = {}
    price: dict[Expression, float] = {}
    for node in _forward_nodes(backward):
        if node.op in OPS:
            opened[node] = OPS[node.op].cost + sum(price[a] for a in node.arguments)
        else:
            opened[node] = math.inf if node.kind == "gate" else 0.0
        price[node] = 0.0 if node in saved else min(opened[node], SAVE_COST)
    return opened


def _forward_nodes(roots: Sequence[Expression]) -> dict[Expression, None]:
    """Nodes that depend on forward inputs alone, in order."""
    forward: dict[Expression, None] = {}
    for node in walk(roots):
        if node.op == INPUT:
            if node.kind in _FORWARD:
                forward[node] = None
        elif all(a in forward or a.op == CONSTANT for a in node.arguments):
            forward[node] = None
    return forward
