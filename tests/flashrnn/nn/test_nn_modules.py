"""What our modules have beyond torch.nn's: heads, masks, clips, lengths, any cell, 16 bits."""

import copy
import pickle
import re

import pytest
import torch
from cells_for_tests import ALL
from nn_problems import BOUND, LENGTHS

import flashrnn
from flashrnn import nn
from flashrnn.cells import gru, lstm, slstm
from flashrnn.tolerance import relative_error

B, T, I = 5, 7, 6


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert relative_error(got.detach(), expected.detach()) <= BOUND[expected.dtype]


def test_heads_are_modules_side_by_side() -> None:
    """Two heads are two modules on the same input, their outputs side by side."""
    torch.manual_seed(0)
    m = nn.LSTM(I, 8, num_heads=2, proj_size=4)
    assert m.weight_hh_l0.shape == (32, 2) and m.weight_hr_l0.shape == (4, 4)
    x = torch.randn(T, B, I)
    h0, c0 = torch.randn(1, B, 4), torch.randn(1, B, 8)
    got, (h, c) = m(x, (h0, c0))
    for n in range(2):
        alone = torch.nn.LSTM(I, 4, proj_size=2)
        with torch.no_grad():
            alone.weight_ih_l0.copy_(m.weight_ih_l0.view(4, 2, 4, I)[:, n].reshape(16, I))
            alone.weight_hh_l0.copy_(m.weight_hh_l0.view(4, 2, 4, 2)[:, n].reshape(16, 2))
            alone.bias_ih_l0.copy_(m.bias_ih_l0.view(4, 2, 4)[:, n].reshape(16))
            alone.bias_hh_l0.copy_(m.bias_hh_l0.view(4, 2, 4)[:, n].reshape(16))
            alone.weight_hr_l0.copy_(m.weight_hr_l0.view(2, 2, 4)[n])
        rows, units = slice(2 * n, 2 * n + 2), slice(4 * n, 4 * n + 4)
        states = (h0[:, :, rows].contiguous(), c0[:, :, units].contiguous())
        expected, (h1, c1) = alone(x, states)
        for a, b in ((got[..., rows], expected), (h[..., rows], h1), (c[..., units], c1)):
            same(a, b)


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.SLSTM])
def test_lengths_equal_a_packed_sequence(make) -> None:
    torch.manual_seed(0)
    m = make(I, 8, 2, bidirectional=True)
    x = torch.randn(T, B, I)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    past = torch.arange(T)[:, None] >= LENGTHS
    x[past] = torch.nan  # nothing there is read
    got, last = m(x, lengths=LENGTHS)
    expected, their_last = m(packed)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(expected)
    assert (got[past] == 0).all()
    same(got, expected)
    for a, b in zip(last, their_last, strict=True):
        same(a, b)


def test_an_empty_sequence_ends_where_it_begins() -> None:
    for options in ({}, {"proj_size": 3}):
        m = nn.LSTM(I, 8, bidirectional=True, **options)
        states = (torch.randn(2, B, options.get("proj_size", 8)), torch.randn(2, B, 8))
        lengths = torch.tensor([0, 7, 3, 0, 1])
        output, last = m(torch.randn(T, B, I), states, lengths=lengths)
        assert (output[:, [0, 3]] == 0).all()
        for before, after in zip(states, last, strict=True):
            assert torch.equal(before[:, [0, 3]], after[:, [0, 3]])


@pytest.mark.parametrize("cell", [lstm, gru, slstm, *ALL], ids=lambda c: c.name)
def test_any_cell(cell) -> None:
    """RNNLayer hands its parameters to flashrnn.layer in the cell's own order."""
    torch.manual_seed(0)
    m = nn.RNNLayer(I, 8, cell=cell, num_heads=2, batch_first=True, dtype=torch.float64)
    x = torch.randn(B, T, I, dtype=torch.float64)
    got, last = m(x)
    G = len(cell.gates)
    W = m.weight_ih_l0.view(len(cell.input), 2, 4, I)
    R = m.weight_hh_l0.view(len(cell.recurrent), 2, 4, -1)
    R = R if cell.recurrence == "dense" else R[..., 0]
    unit = m.unit_l0.view(-1, 2, 4) if cell.parameters else None
    Wx = torch.einsum("bti,gndi->btgnd", x, W)
    every, final = flashrnn.flashrnn(Wx, R, m.bias_l0.view(G, 2, 4), None, cell, "reference", unit)
    same(got, every[0].flatten(2))
    finals = last if isinstance(last, tuple) else (last,)
    for s, state in enumerate(finals):
        same(state, final[s].transpose(0, 1).flatten(2))
    got.sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    assert nn.RNNLayer(I, 8, cell=cell.name).cell is flashrnn.ir.cell.cell_of(cell.name)


