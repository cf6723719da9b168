"""Compile a scan's Triton kernels for an architecture that need not be there."""

from __future__ import annotations

from autotune.space import Compiled
from flashrnn.runtime.triton_compile import (
    POINTERS,
    compile_function,
    require_compiler,
    source_for,
)
from flashrnn.runtime.triton_scan import FINISH, TritonScanPlan, load
from flashrnn.tiling.triton_scan import TritonScanProblem, TritonScanTiling

# Tensors that have the storage type; the others, states and carries, are float32.
_STORED = {"scores", "v", "o", "d_o", "d_v", "a", "b", "h", "d_h", "d_a", "d_b"}


def compile_scan(
    problem: TritonScanProblem,
    tiling: TritonScanTiling,
    sm: int,
    kernel: str = FINISH,
    *,
    packed: bool = False,
) -> Compiled:
    """One kernel as a call with all of its tensors runs it, for compute capability sm / 10.

    packed: with packed sequences. Raises MissingExtra without Triton, and what Triton raises for
    a kernel that it rejects.
    """
    require_compiler()
    plan = load(problem, tiling)
    function = getattr(plan.module, kernel)
    numbers = {parameter.name for parameter in function.params if parameter.do_not_specialize}

    def type_of(name: str) -> str:
        if name in numbers:
            return "i32"
        if name == "offsets":
            return "*i64"
        return POINTERS[problem.storage.name if _is_stored(plan, name) else "float32"]

    source = source_for(function, {} if packed else {"offsets": None}, type_of)
    return compile_function(source, tiling.options, sm)


def _is_stored(plan: TritonScanPlan, name: str) -> bool:
    # sums over channels of programs that share them
    return name in _STORED or (name == "d_scores" and plan.parts == 1)
