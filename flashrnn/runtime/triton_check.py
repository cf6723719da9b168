"""Whether the Triton back end can take a tensor, and which schedule it would run."""

from __future__ import annotations

import torch

from flashrnn.dtypes import scanned_dtype_of
from flashrnn.errors import BackendError, DeviceError, DtypeError, FlashRNNError
from flashrnn.runtime.gpu_tensors import check_gpu, check_transform, gpu_dtype_of
from flashrnn.runtime.triton_build import interpreting, require


def check_triton(x: torch.Tensor, name: str = "Wx") -> None:
    """Raise DtypeError, DeviceError or BackendError where backend="triton" cannot run on x.

    name: what the messages call x.
    """
    check_transform()
    gpu_dtype_of(x.dtype, name)
    require()
    if x.device.type == "cpu" and interpreting():
        return
    if x.device.type == "cpu":
        raise DeviceError(
            f'backend="triton" needs tensors on an NVIDIA GPU, {name} is on the CPU; '
            "TRITON_INTERPRET=1 runs its kernels there, slowly, to check them"
        )
    if x.is_cuda and interpreting():
        raise BackendError(
            "TRITON_INTERPRET=1 is set, which is for CPU tensors; unset it to run on the GPU"
        )
    check_gpu(x, name, "triton")


SCAN_BACKENDS = ("auto", "cpu", "triton", "reference")


def chosen_for_scan(backend: str, x: torch.Tensor, name: str) -> str:
    """The back end of a scan of x: "cpu", "triton" or "reference".

    Raises BackendError, DeviceError or DtypeError where the one that was asked for cannot run;
    name: what the messages call x.
    """
    if backend not in SCAN_BACKENDS:
        raise BackendError(f"backend={backend!r} does not exist; choose one of {SCAN_BACKENDS}")
    on_cpu = x.device.type == "cpu"
    kernel = x.real if x.dtype == torch.complex64 else x  # a complex number is a pair
    if backend == "auto" and x.is_cuda:
        try:
            check_triton(kernel, name)
        except FlashRNNError:
            return "reference"
        return "triton"
    if backend == "cpu" and not on_cpu:
        raise DeviceError(f'backend="cpu" needs CPU tensors, {name} is on {x.device}')
    if backend == "cpu":
        scanned_dtype_of(x.dtype)
    if backend == "triton":
        check_triton(kernel, name)
    if backend != "auto":
        return backend
    try:
        scanned_dtype_of(x.dtype)
    except DtypeError:
        return "reference"
    return "cpu" if on_cpu else "reference"
