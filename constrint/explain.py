"""Why a model has no solution: a smallest set of its constraints that cannot hold together.

The set is irreducible: without any one of its members, the others can hold. It is found by
divide and conquer (QuickXplain, Junker 2004), with the solver as the judge. Each member is then
told how far it is from holding where all others do. Both are bounded in time: a reason that
takes too long is told as far as it is known.
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

REASON_SECONDS = 10.0
"""How long the search for a smallest conflict may take, if the user sets no other limit."""

JUDGEMENT_SHARE = 0.25
"""One judgement may take this share of the time left; a set it fails to judge is kept whole."""

NUMBERS_SECONDS = 2.0
"""How long the search for the numbers may take, of all members; the rest is told without them."""


def feasible(domains: Domains, rules: Sequence[Rule], clock: Clock) -> bool:
    """Whether the rules can hold together."""
    incumbent = Incumbent()
    leaves = [leaf for rule in rules for leaf in rule.leaves]
    about = {v: domains[v] for leaf in leaves for v in leaf.variables()}
    optimize(about, leaves, [], clock, incumbent)
    return incumbent.assignment is not None


class Conflict:
    """The search for an irreducible conflict among ``rules``, which must not all be able to hold.

    ``members`` is at any time the smallest conflict found so far, and ``irreducible`` whether it
    is known that none of them can be spared. It is empty if a domain is empty, since then no
    constraint is to blame.
    """

    def __init__(self, domains: Domains, rules: Sequence[Rule], seconds: float) -> None:
        self.domains = domains
        self.clock = Clock(seconds)
        self.members: list[Rule] = list(rules)
        self.irreducible = False
        self._sure = True
        if any(len(domain) == 0 for domain in domains.values()):
            self.members, self.irreducible = [], True
            return
        try:
            self._reduce([], list(rules), False)
            if not self._sure:
                self._spare()
            self.irreducible = True
        except OutOfTime:
            pass
        wanted = {id(rule) for rule in self.members}
        self.members = [rule for rule in rules if id(rule) in wanted]

    def _can_hold(self, rules: list[Rule]) -> bool | None:
        """Whether the rules can hold together; None where its share of the time is too short."""
        self.clock.check()
        seconds = (self.clock.left() or 0.0) * JUDGEMENT_SHARE
        try:
            return feasible(self.domains, rules, Clock(max(seconds, 1e-3)))
        except OutOfTime:
            self._sure = False
            return None

    def _reduce(self, kept: list[Rule], rules: list[Rule], grown: bool) -> list[Rule]:
        """The members of ``rules`` that a conflict with ``kept`` needs.

        The two lists together conflict, and are never more than those of the call before.
        """
        self.members = kept + rules
        if grown and self._can_hold(kept) is False:
            self.members = kept
            return []
        if len(rules) <= 1:
            return rules
        middle = len(rules) // 2
        first, second = rules[:middle], rules[middle:]
        needed = self._reduce(kept + first, second, True)
        result = self._reduce(kept + needed, first, bool(needed)) + needed
        self.members = kept + result
        return result

    def _spare(self) -> None:
        """Tries to do without each member, which proves irreducible what a judgement left open."""
        for rule in list(self.members):
            others = [other for other in self.members if other is not rule]
            can_hold = self._can_hold(others)
            if can_hold is None:
                raise OutOfTime
            if not can_hold:
                self.members = others


def explained(name: str, domains: Domains, found: Sequence[Rule], irreducible: bool) -> str:
    """The message of an infeasible model: its conflict, in the user's words and numbers."""
    title = f"no solution of {name}" if name else "no solution"
    for variable, domain in domains.items():
        if len(domain) == 0:
            return f"{title}: {variable} has no values to choose from"
    if not found:
        return title
    doubt = "" if irreducible else " (the smallest set found in time; some may not be needed)"
    lines = [f"{title}: these cannot hold together{doubt}"]
    clock = Clock(NUMBERS_SECONDS)
    for rule in found:
        others = [other for other in found if other is not rule]
        lines.append(f"  {rule}{_shortfall(domains, rule, others, clock)}")
    seen = dict.fromkeys(v for rule in found for v in rule.constraint.variables())
    lines.append("  where " + "; ".join(f"{v} in {domains[v]}" for v in seen) if seen else "")
    return "\n".join(lines).rstrip()


def _shortfall(domains: Domains, rule: Rule, others: Sequence[Rule], clock: Clock) -> str:
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
        clock.check()
        optimize(about, leaves, [(gap, 1)], clock, incumbent)
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
