"""Compilers, the kernel cache, and the OpenMP runtime."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from problems import problem

from autotune.device import Device
from autotune.errors import CacheWarning
from flashrnn import flashrnn
from flashrnn.cells import lstm
from flashrnn.errors import CompilerError
from flashrnn.runtime.build import build, build_soon
from flashrnn.runtime.toolchain import find_compiler

RUN = """
import torch
from flashrnn import flashrnn
torch.set_num_threads(2)
states, _ = flashrnn(torch.ones(4, 3, 4, 2, 8), torch.ones(4, 2, 8, 8))
print(states.sum().item())
"""


def run(environment, program=RUN) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        timeout=120,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_no_compiler(monkeypatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CompilerError, match=r"apt install g\+\+.*reference"):
        find_compiler()


def test_a_compiler_that_does_not_run(monkeypatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++ -m64")
    with pytest.raises(CompilerError, match=r"/nonexistent/c\+\+ -m64"):
        find_compiler()


def test_without_a_compiler_the_reference_still_works(tmp_path) -> None:
    done = run({"CXX": "/nonexistent/c++", "FLASHRNN_CACHE": str(tmp_path)})
    assert done.returncode != 0
    assert "CompilerError" in done.stderr
    states, _ = flashrnn(torch.ones(1, 2, 4, 1, 3), torch.ones(4, 1, 3, 3), backend="reference")
    assert states.isfinite().all()


def test_the_compilers_own_words() -> None:
    with pytest.raises(CompilerError, match="no_such_type"):
        build("test-broken", "no_such_type x;", Device.current())


def test_a_compiler_without_our_builtins_reads_its_own_header(tmp_path, monkeypatch) -> None:
    """It is asked again with intrinsics, and what it says of those is what is told."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\necho "$@" >> "$0.log"\ncase "$*" in\n'
        f'*--version*|*FLASHRNN_INTRINSICS*) exec {find_compiler().command[0]} "$@";; esac\n'
        'echo "no such builtin" >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    assert build("test-asked-again", '#include "cpu/simd.hpp"\n', Device.current()).is_file()
    assert len((tmp_path / "c++.log").read_text().splitlines()) == 3  # --version, and twice
    with pytest.raises(CompilerError, match="no_such_type"):
        build("test-broken", "no_such_type x;", Device.current())


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path / "file"))
    with pytest.raises(CompilerError, match="FLASHRNN_CACHE"):
        build("test-unwritable", "int x;", Device.current())


def test_builds_at_once_leave_one_whole_library(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run({"FLASHRNN_CACHE": str(tmp_path)}), range(2)))
    assert [r.returncode for r in results] == [0, 0], results[0].stderr + results[1].stderr
    assert results[0].stdout == results[1].stdout
    assert len(list((tmp_path / "kernels").glob("*.so"))) == 1
    assert not list((tmp_path / "kernels").glob(".build*"))


def test_a_second_build_compiles_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    first = build("test-once", "int x;", Device.current())
    before = first.stat().st_mtime_ns
    assert build("test-once", "int x;", Device.current()) == first
    assert first.stat().st_mtime_ns == before
    assert build("test-once", "int y;", Device.current()) != first
    narrow = Device.current().with_isa("generic")
    if narrow.isa != Device.current().isa:
        assert build("test-once", "int x;", narrow) != first


def test_what_is_built_beside_other_work_is_built_once(tmp_path, monkeypatch) -> None:
    """Who needs it meanwhile waits; what failed is told to them, in the compiler's words."""
    log = tmp_path / "c++.log"
    compiler = tmp_path / "c++"
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in *--version*) ;; *) sleep 1;; esac\n'
        f'exec {find_compiler().command[0]} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    for _ in range(2):
        build_soon("test-soon", "int x;", Device.current())
    assert not list(tmp_path.glob("kernels/*.so"))  # nobody has waited
    assert build("test-soon", "int x;", Device.current()).is_file()
    build_soon("test-soon", "int x;", Device.current())
    assert len([line for line in log.read_text().splitlines() if "--version" not in line]) == 1
    build_soon("test-broken", "no_such_type x;", Device.current())
    with pytest.raises(CompilerError, match="no_such_type"):
        build("test-broken", "no_such_type x;", Device.current())


def test_a_thread_that_outlives_the_main_one(tmp_path) -> None:
    """Nothing more begins in the background then; a build is still made."""
    program = (
        "import threading, time\n"
        "from autotune.device import Device\n"
        "from flashrnn.runtime import build\n"
        "def late():\n"
        "    threading.main_thread().join()\n"
        "    time.sleep(0.5)\n"
        "    build.build_soon('test-late', 'int x;', Device.current())\n"
        "    print(build.build('test-late', 'int x;', Device.current()).is_file())\n"
        "threading.Thread(target=late).start()\n"
    )
    done = run({"FLASHRNN_CACHE": str(tmp_path)}, program)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_waits_for_no_thread_of_its_parent(tmp_path) -> None:
    program = (
        "import os, time, torch\n"
        "from autotune.device import Device\n"
        "from flashrnn.runtime import build\n"
        "build.build_soon('test-fork', 'int x;', Device.current())\n"
        "pid = os.fork()\n"
        "path = build.build('test-fork', 'int x;', Device.current())\n"
        "assert path.is_file()\n"
        "if pid == 0: os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    done = run({"FLASHRNN_CACHE": str(tmp_path)}, program)
    assert done.returncode == 0, done.stderr


def test_other_words_for_the_compiler_give_another_library(tmp_path, monkeypatch) -> None:
    """They may be flags, which its version does not tell."""
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    first = build("test-words", "int x;", Device.current())
    monkeypatch.setenv("CXX", " ".join((*find_compiler().command, "-DWORD")))
    assert build("test-words", "int x;", Device.current()) != first


def test_a_damaged_library_is_built_again(tmp_path, monkeypatch, fresh_kernels) -> None:
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    arguments = {k: v.detach() for k, v in problem(lstm, 1, 2, 1, 3, torch.float32).items()}
    expected = flashrnn(**arguments)[0]
    (library,) = (tmp_path / "kernels").glob("*.so")
    moved = tmp_path / "elsewhere"
    monkeypatch.setenv("FLASHRNN_CACHE", str(moved))
    (moved / "kernels").mkdir(parents=True)
    (moved / "kernels" / library.name).write_bytes(library.read_bytes()[:100])
    fresh_kernels()
    with pytest.warns(CacheWarning, match="damaged"):
        assert torch.equal(flashrnn(**arguments)[0], expected)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_openmp_runtime_in_the_process(tmp_path) -> None:
    program = RUN + (
        "maps = {l.split()[-1] for l in open('/proc/self/maps') if '.so' in l}\n"
        "print(sum(any(n in m for n in ('libgomp', 'libiomp', 'libomp')) for m in maps))\n"
        "from flashrnn.runtime.openmp import threading\n"
        "print(all(threading()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split()[1:] == ["1", "True"], done.stderr


def test_a_process_keeps_its_subnormals() -> None:
    """-ffast-math anywhere would flush them."""
    arguments = problem(lstm, 1, 2, 1, 3, torch.float32)
    flashrnn(**arguments)
    tiny = torch.tensor(1e-40)
    assert (tiny * 0.5).item() > 0
