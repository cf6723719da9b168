"""What both GPU back ends ask of a call's tensors and do with them."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import torch

from autotune.device import Device
from autotune.errors import NoGpu, UnknownArchitecture
from autotune.gpu import Gpu
from flashrnn.dtypes import GPU_BY_NAME, OLDEST_SM, Dtype
from flashrnn.emit.triton import IEEE, TF32
from flashrnn.errors import BackendError, DeviceError, DtypeError
from flashrnn.ir.cell import Cell
from flashrnn.passes.lower import lower
from flashrnn.runtime.registry import unsupported_transform

Tensor = torch.Tensor


def device_of(like: Tensor) -> Gpu:
    """The GPU that the tensor is on. Raises NoGpu, UnknownArchitecture."""
    index = like.device.index
    return _probed(torch.cuda.current_device() if index is None else index)


@lru_cache(maxsize=64)
def _probed(index: int) -> Gpu:
    with torch.cuda.device(index):
        return Device.current("cuda")


def on_device(like: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Kernels go to the current device, which may be another than the tensors'."""
    return torch.cuda.device(like.device) if like.is_cuda else contextlib.nullcontext()


def is_capturing(like: Tensor) -> bool:
    """Whether launches on the tensor's device become nodes of a CUDA graph instead of running."""
    if not like.is_cuda:
        return False
    with on_device(like):
        return torch.cuda.is_current_stream_capturing()


def lengths_on(lengths: Tensor | None, like: Tensor) -> Tensor | None:
    """The lengths where the kernels read them. Raises BackendError inside a CUDA graph's capture.

    They are on the CPU, where their range was checked, and the copy waits.
    """
    if lengths is None or lengths.device == like.device:
        return lengths
    if is_capturing(like):
        raise BackendError(
            "lengths cannot be captured in a CUDA graph, which would keep those of the capture "
            "for ever; capture without them"
        )
    return lengths.to(like.device)


def saved_shape(cell: Cell, states: Tensor) -> tuple[int, ...]:
    """Shape of what a forward pass saves: by step, not by position in time."""
    _, B, T, N, D = states.shape
    return (T, B, N, len(lower(cell).saved), D)


def precision_of(dtype: torch.dtype) -> str:
    """How products of float32 take their operands: rounded to tf32 where the user asked torch to.

    Asked by torch.set_float32_matmul_precision or torch.backends.cuda.matmul.
    """
    if dtype != torch.float32:
        return IEEE
    asked: str | None = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if asked is None:  # torch before 2.9
        asked = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return TF32 if asked == "tf32" else IEEE


def gpu_dtype_of(dtype: torch.dtype, name: str = "Wx", backend: str = "triton") -> Dtype:
    """The table's row; DtypeError where no kernel carries it. name: of the tensor."""
    for known in GPU_BY_NAME.values():
        if known.torch == dtype:
            return known
    raise DtypeError(
        f'backend="{backend}" has kernels for {", ".join(GPU_BY_NAME)}, {name} is {dtype}; '
        'backend="reference" takes any dtype'
    )


def check_transform() -> None:
    """Raise BackendError inside a transform of torch's that fused kernels do not carry."""
    transform = unsupported_transform()
    if transform is not None:
        raise BackendError(
            f'fused kernels do not carry {transform}; backend="reference" carries all of torch\'s'
        )


def check_gpu(x: Tensor, name: str, backend: str) -> None:
    """Raise DeviceError or BackendError unless x is on a GPU that is new enough and known.

    name: what the messages call x.
    """
    if not x.is_cuda:
        where = "the CPU" if x.device.type == "cpu" else str(x.device)
        raise DeviceError(
            f'backend="{backend}" needs tensors on an NVIDIA GPU, {name} is on {where}'
        )
    try:
        sm = device_of(x).sm
    except (NoGpu, UnknownArchitecture) as error:
        raise BackendError(f'backend="{backend}" cannot run on {x.device}: {error}') from error
    if sm < OLDEST_SM:
        raise BackendError(
            f'backend="{backend}" needs compute capability {OLDEST_SM / 10} or later, {x.device} '
            f'has {sm / 10}; backend="reference" runs on any device'
        )
