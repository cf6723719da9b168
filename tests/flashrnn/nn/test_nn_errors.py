"""The most likely mistakes: what they are answered with, word for word."""

import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from flashrnn import ArgumentError, BackendError, FlashRNNError, InputError, OptionError, nn

X = torch.zeros(7, 3, 5)  # [T, B, I]

# What torch.nn answers to the same, word for word and with a kind of error that it would be.
AS_TORCH = {
    "wrong input size": lambda lib: lib.LSTM(5, 4)(torch.zeros(7, 3, 6)),
    "one dimension": lambda lib: lib.LSTM(5, 4)(torch.zeros(5)),
    "four dimensions": lambda lib: lib.RNN(5, 4)(torch.zeros(1, 7, 3, 5)),
    "four dimensions, GRU": lambda lib: lib.GRU(5, 4)(torch.zeros(1, 7, 3, 5)),
    "another dtype": lambda lib: lib.LSTM(5, 4)(X.double()),
    "state of another batch": lambda lib: lib.GRU(5, 4)(X, torch.zeros(1, 7, 4)),
    "state of another size": lambda lib: lib.LSTM(5, 4, 2)(
        X, (torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
    ),
    "state of fewer layers": lambda lib: lib.LSTM(5, 4, bidirectional=True)(
        X, (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))
    ),
    "unbatched state of a batch": lambda lib: lib.GRU(5, 4)(X, torch.zeros(1, 4)),
    "unbatched states of a batch": lambda lib: lib.LSTM(5, 4)(
        X, (torch.zeros(1, 4), torch.zeros(1, 4))
    ),
    "batched state, unbatched input": lambda lib: lib.GRU(5, 4)(X[:, 0], torch.zeros(1, 1, 4)),
    "batched states, unbatched input": lambda lib: lib.LSTM(5, 4)(
        X[:, 0], (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
    ),
    "no steps": lambda lib: lib.GRU(5, 4)(X[:0]),
    "projection of a GRU": lambda lib: lib.GRU(5, 4, proj_size=2),
    "projection that is no smaller": lambda lib: lib.LSTM(5, 4, proj_size=4),
    "negative projection": lambda lib: lib.LSTM(5, 4, proj_size=-1),
    "unknown nonlinearity": lambda lib: lib.RNN(5, 4, nonlinearity="gelu"),
    "dropout above one": lambda lib: lib.LSTM(5, 4, 2, dropout=1.5),
    "hidden size is no integer": lambda lib: lib.LSTM(5, 4.0),
    "hidden size zero": lambda lib: lib.LSTM(5, 0),
    "no layers": lambda lib: lib.LSTM(5, 4, 0),
    "bias is no bool": lambda lib: lib.LSTM(5, 4, 1, 1),
}


@pytest.mark.parametrize("mistake", AS_TORCH)
def test_in_the_words_of_torch(mistake) -> None:
    with pytest.raises(Exception) as theirs:
        AS_TORCH[mistake](torch.nn)
    with pytest.raises(type(theirs.value)) as ours:
        AS_TORCH[mistake](nn)
    assert str(ours.value) == str(theirs.value)
    assert isinstance(ours.value, FlashRNNError)


# Where torch.nn is silent, unclear, or has no such thing: the ten most likely.
OURS = {
    "h alone for an LSTM": (
        lambda: nn.LSTM(5, 4)(X, torch.zeros(1, 3, 4)),
        InputError,
        "LSTM expects hx as a tuple (h_0, c_0), got Tensor",
    ),
    "a tuple for a GRU": (
        lambda: nn.GRU(5, 4)(X, (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))),
        InputError,
        "GRU expects hx as a Tensor h_0, got 2 of them",
    ),
    "an array": (
        lambda: nn.LSTM(5, 4)([[0.0] * 5]),
        InputError,
        "input must be a Tensor or a PackedSequence, got list",
    ),
    "packed rows of another size": (  # torch.nn computes something
        lambda: nn.LSTM(5, 4)(pack_sequence([torch.zeros(3, 6)])),
        InputError,
        "input.size(-1) must be equal to input_size. Expected 5, got 6",
    ),
    "another device": (
        lambda: nn.LSTM(5, 4)(X.to("meta")),
        InputError,
        "Input and parameter tensors are not at the same device, found input tensor at meta and "
        "parameter tensor at cpu",
    ),
    "state of another dtype": (
        lambda: nn.GRU(5, 4)(X, torch.zeros(1, 3, 4).double()),
        InputError,
        "Input and hidden tensors are not alike: input is torch.float32 on cpu, h_0 is "
        "torch.float64 on cpu",
    ),
    "lengths beyond the input": (
        lambda: nn.LSTM(5, 4)(X, lengths=torch.tensor([7, 8, 1])),
        ValueError,
        "lengths must lie between 0 and T = 7, got [7, 8, 1]",
    ),
    "lengths of another batch": (
        lambda: nn.LSTM(5, 4, batch_first=True)(X, lengths=torch.tensor([3, 3, 1])),
        ValueError,
        "lengths [B] is (3,), but there are B = 7 rows",
    ),
    "lengths beside a PackedSequence": (
        lambda: nn.LSTM(5, 4)(pack_sequence([X[:, 0]]), lengths=torch.tensor([3])),
        InputError,
        "lengths come with a PackedSequence: pass either, not both",
    ),
    "heads that do not fit": (
        lambda: nn.LSTM(5, 10, num_heads=4),
        OptionError,
        "num_heads=4 has to divide hidden_size=10",
    ),
    "an unknown back end": (
        lambda: nn.LSTM(5, 4, backend="cudnn"),
        BackendError,
        "backend='cudnn' does not exist; "
        "choose one of ('auto', 'cpu', 'triton', 'cuda', 'reference')",
    ),
    "a back end that does not carry the dtype": (
        lambda: nn.LSTM(5, 4, backend="cpu", dtype=torch.float8_e5m2, device="meta")(
            X.to("meta", torch.float8_e5m2)
        ),
        ValueError,
        'backend="cpu" needs CPU tensors, x is on meta',
    ),
    "a step of a bidirectional module": (
        lambda: nn.GRU(5, 4, bidirectional=True).step(X[0]),
        InputError,
        "step() needs a causal module, but this one is bidirectional",
    ),
    "a step with recurrent dropout": (
        lambda: nn.GRU(5, 4, recurrent_dropout=0.1).step(X[0]),
        InputError,
        "step() cannot keep one mask of recurrent_dropout for a whole sequence: call eval() first, "
        "or train with forward()",
    ),
    "a step of a sequence": (
        lambda: nn.GRU(5, 4).step(X),
        InputError,
        "step: Expected input to be 1D or 2D, got 3D instead",
    ),
    "a negative clip": (
        lambda: nn.GRU(5, 4, gradient_clip=-1.0),
        OptionError,
        "gradient_clip=-1.0 must be positive, or None for no bound",
    ),
    "zoneout of a memory that a GRU lacks": (
        lambda: nn.GRU(5, 4, zoneout=(0.1, 0.1)),
        OptionError,
        "zoneout=(0.1, 0.1) has to be a number from 0 to 1",
    ),
    "zoneout above one": (
        lambda: nn.LSTM(5, 4, zoneout=2),
        OptionError,
        "zoneout=2 has to be a number from 0 to 1, or two, of h and of the memory",
    ),
    "zoneout of an sLSTM's memory": (
        lambda: nn.SLSTM(5, 4, zoneout=(0.1, 0.1)),
        OptionError,
        "zoneout=(0.1, 0.1): c, n and m of an sLSTM share a scale, so only h can be kept for a "
        "step: pass one number",
    ),
    "zoneout with a projection": (
        lambda: nn.LSTM(5, 4, proj_size=2, zoneout=0.1),
        OptionError,
        "zoneout keeps the h that R multiplies, which a projected LSTM never forms: "
        "zoneout=(0.1, 0.1) and proj_size=2 exclude each other",
    ),
    "converting what is not torch.nn's": (
        lambda: nn.from_torch(torch.nn.Linear(3, 3)),
        ArgumentError,
        "from_torch cannot convert Linear: torch.nn.modules.linear.Linear is not torch.nn.LSTM, "
        "GRU or RNN itself",
    ),
}


@pytest.mark.parametrize("mistake", OURS)
def test_in_words_of_our_own(mistake) -> None:
    call, error, words = OURS[mistake]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == words
    assert isinstance(caught.value, FlashRNNError)


@pytest.mark.parametrize("library", [torch.nn, nn])
def test_dropout_of_one_layer_warns(library) -> None:
    with pytest.warns(UserWarning, match="expects num_layers greater than 1") as caught:
        library.LSTM(3, 4, dropout=0.5)
    if library is nn:
        assert caught[0].filename == __file__


def test_a_cell_that_nobody_declared_cannot_be_unpickled() -> None:
    pickled = pickle.dumps(nn.LSTM(3, 4))
    assert b"lstm-" in pickled
    key = nn.LSTM(3, 4).cell.key.encode()
    with pytest.raises(FlashRNNError, match="no cell is called"):
        pickle.loads(pickled.replace(key, b"x" * len(key)))
