"""What can go wrong, one class per cause. Every message says what would work instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


class AutotuneError(Exception):
    """Base of every error that this package raises on purpose."""


class IsaUnavailable(AutotuneError):
    """An instruction set was asked for that this machine does not have."""

    def __init__(self, isa: str, available: Sequence[str], processor: str) -> None:
        super().__init__(f"{processor} cannot run {isa!r} code; it can run: {_listing(available)}")
        self.isa = isa
        self.available = tuple(available)


class NoGpu(AutotuneError):
    """A GPU of this machine was asked for, and there is none that torch can use."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"there is no GPU to use: {why}; kernels can be compiled for a GPU by its name, "
            "which `autotune devices` lists"
        )
        self.why = why


class UnknownDevice(AutotuneError):
    """No GPU of the table is called so."""

    def __init__(self, name: str, close: Sequence[str], known: Sequence[str]) -> None:
        guess = f"did you mean {' or '.join(close)}? " if close else ""
        super().__init__(f"no GPU is called {name!r}; {guess}known: {_listing(known)}")
        self.name = name
        self.close = tuple(close)


class MissingExtra(AutotuneError):
    """A package that this needs is not installed; an extra of flashrnn-compiler brings it."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package {package}, which is not installed: "
            f"pip install 'flashrnn-compiler[{extra}]'"
        )
        self.package = package
        self.extra = extra


class ToolFailed(AutotuneError):
    """A program of the CUDA tools could not be run, or did not understand its input."""

    def __init__(self, tool: str, why: str) -> None:
        super().__init__(f"{tool} failed: {why}")
        self.tool = tool


class UnknownArchitecture(AutotuneError):
    """The table has no limits for this compute capability."""

    def __init__(self, sm: int, known: Sequence[int]) -> None:
        super().__init__(
            f"no limits are known for sm_{sm}; known: {_listing(f'sm_{n}' for n in known)}"
        )
        self.sm = sm


class UnknownKernel(AutotuneError):
    """No installed package registers a kernel family under this name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"no kernel is called {name!r}; known: {_listing(sorted(known))} "
            "(a package registers its kernels in the entry-point group 'autotune.kernels')"
        )
        self.name = name
        self.known = tuple(sorted(known))


class FamilyUnavailable(AutotuneError):
    """A registered kernel family could not be imported or built."""

    def __init__(self, reference: str, why: str) -> None:
        super().__init__(f"kernel family {reference!r} cannot be loaded: {why}")
        self.reference = reference


class NoGpuKernels(AutotuneError):
    """A kernel family without kernels for GPUs was asked for some."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has no kernels for GPUs; `autotune run {name}` tunes the CPU's")
        self.name = name


class CaptureInProgress(AutotuneError):
    """Kernels cannot be timed while their calls are recorded into a CUDA graph."""

    def __init__(self) -> None:
        super().__init__(
            "a CUDA graph is being captured, in which nothing runs that could be timed; "
            "tune before the capture, and capture what was tuned"
        )


class NotDeterministic(AutotuneError):
    """A candidate gave other bits when it was run again on the same inputs."""

    def __init__(self) -> None:
        super().__init__("two runs on the same inputs differ; kernels must repeat their bits")


class NothingWorks(AutotuneError):
    """Every candidate failed to build, crashed, hung or gave a wrong answer."""

    def __init__(self, name: str, failures: Sequence[tuple[str, str]]) -> None:
        reasons: dict[str, list[str]] = {}
        for candidate, why in failures:
            reasons.setdefault(why, []).append(candidate)
        lines = "".join(
            f"\n  {who[0]}{f' and {len(who) - 1} more' if len(who) > 1 else ''}: {why}"
            for why, who in reasons.items()
        )
        super().__init__(
            f"no candidate for {name} works; {len(failures)} tried, the default among them:{lines}"
        )
        self.name = name
        self.failures = tuple(failures)


class WorkerFailed(AutotuneError):
    """The measuring process could not do what it was asked.

    `how` is "failed" (an exception, the process lives on), "crashed" or "hung" (it is gone);
    `candidate` is the number of the candidate that was running, None if there was none.
    """

    def __init__(self, how: str, reason: str, candidate: int | None = None) -> None:
        super().__init__(f"the measuring process {how}: {reason}")
        self.how = how
        self.reason = reason
        self.candidate = candidate


class CacheWarning(UserWarning):
    """What was remembered could not be read, or could not be written."""
