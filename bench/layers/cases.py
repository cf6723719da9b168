"""A case: one problem and one kind of call, done by every implementation, verified.

What is timed is what is verified: a contender's `call` returns the results that it computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from bench.errors import Disagreement, PeerFailed
from bench.layers import ours
from bench.layers.problem import Contender, Kind, Problem, Results, judge, wanted
from bench.peers import Offer
from flashrnn.tolerance import Comparison, compare, worst


@dataclass(frozen=True)
class Judges:
    """The same results in float64, and by eager torch in the problem's type.

    The error of the second one is the measure of what ours may make.
    """

    exact: Results
    eager: Results

    @staticmethod
    def of(problem: Problem) -> Judges:
        return Judges(judge(problem, torch.float64), judge(problem, problem.dtype.torch))


@dataclass(frozen=True)
class Case:
    """One problem, one kind of call, one number of threads; contenders: ours comes first."""

    problem: Problem
    kind: Kind
    threads: int
    contenders: tuple[Contender, ...]

    @property
    def label(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        dims = self.problem.dims
        return f"{self.problem.cell.name} {dims} {self.kind.label}, {threads}"


def case_of(problem: Problem, kind: Kind, threads: int, offers: Mapping[str, Offer]) -> Case:
    """Ours and every peer that offers such a call. Raises PeerFailed."""
    case = Case(problem, kind, threads, (ours.contender(problem, kind),))
    for name, offer in offers.items():
        try:
            peer = offer(problem, kind, threads)
        except Exception as error:
            raise PeerFailed(case.label, name, error) from error
        if peer is not None:
            case = replace(case, contenders=(*case.contenders, peer))
    return case


def verify(case: Case, judges: Judges) -> dict[str, Comparison]:
    """Run every contender once; the error of each one's worst result against float64.

    Ours is held to `flashrnn.tolerance`. A peer rounds as it likes (torch.nn's bias gradient is
    beyond that tolerance for long sequences) but has to compute the same thing: half of the
    digits. Raises Disagreement, PeerFailed.
    """
    names = wanted(case.problem, case.kind)
    found = {}
    for contender in case.contenders:
        try:
            got = contender.read(contender.call())
        except Exception as error:
            if contender.label == ours.LABEL:
                raise
            raise PeerFailed(case.label, contender.label, error) from error
        if got.keys() != names:
            only = ", ".join(sorted(got.keys() ^ names))
            raise Disagreement(case.label, contender.label, f"not everyone computes {only}")
        comparisons = []
        for name in sorted(names):
            exact, eager = judges.exact[name], judges.eager[name]
            compared = compare(name, got[name].reshape(exact.shape), exact, eager)
            if contender.label != ours.LABEL:
                half = torch.finfo(case.problem.dtype.torch).eps ** 0.5
                compared = replace(compared, bound=half)
            comparisons.append(compared)
        found[contender.label] = closest = worst(comparisons)
        if not closest.ok:
            raise Disagreement(case.label, contender.label, closest)
    return found
