"""The alternating schedule of a GPU back end: in each step a product of torch's and a launch.

For heads whose R no kernel holds. What is carried from step to step is in memory, in float32;
products have the storage type.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from flashrnn.options import Options

Tensor = torch.Tensor


def forward(
    r: Tensor, initial: Tensor, last: Tensor, T: int,
    step: Callable[[Tensor, Tensor, Tensor, int], None],
) -> None:  # fmt: skip
    """All steps, into last [S, B, 1, N, D].

    step(products, carried, h, t) takes products [N, B, G_r D] to the next carried [S, B, 1, N, D]
    and h [N, B, D]. r [G_r, N, D, P], initial [S, B, 1, N, D], which is left as it is.
    """
    N, D = initial.shape[-2:]
    carried = initial.to(torch.float32, copy=True).contiguous()
    # a copy even where one head or row makes it contiguous as it is
    h = initial[0, :, 0].transpose(0, 1).clone(memory_format=torch.contiguous_format)
    # [N, P, G_r D]: h times this is every gate's product
    packed = r.permute(1, 3, 0, 2).reshape(N, D, -1)
    products = h.new_empty((N, h.shape[1], packed.shape[2]))
    for t in range(T):
        torch.bmm(h, packed, out=products)
        step(products, carried, h, t)
    last.copy_(carried)


def backward(
    r: Tensor, d_last: Tensor | None, d_initial: Tensor, T: int, lengths: Tensor | None,
    options: Options, step: Callable[[Tensor, Tensor, Tensor, int], None],
) -> None:  # fmt: skip
    """All steps, last first, into d_initial [S, B, 1, N, D].

    step(products, operand, carried, t) takes what R carries back from the step behind, products
    [N, B, D], to the gates' gradients, operand [N, B, G_r D], and to the next carried.
    """
    B, N, D = d_initial.shape[1], *d_initial.shape[-2:]
    carried = torch.zeros_like(d_initial, dtype=torch.float32)
    if d_last is not None:
        carried.copy_(d_last)
    # [N, G_r D, P]: the gates' gradients times this is that of h
    packed = r.transpose(0, 1).reshape(N, -1, D)
    operand, products = r.new_empty((N, B, packed.shape[1])), r.new_empty((N, B, D))
    for t in reversed(range(T)):
        step(products, operand, carried, t)
        torch.bmm(operand, packed, out=products)
    # into the states before the first step, through time: as the kernel does between steps
    d_h = carried[0, :, 0]  # [B, N, D]
    through = d_h if options.gradient_cut else d_h + products.transpose(0, 1)
    through = through.clamp(-options.gradient_clip, options.gradient_clip)
    if lengths is not None:
        through = torch.where((lengths > 0)[:, None, None], through, d_h)
    carried[0, :, 0] = through
    d_initial.copy_(carried)
