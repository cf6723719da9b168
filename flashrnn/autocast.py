"""What torch.autocast means for a recurrence."""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


def cast(first: Tensor, *rest: Tensor | None) -> tuple[Any, ...]:
    """Inside an autocast region, the tensors in its dtype; outside, as they are.

    As for any operation that autocast lowers: float64 stays. The kernels then keep states and
    gates in float32 and round what they return, as torch.nn.LSTM does. Absent ones stay absent.
    """
    tensors = (first, *rest)
    if not isinstance(first, Tensor) or not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(
        x.to(dtype)
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        else x
        for x in tensors
    )
