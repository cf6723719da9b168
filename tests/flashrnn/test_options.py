"""The options of every recurrence: clips, cuts, masks, lengths, direction."""

import pytest
import torch
from cells_for_tests import ALL
from problems import assert_close, cast, every_cell, layer_problem, problem, results, run
from test_layer import composed

from flashrnn import OptionError, ShapeError, flashrnn, layer
from flashrnn.cells import elman, gru, lstm, slstm
from flashrnn.runtime import surround

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
        "output_clip": 0.2,
        "zoneout": masks,
        "lengths": LENGTHS,
        "reverse": True,
    },
}


# What compiles kernels of its own is tried alone on these, and with all the rest on every cell.
ALONE = ("lstm", "slstm", "indrnn", "shuffled")
OF_KERNELS = ("output", "zoneout")
EVERY_CELL = [
    (cell, name)
    for cell in every_cell()
    for name in OPTIONS
    if name not in OF_KERNELS or cell.name in ALONE
]


def chosen(name: str, cell, T: int, dtype: torch.dtype) -> dict:
    made = {k: v(cell, T, dtype) if v is masks else v for k, v in OPTIONS[name].items()}
    if "lengths" in made:
        made["lengths"] = made["lengths"].clamp(max=T)
    return made


@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize(
    ("cell", "name"), EVERY_CELL, ids=lambda x: x if isinstance(x, str) else x.name
)
def test_kernels_equal_the_reference(cell, name, T) -> None:
    p = problem(cell, B, T, N, D, torch.float32)
    narrow, wide = (chosen(name, cell, T, dtype) for dtype in (torch.float32, torch.float64))
    exact = run(cell, cast(p, torch.float64), "reference", **wide)
    assert_close(run(cell, p, "cpu", **narrow), exact, run(cell, p, "reference", **narrow))


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


def test_a_rate_of_zoneout_is_a_mean() -> None:
    """Between 0 and 1 a state is as much of the old and of the new one; no gradient to the rate."""
    p = problem(gru, B, 1, N, D, torch.float64)
    rate = torch.rand(1, B, 1, N, D, dtype=torch.float64, requires_grad=True)
    new, _ = flashrnn(**p, function=gru)
    for backend in ("cpu", "reference"):
        kept, _ = flashrnn(**p, function=gru, zoneout=rate, backend=backend)
        torch.testing.assert_close(kept, rate * p["states"] + (1 - rate) * new)
        (d_rate,) = torch.autograd.grad(kept.sum(), rate, allow_unused=True)
        assert d_rate is None or (d_rate == 0).all()


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
