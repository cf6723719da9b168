"""Compile a Triton kernel for an architecture that need not be there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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

POINTERS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16"}
_NUMBERS = {*FORWARD_NUMBERS, *BACKWARD_NUMBERS, "t"}
# Kept in float32 whatever the storage type.
_FLOAT32 = {"carried", "d_weights"}


def compile_for(problem: TritonProblem, tiling: Tiling, sm: int) -> Compiled:
    """The kernel as a call without `lengths` runs it, for compute capability sm / 10.

    Raises MissingExtra without Triton, and what Triton raises for a kernel that it rejects.
    """
    require_compiler()
    name = f"{problem.program.cell.name}-{problem.direction}"
    function = module_of(name, source_of(problem, tiling)).run
    return compile_function(_source(function, problem), tiling.options, sm)


def require_compiler() -> None:
    """Raise MissingExtra without Triton."""
    if not is_installed():
        raise MissingExtra("compiling for a GPU", "triton", "triton")


def compile_function(source: Any, options: Mapping[str, int | bool], sm: int) -> Compiled:
    """What Triton makes of a `source_for`, for compute capability sm / 10."""
    import triton
    from triton.backends.compiler import GPUTarget

    start = time.perf_counter()
    made = triton.compile(source, target=GPUTarget("cuda", sm, WARP), options=dict(options))
    seconds = time.perf_counter() - start
    return Compiled(made.asm["cubin"], made.metadata.shared, WARP * options["num_warps"], seconds)


def _source(function: Any, problem: TritonProblem) -> Any:
    """The cell's function with the types of its arguments."""
    constants: dict[str, Any] = {"lengths": None}
    if not problem.program.weights:
        constants |= {"weights": None, "d_weights": None}
    if problem.direction == BACKWARD:
        constants["cut"] = not problem.program.cell.product_gates
    return source_for(function, constants, lambda name: _type(name, problem.dtype))


def source_for(function: Any, constants: Mapping[str, Any], type_of: Callable[[str], str]) -> Any:
    """The function with the types of its arguments, as Triton's launcher would see them.

    constants: values of arguments that are known, as None is where a tensor is left out.
    """
    from triton.compiler import ASTSource

    names = function.arg_names
    known = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in known else type_of(name) for name in names}
    aligned = [["tt.divisibility", ALIGNMENT]]
    attributes = {(at,): aligned for at, n in enumerate(names) if signature[n].startswith("*")}
    return ASTSource(function, signature, known, attributes)


def _type(name: str, dtype: Dtype) -> str:
    if name in _NUMBERS:
        return "i32"
    if name == "clip":
        return "fp32"
    return POINTERS["float32" if name in _FLOAT32 else dtype.name]
