"""Where the numbers of a tensor lie."""

from __future__ import annotations

import torch

from flashrnn.errors import BackendError


def address(x: torch.Tensor | None) -> int:
    """The address of a tensor's memory; 0 for None and for a tensor of no elements.

    Raises BackendError for what only wraps other tensors, as a DTensor does, and has no memory of
    its own: a kernel would read at null.
    """
    found = 0 if x is None else x.data_ptr()
    if found == 0 and x is not None and x.numel() > 0:
        raise BackendError(
            f"fused kernels read memory, and a {type(x).__name__} {tuple(x.shape)} has none of its "
            'own: pass the plain tensors that it wraps, or take backend="reference"'
        )
    return found
