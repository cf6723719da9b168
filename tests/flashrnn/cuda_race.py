"""A family whose CUDA kernels run in the execution model, for autotune's processes of a test."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from cuda_stand_in import GPU, install
from host_clock import HostStream

from autotune import serve
from autotune.gpu import Gpu
from autotune.space import Config, GpuRunner, Options
from flashrnn.cells import lstm
from flashrnn.cuda_tunable import CudaKernel, runner_of
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16
from flashrnn.emit.cuda import GRID, TRAINING
from flashrnn.families import CellFamily
from flashrnn.passes.lower import lower
from flashrnn.tiling.cuda import CudaProblem
from flashrnn.tiling.cuda_choice import BLOCK

PROBLEM = CudaProblem(lower(lstm), TRAINING, BFLOAT16, Dims(3, 2, 1, 16))


@dataclass(frozen=True)
class HereKernel(CudaKernel):
    """Compiled by NVRTC, loaded into the execution model."""

    def load(self, config: Config) -> GpuRunner:
        install(pytest.MonkeyPatch())  # in the measuring process, which ends with the search
        return runner_of(self.problem_, self.tiling(config), GPU, "cpu")


class RaceFamily(CellFamily):
    """The LSTM's forward pass by two schedules."""

    def gpu_tunables(self, options: Options, device: Gpu) -> list[HereKernel]:
        serve.CudaStream = HostStream
        return [HereKernel(PROBLEM, schedule) for schedule in (GRID, BLOCK)]


def family() -> RaceFamily:
    return RaceFamily(lstm, lambda dims, dtype: [])
