"""CUDA kernels compiled by NVRTC for GPUs that are not here: what the compiler made of tilings."""

from itertools import product

import pytest

from autotune.compiler_report import Report, report
from autotune.gpu import Gpu, named
from autotune.resources import most_registers, occupancy
from bench.cuda_suite import NEAR, tried
from flashrnn.cells import elman, gru, lstm, peephole_lstm, slstm
from flashrnn.cli import main
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT32
from flashrnn.emit.cuda import BACKWARD, CLUSTER, GRID, INFERENCE, TRAINING
from flashrnn.errors import CompilerError
from flashrnn.passes.lower import lower
from flashrnn.runtime.cuda_compile import compile_for, compile_source
from flashrnn.tiling import cuda_choice as tiling
from flashrnn.tiling.cuda import CudaProblem
from flashrnn.tiling.cuda_choice import BLOCK, SCHEDULES
from flashrnn.tiling.cuda_latency import Tiling
from flashrnn.tiling.cuda_spread import SpreadTiling

pytest.importorskip("cuda.bindings", reason="the extra cuda is not installed")
pytest.importorskip("triton", reason="the disassembler comes with Triton")

# One GPU of each architecture that kernels are compiled for.
DEVICES = ("a100-80-sxm", "rtx-3090", "rtx-4090", "h100-sxm", "b200", "rtx-5090")


def problem_of(cell, direction, D, dtype=BFLOAT16, B=16) -> CudaProblem:
    return CudaProblem(lower(cell), direction, dtype, Dims(B, 1, 1, D))


def check(problem: CudaProblem, device: str, schedules=SCHEDULES) -> int:
    """The first choice, or the second where the compiler spilled much in that, is as promised.

    It launches, moves nothing to local memory in a step, multiplies as tiled; where it spills it
    needs the registers that were predicted. Returns the tiles of rows in flight.
    """
    gpu = named(device)
    chosen = tiling.choose(problem, gpu, schedules)
    made, told = tried(problem, chosen, gpu)
    # one that spills nothing took what was free, or more than was predicted of what there is
    assert not (told.near and told.spilled) or abs(told.error) <= NEAR, (chosen, told)
    if made.spill_store_bytes > 128:
        chosen = tiling.second(problem, chosen, gpu, made.spill_store_bytes, schedules)
        made = compiled(problem, chosen, gpu)
    assert occupancy(gpu.sm, made.threads, made.registers, made.shared_bytes) >= 1
    assert made.step is not None
    code = made.step.code
    products = tiling.products_per_step(problem, chosen)
    assert code.classes["tensor"] == products > 0
    assert code.bytes("local load") + code.bytes("local store") == 0
    assert made.spill_store_bytes <= 128, "more than what is set aside before the loop"
    # a cluster waits for no fence of the GPU, a grid for one per step of each tile of rows
    fences = sum(i.name == "MEMBAR.ALL.GPU" for i in code.instructions)
    in_flight = chosen.tiles_in_flight if isinstance(chosen, SpreadTiling) else 1
    assert fences == (in_flight if tiling.schedule_of(chosen) == GRID else 0)
    return in_flight


def compiled(problem: CudaProblem, chosen: Tiling, gpu: Gpu) -> Report:
    """The compiler's report; registers as predicted where the tiling comes near the cap."""
    made, told = tried(problem, chosen, gpu)
    assert not told.near or abs(told.error) <= NEAR, (chosen, told)
    return made


@pytest.mark.parametrize(
    ("direction", "schedule"), [(INFERENCE, BLOCK), (BACKWARD, BLOCK), (TRAINING, CLUSTER)]
)
def test_a_kernel_of_each_direction(direction, schedule) -> None:
    check(problem_of(lstm, direction, 64), "h100-sxm", (schedule,))


def test_a_head_over_a_grid() -> None:
    check(problem_of(gru, BACKWARD, 512), "a100-80-sxm")


def test_two_tiles_of_rows_in_flight() -> None:
    assert check(problem_of(lstm, TRAINING, 1024, B=256), "h100-sxm") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "exchange"),
    [("a100-80-sxm", GRID), *product(("h100-sxm", "b200"), (GRID, CLUSTER))],
)
@pytest.mark.parametrize("direction", [TRAINING, BACKWARD])
def test_two_tiles_of_rows_in_flight_on_every_architecture(direction, device, exchange) -> None:
    """Without a spill after one more choice, and shared memory as predicted to the byte."""
    gpu, problem = named(device), problem_of(lstm, direction, 256, B=256)

    def cheapest(spare):
        fitting = tiling.tilings(problem, gpu, exchange, spare)
        two = tiling.cheapest_of(problem, gpu, [t for t in fitting if t.tiles_in_flight == 2])
        return two, report(compile_for(problem, two, gpu.sm))

    chosen, made = cheapest(0)
    if made.spilled:
        chosen, made = cheapest(tiling.lacking(problem, chosen, gpu, made.spill_store_bytes))
    assert made.spill_store_bytes == 0
    assert made.shared_bytes == tiling.predict(problem, chosen).shared_bytes
    assert made.step is not None
    code = made.step.code
    assert code.classes["tensor"] == tiling.products_per_step(problem, chosen)
    assert code.bytes("local load") + code.bytes("local store") == 0


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("direction", [TRAINING, BACKWARD])
@pytest.mark.parametrize("D", [64, 512])
def test_every_architecture(device, direction, D) -> None:
    check(problem_of(lstm, direction, D), device)


