"""Compile an emitted CUDA kernel with NVRTC, for an architecture that need not be there.

The sources include nothing of the toolkit, so its compiler is all that is needed: the wheels
nvidia-cuda-nvrtc and cuda-bindings (extra "cuda"), no nvcc, no driver.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

from autotune.errors import MissingExtra
from autotune.space import Compiled
from flashrnn.dtypes import OLDEST_SM
from flashrnn.errors import CompilerError
from flashrnn.runtime.toolchain import source_directory
from flashrnn.tiling.cuda import CudaProblem
from flashrnn.tiling.cuda_choice import predict, source_of
from flashrnn.tiling.cuda_latency import AnyTiling


def compile_for(problem: CudaProblem, tiling: AnyTiling, sm: int) -> Compiled:
    """The kernel for compute capability sm / 10.

    Raises MissingExtra without NVRTC, CompilerError for a source that it rejects and for an
    architecture older than OLDEST_SM.
    """
    if sm < OLDEST_SM:
        raise CompilerError(f"CUDA kernels need sm_{OLDEST_SM} or later, not sm_{sm}")
    needed = predict(problem, tiling)
    start = time.perf_counter()
    cubin = compile_source(source_of(problem, tiling), sm)
    return Compiled(cubin, needed.shared_bytes, needed.threads, time.perf_counter() - start)


def compile_source(source: str, sm: int) -> bytes:
    """The cubin of a source that may include csrc/cuda. Errors as `compile_for`."""
    nvrtc, included = _nvrtc(), headers()
    names = [name.encode() for name in included]
    program = _checked(
        nvrtc, nvrtc.nvrtcCreateProgram(
            source.encode(), b"kernel.cu", len(names), list(included.values()), names
        )
    )  # fmt: skip
    try:
        options = [option.encode() for option in options_for(sm)]
        status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
            _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
            told = log.decode(errors="replace").strip("\0 \n")
            raise CompilerError(f"NVRTC rejected a kernel for sm_{sm}: {told[-2000:]}")
        cubin = bytearray(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin))
        return bytes(cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def options_for(sm: int) -> tuple[str, ...]:
    """What NVRTC is told."""
    return f"--gpu-architecture=sm_{sm}", "--std=c++17", "-default-device"


@cache
def headers() -> dict[str, bytes]:
    """csrc/cuda, by the names under which sources include it."""
    files = sorted((source_directory() / "cuda").glob("*.hpp"))
    return {f"cuda/{path.name}": path.read_bytes() for path in files}


def compiler_version() -> str:
    """Of NVRTC. Raises MissingExtra."""
    nvrtc = _nvrtc()
    major, minor = _checked_all(nvrtc, nvrtc.nvrtcVersion())
    return f"NVRTC {major}.{minor}"


def _nvrtc() -> Any:
    """cuda-bindings' module. Raises MissingExtra where it or the library behind it is missing."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise MissingExtra("compiling CUDA kernels", "nvidia-cuda-nvrtc", "cuda") from error
    return nvrtc


def _checked(nvrtc: Any, returned: tuple[Any, ...]) -> Any:
    values = _checked_all(nvrtc, returned)
    return values[0] if values else None


def _checked_all(nvrtc: Any, returned: tuple[Any, ...]) -> tuple[Any, ...]:
    status, *values = returned
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompilerError(f"NVRTC failed: {status.name}")
    return tuple(values)
