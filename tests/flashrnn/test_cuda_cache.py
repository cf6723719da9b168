"""Cubins on the disk: compiled once, by any number of processes, and again where one is damaged."""

from __future__ import annotations

import subprocess
import sys

import pytest

from autotune.errors import CacheWarning
from flashrnn.runtime import cuda_cache, cuda_compile
from flashrnn.runtime.cuda_cache import cubin_of

pytest.importorskip("cuda.bindings", reason="the extra cuda is not installed")

SOURCE = """\
#include "cuda/target.hpp"
FLASHRNN_KERNEL(32) run(float* x) { x[flashrnn::thread_index()] = 1.0f; }
"""


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """The directory of an empty cache."""
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    return tmp_path / "kernels"


@pytest.fixture
def compiled(monkeypatch) -> list[int]:
    """The architectures for which NVRTC was called."""
    calls, compile_source = [], cuda_compile.compile_source

    def counted(source, sm):
        calls.append(sm)
        return compile_source(source, sm)

    monkeypatch.setattr(cuda_compile, "compile_source", counted)
    return calls


def test_a_kernel_is_compiled_once(kernels, compiled, recwarn) -> None:
    first = cubin_of("some", SOURCE, 90)
    assert first.startswith(b"\x7fELF")
    assert cubin_of("some", SOURCE, 90) == first
    assert compiled == [90]
    (cubin,) = kernels.glob("*.cubin")
    assert cubin.name.startswith("some-sm90-")
    assert cubin.with_suffix(".cu").read_text() == SOURCE
    assert len(list(kernels.iterdir())) == 2
    assert not recwarn


def test_whatever_it_depends_on_makes_another(kernels, compiled, monkeypatch) -> None:
    cubin_of("some", SOURCE, 90)
    cubin_of("some", SOURCE, 80)
    cubin_of("some", SOURCE + "// other", 90)
    for name, value in (
        ("compiler_version", lambda: "NVRTC 99.0"),
        ("options_for", lambda sm: (*cuda_compile.options_for(sm), "-lineinfo")),
        ("headers", lambda: {**cuda_compile.headers(), "cuda/more.hpp": b""}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(cuda_cache, name, value)
            cubin_of("some", SOURCE, 90)
    assert compiled == [90, 80, 90, 90, 90, 90]
    assert len(list(kernels.glob("*.cubin"))) == 6


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_replaced(damage, kernels, compiled) -> None:
    whole = cubin_of("some", SOURCE, 90)
    (path,) = kernels.glob("*.cubin")
    data = path.read_bytes()
    middle = len(data) // 2
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"cut": data[:middle], "changed": changed, "empty": b""}[damage])
    with pytest.warns(CacheWarning, match=r"discarded a damaged kernel, .*some-sm90-"):
        assert cubin_of("some", SOURCE, 90) == whole
    assert path.read_bytes() == data
    assert compiled == [90, 90]


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("FLASHRNN_CACHE", str(blocked))
    with pytest.warns(CacheWarning, match=r"used but not remembered: .*set FLASHRNN_CACHE"):
        assert cubin_of("some", SOURCE, 90).startswith(b"\x7fELF")


PROGRAM = """
import sys
from flashrnn.runtime.cuda_cache import cubin_of
sys.stdin.readline()
print(len(cubin_of("some", sys.argv[1], 90)))
"""


def test_two_processes_at_once(kernels, recwarn) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::autotune.errors.CacheWarning", "-c", PROGRAM, SOURCE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    expected = str(len(cubin_of("some", SOURCE, 90)))
    assert [out.strip() for out, _ in told] == [expected] * 2
    assert len(list(kernels.iterdir())) == 2
    assert not recwarn
