"""What a cell cannot say is an error that names the line of the cell, marked `here` below."""

import inspect
import math

import numpy as np
import pytest
import torch

import flashrnn
from flashrnn import cell, equal, sigmoid, where
from flashrnn.errors import CellError
from flashrnn.ir.ops import FUNCTIONS


def branch(g, s):
    c = s.c + g.b
    if g.a > 0:  # here
        c = g.a
    return {"h": g.a, "c": c}


def conditional(g, s):
    h = g.a
    c = g.a if s.c == 0.0 else g.b  # here
    return {"h": h, "c": c}


def conjunction(g, s):
    c = s.c
    both = (g.a > 0) and (g.b > 0)  # here
    return {"h": where(both, g.a, g.b), "c": c}


def disjunction(g, s):
    return {
        "c": s.c,
        "h": where((g.a > 0) or (g.b > 0), g.a, g.b),  # here
    }


def chained(g, s):
    inside = 0.0 < g.a < 1.0  # here
    return {"h": where(inside, g.a, g.b), "c": s.c}


def largest(g, s):
    return {"h": max(g.a, g.b), "c": s.c}  # here


def from_math(g, s):
    c = s.c + sigmoid(g.b)
    h = math.tanh(g.a)  # here
    return {"h": h, "c": c}


def from_torch(g, s):
    h = torch.tanh(g.a)  # here
    return {"h": h, "c": s.c + g.b}


def from_numpy(g, s):
    h = np.tanh(g.a)  # here
    return {"h": h, "c": s.c + g.b}


def method(g, s):
    h = g.a.tanh()  # here
    return {"h": h, "c": s.c + g.b}


def helper(x):
    return abs(x)  # here


def through_a_helper(g, s):
    return {"h": helper(g.a), "c": s.c + g.b}


def loop(g, s):
    h = g.a
    for x in g:  # here
        h += x
    return {"h": h, "c": s.c}


def counted(g, s):
    h = g.a
    for _ in range(g.b):  # here
        h += s.h
    return {"h": h, "c": s.c}


def until(g, s):
    h = g.a
    while h < 1.0:  # here
        h += g.b
    return {"h": h, "c": s.c}


def never_assigned(g, s):
    c = s.c + g.b
    return {"h": g.a * c}  # here


def not_declared(g, s):
    if s is None:
        return {}
    return {  # here
        "h": g.a,
        "c": g.b,
        "m": s.c,
    }


def no_dict(g, s):
    return g.a + g.b + s.c  # here


def nothing(g, s):
    g.a + s.c  # here


def no_expression(g, s):
    c = s.c + g.a + g.b
    return {"h": sigmoid, "c": c}  # here


def condition_as_state(g, s):
    c = s.c + g.b
    return {"h": g.a > 0, "c": c}  # here


def assigned(g, s):
    s.c = s.c * g.a  # here
    return {"h": g.b, "c": s.c}


def unknown_gate(g, s):
    h = sigmoid(g.x)  # here
    return {"h": h, "c": s.c}


def unknown_state(g, s):
    h = g.a + s.m  # here
    return {"h": h, "c": g.b}


def no_condition(g, s):
    h = where(g.a, g.b, 0.0)  # here
    return {"h": h, "c": s.c}


def equality(g, s):
    h = where(g.a == 0.0, g.b, 0.0)  # here
    return {"h": h, "c": s.c}


def condition_as_number(g, s):
    h = (g.a > 0) * g.b  # here
    return {"h": h, "c": s.c}


def root(g, s):
    h = g.a**0.5  # here
    return {"h": h, "c": s.c + g.b}


def text(g, s):
    h = sigmoid("a")  # here
    return {"h": h, "c": s.c + g.b}


def tensor(g, s):
    h = torch.ones(3) * g.a  # here
    return {"h": h, "c": s.c + g.b}


def not_a_number(g, s):
    h = g.a * float("nan")  # here
    return {"h": h, "c": s.c + g.b}


def unused_gate(g, s):  # here
    return {"h": g.a, "c": s.c + g.a}


def idle_state(g, s):  # here
    return {"h": g.a + g.b, "c": s.c}


def constant_state(g, s):  # here
    return {"h": g.a + g.b, "c": 0.0}


def a_third_argument(g, s, p):  # here
    return {"h": g.a * p.w, "c": s.c + g.b}


