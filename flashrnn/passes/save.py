"""Choose what the forward pass saves for the backward pass, and what that recomputes.

The backward expressions need some forward values. Each can be saved (it is written once and read
once) or recomputed from others; states and parameters are at hand anyway, gates are not. The
cheapest choice is a minimum cut: a needed value is either cut (saved) or opened, which costs its
operation and makes its operands needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from flashrnn.ir.expression import CONSTANT, INPUT, Expression, leaf, substitute, walk
from flashrnn.ir.ops import OPS

# Writing and reading one vector through the outer caches, in multiplications of a vector.
SAVE_COST = 16.0

_FORWARD = ("gate", "state", "parameter", "recurrent")


@dataclass(frozen=True)
class Saved:
    """saved: forward expressions to store, in order. backward: the roots in terms of them."""

    saved: tuple[Expression, ...]
    backward: tuple[Expression, ...]


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
    _, (inside, _outside) = nx.minimum_cut(graph, "source", "sink")
    cut = [n for n in priced if ("need", n) in inside and ("open", n) not in inside]
    chosen = sorted(cut, key=lambda n: n.serial)
    names = {e: leaf("saved", str(k)) for k, e in enumerate(chosen)}
    in_forward = {new: e for e, new in at_hand.items()}  # there, the new states are being computed
    return Saved(tuple(substitute(chosen, in_forward)), tuple(substitute(backward, names)))


def _forward_nodes(roots: Sequence[Expression]) -> dict[Expression, None]:
    """Nodes that depend on forward inputs alone, in order."""
    forward: dict[Expression, None] = {}
    for node in walk(roots):
        if node.op == INPUT:
            if node.kind in (*_FORWARD, "new_state"):
                forward[node] = None
        elif all(a in forward or a.op == CONSTANT for a in node.arguments):
            forward[node] = None
    return forward
