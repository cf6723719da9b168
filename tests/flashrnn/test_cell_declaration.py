"""What a cell may say, and how it is told that it may not."""

import pytest
import torch
from problems import NAMES, problem

from flashrnn import cell, cell_names, equal, reference, where
from flashrnn.cells import indrnn, slstm
from flashrnn.errors import CellError
from flashrnn.ir.cell import cell_of

HERE = "test_cell_declaration.py:"


def declare(function, **kwargs):
    return cell(**{"gates": "a b", "states": "h c", **kwargs})(function)


def fine(g, s):
    return {"h": g.a, "c": s.c + g.b}


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"gates": ""}, "at least one of its gates"),
        ({"states": ""}, "at least one of its states"),
        ({"gates": "a b a"}, "'a' is named twice"),
        ({"gates": "a-b"}, "'a-b' is not an identifier"),
        ({"recurrent": "a z"}, "recurrent: 'z' is not a gate; gates: a, b"),
        ({"input": "q"}, "input: 'q' is not a gate"),
        ({"recurrence": "sparse"}, "recurrence='sparse' must be 'dense' or 'elementwise'"),
        ({"gates": "a in"}, "gates: 'in' is a keyword of Python"),
        ({"recurrent": "a", "input": "a"}, "the gate 'b' has neither recurrent weights nor an in"),
        ({"recurrent": "", "recurrence": "elementwise"}, "needs at least one recurrent gate"),
    ],
)
def test_declarations_that_contradict_themselves(kwargs, words) -> None:
    with pytest.raises(CellError, match=words) as caught:
        declare(fine, **kwargs)
    assert HERE in str(caught.value)


def test_a_cell_is_known_by_name_and_by_content() -> None:
    first = declare(fine)
    assert "fine" in cell_names()
    assert cell_of("fine") is first
    again = declare(fine)
    assert again.key == first.key
    changed = _renamed("fine", lambda g, s: {"h": g.b, "c": s.c + g.a})
    other = declare(changed)
    assert other.key != first.key
    assert cell_of(first.key).new_states == first.new_states


def _renamed(name, function):
    function.__name__ = name
    return function


def test_constants_are_states_too() -> None:
    built = declare(lambda g, s: {"h": where(equal(s.c, 0.0), g.a, g.b), "c": 1})
    assert repr(built.new_states[1]) == "1"


@pytest.mark.parametrize("name", ["slstm_B2T5N2D8", "slstm_B3T7N1D16_init"])
def test_the_declaration_carries_the_slstm(name, golden) -> None:
    """Four states, maximum and where, against an independent implementation."""
    z = golden(name)
    inputs = [z[k].requires_grad_() for k in ("Wx", "R", "b", "states0")]
    states, _ = reference(*inputs, function=slstm)
    torch.testing.assert_close(states, z["states"], rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad((states[0] * z["cot_h"]).sum(), inputs)
    # the normaliser's own gradient has no meaning where it starts at 0: the branch changes there
    grads[3][2][z["states0"][2] == 0] = z["dstates0"][2][z["states0"][2] == 0]
    for got, key in zip(grads, ("dWx", "dR", "db", "dstates0"), strict=True):
        torch.testing.assert_close(got, z[key], rtol=1e-9, atol=1e-11)


def test_reference_equals_torch_lstm() -> None:
    torch.manual_seed(0)
    peer = torch.nn.LSTM(3, 4, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    expected, _ = peer(x)
    wx = (x @ peer.weight_ih_l0.t()).view(5, 2, 4, 1, 4).transpose(0, 1)
    bias = (peer.bias_ih_l0 + peer.bias_hh_l0).view(4, 1, 4)
    states, _ = reference(wx, peer.weight_hh_l0.view(4, 1, 4, 4), bias)
    torch.testing.assert_close(states[0, :, :, 0].transpose(0, 1), expected)


def test_elementwise_recurrence_in_one_line() -> None:
    arguments = problem(indrnn, 2, 3, 1, 4, torch.float64)
    wx, r, b, s0 = (arguments[k] for k in NAMES[:4])
    h = s0[0, :, 0]
    states, _ = reference(wx, r, b, s0, indrnn)
    for t in range(3):
        h = (wx[:, t, 0] + r[0] * h + b[0]).clamp(min=0)
        torch.testing.assert_close(states[0, :, t], h)
