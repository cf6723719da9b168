"""The contract between the tuner and a kernel: what a package implements to have it tuned.

A package registers a *family* in the entry-point group "autotune.kernels": a name and a callable
without arguments that returns a Family. From the command line's options a family makes *tunables*
(an LSTM's forward pass is one, its backward pass another), and each of these is one search:

    problem, device -> constraint model -> candidates -> build -> load -> check -> run

A kernel for a GPU is a `GpuTunable`: besides, it predicts what the compiler will need, and
compiles where there is no GPU, so that the prediction can be held against the compiler.

A *configuration* is a solution of the model: a mapping from the names of its variables to
integers. The tuner never looks inside; it ranks, builds, checks, times and remembers.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from autotune.device import Cpu, Device
from autotune.gpu import Gpu

if TYPE_CHECKING:
    from constrint import Model

Config: TypeAlias = Mapping[str, int]
Problem: TypeAlias = Mapping[str, "int | str"]
Options: TypeAlias = Mapping[str, "str | int | float | bool | None"]
DeviceT_contra = TypeVar("DeviceT_contra", bound=Device, contravariant=True)


@dataclass(frozen=True)
class Check:
    """How far a candidate's results lie from the reference: `error` must not exceed `bound`.

    `what` names the quantity in a few words, e.g. "largest error of h against float64".
    """

    error: float
    bound: float
    what: str

    @property
    def ok(self) -> bool:
        """False for an error that is NaN as well."""
        return self.error <= self.bound


class Runner(Protocol):
    """One candidate, loaded into the measuring process with its inputs allocated."""

    def check(self) -> Check:
        """Run once and compare with the reference. Use inputs small enough to take seconds."""
        ...

    def run(self) -> None:
        """Run once on inputs of the real problem; this call is what is timed."""
        ...


class GpuRunner(Runner, Protocol):
    """One candidate on a GPU. `run` only enqueues its work; `check` and `results` wait for it."""

    def results(self) -> bytes:
        """The bits of all results of one run on fixed inputs."""
        ...


class Tunable(Protocol[DeviceT_contra]):
    """One kernel with one problem, to be configured for a device of one kind."""

    @property
    def name(self) -> str:
        """A short name for people: "lstm forward"; rivals add their own: "lstm forward, fused"."""
        ...

    def problem(self) -> dict[str, int | str]:
        """All that the answer depends on besides the device: it keys what is remembered.

        JSON-able. Contains the kernel's name, its sizes and types, the number of threads, and a
        version or digest of the kernel's source, so that a changed kernel is tuned again. Tunables
        whose problems are equal are rivals, other ways to the same results: they run in one race,
        and only its winner is remembered. The configuration must tell whose it is.
        """
        ...

    def model(self, device: DeviceT_contra) -> Model:
        """The constraints on a configuration. Name them: the one that binds is printed."""
        ...

    def cost(self, config: Config, device: DeviceT_contra) -> float:
        """Estimated seconds of one run, to rank candidates by; called for every solution."""
        ...

    def default(self, device: DeviceT_contra) -> dict[str, int] | None:
        """What is used where nothing was tuned; always a candidate. None where that is a rival's.

        Variables that follow from the others may be left out.
        """
        ...

    def build(self, config: Config) -> None:
        """Compile to disk; raises on failure.

        Called from several threads at once, each with another configuration. Must end by
        itself: give the compiler a time limit.
        """
        ...

    def load(self, config: Config) -> Runner:
        """Open what `build` compiled and allocate inputs; called in the measuring process."""
        ...

    def describe(self, config: Config) -> str:
        """The configuration in one line for people."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What a configuration is expected to need: registers per thread, bytes per block."""

    registers: int
    shared_bytes: int
    threads: int  # per block


@dataclass(frozen=True)
class Compiled:
    """One kernel as the compiler made it.

    `shared_bytes` per block is the kernel's own figure, static and dynamic together: the cubin
    only knows the static part. `seconds` is what compiling took.
    """

    cubin: bytes
    shared_bytes: int
    threads: int  # per block
    seconds: float


class GpuTunable(Tunable[Gpu], Protocol):
    """One kernel for a GPU with one problem.

    `load` needs the GPU and compiles for it what is not compiled yet; the rest needs none.
    `compile` takes the place of `build`, which is not called.
    """

    def load(self, config: Config) -> GpuRunner:
        """Compile, and allocate inputs on the GPU; called in the measuring process."""
        ...

    def predict(self, config: Config, device: Gpu) -> Prediction:
        """What the compiler will need for this configuration."""
        ...

    def compile(self, config: Config, device: Gpu) -> Compiled:
        """Compile for `device`, which need not be there; raises on failure.

        Called in a process of its own that is killed after a time limit.
        """
        ...


