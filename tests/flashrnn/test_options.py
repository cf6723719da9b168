"""The options of every recurrence: clips, cuts, masks, lengths, direction."""

import pytest
import torch
from cells_for_tests import ALL
from problems import cast, problem
from test_layer import composed, layer_problem

from flashrnn import OptionError, ShapeError, flashrnn, layer
from flashrnn.cells import elman, gru, lstm, slstm
from flashrnn.runtime import surround
from flashrnn.tolerance import compare

CELLS = [lstm, gru, elman, slstm, *ALL]
B, T, N, D = 5, 6, 2, 5
LENGTHS = torch.tensor([6, 0, 3, 1, 5])


def masks(cell, T: int, dtype: torch.dtype) -> torch.Tensor:
    g = torch.Generator().manual_seed(7)
    return (torch.rand(len(cell.states), B, T, N, D, generator=g) < 0.3).to(dtype)


OPTIONS = {
    "clip": {"gradient_clip": 0.05},
    "cut": {"gradient_cut": True},
    "output": {"output_clip": 0.2},
    "lengths": {"lengths": LENGTHS},
    "reverse": {"reverse": True},
    "zoneout": {"zoneout": masks},
    "all": {
        "gradient_clip": 0.05,
        "gradient_cut": True,
        "output_clip": 0.3,
        "zoneout": masks,
        "lengths": LENGTHS,
        "reverse": True,
    },
}


def chosen(name: str, cell, T: int, dtype: torch.dtype) -> dict:
    made = {k: v(cell, T, dtype) if v is masks else v for k, v in OPTIONS[name].items()}
    if "lengths" in made:
        made["lengths"] = made["lengths"].clamp(max=T)
    return made


def results(call, arguments: dict) -> dict[str, torch.Tensor]:
    """Outputs, and gradients for random cotangents of both."""
    outputs = call(arguments)
    g = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in outputs]
    loss = sum(((x * c.to(x)).sum() for x, c in zip(outputs, cotangents, strict=True)))
    grads = torch.autograd.grad(loss, list(arguments.values()), materialize_grads=True)
    named = {f"d_{k}": v for k, v in zip(arguments, grads, strict=True)}
    return {"every": outputs[0].detach(), "last": outputs[1].detach(), **named}


@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("cell", CELLS, ids=lambda c: c.name)
def test_kernels_equal_the_reference(cell, name, T) -> None:
    p = problem(cell, B, T, N, D, torch.float32)

    def run(backend: str):
        def call(arguments):
            dtype = arguments["Wx"].dtype
            return flashrnn(
                **arguments, function=cell, backend=backend, **chosen(name, cell, T, dtype)
            )

        return call

    got = results(run("cpu"), p)
    exact = results(run("reference"), cast(p, torch.float64))
    eager = results(run("reference"), p)
    for key in got:
        result = compare(key, got[key], exact[key], eager[key])
        assert result.ok, str(result)


@pytest.mark.parametrize("B", [2, 5])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("cell", [lstm, gru, ALL[1]], ids=lambda c: c.name)
def test_a_layer_has_them_too(cell, name, B, monkeypatch) -> None:
    monkeypatch.setattr(surround, "PIECE_ROWS", 4)
    p = layer_problem(cell, B, T, N, D, 7)
    options = chosen(name, cell, T, torch.float64)
    if "lengths" in options:
        options["lengths"] = options["lengths"][:B]
    if "zoneout" in options:
        options["zoneout"] = options["zoneout"][:, :B]
    ours = results(lambda a: layer(**a, function=cell, **options), p)
    expected = results(lambda a: composed(cell, **a, **options), p)
    for key in expected:
        torch.testing.assert_close(ours[key], expected[key], rtol=1e-9, atol=1e-11, msg=key)


