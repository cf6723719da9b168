"""The emitted CUDA kernels, executed on this machine, against the float64 reference."""

import re
import shutil
from functools import partial

import pytest
import torch
from cuda_checks import comparisons, inference
from cuda_host import HostKernel, Issues
from cuda_tilings import BLOCK, SCHEDULES, half_held, pairwise, spread, tiled
from problems import every_cell
from simt_driver import CSRC, ORDERS

from flashrnn.cells import gru, indrnn, lstm, peephole_lstm, slstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT16, FLOAT32
from flashrnn.emit.cuda import BACKWARD, CLUSTER, GRID, TRAINING
from flashrnn.tiling import cuda, cuda_spread

DTYPES = (BFLOAT16, FLOAT16, FLOAT32)
LENGTHS = torch.tensor([3, 0, 1, 2])
OPTIONS = {
    "lengths": {"lengths": LENGTHS},
    "lengths, reverse": {"lengths": LENGTHS, "reverse": True},
    "reverse, clip": {"reverse": True, "gradient_clip": 0.05},
    "cut": {"gradient_cut": True},
}
# Sizes of 1, padded tiles of rows and units, odd D, several heads and tiles of rows per block.
SAMPLE = [
    (lstm, BFLOAT16, Dims(17, 3, 2, 48), BLOCK), (gru, FLOAT16, Dims(3, 4, 2, 13), BLOCK),
    (slstm, BFLOAT16, Dims(2, 3, 1, 40), BLOCK), (lstm, FLOAT32, Dims(3, 4, 2, 13), BLOCK),
    (peephole_lstm, BFLOAT16, Dims(1, 1, 1, 16), BLOCK),
    (indrnn, FLOAT16, Dims(8, 4, 1, 64), BLOCK),
    (lstm, BFLOAT16, Dims(17, 3, 2, 48), GRID), (gru, FLOAT16, Dims(3, 4, 1, 13), CLUSTER),
    (lstm, FLOAT32, Dims(17, 2, 1, 16), CLUSTER),
    (peephole_lstm, BFLOAT16, Dims(1, 1, 1, 64), GRID),
]  # fmt: skip
COVER = pairwise(
    {
        "cell": every_cell(), "dtype": DTYPES, "schedule": SCHEDULES, "D": (16, 48, 64, 128),
        "B": (1, 8, 17), "T": (1, 4), "N": (1, 2),
    }
)  # fmt: skip


def name_of(value) -> str:
    return getattr(value, "name", str(value))


def hold(found) -> None:
    assert found
    for result in found:
        assert result.ok, str(result)


def tile_of(cell, dtype, dims, schedule, in_flight=1):
    return lambda direction: tiled(cell, direction, dtype, dims, schedule, in_flight)


@pytest.mark.parametrize(("cell", "dtype", "dims", "schedule"), SAMPLE, ids=name_of)
def test_results_and_gradients(cell, dtype, dims, schedule) -> None:
    tile = tile_of(cell, dtype, dims, schedule)
    for order in ORDERS:
        hold(comparisons(cell, dtype, dims, tile, order, HostKernel))


@pytest.mark.slow
@pytest.mark.parametrize("row", COVER, ids=lambda row: "-".join(name_of(x) for x in row.values()))
def test_every_pair_of_what_a_kernel_depends_on(row) -> None:
    cell, dtype, dims = row["cell"], row["dtype"], Dims(row["B"], row["T"], row["N"], row["D"])
    tile = tile_of(cell, dtype, dims, row["schedule"])
    for order in ORDERS:
        hold(comparisons(cell, dtype, dims, tile, order, HostKernel))


def test_the_cover_has_every_pair() -> None:
    assert len(COVER) < 2 * len(every_cell()) * 4
    for dtype in DTYPES:
        assert {row["schedule"] for row in COVER if row["dtype"] == dtype} == set(SCHEDULES)
        assert {row["cell"].name for row in COVER if row["dtype"] == dtype} == {
            cell.name for cell in every_cell()
        }


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_blocks_that_go_on_to_other_rows_and_heads(groups) -> None:
    """Two heads of two tiles of rows, shared out among as many groups of blocks."""
    dims = Dims(17, 2, 2, 24)
    tile = tile_of(lstm, BFLOAT16, dims, GRID)
    make = partial(HostKernel, groups=groups)
    hold(comparisons(lstm, BFLOAT16, dims, tile, "random", make))


