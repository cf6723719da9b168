"""backend="cuda" end to end where there is no GPU: launches run in csrc/simt's execution model."""

from __future__ import annotations

import pytest
import torch
from cuda_stand_in import StandIn, install, operators_on_the_cpu
from cuda_tilings import BLOCK, SCHEDULES, tiled
from problems import NAMES, cast, problem, run

from flashrnn import flashrnn, layer
from flashrnn.cells import gru, indrnn, lstm, peephole_lstm, slstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT16, FLOAT32
from flashrnn.emit.cuda import CLUSTER, GRID
from flashrnn.errors import BackendError, TilingError
from flashrnn.runtime import cuda_kernels, gpu_tensors
from flashrnn.tolerance import compare

# As in test_cuda_host.py, whose compiled kernels serve here too.
SAMPLE = [
    (lstm, BFLOAT16, (17, 3, 2, 48), BLOCK), (gru, FLOAT16, (3, 4, 2, 13), BLOCK),
    (lstm, FLOAT32, (3, 4, 2, 13), BLOCK), (indrnn, FLOAT16, (8, 4, 1, 64), BLOCK),
    (peephole_lstm, BFLOAT16, (1, 1, 1, 16), BLOCK), (lstm, BFLOAT16, (17, 3, 2, 48), GRID),
    (gru, FLOAT16, (3, 4, 1, 13), CLUSTER), (lstm, FLOAT32, (17, 2, 1, 16), CLUSTER),
    (peephole_lstm, BFLOAT16, (1, 1, 1, 64), GRID),
]  # fmt: skip
OPTIONS = {
    "lengths": {"lengths": torch.tensor([3, 0, 1, 2])},
    "lengths, reverse": {"lengths": torch.tensor([3, 0, 1, 2]), "reverse": True},
    "reverse, clip": {"reverse": True, "gradient_clip": 0.05},
    "cut": {"gradient_cut": True},
}


@pytest.fixture
def stand_in(monkeypatch) -> type[StandIn]:
    return install(monkeypatch)


def force(monkeypatch, schedule: str) -> None:
    """The tests' tiling of a schedule, whatever the model thinks of it."""

    def chosen(p, gpu, schedules):
        return tiled(p.program.cell, p.direction, p.dtype, p.dims, schedule)[1]

    monkeypatch.setattr(cuda_kernels, "choose", chosen)


def name_of(value) -> str:
    return getattr(value, "name", str(value))


def check(cell, arguments, **options) -> None:
    """Results and gradients against the float64 reference."""
    exact = run(cell, cast(arguments, torch.float64), "reference", **options)
    eager = run(cell, arguments, "reference", **options)
    got = run(cell, arguments, "cuda", **options)
    for name, x in got.items():
        found = compare(name, x, exact[name], eager[name], tf32=x.dtype == torch.float32)
        assert found.ok, str(found)


@pytest.mark.parametrize(("cell", "dtype", "sizes", "schedule"), SAMPLE, ids=name_of)
def test_results_and_gradients(cell, dtype, sizes, schedule, stand_in, monkeypatch) -> None:
    force(monkeypatch, schedule)
    check(cell, problem(cell, *sizes, dtype.torch))
    assert len(stand_in.made) == 2


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.usefixtures("stand_in", "poisoned")
def test_options(options, schedule, monkeypatch) -> None:
    force(monkeypatch, schedule)
    check(lstm, problem(lstm, 4, 3, 1, 16, torch.bfloat16), **options)


@pytest.mark.usefixtures("stand_in", "poisoned")
def test_what_the_model_chooses() -> None:
    check(gru, problem(gru, 3, 2, 1, 24, torch.bfloat16))


def test_a_kernel_serves_every_batch_length_and_number_of_heads(stand_in, monkeypatch) -> None:
    force(monkeypatch, BLOCK)
    for B, T, N in ((1, 3, 1), (5, 1, 2), (40, 2, 1)):
        check(lstm, problem(lstm, B, T, N, 16, torch.bfloat16))
    assert [f.name for f in stand_in.made] == ["lstm-training", "lstm-backward"]
    assert stand_in.launches[-2:] == [("lstm-training", (3, 1)), ("lstm-backward", (3, 1))]


def test_as_many_launches_as_a_grid_takes(stand_in, monkeypatch) -> None:
    """Two heads of three tiles of rows, of which four are resident at once."""
    force(monkeypatch, GRID)
    p = problem(lstm, 33, 2, 2, 16, torch.bfloat16)
    blocks = tiled(lstm, "training", BFLOAT16, Dims(33, 2, 2, 16), GRID)[1].blocks
    stand_in.held = {"training": 5 * blocks - 1, "backward": 6 * blocks}
    check(lstm, p)
    grids = [(name, grid[1]) for name, grid in stand_in.launches]
    assert grids == [("lstm-training", 4), ("lstm-training", 2), ("lstm-backward", 6)]


