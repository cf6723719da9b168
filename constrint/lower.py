"""The few forms of constraint that solvers see.

`normal` pushes negations to the leaves, splits conjunctions, replaces exact quotients by
products, and so leaves lists of

    == != < <= > >=  in  "not in"  table  "not table"  call  "not call"  or  and  true  false

over integer expressions. A leaf with an undefined part does not hold, whichever way it is
negated, which is what three-valued logic asks of a constraint that has to be true.
"""

from __future__ import annotations

from itertools import combinations

from constrint.constraint import NEGATED, Constraint
from constrint.expression import Expression, has_quotient

ONE = Expression("const", 1)
ZERO = Expression("const", 0)


def normal(node: Constraint, wanted: bool = True) -> list[Constraint]:  # noqa: PLR0911 (one return per operation)
    """Constraints which hold together exactly where ``node`` holds (or is false)."""
    op, args = node.op, node.args
    if op == "not":
        return normal(args[0], not wanted)
    if op == "implies":
        return normal(Constraint("or", Constraint("not", args[0]), args[1]), wanted)
    if op in {"and", "or"}:
        parts = normal(args[0], wanted), normal(args[1], wanted)
        if (op == "and") == wanted:
            return parts[0] + parts[1]
        return [Constraint("or", conjunction(parts[0]), conjunction(parts[1]))]
    if op in {"true", "false"}:
        return [Constraint(op if wanted else _OTHER[op])]
    if op == "different":
        pairs = [Constraint("==", a, b) for a, b in combinations(args[0], 2)]
        if wanted:
            return [part for pair in pairs for part in normal(pair, False)]
        return _any_equal(pairs)
    return _leaf(node, wanted)


_OTHER = {"true": "false", "false": "true"}


def conjunction(parts: list[Constraint]) -> Constraint:
    """One constraint that holds where all parts do."""
    result = parts[0] if parts else Constraint("true")
    for part in parts[1:]:
        result = Constraint("and", result, part)
    return result


def _any_equal(pairs: list[Constraint]) -> list[Constraint]:
    result = Constraint("false")
    for pair in pairs:
        result = Constraint("or", result, conjunction(normal(pair)))
    return [result]


def _leaf(node: Constraint, wanted: bool) -> list[Constraint]:  # noqa: PLR0911 (one return per operation)
    op, args = node.op, node.args
    if op == "divides":
        op, args = "==", (Expression("%", args[1], args[0]), ZERO)
    if op in NEGATED:
        left, right = args
        if not (has_quotient(left) or has_quotient(right)):
            return [Constraint(op if wanted else NEGATED[op], left, right)]
        above, below = _ratio(left)
        other_above, other_below = _ratio(right)
        op = op if wanted else NEGATED[op]
        sides = _times(above, other_below), _times(other_above, below)
        return [Constraint(op, *sides), *_nonzero(below), *_nonzero(other_below)]
    if op == "in":
        if has_quotient(args[0]):
            above, below = _ratio(args[0])
            member = Constraint(
                "in" if wanted else "not in", Expression("//", above, below), args[1]
            )
            whole = Constraint("==" if wanted else "!=", Expression("%", above, below), ZERO)
            return [member, whole] if wanted else [Constraint("or", member, whole)]
        return [Constraint("in" if wanted else "not in", *args)]
    if op == "table":
        if any(has_quotient(term) for term in args[0]):
            return _table_of_quotients(node, wanted)
        return [Constraint("table" if wanted else "not table", *args)]
    return [Constraint("call" if wanted else "not call", *args)]


def _table_of_quotients(node: Constraint, wanted: bool) -> list[Constraint]:
    rows = Constraint("false")
    for row in node.args[1]:
        cells = Constraint("true")
        for term, cell in zip(node.args[0], row, strict=True):
            cells = Constraint("and", cells, Constraint("==", term, Expression("const", cell)))
        rows = Constraint("or", rows, cells)
    defined = [] if wanted else [Constraint("==", term, term) for term in node.args[0]]
    return normal(conjunction([rows if wanted else Constraint("not", rows), *defined]))


def _nonzero(below: Expression) -> list[Constraint]:
    return [] if below is ONE else [Constraint("!=", below, ZERO)]


def _times(a: Expression, b: Expression) -> Expression:
    if b is ONE:
        return a
    return b if a is ONE else Expression("*", a, b)


def _ratio(node: Expression) -> tuple[Expression, Expression]:  # noqa: PLR0911 (one return per operation)
    """``node`` as a quotient of integer expressions, the lower one never negative."""
    op, args = node.op, node.args
    if op == "/":
        (above, below), (over, under) = _ratio(args[0]), _ratio(args[1])
        return _positive(_times(above, under), _times(below, over))
    if not has_quotient(node):
        return node, ONE
    if op == "if":
        (above, below), (over, under) = _ratio(args[1]), _ratio(args[2])
        return Expression("if", args[0], above, over), Expression("if", args[0], below, under)
    above, below = _ratio(args[0])
    if op in {"neg", "abs"}:
        return Expression(op, above), below
    if op == "**":
        return Expression("**", above, args[1]), Expression("**", below, args[1])
    over, under = _ratio(args[1])
    left, right, common = _times(above, under), _times(over, below), _times(below, under)
    if op in {"+", "-", "min", "max"}:
        return Expression(op, left, right), common
    if op == "*":
        return Expression("*", above, over), common
    floor = Expression("cdiv" if op == "cdiv" else "//", left, right)
    if op == "%":
        return Expression("-", left, Expression("*", floor, right)), common
    return floor, ONE


def _positive(above: Expression, below: Expression) -> tuple[Expression, Expression]:
    if below.op == "const" and below.args[0] > 0:
        return above, below
    return _times(above, below), Expression("*", below, below)
