"""What counts as equal: one rule for the tests and for the tuner's check.

A result is right when its error against the float64 reference is at most three times the error
that eager PyTorch makes in the same type on the same inputs, plus a floor of a few units in the
last place, of more on a GPU, whose exponential and division are approximate to two of them. float32
is also held to an absolute bound; where its products round to tf32, which eager's on a CPU do not,
to a fixed one. In float64 reference and eager round alike, so only a (larger) floor is left. Errors
are relative to the largest magnitude of the reference, tensor by tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

TIMES_EAGER = 3.0
ULP_FLOOR = 8.0
GPU_ULP_FLOOR = 24.0
FLOAT64_ULP_FLOOR = 128.0
FLOAT32_BOUND = 2e-5
TF32_BOUND = 3e-3  # operands with 10 bits of mantissa


@dataclass(frozen=True)
class Comparison:
    """Error of one tensor and the bound that it is held to, both relative."""

    what: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound

    def __str__(self) -> str:
        sign = "≤" if self.ok else "EXCEEDS"
        return f"{self.what}: error {self.error:.1e} {sign} {self.bound:.1e}"


def relative_error(got: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest |got - reference| over the largest |reference|; inf where got is not finite.

    A reference of zeros compares absolutely. Shapes must agree.
    """
    if got.shape != reference.shape:
        raise ValueError(f"shapes differ: {tuple(got.shape)} and {tuple(reference.shape)}")
    if reference.numel() == 0:
        return 0.0
    difference = (got.double().to(reference.device) - reference.double()).abs().max().item()
    scale = reference.double().abs().max().item() or 1.0
    return difference / scale if math.isfinite(difference) else math.inf


def compare(
    what: str,
    got: torch.Tensor,
    reference: torch.Tensor,
    eager: torch.Tensor,
    *,
    tf32: bool = False,
) -> Comparison:
    """Hold `got` to `reference` (float64), given what eager PyTorch computes in got's type.

    tf32: whether got's products round their operands to it.
    """
    if tf32:
        return Comparison(what, relative_error(got, reference), TF32_BOUND)
    bound = TIMES_EAGER * relative_error(eager, reference)
    floor = GPU_ULP_FLOOR if got.is_cuda else ULP_FLOOR
    floor = FLOAT64_ULP_FLOOR if got.dtype == torch.float64 else floor
    bound += floor * torch.finfo(got.dtype).eps
    if got.dtype == torch.float32:
        bound = min(bound, FLOAT32_BOUND)
    return Comparison(what, relative_error(got, reference), bound)


def worst(comparisons: list[Comparison]) -> Comparison:
    """The comparison that comes closest to its bound, or exceeds it the most."""
    return max(comparisons, key=lambda c: c.error / c.bound)
