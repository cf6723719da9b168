"""Run under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own.

Every tensor is a block of its own between poisoned zones, the workspaces too. The one argument
plants an error: "wx", "states" or "workspace" is a number short. test_sanitizers.py starts this.
"""

import sys

import torch
from cells_for_tests import independent, shuffled
from problems import layer_problem, problem, results, run

from autotune.device import Device
from flashrnn import flashrnn, layer
from flashrnn.cells import gru, lstm
from flashrnn.runtime import launch, scratch, surround

SHAPES = [(1, 1, 1, 1), (5, 4, 2, 5), (3, 7, 1, 19), (7, 1, 3, 9), (2, 0, 1, 3), (0, 2, 1, 3)]
CELLS = (lstm, gru, independent, shuffled)


def fresh(name, count, dtype, _kept=scratch._kept):
    """A workspace of exactly this size, whatever calls before needed."""
    _kept.__dict__.clear()
    return _exact(name, count, dtype)


_exact = scratch.scratch


def every_kernel(cell, shape, dtype) -> None:
    B, T, _, _ = shape
    lengths = torch.tensor([(T, 0, T // 2)[b % 3] for b in range(B)])
    for options in ({}, {"lengths": lengths, "reverse": True, "gradient_clip": 1.0}):
        p, q = problem(cell, *shape, dtype), layer_problem(cell, *shape, 7, dtype)
        run(cell, p, "cpu", **options)
        results(lambda a, o=options: layer(**a, function=cell, **o), q)
        with torch.no_grad():
            flashrnn(**p, function=cell, **options)
            layer(**q, function=cell, **options)


def one_short(x: torch.Tensor) -> torch.Tensor:
    x.untyped_storage().resize_(x.untyped_storage().nbytes() - x.element_size())
    return x


def plant(what: str) -> None:
    p = {k: x.detach() for k, x in problem(lstm, 3, 4, 1, 5, torch.float32).items()}
    if what == "wx":
        p["Wx"] = one_short(p["Wx"].clone())
    if what == "states":
        empty = launch.empty_sequence
        launch.empty_sequence = lambda *a: one_short(empty(*a))
    if what == "workspace":  # of a tile's scratch, whose last row ends in unused padding
        exact = launch.scratch
        launch.scratch = lambda name, count, dtype: exact(name, count // 2, dtype)
    flashrnn(**p)


def main() -> None:
    torch.set_num_threads(2)
    launch.PARALLEL_PRODUCTS = 0
    surround.PIECE_ROWS = 7
    launch.scratch = surround.scratch = fresh
    current = Device.current()
    if sys.argv[1:]:
        return plant(sys.argv[1])
    for isa in current.isas:
        narrowed = current.with_isa(isa)
        Device.current = staticmethod(lambda device=narrowed: device)
        # masked loads of wide vectors are not instrumented, the same code on narrow ones is
        for cell in CELLS if isa == "generic" else CELLS[:1]:
            for shape in SHAPES:
                every_kernel(cell, shape, torch.float32)
        every_kernel(lstm, SHAPES[2], torch.float64)
        print(f"clean on {isa}", flush=True)


main()
