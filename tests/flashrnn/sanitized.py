"""Run under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own.

Every tensor is a block of its own between poisoned zones, the workspaces too. The one argument
plants an error: "wx" or "states" is a number short, or
"workspace" has half of its size. test_sanitizers.py starts this.
"""

import sys

import torch
from cells_for_tests import shuffled
from problems import layer_problem, problem, results, run

from autotune.device import Device
from flashrnn import flashrnn, layer
from flashrnn.cells import gru, indrnn, lstm
from flashrnn.dtypes import Dtype
from flashrnn.runtime import build, launch, scratch, surround

SHAPES = [(5, 4, 2, 5), (7, 1, 3, 7), (2, 0, 1, 5), (0, 2, 1, 5)]
LANES = (1, 1030, 1, 3)  # enough rows for weight gradients in lanes, whose pieces are of seven
TILES_OF_THEIR_OWN = [(1, 3, 2, 1), (3, 5, 1, 19)]


def fresh(name: str, count: int, dtype: Dtype) -> int:
    """A workspace of exactly this size, whatever calls before needed."""
    scratch._kept.__dict__.pop(f"{name} {dtype.name}", None)
    return scratch.scratch(name, count, dtype)


def every_kernel(cell, shape, dtype) -> None:
    B, T, _, _ = shape
    lengths = torch.tensor([(T, 0, T // 2)[b % 3] for b in range(B)], dtype=torch.int64)
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
        forward = launch.Kernel.forward
        launch.Kernel.forward = lambda kernel, *a: forward(kernel, *a[:5], one_short(a[5]), *a[6:])
    if what == "workspace":
        launch.scratch = lambda name, count, dtype: fresh(name, count // 2, dtype)
    flashrnn(**p)


def main() -> None:
    torch.set_num_threads(2)
    launch.PARALLEL_PRODUCTS = 0
    surround.PIECE_ROWS = 7
    launch.scratch = surround.scratch = fresh
    current = Device.current()
    build.COMPILE_SECONDS = 1200.0
    # masked access to wide vectors is not instrumented, the same code on narrow ones is
    Device.current = staticmethod(lambda: current.with_isa("generic"))
    if sys.argv[1:]:
        plant(sys.argv[1])
        return
    for cell in (lstm, gru, indrnn, shuffled):
        for shape in SHAPES:
            every_kernel(cell, shape, torch.float32)
    for shape in TILES_OF_THEIR_OWN:
        every_kernel(lstm, shape, torch.float32)
    every_kernel(lstm, SHAPES[0], torch.float64)
    every_kernel(gru, LANES, torch.float32)
    print("clean", flush=True)


main()
