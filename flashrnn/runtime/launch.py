"""Call a compiled kernel on torch tensors: pack pointers and strides, keep the workspace."""

from __future__ import annotations

import struct
from array import array
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
from flashrnn.runtime import pool
from flashrnn.runtime.kept import Kept
from flashrnn.runtime.kernels import Plan, plan_for
from flashrnn.runtime.openmp import threading
from flashrnn.runtime.scratch import scratch
from flashrnn.runtime.threads import thread_count

Tensor = torch.Tensor

# ForwardArguments and BackwardArguments of csrc/cpu: 8 bytes a field, in this order.
_SIZES = "workspace B T N D b_per_core cores_d threads packed region team_size"
_ORDER = "lengths total start reverse ordered"
_FORWARD = (
    "wx wx_b wx_t wx_g wx_n r bias weights initial states states_s states_b states_t states_n "
    f"states_kept last saved {_SIZES} {_ORDER}"
)
_BACKWARD = (
    "r weights initial states states_s states_b states_t states_n saved d_states d_states_s "
    "d_states_b d_states_t d_states_n d_states_kept d_last d_gates d_gates_b d_gates_t d_gates_g "
    f"d_gates_n d_initial d_weights {_SIZES} {_ORDER} clip cut"
)
_FIELDS = {FORWARD: _FORWARD.split(), BACKWARD: _BACKWARD.split()}
_AT = {d: {name: i for i, name in enumerate(fields)} for d, fields in _FIELDS.items()}


def positions(direction: str, names: str) -> tuple[int, ...]:
    """Where these fields stand in that direction's arguments."""
    return tuple(_AT[direction][name] for name in names.split())


# A block of such fields, ready for a kernel as its bytes.
Block = array

# Begins to compile what will be needed beside a kernel of these sizes.
Soon = Callable[[Cell, Dtype, Dims, int], None]

# Multiply-adds per gate below which one thread is done before another wakes up.
PARALLEL_PRODUCTS = 1_000_000


class Kernel:
    """One direction of a cell for given sizes, with all that follows from those worked out.

    plan: which library, see `kernel_for`. threads: how many it may take. surrounds: what
    runtime/surround.py works out for the layers around this kernel, by their form.
    """

    def __init__(self, plan: Plan, dtype: Dtype, dims: Dims, threads: int) -> None:
        self.cell = plan.cell
        self.dtype = dtype
        self.library = plan.library
        self.threads = threads
        self.dims = (dims.B, dims.T, dims.N, dims.D)
        self.saved_shape = saved_shape(plan.cell, dims, dtype)
        self.surrounds: dict[object, Any] = {}
        self._workspace: int | None = None  # in numbers
        self._workspace_at = _AT[plan.direction]["workspace"]
        # every field that no call changes, zeros elsewhere
        fields = _FIELDS[plan.direction]
        parallel = threads > 1 and dims.products >= PARALLEL_PRODUCTS
        # the runtime's entry points, 0 where one thread is as fast
        region, team_size = threading() if parallel else (0, 0)
        known = {
            "B": dims.B, "T": dims.T, "N": dims.N, "D": dims.D, "total": dims.T,
            "b_per_core": plan.tiling.b_per_core, "cores_d": plan.tiling.cores_d,
            "threads": threads, "region": region, "team_size": team_size,
        }  # fmt: skip
        self._block = array("q", [known.get(name, 0) for name in fields])

    def run(self, block: Block[int]) -> None:
        """Run the kernel on what one of the two methods below gave."""
        self.library.run(block.tobytes())

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
    ) -> Block[int]:
        """The arguments for wx [B, T, G_w, N, D], into states, last and saved.

        wx is None where a layer surrounds the kernel and computes it (runtime/surround.py).

        states [S, B, T, N, D], or [1, B, T, N, D] for h alone; last and initial [S, B, 1, N, D],
        which may be one tensor; saved of `saved_shape`. Innermost dimensions contiguous; r, bias,
        weights, initial, last and saved altogether. lengths [B] int64, or None for T everywhere.
        """
        at, block = _AT[FORWARD], self._block[:]
        if wx is not None:
            i = at["wx"]
            block[i] = wx.data_ptr()
            block[i + 1], block[i + 2], block[i + 3], block[i + 4], _ = wx.stride()
        if bias is not None:
            block[at["bias"]] = bias.data_ptr()
        block[at["states_kept"]] = len(states)
        block[at["last"]] = last.data_ptr()
        if saved is not None:
            block[at["saved"]] = saved.data_ptr()
        return self._complete(block, at, r, weights, initial, states, lengths, options)

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
    ) -> Block[int]:
        """The arguments for states [S, B, T, N, D], into d_gates, d_initial and d_weights.

        saved as the forward pass left it; d_states [S, B, T, N, D], or [B, T, N, D] of h alone,
        innermost dimension contiguous, or None; d_last and d_initial [S, B, 1, N, D], which may be
        one tensor; d_gates [B, T, G, N, D] and d_weights [B, K, N, D], None where a layer keeps
        them to itself.
        """
        at, block = _AT[BACKWARD], self._block[:]
        block[at["saved"]] = saved.data_ptr()
        if d_states is not None:
            i = at["d_states"]
            block[i] = d_states.data_ptr()
            strides = d_states.stride()
            *_, block[i + 2], block[i + 3], block[i + 4], _ = strides
            whole = len(strides) == 5
            block[i + 1] = strides[0] if whole else 0
            block[i + 5] = len(d_states) if whole else 1
        if d_last is not None:
            block[at["d_last"]] = d_last.data_ptr()
        if d_gates is not None:
            i = at["d_gates"]
            block[i] = d_gates.data_ptr()
            block[i + 1], block[i + 2], block[i + 3], block[i + 4], _ = d_gates.stride()
        if d_initial is not None:
            block[at["d_initial"]] = d_initial.data_ptr()
        if d_weights is not None:
            block[at["d_weights"]] = d_weights.data_ptr()
        block[at["clip"]] = _bits(options.gradient_clip)
        block[at["cut"]] = options.gradient_cut
        return self._complete(block, at, r, weights, initial, states, lengths, options)

    def _complete(
        self,
        block: Block[int],
        at: dict[str, int],
        r: Tensor,
        weights: Tensor | None,
        initial: Tensor | None,
        states: Tensor,
        lengths: Tensor | None,
        options: Options,
    ) -> Block[int]:
        """The block with what both directions have, and the workspace that it needs."""
        block[at["r"]] = r.data_ptr()
        if weights is not None:
            block[at["weights"]] = weights.data_ptr()
        if initial is not None:
            block[at["initial"]] = initial.data_ptr()
        i = at["states"]
        block[i] = states.data_ptr()
        block[i + 1], block[i + 2], block[i + 3], block[i + 4], _ = states.stride()
        if lengths is not None:
            block[at["lengths"]] = lengths.data_ptr()
        if options.reverse:
            block[at["reverse"]] = 1
        self.place_workspace(block)
        return block

    def place_workspace(self, block: Block[int]) -> None:
        """Let a block, complete but for that, point to this thread's workspace."""
        if self._workspace is None:
            self._workspace = self.library.workspace(block.tobytes())
        block[self._workspace_at] = scratch("workspace", self._workspace, self.dtype)


