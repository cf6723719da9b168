"""How far a solution is from each constraint: which bind, and the slack of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from constrint.constraint import COMPARISONS, NEGATED, Constraint
from constrint.evaluate import Assignment, Number, Undefined, holds, reduced, value

if TYPE_CHECKING:
    from constrint.model import Rule

_INEQUALITIES = frozenset({"<", "<=", ">", ">="})


@dataclass(frozen=True)
class Binding:
    """One constraint at one assignment.

    ``left`` and ``right`` are the values of the two sides where the constraint is a comparison.
    ``slack`` is how much the tighter side could give before the constraint fails: 0 binds, a
    negative slack is a violation, None has no measure (a violated membership, a disjunction of
    which no side holds, an undefined value). ``op`` is the constraint's outermost operation.
    """

    name: str | None
    text: str
    holds: bool
    left: Number | None
    right: Number | None
    slack: Number | None
    op: str

    @property
    def exact(self) -> bool:
        """Whether the constraint holds exactly or not at all, as an equality does."""
        return self.op not in _INEQUALITIES

    @property
    def relative(self) -> Fraction:
        """The slack as a share of the larger side."""
        if self.slack is None or self.left is None or self.right is None:
            return Fraction(0 if self.slack is None else self.slack)
        larger = max(abs(Fraction(self.left)), abs(Fraction(self.right)), Fraction(1))
        return Fraction(self.slack) / larger

    def __str__(self) -> str:
        title = f"{self.name}: " if self.name else ""
        return f"{title}{self.text} ({self._remark()})"

    def _remark(self) -> str:
        if self.left is None or self.right is None:
            return "holds" if self.holds else "does not hold"
        if not self.holds:
            excess = "" if self.slack is None else f", off by {-self.slack}"
            return f"{self.left} against {self.right}{excess}"
        if self.exact:
            return (
                f"both sides are {self.left}"
                if self.left == self.right
                else f"{self.left} and {self.right}"
            )
        if self.op in {">", ">="}:
            more = "more than " if self.op == ">" else "at least "
            return f"{self.left}, {more}{self.right} needed"
        return f"{self.left} of {self.right} used"


def measured(rule: Rule, at: Assignment) -> Binding:
    """The record of one constraint at one assignment."""
    left, right = _sides(rule.constraint, at)
    return Binding(
        name=rule.name,
        text=str(rule.constraint),
        holds=holds(rule.constraint, at) is True,
        left=left,
        right=right,
        slack=slack(rule.constraint, at),
        op=rule.constraint.op,
    )


def measured_all(rules: Sequence[Rule], at: Assignment) -> list[Binding]:
    """All records: inequalities by relative slack, then what can only hold exactly."""
    records = [measured(rule, at) for rule in rules]
    return sorted(records, key=lambda record: (record.exact, record.relative))


def slack(node: Constraint, at: Assignment, wanted: bool = True) -> Number | None:
    """What is left before ``node`` fails; negative where it fails by that much."""
    op, args = node.op, node.args
    if op == "not":
        return slack(args[0], at, not wanted)
    if op in {"and", "or"}:
        parts = [slack(arg, at, wanted) for arg in args]
        return _least(parts) if (op == "and") == wanted else _most(parts)
    if op == "implies":
        parts = [slack(args[0], at, not wanted), slack(args[1], at, wanted)]
        return _most(parts) if wanted else _least(parts)
    if op in COMPARISONS:
        left, right = _sides(node, at)
        if left is None or right is None:
            return None
        return _gap(op if wanted else NEGATED[op], left, right)
    return 0 if holds(node, at) is wanted else None


def _gap(op: str, left: Number, right: Number) -> Number:
    above = Fraction(right) - Fraction(left)
    gaps = {
        "==": -abs(above),
        "!=": abs(above) - 1,
        "<": above - 1,
        "<=": above,
        ">": -above - 1,
        ">=": -above,
    }
    return reduced(gaps[op])


def _least(parts: list[Number | None]) -> Number | None:
    known = [part for part in parts if part is not None]
    return min(known) if len(known) == len(parts) else None


def _most(parts: list[Number | None]) -> Number | None:
    return max((part for part in parts if part is not None), default=None)


def _sides(node: Constraint, at: Assignment) -> tuple[Number | None, Number | None]:
    if node.op not in COMPARISONS:
        return None, None
    try:
        return value(node.args[0], at), value(node.args[1], at)
    except Undefined:
        return None, None
