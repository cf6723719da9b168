"""Every error constrint raises on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    proper subset can; it is empty where no explanation was asked for.
    """

    def __init__(self, message: str, conflict: Sequence[Rule] = ()) -> None:
        self.conflict: tuple[Rule, ...] = tuple(conflict)
        super().__init__(message)


class TimeLimit(ConstrintError):
    """The time ran out before the first answer was found."""
