"""One LSTM layer, computed in each of the ways that are compared, from the same weights.

Every layer maps x [T, B, I] to h [T, B, D], both contiguous, and includes the input product. The
gates are i, f, z (torch calls it g) and o: the order of torch.nn.LSTM is that of flashrnn's cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flashrnn import layer
from flashrnn.dims import Dims

Tensor = torch.Tensor


@dataclass(frozen=True)
class Weights:
    """W [4 D, I] of the input, R [4 D, D] of the recurrence, b [4 D]."""

    W: Tensor
    R: Tensor
    b: Tensor

    @staticmethod
    def random(dims: Dims, dtype: torch.dtype, generator: torch.Generator) -> Weights:
        """Uniform in ± D ** -0.5, as torch.nn.LSTM starts. I = D."""
        D = dims.D
        shapes = ((4 * D, D), (4 * D, D), (4 * D,))
        return Weights(*(
            (torch.rand(s, generator=generator, dtype=torch.float64) * 2 - 1).mul(D**-0.5).to(dtype)
            for s in shapes
        ))  # fmt: skip

    def to(self, dtype: torch.dtype) -> Weights:
        return Weights(self.W.to(dtype), self.R.to(dtype), self.b.to(dtype))


@dataclass(frozen=True)
class Layer:
    """One implementation with its own copy of the weights.

    leaves: the tensors that take gradients, under "W", "R" and "b"; each has the elements of the
    field of `Weights`, in that order, whatever its shape.
    """

    label: str
    run: Callable[[Tensor], Tensor]
    leaves: dict[str, Tensor]


def fused(weights: Weights) -> Layer:
    """This project's: one operator for the whole layer."""
    D, I = weights.R.shape[1], weights.W.shape[1]
    W = _leaf(weights.W.view(4, 1, D, I))
    R = _leaf(weights.R.view(4, 1, D, D))
    b = _leaf(weights.b.view(4, 1, D))

    def run(x: Tensor) -> Tensor:
        h, _ = layer(x.transpose(0, 1), W, R, b)
        return h.transpose(0, 1).flatten(2)

    return Layer("flashrnn", run, {"W": W, "R": R, "b": b})


def library(weights: Weights) -> Layer:
    """torch.nn.LSTM. It has two biases and differentiates both; the second one is zero here."""
    D, I = weights.R.shape[1], weights.W.shape[1]
    module = torch.nn.LSTM(I, D, dtype=weights.W.dtype)
    held = dict(module.named_parameters())
    with torch.no_grad():
        held["weight_ih_l0"].copy_(weights.W)
        held["weight_hh_l0"].copy_(weights.R)
        held["bias_ih_l0"].copy_(weights.b)
        held["bias_hh_l0"].zero_()

    def run(x: Tensor) -> Tensor:
        h: Tensor = module(x)[0]
        return h

    leaves: dict[str, Tensor] = {
        "W": held["weight_ih_l0"],
        "R": held["weight_hh_l0"],
        "b": held["bias_ih_l0"],
    }
    return Layer("torch.nn.LSTM", run, leaves)


def loop(weights: Weights) -> Layer:
    """What one writes without a library: a product and some element-wise operations per step."""
    W, R, b = (_leaf(t) for t in (weights.W, weights.R, weights.b))

    def run(x: Tensor) -> Tensor:
        products = torch.addmm(b, x.flatten(0, 1), W.t()).unflatten(0, x.shape[:2])
        R_t = R.t()
        h = c = x.new_zeros(x.shape[1], R.shape[1])
        outputs = []
        for product in products.unbind(0):
            i, f, z, o = torch.addmm(product, h, R_t).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs)

    return Layer("eager loop", run, {"W": W, "R": R, "b": b})


def _leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_()
