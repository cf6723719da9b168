"""backend="cuda" and "auto" where something is missing: what is said, and who is chosen."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from problems import problem
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune import cache
from autotune.device import Device
from autotune.errors import MissingExtra, NoGpu
from flashrnn import choose_backend, flashrnn
from flashrnn.cells import indrnn, lstm
from flashrnn.errors import BackendError, DeviceError, DtypeError
from flashrnn.nn import LSTM
from flashrnn.runtime import (
    cuda_check,
    cuda_driver,
    cuda_kernels,
    gpu_choice,
    gpu_tensors,
    triton_build,
    triton_kernels,
)
from flashrnn.tiling.cuda_choice import cheapest
from flashrnn.tiling.triton import FusedTiling


def on_cuda(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    """A tensor that says that it is on a GPU."""
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


@contextmanager
def matmul_precision(asked: str):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(asked)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def refusal(x, **more) -> str:
    """What backend="cuda" says of tensors like x."""
    with pytest.raises((BackendError, DeviceError, DtypeError)) as told:
        cuda_check.check_cuda(x, **more)
    return str(told.value)


@pytest.fixture
def gpu(monkeypatch):
    """Makes "cuda" tensors those of a GPU of the table, on which all is installed."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_build, "is_installed", lambda: True)
    monkeypatch.setattr(cuda_check, "driver", lambda: None)
    monkeypatch.setattr(cuda_check, "compiler_version", lambda: "NVRTC 99.0")

    def use(name: str) -> None:
        for module in (triton_kernels, gpu_tensors):
            monkeypatch.setattr(module, "device_of", lambda _: Device.named(name))

    use("h100-sxm")
    return use


def test_cpu_tensors() -> None:
    p = problem(lstm, 2, 3, 1, 8, torch.bfloat16)
    with pytest.raises(DeviceError, match="NVIDIA GPU, Wx is on the CPU"):
        flashrnn(**p, backend="cuda")
    with pytest.raises(DeviceError, match="NVIDIA GPU, Wx is on the CPU"):
        LSTM(4, 8, backend="cuda", dtype=torch.bfloat16)(torch.zeros(3, 1, 4).bfloat16())


def test_dtypes(gpu) -> None:
    assert "has kernels for float32, bfloat16, float16, Wx is torch.float64" in refusal(
        on_cuda(2, 3, 4, 1, 8, dtype=torch.float64)
    )
    single = on_cuda(2, 3, 4, 1, 8, dtype=torch.float32)
    told = refusal(single, name="x")
    assert 'x is float32: torch.set_float32_matmul_precision("high") allows' in told
    assert 'backend="triton" has exact products' in told
    with matmul_precision("high"):
        cuda_check.check_cuda(single)
    cuda_check.check_cuda(on_cuda(2, 3, 4, 1, 8, dtype=torch.float16))


def test_old_gpus_and_unknown_ones(gpu, monkeypatch) -> None:
    x = on_cuda(2, 3, 4, 1, 8)
    gpu("t4")
    assert "needs compute capability 8.0 or later, cuda:0 has 7.5" in refusal(x)

    def nothing(_):
        raise NoGpu("there is no driver")

    monkeypatch.setattr(gpu_tensors, "device_of", nothing)
    assert 'backend="cuda" cannot run on cuda:0' in refusal(x)


@pytest.fixture
def asks_again():
    cuda_driver.driver.cache_clear()
    yield
    cuda_driver.driver.cache_clear()


BLOCKED = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: (
    None if name in ("cuda", "cuda.bindings") else find(name, *where)
)
import torch, flashrnn, flashrnn.cli, bench.cli
from flashrnn.runtime.cuda_driver import driver
x, r = torch.zeros(1, 2, 4, 1, 3), torch.zeros(4, 1, 3, 3)
print(flashrnn.flashrnn(x, r)[0].shape)
try:
    driver()
except flashrnn.BackendError as error:
    print(error)
