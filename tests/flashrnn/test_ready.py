"""Calls that are made again: on other tensors, in forms that take turns."""

import itertools

import pytest
import torch
from problems import assert_close, cast, composed, layer_problem, problem, results, run
from scan_problems import assert_close as assert_near
from scan_problems import everything
from scan_problems import problem as scan_problem

from autotune import cache
from flashrnn import attention_reduce, cells, flashrnn, layer, scan_attention
from flashrnn.runtime import kept, layer_kernels, recurrence_kernels
from flashrnn.runtime.ready import Ready
from flashrnn.scan_reference import attention_reference as reference

# Each differs from the first in one thing that a kernel is told with its addresses.
FORMS = (
    {},
    {"reverse": True},
    {"gradient_clip": 0.05},
    {"gradient_clip": 0.5},
    {"gradient_cut": True},
    {"lengths": torch.tensor([4, 0, 2])},
    {"lengths": torch.tensor([1, 4, 3])},
)


@pytest.mark.parametrize("cell", [cells.lstm, cells.indrnn, cells.slstm], ids=lambda c: c.name)
def test_forms_of_a_recurrence_take_turns(cell) -> None:
    for seed in range(2):
        for form in FORMS:
            p = problem(cell, 3, 4, 2, 5, torch.float64, seed)
            for missing in ((), ("states",), ("b",)):
                some = {k: x for k, x in p.items() if k not in missing}
                exact = run(cell, some, "reference", **form)
                assert_close(run(cell, some, "cpu", **form), exact, exact, f"{form} {missing}")


@pytest.mark.parametrize("cell", [cells.lstm, cells.indrnn, cells.slstm], ids=lambda c: c.name)
def test_forms_of_a_layer_take_turns(cell) -> None:
    for seed in range(2):
        for form in FORMS:
            p = layer_problem(cell, 3, 4, 2, 5, 6, seed=seed)
            for missing in ((), ("states",), ("b",)):
                some = {k: x for k, x in p.items() if k not in missing}

                def of_reference(a, form=form):
                    every, last = composed(cell, **a, **form)
                    return every[0], last

                exact = results(of_reference, some)
                got = results(lambda a, form=form: layer(**a, function=cell, **form), some)
                assert_close(got, exact, exact, f"{form} {missing}")


ORDERS = ("as it is", "time outermost", "gaps", "reversed dimensions")


def strided(x: torch.Tensor, how: str) -> torch.Tensor:
    """The same numbers in another order, or with gaps."""
    x = x.detach()
    if how == "time outermost":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif how == "gaps":
        x = torch.cat((x, x), 1)[:, : x.shape[1]]
    elif how == "reversed dimensions":
        x = x.permute(*range(x.dim() - 1, -1, -1)).contiguous()
        x = x.permute(*range(x.dim() - 1, -1, -1))
    return x.requires_grad_()


@pytest.mark.parametrize("first", ["x", "Wx"])
def test_memory_orders_take_turns(first) -> None:
    if first == "x":
        p = layer_problem(cells.gru, 3, 4, 1, 5, 5)
        call = layer
    else:
        p, call = problem(cells.gru, 3, 4, 1, 5, torch.float64), flashrnn
    expected = results(lambda a: call(**a, function="gru", backend="reference"), p)
    for how in ORDERS * 2:
        moved = {**p, first: strided(p[first], how)}
        got = results(lambda a: call(**a, function="gru"), moved)
        assert_close(got, expected, expected, how)


