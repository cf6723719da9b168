"""backend="triton" and "auto": who is chosen, and what is said where it cannot run."""

import subprocess
import sys

import pytest
import torch
from problems import problem
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.device import Device
from flashrnn import BackendError, choose_backend, flashrnn
from flashrnn.cells import gru, lstm
from flashrnn.errors import DeviceError, DtypeError
from flashrnn.runtime import gpu_tensors, triton_build, triton_check, triton_kernels


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def on_cuda(*shape: int, dtype=torch.bfloat16) -> torch.Tensor:
    """A tensor that says that it is on a GPU."""
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device="cuda")


@pytest.mark.skipif(not triton_build.is_installed(), reason="Triton is not installed")
def test_cpu_tensors_need_the_interpreter() -> None:
    p = problem(lstm, 2, 3, 1, 8, torch.float32)
    with pytest.raises(DeviceError, match="TRITON_INTERPRET=1"):
        flashrnn(**p, backend="triton")


@pytest.mark.parametrize("value", ["1", "0"])
def test_float64_has_no_triton_kernel(value, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    p = problem(lstm, 2, 3, 1, 8, torch.float64)
    with pytest.raises(DtypeError, match=r"kernels for float32, .*Wx is torch.float64"):
        flashrnn(**p, backend="triton")


def test_a_missing_triton_is_told(monkeypatch) -> None:
    monkeypatch.setattr(triton_build, "is_installed", lambda: False)
    p = problem(lstm, 2, 3, 1, 8, torch.float32)
    with pytest.raises(BackendError, match=r"pip install 'flashrnn-compiler\[triton\]'"):
        flashrnn(**p, backend="triton")


BLOCKED = """
import sys, warnings
warnings.simplefilter("error")
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name == "triton" else find(name, *where)
import torch, flashrnn, autotune, autotune.cli, bench.cli, flashrnn.cli
x, r = torch.zeros(1, 2, 4, 1, 3), torch.zeros(4, 1, 3, 3)
print(flashrnn.flashrnn(x, r)[0].shape, flashrnn.choose_backend(x).backend)
try:
    flashrnn.flashrnn(x, r, backend="triton")
except flashrnn.BackendError as error:
    print(error)
print(autotune.cli.main(["compile", "lstm", "--device", "l4"]))
words = ["pack", "--device", "l4", "--kernels", "elman", "--backend", "triton"]
print(flashrnn.cli.main([*words, "--output", sys.argv[1]]))
"""


def test_without_triton_everything_else_works_and_asking_for_it_is_told(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    run, told, compiled, _, packed = done.stdout.splitlines()
    assert run == "torch.Size([2, 1, 2, 1, 3]) cpu"
    assert told.startswith('backend="triton" needs the package triton, which is not installed')
    assert "pip install 'flashrnn-compiler[triton]'" in told
    assert (compiled, packed) == ("1", "0")
    assert done.stderr.startswith("autotune: ")
    assert "pip install 'flashrnn-compiler[triton]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_auto_leaves_cpu_tensors_to_the_cpu() -> None:
    x = torch.zeros(2, 3, 4, 1, 8)
    assert choose_backend(x).backend == "cpu"
    assert choose_backend(x.bfloat16()).backend == "cpu"


def gpu(monkeypatch, name: str) -> None:
    for module in (triton_kernels, gpu_tensors):
        monkeypatch.setattr(module, "device_of", lambda _: Device.named(name))


def test_auto_takes_triton_on_a_gpu_and_says_how(monkeypatch) -> None:
    monkeypatch.setattr(triton_build, "is_installed", lambda: True)
    gpu(monkeypatch, "h100-sxm")
    choice = choose_backend(on_cuda(16, 3, 4, 2, 128), lstm)
    assert choice.backend == "triton"
    assert "fused" in choice.reason
    choice = choose_backend(on_cuda(16, 3, 3, 1, 1024), gru)
    assert choice.backend == "triton"
    assert "no fused tiling fits sm_90: " in choice.reason
    assert "shared memory" in choice.reason or "registers" in choice.reason


def test_auto_takes_the_reference_where_triton_cannot_run(monkeypatch) -> None:
    x = on_cuda(16, 3, 4, 2, 64)
    monkeypatch.setattr(triton_build, "is_installed", lambda: False)
    assert choose_backend(x).backend == "reference"
    assert "not installed" in choose_backend(x).reason
    monkeypatch.setattr(triton_build, "is_installed", lambda: True)
    assert choose_backend(x.double()).backend == "reference"
    gpu(monkeypatch, "t4")
    choice = choose_backend(x)
    assert choice.backend == "reference"
    assert "compute capability 8.0 or later" in choice.reason


def test_scans_choose_likewise(monkeypatch) -> None:
    """ "auto" takes Triton for CUDA tensors that it carries, and says why it cannot if asked."""
    monkeypatch.setattr(triton_build, "is_installed", lambda: True)
    gpu(monkeypatch, "h100-sxm")
    x = on_cuda(2, 3, 4, 64)
    chosen = triton_check.chosen_for_scan
    assert chosen("auto", x, "v") == chosen("triton", x, "v") == "triton"
    assert chosen("auto", x.to(torch.complex64), "b") == "triton"
    assert chosen("auto", x.double(), "v") == "reference"
    assert chosen("auto", torch.zeros(1), "v") == "cpu"
    with pytest.raises(DtypeError, match=r"v is torch.float64"):
        chosen("triton", x.double(), "v")
    with pytest.raises(DeviceError, match="v is on cuda"):
        chosen("cpu", x, "v")
    with pytest.raises(DeviceError, match="v is on the CPU"):
        chosen("triton", torch.zeros(1), "v")
    gpu(monkeypatch, "t4")
    assert chosen("auto", x, "v") == "reference"
    with pytest.raises(BackendError, match="compute capability 8"):
        chosen("triton", x, "v")


def test_importing_and_compiling_for_a_cpu_does_not_import_triton() -> None:
    program = (
        "import sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "import torch, flashrnn\n"
        "from flashrnn.cells import lstm\n"
        "x = torch.zeros(1, 2, 4, 1, 3)\n"
        "flashrnn.choose_backend(x)\n"
        "try:\n"
        "    flashrnn.flashrnn(x, torch.zeros(4, 1, 3, 3), backend='triton')\n"
        "except (flashrnn.DeviceError, flashrnn.BackendError) as error:\n"
        "    print(type(error).__name__)\n"
        "print('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False"


def test_a_damaged_module_is_written_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    source = '"""A module."""\nvalue = 1\n'
    triton_build._written("some.py", source)
    (tmp_path / "kernels" / "some.py").write_text("value = ")
    assert triton_build._written("some.py", source).read_text() == source
    assert [p.name for p in (tmp_path / "kernels").iterdir()] == ["some.py"]


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("FLASHRNN_CACHE", str(blocked))
    with pytest.raises(BackendError, match="FLASHRNN_CACHE"):
        triton_build._written("some.py", "value = 1\n")
