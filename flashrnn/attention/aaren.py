"""Aaren: attention with a learned query as a recurrent layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashrnn.attention.scan import scan_attention
from flashrnn.errors import ShapeError
from flashrnn.scan_reference import ScanState

Tensor = torch.Tensor


class Aaren(torch.nn.Module):
    """Multi-head attention over every prefix, its query learned and the same at every position.

    o_t = W_o concat_n(softmax(s_1 … s_t) v), s = q_n^T W_k,n x / sqrt(D), v = W_v x + b_v, with
    D = embed_dim / num_heads. Since q is the same everywhere, s = x (W_k^T q): the keys are never
    formed, and a bias of theirs would shift all scores of a head alike, so there is none.
    Feng et al., "Attention as an RNN", 2024, section 3.3.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ShapeError(
                f"embed_dim = {embed_dim} must be divisible by num_heads = {num_heads}"
            )
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.query = torch.nn.Parameter(torch.empty(embed_dim, dtype=dtype, device=device))
        self.key = torch.nn.Parameter(torch.empty(embed_dim, embed_dim, dtype=dtype, device=device))
        self.value = torch.nn.Linear(embed_dim, embed_dim, bias, dtype=dtype, device=device)
        self.output = torch.nn.Linear(embed_dim, embed_dim, bias, dtype=dtype, device=device)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As a Transformer's: Xavier projections; the query normal."""
        torch.nn.init.normal_(self.query)
        for weight in (self.key, self.value.weight, self.output.weight):
            torch.nn.init.xavier_uniform_(weight)
        for layer in (self.value, self.output):
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)

    def scores(self, x: Tensor) -> Tensor:
        """x [..., embed_dim] -> q . k / sqrt(D) [..., num_heads], by the folded matrix W_k^T q."""
        query = self.query.view(self.num_heads, self.head_dim) * self.head_dim**-0.5
        key = self.key.view(self.num_heads, self.head_dim, self.embed_dim)
        return torch.nn.functional.linear(x, torch.einsum("nd,nde->ne", query, key))

    def forward(self, x: Tensor, state: ScanState | None = None) -> tuple[Tensor, ScanState]:
        """x [B, T, embed_dim], the state of what came before or None -> (like x, state).

        The state (m, u [B, num_heads], w [B, num_heads, D]) is as large after a million steps as
        after one. Raises ShapeError, and what `scan_attention` does.
        """
        if x.dim() != 3 or x.shape[2] != self.embed_dim:
            raise ShapeError(f"x must be [B, T, {self.embed_dim}], got {tuple(x.shape)}")
        v = self.value(x).unflatten(2, (self.num_heads, self.head_dim))
        o, state = scan_attention(self.scores(x), v, state)
        return self.output(o.flatten(2)), state

    def step(self, x_t: Tensor, state: ScanState | None = None) -> tuple[Tensor, ScanState]:
        """x_t [B, embed_dim] -> (y_t, state): one step, in constant time and memory."""
        y, state = self.forward(x_t.unsqueeze(1), state)
        return y.squeeze(1), state

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}"


class AarenBlock(torch.nn.Module):
    """A Transformer's block around Aaren: x + attention(norm(x)), then x + feed_forward(norm(x)).

    feedforward_dim: width of the hidden layer (GELU), 4 * embed_dim by default.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        feedforward_dim: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        width = feedforward_dim or 4 * embed_dim
        self.attention = Aaren(embed_dim, num_heads, dtype=dtype, device=device)
        self.attention_norm = torch.nn.LayerNorm(embed_dim, dtype=dtype, device=device)
        self.feedforward_norm = torch.nn.LayerNorm(embed_dim, dtype=dtype, device=device)
        self.feedforward = torch.nn.Sequential(
            torch.nn.Linear(embed_dim, width, dtype=dtype, device=device),
            torch.nn.GELU(),
            torch.nn.Linear(width, embed_dim, dtype=dtype, device=device),
        )

    def forward(self, x: Tensor, state: ScanState | None = None) -> tuple[Tensor, ScanState]:
        """As `Aaren.forward`."""
        y, state = self.attention(self.attention_norm(x), state)
        x = x + y
        return x + self.feedforward(self.feedforward_norm(x)), state

    def step(self, x_t: Tensor, state: ScanState | None = None) -> tuple[Tensor, ScanState]:
        """As `Aaren.step`."""
        y, state = self.forward(x_t.unsqueeze(1), state)
        return y.squeeze(1), state


class AarenStack(torch.nn.Module):
    """num_layers blocks and a last norm; streaming gives the parallel output, to rounding."""

    def __init__(
        self,
        num_layers: int,
        embed_dim: int,
        num_heads: int,
        feedforward_dim: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ShapeError(f"num_layers = {num_layers} must be positive")
        self.blocks = torch.nn.ModuleList(
            AarenBlock(embed_dim, num_heads, feedforward_dim, dtype=dtype, device=device)
            for _ in range(num_layers)
        )
        self.norm = torch.nn.LayerNorm(embed_dim, dtype=dtype, device=device)

    def forward(
        self, x: Tensor, states: Sequence[ScanState] | None = None
    ) -> tuple[Tensor, tuple[ScanState, ...]]:
        """x [B, T, embed_dim], a state per block or None -> (like x, the states after x)."""
        if states is not None and len(states) != len(self.blocks):
            raise ShapeError(f"{len(states)} states for {len(self.blocks)} blocks")
        after = []
        for i, block in enumerate(self.blocks):
            x, state = block(x, None if states is None else states[i])
            after.append(state)
        return self.norm(x), tuple(after)

    def step(
        self, x_t: Tensor, states: Sequence[ScanState] | None = None
    ) -> tuple[Tensor, tuple[ScanState, ...]]:
        """x_t [B, embed_dim] -> (y_t, states): one step, in constant time and memory."""
        y, after = self.forward(x_t.unsqueeze(1), states)
        return y.squeeze(1), after
