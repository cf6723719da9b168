"""flashrnn::cuda_recurrence: the recurrence by CUDA kernels."""

from __future__ import annotations

from flashrnn.runtime import cuda_launch
from flashrnn.runtime.cuda_kernels import plan_for
from flashrnn.runtime.gpu_recurrence import Backend, define_recurrence

BACKEND = Backend("cuda", plan_for, cuda_launch, ("CUDA",))
recurrence = define_recurrence(BACKEND)
