"""Whether the CUDA back end can take a tensor."""

from __future__ import annotations

import torch

from autotune.errors import MissingExtra, NoGpu, UnknownArchitecture
from flashrnn.emit.triton import TF32
from flashrnn.errors import BackendError, DeviceError, DtypeError
from flashrnn.runtime.cuda_compile import OLDEST, compiler_version
from flashrnn.runtime.cuda_driver import driver
from flashrnn.runtime.gpu_tensors import device_of, gpu_dtype_of, precision_of
from flashrnn.runtime.registry import unsupported_transform


def check_cuda(x: torch.Tensor, name: str = "Wx") -> None:
    """Raise DtypeError, DeviceError or BackendError where backend="cuda" cannot run on x.

    name: what the messages call x.
    """
    transform = unsupported_transform()
    if transform is not None:
        raise BackendError(
            f'fused kernels do not carry {transform}; backend="reference" carries all of torch\'s'
        )
    gpu_dtype_of(x.dtype, name, "cuda")
    if not x.is_cuda:
        where = "the CPU" if x.device.type == "cpu" else str(x.device)
        raise DeviceError(f'backend="cuda" needs tensors on an NVIDIA GPU, {name} is on {where}')
    if x.dtype == torch.float32 and precision_of(x.dtype) != TF32:
        raise DtypeError(
            f'backend="cuda" multiplies float32 rounded to tf32, and {name} is float32: '
            'torch.set_float32_matmul_precision("high") allows that; backend="triton" has exact '
            "products"
        )
    _require()
    try:
        sm = device_of(x).sm
    except (NoGpu, UnknownArchitecture) as error:
        raise BackendError(f'backend="cuda" cannot run on {x.device}: {error}') from error
    if sm < OLDEST:
        raise BackendError(
            f'backend="cuda" needs compute capability {OLDEST / 10} or later, {x.device} has '
            f'{sm / 10}; backend="reference" runs on any device'
        )


def _require() -> None:
    """Raise BackendError where a wheel or the driver is missing."""
    driver()
    try:
        compiler_version()
    except MissingExtra as error:
        raise BackendError(f'backend="cuda" cannot compile its kernels: {error}') from error
