"""Pairs of modules with the same weights, and how their results are compared."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from flashrnn import nn
from flashrnn.tolerance import relative_error

BOUND = {torch.float32: 2e-5, torch.float64: 1e-11}
LENGTHS = torch.tensor([3, 7, 1, 7, 4])  # not sorted
B, T, I = 5, 7, 6


def pair(name: str, *arguments, **options) -> tuple[torch.nn.Module, torch.nn.Module]:
    """torch.nn's module and ours, ours loaded from the other's state dict."""
    theirs = getattr(torch.nn, name)(*arguments, **options)
    ours = getattr(nn, name)(*arguments, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def input_of(module, packed: bool = False, seed: int = 0) -> tuple[torch.Tensor, object]:
    """A leaf, and the module's input made of it."""
    g = torch.Generator().manual_seed(seed)
    shape = (B, T, I) if module.batch_first else (T, B, I)
    dtype = next(module.parameters()).dtype
    leaf = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    if not packed:
        return leaf, leaf
    return leaf, pack_padded_sequence(
        leaf, LENGTHS, batch_first=module.batch_first, enforce_sorted=False
    )


def state_of(module, seed: int = 1) -> tuple[torch.Tensor, ...]:
    """Initial states that require gradients."""
    g = torch.Generator().manual_seed(seed)
    first = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [getattr(module, "proj_size", 0) or module.hidden_size]
    if isinstance(module, (torch.nn.LSTM, nn.LSTM)):
        sizes.append(module.hidden_size)
    dtype = next(module.parameters()).dtype
    return tuple(
        torch.randn(first, B, size, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
        for size in sizes
    )


def results(module, packed: bool = False, initial: bool = False) -> dict[str, torch.Tensor]:
    """Output, final states, and the gradient of everything for random cotangents of all."""
    leaf, input = input_of(module, packed)
    states = state_of(module) if initial else ()
    hx = None if not initial else states if len(states) > 1 else states[0]
    output, last = module(input, hx)
    finals = last if isinstance(last, tuple) else (last,)
    named = {}
    if isinstance(output, PackedSequence):
        for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            named[field] = getattr(output, field)
        output = output.data
    named |= {"output": output} | {f"final {k}": s for k, s in enumerate(finals)}
    g = torch.Generator().manual_seed(2)
    loss = sum(
        (x * torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype)).sum()
        for x in (output, *finals)
    )
    parameters = dict(module.named_parameters())
    leaves = [leaf, *states, *parameters.values()]
    names = ["d_input", *(f"d_initial {k}" for k in range(len(states)))]
    names += [f"d_{name}" for name in parameters]
    grads = torch.autograd.grad(loss, leaves)
    return named | dict(zip(names, grads, strict=True))


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Equal to the bound of their dtype, tensor by tensor."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        got = ours[name]
        assert got.dtype == expected.dtype and got.shape == expected.shape, name
        if not expected.is_floating_point():
            assert torch.equal(got, expected), name
            continue
        error = relative_error(got.detach(), expected.detach())
        assert error <= BOUND[expected.dtype], f"{name}: {error:.1e}"
