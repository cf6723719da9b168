"""The emitted CUDA kernels, executed on this machine, against the float64 reference."""

import itertools
import re
import shutil

import pytest
import torch
from cuda_checks import comparisons, half_held, inference
from cuda_host import HostKernel, Issues
from problems import every_cell
from simt_driver import CSRC, ORDERS

from flashrnn.cells import gru, indrnn, lstm, peephole_lstm, slstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT16, FLOAT32
from flashrnn.emit.cuda import BACKWARD, TRAINING
from flashrnn.tiling.cuda import shared_bytes

DTYPES = (BFLOAT16, FLOAT16, FLOAT32)
# B, T, N, D and tiles per warp: sizes of 1, padded tiles of rows and units, odd D.
SHAPES = (
    (Dims(17, 3, 2, 48), 2), (Dims(1, 1, 1, 16), 1), (Dims(8, 4, 1, 64), 4), (Dims(3, 4, 2, 13), 1),
    (Dims(2, 3, 1, 40), 2),
)  # fmt: skip
LENGTHS = torch.tensor([3, 0, 1, 2])
OPTIONS = {
    "lengths": {"lengths": LENGTHS},
    "lengths, reverse": {"lengths": LENGTHS, "reverse": True},
    "reverse, clip": {"reverse": True, "gradient_clip": 0.05},
    "cut": {"gradient_cut": True},
}
SAMPLE = [
    (lstm, BFLOAT16, 0), (gru, FLOAT16, 3), (slstm, BFLOAT16, 4), (lstm, FLOAT32, 3),
    (peephole_lstm, BFLOAT16, 1), (indrnn, FLOAT16, 2),
]  # fmt: skip


def name_of(value) -> str:
    return getattr(value, "name", str(value))


def hold(found) -> None:
    assert found
    for result in found:
        assert result.ok, str(result)


@pytest.mark.parametrize(("cell", "dtype", "shape"), SAMPLE, ids=name_of)
def test_results_and_gradients(cell, dtype, shape) -> None:
    dims, per_warp = SHAPES[shape]
    for order in ORDERS:
        hold(comparisons(cell, dtype, dims, per_warp, order, HostKernel))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options) -> None:
    dims = Dims(4, 3, 1, 16)
    hold(comparisons(lstm, BFLOAT16, dims, 1, "forward", HostKernel, **options))


def test_inference_saves_nothing() -> None:
    hold(inference(gru, BFLOAT16, Dims(5, 2, 1, 24), HostKernel))


@pytest.mark.parametrize("direction", [TRAINING, BACKWARD])
def test_shared_memory_is_as_predicted(direction) -> None:
    p, tiling = half_held(peephole_lstm, direction, BFLOAT16, Dims(1, 1, 1, 16), 1)
    assert HostKernel(p, tiling).shared_bytes == shared_bytes(p, 2, 1, p.k_tiles // 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "dtype"), list(itertools.product(every_cell(), DTYPES)), ids=name_of
)
def test_every_cell_and_dtype(cell, dtype) -> None:
    """Over all of them, each shape meets each dtype."""
    at = every_cell().index(cell) + 2 * DTYPES.index(dtype)
    dims, per_warp = SHAPES[at % len(SHAPES)]
    order = list(ORDERS)[at % len(ORDERS)]
    hold(comparisons(cell, dtype, dims, per_warp, order, HostKernel))


def barriers() -> list[tuple[str, int]]:
    """Every barrier of a block in the schedules: file, position."""
    return [
        (name, found.start())
        for name in ("block_forward.hpp", "block_backward.hpp")
        for found in re.finditer(r"block_barrier\(\);", (CSRC / "cuda" / name).read_text())
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "at"), barriers())
def test_no_barrier_can_be_left_out(name, at, tmp_path) -> None:
    """Without it the execution model reports a race or a number is wrong, in every order."""
    shutil.copytree(CSRC / "cuda", tmp_path / "cuda")
    text = (tmp_path / "cuda" / name).read_text()
    call = "block_barrier();"
    assert text[at:].startswith(call)
    (tmp_path / "cuda" / name).write_text(text[:at] + ";" + text[at + len(call) :])
    # with 13 units, two warps share an operand, of which one has cleared what the other writes
    dims, per_warp = SHAPES[3]

    def changed(problem, tiling):
        return HostKernel(problem, tiling, tmp_path)

    for order in ORDERS:
        with pytest.raises(Issues, match="race: "):
            comparisons(lstm, BFLOAT16, dims, per_warp, order, changed)
