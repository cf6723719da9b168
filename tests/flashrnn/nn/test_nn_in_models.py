"""Typical programs with torch.nn's module exchanged for ours: they train, and go the same way."""

import copy
import io
import threading

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn as torch_nn
from torch.nn.utils.rnn import pack_padded_sequence

from flashrnn import ExportError, nn
from flashrnn.nn import directions

X = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0))  # [T, B, I]


class Classifier(torch_nn.Module):
    """Sequences of their own lengths, judged by the final states of both directions."""

    def __init__(self, library) -> None:
        super().__init__()
        self.embed = torch_nn.Embedding(30, 12, padding_idx=0)
        self.rnn = library.LSTM(12, 9, 2, batch_first=True, bidirectional=True)
        self.out = torch_nn.Linear(18, 3)

    def loss(self, step: int) -> torch.Tensor:
        g = torch.Generator().manual_seed(step)
        words = torch.randint(1, 30, (8, 11), generator=g)
        lengths = torch.randint(1, 12, (8,), generator=g)
        packed = pack_padded_sequence(self.embed(words), lengths, True, enforce_sorted=False)
        _, (h, _) = self.rnn(packed)
        return F.cross_entropy(self.out(torch.cat((h[-2], h[-1]), 1)), words[:, 0] % 3)


class Language(torch_nn.Module):
    """Tied embeddings through a projection; the state goes on from piece to piece."""

    def __init__(self, library) -> None:
        super().__init__()
        self.embed = torch_nn.Embedding(30, 6)
        self.rnn = library.LSTM(6, 9, proj_size=6)
        self.out = torch_nn.Linear(6, 30)
        self.out.weight = self.embed.weight
        self.state = None

    def loss(self, step: int) -> torch.Tensor:
        text = torch.arange(16 * step, 16 * step + 17)[:, None] * torch.tensor([1, 7, 11]) % 30
        h, state = self.rnn(self.embed(text[:-1]), self.state)
        self.state = tuple(s.detach() for s in state)
        return F.cross_entropy(self.out(h).flatten(0, 1), text[1:].flatten())


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("model", [Classifier, Language])
def test_training_goes_the_same_way(model) -> None:
    curves = []
    for library in (torch_nn, nn):
        torch.manual_seed(0)
        m = model(library).double()  # float32's rounding grows
        optimizer = torch.optim.AdamW(m.parameters(), 2e-2)
        curve = []
        for step in range(25):
            loss = m.loss(step)
            optimizer.zero_grad()
            loss.backward()
            torch_nn.utils.clip_grad_norm_(m.parameters(), 1.0)
            optimizer.step()
            curve.append(loss.item())
        curves.append(torch.tensor(curve))
    assert curves[0][-5:].mean() < 0.95 * curves[0][:5].mean()  # it does train
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-6, atol=1e-6)


MODULES = {
    "LSTM": {"num_layers": 2, "bidirectional": True},
    "GRU": {"bidirectional": True},
    "RNN": {"num_heads": 2},
    "SLSTM": {"num_heads": 2, "bidirectional": True},
}


@pytest.mark.parametrize("how", ["eager", "compiled", "directions side by side"])
@pytest.mark.parametrize("name", MODULES)
def test_no_two_gradients_share_memory(name, how, monkeypatch) -> None:
    """Clips, scalers and further backward passes change gradients in place, each for itself."""
    m = getattr(nn, name)(5, 8, **MODULES[name])
    call = m
    if how == "compiled":
        call = torch.compile(m, backend="aot_eager", fullgraph=True)
    elif how != "eager":
        monkeypatch.setattr(directions, "_worthwhile", lambda _: True)
    loss = call(X)[0].square().sum()
    expected = torch.autograd.grad(loss, list(m.parameters()), retain_graph=True)
    loss.backward()
    assert len({p.grad.untyped_storage().data_ptr() for p in m.parameters()}) == len(expected)
    call(X)[0].square().sum().backward()
    for p, g in zip(m.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


def test_mixed_precision_with_a_scaler() -> None:
    """What training frameworks do for precision="bf16-mixed"."""
    torch.manual_seed(0)
    m, x = nn.GRU(5, 8, 2, dropout=0.1), X
    optimizer, scaler = torch.optim.Adam(m.parameters(), 1e-2), torch.amp.GradScaler("cpu")
    curve = []
    for _ in range(15):
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = m(x)
            loss = (output.float() - 0.5).square().mean()
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        curve.append(loss.item())
    assert curve[-1] < 0.7 * curve[0]
    assert all(p.grad.dtype == torch.float32 for p in m.parameters())


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_scripting_is_refused_and_says_what_to_use() -> None:
    words = (
        "TorchScript cannot express flashrnn.nn.GRU: use torch.export, flashrnn.onnx.export or "
        "torch.compile; torch.jit.trace works for one kind of input"
    )
    for module in (nn.GRU(5, 8), torch_nn.Sequential(torch_nn.Linear(5, 5), nn.GRU(5, 8))):
        with pytest.raises(ExportError) as caught:
            torch.jit.script(module)
        assert str(caught.value) == words


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns of every check
def test_a_trace_runs_for_other_sizes() -> None:
    m = nn.LSTM(5, 8, 2)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(m, X), file)
    file.seek(0)
    traced = torch.jit.load(file)
    for x in (X, torch.randn(9, 4, 5)):
        (got, states), (expected, other) = traced(x), m(x)
        for a, b in zip((got, *states), (expected, *other), strict=True):
            assert torch.equal(a, b)


