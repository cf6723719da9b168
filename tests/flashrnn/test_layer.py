"""The layer operator: pieces, memory orders, gradients."""

import problems
import pytest
import torch
from problems import every_cell, layer_problem

from flashrnn import layer
from flashrnn.cells import gru, indrnn, lstm
from flashrnn.runtime import surround


def composed(cell, **inputs):
    every, last = problems.composed(cell, **inputs)
    return every[0], last


@pytest.mark.parametrize(("B", "rows"), [(3, 4), (3, 7), (3, 1024), (5, 7), (5, 1024)])
@pytest.mark.parametrize("cell", every_cell(), ids=lambda c: c.name)
@pytest.mark.parametrize("memory", ["batch-major", "time-major"])
def test_equals_product_and_reference(cell, B, rows, memory, monkeypatch) -> None:
    monkeypatch.setattr(surround, "PIECE_ROWS", rows)
    torch.manual_seed(0)
    inputs = layer_problem(cell, B, 7, 2, 9, 5)
    if memory == "time-major":
        x = inputs["x"].detach().transpose(0, 1).contiguous().transpose(0, 1)
        inputs["x"] = x.requires_grad_()
    ours = layer(**inputs, function=cell)
    theirs = composed(cell, **inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    d = [torch.randn_like(x) for x in theirs]
    leaves = list(inputs.values())
    for a, b in zip(
        torch.autograd.grad(ours, leaves, d), torch.autograd.grad(theirs, leaves, d), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("B", "T"), [(0, 3), (3, 0), (5, 0), (1, 1), (1, 9), (6, 1)])
def test_edges(B, T) -> None:
    inputs = layer_problem(lstm, B, T, 1, 4, 3)
    ours, theirs = layer(**inputs), composed(lstm, **inputs)
    leaves = list(inputs.values())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    loss, expected = (h.sum() + last.square().sum() for h, last in (ours, theirs))
    wanted = torch.autograd.grad(expected, leaves, materialize_grads=True, allow_unused=True)
    for a, b in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
        torch.testing.assert_close(a, b)


# From 1,024 rows on small gradients of weights are summed in four lanes (weight_gradients.hpp):
# pieces of some rows, of fewer than lanes, the first of one alone.
@pytest.mark.parametrize(("B", "T", "rows"), [(2, 515, 2048), (2, 515, 40), (1, 1030, 3)])
@pytest.mark.parametrize("cell", [lstm, gru, indrnn], ids=lambda c: c.name)
def test_sums_in_lanes(cell, B, T, rows, monkeypatch) -> None:
    monkeypatch.setattr(surround, "PIECE_ROWS", rows)
    monkeypatch.setattr(surround, "FEWEST_ROWS", 1)
    inputs = layer_problem(cell, B, T, 2, 3, 5)
    leaves = list(inputs.values())
    ours, theirs = layer(**inputs, function=cell), composed(cell, **inputs)
    d = torch.randn(theirs[0].shape, dtype=torch.float64)
    got = torch.autograd.grad(ours[0], leaves, d)
    for a, b in zip(got, torch.autograd.grad(theirs[0], leaves, d), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_products_longer_than_a_block() -> None:
    # product.hpp: blocks of 384 or 768 terms in float64; x has 900 columns, the gates 800
    inputs = layer_problem(lstm, 2, 7, 1, 200, 900)
    ours, theirs = layer(**inputs)[0], composed(lstm, **inputs)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves, d = list(inputs.values()), torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad(ours, leaves, d), torch.autograd.grad(theirs, leaves, d), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradcheck() -> None:
    inputs = layer_problem(lstm, 2, 3, 2, 3, 4)
    assert torch.autograd.gradcheck(layer, tuple(inputs.values()))


@pytest.mark.parametrize("B", [3, 6])
def test_inference_equals_training(B) -> None:
    inputs = layer_problem(lstm, B, 20, 1, 16, 5, torch.float32)
    with torch.no_grad():
        inference = layer(**inputs)
    for a, b in zip(inference, layer(**inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["x", "W", "R", "b", "states"])
def test_gradient_of_one_input_alone(name) -> None:
    inputs = layer_problem(lstm, 2, 5, 2, 3, 4)
    everything = torch.autograd.grad(layer(**inputs)[0].sum(), list(inputs.values()))
    alone = {k: v.detach().requires_grad_(k == name) for k, v in inputs.items()}
    (grad,) = torch.autograd.grad(layer(**alone)[0].sum(), [alone[name]])
    torch.testing.assert_close(grad, everything[list(inputs).index(name)])


def test_zoneout_reads_nothing_behind_the_ends() -> None:
    inputs = layer_problem(lstm, 3, 4, 1, 5, 2)
    lengths, keep = torch.tensor([4, 0, 2]), torch.full((2, 3, 4, 1, 5), 0.25, dtype=torch.float64)
    clean, dirty = (inputs["x"].detach().clone() for _ in range(2))
    behind = torch.arange(4) >= lengths[:, None]
    clean[behind], dirty[behind] = 0.0, torch.nan
    found = []
    for x in (clean, dirty):
        leaves = {**inputs, "x": x.requires_grad_()}
        h, last = layer(**leaves, zoneout=keep, lengths=lengths)
        grads = torch.autograd.grad(h.sum() + last.sum(), list(leaves.values()))
        found.append((h, last, *grads))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) and a.isfinite().all()
