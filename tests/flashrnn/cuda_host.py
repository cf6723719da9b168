"""Run an emitted CUDA kernel on this machine: the source for a GPU, with the host's primitives."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from simt_driver import CSRC, Library, Region

from flashrnn.dims import Dims
from flashrnn.emit.cuda import BACKWARD, CLUSTER, TRAINING
from flashrnn.ir.cell import DENSE
from flashrnn.options import NONE, Options
from flashrnn.passes.lower import Program
from flashrnn.runtime.arguments import unit_weights
from flashrnn.runtime.cuda_driver import Argument, pack
from flashrnn.runtime.cuda_kernels import Plan
from flashrnn.tiling.cuda import ROWS, WARP, CudaProblem
from flashrnn.tiling.cuda_choice import schedule_of, source_of
from flashrnn.tiling.cuda_latency import Tiling

Tensor = torch.Tensor
# Fields of the arguments that kernels write, of backward ones and others: states, last, saved; the
# gates', the initial states' and the weights' gradients; exchange and counters of each, or what a
# step carries on to the next.
WRITTEN = {True: (15, 20, 21, 29, 30, 31), False: (9, 14, 15, 21, 22, 23)}
_ENTRY = """
extern "C" int execute(const simt::Launch* launch, const void* arguments) {
  const auto copy = *static_cast<const Kernel::Arguments*>(arguments);
  return simt::run(*launch, [&] { run(copy); });
}
extern "C" int shared_bytes() { return Kernel::shared_bytes; }
"""


class Issues(Exception):
    """What the execution model found in a kernel."""


class HostFunction:
    """A kernel's source in the place of a loaded one; `launch` raises Issues."""

    def __init__(
        self, source: str, threads: int, cluster: int, *, backward: bool, csrc: Path = CSRC
    ) -> None:
        self._threads, self._cluster, self._written = threads, cluster, WRITTEN[backward]
        self._library = Library(source + _ENTRY, (csrc, CSRC))

    @property
    def shared_bytes(self) -> int:
        return self._library.call("shared_bytes")

    def launch(
        self, grid: tuple[int, int], arguments: Iterable[Argument], *, order: str, seed: int
    ) -> None:
        given = list(arguments)
        regions = [
            Region(f"argument {i}", x.data_ptr(), _extent(x), _kind(i in self._written))
            for i, x in enumerate(given)
            if isinstance(x, Tensor)
        ]
        packed = ctypes.create_string_buffer(pack(given))
        found = self._library.run(
            "execute", packed, regions, grid, (self._threads,), (self._cluster,),
            shared=self.shared_bytes, order=order, seed=seed,
        )  # fmt: skip
        if found:
            raise Issues("\n".join(found))


def _kind(written: bool) -> str:
    return "read_write" if written else "read_only"


def _extent(x: Tensor) -> int:
    """Bytes from a tensor's first element to behind its last."""
    if x.numel() == 0:
        return 0
    steps = ((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return (1 + sum(steps)) * x.element_size()


class HostKernel:
    """One compiled kernel, launched as the package does it. groups: of blocks at once."""

    def __init__(
        self, problem: CudaProblem, tiling: Tiling, csrc: Path = CSRC, groups: int = 1000
    ) -> None:
        self.problem, self._tiling, self._groups = problem, tiling, groups
        cluster = tiling.blocks if schedule_of(tiling) == CLUSTER else 1
        self._function = HostFunction(
            source_of(problem, tiling), WARP * tiling.warps, cluster,
            backward=problem.direction == BACKWARD, csrc=csrc,
        )  # fmt: skip

    @property
    def shared_bytes(self) -> int:
        return self._function.shared_bytes

    def run(self, order: str, like: Tensor, *arguments: Argument) -> None:
        """With the schedule's Arguments, but for those of the exchange. Raises Issues."""
        dims = self.problem.dims
        function = _Ordered(partial(self._function.launch, order=order, seed=dims.D))
        Plan(self.problem, self._tiling, function, self._groups).launch(dims, like, arguments)


class _Ordered:
    def __init__(self, launch) -> None:
        self.launch = launch


class Sequence:
    """A problem's tensors, and its results where a kernel writes them: NaN until then."""

    def __init__(self, program: Program, dims: Dims, arguments: dict[str, Tensor]) -> None:
        cell = self.cell = program.cell
        self.dims, self.program = dims, program
        B, T, N, D = dims.B, dims.T, dims.N, dims.D
        data = {k: v.detach().contiguous() for k, v in arguments.items()}
        self.wx, self.r, self.bias, self.initial = (data[k] for k in ("Wx", "R", "b", "states"))
        self.weights = unit_weights(cell, self.r, data.get("parameters"))
        S, G, Q = len(cell.states), len(cell.gates), len(program.saved)

        def poisoned(*shape: int) -> Tensor:
            return self.wx.new_full(shape, torch.nan)

        self.states, self.last = poisoned(S, B, T, N, D), poisoned(S, B, 1, N, D)
        self.saved = poisoned(T, B, N, Q, D)
        self.d_gates, self.d_initial = poisoned(B, T, G, N, D), poisoned(S, B, 1, N, D)
        K = 0 if self.weights is None else self.weights.shape[0]
        self.d_weights = torch.full((-(-B // ROWS), K, N, D), torch.nan) if K else None

    def forward(
        self, kernel: HostKernel, order: str, lengths: Tensor | None, options: Options = NONE
    ) -> None:
        if lengths is not None:
            self.states.zero_()
        saved = self.saved if kernel.problem.direction == TRAINING else None
        recurrent = self.r if self.cell.recurrence == DENSE else None
        kernel.run(
            order, self.wx, self.wx, *self.wx.stride()[:-1], recurrent, self.bias, self.weights,
            self.initial, self.states, *self.states.stride()[:-1], self.last, saved, lengths,
            *self._sizes(options),
        )  # fmt: skip

    def backward(
        self, kernel: HostKernel, order: str, lengths: Tensor | None, d_states: Tensor | None,
        d_last: Tensor | None, options: Options = NONE,
    ) -> None:  # fmt: skip
        assert kernel.problem.direction == BACKWARD
        if lengths is not None:
            self.d_gates.zero_()
        strides = (0, 0, 0, 0) if d_states is None else d_states.stride()[:-1]
        kernel.run(
            order, self.wx, self.r, self.weights, self.initial, self.states,
            *self.states.stride()[:-1], self.saved, d_states, *strides, d_last, self.d_gates,
            *self.d_gates.stride()[:-1], self.d_initial, self.d_weights, lengths,
            *self._sizes(options), float(options.gradient_clip), int(options.gradient_cut),
        )  # fmt: skip

    def _sizes(self, options: Options) -> tuple[int, ...]:
        return self.dims.B, self.dims.T, self.dims.N, int(options.reverse)
