"""Whether the CUDA back end can take a tensor."""

from __future__ import annotations

import torch

from autotune.errors import MissingExtra
from flashrnn.emit.triton import TF32
from flashrnn.errors import BackendError, DtypeError
from flashrnn.runtime.cuda_compile import compiler_version
from flashrnn.runtime.cuda_driver import driver
from flashrnn.runtime.gpu_tensors import (
    check_gpu,
    check_transform,
    gpu_dtype_of,
    precision_of,
)


def check_cuda(x: torch.Tensor, name: str = "Wx") -> None:
    """Raise DtypeError, DeviceError or BackendError where backend="cuda" cannot run on x.

    name: what the messages call x.
    """
    check_transform()
    gpu_dtype_of(x.dtype, name, "cuda")
    if x.is_cuda and x.dtype == torch.float32 and precision_of(x.dtype) != TF32:
        raise DtypeError(
            f'backend="cuda" multiplies float32 rounded to tf32, and {name} is float32: '
            'torch.set_float32_matmul_precision("high") allows that; backend="triton" has exact '
            "products"
        )
    if x.is_cuda:
        _require()
    check_gpu(x, name, "cuda")


def _require() -> None:
    """Raise BackendError where a wheel or the driver is missing."""
    driver()
    try:
        compiler_version()
    except MissingExtra as error:
        raise BackendError(f'backend="cuda" cannot compile its kernels: {error}') from error
