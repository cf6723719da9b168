"""The model: variables, constraints, preferences, and the questions one asks of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from constrint.binding import Binding, measured_all
from constrint.clock import Clock, OutOfTime
from constrint.constraint import Constraint, constraint
from constrint.domain import Domain, as_integer, divisors, domain_of, powers_of_two
from constrint.enumerate import enumerate_all
from constrint.errors import ConstrintError, Infeasible, ModelError, OperandError, TimeLimit
from constrint.evaluate import holds
from constrint.explain import REASON_SECONDS, Conflict, explained, feasible
from constrint.expression import (
    Expression,
    Operand,
    Variable,
    can_be_undefined,
    expression,
    has_quotient,
)
from constrint.lower import normal
from constrint.optimize import Incumbent, optimize
from constrint.some import FEW, some
from constrint.space import Space


@dataclass(frozen=True, eq=False)
class Rule:
    """A constraint of a model with the name its user gave it."""

    constraint: Constraint
    name: str | None
    leaves: tuple[Constraint, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.constraint}" if self.name else str(self.constraint)


class Solution(dict[str, int]):
    """A solution: the value of each variable by name."""

    def __init__(self, values: Mapping[str, int], optimal: bool) -> None:
        super().__init__(values)
        self.optimal = optimal
        """Whether no solution is better by the model's preferences."""


def largest(objective: Operand) -> tuple[Operand, int]:
    """The preference for a large ``objective``; see `Model.prefer`."""
    return objective, -1


def smallest(objective: Operand) -> tuple[Operand, int]:
    """The preference for a small ``objective``; see `Model.prefer`."""
    return objective, 1


