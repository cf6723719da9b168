"""From a traced cell to all that a schedule needs: forward, what is saved, and the derivative."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from flashrnn.ir.cell import ELEMENTWISE, Cell
from flashrnn.ir.expression import INPUT, Expression, leaf, walk
from flashrnn.ir.ops import OPS
from flashrnn.passes.differentiate import differentiate
from flashrnn.passes.save import choose_saved
from flashrnn.passes.simplify import drop_stop_gradient, simplify


@dataclass(frozen=True)
class Program:
    """A cell's pointwise parts.

    weights: the per-unit inputs (kind, name): element-wise recurrent weights first, then
    parameters. saved: what the forward pass stores for the backward pass; instead: what each would
    cost otherwise, see passes/save.py. d_gates, d_states, d_weights: cotangents, of inputs state,
    new_state, parameter, recurrent, saved and cotangent.
    """

    cell: Cell
    weights: tuple[tuple[str, str], ...]
    new_states: tuple[Expression, ...]
    saved: tuple[Expression, ...]
    instead: tuple[float, ...]
    d_gates: tuple[Expression, ...]
    d_states: tuple[Expression, ...]
    d_weights: tuple[Expression, ...]

    @property
    def backward(self) -> tuple[Expression, ...]:
        return self.d_gates + self.d_states + self.d_weights

    def reads(self, kind: str, name: str) -> bool:
        """Whether the backward pass uses that input."""
        return any(e.op == INPUT and e.kind == kind and e.name == name for e in walk(self.backward))

    @property
    def only_saved(self) -> bool:
        """Whether the forward pass computes values that it saves and has no use for."""
        used = set(walk(self.new_states))
        return any(e.op != INPUT and e not in used for e in self.saved)

    @property
    def states_read(self) -> int:
        """How many states, of those before and those after a step, the backward pass uses."""
        return sum(
            self.reads(kind, name) for name in self.cell.states for kind in ("state", "new_state")
        )


@lru_cache(maxsize=256)
def lower(cell: Cell) -> Program:
    """Simplify, differentiate and choose what to save."""
    new_states = tuple(simplify(cell.new_states))
    weights = tuple(("recurrent", g) for g in cell.recurrent if cell.recurrence == ELEMENTWISE)
    weights += tuple(("parameter", p) for p in cell.parameters)
    cotangents: dict[Expression, Expression] = {}
    for name, root in zip(cell.states, new_states, strict=True):
        d_root = leaf("cotangent", name)
        cotangents[root] = cotangents[root] + d_root if root in cotangents else d_root
    inputs = [leaf("gate", g) for g in cell.gates]
    inputs += [leaf("state", s) for s in cell.states]
    inputs += [leaf(kind, name) for kind, name in weights]
    both = drop_stop_gradient([*new_states, *differentiate(cotangents, inputs)])
    # together, so that the derivative's forward values are those of the forward pass
    both = simplify(both)
    new_states, derivatives = tuple(both[: len(new_states)]), both[len(new_states) :]
    chosen = choose_saved(list(zip(cell.states, new_states, strict=True)), derivatives)
    backward = tuple(simplify(chosen.backward))
    gates, states = len(cell.gates), len(cell.states)
    return Program(
        cell,
        weights,
        new_states,
        chosen.saved,
        chosen.instead,
        backward[:gates],
        backward[gates : gates + states],
        backward[gates + states :],
    )


@lru_cache(maxsize=256)
def pointwise_cost(roots: tuple[Expression, ...]) -> float:
    """Cost of the expressions per vector, in multiplications (the op table's unit)."""
    return sum(OPS[e.op].cost for e in walk(roots) if e.op in OPS)
