"""The order of statements that keeps the fewest values alive at once.

A value is alive from the statement that computes it (an input: from the start) to its last use (a
result: to the end). The smallest peak is a hard problem (register sufficiency), so this is a beam
search: partial orders are extended by one statement at a time, and of each length only the best
few are kept, by peak, then by values alive now, then by the order in which the expressions were
written. The answer depends on nothing else. Where the search finds no smaller peak than the
written order has, that order stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flashrnn.ir.expression import CONSTANT, Expression

# Partial orders of each length that are kept.
WIDTH = 8

# Statements in the order in which they were written, each with the values that it reads. What is
# read and no statement is an input; constants are free.
Statements = Mapping[Expression, Sequence[Expression]]
# Most values alive so far, values alive now, the statements in order, and as a bit mask.
_Partial = tuple[int, int, tuple[int, ...], int]


def schedule(statements: Statements, results: Sequence[Expression]) -> list[Expression]:
    """The statements in an order whose peak is at most that of the written order.

    results: what must be alive at the end.
    """
    lives = _Lives(statements, results)
    written = list(statements)
    kept = [lives.start]
    for _ in written:
        longer: dict[int, _Partial] = {}
        for partial in kept:
            for k in lives.ready(partial[3]):
                extended = lives.after(partial, k)
                known = longer.get(extended[3])
                if known is None or extended < known:
                    longer[extended[3]] = extended
        kept = sorted(longer.values())[:WIDTH]
    found = kept[0]
    return [written[k] for k in found[2]] if found[0] < peak(statements, results) else written


def peak(statements: Statements, results: Sequence[Expression]) -> int:
    """The most values alive at once, inputs among them, in the order of `statements`."""
    lives = _Lives(statements, results)
    partial = lives.start
    for k in range(len(statements)):
        partial = lives.after(partial, k)
    return partial[0]


class _Lives:
    """Who reads what, in bit masks over the statements."""

    def __init__(self, statements: Statements, results: Sequence[Expression]) -> None:
        number = {node: k for k, node in enumerate(statements)}
        self._operands = [
            {a for a in operands if a.op != CONSTANT} for operands in statements.values()
        ]
        self._needs = [
            sum(1 << number[a] for a in operands if a in number) for operands in self._operands
        ]
        self._results = set(results)
        self._readers: dict[Expression, int] = {}
        for k, operands in enumerate(self._operands):
            for a in operands:
                self._readers[a] = self._readers.get(a, 0) | 1 << k
        inputs = sum(a not in number for a in self._readers)
        self.start: _Partial = (inputs, inputs, (), 0)

    def ready(self, done: int) -> list[int]:
        """The statements whose operands are there."""
        return [
            k for k, needs in enumerate(self._needs) if not done >> k & 1 and needs & ~done == 0
        ]

    def after(self, partial: _Partial, k: int) -> _Partial:
        """One more statement; its result may take the place of an operand that dies there."""
        most, alive, order, done = partial
        done |= 1 << k
        alive += 1 - sum(
            a not in self._results and self._readers[a] & ~done == 0 for a in self._operands[k]
        )
        return max(most, alive), alive, (*order, k), done
