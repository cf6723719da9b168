"""Hold the choices of a pack against the compiler, and choose again where they were wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from autotune.compiler_report import Report, report, tool_version
from autotune.compiling import Job, Made, Run, attempt
from autotune.errors import ToolFailed
from autotune.gpu import Gpu
from autotune.registry import Origin, resolve
from autotune.space import Candidate, Options
from flashrnn.emit.triton import TF32
from flashrnn.errors import CompilerError
from flashrnn.packs import CELLS, CUDA, SCANS, Kind, Pack
from flashrnn.packs.kind import Choice, Section
from flashrnn.packs.pack import KINDS
from flashrnn.runtime.cuda_compile import compile_for, compiler_version
from flashrnn.runtime.triton_scan import FINISH, JOIN, TOTALS
from flashrnn.tiling.cuda import CudaProblem
from flashrnn.tiling.cuda_latency import Tiling as CudaTiling
from flashrnn.tiling.triton import FUSED, TritonProblem
from flashrnn.tiling.triton_scan import TritonScanProblem
from flashrnn.triton_tunable import TritonKernel

SPILLS = "it spills"
BY_MODEL, BY_REPORT = "cost model", "cost model and the compiler's report"
# What a pack is asked for: problems of each kind of kernels, by its name.
Asked = Mapping[str, Sequence[Any]]
# A kernel: its kind, its problem, and the tiling that stands for it.
Kernel = tuple[Kind[Any, Any], Any, Any]
# What is wrong with each kernel; "" where it compiles, launches and spills nothing.
Faults = Callable[[Sequence[Kernel]], Iterator[str]]
# Told of each kernel: which, what is wrong with it, and how many are done of how many.
Told = Callable[[Kernel, str, int, int], None]
# The fault of each kernel of an architecture, by its kind, its key in a pack and its tiling.
Judged = dict[tuple[str, str, Any], str]


def by_model(asked: Asked, gpu: Gpu) -> Pack:
    """A pack of the cost model's choices."""
    sections = {name: Section(BY_MODEL, KINDS[name].choices(p, gpu)) for name, p in asked.items()}
    return Pack(gpu.fingerprint, versions({}), sections)


def by_report(asked: Asked, gpu: Gpu, judged: Judged, faults: Faults, told: Told) -> Pack:
    """A pack whose kernels have no fault: where one has, the model chooses among the rest.

    `judged` is what is known of the GPU's architecture, and learns what is found.
    """
    sections = {
        name: _settled(KINDS[name], problems, gpu, judged, faults, told)
        for name, problems in asked.items()
    }
    return Pack(gpu.fingerprint, versions(asked), sections)


def _settled(
    kind: Kind[Any, Any],
    problems: Sequence[Any],
    gpu: Gpu,
    judged: Judged,
    faults: Faults,
    told: Told,
) -> Section[Any]:
    filed = {kind.key_of(problem): problem for problem in problems}
    chosen: dict[str, Choice[Any]] = {}
    again = set(filed)
    while again:
        wrong = _wrong(kind, judged)
        chosen |= kind.choices([filed[key] for key in again], gpu, wrong)
        new = [at for at in dict.fromkeys(_kernels(kind, chosen)) if at not in judged]
        kernels = [(kind, filed[key], tiling) for _, key, tiling in new]
        for done, fault in enumerate(faults(kernels)):
            judged[new[done]] = fault
            told(kernels[done], fault, done + 1, len(new))
        again = {at[1] for at in new if judged[at]}
    return Section(BY_REPORT, chosen, _wrong(kind, judged))


def _kernels(
    kind: Kind[Any, Any], chosen: Mapping[str, Choice[Any]]
) -> Iterator[tuple[str, str, Any]]:
    for key, choice in chosen.items():
        for _, classes in choice:
            for _, tiling in classes:
                kernel = kind.kernel_of(tiling)
                if kernel is not None:
                    yield kind.name, key, kernel


def _wrong(kind: Kind[Any, Any], judged: Judged) -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for (name, key, tiling), fault in judged.items():
        if fault and name == kind.name:
            found[key] = (*found.get(key, ()), tiling)
    return found


