"""Run a Triton schedule on torch tensors: the whole sequence in one launch, or step by step."""

from __future__ import annotations

from typing import Any

import torch

from flashrnn.ir.cell import Cell
from flashrnn.options import Options
from flashrnn.runtime import alternating
from flashrnn.runtime.gpu_tensors import lengths_on, on_device
from flashrnn.runtime.memory import address
from flashrnn.runtime.triton_kernels import Plan
from flashrnn.tiling.triton import FusedTiling

Tensor = torch.Tensor
# Triton compiles another kernel for pointers that are aligned less; torch aligns what it allocates.
ALIGNMENT = 16


def in_rows(x: Tensor) -> Tensor:
    """The tensor, copied unless every stride but the last's 1 is a multiple of its last size.

    And unless it begins where Triton expects it to.
    """
    D = x.shape[-1]
    fits = x.stride(-1) == 1 and all(s % D == 0 for s in x.stride()[:-1])
    if fits and address(x) % ALIGNMENT == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _packed(x: Tensor) -> Tensor:
    """The tensor, copied if its memory has gaps or begins elsewhere."""
    return in_rows(x.contiguous())


def _packed_or_none(x: Tensor | None) -> Tensor | None:
    return None if x is None else _packed(x)


def strides(x: Tensor) -> list[int]:
    """Strides in rows of the last dimension, which is left out."""
    return [s // x.shape[-1] for s in x.stride()[:-1]]


def forward(
    plan: Plan,
    cell: Cell,
    wx: Tensor,
    r: Tensor,
    bias: Tensor,
    weights: Tensor | None,
    initial: Tensor,
    states: Tensor,
    last: Tensor,
    saved: Tensor | None,
    lengths: Tensor | None,
    options: Options,
) -> None:
    """Run all steps of wx [B, T, G_w, N, D], into states, last and saved.

    r [G_r, N, D, P], bias [G, N, D], weights [K, N, D], initial [S, B, 1, N, D], of any strides;
    last contiguous; states [S, B, T, N, D], zero already past the end of rows with `lengths` [B].
    """
    _, B, T, N, D = states.shape
    wx = in_rows(wx)
    sizes = (B, T, N, int(options.reverse))
    tensors = (wx, *strides(wx))
    outputs = (states, *strides(states))
    r, bias, initial = _packed(r), _packed(bias), _packed(initial)
    weights, lengths = _packed_or_none(weights), lengths_on(lengths, wx)
    with on_device(wx):
        if isinstance(plan.tiling, FusedTiling):
            plan.launch(
                (B, N, D), *tensors, r, bias, weights, initial, *outputs, last, saved, lengths,
                *sizes,
            )  # fmt: skip
            return
        alternating.forward(
            r, initial, last, T,
            lambda products, carried, h, t: plan.launch(
                (B, N, D), products, *tensors, bias, weights, carried, h, *outputs, saved, lengths,
                *sizes, t,
            ),
        )  # fmt: skip


def backward(
    plan: Plan,
    cell: Cell,
    r: Tensor,
    weights: Tensor | None,
    initial: Tensor,
    states: Tensor,
    saved: Tensor,
    d_states: Tensor | None,
    d_last: Tensor | None,
    d_gates: Tensor,
    d_initial: Tensor,
    lengths: Tensor | None,
    options: Options,
) -> Tensor | None:
    """Run all steps backwards, into d_gates [B, T, G, N, D] and d_initial [S, B, 1, N, D].

    saved as `forward` left it; d_states [S, B, T, N, D] or None; d_gates zero already past the
    end of rows. Returns d_weights [K, N, D] in float32, None for a cell without.
    """
    _, B, T, N, D = states.shape
    states, K = in_rows(states), 0 if weights is None else weights.shape[0]
    sizes = (B, T, N, int(options.reverse))
    r, weights, initial = _packed(r), _packed_or_none(weights), _packed(initial)
    d_last, lengths = _packed_or_none(d_last), lengths_on(lengths, states)
    d_inputs: tuple[Any, ...] = (None, 0, 0, 0, 0)
    if d_states is not None:
        d_states = in_rows(d_states)
        d_inputs = (d_states, *strides(d_states))
    inputs = (states, *strides(states), saved, *d_inputs)
    outputs = (d_gates, *strides(d_gates))
    cut = options.gradient_cut or not cell.product_gates
    with on_device(states):
        if isinstance(plan.tiling, FusedTiling):
            tiles = -(-B // plan.tiling.b_per_program)
            sums = states.new_empty((tiles, K, N, D), dtype=torch.float32) if K else None
            plan.launch(
                (B, N, D), r, weights, initial, *inputs, d_last, *outputs, d_initial, sums, lengths,
                *sizes, options.gradient_clip, cut,
            )  # fmt: skip
            return None if sums is None else sums.sum(0)
        sums = states.new_zeros((B, K, N, D), dtype=torch.float32) if K else None
        alternating.backward(
            r, d_last, d_initial, T, lengths, options,
            lambda products, operand, carried, t: plan.launch(
                (B, N, D), products, operand, weights, initial, carried, *inputs, *outputs, sums,
                lengths, *sizes, options.gradient_clip, t, cut,
            ),
        )  # fmt: skip
        return None if sums is None else sums.sum(0)
