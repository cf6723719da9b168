"""Blocks with several tiles of rows in flight: executed on this machine, and predicted."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from cuda_checks import comparisons, inference
from cuda_host import HostKernel, Issues
from cuda_tilings import pairwise, spread, tiled
from simt_driver import CSRC, ORDERS

from autotune.gpu import named
from flashrnn.cells import gru, indrnn, lstm, peephole_lstm
from flashrnn.cuda_tunable import described
from flashrnn.dims import Dims
from flashrnn.dtypes import BFLOAT16, FLOAT16, FLOAT32
from flashrnn.emit.cuda import BACKWARD, CLUSTER, GRID, TRAINING
from flashrnn.passes.lower import lower
from flashrnn.tiling import cuda_choice, cuda_spread
from flashrnn.tiling.cuda import CudaProblem
from flashrnn.tiling.cuda_choice import choose, schedule_of, tiling_of
from flashrnn.tiling.cuda_latency import seconds, step_seconds
from flashrnn.tiling.cuda_spread import SpreadTiling

EXCHANGES = (GRID, CLUSTER)
H100, A100 = named("h100-sxm"), named("a100-80-sxm")
# How long each row is: all steps; the first tile's, or the second's, end before the other's.
ENDS = {
    "all": lambda B, T: None,
    "the first longer": lambda B, T: torch.tensor([T if b < 16 else b % 2 for b in range(B)]),
    "the second longer": lambda B, T: torch.tensor([b % 2 if b < 16 else T for b in range(B)]),
}
# The second tile with one row, or none; a third alone in its group; heads that groups share out.
SAMPLE = [
    (lstm, BFLOAT16, GRID, Dims(33, 3, 2, 24), "all"),
    (peephole_lstm, BFLOAT16, CLUSTER, Dims(17, 3, 1, 24), "the second longer"),
    (gru, FLOAT16, GRID, Dims(8, 2, 1, 24), "all"),
    (lstm, FLOAT32, CLUSTER, Dims(17, 2, 1, 16), "the first longer"),
]
COVER = pairwise(
    {
        "cell": (lstm, gru, peephole_lstm), "dtype": (BFLOAT16, FLOAT16, FLOAT32),
        "exchange": EXCHANGES, "B": (1, 8, 17, 33), "T": (1, 4), "ends": tuple(ENDS),
    }
)  # fmt: skip


def hold(cell, dtype, exchange, dims, ends, in_flight=2, orders=ORDERS, make=HostKernel) -> None:
    """Results and gradients in every order of threads."""
    lengths = ENDS[ends](dims.B, dims.T)
    for order in orders:
        found = comparisons(
            cell, dtype, dims, lambda d: tiled(cell, d, dtype, dims, exchange, in_flight), order,
            make, **({} if lengths is None else {"lengths": lengths}),
        )  # fmt: skip
        assert found
        for result in found:
            assert result.ok, str(result)


@pytest.mark.parametrize(
    ("cell", "dtype", "exchange", "dims", "ends"), SAMPLE, ids=lambda x: getattr(x, "name", str(x))
)
def test_results_and_gradients(cell, dtype, exchange, dims, ends) -> None:
    hold(cell, dtype, exchange, dims, ends)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", COVER, ids=lambda row: "-".join(getattr(x, "name", str(x)) for x in row.values())
)
def test_every_pair_of_what_tiles_in_flight_depend_on(row) -> None:
    dims = Dims(row["B"], row["T"], 1, 24)
    hold(row["cell"], row["dtype"], row["exchange"], dims, row["ends"])


@pytest.mark.slow
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_any_number_in_flight(exchange) -> None:
    hold(lstm, BFLOAT16, exchange, Dims(33, 3, 1, 24), "the second longer", in_flight=3)


@pytest.mark.slow
def test_a_cell_without_a_product() -> None:
    hold(indrnn, BFLOAT16, GRID, Dims(17, 3, 1, 24), "the first longer")


def test_groups_go_on_to_other_heads_in_further_launches() -> None:
    """Two heads of three tiles of rows are four items, one or three at a time."""
    dims = Dims(33, 2, 2, 24)
    for groups in (1, 3):
        make = partial(HostKernel, groups=groups)
        hold(lstm, BFLOAT16, GRID, dims, "all", orders=("random",), make=make)


def test_inference_saves_nothing() -> None:
    dims = Dims(17, 2, 1, 24)
    for result in inference(
        gru, BFLOAT16, dims, lambda d: tiled(gru, d, BFLOAT16, dims, CLUSTER, 2), HostKernel
    ):
        assert result.ok, str(result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exchange", "shared"),
    [
        (GRID, "number * sums_bytes"), (CLUSTER, "number * sums_bytes"),
        (GRID, "number * 2 * slot"), (CLUSTER, "number * exchange_bytes"),
    ],
)  # fmt: skip
def test_what_tiles_have_of_their_own_cannot_be_shared(exchange, shared, tmp_path) -> None:
    """Sums without another barrier; slots, since no step of one tile is ordered by the other's."""
    shutil.copytree(CSRC / "cuda", tmp_path / "cuda")
    found = 0
    for name in ("spread.hpp", "exchange.hpp"):
        whole = (tmp_path / "cuda" / name).read_text()
        found += whole.count(shared)
        (tmp_path / "cuda" / name).write_text(whole.replace(shared, "0"))
    assert found == 1
    dims, make = Dims(17, 3, 1, 24), partial(HostKernel, csrc=tmp_path)
    for order in ORDERS:
        with pytest.raises(Issues, match=r"race: |mbarrier: "):
            hold(lstm, BFLOAT16, exchange, dims, "the second longer", orders=(order,), make=make)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("direction", [TRAINING, BACKWARD])
