"""A cell's declaration and its traced equations.

    @cell(gates="i f z o", states="h c")
    def lstm(g, s):
        c = sigmoid(g.f) * s.c + sigmoid(g.i) * tanh(g.z)
        return {"h": sigmoid(g.o) * tanh(c), "c": c}

`g.f` stands for the gate's pre-activation Wx + R h + b, `s.c` for the state that comes in, and a
third argument, where declared, for the per-unit parameters. Tracing calls the function once on
symbols; what it returns is the cell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flashrnn.errors import CellError, UnknownFunctionError
from flashrnn.ir.expression import CONSTANT, INPUT, Expression, constant, leaf, walk
from flashrnn.ir.ops import OPS

DENSE, ELEMENTWISE = "dense", "elementwise"


@dataclass(frozen=True, eq=False)
class Cell:
    """A traced cell.

    gates: every pre-activation, in the order of the bias. `recurrent` and `input` name the gates
    that R and Wx have, in the order of those tensors. states: the first is the output h.
    parameters: names of extra weights of shape [N, D]. recurrence: "dense" (R is [G_r, N, D, P])
    or "elementwise" (R is [G_r, N, D]). new_states: one expression per state.
    """

    name: str
    gates: tuple[str, ...]
    recurrent: tuple[str, ...]
    input: tuple[str, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    recurrence: str
    new_states: tuple[Expression, ...]
    location: str
    digest: str = field(default="")

    @property
    def key(self) -> str:
        """Name and content in one word: two cells with one key compute the same."""
        return f"{self.name}-{self.digest}"

    @property
    def product_gates(self) -> tuple[str, ...]:
        """The gates that a dense product with h feeds."""
        return self.recurrent if self.recurrence == DENSE else ()

    def __reduce__(self) -> tuple[Callable[[str], Cell], tuple[str]]:
        """Pickled by its key: whoever reads it has declared the cell; a copy is the cell."""
        return cell_of, (self.key,)


class _Symbols:
    """Attribute access to the inputs of one kind."""

    def __init__(self, what: str, symbols: Mapping[str, Expression], location: str) -> None:
        self._what, self._symbols, self._location = what, symbols, location

    def __getattr__(self, name: str) -> Expression:
        try:
            return self._symbols[name]
        except KeyError:
            known = ", ".join(self._symbols) or "none"
            raise CellError(
                f"{self._location}: the cell has no {self._what} {name!r}; declared: {known}"
            ) from None


_registry: dict[str, Cell] = {}
_by_key: dict[str, Cell] = {}


def cell(
    *,
    gates: str,
    states: str,
    recurrent: str | None = None,
    input: str | None = None,
    parameters: str = "",
    recurrence: str = DENSE,
) -> Callable[[Callable[..., Mapping[str, object]]], Cell]:
    """Declare a cell; the decorated function becomes a `Cell` known by its name.

    gates, states, parameters: names separated by spaces. recurrent, input: the gates that have
    recurrent weights and inputs, in the order of the tensors; all gates by default. Raises
    CellError for a declaration that contradicts itself or equations that cannot be compiled.
    """

    def declare(function: Callable[..., Mapping[str, object]]) -> Cell:
        where = f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
        names = {
            "gates": tuple(gates.split()),
            "states": tuple(states.split()),
            "parameters": tuple(parameters.split()),
            "recurrent": tuple((gates if recurrent is None else recurrent).split()),
            "input": tuple((gates if input is None else input).split()),
        }
        _check_declaration(names, recurrence, where)
        new_states = _trace(function, names, recurrence, where)
        description = repr((names, recurrence, [_text(e) for e in new_states]))
        digest = hashlib.sha256(description.encode()).hexdigest()[:12]
        built = Cell(
            function.__name__,
            recurrence=recurrence,
            new_states=new_states,
            location=where,
            digest=digest,
            **names,
        )
        _registry[built.name] = built
        return register(built)

    return declare


def register(built: Cell) -> Cell:
    """Make the cell known by its key, as operators and caches name it."""
    return _by_key.setdefault(built.key, built)


def cell_of(function: str | Cell) -> Cell:
    """The cell of that name (or key), or the cell itself."""
    if isinstance(function, Cell):
        return function
    found = _registry.get(function) or _by_key.get(function)
    if found is None:
        known = ", ".join(sorted(_registry))
        raise UnknownFunctionError(f"no cell is called {function!r}; known: {known}")
    return found


def cell_names() -> tuple[str, ...]:
    """The names of all declared cells."""
    return tuple(sorted(_registry))


def _check_declaration(names: Mapping[str, tuple[str, ...]], recurrence: str, where: str) -> None:
    for what, listed in names.items():
        for name in listed:
            if not name.isidentifier():
                raise CellError(f"{where}: {what}: {name!r} is not an identifier")
            if listed.count(name) > 1:
                raise CellError(f"{where}: {what}: {name!r} is named twice")
    for what in ("gates", "states"):
        if not names[what]:
            raise CellError(f"{where}: a cell needs at least one of its {what}")
    for what in ("recurrent", "input"):
        for name in names[what]:
            if name not in names["gates"]:
                known = ", ".join(names["gates"])
                raise CellError(f"{where}: {what}: {name!r} is not a gate; gates: {known}")
    if recurrence not in (DENSE, ELEMENTWISE):
        raise CellError(f"{where}: recurrence={recurrence!r} must be {DENSE!r} or {ELEMENTWISE!r}")


def _trace(
    function: Callable[..., Mapping[str, object]],
    names: Mapping[str, tuple[str, ...]],
    recurrence: str,
    where: str,
) -> tuple[Expression, ...]:
    states = {name: leaf("state", name) for name in names["states"]}
    gates = {name: leaf("gate", name) for name in names["gates"]}
    if recurrence == ELEMENTWISE:
        # R h is one product per unit, so it is a part of the pointwise expression
        h = states[names["states"][0]]
        for name in names["recurrent"]:
            gates[name] = gates[name] + leaf("recurrent", name) * h
    arguments = [_Symbols("gate", gates, where), _Symbols("state", states, where)]
    if names["parameters"]:
        symbols = {name: leaf("parameter", name) for name in names["parameters"]}
        arguments.append(_Symbols("parameter", symbols, where))
    result = function(*arguments)
    if not isinstance(result, Mapping):
        raise CellError(f"{where}: a cell returns a dict of its states, got {result!r}")
    if set(result) != set(names["states"]):
        raise CellError(
            f"{where}: the cell returns the states {sorted(result)}, "
            f"but declares {sorted(names['states'])}"
        )
    traced = tuple(_state(result[name], name, where) for name in names["states"])
    for node in walk(traced):
        if node.op not in (CONSTANT, INPUT) and OPS[node.op].boolean:
            continue
        if node.op == "where" and not _is_condition(node.arguments[0]):
            raise CellError(
                f"{where}: where() needs a condition, got {node.arguments[0]!r}; "
                "conditions are equal(a, b), a < b, a <= b, a > b, a >= b"
            )
        values = node.arguments[1:] if node.op == "where" else node.arguments
        if any(_is_condition(a) for a in values):
            raise CellError(f"{where}: a condition is used as a number in {node!r}; use where()")
    return traced


def _is_condition(node: Expression) -> bool:
    return node.op not in (CONSTANT, INPUT) and OPS[node.op].boolean


def _state(value: object, name: str, where: str) -> Expression:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return constant(value)
    if not isinstance(value, Expression) or _is_condition(value):
        raise CellError(f"{where}: state {name!r} is {value!r}, not an expression")
    return value


def _text(root: Expression) -> str:
    """A name for the expression's content that does not depend on when it was built."""
    numbers: dict[Expression, int] = {}
    lines = []
    for node in walk([root]):
        numbers[node] = len(numbers)
        operands = [numbers[a] for a in node.arguments]
        lines.append(f"{node.op}{operands}{node.kind}.{node.name}:{node.value!r}")
    return ";".join(lines)
