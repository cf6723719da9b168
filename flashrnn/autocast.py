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
    if not torch._C._is_any_autocast_enabled() or not isinstance(first, Tensor):
        return tensors
    kind = first.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        x.to(dtype)
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
        else x
        for x in tensors
    )