@pytest.mark.parametrize("warps", [(1, 4), (2, 4), (4, 1)])
def test_sums_that_warps_add_one_after_another(warps) -> None:
    dims = Dims(3, 3, 1, 40)

    def tile(direction):
        return spread(lstm, direction, BFLOAT16, dims, CLUSTER, 12, warps, 1)

    hold(comparisons(lstm, BFLOAT16, dims, tile, "random", HostKernel))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, schedule) -> None:
    dims = Dims(4, 3, 1, 16)
    tile = tile_of(lstm, BFLOAT16, dims, schedule)
    hold(comparisons(lstm, BFLOAT16, dims, tile, "forward", HostKernel, **options))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rows_without_any_step(schedule) -> None:
    dims = Dims(4, 3, 1, 16)
    tile = tile_of(lstm, BFLOAT16, dims, schedule)
    nothing = {"lengths": torch.zeros(4, dtype=torch.int64)}
    hold(comparisons(lstm, BFLOAT16, dims, tile, "random", HostKernel, **nothing))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_inference_saves_nothing(schedule) -> None:
    dims = Dims(5, 2, 1, 24)
    hold(inference(gru, BFLOAT16, dims, tile_of(gru, BFLOAT16, dims, schedule), HostKernel))


@pytest.mark.parametrize("direction", [TRAINING, BACKWARD])
def test_shared_memory_is_as_predicted(direction) -> None:
    p, tiling = half_held(peephole_lstm, direction, BFLOAT16, Dims(1, 1, 1, 16), 1)
    assert HostKernel(p, tiling).shared_bytes == cuda.predict(p, tiling).shared_bytes
    for exchange in (GRID, CLUSTER):
        p, wide = spread(peephole_lstm, direction, BFLOAT16, Dims(1, 1, 1, 40), exchange, 12)
        assert HostKernel(p, wide).shared_bytes == cuda_spread.predict(p, wide).shared_bytes


# What orders threads in the schedules, each written once per line.
WAITS = re.compile(
    r"block_barrier\(\);|warp_barrier\(\);|cluster_barrier\(\);|add_release\(.*\);"
    r"|(?:begin|expect|wait)\(full.*\);"
    r"|while \(int\(load_acquire.*\n      \}"
)
FILES = ("block_forward.hpp", "block_backward.hpp", "exchange.hpp", "spread.hpp")


def waits() -> list[tuple[str, int, str]]:
    """Every barrier, wait and release of the schedules: file, position, text."""
    return [
        (name, found.start(), found[0])
        for name in FILES
        for found in WAITS.finditer((CSRC / "cuda" / name).read_text())
    ]


def test_every_schedule_waits_somewhere() -> None:
    assert {name for name, _, _ in waits()} == set(FILES)


def left_out() -> list[tuple[str, int, str, int]]:
    """Each of them with the tiles of rows that are in flight meanwhile."""
    return [
        (*wait, in_flight)
        for wait in waits()
        for in_flight in ((1,) if wait[0].startswith("block") else (1, 2))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "at", "text", "in_flight"), left_out(), ids=str)
def test_no_wait_can_be_left_out(name, at, text, in_flight, tmp_path) -> None:
    """Without it the execution model reports something, in every order of threads."""
    shutil.copytree(CSRC / "cuda", tmp_path / "cuda")
    whole = (tmp_path / "cuda" / name).read_text()
    assert whole[at:].startswith(text)
    (tmp_path / "cuda" / name).write_text(whole[:at] + "{}" + whole[at + len(text) :])
    make = partial(HostKernel, csrc=tmp_path)
    # with 13 units, two warps share an operand, of which one has cleared what the other writes;
    # a cell without a product has no exchange whose barriers order what a head's loading needs
    small, dims = Dims(3, 4, 2, 13), Dims(17, 3, 2, 40)
    block = [(lstm, small, tile_of(lstm, BFLOAT16, small, BLOCK))]
    blocks = [
        (cell, dims, tile_of(cell, BFLOAT16, dims, exchange, in_flight))
        for cell in (peephole_lstm, indrnn)
        for exchange in (GRID, CLUSTER)
    ]
    blocks.append(
        # warps that add their sums one after another
        (lstm, dims, lambda d: spread(lstm, d, BFLOAT16, dims, CLUSTER, 12, (2, 2), 1, in_flight))
    )
    for order in ORDERS:
        with pytest.raises(Issues, match=r"race: |deadlock: |in-flight: |mbarrier: "):
            for cell, sizes, tile in block if name.startswith("block") else blocks:
                comparisons(cell, BFLOAT16, sizes, tile, order, make)
