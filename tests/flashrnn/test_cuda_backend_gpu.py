"""backend="cuda" on a real GPU: the comparisons of test_cuda_backend.py, and what needs a device.

`pytest -m gpu`. Without a GPU every test here is skipped, and says so.
"""

from __future__ import annotations

import pytest
import torch
from problems import cast, compare_at_kinks, every_cell, problem, results
from test_cuda_backend import OPTIONS

from autotune.device import Device
from autotune.registry import Origin
from autotune.tuner import tune_family
from flashrnn import DriverError, flashrnn
from flashrnn.cells import gru, lstm, slstm
from flashrnn.dtypes import BFLOAT16, FLOAT16, FLOAT32
from flashrnn.emit.cuda import CLUSTER, DIRECTIONS
from flashrnn.errors import BackendError
from flashrnn.nn import LSTM
from flashrnn.runtime import cuda_kernels
from flashrnn.runtime.cuda_driver import Function, Shape
from flashrnn.tiling.cuda_choice import SCHEDULES, choose, schedule_of
from flashrnn.tolerance import compare

pytestmark = pytest.mark.gpu
# Rounding to tf32 puts an argument on the other side of a kink now and then.
KINKED = ("elman_relu", "slstm", "shuffled")
SHAPES = ((1, 1, 1, 16), (3, 5, 2, 13), (17, 4, 2, 48), (33, 4, 2, 128))


def name_of(value) -> str:
    return getattr(value, "name", str(value))


@pytest.fixture(autouse=True)
def tf32():
    """float32 is multiplied in tf32, which the user allows."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def to_gpu(arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.detach().cuda().requires_grad_() for k, v in arguments.items()}


def check(cell, arguments, **options) -> None:
    """Results on the GPU against float64 on the CPU, with eager's error on the GPU as measure."""

    def call(backend):
        return lambda a: flashrnn(**a, function=cell, backend=backend, **options)

    device = to_gpu(arguments)
    got = results(call("cuda"), device)
    exact = results(call("reference"), cast(arguments, torch.float64))
    eager = results(call("reference"), device)
    for name, x in got.items():
        tf32 = x.dtype == torch.float32
        if tf32 and cell.name in KINKED and name.startswith("d_"):
            found = compare_at_kinks(name, x, exact[name], eager[name])
        else:
            found = compare(name, x, exact[name], eager[name], tf32=tf32)
        assert found.ok, str(found)


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16, FLOAT32], ids=name_of)
@pytest.mark.parametrize("cell", every_cell(), ids=name_of)
def test_matrix(cell, dtype) -> None:
    for shape in SHAPES:
        check(cell, problem(cell, *shape, dtype.torch))


@pytest.mark.parametrize("D", [64, 96, 256])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cell", [lstm, gru, slstm], ids=name_of)
def test_every_schedule(cell, schedule, D, monkeypatch) -> None:
    """In turn with more rows than one launch of a grid has groups of blocks for."""
    gpu = Device.current("cuda")
    if schedule == CLUSTER and gpu.architecture.cluster_blocks == 1:
        pytest.skip("this GPU has no clusters, so no kernel is made for them")
    if schedule == SCHEDULES[0] and D > 128:
        pytest.skip("no block holds so large a head")
    seen = []

    def chosen(p, gpu, _):
        tiling = choose(p, gpu, (schedule,))
        seen.append(schedule_of(tiling))
        return tiling

    monkeypatch.setattr(cuda_kernels, "choose", chosen)
    monkeypatch.setattr(cuda_kernels, "_plans", {})
    monkeypatch.setattr(cuda_kernels.packs, "lookup", lambda *_: None)
    for B in (5, 16 * gpu.sms):
        check(cell, problem(cell, B, 6, 1, D, torch.bfloat16))
    assert set(seen) == {schedule}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("D", [16, 256])
def test_options(options, D) -> None:
    check(lstm, problem(lstm, 4, 3, 1, D, torch.bfloat16), **options)


