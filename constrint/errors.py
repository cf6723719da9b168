"""Every error constrint raises on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from constrint.model import Rule


class ConstrintError(Exception):
    """The base of all errors of this package."""


class ModelError(ConstrintError, ValueError):
    """The model as stated makes no sense: a bad name, a bad domain, an unknown variable."""


class OperandError(ConstrintError, TypeError):
    """An operand which is neither an integer nor an expression over integers."""


class ParseError(ModelError):
    """Text which is not a model. Shows the line, the column and a caret under the place."""

    def __init__(self, message: str, source: str = "", line: int = 1, column: int = 1) -> None:
        self.message, self.line, self.column = message, line, column
        lines = source.splitlines()
        shown = lines[line - 1] if 0 < line <= len(lines) else ""
        caret = " " * (column - 1) + "^"
        super().__init__(f"line {line}, column {column}: {message}\n    {shown}\n    {caret}")


class Infeasible(ConstrintError):
    """No assignment satisfies the model.

    ``conflict`` holds a set of the model's constraints that cannot hold together although every
    proper subset can; the message states it. Both are worked out when they are first asked for,
    so that a program that only wants to know does not wait for the reason. If that takes too
    long, ``conflict`` is the smallest set found in time and ``irreducible`` is False.
    """

    def __init__(self, explain: Callable[[], tuple[str, Sequence[Rule], bool]]) -> None:
        super().__init__()
        self._explain = explain
        self._explanation: tuple[str, tuple[Rule, ...], bool] | None = None

    def _explained(self) -> tuple[str, tuple[Rule, ...], bool]:
        if self._explanation is None:
            message, conflict, irreducible = self._explain()
            self._explanation = message, tuple(conflict), irreducible
        return self._explanation

    @property
    def conflict(self) -> tuple[Rule, ...]:
        """The constraints that cannot hold together; empty if a domain has no values."""
        return self._explained()[1]

    @property
    def irreducible(self) -> bool:
        """Whether none of `conflict` can be spared, rather than only none found in time."""
        return self._explained()[2]

    def __str__(self) -> str:
        return self._explained()[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (str(self), self.irreducible)


def _restored(message: str, irreducible: bool) -> Infeasible:
    """An Infeasible from another process: its message without the constraints themselves."""
    return Infeasible(lambda: (message, (), irreducible))


class TimeLimit(ConstrintError):
    """The time ran out before there was an answer."""
