"""Every combination of torch.nn's arguments: the same results and gradients from one state dict."""

import itertools
import warnings

import pytest
import torch
from nn_problems import I, assert_same, pair, results

from flashrnn import nn

MODULES = {
    "LSTM": ("LSTM", {}),
    "LSTM-proj": ("LSTM", {"proj_size": 3}),
    "GRU": ("GRU", {}),
    "RNN-tanh": ("RNN", {}),
    "RNN-relu": ("RNN", {"nonlinearity": "relu"}),
}
FLAGS = list(itertools.product([False, True], repeat=5))
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("layers", "dtype"),
    [
        (1, "float32"),
        (3, "float64"),
        pytest.param(3, "float32", marks=pytest.mark.slow),
        pytest.param(1, "float64", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    "flags",
    FLAGS,
    ids=lambda f: (
        "-".join(
            name
            for name, on in zip(("bi", "bias", "first", "packed", "initial"), f, strict=True)
            if on
        )
        or "plain"
    ),
)
def test_equals_torch(module, layers, dtype, flags) -> None:
    bidirectional, bias, batch_first, packed, initial = flags
    name, options = MODULES[module]
    torch.manual_seed(0)
    theirs, ours = pair(
        name,
        I,
        9,
        layers,
        bias=bias,
        batch_first=batch_first,
        bidirectional=bidirectional,
        dtype=DTYPES[dtype],
        **options,
    )
    assert_same(results(ours, packed, initial), results(theirs, packed, initial))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("bias", [False, True])
def test_same_seed_same_weights(module, bias) -> None:
    name, options = MODULES[module]
    made = []
    for library in (torch.nn, nn):
        torch.manual_seed(3)
        made.append(getattr(library, name)(4, 6, 2, bias=bias, bidirectional=True, **options))
    theirs, ours = (m.state_dict() for m in made)
    assert list(ours) == list(theirs)
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key
    assert torch.rand(1) == torch.rand(1, generator=_advanced(name, bias, options))
    theirs_again = getattr(torch.nn, name)(4, 6, 2, bias=bias, bidirectional=True, **options)
    theirs_again.load_state_dict(ours)  # and back


def _advanced(name, bias, options) -> torch.Generator:
    """The random state after torch.nn has drawn its weights."""
    g = torch.Generator().manual_seed(3)
    for p in getattr(torch.nn, name)(
        4, 6, 2, bias=bias, bidirectional=True, **options
    ).parameters():
        torch.empty_like(p).uniform_(generator=g)
    return g


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dropout_draws_the_same_masks(name, bidirectional) -> None:
    found = []
    for module in reversed(pair(name, I, 9, 3, dropout=0.4, bidirectional=bidirectional)):
        torch.manual_seed(5)
        found.append(results(module.train()))
    assert_same(*found)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_unbatched(module, initial, batch_first) -> None:
    name, options = MODULES[module]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, ours = pair(name, I, 9, 2, bidirectional=True, batch_first=batch_first, **options)
        x = torch.randn(4, I)
        hx = None
        if initial:
            states = [torch.randn(4, options.get("proj_size", 9))]
            states += [torch.randn(4, 9)] * (name == "LSTM")
            hx = tuple(states) if name == "LSTM" else states[0]
        for got, expected in zip(_flat(ours(x, hx)), _flat(theirs(x, hx)), strict=True):
            torch.testing.assert_close(got, expected)


def _flat(result) -> list[torch.Tensor]:
    output, last = result
    return [output, *(last if isinstance(last, tuple) else (last,))]


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_packed_of_one_length_and_sorted(name) -> None:
    theirs, ours = pair(name, I, 9, 2, bidirectional=True)
    for lengths, enforce in (([4, 4, 4], True), ([4, 3, 1], True), ([1, 4, 2], False)):
        rows = [torch.randn(n, I) for n in lengths]
        packed = torch.nn.utils.rnn.pack_sequence(rows, enforce_sorted=enforce)
        (got, last), (expected, their_last) = ours(packed), theirs(packed)
        torch.testing.assert_close(got.data, expected.data)
        assert torch.equal(got.batch_sizes, expected.batch_sizes)
        assert (got.sorted_indices is None) == (expected.sorted_indices is None)
        torch.testing.assert_close(last, their_last)
