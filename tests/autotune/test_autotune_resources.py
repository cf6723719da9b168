"""The resource model against known answers, against CUDA's own calculator, and against itself."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from autotune.device import Device
from autotune.errors import UnknownArchitecture
from autotune.gpu import architecture, architectures
from autotune.resources import (
    constrain,
    constrain_l2,
    l1_bytes,
    limiting,
    most_registers,
    occupancy,
)
from constrint import Infeasible, Model

CASES = 100_000
ORACLE = Path(__file__).with_name("occupancy_oracle.cpp")
BLOCKS = {75: 1, 80: 4, 86: 2, 87: 4, 89: 2, 90: 6, 100: 6, 103: 6, 120: 2, 121: 2}


def test_every_architecture_has_a_known_answer() -> None:
    assert set(BLOCKS) == set(architectures())


@pytest.mark.parametrize(("sm", "blocks"), BLOCKS.items())
def test_known_answers(sm: int, blocks: int) -> None:
    assert occupancy(sm, 128, 64, 33_792) == blocks
    assert limiting(sm, 128, 64, 33_792) == "shared memory"


@pytest.mark.parametrize("sm", architectures())
def test_nine_warps_round_to_twelve(sm: int) -> None:
    assert occupancy(sm, 288, 200, 0) == 0
    assert limiting(sm, 288, 200, 0) == "registers per block: 76,800 of 65,536"


@pytest.mark.parametrize("sm", architectures())
def test_what_exceeds_a_limit_of_one_block_does_not_launch(sm: int) -> None:
    opt_in = architecture(sm).shared_per_block
    assert occupancy(sm, 32, 32, opt_in) == 1
    assert occupancy(sm, 32, 32, opt_in + 1) == 0
    assert occupancy(sm, 32, 255, 0) > 0
    assert occupancy(sm, 32, 256, 0) == 0
    assert occupancy(sm, 1024, 64, 0) == 1
    assert occupancy(sm, 1025, 8, 0) == 0
    assert occupancy(sm, 32, 32, 0, barriers=17) == 0


@pytest.mark.parametrize("sm", architectures())
@pytest.mark.parametrize("threads", [32, 256, 288, 512, 1000, 1024])
def test_the_most_registers_are_those_with_which_a_block_launches(sm: int, threads: int) -> None:
    most = most_registers(sm, threads)
    assert occupancy(sm, threads, most, 0) > 0
    assert occupancy(sm, threads, most + 1, 0) == 0


def test_numbers_that_no_kernel_has() -> None:
    with pytest.raises(ValueError, match="0 threads"):
        occupancy(80, 0, 32, 0)
    with pytest.raises(UnknownArchitecture, match=r"sm_42; known: sm_75, .*sm_121"):
        occupancy(42, 32, 32, 0)


def random_block(rng: random.Random, sm: int) -> tuple[int, int, int, int]:
    """Threads, registers, shared bytes and barriers; often on the edge of a limit."""
    limits = architecture(sm)
    threads = rng.choice([rng.randint(1, 1100), 32 * rng.randint(1, 33)])
    registers = rng.choice([rng.randint(0, 255), 8 * rng.randint(1, 31)])
    edge = limits.shared_per_sm // rng.randint(1, 33) + rng.randint(-1300, 300)
    most = limits.shared_per_block + 2048
    shared = max(0, rng.choice([0, rng.randint(0, most), edge, limits.shared_per_block]))
    return threads, registers, shared, rng.choice([1, 1, 1, 0, rng.randint(2, 16)])


def oracle(tmp_path: Path) -> Path:
    """CUDA's calculator, compiled; its header comes with Triton, or with a toolkit."""
    found = importlib.util.find_spec("triton")
    folders = [
        Path(nvcc).resolve().parents[1] / "include" for nvcc in [shutil.which("nvcc")] if nvcc
    ]
    if found and found.origin:
        folders.insert(0, Path(found.origin).parent / "backends/nvidia/include")
    folders = [folder for folder in folders if (folder / "cuda_occupancy.h").is_file()]
    if not folders:
        pytest.skip("cuda_occupancy.h is neither in Triton's wheel nor beside nvcc")
    compiler = os.environ.get("CXX") or "c++"
    program = tmp_path / "oracle"
    subprocess.run(
        [compiler, "-O1", f"-I{folders[0]}", str(ORACLE), "-o", str(program)], check=True
    )
    return program