@pytest.mark.slow
@pytest.mark.parametrize("direction", [TRAINING, BACKWARD])
@pytest.mark.parametrize("D", [128, 1024])
@pytest.mark.parametrize("cell", [gru, slstm, peephole_lstm], ids=lambda c: c.name)
def test_other_cells(cell, D, direction) -> None:
    check(problem_of(cell, direction, D), "h100-sxm")


@pytest.mark.slow
@pytest.mark.parametrize("direction", [TRAINING, BACKWARD])
@pytest.mark.parametrize("D", [64, 256])
def test_tf32(direction, D) -> None:
    check(problem_of(lstm, direction, D, FLOAT32), "h100-sxm")


def test_registers_where_the_derivative_of_a_tile_is_small() -> None:
    """Of one gate, beside which four tiles of units stand in a warp."""
    problem = problem_of(elman, BACKWARD, 256)
    chosen = fullest(problem, named("h100-sxm"), BLOCK)
    assert chosen.tiles_per_warp >= 2
    compiled(problem, chosen, named("h100-sxm"))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["a100-80-sxm", "h100-sxm"])
@pytest.mark.parametrize(("schedule", "D"), [(BLOCK, 128), (CLUSTER, 512), (GRID, 1024)])
@pytest.mark.parametrize("direction", [TRAINING, BACKWARD])
@pytest.mark.parametrize("cell", [lstm, gru, elman, slstm], ids=lambda c: c.name)
def test_registers_near_the_cap(cell, direction, schedule, D, device) -> None:
    """The fastest of 8 warps that is predicted to come near the cap, where a schedule has one."""
    gpu, problem = named(device), problem_of(cell, direction, D)
    if tiling.fits(problem, gpu, schedule):
        compiled(problem, fullest(problem, gpu, schedule), gpu)


def fullest(problem: CudaProblem, gpu: Gpu, schedule: str) -> Tiling:
    """The fastest of 8 warps whose predicted registers come near the cap, or nearest to it."""

    def part(found: Tiling) -> float:
        needed = tiling.predict(problem, found)
        return needed.registers / most_registers(gpu.sm, needed.threads)

    every = [found for found in tiling.tilings(problem, gpu, schedule) if found.warps == 8]
    least = min(1 - NEAR, max(part(found) for found in every))
    return tiling.cheapest_of(problem, gpu, [found for found in every if part(found) >= least])


@pytest.mark.slow
def test_the_published_largest_head() -> None:
    check(problem_of(lstm, INFERENCE, 2560), "h100-sxm")


def test_a_rejected_source() -> None:
    with pytest.raises(CompilerError, match="undefined"):
        compile_source("__global__ void run() { nothing_of_that_name(); }", 80)
    problem = problem_of(lstm, INFERENCE, 16)
    with pytest.raises(CompilerError, match="sm_80 or later, not sm_75"):
        compile_for(problem, tiling.choose(problem, named("a100-80-sxm")), 75)


def test_show(capsys) -> None:
    words = ["show", "lstm", "--target", "cuda", "--device", "h100-sxm", "--head-dim", "32"]
    assert main([*words, "--sass"]) == 0
    text = capsys.readouterr().out
    start = "// For D=32 on NVIDIA H100 SXM (sm_90), a head in one block: warps = "
    assert text.startswith(start)
    assert "by the latency model" in text
    assert "no spills" in text
    assert '#include "cuda/block_forward.hpp"' in text
    assert "HMMA.16816" in text.split("// The time loop:")[1]


def test_show_a_head_over_several_blocks(capsys) -> None:
    words = ["show", "lstm", "--target", "cuda", "--device", "b200", "--head-dim", "256"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "a head in the blocks of a cluster: units = 16, blocks = 16" in text
    assert "no spills" in text
    assert "Spreading<units, blocks, warps_n, warps_k, sum_parts, k_tiles_in_registers," in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--target", "cuda", "--head-dim", "8192"], "no tiling holds a head of D=8192"),
        (["--target", "cuda", "--direction", "forward"], "inference, training, backward"),
        (["--target", "cuda", "--dtype", "float64"], "bfloat16"),
        (["--target", "cuda", "--device", "h100"], "h100-sxm"),
        (["--target", "cpp", "--sass"], "--target cuda"),
        (["--target", "cpp", "--dtype", "bfloat16"], "float32, float64"),
    ],
)
def test_show_says_what_would_work(words, told, capsys) -> None:
    assert main(["show", "lstm", *words]) == 2
    assert told in capsys.readouterr().err