_kernels: Kept[tuple[object, ...], tuple[int, Kernel]] = Kept()


def kernel_for(
    cell: Cell,
    direction: str,
    dtype: torch.dtype,
    B: int,
    T: int,
    N: int,
    D: int,
    soon: Soon | None = None,
) -> Kernel:
    """The kernel for these sizes, for the current number of threads.

    soon: begins to compile what will be needed beside it; called where the kernel is not at hand.
    """
    threads = thread_count()
    key = (cell, direction, dtype, B, T, N, D, threads, Device.current().isa)
    known = _kernels.get(key)
    if known is None or known[0] != cache.generation():
        dims = Dims(B, T, N, D)
        if soon is not None:
            soon(cell, dtype_of(dtype), dims, threads)
        plan = plan_for(cell, direction, dtype_of(dtype), dims, threads)
        kernel = Kernel(plan, dtype_of(dtype), dims, threads)
        known = _kernels.keep(key, (cache.generation(), kernel))
    return known[1]


def time_major(x: Tensor) -> bool:
    """Whether [B, T, ...] lies in memory with T outermost."""
    return x.stride(0) < x.stride(1) and x.shape[0] > 1 and x.shape[1] > 1


def empty_sequence(like: Tensor, lead: tuple[int, ...], tail: tuple[int, ...]) -> Tensor:
    """An uninitialised [*lead, B, T, *tail] whose B and T are ordered in memory as `like`'s."""
    B, T = like.shape[0], like.shape[1]
    if time_major(like):
        k = len(lead)
        return like.new_empty((*lead, T, B, *tail)).transpose(k, k + 1)
    return like.new_empty((*lead, B, T, *tail))


def sequence_maker(like: Tensor, tail: tuple[int, ...]) -> pool.Maker:
    """What gives such a [B, T, *tail] of the CPU, large ones from the pool.

    Fresh pages would cost more than a kernel.
    """
    return _sequence_maker(like.shape[0], like.shape[1], tail, time_major(like), like.dtype)


@lru_cache(maxsize=1024)
def _sequence_maker(
    B: int, T: int, tail: tuple[int, ...], time_outermost: bool, dtype: torch.dtype
) -> pool.Maker:
    row = prod(tail)
    order = (row, B * row) if time_outermost else (T * row, row)
    within = (prod(tail[k + 1 :]) for k in range(len(tail)))
    return pool.pooled((B, T, *tail), (*order, *within), dtype)


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
