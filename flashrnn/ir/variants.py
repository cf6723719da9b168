"""Cells derived from cells: the options that change what a step computes."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache

from flashrnn.ir.cell import ELEMENTWISE, Cell, register
from flashrnn.ir.expression import leaf, substitute
from flashrnn.ir.ops import clamp, stop_gradient


@lru_cache(maxsize=256)
def variant(
    cell: Cell, *, output_clip: float | None = None, zoneout: bool = False, cut: bool = False
) -> Cell:
    """The cell with h clamped to ±output_clip, states that may stay as they were, R h cut.

    zoneout: one more gate per state, input only and after the cell's own: how much of the state
    stays as it was (Krueger et al. 2017, equation 3): 1 or 0 in training, the expectation of that
    afterwards. It gets no gradient. cut: for an element-wise recurrence,
    no gradient reaches the previous h through R h.
    """
    new_states = list(cell.new_states)
    gates, inputs = cell.gates, cell.input
    if cut and cell.recurrence == ELEMENTWISE:
        h = leaf("state", cell.states[0])
        weights = [leaf("recurrent", g) for g in cell.recurrent]
        new_states = substitute(new_states, {w * h: w * stop_gradient(h) for w in weights})
    if output_clip is not None:
        new_states[0] = clamp(new_states[0], -output_clip, output_clip)
    if zoneout:
        masks = tuple(f"keep_{s}" for s in cell.states)
        gates, inputs = gates + masks, inputs + masks
        kept = [stop_gradient(leaf("gate", mask)) for mask in masks]
        new_states = [
            keep * leaf("state", s) + (1.0 - keep) * new
            for keep, s, new in zip(kept, cell.states, new_states, strict=True)
        ]
    told = f"{cell.key} {output_clip!r} {zoneout} {cut}"
    derived = replace(
        cell,
        gates=gates,
        input=inputs,
        new_states=tuple(new_states),
        digest=hashlib.sha256(told.encode()).hexdigest()[:12],
    )
    return register(derived)
