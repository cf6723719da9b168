"""Streams: steps and chunks give what the whole sequence gives, in constant memory."""

import io
import resource

import pytest
import torch

from flashrnn import nn

B, T, I, H = 4, 6, 3, 8
MODULES = {
    "lstm": lambda **o: nn.LSTM(I, H, 2, **o),
    "lstm-proj": lambda **o: nn.LSTM(I, H, 2, proj_size=4, **o),
    "gru": lambda **o: nn.GRU(I, H, 2, num_heads=2, **o),
    "rnn": lambda **o: nn.RNN(I, H, **o),
    "slstm": lambda **o: nn.SLSTM(I, H, num_heads=2, **o),
}


def leaves(state) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def assert_close(got, expected) -> None:
    for a, b in zip(leaves(got), leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("module", MODULES)
def test_steps_equal_the_sequence(module, batch_first) -> None:
    torch.manual_seed(0)
    m = MODULES[module](batch_first=batch_first)
    if module == "slstm":  # its recurrent weights start at zero
        torch.nn.init.normal_(m.weight_hh_l0, 0.0, 0.3)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        expected, last = m(x.transpose(0, 1) if batch_first else x)
        expected = expected.transpose(0, 1) if batch_first else expected
        state = None
        for t in range(T):
            h, state = m.step(x[t], state)
            assert_close(h, expected[t])
        assert_close(state, last)
        # of one stream alone
        state = None
        for t in range(T):
            h, state = m.step(x[t, 0], state)
            assert_close(h, expected[t, 0])
        assert leaves(state)[0].dim() == 2


@pytest.mark.parametrize("module", MODULES)
def test_a_state_is_plain_tensors(module) -> None:
    m = MODULES[module]()
    x = torch.randn(T, B, I)
    _, state = m(x)
    assert type(state) is tuple or type(state) is torch.Tensor
    assert all(s.requires_grad for s in leaves(state))
    detached = tuple(s.detach() for s in leaves(state))
    file = io.BytesIO()
    torch.save(detached, file)
    stored = sum(s.untyped_storage().nbytes() for s in detached)
    assert stored == sum(s.numel() * s.element_size() for s in detached)  # nothing else with it
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    again = loaded if isinstance(state, tuple) else loaded[0]
    assert_close(m(x, again)[0].detach(), m(x, state)[0].detach())


def test_gradients_flow_through_steps() -> None:
    torch.manual_seed(0)
    m = nn.GRU(I, H, 2)
    x = torch.randn(T, B, I)
    whole = torch.autograd.grad(m(x)[1].square().sum(), list(m.parameters()))
    state = None
    for t in range(T):
        _, state = m.step(x[t], state)
    stepped = torch.autograd.grad(state.square().sum(), list(m.parameters()))
    for a, b in zip(stepped, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def stream(steps: int, chunk: int) -> int:
    """Kilobytes by which the process grows over the second half of a stream."""
    torch.manual_seed(0)
    m = nn.LSTM(I, 16, 2).eval()
    state, halfway = None, 0
    with torch.no_grad():
        for start in range(0, steps, chunk):
            if start >= steps // 2 and not halfway:
                halfway = _peak()
            output, state = m(torch.randn(chunk, 2, I), state)
    assert output.isfinite().all()
    return _peak() - halfway


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux


def test_chunks_need_constant_memory() -> None:
    # all outputs of the second half: 32 bytes * 16 * 2 rows * 10,000 steps are 1.3 MB a chunk
    assert stream(steps=60_000, chunk=2_000) < 2_000


@pytest.mark.slow
def test_a_million_steps_need_constant_memory() -> None:
    assert stream(steps=1_000_000, chunk=5_000) < 2_000


def test_chunks_equal_the_sequence() -> None:
    torch.manual_seed(0)
    m = nn.SLSTM(I, H, 2)
    torch.nn.init.normal_(m.weight_hh_l1, 0.0, 0.3)
    x = torch.randn(40, B, I)
    with torch.no_grad():
        expected, last = m(x)
        state, outputs = None, []
        for chunk in x.split(7):
            h, state = m(chunk, state)
            outputs.append(h)
    assert_close(torch.cat(outputs), expected)
    assert_close(state, last)