"""


def test_without_the_wheel_all_else_works() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run, told = done.stdout.splitlines()
    assert run == "torch.Size([2, 1, 2, 1, 3])"
    assert told == (
        'backend="cuda" needs the package cuda-bindings, which is not installed: '
        "pip install 'flashrnn-compiler[cuda]'"
    )


@pytest.mark.usefixtures("asks_again")
def test_without_a_driver(monkeypatch) -> None:
    found = pytest.importorskip("cuda.bindings.driver", reason="the extra cuda is not installed")
    refused = found.CUresult.CUDA_ERROR_NO_DEVICE
    monkeypatch.setattr(found, "cuInit", lambda _: (refused,))
    with pytest.raises(BackendError, match=r"needs an NVIDIA driver: .*CUDA_ERROR_NO_DEVICE"):
        cuda_driver.driver()


def test_without_nvrtc(gpu, monkeypatch) -> None:
    def missing():
        raise MissingExtra("compiling CUDA kernels", "nvidia-cuda-nvrtc", "cuda")

    monkeypatch.setattr(cuda_check, "compiler_version", missing)
    told = refusal(on_cuda(2, 3, 4, 1, 8))
    assert told.startswith('backend="cuda" cannot compile its kernels: ')
    assert "pip install 'flashrnn-compiler[cuda]'" in told


def test_auto_ranks_by_the_models(gpu, monkeypatch) -> None:
    x = on_cuda(16, 3, 4, 2, 64)
    choice = choose_backend(x, lstm)
    assert choice.backend in ("cuda", "triton")
    assert "neither of them measured" in choice.reason
    for predicted, backend in ((1e-9, "cuda"), (1.0, "triton")):
        monkeypatch.setattr(gpu_choice, "_cuda_seconds", lambda *_, found=predicted: (found, True))
        gpu_choice._ranked.cache_clear()
        choice = choose_backend(x, lstm)
        assert choice.backend == backend
        assert (
            f"µs by Triton and {1e6 * predicted:.3g} µs by CUDA kernels"
            in choice.reason.replace("per step, forward and backward, ", "")
        )
    monkeypatch.setattr(gpu_choice, "_cuda_seconds", lambda *_: (1e-9, False))
    gpu_choice._ranked.cache_clear()
    told = choose_backend(x, lstm).reason
    assert "a CUDA kernel per step and a product of the library: none holds a head" in told


@pytest.fixture(autouse=True)
def own_ranking():
    gpu_choice._ranked.cache_clear()
    yield
    gpu_choice._ranked.cache_clear()


def test_auto_prefers_what_was_measured(gpu, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu_choice, "_cuda_seconds", lambda *_: (1e-9, True))
    x = on_cuda(16, 3, 4, 2, 64)
    assert choose_backend(x, lstm).backend == "cuda"
    tuned = FusedTiling(16, 64, 4, 1, 0)
    problem = gpu_choice._problem(x, lstm)
    h100 = Device.named("h100-sxm")
    cache.remember_here(triton_kernels.problem_key(problem), h100.fingerprint, tuned.as_config())
    choice = choose_backend(x, lstm)
    assert choice.backend == "triton"
    assert choice.reason.startswith("what was measured comes before a prediction")


def test_auto_compares_what_was_measured(gpu, tmp_path, monkeypatch) -> None:
    """Per step, forward and backward; calls of different lengths were tuned."""
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    x, h100 = on_cuda(16, 3, 4, 2, 64), Device.named("h100-sxm")
    problem = gpu_choice._problem(x, lstm)

    def tuned(backend: str, direction: str, seconds: float | None, steps: int) -> None:
        one = replace(problem, direction=direction)
        by_cuda = gpu_choice._as_cuda(one)
        key, tiling = triton_kernels.problem_key(one), FusedTiling(16, 64, 4, 1, 0)
        if backend == "cuda":
            key, tiling = cuda_kernels.problem_key(by_cuda), cheapest(by_cuda, h100, "grid")
        cache.store(cache.Entry(
            backend, h100.fingerprint, key, tiling.as_config(), "", seconds, None, [], steps=steps
        ))  # fmt: skip

    tuned("cuda", "training", 5e-3, 100)
    choice = choose_backend(x, lstm)
    assert choice.backend == "cuda", "before a prediction, which would take another"
    assert choice.reason == (
        "what was measured comes before a prediction for Triton: CUDA kernels hold R of a head on "
        "NVIDIA H100 SXM; their tiling is tuned: the fastest of those measured"
    )
    tuned("triton", "training", 3e-3, 1000)
    assert "since tuning did not time both" in choose_backend(x, lstm).reason
    tuned("cuda", "backward", 5e-3, 100)
    tuned("triton", "backward", 300e-3, 1000)
    choice = choose_backend(x, lstm)
    assert choice.backend == "cuda"
    told = "303 µs by Triton and 100 µs by CUDA kernels per step, forward and backward, measured: "
    assert choice.reason.startswith(told)
    tuned("triton", "backward", 90e-3, 1000)
    assert choose_backend(x, lstm).backend == "triton"
    tuned("triton", "backward", None, 1000)
    assert "since tuning did not time both" in choose_backend(x, lstm).reason


def test_auto_tells_which_schedule_tuning_found(gpu, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    x, h100 = on_cuda(16, 3, 4, 2, 64), Device.named("h100-sxm")
    key = cuda_kernels.problem_key(gpu_choice._as_cuda(gpu_choice._problem(x, lstm)))
    cache.remember_here(key, h100.fingerprint, {"threads": 32})
    told = choose_backend(x, lstm).reason
    assert "a product of the library: tuning found it faster than fused kernels" in told


def test_auto_where_one_or_both_cannot(gpu, monkeypatch) -> None:
    x = on_cuda(16, 3, 4, 2, 64)
    monkeypatch.setattr(triton_build, "is_installed", lambda: False)
    choice = choose_backend(x, lstm)
    assert (choice.backend, "not measured" in choice.reason) == ("cuda", True)
    gpu("t4")
    choice = choose_backend(x, lstm)
    assert choice.backend == "reference"
    assert choice.reason.count("7.5") == 1 and "triton" in choice.reason
    monkeypatch.setattr(triton_build, "is_installed", lambda: True)
    assert choose_backend(x, lstm).reason.count("compute capability 8.0 or later") == 2


def test_auto_of_a_layer_and_of_float32(gpu) -> None:
    assert choose_backend(on_cuda(2, 3, 8)).backend == "triton"
    single = on_cuda(16, 3, 4, 2, 64, dtype=torch.float32)
    assert "CUDA" not in choose_backend(single, lstm).reason
    with matmul_precision("high"):
        assert "CUDA" in choose_backend(single, lstm).reason


def test_auto_of_a_cell_without_products(gpu) -> None:
    assert "CUDA" in choose_backend(on_cuda(2, 3, 1, 2, 64), indrnn).reason
