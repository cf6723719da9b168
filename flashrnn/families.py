"""The cells' kernels as families for autotune's command line, and the peers they are timed with."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from autotune.device import Cpu
from autotune.gpu import Gpu
from autotune.space import Comparison, Options, Tunable
from flashrnn import cuda_tunable, triton_tunable
from flashrnn.cells import elman, gru, lstm, slstm
from flashrnn.cuda_tunable import CudaKernel
from flashrnn.dims import Dims
from flashrnn.dtypes import BY_NAME, FLOAT32, GPU_BY_NAME
from flashrnn.emit.cpp import BACKWARD, FORWARD
from flashrnn.emit.cuda import DIRECTIONS
from flashrnn.emit.triton import BACKWARD as GPU_BACKWARD
from flashrnn.emit.triton import IEEE, INFERENCE, TF32, TRAINING
from flashrnn.errors import OptionError
from flashrnn.ir.cell import Cell
from flashrnn.options import NONE
from flashrnn.passes.lower import lower
from flashrnn.reference import reference
from flashrnn.runtime.cuda_compile import compiler_version
from flashrnn.runtime.gpu_choice import CUDA, TRITON
from flashrnn.runtime.layer import layer
from flashrnn.tiling.cpu import CpuProblem
from flashrnn.tiling.cuda import CudaProblem
from flashrnn.tiling.triton import TritonProblem
from flashrnn.triton_tunable import TritonKernel
from flashrnn.tunable import CpuKernel

Tensor = torch.Tensor
Module = Callable[[Tensor], Tensor]
BOTH = "both"
Peers = Callable[[Dims, torch.dtype], list[tuple[str, Module]]]


@dataclass(frozen=True)
class CellFamily:
    """A cell's kernels with their options on the command line.

    peers: for the parsed sizes, what to time the tuned layer against.
    """

    cell: Cell
    peers: Peers

    @property
    def name(self) -> str:
        return self.cell.name

    def add_arguments(self, parser: argparse._ArgumentGroup) -> None:
        _add_sizes(parser)
        parser.add_argument("--dtype", choices=sorted(BY_NAME), default="float32")

    def tunables(self, options: Options) -> list[Tunable[Cpu]]:
        dims, dtype, threads = _dims(options), BY_NAME[str(options["dtype"])], options["threads"]
        return [
            CpuKernel(CpuProblem(lower(self.cell), direction, dtype, dims, int(threads or 1)))
            for direction in (FORWARD, BACKWARD)
        ]

    def add_gpu_arguments(self, parser: argparse._ArgumentGroup) -> None:
        _add_sizes(parser)
        parser.add_argument("--dtype", choices=sorted(GPU_BY_NAME), default="bfloat16")
        parser.add_argument("--tf32", action="store_true", help="float32 products in tf32")
        parser.add_argument(
            "--backend", choices=(TRITON, CUDA, BOTH), default=TRITON,
            help=f"whose kernels; {BOTH}: of each, which backend='auto' then compares ({TRITON})",
        )  # fmt: skip

    def gpu_tunables(self, options: Options, _device: Gpu) -> list[TritonKernel | CudaKernel]:
        backend = options.get("backend", TRITON)
        found: list[TritonKernel | CudaKernel] = []
        if backend in (TRITON, BOTH):
            found += self._triton(options)
        if backend in (CUDA, BOTH):
            found += self._cuda(options)
        return found

    def _triton(self, options: Options) -> list[TritonKernel]:
        dims, dtype = _dims(options), GPU_BY_NAME[str(options["dtype"])]
        precision = TF32 if options["tf32"] and dtype == FLOAT32 else IEEE
        problems = [
            TritonProblem(lower(self.cell), direction, dtype, dims, precision)
            for direction in (INFERENCE, TRAINING, GPU_BACKWARD)
        ]
        return triton_tunable.kernels_for(problems)

    def _cuda(self, options: Options) -> list[CudaKernel]:
        """Raises OptionError for float32 without tf32, MissingExtra without NVRTC."""
        dims, dtype = _dims(options), GPU_BY_NAME[str(options["dtype"])]
        if dtype == FLOAT32 and not options["tf32"]:
            raise OptionError(
                f"--backend {options['backend']} --dtype float32: the CUDA kernels multiply "
                "float32 rounded to tf32, which --tf32 allows; "
                f"--backend {TRITON} has exact products"
            )
        compiler_version()
        return cuda_tunable.kernels_for(
            [CudaProblem(lower(self.cell), direction, dtype, dims) for direction in DIRECTIONS]
        )

    def comparisons(self, options: Options) -> list[Comparison]:
        dims, dtype = _dims(options), BY_NAME[str(options["dtype"])].torch
        size = dims.hidden_size
        x = torch.randn(dims.T, dims.B, size, dtype=dtype, requires_grad=True)
        ours = fused_layer(self.cell, dims, dtype)
        d_y = torch.randn(dims.T, dims.B, size, dtype=dtype)
        found = []
        for label, wrap in (("forward", _inference), ("forward and backward", _training)):
            for peer, theirs in self.peers(dims, dtype):
                mine, other = wrap(ours, x, d_y), wrap(theirs, x, d_y)
                found.append(Comparison(f"{label}, input product included", mine, peer, other))
        return found


def fused_layer(cell: Cell, dims: Dims, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A layer of the cell with random weights: x [T, B, N * D] -> h [T, B, N * D]."""
    w, r, b = _weights(cell, dims, dtype)

    def run(x: Tensor) -> Tensor:
        h, _ = layer(cell, x.transpose(0, 1), w, r, b, None, None, None, NONE)
        return h.transpose(0, 1).flatten(2)

    return run