@pytest.mark.parametrize("D", [64, 768])
def test_a_cuda_graph(D) -> None:
    """Captured once, replayed with other inputs; nothing in it waits for the device."""
    cell = lstm
    p = {k: v.detach() for k, v in to_gpu(problem(cell, 33, 8, 2, D, torch.bfloat16)).items()}
    other = to_gpu(problem(cell, 33, 8, 2, D, torch.bfloat16, seed=3))["Wx"].detach()

    def call():
        return flashrnn(**p, function=cell, backend="cuda")[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        states = call()
    for wx in (p["Wx"].clone(), other):
        p["Wx"].copy_(wx)
        graph.replay()
        assert torch.equal(states, call())


@pytest.mark.parametrize("D", [64, 4096])  # one launch; launches per step
def test_a_module_trains_in_graphs(D) -> None:
    """torch.cuda.make_graphed_callables, as docs/pytorch.md has it."""
    module = LSTM(32, D, backend="cuda", device="cuda", dtype=torch.bfloat16)
    x = torch.randn(6, 4, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    parameters = list(module.parameters())

    def trained(model):
        output, (h, c) = model(x)
        loss = output.float().square().mean() + h.float().sum() + c.float().sum()
        return output.detach().clone(), *torch.autograd.grad(loss, (x, *parameters))

    alone = trained(module)
    graphed = torch.cuda.make_graphed_callables(module, (x.detach().clone().requires_grad_(),))
    for _ in range(2):
        for got, expected in zip(trained(graphed), alone, strict=True):
            assert torch.equal(got, expected)


def test_what_is_not_loaded_cannot_be_captured(monkeypatch) -> None:
    monkeypatch.setattr(cuda_kernels, "_plans", {})
    p = {k: v.detach() for k, v in to_gpu(problem(lstm, 2, 3, 1, 32, torch.bfloat16)).items()}
    with (
        pytest.raises(BackendError, match="run the call once before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        flashrnn(**p, backend="cuda")
    torch.cuda.synchronize()


def test_a_stream_of_the_user() -> None:
    """Work goes to torch's current stream and waits for what is before it there."""
    p = {k: v.detach() for k, v in to_gpu(problem(lstm, 16, 64, 4, 64, torch.bfloat16)).items()}
    expected = flashrnn(**p, backend="cuda")[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(p["Wx"])
        torch.cuda._sleep(50_000_000)
        late.copy_(p["Wx"])
        got = flashrnn(**{**p, "Wx": late}, backend="cuda")[0]
    stream.synchronize()
    assert torch.equal(got, expected)


def test_no_call_waits_for_the_device() -> None:
    p = to_gpu(problem(lstm, 16, 8, 2, 64, torch.bfloat16))
    results(lambda a: flashrnn(**a, backend="cuda"), p)
    torch.cuda.set_sync_debug_mode("error")
    try:
        states, _ = flashrnn(**p, backend="cuda")
        states.backward(torch.ones_like(states))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_twice_alike() -> None:
    p = to_gpu(problem(lstm, 33, 50, 2, 256, torch.bfloat16))
    first, second = (results(lambda a: flashrnn(**a, backend="cuda"), p) for _ in range(2))
    for name in ("states", "last", "d_Wx", "d_states"):
        assert torch.equal(first[name], second[name]), name


def test_a_refused_launch_is_told(monkeypatch) -> None:
    """More blocks than are resident at once: the driver refuses, nothing hangs."""
    monkeypatch.setattr(cuda_kernels, "_plans", {})
    p = {k: v.detach() for k, v in to_gpu(problem(lstm, 2, 3, 1, 32, torch.bfloat16)).items()}
    flashrnn(**p, backend="cuda")
    ((_, plan),) = cuda_kernels._plans.values()
    source, shape = cuda_kernels.source_of(plan.problem, plan.tiling), plan.function.shape
    cubin = cuda_kernels.cubin_of("refused", source, Device.current("cuda").sm)
    together = Function(cubin, "refused", Shape(shape.threads, shape.shared_bytes, 1, True))
    with pytest.raises(DriverError, match="COOPERATIVE_LAUNCH_TOO_LARGE on launching"):
        together.launch((1 << 20, 1), (None,) * 40)


def test_tuned_kernels_are_checked_timed_and_used(tmp_path, monkeypatch) -> None:
    """All schedules race; whichever won runs at the next call."""
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    options = {
        "batch": 16, "time": 64, "heads": 1, "head_dim": 128, "dtype": "bfloat16", "tf32": False,
        "backend": "cuda", "device": "cuda",
    }  # fmt: skip
    gpu = Device.current("cuda")
    origin = Origin("flashrnn.families:lstm_family", options)
    results = list(tune_family(origin, gpu, budget_seconds=30.0, top_k=4))
    assert [r.name.rpartition(" ")[0] for r in results] == [
        f"lstm {direction} cuda," for direction in DIRECTIONS
    ]
    for result in results:
        assert result.check.ok
        assert result.seconds is not None
        wrong = [t for t in result.trials if t.status not in ("timed", "skipped")]
        assert not wrong, [(t.description, t.status, t.reason) for t in wrong]
    monkeypatch.setattr(cuda_kernels, "_plans", {})
    p = problem(lstm, 16, 64, 1, 128, torch.bfloat16)
    check(lstm, p)
    used = {key[1]: plan.tiling for key, (_, plan) in cuda_kernels._plans.items()}
    for result in results[1:]:
        config = result.config
        assert used[result.name.split()[1]].as_config() == config


def test_another_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("it takes two GPUs")
    p = problem(lstm, 3, 4, 2, 64, torch.bfloat16)
    here, there = (
        flashrnn(**{k: v.detach().to(f"cuda:{i}") for k, v in p.items()}, backend="cuda")[0]
        for i in (0, 1)
    )
    assert torch.equal(here.cpu(), there.cpu())
