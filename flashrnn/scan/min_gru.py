"""The minimal GRU: an update gate and a candidate that see the input alone."""

from __future__ import annotations

import torch

from flashrnn.errors import ShapeError
from flashrnn.scan.linear import linear_scan

Tensor = torch.Tensor


class MinGRU(torch.nn.Module):
    """h_t = (1 - z) h_{t-1} + z c with z = sigmoid(W_z x), c = W_c x.

    Feng et al., "Were RNNs all we needed?", 2024, section 3.1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.gates = torch.nn.Linear(input_size, 2 * hidden_size, dtype=dtype, device=device)
        self.hidden_size = hidden_size

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, T, input_size], state h [B, hidden_size] or None -> (h [B, T, hidden_size], h)."""
        if x.dim() != 3 or x.shape[2] != self.gates.in_features:
            raise ShapeError(f"x must be [B, T, {self.gates.in_features}], got {tuple(x.shape)}")
        z, candidate = self.gates(x).chunk(2, -1)
        # 1 - sigmoid(z) without cancellation
        h = linear_scan((-z).sigmoid(), z.sigmoid() * candidate, state)
        if x.shape[1]:
            return h, h[:, -1]
        return h, h.new_zeros(x.shape[0], self.hidden_size) if state is None else state

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_t [B, input_size] -> (h_t, h): `forward` of one step."""
        h, state = self.forward(x_t.unsqueeze(1), state)
        return h.squeeze(1), state
