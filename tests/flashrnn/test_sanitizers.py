"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, through Python."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashrnn.runtime.toolchain import find_compiler

HERE = Path(__file__).parent
# After the library's own flags, and so instead of -O3, which takes minutes here.
FLAGS = "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined"

pytestmark = pytest.mark.slow


def library(compiler: tuple[str, ...], name: str) -> Path:
    """Where the compiler has it; the bare name where it has none."""
    question = [*compiler, f"-print-file-name={name}"]
    return Path(subprocess.run(question, capture_output=True, text=True).stdout.strip())


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Where the toolchain compiles with the sanitizers and the process preloads their runtime."""
    compiler = find_compiler().command
    runtimes = [library(compiler, "libasan.so"), library(compiler, "libstdc++.so.6")]
    if not runtimes[0].is_absolute():
        pytest.skip(f"{' '.join(compiler)} has no libasan.so (it comes with g++)")
    wrapper = tmp_path_factory.mktemp("compiler") / "sanitizing"
    wrapper.write_text(f'#!/bin/sh\nexec env -u LD_PRELOAD {" ".join(compiler)} "$@" {FLAGS}\n')
    wrapper.chmod(0o755)
    return {
        **os.environ,
        "CXX": str(wrapper),
        "FLASHRNN_CACHE": str(tmp_path_factory.mktemp("cache")),
        # the second so that the first finds what exceptions are thrown with
        "LD_PRELOAD": " ".join(str(path.resolve()) for path in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it keeps
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
    }


def sanitized(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(HERE / "sanitized.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.timeout(1200)
def test_nothing_is_reported(environment) -> None:
    done = sanitized(environment)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout == "clean\n"
    assert "runtime error" not in done.stderr


@pytest.mark.parametrize(
    ("short", "told"), [("wx", "READ"), ("states", "WRITE"), ("workspace", "WRITE")]
)
def test_a_buffer_that_is_too_short_is_reported(environment, short, told) -> None:
    done = sanitized(environment, short)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert f"{told} of size" in done.stderr
    assert "flashrnn::Forward" in done.stderr
