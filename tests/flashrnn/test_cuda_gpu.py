"""The emitted CUDA kernels on a real GPU: the comparisons of test_cuda_host.py.

`pytest -m gpu`. Without a GPU every test here is skipped, and says so.
"""

import ctypes
from collections.abc import Sequence

import pytest
import torch
from cuda_checks import comparisons
from cuda_host import Argument, pack
from cuda_tilings import BLOCK
from test_cuda_host import COVER, OPTIONS, hold, tile_of

from flashrnn.cells import lstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16
from flashrnn.runtime.cuda_compile import compile_for
from flashrnn.tiling.cuda import BlockTiling, CudaProblem

pytestmark = pytest.mark.gpu


class GpuKernel:
    """One kernel, compiled for the current GPU and launched by the driver."""

    def __init__(self, problem: CudaProblem, tiling: BlockTiling) -> None:
        from cuda.bindings import driver

        torch.cuda.init()
        torch.empty(1, device="cuda")  # makes torch's context the current one
        self.problem, self._driver = problem, driver
        major, minor = torch.cuda.get_device_capability()
        self._made = compile_for(problem, tiling, 10 * major + minor)
        module = self._checked(driver.cuModuleLoadData(self._made.cubin))
        self._function = self._checked(driver.cuModuleGetFunction(module, b"run"))
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        shared = self._made.shared_bytes
        self._checked(driver.cuFuncSetAttribute(self._function, limit, shared))

    def run(self, _order: str, _written: Sequence[torch.Tensor], *arguments: Argument) -> None:
        packed, dims = pack(arguments), self.problem.dims
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(packed))
        stream = torch.cuda.current_stream().cuda_stream
        grid = (-(-dims.B // 16), dims.N, 1)
        block = (self._made.threads, 1, 1)
        launched = self._driver.cuLaunchKernel(
            self._function, *grid, *block, self._made.shared_bytes, stream,
            ctypes.addressof(parameters), 0,
        )  # fmt: skip
        self._checked(launched)
        torch.cuda.synchronize()

    def _checked(self, returned):
        status, *values = returned
        assert status == self._driver.CUresult.CUDA_SUCCESS, status
        return values[0] if values else None


@pytest.mark.parametrize(
    "row", [row for row in COVER if row["schedule"] == BLOCK], ids=lambda row: row["cell"].name
)
def test_results_and_gradients(row) -> None:
    cell, dtype, dims = row["cell"], row["dtype"], Dims(row["B"], row["T"], row["N"], row["D"])
    hold(comparisons(cell, dtype, dims, tile_of(cell, dtype, dims, BLOCK), "", GpuKernel, "cuda"))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options) -> None:
    dims = Dims(4, 3, 1, 16)
    tile = tile_of(lstm, BFLOAT16, dims, BLOCK)
    hold(comparisons(lstm, BFLOAT16, dims, tile, "", GpuKernel, "cuda", **options))
