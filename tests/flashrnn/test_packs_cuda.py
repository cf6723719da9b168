"""CUDA kernels in packs: what they hold is what the model chooses, and plans take it unsolved."""

from dataclasses import replace

import pytest
from pack_files import GPUS, H100, always, mine

from autotune.device import Device
from autotune.errors import CacheWarning
from flashrnn import pack_check, packs
from flashrnn.cells import elman, gru, lstm
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT16, FLOAT32
from flashrnn.emit.cuda import BACKWARD, GRID, INFERENCE, TRAINING
from flashrnn.pack_command import CELLS
from flashrnn.packs import CUDA, cuda
from flashrnn.packs.kind import Section
from flashrnn.packs.pack import SHIPPED, Pack, read
from flashrnn.passes.lower import lower
from flashrnn.runtime import cuda_kernels
from flashrnn.tiling.cuda import BlockTiling, CudaProblem
from flashrnn.tiling.cuda_choice import choose, schedule_of
from flashrnn.tiling.cuda_spread import SpreadTiling

pytestmark = pytest.mark.usefixtures("own_packs")
OTHER = SpreadTiling(GRID, 32, 2, 1, 1, 1, 0)  # fits, and is not what the model likes


def problem_of(B=16, N=1, D=64, dtype=BFLOAT16, direction=TRAINING, cell=lstm):
    return CudaProblem(lower(cell), direction, dtype, Dims(B, 1, N, D))


def regenerated(name, own, head_dims, some=slice(None)) -> None:
    shipped, asked = (
        read(SHIPPED / f"{name}.json").sections[CUDA.name],
        cuda.problems(own, head_dims),
    )
    again = CUDA.choices(asked[some], Device.named(name), shipped.rejected)
    assert again == {key: shipped.choices[key] for key in again}


def test_a_sample_is_what_is_chosen_again() -> None:
    regenerated("h100-sxm", [elman], (64,))
    regenerated("l4", [lstm], (1024,))


@pytest.mark.slow
@pytest.mark.parametrize("name", GPUS)
def test_a_part_of_each_is_what_is_chosen_again(name) -> None:
    regenerated(name, list(CELLS.values()), cuda.HEAD_DIMS, slice(GPUS.index(name), None, 19))


@pytest.mark.parametrize(
    ("cell", "direction", "dtype", "D"),
    [
        (gru, INFERENCE, FLOAT16, 64),  # for which training would choose otherwise
        (elman, TRAINING, FLOAT32, 64),
        (elman, BACKWARD, BFLOAT16, 128),
    ],
    ids=lambda x: getattr(x, "name", str(x)),
)
def test_classes_choose_as_the_model_does(cell, direction, dtype, D) -> None:
    """Where there is a power of two of heads and rows; whatever the dtypes share."""
    problem = problem_of(D=D, dtype=dtype, direction=direction, cell=cell)
    choices = CUDA.choices([problem], H100)
    held = Pack(H100.fingerprint, {}, {CUDA.name: Section("test", choices)})
    for B, N in ((16, 1), (5, 8), (32, 8), (32, 64), (128, 8), (16, 1024)):
        sizes = replace(problem, dims=Dims(B, 1, N, D))
        assert held.tiling(CUDA, sizes) == choose(sizes, H100), (B, N)
    assert CUDA.sizes_of(problem_of(33, 3)) == (3, 9)  # 3 heads x 3 tiles of 16 rows
    assert held.tiling(CUDA, replace(problem, dims=Dims(16, 1, 1, D - 1))) is None


def test_heads_that_no_schedule_holds_have_no_tiling() -> None:
    huge, l4 = problem_of(D=1024, dtype=FLOAT32, direction=BACKWARD), Device.named("l4")
    assert CUDA.choice(huge, l4) == ()
    assert packs.lookup(CUDA, huge, l4) is None
    assert packs.lookup(CUDA, huge, H100) is not None


@pytest.mark.parametrize("name", GPUS)
def test_what_is_shipped_fits(name) -> None:
    gpu = Device.named(name)
    for D in (64, 256, 1024):
        for direction in (TRAINING, BACKWARD):
            problem = problem_of(17, 3, D, FLOAT16, direction)
            found = packs.lookup(CUDA, problem, gpu)
            if found is None:
                shipped = read(SHIPPED / f"{name}.json").sections[CUDA.name]
                assert shipped.choices[CUDA.key_of(problem)] == ()
                continue
            assert CUDA.fits(found.tiling, problem, gpu)
            assert f"the pack {name}.json by the cost model" in found.by


def test_plans_take_it_and_solve_only_where_it_cannot_be_held(tmp_path, monkeypatch) -> None:
    problem = problem_of(N=3)
    assert choose(problem, H100) != OTHER
    mine(CUDA, tmp_path, {CUDA.key_of(problem): always(OTHER)})
    solved = []
    monkeypatch.setattr(cuda_kernels, "fits", lambda *_: True)
    monkeypatch.setattr(
        cuda_kernels,
        "choose",
        lambda p, gpu, left: solved.append(list(left)) or choose(p, gpu, left),
    )
    choices = cuda_kernels._choices(problem, H100)
    assert next(choices) == OTHER
    assert not solved
    assert GRID not in [schedule_of(tiling) for tiling in choices]  # which the driver refused
    assert [len(left) for left in solved] == [2, 1]
    assert isinstance(
        next(cuda_kernels._choices(problem_of(D=48), H100)), BlockTiling | SpreadTiling
    )


WRONG = {
    "the exchange 'ring' is neither of": lambda t: t.replace('"grid"', '"ring"'),
    "does not fit": lambda t: t.replace('["grid",32,2,', '["grid",32,1,'),
    ".*does not fit": lambda t: t.replace('["grid",32,2,', '["grid","32",2,'),
    "unexpected keyword": lambda t: t.replace('"warps_n"', '"warps_m"'),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_bad_pack_is_ignored_with_a_warning(why, tmp_path) -> None:
    path = mine(CUDA, tmp_path, {CUDA.key_of(problem_of()): always(OTHER)})
    damaged = WRONG[why](path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    with pytest.warns(CacheWarning, match=f"is ignored, the cost model chooses: .*{why}"):
        found = packs.lookup(CUDA, problem_of(), H100)
    assert found.tiling != OTHER  # the shipped one


def test_what_has_a_fault_is_chosen_again() -> None:
    problem = problem_of(cell=elman)
    first = choose(problem, H100)

    def faults(kernels):
        for _, _, chosen in kernels:
            yield "it spills" if chosen == first else ""

    asked = {CUDA.name: [problem]}
    made = pack_check.by_report(asked, H100, {}, faults, lambda *_: None).sections[CUDA.name]
    assert made.rejected == {CUDA.key_of(problem): (first,)}
    (choice,) = made.choices.values()
    assert first not in {t for _, classes in choice for _, t in classes}
    assert dict(made.choices) == CUDA.choices([problem], H100, made.rejected)