def _weights(cell: Cell, dims: Dims, dtype: torch.dtype) -> list[Tensor]:
    """W, R and b of a layer whose input is as wide as its output."""
    size, scale = dims.hidden_size, dims.hidden_size**-0.5
    shapes = (
        (len(cell.input), dims.N, dims.D, size),
        (len(cell.recurrent), dims.N, dims.D, dims.D),
        (len(cell.gates), dims.N, dims.D),
    )
    return [torch.randn(s, dtype=dtype).mul_(scale).requires_grad_() for s in shapes]


def _torch_peers(
    module: Callable[..., torch.nn.RNNBase],
) -> Peers:
    """torch's module: one per head, which computes the same; and one as wide as all heads."""

    def peers(dims: Dims, dtype: torch.dtype) -> list[tuple[str, Module]]:
        size = dims.hidden_size
        whole = module(size, size, dtype=dtype)
        name = f"torch.nn.{type(whole).__name__}"
        if dims.N == 1:
            return [(name, lambda x: whole(x)[0])]
        heads = torch.nn.ModuleList(module(size, dims.D, dtype=dtype) for _ in range(dims.N))
        return [
            (f"{dims.N} × {name}({dims.D})", lambda x: torch.cat([m(x)[0] for m in heads], -1)),
            (f"{name}({size}), one head", lambda x: whole(x)[0]),
        ]

    return peers


def _loop_peer(
    cell: Cell,
) -> Peers:
    """A plain loop over steps in eager torch, for a cell that torch does not have."""

    def peers(dims: Dims, dtype: torch.dtype) -> list[tuple[str, Module]]:
        w, r, b = _weights(cell, dims, dtype)

        def run(x: Tensor) -> Tensor:
            wx = (x @ w.flatten(0, 2).t()).unflatten(-1, w.shape[:3]).transpose(0, 1)
            return reference(wx, r, b, None, cell)[0][0].transpose(0, 1).flatten(2)

        return [("eager loop", run)]

    return peers


def _inference(run: Callable[[Tensor], Tensor], x: Tensor, _d_y: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            run(x)

    return call


def _training(run: Callable[[Tensor], Tensor], x: Tensor, d_y: Tensor) -> Callable[[], None]:
    def call() -> None:
        run(x).backward(d_y)

    return call


def _add_sizes(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--batch", type=_positive, default=16, help="B (16)")
    parser.add_argument("--time", type=_positive, default=256, help="T (256)")
    parser.add_argument("--heads", type=_positive, default=1, help="N (1)")
    parser.add_argument("--head-dim", type=_positive, default=64, help="D (64)")


def _dims(options: Options) -> Dims:
    sizes = (int(options[name] or 1) for name in ("batch", "time", "heads", "head_dim"))
    return Dims(*sizes)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def lstm_family() -> CellFamily:
    """The entry point of `autotune run lstm`."""
    return CellFamily(lstm, _torch_peers(torch.nn.LSTM))


def gru_family() -> CellFamily:
    """The entry point of `autotune run gru`."""
    return CellFamily(gru, _torch_peers(torch.nn.GRU))


def elman_family() -> CellFamily:
    """The entry point of `autotune run elman`."""
    return CellFamily(elman, _torch_peers(torch.nn.RNN))


def slstm_family() -> CellFamily:
    """The entry point of `autotune run slstm`."""
    return CellFamily(slstm, _loop_peer(slstm))