def test_slstm_starts_as_its_authors_start_it() -> None:
    torch.manual_seed(0)
    m = nn.SLSTM(400, 64, num_layers=3, num_heads=4)
    assert m.weight_ih_l0.std().item() == pytest.approx((2 / (5 * 400)) ** 0.5, rel=0.05)
    assert (m.weight_hh_l0 == 0).all()
    for layer, power in ((0, 0.3), (1, 0.95), (2, 1.6)):
        i, f, z, o = getattr(m, f"bias_l{layer}").view(4, 4, 16)
        assert all((b == 0).all() for b in (i, z, o))
        expected = 5 - 12 * (torch.arange(16) / 15) ** power
        torch.testing.assert_close(f, expected.expand(4, 16))
    assert isinstance(m(torch.randn(3, 2, 400))[1], tuple)


class TestZoneout:
    def test_keeps_states_in_training(self) -> None:
        torch.manual_seed(0)
        m = nn.LSTM(I, 8, zoneout=(0.5, 0.0))
        x = torch.randn(30, B, I)
        h, _ = m(x)
        kept = (h[1:] == h[:-1]).float().mean().item()
        assert kept == pytest.approx(0.5, abs=0.1)
        assert not torch.equal(m(x)[0], h)

    def test_is_its_expectation_at_inference(self) -> None:
        torch.manual_seed(0)
        m = nn.LSTM(I, 8, zoneout=(0.3, 0.1)).eval()
        x = torch.randn(4, B, I)
        got, (_, last) = m(x)
        h = c = torch.zeros(B, 8)
        for t in range(4):
            gates = x[t] @ m.weight_ih_l0.T + h @ m.weight_hh_l0.T + m.bias_ih_l0 + m.bias_hh_l0
            i, f, z, o = gates.chunk(4, 1)
            new = f.sigmoid() * c + i.sigmoid() * z.tanh()
            h = 0.3 * h + 0.7 * o.sigmoid() * new.tanh()
            c = 0.1 * c + 0.9 * new
            same(got[t], h)
        same(last[0], c)

    def test_everything_kept_is_a_constant(self) -> None:
        m = nn.GRU(I, 8, zoneout=1.0)
        assert (m(torch.randn(T, B, I))[0] == 0).all()


def test_recurrent_dropout_is_a_mask_on_the_recurrent_weights() -> None:
    torch.manual_seed(0)
    m = nn.GRU(I, 8, recurrent_dropout=0.5)
    x = torch.randn(T, B, I)
    torch.manual_seed(1)
    got = m(x)[0]
    torch.manual_seed(1)
    masked = torch.nn.functional.dropout(m.weight_hh_l0, 0.5)
    plain = nn.GRU(I, 8)
    plain.load_state_dict(m.state_dict() | {"weight_hh_l0": masked})
    same(got, plain(x)[0])
    same(m.eval()(x)[0], torch.nn.GRU.forward(_torch_gru(m), x)[0])


def _torch_gru(m) -> torch.nn.GRU:
    theirs = torch.nn.GRU(I, 8)
    theirs.load_state_dict(m.state_dict())
    return theirs


def test_gradient_clip_bounds_what_flows_back() -> None:
    torch.manual_seed(0)
    x = torch.randn(T, B, I)
    clipped, free = nn.RNN(I, 8, gradient_clip=1e-3), nn.RNN(I, 8)
    free.load_state_dict(clipped.state_dict())
    grads = []
    for m in (clipped, free):
        h0 = torch.zeros(1, B, 8, requires_grad=True)
        grads.append(torch.autograd.grad(m(x, h0)[0][-1].sum(), h0)[0])
    assert grads[0].abs().max() <= 1e-3 < grads[1].abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_16_bits_are_stored_and_float32_computed(make, dtype) -> None:
    torch.manual_seed(0)
    m = make(I, 8, bias=False, bidirectional=True, dtype=dtype)  # two biases add up in 16 bits
    wide = copy.deepcopy(m).float()
    x = torch.randn(T, B, I, dtype=dtype)
    got, expected = m(x)[0], wide(x.float())[0]
    assert got.dtype == dtype and torch.equal(got, expected.to(dtype))
    got.float().square().sum().backward()
    expected.square().sum().backward()
    for p, q in zip(m.parameters(), wide.parameters(), strict=True):
        assert p.grad.dtype == dtype
        assert relative_error(p.grad, q.grad) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_backends_agree(make) -> None:
    torch.manual_seed(0)
    m = make(I, 8, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64)
    found = []
    for m.backend in ("auto", "cpu", "reference"):
        h = m(x, lengths=LENGTHS)[0]
        found.append([h, *torch.autograd.grad(h.sum(), list(m.parameters()))])
    for a, b, c in zip(*found, strict=True):
        assert torch.equal(a, b)
        same(b, c)


