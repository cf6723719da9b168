"""A compiled CUDA kernel on a device: loaded, asked what the device holds of it, launched.

A thin layer over cuda.bindings.driver (extra "cuda"), which works in the context that torch has on
the current device. Nothing here waits for the device, and a launch can be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from flashrnn.errors import BackendError, DriverError
from flashrnn.runtime.memory import address

Argument = torch.Tensor | int | float | None
# The largest cluster that every device with clusters has; larger ones must be allowed first.
PORTABLE_CLUSTER = 8
ENTRY = b"run"


@cache
def driver() -> Any:
    """cuda-bindings' module, the driver behind it initialised.

    Raises BackendError without the wheel or without a driver, which the message tells.
    """
    try:
        from cuda.bindings import driver as found
    except ImportError as error:
        raise BackendError(
            'backend="cuda" needs the package cuda-bindings, which is not installed: '
            "pip install 'flashrnn-compiler[cuda]'"
        ) from error
    try:
        _checked(found, found.cuInit(0), "initialising it")
    except (RuntimeError, DriverError) as error:  # the library is not there, or refuses
        raise BackendError(f'backend="cuda" needs an NVIDIA driver: {error}') from error
    return found


@dataclass(frozen=True)
class Shape:
    """What all launches of a kernel have in common.

    cluster: blocks along x that are a cluster; cooperative: whether all blocks of a launch must be
    resident at once, which the driver then checks.
    """

    threads: int
    shared_bytes: int
    cluster: int = 1
    cooperative: bool = False


class Function:
    """A kernel in the current device's context. name: what errors call it."""

    def __init__(self, cubin: bytes, name: str, shape: Shape) -> None:
        """Load it. Raises DriverError, BackendError."""
        self.name, self.shape = name, shape
        self._driver = found = driver()
        _make_current(found)
        kinds = found.CUfunction_attribute
        module = self._do(found.cuModuleLoadData(cubin), "loading")
        self._function = self._do(found.cuModuleGetFunction(module, ENTRY), "loading")
        self._set(kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shape.shared_bytes)
        if shape.cluster > PORTABLE_CLUSTER:
            self._set(kinds.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)
        self.registers = self._get(kinds.CU_FUNC_ATTRIBUTE_NUM_REGS)
        # Of local memory, per thread: the kernels use it for nothing but what the compiler spilled.
        self.spilled_bytes = self._get(kinds.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)

    def resident(self, multiprocessors: int) -> int:
        """Blocks that the device holds at once, by the driver's count; of whole clusters."""
        shape, found = self.shape, self._driver
        if shape.cluster == 1:
            per = self._do(
                found.cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    self._function, shape.threads, shape.shared_bytes
                ),
                "counting blocks of",
            )
            return int(per) * multiprocessors
        status, clusters = found.cuOccupancyMaxActiveClusters(
            self._function, self._configured((shape.cluster, 1), 0)
        )
        if status == found.CUresult.CUDA_ERROR_INVALID_CLUSTER_SIZE:
            return 0
        return int(self._do((status, clusters), "counting clusters of")) * shape.cluster

    def launch(self, grid: tuple[int, int], arguments: Iterable[Argument]) -> None:
        """Run it on torch's current stream. Raises DriverError where the driver refuses."""
        found = self._driver
        _make_current(found)
        packed = ctypes.create_string_buffer(pack(arguments))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(packed))
        configured = self._configured(grid, torch.cuda.current_stream().cuda_stream)
        status = found.cuLaunchKernelEx(configured, self._function, ctypes.addressof(parameters), 0)
        self._do(status, f"launching {grid[0]} x {grid[1]} blocks of")

    def _configured(self, grid: tuple[int, int], stream: int) -> Any:
        """How it is launched, as the driver takes it."""
        found, shape = self._driver, self.shape
        config = found.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = *grid, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = shape.threads, 1, 1
        config.sharedMemBytes, config.hStream = shape.shared_bytes, stream
        attributes = []
        if shape.cluster > 1:
            along = found.CUlaunchAttribute()
            along.id = found.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            size = along.value.clusterDim
            size.x, size.y, size.z = shape.cluster, 1, 1
            attributes.append(along)
        if shape.cooperative:
            together = found.CUlaunchAttribute()
            together.id = found.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            together.value.cooperative = 1
            attributes.append(together)
        config.attrs, config.numAttrs = attributes, len(attributes)
        return config

    def _set(self, kind: Any, value: int) -> None:
        self._do(self._driver.cuFuncSetAttribute(self._function, kind, value), "configuring")

    def _get(self, kind: Any) -> int:
        return int(self._do(self._driver.cuFuncGetAttribute(kind, self._function), "reading"))

    def _do(self, returned: tuple[Any, ...], doing: str) -> Any:
        shape = self.shape
        together = f", clusters of {shape.cluster}" if shape.cluster > 1 else ""
        together += ", cooperative" if shape.cooperative else ""
        return _checked(
            self._driver, returned,
            f"{doing} {self.name} ({shape.threads} threads and {shape.shared_bytes:,} bytes of "
            f"shared memory per block{together})",
        )  # fmt: skip


def pack(arguments: Iterable[Argument]) -> bytes:
    """A schedule's Arguments: fields of 8 bytes, a tensor as its address, None as null."""
    fields = [_field(a) for a in arguments]
    kinds = "".join("d" if isinstance(field, float) else "q" for field in fields)
    return struct.pack(f"={kinds}", *fields)


def _field(value: Argument) -> int | float:
    if isinstance(value, torch.Tensor):
        return address(value)
    return 0 if value is None else value


def _make_current(found: Any) -> None:
    """A thread has the device of torch at once, but its context only after its first use."""
    current = _checked(found, found.cuCtxGetCurrent(), "asking for the context")
    if int(current) == 0:
        index = torch.cuda.current_device()
        device = _checked(found, found.cuDeviceGet(index), f"opening device {index}")
        context = _checked(found, found.cuDevicePrimaryCtxRetain(device), f"opening device {index}")
        _checked(found, found.cuCtxSetCurrent(context), f"opening device {index}")


def _checked(found: Any, returned: tuple[Any, ...], doing: str) -> Any:
    status, *values = returned
    if status != found.CUresult.CUDA_SUCCESS:
        raise DriverError(f"the CUDA driver says {status.name} on {doing}")
    return values[0] if values else None
