"""Integer constraints for tiling problems: complete, exact and self-explaining."""

from constrint.binding import Binding
from constrint.constraint import Constraint, all_different, all_of, any_of, member, table
from constrint.domain import Domain
from constrint.errors import (
    ConstrintError,
    Infeasible,
    ModelError,
    OperandError,
    ParseError,
    TimeLimit,
)
from constrint.expression import (
    Expression,
    Variable,
    cdiv,
    either,
    largest_of,
    product,
    smallest_of,
    total,
)
from constrint.model import Model, Rule, Solution, largest, smallest
from constrint.space import Space

__all__ = [
    "Binding",
    "Constraint",
    "ConstrintError",
    "Domain",
    "Expression",
    "Infeasible",
    "Model",
    "ModelError",
    "OperandError",
    "ParseError",
    "Rule",
    "Solution",
    "Space",
    "TimeLimit",
    "Variable",
    "all_different",
    "all_of",
    "any_of",
    "cdiv",
    "either",
    "largest",
    "largest_of",
    "member",
    "product",
    "smallest",
    "smallest_of",
    "table",
    "total",
]
