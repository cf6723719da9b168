"""Compile an emitted CUDA kernel with NVRTC, for an architecture that need not be there.

The sources include nothing of the toolkit, so its compiler is all that is needed: the wheels
nvidia-cuda-nvrtc and cuda-bindings (extra "cuda"), no nvcc, no driver.
"""

from __future__ import annotations

import time
from typing import Any

from autotune.errors import MissingExtra
from autotune.space import Compiled
from flashrnn.errors import CompilerError
from flashrnn.runtime.toolchain import source_directory
from flashrnn.tiling.cuda import BlockTiling, CudaProblem, predict, source_of

# The oldest architecture whose tensor cores take bfloat16 and tf32.
OLDEST = 80


def compile_for(problem: CudaProblem, tiling: BlockTiling, sm: int) -> Compiled:
    """The kernel for compute capability sm / 10.

    Raises MissingExtra without NVRTC, CompilerError for a source that it rejects and for an
    architecture older than OLDEST.
    """
    if sm < OLDEST:
        raise CompilerError(f"CUDA kernels need sm_{OLDEST} or later, not sm_{sm}")
    needed = predict(problem, tiling)
    start = time.perf_counter()
    cubin = compile_source(source_of(problem, tiling), sm)
    return Compiled(cubin, needed.shared_bytes, needed.threads, time.perf_counter() - start)


def compile_source(source: str, sm: int) -> bytes:
    """The cubin of a source that may include csrc/cuda. Errors as `compile_for`."""
    nvrtc = _nvrtc()
    headers = {
        f"cuda/{p.name}": p.read_bytes()
        for p in sorted((source_directory() / "cuda").glob("*.hpp"))
    }
    names = [name.encode() for name in headers]
    program = _checked(
        nvrtc, nvrtc.nvrtcCreateProgram(
            source.encode(), b"kernel.cu", len(names), list(headers.values()), names
        )
    )  # fmt: skip
    try:
        options = [f"--gpu-architecture=sm_{sm}".encode(), b"--std=c++17", b"-default-device"]
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


def _nvrtc() -> Any:
    """cuda-bindings' module. Raises MissingExtra where it or the library behind it is missing."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise MissingExtra("compiling CUDA kernels", "nvidia-cuda-nvrtc", "cuda") from error
    return nvrtc


def _checked(nvrtc: Any, returned: tuple[Any, ...]) -> Any:
    status, *values = returned
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompilerError(f"NVRTC failed: {status.name}")
    return values[0] if values else None
