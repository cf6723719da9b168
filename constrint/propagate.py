"""Domains shrunk to a fixpoint by bounds, residues, divisors and products.

Propagation removes only values that no solution has; it decides nothing else. It is what makes
variables with very many values tractable before columns are grown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from constrint.constraint import Constraint
from constrint.contract import Conflict, Store
from constrint.domain import Domain
from constrint.expression import Expression, Variable

ROUNDS = 60
"""Each constraint is revised at most this often: bounds can creep forever on large ranges."""


def propagate(
    domains: Mapping[Variable, Domain], constraints: Sequence[Constraint]
) -> dict[Variable, Domain]:
    """The shrunk domains; raises Conflict where one became empty."""
    store = Store(domains)
    watching: dict[Variable, list[int]] = {variable: [] for variable in domains}
    for k, constraint in enumerate(constraints):
        for variable in constraint.variables():
            watching[variable].append(k)
    waiting = dict.fromkeys(range(len(constraints)))
    left = [ROUNDS] * len(constraints)
    while waiting:
        k = next(iter(waiting))
        del waiting[k]
        left[k] -= 1
        revise(store, constraints[k])
        for variable in store.changed:
            waiting.update(dict.fromkeys(j for j in watching[variable] if left[j] > 0))
        store.changed.clear()
    return store.domains


def revise(store: Store, node: Constraint) -> None:
    """Removes values that keep one constraint from holding."""
    op, args = node.op, node.args
    if op == "and":
        revise(store, args[0])
        revise(store, args[1])
    elif op == "or":
        _revise_or(store, args)
    elif op == "false":
        raise Conflict
    elif op == "in":
        _revise_member(store, *args)
    elif op == "table":
        _revise_table(store, *args)
    elif op == "==":
        _revise_equal(store, *args)
    elif op == "!=":
        _revise_unequal(store, *args)
    elif op in {"<", "<=", ">", ">="}:
        left, right = args if op in {"<", "<="} else (args[1], args[0])
        apart = 1 if op in {"<", ">"} else 0
        low, high = store.bounds(left)[0], store.bounds(right)[1]
        store.contract(left, low, high - apart)
        store.contract(right, low + apart, high)


def _revise_equal(store: Store, left: Expression, right: Expression) -> None:

    for _ in range(2):
        store.contract(left, *store.bounds(right))
        store.contract(right, *store.bounds(left))
    store.impose(left, store.residue(right))
    store.impose(right, store.residue(left))
    for side, other in ((left, right), (right, left)):
        low, high = store.bounds(other)
        if side.op == "*" and low == high != 0:
            store.divide(side.args[0], low)
            store.divide(side.args[1], low)
        if side.op == "%" and low == high:
            divisor_low, divisor_high = store.bounds(side.args[1])
            low_part, high_part = store.bounds(side.args[0])
            if divisor_low == divisor_high != 0:
                store.impose(side.args[0], (abs(divisor_low), low % abs(divisor_low)))
            elif low == 0 and low_part == high_part != 0:
                store.divide(side.args[1], low_part)


def _revise_unequal(store: Store, left: Expression, right: Expression) -> None:

    for side, other in ((left, right), (right, left)):
        low, high = store.bounds(other)
        if low != high:
            continue
        side_low, side_high = store.bounds(side)
        if side_low == side_high == low:
            raise Conflict
        if side_low == low:
            store.contract(side, low + 1, side_high)
        elif side_high == low:
            store.contract(side, side_low, low - 1)


def _revise_member(store: Store, term: Expression, listed: tuple[int, ...]) -> None:

    if not listed:
        raise Conflict
    store.contract(term, listed[0], listed[-1])
    if isinstance(term, Variable):
        store.put(term, store.domains[term].intersection(listed))


def _revise_table(
    store: Store, terms: tuple[Expression, ...], rows: tuple[tuple[int, ...], ...]
) -> None:

    spans = [store.bounds(term) for term in terms]
    kept = [
        row
        for row in rows
        if all(low <= cell <= high for cell, (low, high) in zip(row, spans, strict=True))
    ]
    for column, term in enumerate(terms):
        _revise_member(store, term, tuple(sorted({row[column] for row in kept})))


def _revise_or(store: Store, branches: tuple[Constraint, ...]) -> None:
    """Keeps what at least one branch keeps."""
    outcomes = []
    for branch in branches:
        tried = Store(store.domains)
        try:
            revise(tried, branch)
        except Conflict:
            continue
        outcomes.append(tried)
    if not outcomes:
        raise Conflict
    common = set.intersection(*(tried.changed for tried in outcomes))
    for variable in common:
        low = min(tried.of[variable][0] for tried in outcomes)
        high = max(tried.of[variable][1] for tried in outcomes)
        domain = store.domains[variable].within(low, high)
        store.put(variable, outcomes[0].domains[variable] if len(outcomes) == 1 else domain)
