"""The tools that enumerate auto-tuning spaces, each asked in its own words.

A peer is a function from parameters and conditions to an answer, and one from the answer to the
set of its configurations; only the first is timed. Peers that are not installed are left out.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

Params = dict[str, list[int]]
Conditions = list[str]
Rows = set[tuple[int, ...]]

FILTERED = 1 << 25
"""The NumPy filter is asked where the full product has at most this many cells."""


class TooLarge(Exception):
    """The space is beyond what this peer can be asked for."""


@dataclass(frozen=True)
class Peer:
    """One tool. ``materialises`` says whether its answer is a list of all configurations."""

    name: str
    module: str
    ask: Callable[[Params, Conditions], Any]
    rows: Callable[[Params, Any], Rows]
    materialises: bool

    def installed(self) -> bool:
        """Whether the tool can be imported."""
        return importlib.util.find_spec(self.module) is not None


def _constrint_columns(params: Params, conditions: Conditions) -> Any:
    from constrint import Model

    return Model.from_space(params, conditions).enumerate().columns()


def _constrint_lazy(params: Params, conditions: Conditions) -> Any:
    from constrint import Model

    return Model.from_space(params, conditions).enumerate()


def _python_constraint(params: Params, conditions: Conditions) -> Any:
    constraint = import_module("constraint")
    problem = constraint.Problem(constraint.OptimizedBacktrackingSolver())
    for name, values in params.items():
        problem.addVariable(name, values)
    for condition in conditions:
        problem.addConstraint(condition)
    return problem.getSolutions()


def _kernel_tuner(params: Params, conditions: Conditions) -> Any:
    searchspace = import_module("kernel_tuner.searchspace")
    return searchspace.Searchspace(params, conditions, max_threads=1 << 30).list


def _pyatf(params: Params, conditions: Conditions) -> Any:
    pyatf = import_module("pyatf")
    search_space = import_module("pyatf.search_space")
    last: dict[str, list[str]] = {name: [] for name in params}
    for condition in conditions:
        used = [name for name in params if re.search(rf"\b{name}\b", condition)]
        last[used[-1]].append(condition)
    tps = []
    for name, values in params.items():
        joined = " and ".join(f"({c})" for c in last[name])
        predicate = None
        if joined:
            used = [other for other in params if re.search(rf"\b{other}\b", joined)]
            predicate = eval(f"lambda {', '.join(used)}: {joined}")
        tps.append(pyatf.TP(name, pyatf.Set(*values), predicate))
    return search_space.SearchSpace(*tps, enable_1d_access=True, verbosity=0)


def _pyatf_rows(params: Params, space: Any) -> Rows:
    found = (space.get_configuration(i) for i in range(space.constrained_size))
    return {tuple(config[name] for name in params) for config in found}


class _Vectorised(ast.NodeTransformer):
    """``and``, ``or``, ``not`` and chains as operations on arrays of truth values."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        self.generic_visit(node)
        name = "logical_and" if isinstance(node.op, ast.And) else "logical_or"
        result = node.values[0]
        for value in node.values[1:]:
            result = _call(name, result, value)
        return result

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        return _call("logical_not", node.operand) if isinstance(node.op, ast.Not) else node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        terms = [node.left, *node.comparators]
        parts: list[ast.expr] = [
            ast.Compare(a, [op], [b]) for a, op, b in zip(terms, node.ops, terms[1:], strict=False)
        ]
        result = parts[0]
        for part in parts[1:]:
            result = _call("logical_and", result, part)
        return result


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _numpy_filter(params: Params, conditions: Conditions) -> Any:
    """Every condition over the full product, each broadcast over its own axes."""
    shape = [len(values) for values in params.values()]
    if np.prod(shape, dtype=float) > FILTERED:
        raise TooLarge
    arrays = np.ix_(*(np.array(values) for values in params.values()))
    names: dict[str, Any] = dict(zip(params, arrays, strict=True))
    names |= {n: getattr(np, n) for n in ("logical_and", "logical_or", "logical_not")}
    held = np.ones(shape, dtype=bool)
    for condition in conditions:
        tree = ast.fix_missing_locations(_Vectorised().visit(ast.parse(condition, mode="eval")))
        held &= eval(compile(tree, condition, "eval"), {"__builtins__": {}}, names)
    positions = np.nonzero(held)
    return {
        name: np.array(values)[where]
        for (name, values), where in zip(params.items(), positions, strict=True)
    }


def _cpsat(params: Params, conditions: Conditions) -> Any:
    from constrint import Model

    # One solve per solution: CP-SAT's own enumeration would vary auxiliary variables too.
    return list(Model.from_space(params, conditions).solutions(limit=1000, engine="cpsat"))


def _column_rows(params: Params, columns: Any) -> Rows:
    return set(zip(*(columns[name].tolist() for name in params), strict=True))


def _dict_rows(params: Params, solutions: Any) -> Rows:
    return {tuple(config[name] for name in params) for config in solutions}


PEERS = [
    Peer("constrint columns", "constrint", _constrint_columns, _column_rows, True),
    Peer("constrint lazy", "constrint", _constrint_lazy, _dict_rows, False),
    Peer("NumPy filter", "numpy", _numpy_filter, _column_rows, False),
    Peer("python-constraint2", "constraint", _python_constraint, _dict_rows, True),
    Peer("kernel-tuner", "kernel_tuner", _kernel_tuner, lambda p, rows: set(rows), True),
    Peer("pyATF", "pyatf", _pyatf, _pyatf_rows, False),
    Peer("CP-SAT", "ortools", _cpsat, _dict_rows, True),
]
