"""Which tiling serves a problem on a GPU: a tuned one, else a pack's, else the model's."""

from __future__ import annotations

from autotune.gpu import Gpu
from autotune.space import Problem
from flashrnn import packs
from flashrnn.packs.kind import Kind, ProblemT, TilingT
from flashrnn.runtime.tuned import Selected, remembered

UNMEASURED = "model-chosen, not measured"


def select(
    kind: Kind[ProblemT, TilingT], problem: ProblemT, gpu: Gpu, tuned_as: Problem
) -> Selected[TilingT]:
    """What tuning left for this problem, else what is used without.

    tuned_as: what a tuned tiling is remembered under.
    """
    tuned = remembered(tuned_as, gpu, str(tuned_as["kernel"]), kind.tiling_of)
    return tuned or untuned(kind, problem, gpu)


def untuned(kind: Kind[ProblemT, TilingT], problem: ProblemT, gpu: Gpu) -> Selected[TilingT]:
    """What a pack holds for this problem, else the model's choice."""
    found = packs.lookup(kind, problem, gpu)
    if found is not None:
        return Selected(found.tiling, f"{UNMEASURED}: {found.by}")
    return Selected(kind.best(problem, gpu), UNMEASURED)
