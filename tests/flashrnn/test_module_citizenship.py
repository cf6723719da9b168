"""What programs do with any module: copy it, pickle it, move it, ask for reproducible results."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from cuda_stand_in import install
from problems import problem

import flashrnn
from flashrnn import options
from flashrnn.api import BACKENDS
from flashrnn.cells import gru, slstm
from flashrnn.errors import BackendError

MODULES = {
    "LSTM": lambda: flashrnn.nn.LSTM(5, 8, num_layers=2, bidirectional=True, proj_size=4),
    "GRU": lambda: flashrnn.nn.GRU(5, 8, num_heads=2),
    "RNN": lambda: flashrnn.nn.RNN(5, 8, nonlinearity="relu", bias=False),
    "SLSTM": lambda: flashrnn.nn.SLSTM(5, 8, num_heads=2),
    "RNNLayer": lambda: flashrnn.nn.RNNLayer(5, 8, cell=gru),
}


@pytest.mark.parametrize("name", MODULES)
def test_copies_compute_the_same(name) -> None:
    module, x = MODULES[name](), torch.randn(7, 3, 5)
    module.flatten_parameters()
    output, state = module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = MODULES[name]()
    loaded.load_state_dict(module.state_dict())
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
        loaded,
    ]
    for other in copies:
        assert torch.equal(other(x)[0], output)
        assert not {p.data_ptr() for p in other.parameters()} & {
            p.data_ptr() for p in module.parameters()
        }
    again = pickle.loads(pickle.dumps(state))
    assert torch.equal(module(x, again)[0], module(x, state)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", MODULES)
def test_other_dtypes(name, dtype) -> None:
    module, x = MODULES[name](), torch.randn(7, 3, 5)
    exact = module(x)[0]
    other = copy.deepcopy(module).to(dtype)
    output, _ = other(x.to(dtype))
    assert output.dtype == dtype
    assert (output.double() - exact.double()).abs().max() < 2 * torch.finfo(dtype).eps + 1e-5
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == dtype for p in other.parameters())
    if dtype == torch.float16:
        assert torch.equal(copy.deepcopy(module).half()(x.half())[0], output)
    assert MODULES[name]().to("meta")(x.to("meta"))[0].shape == exact.shape


@pytest.mark.parametrize("cell", [gru, slstm], ids=lambda c: c.name)
def test_results_are_the_same_bits_each_time_and_for_any_threads(cell, request) -> None:
    """So torch.use_deterministic_algorithms(True) has nothing to forbid."""
    p = problem(cell, 37, 40, 2, 33, torch.float32)
    d = torch.randn(len(cell.states), 37, 40, 2, 33)

    def run():
        states, last = flashrnn.flashrnn(**p, function=cell)
        return states, last, *torch.autograd.grad([states], list(p.values()), [d])

    threads = torch.get_num_threads()
    expected = run()
    request.getfixturevalue("poisoned")  # and torch is told to be deterministic
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


ASKED = {
    "gradient_clip": 0.5,
    "gradient_cut": True,
    "output_clip": 0.5,
    "zoneout": torch.ones(1, 2, 3, 1, 4),
    "lengths": torch.tensor([1, 3]),
    "reverse": True,
}


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("name", options.CARRIED)
def test_the_table_of_options_is_what_runs(name, backend, monkeypatch) -> None:
    """A back end in the table gives what the reference gives, and not what it is without."""
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    if backend == "cuda":  # its kernels run in the execution model, products rounded to tf32
        install(monkeypatch)
    near = 5e-3 if backend == "cuda" else 1e-4
    assert backend in options.CARRIED[name]
    asked = {name: ASKED[name]}
    p = problem(gru, 2, 3, 1, 4, torch.float32)

    def results(backend, **rest):
        every, last = flashrnn.flashrnn(**p, function=gru, backend=backend, **rest)
        loss = 9 * every.square().sum() + last.sum()
        return every, last, *torch.autograd.grad(loss, list(p.values()))

    expected, without = results("reference", **asked), results("reference")
    got = results(backend, **asked)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=near, atol=near)
    assert any(not torch.allclose(a, b, rtol=1e-2) for a, b in zip(got, without, strict=True))


@pytest.mark.usefixtures("fresh_kernels")  # and no arguments that were checked
@pytest.mark.parametrize("name", options.CARRIED)
def test_an_option_that_a_back_end_lacks_is_an_error(name, monkeypatch) -> None:
    p = {k: v.detach() for k, v in problem(gru, 2, 3, 1, 4, torch.float32).items()}
    x, W = torch.randn(2, 3, 5), torch.randn(3, 1, 4, 5)
    weights = (p["R"], p["b"], p["states"], gru)
    monkeypatch.setitem(options.CARRIED, name, ("reference",))
    words = f"backend='cpu' does not carry the option {name}; these do: reference"
    with pytest.raises(BackendError, match=words):
        flashrnn.flashrnn(**p, function=gru, backend="cpu", **{name: ASKED[name]})
    with pytest.raises(BackendError, match=words):
        flashrnn.layer(x, W, *weights, backend="cpu", **{name: ASKED[name]})
    flashrnn.flashrnn(**p, function=gru, backend="cpu", reverse=False)
