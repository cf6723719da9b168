"""The storage types of the kernels, with their name on each target."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flashrnn.errors import DtypeError


@dataclass(frozen=True)
class Dtype:
    """One storage type. `bytes` is the size of an element; "" where a target does not carry it."""

    name: str
    torch: torch.dtype
    cpp: str
    bytes: int
    triton: str = ""


FLOAT32 = Dtype("float32", torch.float32, "float", 4, "tl.float32")
FLOAT64 = Dtype("float64", torch.float64, "double", 8)
# Types to store numbers in; arithmetic on them is float32 (csrc/cpu/storage.hpp).
BFLOAT16 = Dtype("bfloat16", torch.bfloat16, "BFloat16", 2, "tl.bfloat16")
FLOAT16 = Dtype("float16", torch.float16, "Float16", 2, "tl.float16")

# Kernels that are bound by memory, the scans, take every storage type.
SCANNED = {d.name: d for d in (FLOAT32, FLOAT64, BFLOAT16, FLOAT16)}
BY_NAME = {d.name: d for d in (FLOAT32, FLOAT64)}  # of the CPU's kernels
# 10 x compute capability of the oldest GPU whose tensor cores take bfloat16 and tf32.
OLDEST_SM = 80
GPU_BY_NAME = {d.name: d for d in SCANNED.values() if d.triton}
# Kept in 16 bits and computed in float32, where kernels carry no such type.
STORED_IN_16_BITS = (torch.bfloat16, torch.float16)
_BY_TORCH = {d.torch: d for d in BY_NAME.values()}


def dtype_of(torch_dtype: torch.dtype) -> Dtype:
    """The table's row for a torch dtype; DtypeError where kernels do not carry it."""
    try:
        return _BY_TORCH[torch_dtype]
    except KeyError:
        known = ", ".join(sorted(BY_NAME))
        raise DtypeError(f"dtype {torch_dtype} has no kernel; kernels exist for {known}") from None


def arithmetic(storage: Dtype) -> Dtype:
    """The type in which a scan computes what is stored as `storage`, and keeps its state."""
    return FLOAT64 if storage is FLOAT64 else FLOAT32


def scanned_dtype_of(torch_dtype: torch.dtype) -> Dtype:
    """The storage type of a scan; complex numbers are pairs. DtypeError for others."""
    real = {torch.complex64: torch.float32, torch.complex128: torch.float64}
    for dtype in SCANNED.values():
        if dtype.torch == real.get(torch_dtype, torch_dtype):
            return dtype
    known = ", ".join(SCANNED)
    raise DtypeError(f"dtype {torch_dtype} has no scan; scans exist for {known}")
