"""Call a cell's function once on symbols, and check that it does what its declaration says.

Every error names the line of the cell's own file: that of the operation that cannot be, of the
`return`, or of the declaration.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, TracebackType

from flashrnn.errors import CellError
from flashrnn.ir.expression import CONSTANT, INPUT, Expression, constant, leaf, tracing, walk
from flashrnn.ir.ops import FUNCTIONS

Names = Mapping[str, tuple[str, ...]]
Equations = Callable[..., Mapping[str, object]]


class Symbols:
    """Attribute access to the inputs of one kind."""

    __slots__ = ("__symbols", "__what")
    __symbols: Mapping[str, Expression]
    __what: str

    def __init__(self, what: str, symbols: Mapping[str, Expression]) -> None:
        object.__setattr__(self, "_Symbols__what", what)
        object.__setattr__(self, "_Symbols__symbols", symbols)

    def __getattr__(self, name: str) -> Expression:
        try:
            return self.__symbols[name]
        except KeyError:
            known = ", ".join(self.__symbols) or "none"
            raise CellError(f"the cell has no {self.__what} {name!r}; declared: {known}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise CellError(
            f"a {self.__what} cannot be assigned to: give new values a name of their own and "
            f'return the states, {{"{name}": ...}}'
        )

    def __iter__(self) -> Iterator[Expression]:
        raise CellError(f"a {self.__what} is read by its name: {', '.join(self.__symbols)}")


def location(function: object) -> str:
    """file:line of a declaration. Raises CellError for what is no function."""
    code = _code(function)
    return f"{code.co_filename}:{code.co_firstlineno}"


def trace(function: Equations, names: Names, elementwise: bool) -> tuple[Expression, ...]:
    """The new states as expressions, in the order of names["states"].

    names: gates, states, parameters, recurrent and input, as declared. elementwise: R h is one
    product per unit, and a part of the expressions.
    """
    where = location(function)
    states = {name: leaf("state", name) for name in names["states"]}
    gates = {name: leaf("gate", name) for name in names["gates"]}
    if elementwise:
        h = states[names["states"][0]]
        for name in names["recurrent"]:
            gates[name] = gates[name] + leaf("recurrent", name) * h
    arguments = [Symbols("gate", gates), Symbols("state", states)]
    if names["parameters"]:
        symbols = {name: leaf("parameter", name) for name in names["parameters"]}
        arguments.append(Symbols("parameter", symbols))
    _check_signature(function, arguments, names, where)
    result = _call(function, arguments)
    new_states = _returned(result, names["states"], _place_of_return(function))
    _check_use(new_states, names, where)
    return new_states


def _call(function: Equations, arguments: list[Symbols]) -> object:
    token = tracing.set(True)
    try:
        return function(*arguments)
    except (CellError, TypeError, AttributeError) as error:
        words = str(error)
        if not isinstance(error, CellError):  # Python's own words about an expression
            known = ", ".join(f.__name__ for f in FUNCTIONS)
            words += f"; a cell computes with + - * /, ** 1 to 4, < <= > >= and flashrnn's {known}"
        raise CellError(f"{_place(function, error.__traceback__)}: {words}") from error
    finally:
        tracing.reset(token)


def _code(function: object) -> CodeType:
    if not isinstance(function, FunctionType):
        raise CellError(f"a cell is declared from a function, got {function!r}")
    return function.__code__


def _place(function: Equations, traceback: TracebackType | None) -> str:
    """The innermost line of the traceback that stands in the cell's own file."""
    code = _code(function)
    line = code.co_firstlineno
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == code.co_filename:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f"{code.co_filename}:{line}"


def _place_of_return(function: Equations) -> str:
    """The line of the function's last `return`."""
    code = _code(function)
    returns = [i.offset for i in dis.get_instructions(code) if i.opname.startswith("RETURN_")]
    lines = [
        line for start, end, line in code.co_lines() for at in returns if start <= at < end and line
    ]
    return f"{code.co_filename}:{lines[-1] if lines else code.co_firstlineno}"


def _check_signature(
    function: Equations, arguments: list[Symbols], names: Names, where: str
) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments)
    except TypeError:
        parameters = " ".join(names["parameters"])
        given, expected = (
            (f"parameters={parameters!r}", "(g, s, p)")
            if parameters
            else ("no parameters", "(g, s)")
        )
        raise CellError(
            f"{where}: the cell declares {given}, so its function takes {expected}: "
            f"gates, states{' and parameters' if parameters else ''}; it takes {signature}"
        ) from None


def _returned(result: object, states: tuple[str, ...], where: str) -> tuple[Expression, ...]:
    if not isinstance(result, Mapping):
        raise CellError(f"{where}: a cell returns a dict of its states, got {result!r}")
    if set(result) != set(states):
        problems = [f"{s!r} is never assigned" for s in states if s not in result]
        problems += [f"{s!r} is not declared" for s in result if s not in states]
        raise CellError(
            f"{where}: the cell returns the states {sorted(map(str, result))}, "
            f"but declares {sorted(states)}: {', '.join(problems)}"
        )
    return tuple(_state(result[name], name, where) for name in states)


def _state(value: object, name: str, where: str) -> Expression:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return constant(value)
    if not isinstance(value, Expression) or value.is_condition:
        raise CellError(f"{where}: state {name!r} is {value!r}, not an expression")
    return value


def _check_use(new_states: tuple[Expression, ...], names: Names, where: str) -> None:
    """What is declared and has no effect is a mistake."""
    used = {(node.kind, node.name) for node in walk(new_states) if node.op == INPUT}
    for what in ("gate", "parameter"):
        unused = [repr(n) for n in names[f"{what}s"] if (what, n) not in used]
        if unused:
            raise CellError(
                f"{where}: no equation uses the {what} {', '.join(unused)}; "
                f"use it or leave it out of {what}s"
            )
    for name, new in zip(names["states"], new_states, strict=True):
        others = [e for e in new_states if e is not new]
        idle = new is leaf("state", name) or new.op == CONSTANT
        if idle and not any(node is leaf("state", name) for node in walk(others)):
            raise CellError(
                f"{where}: the state {name!r} is always {new!r} and no other state reads it; "
                "leave it out of states"
            )