class Model:
    """Integer variables with finite domains, and constraints that must hold together.

    >>> m = Model("halves")
    >>> a, b = m.int_var("a", range(1, 9)), m.int_var("b", range(1, 9))
    >>> m.add(a * b == 12, a < b, name="area")
    >>> m.solve()
    {'a': 2, 'b': 6}
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.variables: dict[str, Variable] = {}
        self.rules: list[Rule] = []
        self.objectives: list[tuple[Expression, int]] = []  # +1 minimises, -1 maximises

    @classmethod
    def from_space(
        cls,
        params: Mapping[str, Iterable[int]],
        constraints: Iterable[str | Callable[..., object]] = (),
        name: str = "",
    ) -> Model:
        """The model of an auto-tuning space: lists of values, and conditions on them.

        A condition is a Python expression, or a callable that takes the variables it names, or
        one that takes a dict of all values. Arithmetic is exact, also where Python would round.
        """
        from constrint.from_space import fill

        model = cls(name)
        fill(model, params, constraints)
        return model

    # What a user states

    def int_var(self, name: str, domain: Iterable[int]) -> Variable:
        """A new variable; ``domain`` is a range (with any stride) or a list of integers."""
        if not isinstance(name, str) or not name:
            raise ModelError(f"a variable needs a name that is a non-empty string, not {name!r}")
        if name in self.variables:
            raise ModelError(f"there is already a variable {name!r} in this model")
        variable = Variable(name, domain_of(domain, name))
        self.variables[name] = variable
        return variable

    def bool_var(self, name: str) -> Variable:
        """A new variable over 0 and 1."""
        return self.int_var(name, range(2))

    def divisors_of(self, n: int) -> Domain:
        """A domain: the positive divisors of ``n``."""
        return divisors(n)

    def powers_of_two(self, low: int, high: int) -> Domain:
        """A domain: the powers of two from ``low`` to ``high``."""
        return powers_of_two(low, high)

    def add(self, *constraints: Constraint | bool, name: str | None = None) -> None:
        """Adds constraints, all under one name; it is what explanations call them."""
        if name is not None and (not isinstance(name, str) or not name):
            raise ModelError(f"a constraint's name is a non-empty string, not {name!r}")
        for stated in constraints:
            node = constraint(stated, "add")
            self._check_owned(node)
            self.rules.append(Rule(node, name, tuple(normal(node))))

    def minimize(self, objective: Operand) -> None:
        """Prefers solutions with a small ``objective``, after the preferences stated before."""
        self._prefer(objective, 1)

    def maximize(self, objective: Operand) -> None:
        """Prefers solutions with a large ``objective``, after the preferences stated before."""
        self._prefer(objective, -1)

    def prefer(self, *preferences: tuple[Operand, int]) -> None:
        """Preferences, the most important first: ``prefer(largest(x), smallest(y))``."""
        for objective, sign in preferences:
            self._prefer(objective, sign)

    # What a user asks

    def solve(
        self,
        assume: Mapping[str, int] | None = None,
        time_limit: float | None = None,
        engine: str = "native",
    ) -> Solution:
        """The best solution by the preferences, or any; raises Infeasible where there is none.

        ``assume`` fixes variables for this question only. When ``time_limit`` seconds have
        passed (and half a second of grace), or on Ctrl-C, the best solution so far is returned
        with ``optimal`` False, or TimeLimit is raised where there is none yet. ``engine`` is
        "native" or "cpsat".
        """
        domains = self._assumed(assume)
        clock = Clock(time_limit)
        incumbent = Incumbent()
        constraints = self._constraints_for_objectives()
        try:
            if engine == "cpsat":
                from constrint.cpsat import optimize_cpsat

                optimize_cpsat(domains, constraints, self.objectives, clock, incumbent)
            elif engine == "native":
                optimize(domains, constraints, self.objectives, clock, incumbent)
            else:
                raise ModelError(f"unknown engine {engine!r}: use 'native' or 'cpsat'")
        except (OutOfTime, KeyboardInterrupt) as stopped:
            if incumbent.assignment is None:
                if isinstance(stopped, KeyboardInterrupt):
                    raise
                raise TimeLimit(
                    f"no solution within {time_limit} s: allow more time, or try the other engine"
                ) from None
        if incumbent.assignment is None:
            raise self._infeasible(domains)
        found = {v.name: value for v, value in incumbent.assignment.items()}
        at = {name: found[name] for name in self.variables}
        return Solution(self._verified(at), optimal=incumbent.proven)

    def solutions(
        self, limit: int | None = None, engine: str = "native"
    ) -> Iterator[dict[str, int]]:
        """The solutions, each once, at most ``limit`` of them.

        A small ``limit`` (up to 4096) is met without forming the others, so that a component too
        large to be enumerated can be asked for some.
        """
        if limit is not None and as_integer(limit, "the limit") < 0:
            raise ModelError(f"a limit of {limit} solutions: it must not be negative")
        space: Iterable[dict[str, int]]
        if engine == "cpsat":
            from constrint.cpsat import all_solutions_cpsat

            space = all_solutions_cpsat(self._assumed(None), self._leaves(), Clock())
        elif limit is not None and limit <= FEW:
            space = some(self._assumed(None), self._leaves(), limit)
        else:
            space = self.enumerate()
        for found, at in enumerate(space):
            if limit is not None and found >= limit:
                return
            yield self._verified(at)

    def count(self) -> int:
        """The number of solutions."""
        return self.enumerate().count()

    def enumerate(self, time_limit: float | None = None) -> Space:
        """All solutions as a lazy space; it is empty where there is none."""
        return enumerate_all(self._assumed(None), self._leaves(), Clock(time_limit))

    def binding(self, solution: Mapping[str, int]) -> list[Binding]:
        """Every constraint at ``solution`` with its slack, tightest first; 0 binds.

        Inequalities come first, by slack relative to their larger side; equalities,
        divisibilities and the like, which can only hold exactly, follow.
        """
        return measured_all(self.rules, self._assignment(solution))

    def check(self, assignment: Mapping[str, int]) -> list[Binding]:
        """The constraints that ``assignment`` violates, and by how much (negative slack)."""
        at = self._assignment(assignment)
        return [record for record in measured_all(self.rules, at) if not record.holds]

    def explain(
        self, assume: Mapping[str, int] | None = None, time_limit: float | None = None
    ) -> Infeasible | None:
        """Why there is no solution, as the error `solve` would raise; None where there is one.

        TimeLimit is raised if ``time_limit`` seconds do not tell which. The reason may then take
        as long again (10 s without a limit), after which it is the smallest found in time.
        """
        domains = self._assumed(assume)
        empty = any(len(domain) == 0 for domain in domains.values())
        if not empty and feasible(domains, self.rules, Clock(time_limit)):
            return None
        return self._infeasible(domains, time_limit)

    def graph(self) -> Any:
        """Variables and constraints as a bipartite networkx.Graph."""
        from constrint.graph import constraint_graph

        return constraint_graph(self)

    def __str__(self) -> str:
        lines = [f"{name} in {v.domain}" for name, v in self.variables.items()]
        lines += [str(rule) for rule in self.rules]
        words = {1: "minimize", -1: "maximize"}
        lines += [f"{words[sign]} {node}" for node, sign in self.objectives]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Model {self.name!r}:\n{self}>"

    # Helpers

    def _prefer(self, objective: Operand, sign: int) -> None:
        node = expression(objective, "minimize" if sign > 0 else "maximize")
        self._check_owned(node)
        if has_quotient(node):
            raise OperandError(f"the preference `{node}` holds a quotient: use // or cdiv")
        self.objectives.append((node, sign))

    def _leaves(self) -> list[Constraint]:
        return [leaf for rule in self.rules for leaf in rule.leaves]

    def _constraints_for_objectives(self) -> list[Constraint]:
        """All constraints, and that every preference has a value."""
        partial = [Constraint("==", n, n) for n, _ in self.objectives if can_be_undefined(n)]
        return self._leaves() + partial

    def _assumed(self, assume: Mapping[str, int] | None) -> dict[Variable, Domain]:
        domains = {v: v.domain for v in self.variables.values()}
        for name, value in (assume or {}).items():
            variable = self.variables.get(name)
            if variable is None:
                raise ModelError(
                    f"assume speaks of {name!r}; the variables are {', '.join(self.variables)}"
                )
            number = as_integer(value, f"the assumption on {name!r}")
            domains[variable] = variable.domain.within(number, number)
        return domains

    def _infeasible(
        self, domains: dict[Variable, Domain], seconds: float | None = None
    ) -> Infeasible:
        name, rules = self.name, list(self.rules)  # as they are now

        def explain() -> tuple[str, list[Rule], bool]:
            found = Conflict(domains, rules, seconds or REASON_SECONDS)
            message = explained(name, domains, found.members, found.irreducible)
            return message, found.members, found.irreducible

        return Infeasible(explain)

    def _check_owned(self, node: Constraint | Expression) -> None:
        for variable in node.variables():
            if self.variables.get(variable.name) is not variable:
                raise ModelError(f"`{node}` uses {variable.name!r}, a variable of another model")

    def _assignment(self, assignment: Mapping[str, int]) -> dict[str, int]:
        missing = [name for name in self.variables if name not in assignment]
        if missing:
            raise ModelError(f"the assignment gives no value to {', '.join(missing)}")
        return {
            name: as_integer(assignment[name], f"the assignment of {name!r}")
            for name in self.variables
        }

    def _verified(self, at: dict[str, int]) -> dict[str, int]:
        for rule in self.rules:
            if holds(rule.constraint, at) is not True:
                raise ConstrintError(f"internal error: {at} violates `{rule}`; please report it")
        for name, variable in self.variables.items():
            if at[name] not in variable.domain:
                raise ConstrintError(
                    f"internal error: {name} = {at[name]} is not in {variable.domain}"
                )
        return at
