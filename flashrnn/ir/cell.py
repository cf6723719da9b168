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
import keyword
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flashrnn.errors import CellError, UnknownFunctionError
from flashrnn.ir.expression import Expression, walk
from flashrnn.ir.trace import Equations, location, trace

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
) -> Callable[[Equations], Cell]:
    """Declare a cell; the decorated function becomes a `Cell` known by its name.

    gates, states, parameters: names separated by spaces. recurrent, input: the gates that have
    recurrent weights and inputs, in the order of the tensors; all gates by default. Raises
    CellError for a declaration that contradicts itself or its equations, and for equations that
    cannot be compiled, with the line of the cell's own file. See docs/writing-a-cell.md.
    """

    def declare(function: Equations) -> Cell:
        where = location(function)
        names = {
            "gates": tuple(gates.split()),
            "states": tuple(states.split()),
            "parameters": tuple(parameters.split()),
            "recurrent": tuple((gates if recurrent is None else recurrent).split()),
            "input": tuple((gates if input is None else input).split()),
        }
        _check_declaration(names, recurrence, where)
        new_states = trace(function, names, recurrence == ELEMENTWISE)
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
            if keyword.iskeyword(name):
                raise CellError(f"{where}: {what}: {name!r} is a keyword of Python")
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
    if recurrence == ELEMENTWISE and not names["recurrent"]:
        raise CellError(f"{where}: recurrence={recurrence!r} needs at least one recurrent gate")
    for name in names["gates"]:
        if name not in names["recurrent"] + names["input"]:
            raise CellError(
                f"{where}: the gate {name!r} has neither recurrent weights nor an input: name it "
                "in recurrent or input, or declare it in parameters"
            )


def _text(root: Expression) -> str:
    """A name for the expression's content that does not depend on when it was built."""
    numbers: dict[Expression, int] = {}
    lines = []
    for node in walk([root]):
        numbers[node] = len(numbers)
        operands = [numbers[a] for a in node.arguments]
        lines.append(f"{node.op}{operands}{node.kind}.{node.name}:{node.value!r}")
    return ";".join(lines)
