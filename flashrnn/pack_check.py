"""Hold the choices of a pack against the compiler, and choose again where they were wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version

from autotune.compiler_report import Report, tool_version
from autotune.compiling import Job, Run, attempt
from autotune.gpu import Gpu
from autotune.registry import Origin, resolve
from autotune.space import Candidate, Options
from flashrnn.emit.triton import TF32
from flashrnn.packs import Pack
from flashrnn.packs.choose import choices
from flashrnn.packs.pack import Choice, key_of
from flashrnn.tiling.triton import FUSED, FusedTiling, Tiling, TritonProblem
from flashrnn.triton_tunable import TritonKernel

BY_MODEL, BY_REPORT = "cost model", "cost model and the compiler's report"
Pair = tuple[TritonProblem, FusedTiling]
# What is wrong with each kernel; "" where it compiles, launches and spills nothing.
Faults = Callable[[Sequence[Pair]], Iterator[str]]
# Told of each kernel: which, what is wrong with it, and how many are done of how many.
Told = Callable[[Pair, str, int, int], None]
# The fault of each kernel of an architecture, by its key in a pack and its tiling.
Judged = dict[tuple[str, FusedTiling], str]


def by_model(asked: Sequence[TritonProblem], gpu: Gpu) -> Pack:
    """A pack of the cost model's choices."""
    return Pack(gpu.fingerprint, BY_MODEL, versions(compiled=False), choices(asked, gpu))


def by_report(
    asked: Sequence[TritonProblem], gpu: Gpu, judged: Judged, faults: Faults, told: Told
) -> Pack:
    """A pack whose fused kernels have no fault: where one has, the model chooses among the rest.

    `judged` is what is known of the GPU's architecture, and learns what is found.
    """
    filed = {key_of(problem): problem for problem in asked}
    while True:
        wrong = _wrong(judged)
        chosen = choices(asked, gpu, wrong)
        new = [pair for pair in dict.fromkeys(_fused(chosen)) if pair not in judged]
        if not new:
            return Pack(gpu.fingerprint, BY_REPORT, versions(compiled=True), chosen, wrong)
        pairs = [(filed[key], tiling) for key, tiling in new]
        for at, fault in enumerate(faults(pairs)):
            judged[new[at]] = fault
            told(pairs[at], fault, at + 1, len(new))


def _fused(chosen: Mapping[str, Choice]) -> Iterator[tuple[str, FusedTiling]]:
    for key, choice in chosen.items():
        for _, runs in choice:
            for _, tiling in runs:
                if isinstance(tiling, FusedTiling):
                    yield key, tiling


def _wrong(judged: Judged) -> dict[str, tuple[Tiling, ...]]:
    found: dict[str, tuple[Tiling, ...]] = {}
    for (key, tiling), fault in judged.items():
        if fault:
            found[key] = (*found.get(key, ()), tiling)
    return found


def compiling(run: Run, gpu: Gpu) -> Faults:
    """The faults that autotune's compilers find."""

    def faults(pairs: Sequence[Pair]) -> Iterator[str]:
        jobs = [job_of(problem, tiling, gpu) for problem, tiling in pairs]
        for (problem, tiling), job, first in zip(pairs, jobs, run(jobs), strict=True):
            # a second time where there is no report: it may have been the machine, which was busy
            made = first if isinstance(first, Report) else next(run([job]))
            candidate = Candidate(tiling.as_config(), 0.0)
            judged = attempt(TritonKernel(problem, FUSED), gpu, 0, candidate, made)
            spilled = judged.report is not None and judged.report.spilled
            yield judged.failure or ("it spills" if spilled else "")

    return faults


def versions(*, compiled: bool) -> dict[str, str]:
    """Of what takes part in choosing."""
    found = {"flashrnn-compiler": version("flashrnn-compiler")}
    if compiled:
        found["triton"] = version("triton")
        found |= {tool: tool_version(tool) for tool in ("ptxas", "ptxas-blackwell")}
    return found


def origin_of(problem: TritonProblem, gpu: Gpu) -> Origin:
    """The problem in words that a compiling process can follow."""
    dims = problem.dims
    options: Options = {
        "batch": dims.B, "time": dims.T, "heads": dims.N, "head_dim": dims.D,
        "dtype": problem.dtype.name, "tf32": problem.precision == TF32, "device": gpu.key,
    }  # fmt: skip
    return Origin(resolve(problem.program.cell.name), options)


def job_of(problem: TritonProblem, tiling: FusedTiling, gpu: Gpu) -> Job:
    """A fused kernel to be compiled."""
    origin = origin_of(problem, gpu)
    names = [kernel.name for kernel in origin.gpu_tunables()]
    return Job(origin, names.index(TritonKernel(problem, FUSED).name), tiling.as_config())
