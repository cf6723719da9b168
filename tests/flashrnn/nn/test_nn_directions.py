"""Both directions at once: the same bits as one after the other, gradients and all."""

import os
import threading

import pytest
import torch

from flashrnn import nn
from flashrnn.nn import directions
from flashrnn.runtime.threads import thread_count

MODULES = {
    "lstm": lambda: nn.LSTM(5, 32, 2, bidirectional=True, dropout=0.2),
    "proj": lambda: nn.LSTM(5, 32, bidirectional=True, proj_size=8),
    "gru": lambda: nn.GRU(5, 32, bidirectional=True, recurrent_dropout=0.2),
}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seen(monkeypatch):
    """(thread, threads that it may take) of every direction that is run at once with another."""
    found = []
    real = directions._at_once

    def spy(first, second):
        def told(call):
            def run():
                found.append((threading.get_ident(), thread_count()))
                return call()

            return run

        return real(told(first), told(second))

    monkeypatch.setattr(directions, "_at_once", spy)
    return found


def run(make, alone, monkeypatch, initial=True):
    torch.manual_seed(0)
    m = make()
    x = torch.randn(1100, 1, 5, requires_grad=True)
    hx = None
    if initial:
        first = m.num_layers * 2
        hx = torch.randn(first, 1, m.output_size, requires_grad=True)
        hx = (hx, torch.randn(first, 1, 32)) if isinstance(m, nn.LSTM) else hx
    with monkeypatch.context() as patch:
        if alone:
            patch.setattr(directions, "_worthwhile", lambda _: False)
        torch.manual_seed(1)
        output, last = m(x, hx)
        last = last if isinstance(last, tuple) else (last,)
        given = () if hx is None else (hx[0] if isinstance(hx, tuple) else hx,)
        loss = output.square().sum() + last[0].sum()
        grads = torch.autograd.grad(loss, [x, *given, *m.parameters()])
        with torch.no_grad():
            torch.manual_seed(1)
            inference, _ = m(x, hx)
    return [output, *last, inference, *grads]


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_same_bits(module, initial, two_threads, seen, monkeypatch) -> None:
    expected = run(MODULES[module], True, monkeypatch, initial)
    assert not seen
    got = run(MODULES[module], False, monkeypatch, initial)
    layers = 2 if module == "lstm" else 1
    assert len(seen) == 6 * layers  # forward, backward, inference
    assert len({thread for thread, _ in seen}) > 1
    assert {share for _, share in seen} == {1}
    assert thread_count() == 2
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_rows_enough_for_all_threads_go_one_after_the_other(two_threads, seen) -> None:
    nn.GRU(5, 32, bidirectional=True)(torch.randn(1100, 2, 5))
    nn.GRU(5, 32, bidirectional=True)(torch.randn(3, 1, 5))  # too little
    assert not seen


def test_inside_a_mode_nothing_leaves_the_thread(two_threads, seen) -> None:
    m = nn.GRU(5, 32, bidirectional=True)
    x = torch.randn(1100, 1, 5)
    with torch.autograd.graph.save_on_cpu():
        m(x)[0].sum().backward()
    torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False)[0].sum().backward()
    assert not seen


def test_backward_twice_and_after_changes(two_threads, seen) -> None:
    m = nn.GRU(5, 32, bidirectional=True)
    x = torch.randn(1100, 1, 5)
    loss = m(x)[0].sum()
    loss.backward(retain_graph=True)
    once = m.weight_ih_l0.grad.clone()
    loss.backward()
    torch.testing.assert_close(m.weight_ih_l0.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    loss = m(x)[0].sum()
    with torch.no_grad():
        m.weight_ih_l0_reverse.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert seen


def test_an_error_in_either_direction_arrives(two_threads) -> None:
    def fails(x):
        raise ValueError("from a direction")

    def works(x):
        return (x,)

    x = torch.ones(1)
    for pair in ((fails, works), (works, fails)):
        with pytest.raises(ValueError, match="from a direction"):
            directions._at_once(lambda: pair[0](x), lambda: pair[1](x))  # noqa: B023


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_a_second_thread_of_its_own(two_threads) -> None:
    directions._at_once(lambda: 0, lambda: 0)
    child = os.fork()
    if child == 0:
        os._exit(0 if directions._at_once(lambda: 1, lambda: 2) == (1, 2) else 1)
    assert os.waitpid(child, 0)[1] == 0
