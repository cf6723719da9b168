"""convert() and from_torch(): models keep what they compute and how they train."""

import copy

import pytest
import torch
from torch import nn as torch_nn

import flashrnn
from flashrnn import nn


class Seq2Seq(torch_nn.Module):
    """Translation as in Bahdanau et al. 2015: a bidirectional encoder, a decoder that attends."""

    def __init__(self, words: int = 11, size: int = 12) -> None:
        super().__init__()
        self.embed = torch_nn.Embedding(words, size)
        self.encoder = torch_nn.LSTM(
            size, size, num_layers=2, bidirectional=True, batch_first=True, dropout=0.0
        )
        self.bridge = torch_nn.Linear(2 * size, size)
        self.decoder = torch_nn.GRU(3 * size, size, batch_first=True)
        self.query = torch_nn.Linear(size, 2 * size)
        self.out = torch_nn.Linear(size, words)

    def forward(
        self, source: torch.Tensor, lengths: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        packed = torch_nn.utils.rnn.pack_padded_sequence(
            self.embed(source), lengths, batch_first=True, enforce_sorted=False
        )
        encoded, (h, _) = self.encoder(packed)
        keys, _ = torch_nn.utils.rnn.pad_packed_sequence(encoded, batch_first=True)
        beyond = torch.arange(keys.shape[1])[None] >= lengths[:, None]
        state = torch.tanh(self.bridge(torch.cat((h[-2], h[-1]), 1)))[None]
        words = []
        for t in range(target.shape[1]):
            scores = torch.einsum("bd,btd->bt", self.query(state[0]), keys)
            weights = scores.masked_fill(beyond, -torch.inf).softmax(1)
            context = torch.einsum("bt,btd->bd", weights, keys)
            step = torch.cat((self.embed(target[:, t]), context), 1)[:, None]
            output, state = self.decoder(step, state)
            words.append(self.out(output[:, 0]))
        return torch.stack(words, 1)


class Acoustic(torch_nn.Module):
    """A spectrogram's convolution, then bidirectional layers in a Sequential of their own."""

    class Layer(torch_nn.Module):
        def __init__(self, inputs: int, size: int) -> None:
            super().__init__()
            self.norm = torch_nn.LayerNorm(inputs)
            self.rnn = torch_nn.GRU(inputs, size, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(torch_nn.functional.gelu(self.norm(x)))[0]

    def __init__(self, bands: int = 16, size: int = 10, letters: int = 5) -> None:
        super().__init__()
        self.convolution = torch_nn.Conv1d(bands, bands, 3, stride=2, padding=1)
        self.layers = torch_nn.Sequential(self.Layer(bands, size), self.Layer(2 * size, size))
        self.top = torch_nn.LSTM(2 * size, size, proj_size=4)
        self.letters = torch_nn.Linear(4, letters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, bands, T] -> [T / 2, B, letters]
        x = self.convolution(x).permute(2, 0, 1)
        return self.letters(self.top(self.layers(x))[0]).log_softmax(2)


def seq2seq_loss(model) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    source = torch.randint(11, (6, 9), generator=g)
    lengths = torch.tensor([9, 4, 7, 1, 9, 5])
    predicted = model(source, lengths, torch.roll(source, 1, 1)[:, :5])
    return torch_nn.functional.cross_entropy(predicted.flatten(0, 1), source[:, :5].flatten())


def acoustic_loss(model) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, 24, generator=g)
    targets = torch.randint(1, 5, (4, 3), generator=g)
    steps, letters = torch.full((4,), 12), torch.full((4,), 3)
    return torch_nn.functional.ctc_loss(model(x), targets, steps, letters)


MODELS = {
    "seq2seq": (Seq2Seq, seq2seq_loss, ["encoder", "decoder"]),
    "acoustic": (Acoustic, acoustic_loss, ["layers.0.rnn", "layers.1.rnn", "top"]),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_keeps_its_outputs_and_its_training(name) -> None:
    build, loss, paths = MODELS[name]
    torch.manual_seed(0)
    theirs = build()
    ours = copy.deepcopy(theirs)
    before = list(ours.parameters())
    report = nn.convert(ours)
    assert list(report.replaced) == paths and not report.left
    assert all(a is b for a, b in zip(ours.parameters(), before, strict=True))
    assert not any(isinstance(m, torch_nn.RNNBase) for m in ours.modules())
    with torch.no_grad():
        assert abs(loss(ours) - loss(theirs)) < 1e-5
    curves = []
    for model in (ours, theirs):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        curve = []
        for _ in range(30):
            optimizer.zero_grad()
            value = loss(model)
            value.backward()
            optimizer.step()
            curve.append(value.item())
        curves.append(torch.tensor(curve))
    assert curves[1][-1] < 0.7 * curves[1][0]  # it does train
    torch.testing.assert_close(*curves, rtol=1e-4, atol=1e-5)
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_outputs_agree_number_by_number(name) -> None:
    torch.manual_seed(1)
    theirs = MODELS[name][0]()
    ours = copy.deepcopy(theirs)
    nn.convert(ours)
    if name == "seq2seq":
        inputs = (
            torch.randint(11, (6, 9)),
            torch.tensor([9, 4, 7, 1, 9, 5]),
            torch.ones(6, 4).int(),
        )
    else:
        inputs = (torch.randn(4, 16, 24),)
    assert (ours(*inputs) - theirs(*inputs)).abs().max() < 1e-5


class Subclass(torch_nn.LSTM):
    pass


def test_what_is_left_is_told_why() -> None:
    hooked = torch_nn.GRU(3, 4)
    hooked.register_forward_hook(lambda *_: None)
    normed = torch_nn.utils.parametrizations.weight_norm(torch_nn.LSTM(3, 4), "weight_hh_l0")
    pruned = torch_nn.LSTM(3, 4)
    weight = pruned.weight_hh_l0
    del pruned.weight_hh_l0
    pruned.weight_hh_l0 = weight.detach()
    shared = torch_nn.RNN(3, 4, nonlinearity="relu", dropout=0.0)
    model = torch_nn.ModuleDict(
        {
            "hooked": hooked,
            "normed": normed,
            "pruned": pruned,
            "subclass": Subclass(3, 4),
            "cell": torch_nn.LSTMCell(3, 4),
            "elsewhere": torch_nn.LSTM(3, 4, device="meta"),
            "one": shared,
            "two": shared,
            "list": torch_nn.ModuleList([torch_nn.LSTM(3, 4).double()]),
        }
    )
    report = nn.convert(model.eval())
    assert report.replaced == {
        "one": "RNN(3, 4, nonlinearity=relu)",
        "two": "RNN(3, 4, nonlinearity=relu)",
        "list.0": "LSTM(3, 4)",
    }
    assert model["one"] is model["two"] and not model["one"].training
    assert set(report.left) == {"hooked", "normed", "pruned", "subclass", "cell", "elsewhere"}
    assert report.left["hooked"] == "it has hooks, which would be lost (forward_hooks)"
    assert "is not torch.nn.LSTM, GRU or RNN itself" in report.left["normed"]
    assert report.left["pruned"] == "weight_hh_l0 is no parameter of its own"
    assert report.left["subclass"].endswith("Subclass is not torch.nn.LSTM, GRU or RNN itself")
    assert report.left["cell"] == "LSTMCell is one step; the loop around it would have to go too"
    assert report.left["elsewhere"] == "no fused kernels for device meta"
    assert "replaced list.0: LSTM(3, 4)\nleft hooked: it has hooks" in str(report)
    assert str(nn.convert(torch_nn.Linear(2, 2))) == "no recurrent modules found"
    assert nn.convert(torch_nn.LSTM(3, 4)).left == {"": "it is the model itself: use from_torch"}


def test_from_torch_takes_over_everything() -> None:
    theirs = torch_nn.LSTM(3, 4, 2, bias=False, batch_first=True, dropout=0.3, bidirectional=True)
    theirs.weight_hh_l0.requires_grad_(False)
    state = torch.get_rng_state()
    ours = nn.from_torch(theirs.eval(), backend="reference")
    assert torch.equal(state, torch.get_rng_state())
    assert repr(ours) == (
        "LSTM(3, 4, num_layers=2, bias=False, batch_first=True, dropout=0.3, bidirectional=True, "
        "backend=reference)"
    )
    assert not ours.training and not ours.weight_hh_l0.requires_grad
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    assert all(a is b for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def test_a_backend_may_be_named() -> None:
    model = torch_nn.Sequential(torch_nn.LSTM(3, 4, device="meta"))
    assert not nn.convert(model).replaced
    assert "0" in nn.convert(model, backend="reference").replaced
    assert flashrnn.nn.LSTM(3, 4).backend == "auto"
