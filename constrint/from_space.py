"""Auto-tuning spaces, as Kernel Tuner states them, as models."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from constrint.constraint import Constraint, call
from constrint.errors import ConstrintError, ModelError
from constrint.expression import Variable
from constrint.python_text import parse_condition
from constrint.tracing import traced

if TYPE_CHECKING:
    from constrint.model import Model


def fill(
    model: Model,
    params: Mapping[str, Iterable[int]],
    conditions: Iterable[str | Callable[..., object]],
) -> None:
    """Adds the parameters and conditions of a space to ``model``."""
    for name, values in params.items():
        model.int_var(name, values)
    for condition in conditions:
        if isinstance(condition, str):
            model.add(parse_condition(condition, model.variables))
        elif callable(condition):
            model.add(_called(condition, model.variables))
        else:
            raise ModelError(
                f"a condition of a space is a Python expression or a callable, not {condition!r}"
            )


class _Record(Mapping[str, Variable]):
    """The dict that ``lambda p: p["x"] > 1`` expects."""

    def __init__(self, variables: Mapping[str, Variable]) -> None:
        self.variables = variables

    def __getitem__(self, name: str) -> Variable:
        if name not in self.variables:
            raise ModelError(f"a condition asks for {name!r}; known: {', '.join(self.variables)}")
        return self.variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.variables)


def _called(function: Callable[..., object], variables: Mapping[str, Variable]) -> Constraint:
    """A predicate as a constraint: traced if it can be, else called once per assignment."""
    names = list(inspect.signature(function).parameters)
    by_name = all(name in variables for name in names)
    if not by_name and len(names) != 1:
        unknown = [name for name in names if name not in variables]
        raise ModelError(
            f"a condition takes the parameters {', '.join(unknown)}, which are no variables; "
            f"known: {', '.join(variables)}"
        )
    arguments: list[Any] = [variables[n] for n in names] if by_name else [_Record(variables)]
    try:
        return traced(lambda: function(*arguments))
    except ModelError:
        raise
    except (TypeError, ValueError, AttributeError, ConstrintError) as error:
        if by_name:
            return call(function, arguments)
        raise ModelError(
            f"the condition cannot be turned into a constraint ({error}): name its parameters "
            "after the variables it reads, as in `lambda x, y: ...`"
        ) from error
