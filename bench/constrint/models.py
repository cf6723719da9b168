"""Times the questions that a tuner asks of a recurrent kernel's tiling model.

    python -m bench.constrint.models

28 variables in two independent halves, forward and backward, of 267,288 solutions each. Process
CPU milliseconds, the median of 7, building the model included; memory is that of the process.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from statistics import median
from time import process_time

from constrint import Infeasible, Model, Variable, largest

SHARED_BYTES = 131072


def add_half(model: Model, prefix: str, hidden: int, shared: int) -> list[Variable]:
    """The tiling of one pass of a fused kernel with four gates; returns its 14 variables."""

    def var(name: str, values: object) -> Variable:
        return model.int_var(prefix + name, values)  # type: ignore[arg-type]

    matrix_tiles = var("matrix_tiles", [1, 2, 3, 4, 6, 12])
    b_tile, g_tile = var("b_tile", [8, 16, 32]), var("g_tile", [8, 16, 32])
    blocks_g = var("blocks_g", model.powers_of_two(1, 64))
    blocks_h = var("blocks_h", model.powers_of_two(1, 16))
    blocks_b, loops_b = var("blocks_b", [1, 2, 4]), var("loops_b", [1, 2, 4])
    loops_g = var("loops_g", model.powers_of_two(1, 256))
    warps_h, warps_b = var("warps_h", model.powers_of_two(1, 8)), var("warps_b", [1, 2])
    cached_h = var("cached_h", range(1, 17))
    stages, unroll, padding = var("stages", [1, 2, 3]), var("unroll", [1, 2, 4]), var("pad", [0, 8])
    gates = 4 * hidden
    warps_g = gates // (blocks_g * loops_g * g_tile)
    warps = warps_h * warps_b * warps_g
    held = 16 * g_tile * cached_h * warps_h * warps_g
    model.add(b_tile * g_tile == 256, name=f"{prefix}matrix instruction")
    model.add(gates % (loops_g * blocks_g * g_tile) == 0, name=f"{prefix}gates divide")
    model.add(hidden % (blocks_h * warps_h * 16) == 0, name=f"{prefix}hidden divides")
    model.add(warps_h * warps_b * warps_g <= 8, name=f"{prefix}warps")
    model.add(32 % (blocks_b * warps_b * loops_b * b_tile) == 0, name=f"{prefix}batch divides")
    model.add(blocks_g * blocks_h * blocks_b * matrix_tiles <= 108, name=f"{prefix}processors")
    model.add(blocks_h * cached_h * warps_h * 16 <= hidden, name=f"{prefix}cache")
    exchange = warps * b_tile * g_tile * loops_b * 2 + warps * b_tile * (16 + padding)
    model.add(held + exchange <= shared, name=f"{prefix}shared bytes")
    model.add(
        36864 * blocks_b + 64 - 2 * held * blocks_b * blocks_g * blocks_h >= 1,
        name=f"{prefix}registers",
    )
    model.add(unroll * stages <= 8, cached_h % unroll == 0, name=f"{prefix}pipeline")
    return [
        *(matrix_tiles, b_tile, g_tile, blocks_g, blocks_h, blocks_b, loops_b),
        *(loops_g, warps_h, warps_b, cached_h, stages, unroll, padding),
    ]


def two_halves(shared_backward: int) -> tuple[Model, list[Variable]]:
    """The whole model and its variables, forward ones first."""
    model = Model("recurrent kernel")
    forward = add_half(model, "fw_", 256, SHARED_BYTES)
    return model, forward + add_half(model, "bw_", 256, shared_backward)


def count() -> None:
    """Both halves enumerated, their product counted."""
    model, _ = two_halves(SHARED_BYTES // 2)
    assert model.enumerate().count() == 267288**2


def lexicographic() -> None:
    """The largest value of each variable, the first counting most."""
    model, variables = two_halves(SHARED_BYTES // 2)
    model.prefer(*(largest(v) for v in variables))
    assert model.solve().optimal


def proof() -> None:
    """A backward pass whose shared memory is too small for any tiling."""
    model, _ = two_halves(1000)
    try:
        model.solve()
    except Infeasible:
        return
    raise AssertionError("1000 bytes cannot suffice")


def reason() -> None:
    """The same with its reason: the constraints that cannot hold together."""
    model, _ = two_halves(1000)
    explained = model.explain()
    assert explained is not None and len(explained.conflict) == 3


def stream() -> None:
    """27.7 million solutions of one component, in chunks."""
    model = Model("stream")
    variables = [model.int_var(f"x{k}", range(1, 13)) for k in range(7)]
    model.add(sum(variables[1:], variables[0]) <= 52)
    rows = sum(len(chunk["x0"]) for chunk in model.enumerate().chunks())
    assert rows == 27_744_080


def milliseconds(question: Callable[[], None], repeat: int) -> float:
    """The median CPU time of a question."""
    taken = []
    for _ in range(repeat):
        start = process_time()
        question()
        taken.append((process_time() - start) * 1e3)
    return median(taken)


def main() -> int:
    """Prints one line per question."""
    for question in (count, lexicographic, proof, reason):
        print(f"{question.__name__:15}{milliseconds(question, 7):10.1f} ms   {question.__doc__}")
    print(f"{stream.__name__:15}{milliseconds(stream, 1):10.1f} ms   {stream.__doc__}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:.0f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