@pytest.mark.parametrize("entry", ["flashrnn", "layer"])
@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_past_the_end_is_read(entry, reverse) -> None:
    """NaN in the padding of inputs and cotangents reaches no result."""
    past = torch.arange(T)[None] >= LENGTHS[:, None]
    if entry == "flashrnn":
        p = problem(lstm, B, T, N, D, torch.float64)
        call, name = flashrnn, "Wx"
    else:
        p = layer_problem(lstm, B, T, N, D, 7)
        call, name = layer, "x"
    with torch.no_grad():
        p[name][past] = torch.nan
    every, last = call(**p, lengths=LENGTHS, reverse=reverse)
    h = every[0] if entry == "flashrnn" else every
    assert (h[past] == 0).all() and last.isfinite().all()
    d_every = torch.randn_like(every)
    (d_every[:, past] if entry == "flashrnn" else d_every)[...].nan_to_num_()
    if entry == "flashrnn":
        d_every[:, past] = torch.nan
    else:
        d_every[past] = torch.nan
    grads = torch.autograd.grad((every, last), list(p.values()), (d_every, torch.ones_like(last)))
    for key, grad in zip(p, grads, strict=True):
        assert grad.isfinite().all(), key
    assert (grads[0][past] == 0).all()


@pytest.mark.parametrize("cell", [lstm, gru, slstm], ids=lambda c: c.name)
def test_reverse_is_a_flip_of_each_row(cell) -> None:
    p = {k: v.detach() for k, v in problem(cell, B, T, N, D, torch.float64).items()}
    every, last = flashrnn(**p, function=cell, lengths=LENGTHS, reverse=True)
    for b, end in enumerate(LENGTHS.tolist()):
        row = {**p, "Wx": p["Wx"][b : b + 1, :end].flip(1), "states": p["states"][:, b : b + 1]}
        alone, alone_last = flashrnn(**row, function=cell)
        torch.testing.assert_close(every[:, b, :end], alone[:, 0].flip(1), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(last[:, b], alone_last[:, 0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["lengths", "reverse", "output", "zoneout"])
@pytest.mark.parametrize("cell", [lstm, gru, elman], ids=lambda c: c.name)
def test_gradcheck(cell, name) -> None:
    p = problem(cell, B, 3, 1, 3, torch.float64)
    options = chosen(name, cell, 3, torch.float64)
    if "zoneout" in options:
        options["zoneout"] = options["zoneout"][:, :, :, :1, :3]

    def run(*tensors):
        return flashrnn(**dict(zip(p, tensors, strict=True)), function=cell, **options)

    assert torch.autograd.gradcheck(run, tuple(p.values()))


def test_threads_and_runs_agree() -> None:
    p = layer_problem(gru, 9, 70, 2, 40, 33, torch.float32)
    lengths = torch.randint(1, 71, (9,), generator=torch.Generator().manual_seed(0))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(
                results(lambda a: layer(**a, function=gru, lengths=lengths, reverse=True), p)
            )
    finally:
        torch.set_num_threads(before)
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), key
        assert torch.equal(value, found[2][key]), key


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"gradient_clip": 0.0}, OptionError, "gradient_clip=0.0 must be positive"),
        ({"gradient_clip": float("nan")}, OptionError, "gradient_clip=nan must be positive"),
        ({"output_clip": -1.0}, OptionError, "output_clip=-1.0 must be positive and finite"),
        ({"gradient_cut": 1}, OptionError, "gradient_cut=1 must be True or False"),
        ({"reverse": "yes"}, OptionError, "reverse='yes' must be True or False"),
        ({"lengths": [1] * B}, TypeError, "lengths must be a tensor of integers, got list"),
        ({"lengths": torch.ones(B)}, TypeError, "got torch.float32"),
        ({"lengths": torch.ones(2).long()}, ShapeError, "there are B = 5 rows"),
        ({"lengths": torch.full((B,), 7)}, ShapeError, "between 0 and T = 6"),
        ({"zoneout": torch.ones(1, B, T, N, D)}, ShapeError, "zoneout"),
    ],
)
def test_bad_options(options, error, words) -> None:
    p = problem(lstm, B, T, N, D, torch.float32)
    with pytest.raises(error, match=words.replace("(", "\\(")):
        flashrnn(**p, **options)
