"""The state of attention over a prefix, and how the states of two parts join."""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor


class ScanState(NamedTuple):
    """What is left of a prefix: its size does not depend on the prefix's length.

    m [B, N]: the largest score (-inf for an empty prefix). u [B, N]: the sum of e^(s - m).
    w [B, N, D]: the sum of e^(s - m) v. The output is w / u. float32 for 16-bit inputs.
    """

    m: Tensor
    u: Tensor
    w: Tensor

    @staticmethod
    def empty(B: int, N: int, D: int, like: Tensor) -> ScanState:
        """The state of the empty prefix, on the device of `like`, for inputs of its dtype."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        m = like.new_full((B, N), -torch.inf, dtype=dtype)
        return ScanState(m, torch.zeros_like(m), like.new_zeros((B, N, D), dtype=dtype))

    def output(self) -> Tensor:
        """The attention's output [B, N, D]; zero for an empty prefix."""
        u = self.u.unsqueeze(-1)
        return torch.where(u == 0, 0.0, self.w / torch.where(u == 0, 1.0, u))


def merge(a: ScanState, b: ScanState) -> ScanState:
    """The state of two parts together, in either order: associative, the empty state neutral.

    For a prefix that was split over devices or programs. Differentiable. Feng et al., "Attention
    as an RNN", 2024, section 3.2, with the factors of an empty side defined as no change.
    """
    m = torch.maximum(a.m, b.m)
    of_a, of_b = _ratio(a.m, m), _ratio(b.m, m)
    u = a.u * of_a + b.u * of_b
    w = a.w * of_a.unsqueeze(-1) + b.w * of_b.unsqueeze(-1)
    return ScanState(m, u, w)


def _ratio(part: Tensor, m: Tensor) -> Tensor:
    """e^(part - m); 1 where they are equal, so that nothing minus nothing (-inf) is not NaN."""
    same = part == m
    return torch.where(same, 0.0, torch.where(same, 0.0, part) - torch.where(same, 0.0, m)).exp()
