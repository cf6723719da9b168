"""backend="cuda" on this machine: the driver's place is taken by the execution model of csrc/simt.

What is compiled, how plans are made and which launches they take is the package's own; a launch
runs the kernel's source here, on CPU tensors, and what the model finds is an Issues error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from cuda_host import HostFunction
from simt_driver import ORDERS

from autotune.gpu import Gpu, named
from flashrnn import api
from flashrnn.emit.cuda import BACKWARD
from flashrnn.runtime import cuda_kernels
from flashrnn.runtime.cuda_driver import Argument, Shape
from flashrnn.runtime.cuda_recurrence import BACKEND
from flashrnn.runtime.gpu_tensors import gpu_dtype_of

GPU = named("h100-sxm")


class StandIn:
    """A kernel in the place of `cuda_driver.Function`; its "cubin" is the source."""

    registers, spilled_bytes = 255, 0
    made: list[StandIn]  # since `install`
    launches: list[tuple[str, tuple[int, int]]]
    held: dict[str, int]  # blocks that the device holds of a kernel whose name contains the key

    def __init__(self, cubin: bytes, name: str, shape: Shape) -> None:
        self.name, self.shape, source = name, shape, cubin.decode()
        self._function = HostFunction(
            source, shape.threads, shape.cluster, backward=name.endswith(BACKWARD)
        )
        assert self._function.shared_bytes == shape.shared_bytes
        assert shape.cooperative == ("GridExchange" in source)
        assert (shape.cluster > 1) == ("ClusterExchange" in source and "blocks = 1;" not in source)
        self.made.append(self)

    def resident(self, multiprocessors: int) -> int:
        for part, blocks in self.held.items():
            if part in self.name or (part == "cluster" and self.shape.cluster > 1):
                return blocks
        return multiprocessors

    def launch(self, grid: tuple[int, int], arguments: Iterable[Argument]) -> None:
        if self.shape.cooperative:
            assert math.prod(grid) <= self.resident(GPU.sms)
        self.launches.append((self.name, grid))
        count = len(self.launches)
        self._function.launch(grid, arguments, order=ORDERS[count % len(ORDERS)], seed=count)


def install(monkeypatch: pytest.MonkeyPatch, gpu: Gpu = GPU) -> type[StandIn]:
    """backend="cuda" takes CPU tensors, for that GPU's tilings."""
    fresh = {"made": [], "launches": [], "held": {}}
    kind = type("StandInHere", (StandIn,), fresh)
    monkeypatch.setattr(cuda_kernels, "Function", kind)
    monkeypatch.setattr(cuda_kernels, "cubin_of", lambda name, source, sm: source.encode())
    monkeypatch.setattr(cuda_kernels, "device_of", lambda like: gpu)
    monkeypatch.setattr(cuda_kernels, "_plans", {})
    monkeypatch.setattr(cuda_kernels, "_functions", {})
    monkeypatch.setattr(
        api, "check_cuda", lambda x, name="Wx": gpu_dtype_of(x.dtype, name, "cuda") and None
    )
    return kind


@contextmanager
def operators_on_the_cpu() -> Iterator[None]:
    """The operators, which are for CUDA tensors, take others too."""
    library = torch.library.Library("flashrnn", "IMPL")
    library.impl("cuda_recurrence", BACKEND.inference, "CPU")
    library.impl("cuda_training", BACKEND.training, "CPU")
    library.impl("cuda_backward", BACKEND.backward, "CPU")
    try:
        yield
    finally:
        library._destroy()
