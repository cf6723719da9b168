"""Run the layers and directions of a module."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import dropout, linear

from flashrnn.api import flashrnn, layer
from flashrnn.dims import Dims
from flashrnn.nn import direct, directions
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
    T, B, N, D = x.shape[0], x.shape[1], module.num_heads, module.head_dim
    finals: list[list[Tensor]] = []
    for depth in range(module.num_layers):
        jobs: list[directions.Direction] = []
        for direction in range(module.num_directions):
            index = depth * module.num_directions + direction
            before = () if initial is None else tuple(s[index] for s in initial)
            keep = masks(module.zoneout, module.training, T, B, N, D, x)
            call = partial(_direction, module, lengths, direction == 1, keep, len(before))
            jobs.append((call, (x, *module._parameters_of(index), *before)))
        results = directions.run(jobs, Dims(B, T, N, D))
        finals += [states for _, *states in results]
        x = results[0][0] if len(results) == 1 else torch.cat([h for h, *_ in results], 2)
        if module.dropout > 0 and module.training and depth < module.num_layers - 1:
            x = dropout(x, module.dropout)
    if len(finals) == 1:
        return x, finals[0]
    return x, [torch.cat(states) for states in zip(*finals, strict=True)]


def _direction(
    module: Recurrent,
    lengths: Tensor | None,
    reverse: bool,
    keep: Tensor | None,
    states: int,
    x: Tensor,
    *tensors: Tensor,
) -> tuple[Tensor, ...]:
    """One direction of one layer: its output [T, B, size], and its final states [1, B, size].

    tensors: the direction's parameters, then its initial states (`states` of them), if any.
    """
    count = len(tensors) - states
    parameters, before = tensors[:count], tensors[count:]
    if lengths is None and keep is None:
        results = direct.run(module, reverse, x, before, parameters)
        if results is not None:
            return results
    B, N, D = x.shape[1], module.num_heads, module.head_dim
    options: dict[str, Any] = {
        "backend": module.backend,
        "gradient_clip": module.gradient_clip,
        "lengths": lengths,
        "reverse": reverse,
    }
    weights = module._weights_of(parameters)
    if weights.projection is not None:
        h, *last = _projected(module, x, weights, before, options)
        return h, *(s.unsqueeze(0) for s in last)
    W, R, b, unit, _ = weights
    initial = torch.stack(before).view(states, B, 1, N, D) if before else None
    h, every = layer(
        x.transpose(0, 1), W, R, b, initial, module.cell, unit, zoneout=keep, **options
    )
    return h.transpose(0, 1).flatten(2), *(s.reshape(1, B, N * D) for s in every)


def _projected(
    module: Recurrent,
    x: Tensor,
    weights: Weights,
    before: tuple[Tensor, ...],
    options: dict[str, Any],
) -> tuple[Tensor, ...]:
    """An LSTM whose output is V h (Sak et al. 2014), V the projection.

    R V h = (R V) h, so the kernel runs with R V and h is projected afterwards. An initial state
    is a projected one: R times it enters through the first step's Wx, and h itself begins at zero.
    """
    W, R, b, _, V = weights
    assert V is not None
    N, D, lengths = module.num_heads, module.head_dim, options["lengths"]
    T, B, _ = x.shape
    folded = torch.matmul(R, V)
    if not before:
        h, last = layer(x.transpose(0, 1), W, folded, b, None, module.cell, **options)
        return _project(V, h.transpose(0, 1)), _project(V, last[0, :, 0]), last[1].reshape(B, N * D)
    h0, c0 = before[0].view(B, N, V.shape[1]), before[1].view(B, 1, N, D)
    Wx = linear(x, W.flatten(0, 2)).unflatten(2, W.shape[:3]).transpose(0, 1)
    first = torch.zeros(B, dtype=torch.int64, device=x.device)  # the step where each begins
    if options["reverse"]:
        first += T - 1 if lengths is None else (lengths.to(x.device) - 1).clamp(min=0)
    rows = torch.arange(B, device=x.device)
    Wx = Wx.index_put((rows, first), torch.einsum("gndp,bnp->bgnd", R, h0), accumulate=True)
    states = torch.stack((torch.zeros_like(c0), c0))
    every, last = flashrnn(Wx, folded, b, states, module.cell, **options)
    final = _project(V, last[0, :, 0])
    if lengths is not None:  # an empty sequence ends where it begins
        final = torch.where((lengths == 0).to(x.device)[:, None], before[0], final)
    return _project(V, every[0].transpose(0, 1)), final, last[1].reshape(B, N * D)


def _project(V: Tensor, h: Tensor) -> Tensor:
    """V h per head: V [N, P, D], h [..., N, D] -> [..., N * P]."""
    if V.shape[0] == 1:
        return linear(h.flatten(-2), V[0])
    return torch.einsum("...nd,npd->...np", h, V).flatten(-2)