def test_copies_pickles_and_moves() -> None:
    m = nn.SLSTM(I, 8, num_heads=2, zoneout=0.1).eval()
    x = torch.randn(T, B, I)
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert other.cell is m.cell and repr(other) == repr(m)
        assert torch.equal(other(x)[0], m(x)[0])
    assert next(m.double().parameters()).dtype == torch.float64
    assert m(x.double())[0].dtype == torch.float64
    assert m.half()(x.half())[0].dtype == torch.float16
    m.flatten_parameters()


def test_parameters_may_be_replaced_and_parametrized() -> None:
    torch.manual_seed(0)
    m = nn.LSTM(I, 8)
    x = torch.randn(T, B, I)
    before = m(x)[0]
    m.weight_hh_l0 = torch.nn.Parameter(torch.zeros(32, 8))
    assert not torch.equal(m(x)[0], before)
    torch.nn.utils.parametrizations.weight_norm(m, "weight_ih_l0")
    m(x)[0].sum().backward()
    assert m.parametrizations.weight_ih_l0.original0.grad is not None
    new = {"weight_ih_l0": torch.zeros(32, I)}
    assert torch.func.functional_call(nn.LSTM(I, 8), new, (x,))[0].shape == (T, B, 8)


def test_repr_names_what_is_not_a_default() -> None:
    assert repr(nn.LSTM(3, 4)) == "LSTM(3, 4)"
    assert repr(nn.SLSTM(3, 4, 2, num_heads=2)) == "SLSTM(3, 4, num_layers=2, num_heads=2)"
    assert repr(nn.RNNLayer(3, 4, cell="gru", bias=False)) == "RNNLayer(3, 4, bias=False, cell=gru)"
    assert repr(nn.GRU(3, 4, zoneout=0.1, gradient_clip=1.0, recurrent_dropout=0.2)) == (
        "GRU(3, 4, recurrent_dropout=0.2, gradient_clip=1.0, zoneout=(0.1,))"
    )


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "SLSTM", "RNNLayer"])
def test_docstrings_show_what_runs(name) -> None:
    """The lines of code in a class's docstring run, and results have the shapes that they say."""
    lines = re.findall(r"^ {8}(\S.*)$", getattr(nn, name).__doc__, re.M)
    space: dict = {"flashrnn": flashrnn}
    exec(lines[0], space)
    B, T = (2, 3)
    space["rnn"].backend = "reference"  # compiles no kernels for sizes that nobody else has
    space["x"] = torch.zeros((B, T, 128) if space["rnn"].batch_first else (T, B, 128))
    exec(lines[1], space)
    said = re.findall(r"\b(\w+) \[([^]]+)\]", lines[1])
    assert {"x", "output"} < {result for result, _ in said}
    for result, shape in said:
        if result in space:
            assert list(space[result].shape) == eval(f"[{shape}]", {"B": B, "T": T})
    assert "InputError" in nn.LSTM.forward.__doc__ and "batch_first" in nn.LSTM.forward.__doc__


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.SLSTM])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_a_batch_may_be_empty(make, options) -> None:
    """As in torch.nn: the last batch of a filtered data set."""
    m = make(I, 8, **options)
    output, state = m(torch.zeros(T, 0, I, requires_grad=True))
    assert output.shape == (T, 0, 8 * m.num_directions)
    states = state if isinstance(state, tuple) else (state,)
    assert all(s.shape == (m.num_layers * m.num_directions, 0, 8) for s in states)
    m(torch.zeros(T, 0, I), state)[0].sum().backward()
    assert all((p.grad == 0).all() for p in m.parameters())


def test_an_empty_batch_of_a_projection() -> None:
    m = nn.LSTM(I, 8, proj_size=3)
    _, state = m(torch.zeros(T, 0, I))
    assert m(torch.zeros(T, 0, I), state)[0].shape == (T, 0, 3)
