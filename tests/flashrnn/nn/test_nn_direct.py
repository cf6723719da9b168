"""Modules that call kernels on their own tensors: the bits of `flashrnn.layer` on views of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flashrnn import nn
from flashrnn.errors import FlashRNNError
from flashrnn.nn import direct
from flashrnn.runtime import flat_layer

MODULES = {
    "lstm": lambda: nn.LSTM(3, 6),
    "heads": lambda: nn.LSTM(3, 6, num_heads=2, gradient_clip=0.01, batch_first=True),
    "no bias": lambda: nn.LSTM(3, 5, bias=False),
    "two layers both ways": lambda: nn.LSTM(3, 5, 2, bidirectional=True),
    "gru": lambda: nn.GRU(3, 5),
    "gru of heads": lambda: nn.GRU(3, 6, num_heads=3, bidirectional=True),
    "gru with masks": lambda: nn.GRU(3, 5, recurrent_dropout=0.4),
    "gru without bias": lambda: nn.GRU(3, 5, bias=False),
    "relu": lambda: nn.RNN(3, 5, nonlinearity="relu"),
    "slstm": lambda: nn.SLSTM(3, 6, num_heads=2),
    "units": lambda: nn.RNNLayer(3, 6, cell="peephole_lstm", num_heads=2),
    "units without bias": lambda: nn.RNNLayer(3, 5, cell="peephole_lstm", bias=False),
}
# Which results have a gradient: the output, and each final state.
LOSSES = {"output": (0,), "a state": (1,), "all": (0, 1, 2, 3, 4)}


def leaves_of(module, B: int = 3, T: int = 4, seed: int = 0):
    """x and an initial state of h, and of everything else."""
    g = torch.Generator().manual_seed(seed)
    dtype = module.first_weight.dtype
    x = torch.randn(*((B, T) if module.batch_first else (T, B)), 3, generator=g, dtype=dtype)
    size = (module.num_layers * module.num_directions, B, module.hidden_size)
    states = [torch.rand(size, generator=g, dtype=dtype) for _ in module.cell.states]
    return [x.requires_grad_(), *(s.requires_grad_() for s in states)]


def results_of(module, x, *states):
    """The output and the final states."""
    hx = (states if len(states) > 1 else states[0]) if states else None
    torch.manual_seed(7)  # of masks
    output, last = module(x, hx)
    return [output, *(last if isinstance(last, tuple) else (last,))]


def gradients_of(module, leaves, loss, **options):
    """Of the parameters and leaves, None where there is none, for random cotangents."""
    results = results_of(module, *leaves)
    g = torch.Generator().manual_seed(9)
    cotangents = [torch.randn(r.shape, generator=g, dtype=r.dtype) for r in results]
    chosen = [k for k in LOSSES[loss] if k < len(results)]
    wanted = [t for t in (*leaves, *module.parameters()) if t.requires_grad]
    return torch.autograd.grad(
        [results[k] for k in chosen], wanted, [cotangents[k] for k in chosen], allow_unused=True,
        **options,
    )  # fmt: skip


@pytest.fixture
def by_operators(monkeypatch):
    """Calls a function while modules go by `flashrnn.layer`."""

    def call(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(direct, "run", lambda *_: None)
            return function(*arguments, **options)

    return call


@pytest.fixture
def calls(monkeypatch):
    """How often each direction was called on modules' own tensors."""
    counted = {"forward": 0, "backward": 0}
    for name in counted:
        real = getattr(flat_layer, name)

        def spy(*arguments, name=name, real=real, **options):
            counted[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(flat_layer, name, spy)
    return counted


def equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.shape == b.shape and torch.equal(a, b))


@pytest.mark.parametrize("name", MODULES)
def test_the_bits_of_layer(name, by_operators, calls, poisoned) -> None:
    torch.manual_seed(0)
    module = MODULES[name]()
    for p in module.parameters():
        torch.nn.init.uniform_(p, -0.5, 0.5)
    directions = module.num_layers * module.num_directions
    for seed, states in ((0, True), (1, True), (2, False)):  # of one form twice
        leaves = leaves_of(module, seed=seed)[: None if states else 1]
        with torch.no_grad():
            inference = results_of(module, *leaves)
            equal(inference, by_operators(results_of, module, *leaves))
        assert calls == {"forward": directions, "backward": 0}
        equal(results_of(module, *leaves), inference)
        for loss in LOSSES:
            before = calls["backward"]
            got = gradients_of(module, leaves, loss)
            assert calls["backward"] - before == directions
            equal(got, by_operators(gradients_of, module, leaves, loss))
        calls.update(forward=0, backward=0)


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "x", "weights"])
def test_only_what_is_asked_for(frozen, by_operators, calls) -> None:
    module = nn.GRU(3, 5)
    leaves = leaves_of(module)
    if frozen == "x":
        leaves[0].requires_grad_(False)
    for name, p in module.named_parameters():
        p.requires_grad_(name != frozen and not (frozen == "weights" and "weight" in name))
    got = gradients_of(module, leaves, "all")
    assert calls["backward"] == 1
    equal(got, by_operators(gradients_of, module, leaves, "all"))


