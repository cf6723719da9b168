"""The quasi-LSTM: an LSTM whose gates see the input alone, so that time is a scan."""

from __future__ import annotations

import torch

from flashrnn.errors import ShapeError
from flashrnn.scan.linear import linear_scan

Tensor = torch.Tensor


class QuasiLSTM(torch.nn.Module):
    """c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(z), h_t = sigmoid(o) tanh(c_t); f, i, z, o = W x.

    Stanić et al., "The Languini Kitchen", 2023, section 4.2.
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
        self.gates = torch.nn.Linear(input_size, 4 * hidden_size, dtype=dtype, device=device)
        self.hidden_size = hidden_size

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, T, input_size], state c [B, hidden_size] or None -> (h [B, T, hidden_size], c)."""
        if x.dim() != 3 or x.shape[2] != self.gates.in_features:
            raise ShapeError(f"x must be [B, T, {self.gates.in_features}], got {tuple(x.shape)}")
        f, i, z, o = self.gates(x).chunk(4, -1)
        c = linear_scan(f.sigmoid(), i.sigmoid() * z.tanh(), state)
        if x.shape[1]:
            return o.sigmoid() * c.tanh(), c[:, -1]
        return c, c.new_zeros(x.shape[0], self.hidden_size) if state is None else state

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_t [B, input_size] -> (h_t, c): `forward` of one step."""
        h, state = self.forward(x_t.unsqueeze(1), state)
        return h.squeeze(1), state
