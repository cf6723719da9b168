"""Why a model has no solution: a smallest set of its constraints that cannot hold together.

The set is irreducible: without any one of its members, the others can hold. It is found by
divide and conquer (QuickXplain, Junker 2004), with the solver as the judge. Each member is then
told how far it is from holding where all others do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from constrint.clock import Clock, OutOfTime
from constrint.constraint import Constraint
from constrint.domain import Domain
from constrint.evaluate import value
from constrint.expression import Expression, Variable, can_be_undefined, has_quotient
from constrint.optimize import Incumbent, optimize

if TYPE_CHECKING:
    from constrint.model import Rule

Domains = Mapping[Variable, Domain]

NUMBERS_SECONDS = 2.0
"""How long the search for the numbers of one member may take; it is then told without them."""


def feasible(domains: Domains, rules: Sequence[Rule], clock: Clock) -> bool:
    """Whether the rules can hold together."""
    incumbent = Incumbent()
    leaves = [leaf for rule in rules for leaf in rule.leaves]
    about = {v: domains[v] for leaf in leaves for v in leaf.variables()}
    optimize(about, leaves, [], clock, incumbent)
    return incumbent.assignment is not None


def conflict(domains: Domains, rules: Sequence[Rule], clock: Clock) -> list[Rule]:
    """An irreducible conflict among ``rules``, which must not all be able to hold.

    Empty if a domain is empty, since then no constraint is to blame.
    """
    if any(len(domain) == 0 for domain in domains.values()):
        return []
    found = _reduce(domains, [], list(rules), False, clock)
    wanted = {id(rule) for rule in found}
    return [rule for rule in rules if id(rule) in wanted]


def _reduce(
    domains: Domains, kept: list[Rule], rules: list[Rule], grown: bool, clock: Clock
) -> list[Rule]:
    """The members of ``rules`` that a conflict with ``kept`` needs."""
    if grown and not feasible(domains, kept, clock):
        return []
    if len(rules) == 1:
        return rules
    middle = len(rules) // 2
    first, second = rules[:middle], rules[middle:]
    needed = _reduce(domains, kept + first, second, True, clock)
    return _reduce(domains, kept + needed, first, bool(needed), clock) + needed


def explained(name: str, domains: Domains, found: Sequence[Rule]) -> str:
    """The message of an infeasible model: its conflict, in the user's words and numbers."""
    title = f"no solution of {name}" if name else "no solution"
    for variable, domain in domains.items():
        if len(domain) == 0:
            return f"{title}: {variable} has no values to choose from"
    if not found:
        return title
    lines = [f"{title}: these cannot hold together"]
    for rule in found:
        others = [other for other in found if other is not rule]
        lines.append(f"  {rule}{_shortfall(domains, rule, others)}")
    seen = dict.fromkeys(v for rule in found for v in rule.constraint.variables())
    lines.append("  where " + "; ".join(f"{v} in {domains[v]}" for v in seen) if seen else "")
    return "\n".join(lines).rstrip()


def _shortfall(domains: Domains, rule: Rule, others: Sequence[Rule]) -> str:
    """How near to holding a rule can come where the others hold, as a remark."""
    node = rule.constraint
    gap = _gap(node)
    if gap is None:
        return ""
    leaves = [leaf for other in others for leaf in other.leaves]
    if can_be_undefined(gap):
        leaves.append(Constraint("==", gap, gap))
    about = {v: domains[v] for c in (*leaves, node) for v in c.variables()}
    incumbent = Incumbent()
    try:
        optimize(about, leaves, [(gap, 1)], Clock(NUMBERS_SECONDS), incumbent)
    except OutOfTime:
        return ""
    if incumbent.assignment is None:
        return ""
    at = {v.name: x for v, x in incumbent.assignment.items()}
    left, right = value(node.args[0], at), value(node.args[1], at)
    with_others = "with the others" if others else "over these domains"
    return f"  [{with_others}, at the nearest {left} {node.op} {right}]"


def _gap(node: Constraint) -> Expression | None:
    """What has to be made small for a comparison to hold."""
    if node.op not in {"<", "<=", ">", ">=", "=="}:
        return None
    left, right = node.args
    if has_quotient(left) or has_quotient(right):
        return None
    if node.op in {">", ">="}:
        left, right = right, left
    gap = Expression("-", left, right)
    return Expression("abs", gap) if node.op == "==" else gap