def test_shared_memory_is_as_predicted(direction, exchange) -> None:
    dims = Dims(17, 3, 1, 24)
    p, tiling = tiled(peephole_lstm, direction, BFLOAT16, dims, exchange, 2)
    assert HostKernel(p, tiling).shared_bytes == cuda_spread.predict(p, tiling).shared_bytes


def problem_of(direction=TRAINING, D=1024, B=128, N=1, cell=lstm) -> CudaProblem:
    return CudaProblem(lower(cell), direction, BFLOAT16, Dims(B, 100, N, D))


def test_what_a_group_of_blocks_takes() -> None:
    two = SpreadTiling(GRID, 24, 32, 2, 4, 4, 8, 2)
    one = replace(two, tiles_in_flight=1)
    problem = problem_of(D=768, B=33, N=2)
    assert cuda_spread.items(problem.dims, two) == 4
    assert cuda_spread.items(problem.dims, one) == 6
    of_one, of_two = (cuda_spread.exchange_bytes(problem, t) for t in (one, two))
    assert of_two == 2 * of_one
    assert cuda_choice.products_per_step(problem, two) == 2 * cuda_choice.products_per_step(
        problem, one
    )


def test_a_tiling_that_was_kept_without_them_has_one() -> None:
    config = SpreadTiling(GRID, 24, 32, 2, 4, 4, 8).as_config()
    assert config.pop("tiles_in_flight") == 1
    assert tiling_of(config) == SpreadTiling(GRID, 24, 32, 2, 4, 4, 8, 1)


def test_rows_that_one_tile_takes_and_cells_that_wait_for_nothing_have_one() -> None:
    def numbers(problem) -> set[int]:
        model = cuda_spread.model(problem, H100, GRID)
        return set(model.variables["tiles_in_flight"].domain)

    assert numbers(problem_of(B=16)) == {1}
    assert numbers(problem_of(B=17)) == {1, 2}
    assert numbers(problem_of(B=64, cell=indrnn)) == {1}


@pytest.mark.parametrize(("exchange", "D"), [(GRID, 1024), (CLUSTER, 256)])
@pytest.mark.parametrize("direction", [TRAINING, BACKWARD])
def test_a_step_of_two_tiles_is_predicted_between_that_of_one_and_of_both(
    direction, exchange, D
) -> None:
    _, two = spread(lstm, direction, BFLOAT16, Dims(1, 1, 1, D), exchange, 16, in_flight=2)
    problem, one = problem_of(direction, D), replace(two, tiles_in_flight=1)
    alone, both = (step_seconds(problem, t, H100) for t in (one, two))
    assert alone <= both <= 2 * alone
    if exchange == GRID:  # whose blocks wait for a fence and a poll
        assert both < 2 * alone


def test_two_are_chosen_where_that_saves_rounds_of_launches() -> None:
    for direction in (TRAINING, BACKWARD):
        problem = problem_of(direction)
        chosen = choose(problem, H100)
        assert schedule_of(chosen) == GRID and chosen.tiles_in_flight == 2
        ones = [
            t
            for t in cuda_choice.tilings(problem, H100, GRID)
            if replace(t, tiles_in_flight=1) == t
        ]
        assert seconds(problem, chosen, H100) < min(seconds(problem, t, H100) for t in ones)
        assert "2 tiles of 16 rows in flight" in described(problem, chosen)


def test_one_is_chosen_where_there_are_blocks_for_each() -> None:
    for B in (16, 32):
        chosen = choose(problem_of(D=512, B=B), H100)
        assert chosen.tiles_in_flight == 1, chosen
