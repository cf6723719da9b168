"""Python predicates turned into constraints by running them on variables.

A lambda such as ``lambda p: p["x"] == 1 or p["y"] % p["x"] == 0`` asks for truth values of
constraints. While a predicate is traced, each such question is answered yes in one run and no in
another; the predicate is then the disjunction, over all runs, of the answers and the result.
Outside a trace, asking a constraint for its truth is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from constrint.errors import ModelError, OperandError

if TYPE_CHECKING:
    from constrint.constraint import Constraint

PATHS = 4096
"""A predicate that branches into more runs than this is refused."""


class _Run:
    """One run of a predicate: the answers to give, and the questions met so far."""

    def __init__(self, answers: list[bool]) -> None:
        self.answers = answers
        self.questions: list[Constraint] = []


_current: list[_Run] = []


def decide(question: Constraint, what: str) -> bool:
    """The truth of ``question`` in the current trace; an error where nothing is traced."""
    if not _current:
        raise OperandError(
            f"{what} has no truth value before the model is solved: write `a & b` for `a and b`, "
            "`a | b` for `a or b`, `~a` for `not a`, and `(lo <= x) & (x <= hi)` or "
            "`model.add(lo <= x, x <= hi)` for `lo <= x <= hi`"
        )
    run = _current[-1]
    run.questions.append(question)
    if len(run.questions) > len(run.answers):
        run.answers.append(True)
    return run.answers[len(run.questions) - 1]


def traced(predicate: Callable[[], object]) -> Constraint:
    """The constraint that ``predicate``, called without arguments, states."""
    from constrint.constraint import Constraint, all_of, any_of, constraint
    from constrint.expression import Expression

    paths: list[Constraint] = []
    answers: list[bool] | None = []
    while answers is not None:
        run = _Run(answers)
        _current.append(run)
        try:
            result = predicate()
        finally:
            _current.pop()
        if isinstance(result, Expression) or type(result) is int:
            result = result != 0
        taken = [q if a else ~q for q, a in zip(run.questions, run.answers, strict=True)]
        paths.append(all_of([*taken, constraint(result, "the predicate's result")]))
        if len(paths) > PATHS:
            raise ModelError(f"the predicate branches into more than {PATHS} cases")
        answers = _next_answers(run.answers)
    return any_of(path for path in paths if not _never(path)) if paths else Constraint("true")


def _never(path: Constraint) -> bool:
    return path.op == "false" or (path.op == "and" and path.args[1].op == "false")


def _next_answers(answers: list[bool]) -> list[bool] | None:
    """The next combination of answers, depth first; None after the last."""
    following = list(answers)
    while following and not following[-1]:
        following.pop()
    if not following:
        return None
    following[-1] = False
    return following