def test_a_cluster_that_the_device_does_not_hold(stand_in, monkeypatch) -> None:
    """Another schedule takes its place; where none is left, a launch per step."""
    p = problem(gru, 3, 4, 2, 13, torch.float16)
    monkeypatch.setattr(
        cuda_kernels, "choose",
        lambda p, gpu, left: tiled(p.program.cell, p.direction, p.dtype, p.dims, left[0])[1],
    )  # fmt: skip
    monkeypatch.setattr(cuda_kernels, "SCHEDULES", (CLUSTER, BLOCK))
    stand_in.held = {"cluster": 0}
    check(gru, p)
    assert [f.shape.cluster for f in stand_in.made] == [2, 1] * 2
    stand_in.held = {"gru": 0}
    cuda_kernels._plans.clear()
    del stand_in.launches[:]
    check(gru, p)
    assert [name for name, _ in stand_in.launches] == ["gru-training"] * 4 + ["gru-backward"] * 4


@pytest.mark.usefixtures("poisoned")
def test_what_each_schedule_needs_is_told_where_nothing_is_left(stand_in, monkeypatch) -> None:
    """A cell without a product has no library to alternate with."""
    monkeypatch.setattr(
        cuda_kernels, "choose",
        lambda p, gpu, left: tiled(p.program.cell, p.direction, p.dtype, p.dims, left[0])[1],
    )  # fmt: skip
    monkeypatch.setattr(cuda_kernels, "SCHEDULES", (GRID, BLOCK))
    stand_in.held = {"indrnn": 0}
    with pytest.raises(TilingError) as told:
        run(indrnn, problem(indrnn, 3, 4, 2, 13, torch.float16), "cuda")
    words = str(told.value)
    assert "in the blocks of a grid needs 2 resident blocks of 128 threads" in words
    assert "in one block needs 1 resident blocks" in words
    assert "255 registers" in words
    assert words.endswith("NVIDIA H100 SXM holds 0")


@pytest.mark.parametrize(
    ("cell", "dtype", "sizes"),
    [
        (lstm, BFLOAT16, (3, 4, 2, 13)), (gru, FLOAT16, (1, 1, 1, 40)),
        (peephole_lstm, BFLOAT16, (17, 2, 1, 16)), (slstm, FLOAT32, (2, 3, 2, 8)),
    ],
    ids=name_of,
)  # fmt: skip
@pytest.mark.usefixtures("poisoned")
def test_heads_that_no_schedule_holds_take_a_launch_per_step(
    cell, dtype, sizes, stand_in, monkeypatch
) -> None:
    monkeypatch.setattr(cuda_kernels, "SCHEDULES", ())
    check(cell, problem(cell, *sizes, dtype.torch))
    assert len(stand_in.launches) == 2 * sizes[1]
    assert not any(f.shape.cooperative for f in stand_in.made)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.usefixtures("stand_in", "poisoned")
def test_options_of_a_launch_per_step(options, monkeypatch) -> None:
    monkeypatch.setattr(cuda_kernels, "SCHEDULES", ())
    check(lstm, problem(lstm, 4, 3, 1, 16, torch.bfloat16), **options)


def test_the_initial_state_is_left_as_it_is(stand_in, monkeypatch) -> None:
    """One head or one row: h of the first step must not be the caller's memory."""
    monkeypatch.setattr(cuda_kernels, "SCHEDULES", ())
    p = {k: v.detach() for k, v in problem(lstm, 1, 2, 1, 16, torch.bfloat16).items()}
    before = p["states"].clone()
    run_once = flashrnn(**p, backend="cuda")
    assert len(stand_in.launches) == 2
    assert torch.equal(p["states"], before)
    assert all(x.isfinite().all() for x in run_once)


@pytest.mark.usefixtures("stand_in", "poisoned")
@pytest.mark.parametrize("D", [16, 13])
def test_any_strides(D, monkeypatch) -> None:
    """Time-major, a slice of a larger tensor, units that are not neighbours, odd addresses."""
    force(monkeypatch, BLOCK)
    dtype = torch.bfloat16 if D == 16 else torch.float16
    cell = lstm if D == 16 else gru
    p = {k: v.detach() for k, v in problem(cell, 3, 4, 2, D, dtype).items()}
    expected = flashrnn(**p, function=cell, backend="cuda")

    def odd(x):
        room = x.new_full((x.numel() + 1,), torch.nan)
        room[1:] = x.flatten()
        return room[1:].view(x.shape)

    ways = {
        "time-major": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        "a slice": lambda x: torch.cat((x, x.new_full(x.shape, torch.nan)), 2)[:, :, : x.shape[2]],
        "units apart": lambda x: x.transpose(-1, 0).contiguous().transpose(-1, 0),
        "an odd address": odd,
    }
    for words, way in ways.items():
        other = {name: way(x) for name, x in p.items()}
        for a, b in zip(flashrnn(**other, function=cell, backend="cuda"), expected, strict=True):
            assert torch.equal(a, b), words