@pytest.mark.parametrize("call", [layer, flashrnn])
def test_memory_orders_of_cotangents_take_turns(call) -> None:
    p = layer_problem(cells.lstm, 3, 4, 1, 5, 5)
    if call is flashrnn:
        p = problem(cells.lstm, 3, 4, 1, 5, torch.float64)
    out = call(**p)[0]
    d = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(0))
    every = list(p.values())
    expected = torch.autograd.grad(call(**p, backend="reference")[0], every, d)
    time_outermost = d.transpose(-4, -3).contiguous().transpose(-4, -3)
    units_outermost = d.transpose(0, -1).contiguous().transpose(0, -1)
    for same in (d, time_outermost, units_outermost, d):
        for a, b in zip(torch.autograd.grad(call(**p)[0], every, same), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_that_somebody_asks_for_take_turns() -> None:
    p = layer_problem(cells.lstm, 2, 3, 1, 4, 5)
    full = results(lambda a: layer(**a), p)
    for asked in (("x",), ("W", "b"), ("R",), ("states",), tuple(p)) * 2:
        some = {k: x.detach().requires_grad_(k in asked) for k, x in p.items()}
        h, last = layer(**some)
        for used in (h, last):
            used.sum().backward(retain_graph=True)
        assert [k for k, x in some.items() if x.grad is not None] == [k for k in p if k in asked]
    again = results(lambda a: layer(**a), p)
    assert all(torch.equal(full[k], again[k]) for k in full)


SCANS = (
    {"B": 2},
    {"B": 1},
    {"B": 1, "reverse": True},
    {"B": 1, "cu_seqlens": torch.tensor([0, 3, 3, 9])},
    {"B": 1, "cu_seqlens": torch.tensor([0, 9])},
)


@pytest.mark.parametrize("state", [True, False])
def test_forms_of_attention_take_turns(state) -> None:
    """With gradients of the last state, of all results and of the outputs."""
    for seed, form in itertools.product(range(2), SCANS):
        options = {k: x for k, x in form.items() if k != "B"}
        G = len(options["cu_seqlens"]) - 1 if "cu_seqlens" in options else None
        s, v, before = scan_problem(form["B"], 9, 2, 5, G=G, state=state, seed=seed)
        for how_s, how_v in [(h, ORDERS[0]) for h in ORDERS] + [(ORDERS[0], h) for h in ORDERS]:
            moved = strided(s, how_s), strided(v, how_v), before
            for outputs in (slice(1, 4), slice(0, 4), slice(0, 1)):
                expected = everything(reference, *moved, outputs, **options)
                with torch.no_grad():
                    alone = scan_attention(*moved, **options)[0]
                got = everything(scan_attention, *moved, outputs, **options)
                assert_near(got, expected, 1e-10)
                torch.testing.assert_close(alone, expected["o"])


def test_memory_orders_of_attentions_cotangents_take_turns() -> None:
    s, v, before = scan_problem(2, 9, 2, 5)
    inputs = (s, v, *before)
    d = torch.randn(v.shape, dtype=v.dtype, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(reference(s, v, before)[0], inputs, d)
    for how in ORDERS * 2:
        got = torch.autograd.grad(scan_attention(s, v, before)[0], inputs, strided(d, how).detach())
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_attention_of_the_whole_sequence_takes_turns() -> None:
    s, v, before = scan_problem(2, 9, 2, 5)
    expected = reference(s, v, before)[0][:, -1]
    for _ in range(2):
        torch.testing.assert_close(scan_attention(s, v, before)[0][:, -1], expected)
        torch.testing.assert_close(attention_reduce(s, v, before)[0], expected)


def test_a_call_is_made_again_and_not_anew(monkeypatch) -> None:
    """What costs time is done once for a form; another number of steps is another form."""
    made = []
    init = Ready.__init__
    monkeypatch.setattr(Ready, "__init__", lambda self, *a: (made.append(a), init(self, *a))[1])
    for T, expected in ((11, 4), (11, 4), (12, 8)):
        p = cast(layer_problem(cells.lstm, 2, T, 1, 4, 5), torch.float32)
        results(lambda a: layer(**a), p)
        results(
            lambda a: flashrnn(**a), cast(problem(cells.lstm, 2, T, 1, 4, torch.float32),
                                          torch.float32)
        )  # fmt: skip
        assert len(made) == expected


def test_what_was_learned_since_is_asked_for(monkeypatch) -> None:
    """A tuned tiling may need another kernel."""
    p = layer_problem(cells.lstm, 2, 3, 1, 4, 5)
    results(lambda a: layer(**a), p)
    before = len(layer_kernels._forward_forms)
    generation = cache.generation()
    monkeypatch.setattr(cache, "generation", lambda: generation + 1)
    results(lambda a: layer(**a), p)
    assert len(layer_kernels._forward_forms) == before + 1


def test_ever_new_forms_do_not_fill_the_memory(monkeypatch) -> None:
    monkeypatch.setattr(kept, "MOST", 3)
    for T in range(1, 9):
        p = problem(cells.elman, 1, T, 1, 2, torch.float32)
        run(cells.elman, p, "cpu")
    assert len(recurrence_kernels._forward_forms) <= 3
    assert len(recurrence_kernels._backward_forms) <= 3
