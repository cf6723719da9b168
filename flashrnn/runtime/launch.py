"""Call a compiled kernel on torch tensors: pack pointers and strides, keep the workspace."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import torch

from autotune import cache
from autotune.device import Device
from flashrnn.dims import Dims
from flashrnn.dtypes import Dtype, dtype_of
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.ir.cell import Cell
from flashrnn.options import Options
from flashrnn.passes.lower import lower
from flashrnn.runtime.kernels import Plan, plan_for
from flashrnn.runtime.openmp import threading
from flashrnn.runtime.scratch import scratch
from flashrnn.runtime.threads import thread_count

Tensor = torch.Tensor

# ForwardArguments and BackwardArguments of csrc/cpu, field by field, 8 bytes each.
_FORWARD = struct.Struct("=5q 4q 6q 3q 9q 6q")
_BACKWARD = struct.Struct("=3q 5q q 6q q 5q 3q 9q 6q 2q")
_LAYOUTS = {FORWARD: _FORWARD, BACKWARD: _BACKWARD}

# Multiply-adds per gate below which one thread is done before another wakes up.
PARALLEL_PRODUCTS = 1_000_000

# Sizes whose kernels are at hand; a stream of ever new lengths must not fill the memory.
MOST_KERNELS = 1024


class Kernel:
    """One direction of a cell for given sizes, with all that follows from those worked out.

    plan: which library, see `kernel_for`. threads: how many it may take. Of the layer around the
    kernel (runtime/surround.py), needed: numbers of its workspace by purpose, the same in every
    call; entries: its functions by direction, each with its workspace's.
    """

    def __init__(self, plan: Plan, dtype: Dtype, dims: Dims, threads: int) -> None:
        self.dtype = dtype
        self.library = plan.library
        self.threads = threads
        self.dims = (dims.B, dims.T, dims.N, dims.D)
        self.saved_shape = saved_shape(plan.cell, dims, dtype)
        self.needed: dict[object, int] = {}
        self.entries: dict[str, tuple[Any, Any]] = {}
        self._workspace: int | None = None  # in numbers
        self._layout = _LAYOUTS[plan.direction]
        tiling = plan.tiling
        self._sizes = (*self.dims, tiling.b_per_core, tiling.cores_d, threads)
        parallel = threads > 1 and dims.products >= PARALLEL_PRODUCTS
        # the runtime's entry points, 0 where one thread is as fast
        self._region, self._team_size = threading() if parallel else (0, 0)
        self._T = dims.T

    def run(self, arguments: tuple[int, ...]) -> None:
        """Run the kernel on what one of the two methods below gave."""
        self.library.run(self._layout.pack(*arguments))

    def forward(
        self,
        wx: Tensor | None,
        r: Tensor,
        bias: Tensor | None,
        weights: Tensor | None,
        initial: Tensor | None,
        states: Tensor,
        last: Tensor,
        saved: Tensor | None,
        lengths: Tensor | None,
        options: Options,
    ) -> tuple[int, ...]:
        """The arguments for wx [B, T, G_w, N, D], into states, last and saved.

        wx is None where a layer surrounds the kernel and computes it (runtime/surround.py).

        states [S, B, T, N, D], or [1, B, T, N, D] for h alone; last and initial [S, B, 1, N, D],
        which may be one tensor; saved of `saved_shape`. Innermost dimensions contiguous; r, bias,
        weights, initial, last and saved altogether. lengths [B] int64, or None for T everywhere.
        """
        of_wx = (0, 0, 0, 0, 0) if wx is None else (wx.data_ptr(), *wx.stride()[:-1])
        pointers = (
            *of_wx, r.data_ptr(), address(bias), address(weights), address(initial),
            states.data_ptr(), *states.stride()[:-1], states.shape[0],
            last.data_ptr(), address(saved),
        )  # fmt: skip
        return self._with_sizes(pointers, lengths, options)

    def backward(
        self,
        r: Tensor,
        weights: Tensor | None,
        initial: Tensor | None,
        states: Tensor,
        saved: Tensor,
        d_states: Tensor | None,
        d_last: Tensor | None,
        d_gates: Tensor | None,
        d_initial: Tensor | None,
        d_weights: Tensor | None,
        lengths: Tensor | None,
        options: Options,
    ) -> tuple[int, ...]:
        """The arguments for states [S, B, T, N, D], into d_gates, d_initial and d_weights.

        saved as the forward pass left it; d_states [S, B, T, N, D], or [B, T, N, D] of h alone,
        innermost dimension contiguous, or None; d_last and d_initial [S, B, 1, N, D], which may be
        one tensor; d_gates [B, T, G, N, D] and d_weights [B, K, N, D], None where a layer keeps
        them to itself.
        """
        of_d_states: tuple[int, ...] = (0, 0, 0, 0, 0, 0)
        if d_states is not None:
            strides = d_states.stride()[:-1]
            if d_states.dim() == 5:
                of_d_states = (d_states.data_ptr(), *strides, d_states.shape[0])
            else:
                of_d_states = (d_states.data_ptr(), 0, *strides, 1)
        of_d_gates: tuple[int, ...] = (0, 0, 0, 0, 0)
        if d_gates is not None:
            of_d_gates = (d_gates.data_ptr(), *d_gates.stride()[:-1])
        pointers = (
            r.data_ptr(), address(weights), address(initial),
            states.data_ptr(), *states.stride()[:-1], saved.data_ptr(), *of_d_states,
            address(d_last), *of_d_gates, address(d_initial), address(d_weights),
        )  # fmt: skip
        bounds = _bits(options.gradient_clip), int(options.gradient_cut)
        return self._with_sizes(pointers, lengths, options, *bounds)

    def _with_sizes(
        self,
        pointers: tuple[int, ...],
        lengths: Tensor | None,
        options: Options,
        *bounds: int,
    ) -> tuple[int, ...]:
        """All fields: the pointers, the workspace, the sizes, and from `packed` on."""
        rest = (
            *self._sizes,
            *(0, self._region, self._team_size),
            *(address(lengths), self._T, 0, int(options.reverse), 0, *bounds),
        )
        if self._workspace is None:
            self._workspace = self.library.workspace(self._layout.pack(*pointers, 0, *rest))
        return (*pointers, scratch("workspace", self._workspace, self.dtype), *rest)


_kernels: dict[tuple[object, ...], tuple[int, Kernel]] = {}


def kernel_for(
    cell: Cell, direction: str, dtype: torch.dtype, B: int, T: int, N: int, D: int
) -> Kernel:
    """The kernel for these sizes, for the current number of threads."""
    threads = thread_count()
    key = (cell, direction, dtype, B, T, N, D, threads, Device.current().isa)
    known = _kernels.get(key)
    if known is None or known[0] != cache.generation():
        if len(_kernels) >= MOST_KERNELS:
            _kernels.clear()
        dims = Dims(B, T, N, D)
        plan = plan_for(cell, direction, dtype_of(dtype), dims, threads)
        known = _kernels[key] = cache.generation(), Kernel(plan, dtype_of(dtype), dims, threads)
    return known[1]


def time_major(x: Tensor) -> bool:
    """Whether [B, T, ...] lies in memory with T outermost; results follow the input in this."""
    return x.stride(0) < x.stride(1) and x.shape[0] > 1 and x.shape[1] > 1


def empty_sequence(
    like: Tensor,
    lead: tuple[int, ...],
    tail: tuple[int, ...],
    empty: Callable[[Tensor, tuple[int, ...]], Tensor] = Tensor.new_empty,
) -> Tensor:
    """An uninitialised [*lead, B, T, *tail] whose B and T are ordered in memory as `like`'s.

    empty: pool.empty for large results of a CPU, whose fresh pages cost as much as a kernel.
    """
    B, T = like.shape[0], like.shape[1]
    if time_major(like):
        k = len(lead)
        return empty(like, (*lead, T, B, *tail)).transpose(k, k + 1)
    return empty(like, (*lead, B, T, *tail))


def saved_shape(cell: Cell, dims: Dims, dtype: Dtype) -> tuple[int, ...]:
    """Shape of what the forward pass saves, [T * B * N * vectors of D * saved * lanes].

    In one dimension: five more take a microsecond to allocate.
    """
    lanes = Device.current().vector_bytes // dtype.bytes
    return (prod((dims.T, dims.B, dims.N, -(-dims.D // lanes), len(lower(cell).saved), lanes)),)


@lru_cache(maxsize=256)
def _bits(x: float) -> int:
    """A double as the integer that fills the same 8 bytes."""
    bits: int = _DOUBLE_AS_INTEGER.unpack(_DOUBLE.pack(x))[0]
    return bits


_DOUBLE, _DOUBLE_AS_INTEGER = struct.Struct("=d"), struct.Struct("=q")


def address(x: Tensor | None) -> int:
    """Where the tensor lies, 0 for none."""
    return 0 if x is None else x.data_ptr()
