"""flashrnn show CELL --target cuda: a kernel with its tiling and what the compiler made of it."""

from __future__ import annotations

import argparse

from autotune.compiler_report import Report, report
from autotune.errors import MissingExtra
from autotune.gpu import named
from flashrnn.dims import Dims
from flashrnn.dtypes import GPU_BY_NAME
from flashrnn.emit.cuda import DIRECTIONS, INFERENCE
from flashrnn.errors import OptionError
from flashrnn.ir.cell import Cell
from flashrnn.passes.lower import lower
from flashrnn.runtime.cuda_compile import compile_for
from flashrnn.tiling import cuda_choice as tiling
from flashrnn.tiling.cuda import CudaProblem
from flashrnn.tiling.cuda_choice import IN_WORDS
from flashrnn.tiling.cuda_latency import step_seconds

TARGET = "cuda"
DEFAULT_DEVICE, DEFAULT_DTYPE = "h100-sxm", "bfloat16"


def show(cell: Cell, options: argparse.Namespace) -> str:
    """The source under comments; with --sass, the machine code of the time loop after it.

    Raises TilingError where no schedule holds a head of that size, UnknownDevice, OptionError.
    """
    gpu = named(options.device or DEFAULT_DEVICE)
    direction = one_of("--direction", options.direction or INFERENCE, TARGET, DIRECTIONS)
    dtype = one_of("--dtype", options.dtype or DEFAULT_DTYPE, TARGET, tuple(GPU_BY_NAME))
    dims = Dims(options.batch, 1, options.heads, options.head_dim)
    problem = CudaProblem(lower(cell), direction, GPU_BY_NAME[dtype], dims)
    chosen = tiling.choose(problem, gpu)
    config = chosen.as_config()
    config.pop("clustered", None)  # which the schedule's words say
    words = ", ".join(f"{name} = {value}" for name, value in config.items())
    needed = tiling.predict(problem, chosen)
    where = IN_WORDS[tiling.schedule_of(chosen)]
    step = 1e6 * step_seconds(problem, chosen, gpu)
    lines = [
        f"For D={dims.D} on {gpu.name} (sm_{gpu.sm}), a head in {where}: {words}",
        f"(the shortest step by the latency model: {step:.1f} µs, a prediction).",
        f"{tiling.binding(problem, chosen, gpu)}.",
        f"Predicted: {needed.registers} registers, {needed.shared_bytes:,} bytes of shared memory,",
        f"{tiling.products_per_step(problem, chosen)} tensor-core instructions per warp and step.",
    ]
    made: Report | None = None
    try:
        made = report(compile_for(problem, chosen, gpu.sm))
        lines += _compiled(made)
    except MissingExtra as error:
        if options.sass:
            raise
        lines.append(f"Not compiled: {error}")
    text = "".join(f"// {line}\n" for line in lines) + tiling.source_of(problem, chosen)
    return text + (_sass(made) if options.sass and made is not None else "")


def _compiled(made: Report) -> list[str]:
    spilled = f"{made.spill_store_bytes} / {made.spill_load_bytes} bytes spilled / fetched again"
    lines = [f"Compiled: {made.registers} registers, {spilled if made.spilled else 'no spills'}."]
    if made.step is not None:
        counts = [f"{n} {kind}" for kind, n in made.step.code.classes.items() if n]
        lines.append(f"A step is {len(made.step.code)} instructions: {', '.join(counts)}.")
    return lines


def _sass(made: Report) -> str:
    """The time loop, in comments, so that the whole stays a source."""
    code = made.code if made.step is None else made.step.code
    lines = (f"//   {i.address:05x}  {i.name}{i.operands}" for i in code.instructions)
    return "\n// The time loop:\n" + "\n".join(lines) + "\n"


def one_of(option: str, value: str, target: str, known: tuple[str, ...]) -> str:
    """The value, if the target has it. Raises OptionError."""
    if value not in known:
        raise OptionError(f"{option} {value}: --target {target} has {', '.join(known)}")
    return value
