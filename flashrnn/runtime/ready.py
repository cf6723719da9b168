"""A kernel's call that can be made again on other tensors, which costs less than a new one.

For a tiny problem Python's share of a call is all of it, so arguments are worked out once for each
form of a call: shapes, strides, options and which tensors are there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from autotune import cache
from autotune.device import Device
from flashrnn.dims import Dims
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.ir.cell import Cell
from flashrnn.runtime import launch, pool
from flashrnn.runtime.launch import Block, Soon
from flashrnn.runtime.memory import address
from flashrnn.runtime.threads import thread_count

Tensor = torch.Tensor
Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides


class Ready:
    """A call with all of its arguments.

    place sets a block's workspace, run makes a call of it; positions: of addresses in the block.
    """

    def __init__(
        self,
        place: Callable[[Block[int]], None],
        run: Callable[[Block[int]], None],
        block: Block[int],
        positions: tuple[int, ...],
    ) -> None:
        self._place = place
        self._run = run
        self._block = block
        self._positions = positions

    def run(self) -> None:
        """Make that call."""
        block = self._block[:]
        self._place(block)  # others may have needed a larger workspace since
        self._run(block)

    def again(self, *tensors: Tensor | None) -> None:
        """Make a call that differs in addresses only: tensors of the same forms, None where it was.

        In the order of `positions`.
        """
        block = self._block[:]
        for i, x in zip(self._positions, tensors, strict=True):
            if x is not None:
                block[i] = x.data_ptr() or address(x)
        self._place(block)
        self._run(block)


class Forward:
    """What follows from the form of a forward call: its kernel, and what makes its results.

    kept: states that are stored at every step. soon: as for `kernel_for`.
    """

    def __init__(
        self, cell: Cell, dtype: torch.dtype, dims: Dims, kept: int, soon: Soon | None
    ) -> None:
        B, T, N, D = dims.B, dims.T, dims.N, dims.D
        self.kernel = launch.kernel_for(cell, FORWARD, dtype, B, T, N, D, soon)
        self.states = pool.pooled(*states_layout(kept, dims), dtype)
        self.last = pool.maker(*last_layout(cell, dims), dtype)
        self.saved = pool.pooled(self.kernel.saved_shape, None, dtype)
        self.ready: Ready | None = None  # the call, once made


class Backward:
    """The same of a backward call: gradients may stay for long, so none of these is the pool's.

    r: the recurrent weights, contiguous; weights: how many the cell has per unit.
    """

    def __init__(self, cell: Cell, r: Tensor, dims: Dims, weights: int) -> None:
        N, D, dtype = dims.N, dims.D, r.dtype
        self.kernel = launch.kernel_for(cell, BACKWARD, dtype, dims.B, dims.T, N, D)
        self.weight_count = weights
        self.r = pool.maker(r.shape, None, dtype)
        self.bias = pool.maker((len(cell.gates), N, D), None, dtype)
        self.weights = pool.maker((weights, N, D), None, dtype)
        self.no_parameters = pool.maker((0, N, D), None, dtype)
        self.initial = pool.maker(*last_layout(cell, dims), dtype)
        self.ready: Ready | None = None
        self._recurrent, self._parameters = len(cell.recurrent), len(cell.parameters)

    def of_weights(
        self, d_r: Tensor | None, d_weights: Tensor | None, need_r: bool, need_parameters: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of r and of the parameters, out of those of all weights per unit."""
        if d_weights is None:
            return d_r, self.no_parameters() if need_parameters else None
        if need_r and d_r is None:
            d_r = d_weights[: self._recurrent].clone()
        d_parameters = None
        if need_parameters:
            d_parameters = d_weights[self.weight_count - self._parameters :].clone()
        return d_r, d_parameters


def states_layout(S: int, dims: Dims) -> Layout:
    """Of states [S, B, T, N, D]: for each state, what a step writes lies together."""
    B, T, N, D = dims.B, dims.T, dims.N, dims.D
    row = N * D
    return (S, B, T, N, D), (T * B * row, row, B * row, D, 1)


def last_layout(cell: Cell, dims: Dims) -> Layout:
    """Of states [S, B, 1, N, D]."""
    B, N, D = dims.B, dims.N, dims.D
    row = N * D
    return (len(cell.states), B, 1, N, D), (B * row, row, row, D, 1)


def circumstances() -> tuple[object, ...]:
    """What else a kernel follows from in this process, besides a call's own form."""
    return thread_count(), cache.generation(), Device.current().isa
