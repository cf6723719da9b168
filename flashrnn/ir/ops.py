"""The one table of operations: arity, value, derivative, cost, and spelling per target.

A row is all that an operation is. The interpreter reads `value`, differentiation reads
`derivative`, the choice of what to save reads `cost`, an emitter reads `spelling[target]`, where
{0}, {1}, … stand for the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from flashrnn.ir.expression import Expression, Operand, apply, constant, select

Tensor = torch.Tensor
Cotangents = tuple["Expression | None", ...]


@dataclass(frozen=True)
class Op:
    """One operation.

    derivative(result, arguments, cotangent) gives the cotangent of each argument, None for none.
    cost is in units of one multiplication of a vector.
    """

    arity: int
    value: Callable[..., Tensor]
    derivative: Callable[[Expression, tuple[Expression, ...], Expression], Cotangents]
    cost: float
    spelling: Mapping[str, str]


def sigmoid(x: Operand) -> Expression:
    """1 / (1 + exp(-x))."""
    return apply("sigmoid", x)


def tanh(x: Operand) -> Expression:
    """Hyperbolic tangent."""
    return apply("tanh", x)


def exp(x: Operand) -> Expression:
    """e to the x."""
    return apply("exp", x)


def log_sigmoid(x: Operand) -> Expression:
    """log(sigmoid(x)), accurate at both ends."""
    return apply("log_sigmoid", x)


def maximum(x: Operand, y: Operand) -> Expression:
    """The larger one; the first where they tie, which is also where the gradient goes."""
    return apply("maximum", x, y)


def minimum(x: Operand, y: Operand) -> Expression:
    """The smaller one; the first where they tie, which is also where the gradient goes."""
    return apply("minimum", x, y)


def clamp(x: Operand, low: Operand, high: Operand) -> Expression:
    """x between low and high; the gradient is zero outside and passes at the bounds."""
    return minimum(maximum(x, low), high)


def stop_gradient(x: Operand) -> Expression:
    """x, as a constant to the derivative."""
    return apply("stop_gradient", x)


def equal(x: Operand, y: Operand) -> Expression:
    """A condition for `where`: x == y."""
    return apply("equal", x, y)


def where(condition: Expression, x: Operand, y: Operand) -> Expression:
    """x where the condition holds, else y. Conditions: equal(a, b), <, <=, >, >=."""
    return select(condition, x, y)


def _none(_result: Expression, arguments: tuple[Expression, ...], _d: Expression) -> Cotangents:
    return (None,) * len(arguments)


def _d_div(result: Expression, xy: tuple[Expression, ...], d: Expression) -> Cotangents:
    d_x = d / xy[1]
    return d_x, -(d_x * result)


def _d_sigmoid(result: Expression, _x: tuple[Expression, ...], d: Expression) -> Cotangents:
    return (d * (result * (1.0 - result)),)


def _d_tanh(result: Expression, _x: tuple[Expression, ...], d: Expression) -> Cotangents:
    return (d * (1.0 - result * result),)


def _d_maximum(result: Expression, xy: tuple[Expression, ...], d: Expression) -> Cotangents:
    second = xy[0] < xy[1]
    return where(second, 0.0, d), where(second, d, 0.0)


def _d_minimum(result: Expression, xy: tuple[Expression, ...], d: Expression) -> Cotangents:
    second = xy[1] < xy[0]
    return where(second, 0.0, d), where(second, d, 0.0)


def _value_maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.where((x < y) | y.isnan(), y, x)


def _value_minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.where((y < x) | y.isnan(), y, x)


def _spelled(cpp: str, triton: str | None = None) -> dict[str, str]:
    """The spellings of an operation; Triton's is C++'s unless it says otherwise."""
    return {"cpp": cpp, "triton": cpp if triton is None else triton}


OPS: dict[str, Op] = {
    "add": Op(2, torch.add, lambda r, a, d: (d, d), 1, _spelled("{0} + {1}")),
    "sub": Op(2, torch.sub, lambda r, a, d: (d, -d), 1, _spelled("{0} - {1}")),
    "mul": Op(2, torch.mul, lambda r, a, d: (d * a[1], d * a[0]), 1, _spelled("{0} * {1}")),
    "div": Op(2, torch.div, _d_div, 8, _spelled("{0} / {1}")),
    "neg": Op(1, torch.neg, lambda r, a, d: (-d,), 1, _spelled("-{0}")),
    "exp": Op(
        1, torch.exp, lambda r, a, d: (d * r,), 14, _spelled("math::exp<S>({0})", "tl.exp({0})")
    ),
    "sigmoid": Op(
        1, torch.sigmoid, _d_sigmoid, 20, _spelled("math::sigmoid<S>({0})", "sigmoid({0})")
    ),
    "tanh": Op(1, torch.tanh, _d_tanh, 20, _spelled("math::tanh<S>({0})", "tanh({0})")),
    "log_sigmoid": Op(
        1,
        torch.nn.functional.logsigmoid,
        lambda r, a, d: (d * sigmoid(-a[0]),),
        36,
        _spelled("math::log_sigmoid<S>({0})", "log_sigmoid({0})"),
    ),
    "maximum": Op(
        2,
        _value_maximum,
        _d_maximum,
        2,
        _spelled("math::maximum<S>({0}, {1})", "maximum({0}, {1})"),
    ),
    "minimum": Op(
        2,
        _value_minimum,
        _d_minimum,
        2,
        _spelled("math::minimum<S>({0}, {1})", "minimum({0}, {1})"),
    ),
    "stop_gradient": Op(1, torch.Tensor.detach, _none, 0, _spelled("{0}")),
    "equal": Op(2, torch.eq, _none, 1, _spelled("{0} == {1}")),
    "less": Op(2, torch.lt, _none, 1, _spelled("{0} < {1}")),
    "less_equal": Op(2, torch.le, _none, 1, _spelled("{0} <= {1}")),
    "where": Op(
        3,
        torch.where,
        lambda r, a, d: (None, where(a[0], d, 0.0), where(a[0], 0.0, d)),
        1,
        _spelled("S::select({0}, {1}, {2})", "tl.where({0}, {1}, {2})"),
    ),
}


# What a cell may call, beside + - * / and powers.
FUNCTIONS = (
    clamp, equal, exp, log_sigmoid, maximum, minimum, sigmoid, stop_gradient, tanh, where,
)  # fmt: skip


def zero() -> Expression:
    """The constant 0."""
    return constant(0.0)
