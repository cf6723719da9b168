"""The diagonal state-space layer: S4D, a diagonal LSSL."""

from __future__ import annotations

import math
from typing import Any

import torch

from flashrnn.errors import ShapeError
from flashrnn.scan.linear import linear_scan

Tensor = torch.Tensor


class DiagonalStateSpace(torch.nn.Module):
    """Per channel a linear system of `states` complex states, discretised bilinearly.

    h' = A h + x, y = 2 Re(C h) + D x, with A_n = -exp(a_n) + i w_n, started at S4D-Lin,
    A_n = -1/2 + i pi n; sampled with a step of its own per channel, log-uniform between
    `least_step` and `largest_step`:
    h_t = (1 + dt A / 2) / (1 - dt A / 2) h_{t-1} + dt / (1 - dt A / 2) x_t.
    Gu et al., "Combining recurrent, convolutional, and continuous-time models with linear
    state-space layers", 2021 (bilinear, section 2); "On the parameterization and initialization
    of diagonal state space models", 2022 (S4D-Lin, section 4).
    """

    def __init__(
        self,
        channels: int,
        states: int = 16,
        *,
        least_step: float = 1e-3,
        largest_step: float = 1e-1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or states < 1:
            raise ShapeError(f"channels = {channels} and states = {states} must be positive")
        self.channels, self.states = channels, states
        kind: Any = {"dtype": dtype, "device": device}
        shape = (channels, states)
        self.log_decay = torch.nn.Parameter(torch.full(shape, math.log(0.5), **kind))
        turns = math.pi * torch.arange(states, **kind)
        self.frequency = torch.nn.Parameter(turns.expand(shape).clone())
        low, high = math.log(least_step), math.log(largest_step)
        self.log_step = torch.nn.Parameter(torch.empty(channels, **kind).uniform_(low, high))
        self.C = torch.nn.Parameter(torch.randn(*shape, 2, **kind) * 0.5**0.5)
        self.D = torch.nn.Parameter(torch.randn(channels, **kind))

    def discretised(self) -> tuple[Tensor, Tensor]:
        """The factors of the state and of the input per step, complex [channels, states]."""
        A = torch.complex(-self.log_decay.exp(), self.frequency)
        dt = self.log_step.exp().unsqueeze(-1)
        below = 1 - dt * A / 2
        return (1 + dt * A / 2) / below, dt / below

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, T, channels], state [B, channels, states] complex or None -> (y like x, state)."""
        if x.dim() != 3 or x.shape[2] != self.channels:
            raise ShapeError(f"x must be [B, T, {self.channels}], got {tuple(x.shape)}")
        factor, gain = self.discretised()
        h = linear_scan(factor, x.unsqueeze(-1) * gain, state)
        y = 2 * (h * torch.view_as_complex(self.C)).real.sum(-1) + self.D * x
        if x.shape[1]:
            return y, h[:, -1]
        return y, h.new_zeros(x.shape[0], self.channels, self.states) if state is None else state

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_t [B, channels] -> (y_t, state): `forward` of one step."""
        y, state = self.forward(x_t.unsqueeze(1), state)
        return y.squeeze(1), state
