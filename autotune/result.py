"""What a search found: each candidate's fate, and the configuration that was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.cache import Entry
from autotune.measure import Timing
from autotune.space import Candidate, Check, DeviceT_contra, Tunable


@dataclass
class Trial:
    """One candidate on its way through the search.

    `status` is "waiting", "built", "checked" (right, not timed) or "timed" for those that live;
    "not built", "failed", "crashed", "hung", "wrong" or "skipped", with a `reason`, for the others.
    """

    candidate: Candidate
    description: str
    status: str = "waiting"
    reason: str = ""
    check: Check | None = None
    warm_seconds: float = 0.0  # of a single run, straight after the check
    timing: Timing | None = None  # of the last round that it took part in

    @property
    def config(self) -> dict[str, int]:
        return self.candidate.config

    def fail(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason

    def report(self) -> dict[str, Any]:
        """JSON-able, without the single samples."""
        return {
            "config": self.config,
            "description": self.description,
            "estimated_seconds": self.candidate.estimate,
            "status": self.status,
            "reason": self.reason,
            "error": self.check and self.check.error,
            "timing": self.timing and timing_report(self.timing),
        }


@dataclass(frozen=True)
class Result:
    """The outcome of one search. Times in seconds, None where the budget left nothing timed.

    `binding` says of each constraint that holds with nothing to spare what it used of what.
    `trials` lists the default first, then the others by estimated cost. `seconds` and
    `default_seconds` are medians of the same round.
    """

    name: str
    device: str  # the fingerprint
    problem: dict[str, int | str]
    config: dict[str, int]
    description: str
    is_default: bool
    binding: tuple[str, ...]
    check: Check
    seconds: float | None
    default_seconds: float | None
    trials: tuple[Trial, ...]
    feasible: int
    solve_seconds: float
    interrupted: bool
    steps: int = 1  # of one run

    def entry(self) -> Entry:
        """What the cache keeps of it."""
        return Entry(
            name=self.name,
            device=self.device,
            problem=self.problem,
            config=self.config,
            description=self.description,
            seconds=self.seconds,
            default_seconds=self.default_seconds,
            binding=list(self.binding),
            steps=self.steps,
        )

    def report(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {
            "name": self.name,
            "device": self.device,
            "problem": self.problem,
            "config": self.config,
            "description": self.description,
            "is_default": self.is_default,
            "binding": list(self.binding),
            "check": {
                "what": self.check.what,
                "error": self.check.error,
                "bound": self.check.bound,
            },
            "seconds": self.seconds,
            "default_seconds": self.default_seconds,
            "steps": self.steps,
            "feasible": self.feasible,
            "solve_seconds": self.solve_seconds,
            "interrupted": self.interrupted,
            "trials": [trial.report() for trial in self.trials],
        }


def timing_report(timing: Timing) -> dict[str, Any]:
    """A timing's summary, JSON-able."""
    return {
        "median": timing.median,
        "quartiles": list(timing.quartiles),
        "samples": len(timing.samples),
    }


def binding(
    tunable: Tunable[DeviceT_contra], device: DeviceT_contra, config: Mapping[str, int]
) -> tuple[str, ...]:
    """What the limits with nothing to spare have used of what they allow, in words.

    The tightest limit where all have some slack. What `config` violates, where it is a default
    that the model does not admit; nothing where it leaves variables out besides.
    """
    model = tunable.model(device)
    if not model.variables.keys() <= config.keys():
        return ()
    records = model.binding(config)
    broken = [record for record in records if not record.holds]
    # an equality or a divisibility never has slack: that it holds tells nothing
    limits = [record for record in records if not record.exact]
    tight = [record for record in limits if record.slack == 0] or limits[:1]
    return tuple(str(record) for record in broken or tight)
