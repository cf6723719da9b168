"""The Triton kernels on a real GPU: the comparisons of test_triton_interpreter.py, compiled.

`pytest -m gpu`. Without a GPU every test here is skipped, and says so.
"""

import pytest
import torch
from problems import cast, compare_at_kinks, problem, results, run
from test_options import OPTIONS, chosen
from test_triton_interpreter import ALL, DTYPES, LIBRARY, MATRIX, check_shape, name_of

from flashrnn import choose_backend, flashrnn
from flashrnn.cells import gru, lstm, slstm
from flashrnn.runtime import triton_kernels
from flashrnn.runtime.tuned import Selected
from flashrnn.tiling.triton import AlternatingTiling
from flashrnn.tolerance import compare

pytestmark = pytest.mark.gpu
KINKED = ("elman_relu", "shuffled")  # 16 bits put an argument on its other side now and then


def to_gpu(arguments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.detach().cuda().requires_grad_() for k, v in arguments.items()}


def check(cell, arguments) -> None:
    """Results on the GPU against float64 on the CPU, eager's error on the GPU as the measure."""
    device = to_gpu(arguments)
    got = results(lambda a: flashrnn(**a, function=cell, backend="triton"), device)
    exact = results(
        lambda a: flashrnn(**a, function=cell, backend="reference"), cast(arguments, torch.float64)
    )
    eager = results(lambda a: flashrnn(**a, function=cell, backend="reference"), device)
    for name in got:
        kinked = cell.name in KINKED and name.startswith("d_")
        if kinked and got[name].dtype != torch.float32:
            result = compare_at_kinks(name, got[name], exact[name], eager[name])
        else:
            result = compare(name, got[name], exact[name], eager[name])
        assert result.ok, str(result)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("cell", [*LIBRARY, *ALL], ids=name_of)
def test_matrix(cell, dtype) -> None:
    for shape in MATRIX:
        check_shape(check, cell, shape, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("D", [96, 128, 300])
@pytest.mark.parametrize("cell", LIBRARY, ids=name_of)
def test_large_heads(cell, D, dtype) -> None:
    check_shape(check, cell, (33, 12, 2, D), dtype)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("cell", [lstm, gru, slstm, *ALL], ids=name_of)
def test_options(cell, name) -> None:
    p = problem(cell, 5, 6, 2, 5, torch.float32)

    def call(backend):
        def run_(a):
            options = chosen(name, cell, 6, a["Wx"].dtype)
            if "zoneout" in options:
                options["zoneout"] = options["zoneout"].to(a["Wx"].device)
            return flashrnn(**a, function=cell, backend=backend, **options)

        return run_

    got = results(call("triton"), to_gpu(p))
    exact = results(call("reference"), cast(p, torch.float64))
    eager = results(call("reference"), to_gpu(p))
    for key in got:
        result = compare(key, got[key], exact[key], eager[key])
        assert result.ok, str(result)


@pytest.mark.parametrize("cell", [lstm, gru, slstm], ids=name_of)
def test_the_schedules_agree(cell, monkeypatch) -> None:
    p = to_gpu(problem(cell, 17, 9, 2, 64, torch.float32))
    fused = run(cell, p, "triton")
    monkeypatch.setattr(triton_kernels, "_plans", {})
    tiling = AlternatingTiling(b_per_program=4, d_per_program=64, num_warps=2)
    monkeypatch.setattr(triton_kernels, "select", lambda *_: Selected(tiling, "test"))
    alternating = run(cell, p, "triton")
    for name, value in fused.items():
        torch.testing.assert_close(alternating[name], value, rtol=1e-4, atol=1e-4)


def test_auto_runs_the_kernels_twice_alike() -> None:
    p = to_gpu(problem(lstm, 16, 50, 4, 64, torch.bfloat16))
    assert choose_backend(p["Wx"], lstm).backend in ("triton", "cuda")
    first, second = run(lstm, p, "auto"), run(lstm, p, "auto")
    for name in ("states", "last", "d_Wx", "d_states"):
        assert torch.equal(first[name], second[name]), name


def test_one_compilation_serves_every_batch_and_length() -> None:
    """A module's kernel is compiled once, whatever T, B, N and the divisors of their products."""
    triton_kernels._plans.clear()
    for B, T, N in ((16, 4, 2), (16, 5, 2), (16, 1, 2), (13, 16, 2), (16, 16, 3)):
        run(lstm, to_gpu(problem(lstm, B, T, N, 64, torch.bfloat16)), "triton")
    modules = {id(p.module): p.module for _, p in triton_kernels._plans.values()}
    for module in modules.values():
        caches = module.run.device_caches.values()
        assert sum(len(cache[0]) for cache in caches) == 1, module.__name__
