"""After tuning: our entry point beside its strongest peer, in the measuring process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.errors import WorkerFailed
from autotune.measure import Timing
from autotune.registry import Origin
from autotune.result import Result, timing_report
from autotune.worker import Worker

SECONDS = 2.0  # of samples for each comparison
TIMEOUT = 120.0


@dataclass(frozen=True)
class Row:
    """One comparison; `failure` says why there are no timings where there are none."""

    label: str
    peer: str
    timings: tuple[Timing, Timing] | None
    failure: str = ""

    @property
    def ratio(self) -> float | None:
        """The peer's median over ours: above 1 we are faster."""
        if self.timings is None:
            return None
        ours, theirs = self.timings
        return theirs.median / ours.median

    def report(self) -> dict[str, Any]:
        """JSON-able, without the single samples."""
        ours, theirs = self.timings or (None, None)
        return {
            "label": self.label,
            "peer": self.peer,
            "ours": ours and timing_report(ours),
            "theirs": theirs and timing_report(theirs),
            "ratio": self.ratio,
            "failure": self.failure,
        }


def compare(origin: Origin, results: Sequence[Result]) -> Iterator[Row]:
    """Time each of the family's comparisons with the configurations of `results` in use."""
    remembered = [(result.problem, result.device, result.config) for result in results]
    with Worker(origin, remembered=remembered) as worker:
        for index, (label, peer) in enumerate(worker.comparisons(TIMEOUT)):
            try:
                yield Row(label, peer, worker.compare(index, SECONDS, TIMEOUT))
            except WorkerFailed as failure:
                yield Row(label, peer, None, f"{failure.how}: {failure.reason}")