def compiling(run: Run | None, gpu: Gpu) -> Faults:
    """The faults that NVRTC finds in CUDA kernels, and in Triton's autotune's compilers, `run`."""

    def faults(kernels: Sequence[Kernel]) -> Iterator[str]:
        if kernels and kernels[0][0] is CUDA:
            yield from (_by_nvrtc(problem, tiling, gpu) for _, problem, tiling in kernels)
        elif kernels:
            assert run is not None
            yield from _by_triton(kernels, gpu, run)

    return faults


def _by_triton(kernels: Sequence[Kernel], gpu: Gpu, run: Run) -> Iterator[str]:
    def fault(job: Job, first: Made) -> str:
        # a second time where there is no report: it may have been the machine, which was busy
        made = first if isinstance(first, Report) else next(run([job]))
        tunable = job.origin.gpu_tunables()[job.index]
        judged = attempt(tunable, gpu, 0, Candidate(dict(job.config), 0.0), made)
        spilled = judged.report is not None and judged.report.spilled
        return judged.failure or (SPILLS if spilled else "")

    jobs = [jobs_of(kernel, gpu) for kernel in kernels]
    made = run([job for each in jobs for job in each])
    for each in jobs:
        found = [fault(job, next(made)) for job in each]
        yield next(filter(None, found), "")


def _by_nvrtc(problem: CudaProblem, tiling: CudaTiling, gpu: Gpu) -> str:
    """What is wrong with a CUDA kernel. Raises MissingExtra, ToolFailed."""
    try:
        compiled = compile_for(problem, tiling, gpu.sm)
    except CompilerError as error:
        return str(error)
    try:
        made = report(compiled)
    except ToolFailed:  # it may have been the machine, which was busy
        made = report(compiled)
    if not made.occupancy(gpu.architecture):
        return f"cannot launch: {made.limiting(gpu.architecture)}"
    return SPILLS if made.spilled else ""


def versions(compiled: Asked) -> dict[str, str]:
    """Of what takes part in choosing; compiled: what compilers judge."""
    found = {"flashrnn-compiler": version("flashrnn-compiler")}
    if CUDA.name in compiled:
        found["nvrtc"] = compiler_version().removeprefix("NVRTC ")
    if compiled.keys() - {CUDA.name}:
        found["triton"] = version("triton")
    if compiled:
        found |= {tool: tool_version(tool) for tool in ("ptxas", "ptxas-blackwell")}
    return found


def jobs_of(kernel: Kernel, gpu: Gpu) -> list[Job]:
    """What is to be compiled of a kernel, in words that a compiling process can follow."""
    kind, problem, tiling = kernel
    config = asdict(tiling)
    return [
        Job(origin, [t.name for t in origin.gpu_tunables()].index(name), config)
        for origin, name in _COMPILED[kind.name](problem, gpu)
    ]


def first_of(asked: Asked, gpu: Gpu) -> Origin | None:
    """The words of some kernel that a compiling process is to compile; None where none is."""
    for name, problems in asked.items():
        if name in _COMPILED:
            return _COMPILED[name](problems[0], gpu)[0][0]
    return None


Compiled = list[tuple[Origin, str]]  # with the names of tunables


def _of_cell(problem: TritonProblem, gpu: Gpu) -> Compiled:
    dims = problem.dims
    options: Options = {
        "batch": dims.B, "time": dims.T, "heads": dims.N, "head_dim": dims.D,
        "dtype": problem.dtype.name, "tf32": problem.precision == TF32, "device": gpu.key,
    }  # fmt: skip
    origin = Origin(resolve(problem.program.cell.name), options)
    return [(origin, TritonKernel(problem, FUSED).name)]


def _of_scan(problem: TritonScanProblem, gpu: Gpu) -> Compiled:
    options: Options = {
        "batch": problem.rows, "time": problem.T, "heads": 1, "head_dim": problem.width,
        "dtype": problem.storage.name, "device": gpu.key,
    }  # fmt: skip
    reference = resolve("scan-attention")
    return [
        (Origin(reference, {**options, "kernel": kernel}), problem.name)
        for kernel in (FINISH, TOTALS, JOIN)
    ]


_COMPILED: Mapping[str, Callable[[Any, Gpu], Compiled]] = {
    CELLS.name: _of_cell,
    SCANS.name: _of_scan,
}