@runtime_checkable
class Stepped(Protocol):
    """A tunable whose run is so many equal steps, which are no part of its problem.

    The time of one is remembered beside the answer, so that answers to other problems, measured
    with other numbers of steps, can be compared with it.
    """

    @property
    def steps(self) -> int:
        """Of one run; at least 1."""
        ...


@dataclass(frozen=True)
class Comparison:
    """Our tuned entry point beside the strongest peer, timed interleaved after tuning."""

    label: str
    ours: Callable[[], object]
    peer: str
    theirs: Callable[[], object]


class Family(Protocol):
    """Kernels that are tuned together and share their options on the command line."""

    @property
    def name(self) -> str:
        """The name of the family: "lstm"."""
        ...

    def add_arguments(self, parser: argparse._ArgumentGroup) -> None:
        """Declare the problem's options. Values must be strings, numbers, booleans or None."""
        ...

    def tunables(self, options: Options) -> list[Tunable[Cpu]]:
        """The kernels to tune, in order, for the parsed options.

        `options` also holds "threads", the number of threads to tune for. Called again in the
        measuring process with the same options: the answer must be the same list. Raises
        ValueError for sizes that make no sense.
        """
        ...

    def comparisons(self, options: Options) -> list[Comparison]:
        """What to time after tuning; runs in the measuring process, reads what is remembered."""
        ...


@runtime_checkable
class GpuFamily(Family, Protocol):
    """A family that has kernels for GPUs as well."""

    def add_gpu_arguments(self, parser: argparse._ArgumentGroup) -> None:
        """Declare the problem's options for a GPU, where types and directions may differ."""
        ...

    def gpu_tunables(self, options: Options, device: Gpu) -> Sequence[GpuTunable]:
        """The kernels for `device`, in order, for the parsed options of `add_gpu_arguments`.

        Called again in other processes with the same options: the answer must be the same list.
        Raises ValueError for sizes that make no sense, MissingExtra where a compiler is missing.
        """
        ...


# The tunables of one problem, by their numbers among what their family makes.
Rivals: TypeAlias = Mapping[int, Tunable[Any]]


def called(rivals: Rivals) -> str:
    """Their names in one: "lstm forward, fused or alternating"."""
    first, *others = (tunable.name for tunable in rivals.values())
    return " or ".join([first, *(name.rpartition(", ")[2] for name in others)])


@dataclass(frozen=True)
class Candidate:
    """A configuration with its estimated seconds; `of` is the number of its tunable."""

    config: dict[str, int]
    estimate: float
    of: int = 0


@dataclass(frozen=True)
class Space:
    """Every candidate, the cheapest estimate first.

    `feasible` counts the model's solutions, `solve_seconds` is what it took to find them.
    `default` is the position of the default configuration, which is listed even where the
    model excludes it.
    """

    candidates: tuple[Candidate, ...]
    default: int
    feasible: int
    solve_seconds: float

    def best(self, count: int) -> list[int]:
        """Positions of the default, of the cheapest of every rival, and of the `count` cheapest."""
        found = self.default, *foremost(0, self.candidates), *foremost(count, self.candidates)
        return list(dict.fromkeys(found))


def candidates(rivals: Rivals, device: Device) -> Space:
    """Solve the models and rank all of their solutions by estimated cost."""
    start = time.perf_counter()
    configs = solutions(rivals, device)
    seconds = time.perf_counter() - start
    feasible = len(configs)

    defaults = ((of, tunable.default(device)) for of, tunable in rivals.items())
    mine, default = next((of, config) for of, config in defaults if config is not None)

    def is_default(of: int, config: Config) -> bool:
        return of == mine and default.items() <= config.items()

    if not any(is_default(of, config) for of, config in configs):
        configs.append((mine, default))
    ordered = ranked(configs, rivals, device)
    at = next(i for i, c in enumerate(ordered) if is_default(c.of, c.config))
    return Space(tuple(ordered), at, feasible, seconds)


def solutions(rivals: Rivals, device: Device) -> list[tuple[int, dict[str, int]]]:
    """Every configuration, with the number of its tunable."""
    return [
        (of, dict(solution))
        for of, tunable in rivals.items()
        for solution in tunable.model(device).solutions()
    ]


def ranked(
    configs: Iterable[tuple[int, dict[str, int]]], rivals: Rivals, device: Device
) -> list[Candidate]:
    """The configurations with their estimates, the cheapest first; one without estimate last."""
    return sorted(
        (Candidate(config, rivals[of].cost(config, device), of) for of, config in configs),
        key=lambda candidate: (
            candidate.estimate if not math.isnan(candidate.estimate) else math.inf,
            candidate.of,
            sorted(candidate.config.items()),
        ),
    )


def foremost(count: int, ordered: Sequence[Candidate]) -> list[int]:
    """Positions of the first `count` candidates, and of the first of every rival."""
    found: list[int] = []
    seen: set[int] = set()
    for at, candidate in enumerate(ordered):
        if at < count or candidate.of not in seen:
            found.append(at)
        seen.add(candidate.of)
    return found
