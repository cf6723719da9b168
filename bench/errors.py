"""What can go wrong in a benchmark, one class per cause."""

from __future__ import annotations

from collections.abc import Iterable


class BenchError(Exception):
    """Base of every error that this package raises on purpose."""


class UnknownSuite(BenchError):
    """No suite has this name."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        listing = ", ".join(sorted(known))
        super().__init__(f"no suite is called {name!r}; known: {listing}")


class Disagreement(BenchError):
    """An implementation's results are not those of the others: its time means nothing."""

    def __init__(self, case: str, label: str, comparison: object) -> None:
        super().__init__(f"{label} is wrong in {case}: {comparison}; nothing of it was timed")


class UnreadableReport(BenchError):
    """A file is not a report that this version has written."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"{path} is no benchmark report: {why}; `flashrnn-bench run` writes one")
