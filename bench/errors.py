"""What can go wrong in a benchmark, one class per cause."""

from __future__ import annotations

from collections.abc import Iterable


class BenchError(Exception):
    """Base of every error that this package raises on purpose."""


class Usage(BenchError):
    """The command line asks for something that does not exist."""


class UnknownSuite(Usage):
    """No suite has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        listing = ", ".join(sorted(known))
        super().__init__(f"no suite is called {name!r}; known: {listing}")


class UnknownChoice(Usage):
    """No cell, shape or peer is called so."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no {what} is called {name!r}; known: {', '.join(known)}")


class MissingPeer(BenchError):
    """A peer that was asked for by name is not installed."""

    def __init__(self, name: str, modules: Iterable[str], why: str) -> None:
        needs = " and ".join(modules)
        super().__init__(
            f"the peer {name!r} needs {needs} ({why}); "
            "install them: pip install 'flashrnn-compiler[peers]'"
        )


class Disagreement(BenchError):
    """An implementation's results are not those of the others: its time means nothing."""

    def __init__(self, case: str, label: str, comparison: object) -> None:
        super().__init__(f"{label} is wrong in {case}: {comparison}; nothing of it was timed")


class PeerFailed(BenchError):
    """A peer raised an error of its own."""

    def __init__(self, case: str, label: str, error: Exception) -> None:
        super().__init__(
            f"{label} failed in {case}: {type(error).__name__}: {error}; "
            "--peers with the names of the others leaves it out"
        )


class UnreadableReport(BenchError):
    """A file is not a report that this version has written."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"{path} is no benchmark report: {why}; `flashrnn-bench run` writes one")


class NoPage(BenchError):
    """A suite has nothing to draw."""

    def __init__(self, path: object) -> None:
        super().__init__(f"the suite of {path} has no page; `flashrnn-bench show` prints it")


class NothingToDraw(BenchError):
    """A page needs matplotlib, or at least one case."""
