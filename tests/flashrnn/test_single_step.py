"""One time step of a few rows, as in streaming: weights are read where they lie."""

import problems
import pytest
import torch
from problems import assert_close, cast, every_cell, layer_problem, problem, results, run

from autotune.device import Device
from flashrnn import layer
from flashrnn.cells import gru, lstm
from flashrnn.runtime import surround

CELLS = pytest.mark.parametrize("cell", every_cell(), ids=lambda c: c.name)


def check(cell, arguments: problems.Tensors, **options) -> None:
    exact = run(cell, cast(arguments, torch.float64), "reference", **options)
    eager = run(cell, arguments, "reference", **options)
    assert_close(run(cell, arguments, "cpu", **options), exact, eager, str(options))


def check_layer(cell, arguments: problems.Tensors) -> None:
    def composed(a):
        every, last = problems.composed(cell, **a)
        return every[0], last

    exact, eager = results(composed, cast(arguments, torch.float64)), results(composed, arguments)
    assert_close(results(lambda a: layer(**a, function=cell), arguments), exact, eager)


@pytest.mark.parametrize(("B", "N", "D"), [(1, 2, 5), (7, 1, 33), (16, 2, 17), (17, 1, 17)])
@CELLS
def test_every_cell(cell, B, N, D, poisoned) -> None:
    check(cell, problem(cell, B, 1, N, D, torch.float32))


@pytest.mark.parametrize(("B", "I"), [(1, 3), (3, 70), (8, 3), (9, 70)])
@CELLS
def test_layers(cell, B, I, poisoned) -> None:
    check_layer(cell, layer_problem(cell, B, 1, 2, 21, I, torch.float32))


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set_of_this_machine(isa, dtype, monkeypatch) -> None:
    device = Device.current()
    if isa not in device.isas:
        pytest.skip(f"this processor has no {isa}")
    narrowed = device.with_isa(isa)
    monkeypatch.setattr(Device, "current", staticmethod(lambda: narrowed))
    check(gru, problem(gru, 1, 1, 1, 9, dtype))
    check_layer(lstm, layer_problem(lstm, 5, 1, 1, 150, 19, dtype))


def test_a_step_of_nothing_and_backwards(poisoned) -> None:
    p = problem(lstm, 5, 1, 1, 20, torch.float32)
    check(lstm, p, lengths=torch.tensor([1, 0, 1, 1, 0]), reverse=True)
    del p["states"], p["b"]
    check(lstm, p)


def test_steps_give_the_sequence() -> None:
    p = layer_problem(lstm, 2, 6, 1, 40, 12, torch.float32)
    weights = {k: p[k] for k in ("W", "R", "b")}
    with torch.no_grad():
        expected, last = layer(p["x"], **weights, states=p["states"])
        states, steps = p["states"], []
        for t in range(6):
            h, states = layer(p["x"][:, t : t + 1], **weights, states=states)
            steps.append(h)
    torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(states, last, rtol=1e-5, atol=1e-6)


def test_pieces_of_one_step_pack_once(monkeypatch) -> None:
    """More steps follow, so the first one is no single step."""
    monkeypatch.setattr(surround, "PIECE_ROWS", 2)
    check_layer(lstm, layer_problem(lstm, 2, 3, 1, 20, 5, torch.float32))
