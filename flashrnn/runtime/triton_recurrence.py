"""flashrnn::triton_recurrence: the recurrence by Triton's kernels.

For CUDA tensors, and for CPU tensors where Triton's interpreter runs them.
"""

from __future__ import annotations

from flashrnn.runtime import triton_launch
from flashrnn.runtime.gpu_recurrence import Backend, define_recurrence
from flashrnn.runtime.triton_kernels import plan_for

BACKEND = Backend("triton", plan_for, triton_launch, ("CPU", "CUDA"))
recurrence = define_recurrence(BACKEND)
