"""Run a CUDA kernel on torch tensors: the whole sequence, on torch's current stream.

One launch, or for heads that no schedule holds a product of torch's and a launch for each step. The
argument blocks are those of csrc/cuda (ForwardArguments, BackwardArguments), field by field.
Memory is torch's, nothing waits for the device: a call can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch

from flashrnn.dims import Dims
from flashrnn.ir.cell import DENSE, Cell
from flashrnn.options import Options
from flashrnn.runtime import alternating
from flashrnn.runtime.arguments import contiguous
from flashrnn.runtime.cuda_driver import Argument
from flashrnn.runtime.cuda_kernels import Plan, StepPlan
from flashrnn.runtime.gpu_tensors import lengths_on, on_device
from flashrnn.tiling.cuda import ROWS

Tensor = torch.Tensor


def in_pairs(x: Tensor) -> Tensor:
    """The tensor, copied unless its units are neighbours and, where D is even, pairs are aligned.

    Kernels take two neighbouring units at once.
    """
    pair = 2 * x.element_size()
    fits = x.stride(-1) == 1 and (
        x.shape[-1] % 2 == 1
        or (x.data_ptr() % pair == 0 and all(s % 2 == 0 for s in x.stride()[:-1]))
    )
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _packed(x: Tensor) -> Tensor:
    """The tensor, copied if its memory has gaps or its pairs are not aligned."""
    return in_pairs(x.contiguous())


def _packed_or_none(x: Tensor | None) -> Tensor | None:
    return None if x is None else _packed(x)


def forward(
    plan: Plan | StepPlan,
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

    Tensors as `triton_launch.forward` has them.
    """
    _, B, T, N, D = states.shape
    wx = in_pairs(wx)
    recurrent = _packed(r) if cell.recurrence == DENSE else None
    arguments: tuple[Argument, ...] = (
        wx, *wx.stride()[:-1], recurrent, contiguous(bias), _packed_or_none(weights),
        _packed(initial), states, *states.stride()[:-1], last, saved, lengths_on(lengths, wx),
        B, T, N, int(options.reverse),
    )  # fmt: skip
    dims = Dims(B, T, N, D)
    with on_device(wx):
        if isinstance(plan, Plan):
            plan.launch(dims, wx, arguments)
            return
        alternating.forward(
            r, initial, last, T,
            lambda products, carried, h, t: plan.launch(
                dims, (*arguments, products, carried, h, t)
            ),
        )  # fmt: skip


def backward(
    plan: Plan | StepPlan,
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

    Tensors and the result as `triton_launch.backward` has them.
    """
    _, B, T, N, D = states.shape
    states, K = in_pairs(states), 0 if weights is None else weights.shape[0]
    by_rows = ROWS if isinstance(plan, Plan) else 1
    sums = states.new_zeros((-(-B // by_rows), K, N, D), dtype=torch.float32) if K else None
    d_inputs: tuple[Argument, ...] = (None, 0, 0, 0, 0)
    if d_states is not None:
        d_states = in_pairs(d_states)
        d_inputs = (d_states, *d_states.stride()[:-1])
    arguments: tuple[Argument, ...] = (
        _packed(r) if cell.recurrence == DENSE else None, _packed_or_none(weights),
        _packed(initial), states, *states.stride()[:-1], _packed(saved), *d_inputs,
        _packed_or_none(d_last), d_gates, *d_gates.stride()[:-1], d_initial, sums,
        lengths_on(lengths, states), B, T, N, int(options.reverse),
        float(options.gradient_clip), int(options.gradient_cut),
    )  # fmt: skip
    dims = Dims(B, T, N, D)
    with on_device(states):
        if isinstance(plan, Plan):
            plan.launch(dims, states, arguments)
        else:
            alternating.backward(
                r, d_last, d_initial, T, lengths_on(lengths, states), options,
                lambda products, operand, carried, t: plan.launch(
                    dims, (*arguments, products, operand, carried, t)
                ),
            )  # fmt: skip
    return None if sums is None else sums.sum(0)