def _old_weight_norm(m):
    return torch_nn.utils.weight_norm(m, "weight_hh_l0")


def _prune(m):
    torch_nn.utils.prune.l1_unstructured(m, "weight_hh_l0", amount=0.5)
    return m


REPARAMETRIZATIONS = {
    "weight_norm": lambda m: torch_nn.utils.parametrizations.weight_norm(m, "weight_hh_l0"),
    "weight_norm as hooks": _old_weight_norm,
    "spectral_norm": lambda m: torch_nn.utils.parametrizations.spectral_norm(m, "weight_hh_l0"),
    "prune": _prune,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("name", REPARAMETRIZATIONS)
def test_reparametrized_weights_train(name) -> None:
    """As the same weight without it, and gradients reach what it is computed from."""
    torch.manual_seed(0)
    m = REPARAMETRIZATIONS[name](nn.LSTM(5, 8)).eval()
    plain = nn.LSTM(5, 8)
    with torch.no_grad():
        for target, source in zip(plain.all_weights[0], m.all_weights[0], strict=True):
            target.copy_(source)
    output = m(X)[0]
    torch.testing.assert_close(output, plain(X)[0])
    assert name != "prune" or (m.weight_hh_l0 == 0).float().mean() == 0.5
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())


def test_functional_calls_ensembles_and_gradients_of_each_sample() -> None:
    m = nn.GRU(5, 8)
    parameters = dict(m.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(m, parameters, (x,))[0].square().sum()

    whole = torch.func.grad(loss)(parameters, X)
    each = torch.func.vmap(torch.func.grad(loss), (None, 1))(parameters, X[:, :, None])
    expected = torch.autograd.grad(m(X)[0].square().sum(), list(m.parameters()))
    for name, g in zip(parameters, expected, strict=True):
        torch.testing.assert_close(whole[name], g)
        torch.testing.assert_close(each[name].sum(0), g)
    models = [nn.GRU(5, 8) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(models)
    together = torch.func.vmap(lambda p: torch.func.functional_call(m, p, (X,))[0])(stacked)
    torch.testing.assert_close(together, torch.stack([one(X)[0] for one in models]))


def test_threads_share_a_module() -> None:
    m = nn.LSTM(5, 8, 2, bidirectional=True).eval()
    inputs = [torch.randn(30, b + 1, 5) for b in range(5)]
    expected, wrong = [m(x)[0].detach() for x in inputs], []

    def serve(k: int) -> None:
        for j in range(40):
            which = (j + k) % len(inputs)
            with torch.inference_mode():
                if not torch.equal(m(inputs[which])[0], expected[which]):
                    wrong.append((k, j))

    def train(k: int) -> None:
        own = copy.deepcopy(m)
        for _ in range(5):
            own.zero_grad()
            own(inputs[3])[0].square().sum().backward()
        if not torch.equal(own.weight_hh_l0.grad, d_weight):
            wrong.append((k, "gradient"))

    (d_weight,) = torch.autograd.grad(m(inputs[3])[0].square().sum(), m.weight_hh_l0)
    workers = [threading.Thread(target=f, args=(k,)) for k in range(4) for f in (serve, train)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


class Features(torch.utils.data.Dataset):
    """Computed by a module in the worker process."""

    def __init__(self, module) -> None:
        self.module = module

    def __len__(self) -> int:
        return 4

    @torch.no_grad()
    def __getitem__(self, index: int) -> torch.Tensor:
        return self.module(X + index)[0]


@pytest.mark.filterwarnings("ignore:.*fork")
def test_workers_of_a_data_loader_use_a_module() -> None:
    """In processes that were forked after this one has run kernels on two threads."""
    m, threads = nn.GRU(5, 32, bidirectional=True), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        m(torch.randn(1100, 1, 5))[0].sum().backward()
        m(torch.randn(300, 8, 5))
        loader = torch.utils.data.DataLoader(Features(m), 2, num_workers=2, timeout=120)
        found = torch.cat(list(loader))
    finally:
        torch.set_num_threads(threads)
    for index, features in enumerate(found):
        assert torch.equal(features, m(X + index)[0])


def test_made_elsewhere_and_averaged() -> None:
    """On the meta device, without initialisation, with a checkpoint's tensors, as an average."""
    m = nn.LSTM(5, 8)
    expected = m(X)[0]
    with torch.device("meta"):
        empty = nn.LSTM(5, 8)
    empty.to_empty(device="cpu").load_state_dict(m.state_dict())
    skipped = torch_nn.utils.skip_init(nn.LSTM, 5, 8)
    skipped.load_state_dict(m.state_dict())
    assigned = nn.LSTM(5, 8, device="meta")
    assigned.load_state_dict(m.state_dict(), assign=True)
    averaged = torch.optim.swa_utils.AveragedModel(m)
    averaged.update_parameters(m)
    for other in (empty, skipped, assigned, averaged):
        assert torch.equal(other(X)[0], expected)


def test_a_tracer_of_fx_takes_a_module_as_a_leaf() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m, name) -> bool:
            return m.__module__.startswith("flashrnn.") or super().is_leaf_module(m, name)

    model = torch_nn.Sequential(torch_nn.Linear(5, 5), nn.GRU(5, 8))
    graph = torch.fx.GraphModule(model, Tracer().trace(model))
    assert torch.equal(graph(X)[0], model(X)[0])
    with pytest.raises(RuntimeError, match="must be a Tensor or a PackedSequence, got Proxy"):
        torch.fx.symbolic_trace(model)


class Translator(torch_nn.Module):
    """Much in one graph: an encoder, a decoder that attends, step by step, and an sLSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch_nn.Embedding(20, 6)
        self.encoder = nn.LSTM(6, 8, 2, bidirectional=True, batch_first=True)
        self.decoder = nn.GRU(22, 8, batch_first=True, gradient_clip=1.0)
        self.query = torch_nn.Linear(8, 16)
        self.mix = nn.SLSTM(8, 8, num_heads=2, batch_first=True, zoneout=0.1)
        self.out = torch_nn.Linear(8, 20)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        keys, (h, _) = self.encoder(self.embed(source))
        state, outputs = h[-1:], []
        for t in range(target.shape[1]):
            weights = torch.einsum("bd,btd->bt", self.query(state[0]), keys).softmax(1)
            context = torch.einsum("bt,btd->bd", weights, keys)
            step = torch.cat((self.embed(target[:, t]), context), 1)[:, None]
            output, state = self.decoder(step, state)
            outputs.append(output)
        return self.out(self.mix(torch.cat(outputs, 1))[0])


def test_a_larger_model_is_one_graph() -> None:
    torch.manual_seed(0)
    m = Translator().eval()  # zoneout is a mean there, and draws nothing
    source, target = torch.randint(20, (3, 6)), torch.randint(20, (3, 2))
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True)
    got, expected = compiled(source, target), m(source, target)
    torch.testing.assert_close(got, expected)
    parameters = list(m.parameters())
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


class TestChangesInPlace:
    """Wrong gradients never: either PyTorch's own result, or an error."""

    @pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
    def test_of_an_output_of_one_direction_are_an_error(self, make) -> None:
        with pytest.raises(RuntimeError, match="inplace"):
            F.relu_(make(5, 8)(X)[0]).sum().backward()

    def test_of_states_and_of_both_directions_are_fine(self) -> None:
        theirs, ours = torch_nn.GRU(5, 8, bidirectional=True), nn.GRU(5, 8, bidirectional=True)
        ours.load_state_dict(theirs.state_dict())
        grads = []
        for m in (theirs, ours):
            output, h = m(X)
            (F.relu_(output).sum() + h.mul_(2).square().sum()).backward()
            grads.append([p.grad for p in m.parameters()])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)

    def test_of_weights_between_forward_and_backward_are_an_error(self) -> None:
        m = nn.LSTM(5, 8)
        output, _ = m(X)
        with torch.no_grad():
            m.weight_hh_l0.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
