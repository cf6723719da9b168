"""Compile a Triton kernel for an architecture that need not be there."""

from __future__ import annotations

import time
from typing import Any

from autotune.errors import MissingExtra
from autotune.space import Compiled
from flashrnn.dtypes import Dtype
from flashrnn.emit.triton import BACKWARD
from flashrnn.emit.triton_step import BACKWARD_NUMBERS, FORWARD_NUMBERS
from flashrnn.runtime.triton_build import is_installed, module_of
from flashrnn.runtime.triton_kernels import source_of
from flashrnn.runtime.triton_launch import ALIGNMENT
from flashrnn.tiling.triton import Tiling, TritonProblem
from flashrnn.tiling.triton_needs import WARP

_POINTERS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
_NUMBERS = {*FORWARD_NUMBERS, *BACKWARD_NUMBERS, "t"}
# Kept in float32 whatever the storage type.
_FLOAT32 = {"carried", "d_weights"}


def compile_for(problem: TritonProblem, tiling: Tiling, sm: int) -> Compiled:
    """The kernel as a call without `lengths` runs it, for compute capability sm / 10.

    Raises MissingExtra without Triton, and what Triton raises for a kernel that it rejects.
    """
    if not is_installed():
        raise MissingExtra("compiling for a GPU", "triton", "triton")
    import triton
    from triton.backends.compiler import GPUTarget

    name = f"{problem.program.cell.name}-{problem.direction}"
    function = module_of(name, source_of(problem, tiling)).run
    start = time.perf_counter()
    made = triton.compile(
        _source(function, problem), target=GPUTarget("cuda", sm, WARP), options=tiling.options
    )
    seconds = time.perf_counter() - start
    return Compiled(made.asm["cubin"], made.metadata.shared, WARP * tiling.num_warps, seconds)


def _source(function: Any, problem: TritonProblem) -> Any:
    """The function with the types of its arguments, as Triton's launcher would see them."""
    from triton.compiler import ASTSource

    constants: dict[str, Any] = {"lengths": None}
    if not problem.program.weights:
        constants |= {"weights": None, "d_weights": None}
    if problem.direction == BACKWARD:
        constants["cut"] = not problem.program.cell.product_gates
    names = function.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {
        name: "constexpr" if name in constants else _type(name, problem.dtype) for name in names
    }
    aligned = [["tt.divisibility", ALIGNMENT]]
    attributes = {(at,): aligned for at, n in enumerate(names) if signature[n].startswith("*")}
    return ASTSource(function, signature, constants, attributes)


def _type(name: str, dtype: Dtype) -> str:
    if name in _NUMBERS:
        return "i32"
    if name == "clip":
        return "fp32"
    return _POINTERS["float32" if name in _FLOAT32 else dtype.name]
