"""Run the layers and directions of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import dropout, linear

from flashrnn.api import flashrnn, layer
from flashrnn.nn.zoneout import masks

if TYPE_CHECKING:
    from flashrnn.nn.base import Recurrent, Weights

Tensor = torch.Tensor


def run(
    module: Recurrent, x: Tensor, initial: tuple[Tensor, ...] | None, lengths: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """x [T, B, I]; initial states, each [layers * directions, B, size]; lengths [B].

    Returns the last layer's output [T, B, directions * size], and the final states, each
    [layers * directions, B, size].
    """
    finals = []
    for depth in range(module.num_layers):
        outputs = []
        for direction in range(module.num_directions):
            index = depth * module.num_directions + direction
            before = None if initial is None else [s[index] for s in initial]
            weights, reverse = module.weights(index), direction == 1
            h, last = _direction(module, weights, x, before, lengths, reverse)
            outputs.append(h)
            finals.append(last)
        x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        if module.dropout > 0 and module.training and depth < module.num_layers - 1:
            x = dropout(x, module.dropout)
    return x, [torch.stack(states) for states in zip(*finals, strict=True)]


def _direction(
    module: Recurrent,
    weights: Weights,
    x: Tensor,
    before: list[Tensor] | None,
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    """One direction of one layer: its output [T, B, size], and its final states [B, size]."""
    if weights.projection is not None:
        return _projected(module, weights, x, before, lengths, reverse)
    N, D = module.num_heads, module.head_dim
    T, B, _ = x.shape
    states = None if before is None else torch.stack(before).view(-1, B, 1, N, D)
    h, last = layer(
        x.transpose(0, 1),
        weights.W,
        weights.R,
        weights.b,
        states,
        module.cell,
        weights.parameters,
        backend=module.backend,
        gradient_clip=module.gradient_clip,
        zoneout=masks(module.zoneout, module.training, T, B, N, D, x),
        lengths=lengths,
        reverse=reverse,
    )
    return h.transpose(0, 1).flatten(2), [s.reshape(B, -1) for s in last]


def _projected(
    module: Recurrent,
    weights: Weights,
    x: Tensor,
    before: list[Tensor] | None,
    lengths: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    """An LSTM whose output is V h (Sak et al. 2014), V the projection.

    R V h = (R V) h, so the kernel runs with R V and h is projected afterwards. An initial state
    is a projected one: R times it enters through the first step's Wx, and h itself begins at zero.
    """
    W, R, b, parameters, V = weights
    assert V is not None
    N, D = module.num_heads, module.head_dim
    T, B, _ = x.shape
    folded = torch.matmul(R, V)
    options: dict[str, Any] = {
        "backend": module.backend,
        "gradient_clip": module.gradient_clip,
        "lengths": lengths,
        "reverse": reverse,
    }
    if before is None:
        h, last = layer(x.transpose(0, 1), W, folded, b, None, module.cell, parameters, **options)
    else:
        h0, c0 = before[0].view(B, N, -1), before[1].view(B, 1, N, D)
        Wx = linear(x, W.flatten(0, 2)).unflatten(2, W.shape[:3]).transpose(0, 1)
        # the step at which a sequence begins
        first = torch.zeros(B, dtype=torch.int64, device=x.device)
        if reverse:
            first += T - 1 if lengths is None else (lengths.to(x.device) - 1).clamp(min=0)
        rows = torch.arange(B, device=x.device)
        Wx = Wx.index_put((rows, first), torch.einsum("gndp,bnp->bgnd", R, h0), accumulate=True)
        states = torch.stack((torch.zeros_like(c0), c0))
        every, last = flashrnn(Wx, folded, b, states, module.cell, parameters=parameters, **options)
        h = every[0]
    final = _project(V, last[0, :, 0])
    if lengths is not None and before is not None:  # an empty sequence ends where it begins
        empty = (lengths == 0).to(x.device)[:, None]
        final = torch.where(empty, before[0], final)
    return _project(V, h.transpose(0, 1)), [final, last[1].reshape(B, -1)]


def _project(V: Tensor, h: Tensor) -> Tensor:
    """V h per head: V [N, P, D], h [..., N, D] -> [..., N * P]."""
    if V.shape[0] == 1:
        return linear(h.flatten(-2), V[0])
    return torch.einsum("...nd,npd->...np", h, V).flatten(-2)