def test_agrees_with_cuda(tmp_path: Path) -> None:
    """Left out are 256 registers, which the header takes for a number that a thread can have
    (SASS has names for 255), and more than 16 barriers, which it does not check."""
    program = oracle(tmp_path)
    rng = random.Random(0)
    lines, ours = [], []
    for _ in range(CASES):
        sm = rng.choice(architectures())
        limits = architecture(sm)
        threads, registers, shared, barriers = random_block(rng, sm)
        percent = rng.choice([-1, -1, rng.randint(0, 100)])
        lines.append(
            f"{sm // 10} {sm % 10} {32 * limits.warps_per_sm} {limits.shared_per_sm} "
            f"{limits.shared_per_block} {limits.shared_reserved} "
            f"{threads} {registers} {shared} {barriers} {percent}"
        )
        asked = None if percent < 0 else percent * limits.shared_per_sm // 100
        ours.append(occupancy(sm, threads, registers, shared, barriers=barriers, carveout=asked))
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    theirs = [int(word) for word in done.stdout.split()]
    assert len(theirs) == CASES
    wrong = [(case, a, b) for case, a, b in zip(lines, ours, theirs, strict=True) if a != b]
    assert not wrong, f"{len(wrong)} differ (case, ours, CUDA's): {wrong[:5]}"
    assert 0.2 < sum(answer > 0 for answer in ours) / CASES < 0.9, "the cases test one side only"


def test_the_constraints_demand_what_the_function_computes() -> None:
    rng = random.Random(1)
    for _ in range(300):
        sm = rng.choice(architectures())
        threads, registers, shared, barriers = random_block(rng, sm)
        most = occupancy(sm, threads, registers, shared, barriers=barriers)
        model = Model()
        t, r = model.int_var("threads", [threads]), model.int_var("registers", [registers])
        s, b = model.int_var("shared", [shared]), model.int_var("barriers", [barriers])
        blocks = model.int_var("blocks", range(1, 40))
        constrain(model, sm, threads=t, registers=r, shared_bytes=s, barriers=b, blocks=blocks)
        counts = [solution["blocks"] for solution in model.solutions()]
        assert counts == list(range(1, most + 1)), (sm, threads, registers, shared, barriers)


def test_the_carve_out_is_what_l1_does_not_keep() -> None:
    model = Model()
    limits = architecture(90)
    carveout = model.int_var("carveout", limits.shared_carveouts)
    constrain(
        model, limits, threads=128, registers=64, shared_bytes=20_000, blocks=4, carveout=carveout
    )
    model.minimize(carveout)
    least = model.solve()["carveout"]
    assert least == 100 * 1024
    assert l1_bytes(limits, least) == 156 * 1024
    assert occupancy(90, 128, 64, 20_000, carveout=least) == 4
    assert occupancy(90, 128, 64, 20_000, carveout=least - 1) == 4, "the next step is given"
    assert occupancy(90, 128, 64, 20_000, carveout=64 * 1024) == 3


def test_the_limit_that_forces_is_named() -> None:
    model = Model()
    d = model.int_var("d", [128])
    constrain(model, 120, threads=256, registers=200, shared_bytes=4 * d * d * 4)
    with pytest.raises(Infeasible, match=r"shared memory per block \(bytes\)"):
        model.solve()


def test_the_working_set_of_the_resident_blocks() -> None:
    gpu = Device.named("l4")
    model = Model()
    grid, blocks = model.int_var("grid", [10, 1000]), model.int_var("blocks", [1, 2])
    constrain_l2(model, gpu, gpu.l2_bytes // gpu.sms, grid, blocks)
    answers = {(s["grid"], s["blocks"]) for s in model.solutions()}
    assert answers == {(10, 1), (10, 2), (1000, 1)}