@pytest.mark.parametrize("name", ["lstm", "gru", "two layers both ways"])
def test_gradients_share_no_memory(name) -> None:
    module = MODULES[name]()
    grads = gradients_of(module, leaves_of(module), "all")
    assert len({g.untyped_storage().data_ptr() for g in grads}) == len(grads)


@pytest.mark.parametrize("name", ["heads", "gru", "units"])
def test_second_derivatives(name, by_operators) -> None:
    module = MODULES[name]().double()
    leaves = leaves_of(module)

    def second():
        grads = gradients_of(module, leaves, "all", create_graph=True)
        wanted = (*leaves, *module.parameters())
        return torch.autograd.grad(sum(g.square().sum() for g in grads), wanted)

    for a, b in zip(second(), by_operators(second), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_mode_sees_the_backward_operator(by_operators) -> None:
    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.append(str(function))
            return function(*args, **(kwargs or {}))

    module = nn.LSTM(3, 5)
    leaves = leaves_of(module)
    output = results_of(module, *leaves)[0]
    with Names() as names:
        got = torch.autograd.grad(output.sum(), [*leaves, *module.parameters()], allow_unused=True)
    assert "flashrnn.layer_backward.default" in names.seen
    output = by_operators(results_of, module, *leaves)[0]
    equal(got, torch.autograd.grad(output.sum(), [*leaves, *module.parameters()]))


def test_outputs_and_states_may_be_changed_in_place() -> None:
    module = nn.LSTM(3, 5)
    leaves = leaves_of(module)
    expected = torch.autograd.grad(results_of(module, *leaves)[2].square().sum(), leaves[:1])
    output, h, c = results_of(module, *leaves)
    h.zero_()
    got = torch.autograd.grad(c.mul_(2.0).square().sum() / 4, leaves[:1])
    equal(got, expected)
    with torch.no_grad():
        output, h, c = results_of(module, *leaves)
        before = c.clone()
        output.zero_(), h.zero_()
    assert torch.equal(c, before)


def transposed(module):
    module.weight_hh_l0.data = module.weight_hh_l0.data.t().contiguous().t()


def test_parameters_of_another_layout_go_by_layer(calls) -> None:
    module = nn.LSTM(3, 5)
    other = copy.deepcopy(module)
    transposed(other)
    leaves = leaves_of(module)
    equal(gradients_of(other, leaves, "all"), gradients_of(module, leaves, "all"))
    assert calls["backward"] == 1


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("weight_hh_l0", lambda p: p[:, :4]),
        ("weight_hh_l0", lambda p: p.half()),
        ("weight_ih_l0", lambda p: p[:12]),
        ("bias_ih_l0", lambda p: p[:5]),
        ("bias_hh_l0", lambda p: p.double()),
    ],
)
def test_wrong_parameters_are_errors_after_right_ones(name, wrong) -> None:
    module = nn.LSTM(3, 5)
    leaves = leaves_of(module)
    results_of(module, *leaves)
    p = getattr(module, name)
    p.data = wrong(p.data).contiguous()
    for _ in range(2):
        with pytest.raises((FlashRNNError, RuntimeError)) as error:
            results_of(module, *leaves)
        assert "nan" not in str(error.value)


def test_no_rows(by_operators) -> None:
    module = nn.LSTM(3, 5)
    leaves = leaves_of(module, B=0)
    equal(gradients_of(module, leaves, "all"), by_operators(gradients_of, module, leaves, "all"))


def laid_out(x, how):
    """The same numbers in another order of memory."""
    if how == "batch outermost":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if how == "gaps":
        return torch.nn.functional.pad(x, (1, 2))[..., 1:-2]
    if how == "numbers outermost":
        return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    return x


def test_forms_take_turns(by_operators) -> None:
    """Each differs from others in one thing that a kernel is told with its addresses."""
    module = nn.LSTM(3, 5)
    x, h, c = (t.detach() for t in leaves_of(module))
    d = torch.randn(4, 3, 5)
    cotangents = (d, d[:, :1].expand(4, 3, 5), d[..., :1].expand(4, 3, 5))
    orders = ("as it is", "batch outermost", "gaps", "numbers outermost")

    def gradients(how, cotangent, wanted):
        leaves = [laid_out(x, how), h, c, *module.parameters()]
        leaves = [t.detach().requires_grad_(k in wanted) for k, t in enumerate(leaves)]
        names = [name for name, _ in module.named_parameters()]
        swapped = dict(zip(names, leaves[3:], strict=True))
        call = (leaves[0], tuple(leaves[1:3]))
        output, _ = torch.func.functional_call(module, swapped, call)
        return torch.autograd.grad(output, [leaves[k] for k in wanted], cotangent)

    for _ in range(2):
        for how in orders:
            for cotangent in cotangents:
                for wanted in ((0,), (1, 2), (3,), (4, 6), tuple(range(7))):
                    expected = by_operators(gradients, how, cotangent, wanted)
                    equal(gradients(how, cotangent, wanted), expected)