KNOWN = ", ".join(f.__name__ for f in FUNCTIONS)
OPERATIONS = f"; a cell computes with + - * /, ** 1 to 4, < <= > >= and flashrnn's {KNOWN}"
NO_TRUTH = (
    "an expression has no truth value while a cell is traced: write where(condition, a, b) instead "
    "of `if`, `and` or `or`, equal(a, b) for ==, maximum(a, b) and minimum(a, b) for max and min"
)
EQUALITY = "a comparison for equality is written equal(a, b) in a cell, not =="
CASES = {
    branch: NO_TRUTH,
    conditional: EQUALITY,
    conjunction: NO_TRUTH,
    disjunction: NO_TRUTH,
    chained: NO_TRUTH,
    largest: NO_TRUTH,
    from_math: f"must be real number, not Expression{OPERATIONS}",
    from_torch: f"tanh(): argument 'input' (position 1) must be Tensor, not Expression{OPERATIONS}",
    from_numpy: "operand 'Expression' does not support ufuncs (__array_ufunc__=None)" + OPERATIONS,
    method: f"'Expression' object has no attribute 'tanh'{OPERATIONS}",
    helper: f"bad operand type for abs(): 'Expression'{OPERATIONS}",
    loop: "a gate is read by its name: a, b",
    counted: f"'Expression' object cannot be interpreted as an integer{OPERATIONS}",
    until: NO_TRUTH,
    never_assigned: "the cell returns the states ['h'], but declares ['c', 'h']: "
    "'c' is never assigned",
    not_declared: "the cell returns the states ['c', 'h', 'm'], but declares ['c', 'h']: "
    "'m' is not declared",
    no_dict: "a cell returns a dict of its states, got g.a + g.b + s.c",
    nothing: "a cell returns a dict of its states, got None",
    no_expression: f"state 'h' is {sigmoid!r}, not an expression",
    condition_as_state: "state 'h' is 0 < g.a, not an expression",
    assigned: "a state cannot be assigned to: give new values a name of their own and return the "
    'states, {"c": ...}',
    unknown_gate: "the cell has no gate 'x'; declared: a, b",
    unknown_state: "the cell has no state 'm'; declared: h, c",
    no_condition: "where() needs a condition, got g.a; "
    "conditions are equal(a, b), a < b, a <= b, a > b, a >= b",
    equality: EQUALITY,
    condition_as_number: "the condition 0 < g.a is used as a number; use where(0 < g.a, a, b)",
    root: "only powers 1 to 4 are supported in a cell, got 0.5",
    text: "a cell computes with gates, states, parameters and numbers, got 'a'",
    tensor: "a cell computes with gates, states, parameters and numbers, got tensor([1., 1., 1.])",
    not_a_number: "a cell's constant is NaN",
    unused_gate: "no equation uses the gate 'b'; use it or leave it out of gates",
    idle_state: "the state 'c' is always s.c and no other state reads it; leave it out of states",
    constant_state: "the state 'c' is always 0 and no other state reads it; leave it out of states",
    a_third_argument: "the cell declares no parameters, so its function takes (g, s): "
    "gates, states; it takes (g, s, p)",
}


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_the_line_and_the_words(function) -> None:
    lines, first = inspect.getsourcelines(function)
    (line,) = [first + i for i, text in enumerate(lines) if text.rstrip().endswith("# here")]
    declared = through_a_helper if function is helper else function
    with pytest.raises(CellError) as caught:
        cell(gates="a b", states="h c")(declared)
    assert str(caught.value) == f"{__file__}:{line}: {CASES[function]}"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ("w v", "no equation uses the parameter 'v'; use it or leave it out of parameters"),
        (
            "w",
            "the cell declares parameters='w', so its function takes (g, s, p): "
            "gates, states and parameters; it takes (g, s)",
        ),
    ],
)
def test_parameters(parameters, words) -> None:
    function = a_third_argument if parameters == "w v" else unused_gate
    with pytest.raises(CellError) as caught:
        cell(gates="a b", states="h c", parameters=parameters)(function)
    line = function.__code__.co_firstlineno
    assert str(caught.value) == f"{__file__}:{line}: {words}"


def test_only_functions_are_declared() -> None:
    with pytest.raises(CellError, match="a cell is declared from a function, got <class 'dict'>"):
        cell(gates="a", states="h")(dict)


def test_an_error_of_the_users_own_is_left_alone() -> None:
    def misspelt(g, s):
        return {"h": tahn(g.a)}  # noqa: F821

    with pytest.raises(NameError, match="tahn"):
        cell(gates="a", states="h")(misspelt)
    assert (flashrnn.sigmoid(1.0) == 2.0) is False, "outside of tracing == is identity"


def test_numbers_of_other_libraries_are_numbers() -> None:
    def scaled(g, s):
        return {"h": np.float32(2.0) * g.a + np.int64(1) * np.pi}

    built = cell(gates="a", states="h")(scaled)
    assert repr(built.new_states[0]) == "2 * g.a + 3.14159"


def test_loops_and_branches_over_python_values_are_fine() -> None:
    def unrolled(g, s):
        h = g.a
        for k in range(3):
            h += s.h / (k + 1) if k else s.h
        return {"h": where(equal(h, 0.0), g.a, h)}

    assert cell(gates="a", states="h")(unrolled).states == ("h",)


def test_cells_may_call_what_the_library_exports() -> None:
    assert all(getattr(flashrnn, f.__name__) is f for f in FUNCTIONS)