@pytest.mark.usefixtures("stand_in")
def test_without_bias_and_initial_states_and_with_one_gradient(monkeypatch) -> None:
    force(monkeypatch, BLOCK)
    p = problem(lstm, 4, 3, 1, 16, torch.bfloat16)
    zeros = {"b": torch.zeros_like(p["b"]), "states": torch.zeros_like(p["states"])}
    some = {name: p[name] for name in ("Wx", "R")}
    expected, _ = flashrnn(**some, **zeros, backend="cuda")
    states, _ = flashrnn(**some, backend="cuda")
    assert torch.equal(states, expected)
    (d_last,) = torch.autograd.grad(flashrnn(**p, backend="cuda")[1].sum(), p["Wx"])
    exact = cast(p, torch.float64)
    (wanted,) = torch.autograd.grad(flashrnn(**exact, backend="reference")[1].sum(), exact["Wx"])
    torch.testing.assert_close(d_last.double(), wanted, rtol=0.05, atol=0.02)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("B", "T"), [(0, 3), (2, 0)])
def test_nothing_to_do(B, T) -> None:
    p = problem(lstm, B, T, 1, 16, torch.bfloat16)
    states, last = flashrnn(**p, backend="cuda")
    assert states.shape == (2, B, T, 1, 16)
    assert torch.equal(last, p["states"])
    (states.sum() + last.sum()).backward()
    assert torch.equal(p["states"].grad, torch.ones_like(last))


def test_inference_saves_nothing(stand_in, monkeypatch) -> None:
    force(monkeypatch, BLOCK)
    p = {k: v.detach() for k, v in problem(gru, 5, 2, 1, 24, torch.bfloat16).items()}
    monkeypatch.setattr("flashrnn.runtime.gpu_recurrence.saved_shape", None)
    flashrnn(**p, function=gru, backend="cuda")
    assert [f.name for f in stand_in.made] == ["gru-inference"]


@pytest.mark.usefixtures("stand_in")
def test_a_layer(monkeypatch) -> None:
    force(monkeypatch, BLOCK)
    p = problem(lstm, 4, 3, 1, 16, torch.bfloat16)
    x, W = torch.randn(4, 3, 8).bfloat16(), torch.randn(4, 1, 16, 8).bfloat16() / 3
    rest = {name: p[name] for name in NAMES[1:4]}
    got, _ = layer(x, W, **rest, backend="cuda")
    wx = torch.einsum("bti,gndi->btgnd", x, W)
    torch.testing.assert_close(got, flashrnn(wx, **rest, backend="cuda")[0][0])


@pytest.fixture
def cpu_operators():
    with operators_on_the_cpu():
        yield


@pytest.mark.usefixtures("stand_in", "cpu_operators")
@pytest.mark.parametrize("cell", [lstm, peephole_lstm], ids=name_of)
def test_opcheck(cell, monkeypatch) -> None:
    force(monkeypatch, BLOCK)
    p = problem(cell, 2, 3, 2, 16, torch.bfloat16)
    wx, r, b, initial = p["Wx"], p["R"], p["b"], p["states"]
    rest = (cell.key, None, float("inf"), False, False)
    ops = torch.ops.flashrnn
    torch.library.opcheck(ops.cuda_recurrence, (wx, r, b, p.get("parameters"), initial, *rest))
    plain = [None if x is None else x.detach() for x in (wx, r, b, p.get("parameters"), initial)]
    torch.library.opcheck(ops.cuda_training, (*plain, *rest))
    states, last, saved = ops.cuda_training(*plain, *rest)
    need = [True, True, True, bool(cell.parameters), True]
    backward = (plain[1], *plain[3:], states, saved, torch.ones_like(states), last, need, *rest)
    torch.library.opcheck(ops.cuda_backward, backward)


@pytest.mark.usefixtures("stand_in", "cpu_operators")
def test_compiled_without_graph_breaks(monkeypatch) -> None:
    force(monkeypatch, BLOCK)
    p = problem(lstm, 4, 3, 1, 16, torch.bfloat16)

    def loss(Wx, R, b, states):
        return flashrnn(torch.tanh(Wx), R, b, states, backend="cuda")[0].float().sum()

    arguments = list(p.values())
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(loss(*arguments), arguments)
    for a, b in zip(torch.autograd.grad(compiled(*arguments), arguments), expected, strict=True):
        assert torch.equal(a, b)


def test_a_captured_graph_takes_what_is_loaded(stand_in, monkeypatch) -> None:
    force(monkeypatch, BLOCK)
    capturing = False
    for module in (cuda_kernels, gpu_tensors):
        monkeypatch.setattr(module, "is_capturing", lambda like: capturing)
    p = {k: v.detach() for k, v in problem(lstm, 4, 3, 1, 16, torch.bfloat16).items()}
    flashrnn(**p, backend="cuda")
    capturing = True
    flashrnn(**p, backend="cuda")
    assert len(stand_in.made) == 1
    two = {"Wx": p["Wx"].repeat(1, 1, 1, 2, 1), "R": p["R"].repeat(1, 2, 1, 1)}
    with pytest.raises(BackendError, match=r"lstm \(inference\).*N=2, D=16 is not loaded.*once"):
        flashrnn(**two, backend="cuda")
