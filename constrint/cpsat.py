"""The same model on OR-Tools' CP-SAT: a second opinion, and a way past enumeration.

Domains are shrunk by propagation first, so that products stay within CP-SAT's 62 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from constrint.clock import Clock, OutOfTime
from constrint.constraint import Constraint
from constrint.contract import Conflict
from constrint.cpsat_model import Translation
from constrint.domain import Domain
from constrint.expression import Variable
from constrint.optimize import Incumbent, Objective
from constrint.propagate import propagate


def optimize_cpsat(
    domains: Mapping[Variable, Domain],
    constraints: Sequence[Constraint],
    objectives: Sequence[Objective],
    clock: Clock,
    incumbent: Incumbent,
) -> None:
    """As `optimize.optimize`: leaves the best assignment in ``incumbent``."""
    from ortools.sat.python import cp_model

    try:
        shrunk = propagate(domains, constraints) if all(map(len, domains.values())) else None
    except Conflict:
        shrunk = None
    if shrunk is None:
        incumbent.proven = True
        return
    translation = Translation(shrunk, constraints)
    pending: list[Objective | None] = [*objectives] or [None]
    for preference in pending:
        if preference is not None:
            node, sign = preference
            translation.model.minimize(sign * translation.value(node)[0])
        solver = _solver(clock)
        status = solver.solve(translation.model)
        if status == cp_model.INFEASIBLE:
            incumbent.proven = True
            return
        if status not in {cp_model.OPTIMAL, cp_model.FEASIBLE}:
            raise OutOfTime
        incumbent.assignment = {v: solver.value(x) for v, x in translation.of.items()}
        if status != cp_model.OPTIMAL and preference is not None:
            raise OutOfTime
        if preference is not None:
            # The next preference decides among the assignments that are best by this one.
            reached = round(solver.objective_value) * preference[1]
            translation.model.add(translation.value(preference[0])[0] == reached)
            translation.model.clear_objective()  # type: ignore[no-untyped-call]
    incumbent.proven = True


def all_solutions_cpsat(
    domains: Mapping[Variable, Domain], constraints: Sequence[Constraint], clock: Clock
) -> Iterator[dict[str, int]]:
    """Every solution, each once, in no order."""
    from ortools.sat.python import cp_model

    if not all(map(len, domains.values())):
        return
    try:
        translation = Translation(propagate(domains, constraints), constraints)
    except Conflict:
        return
    # CP-SAT's own enumeration would also vary the variables that the translation introduces.
    variables = list(translation.of.values())
    while True:
        solver = _solver(clock)
        status = solver.solve(translation.model)
        if status == cp_model.INFEASIBLE:
            return
        if status not in {cp_model.OPTIMAL, cp_model.FEASIBLE}:
            raise OutOfTime
        row = [solver.value(x) for x in variables]
        yield {v.name: x for v, x in zip(translation.of, row, strict=True)}
        if not variables:
            return
        translation.model.add_forbidden_assignments(variables, [row])


def _solver(clock: Clock) -> Any:
    from ortools.sat.python import cp_model

    clock.check()
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    left = clock.left()
    if left is not None:
        solver.parameters.max_time_in_seconds = left
    return solver
