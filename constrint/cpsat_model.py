"""A model in CP-SAT's terms.

Every part of an expression becomes a CP-SAT variable within the bounds that interval arithmetic
gives it; a part that could leave 62 bits is refused. A leaf is stated through a literal that
implies it, so that disjunctions need no more; divisors and exponents that could be undefined are
replaced by harmless ones where the literal is false.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from constrint.constraint import COMPARE, Constraint
from constrint.domain import Domain
from constrint.errors import ModelError
from constrint.expression import Expression, Variable
from constrint.intervals import OPERATIONS, Interval
from constrint.lower import conjunction, normal

LARGEST = 2**62
Linear = Any  # a CP-SAT linear expression, or an int
Literal = Any  # a CP-SAT Boolean variable


class Translation:
    """A CP-SAT model, and the CP-SAT variable of each variable."""

    def __init__(
        self, domains: Mapping[Variable, Domain], constraints: Sequence[Constraint]
    ) -> None:
        from ortools.sat.python import cp_model

        self.cp = cp_model
        self.model = cp_model.CpModel()
        self.of: dict[Variable, Any] = {}
        self.bounds: dict[Variable, Interval] = {}
        for v, domain in domains.items():
            if isinstance(domain.values, range) and domain.step == 1:
                held = cp_model.Domain(domain.low, domain.high)
            elif len(domain) <= 1 << 20:
                held = cp_model.Domain.from_values(list(domain))
            else:
                held = cp_model.Domain(domain.low, domain.high)
            self.of[v] = self.model.new_int_var_from_domain(held, v.name)
            if isinstance(domain.values, range) and len(domain) > 1 << 20 and domain.step > 1:
                quotient = self.model.new_int_var(0, len(domain) - 1, "")
                self.model.add(self.of[v] == quotient * domain.step + domain.low)
            self.bounds[v] = (domain.low, domain.high)
        always = self.model.new_constant(1)
        for constraint in constraints:
            self.state(constraint, always)

    # Values

    def fresh(self, span: Interval) -> Any:
        """A new variable over ``span``."""
        if max(abs(span[0]), abs(span[1])) > LARGEST:
            raise ModelError(
                f"a part of the model reaches {max(span, key=abs)}, beyond CP-SAT's 62 bits: "
                "restrict the domains, or use engine='native'"
            )
        return self.model.new_int_var(span[0], span[1], "")

    def value(  # noqa: PLR0911 (one return per operation)
        self, node: Expression, given: Literal = None
    ) -> tuple[Linear, Interval]:
        """A linear expression for ``node``, right wherever the literal ``given`` is true."""
        op, args = node.op, node.args
        if op == "const":
            return args[0], (args[0], args[0])
        if isinstance(node, Variable):
            return self.of[node], self.bounds[node]
        if op == "if":
            return self._choice(args, given)
        parts = [self.value(arg, given) for arg in args]
        if op in {"//", "cdiv", "%"}:
            return self._division(op, parts, given)
        if op == "**":
            return self._power(parts, given)
        span = OPERATIONS[op](*(part[1] for part in parts))
        terms = [part[0] for part in parts]
        if all(type(term) is int for term in terms):
            return span[0], span
        self._check(span)
        if op == "neg":
            return -terms[0], span
        if op in {"+", "-"}:
            return (terms[0] + terms[1] if op == "+" else terms[0] - terms[1]), span
        if op == "*" and any(type(term) is int for term in terms):
            return terms[0] * terms[1], span
        result = self.fresh(span)
        if op == "*":
            self.model.add_multiplication_equality(result, terms)
        elif op == "abs":
            self.model.add_abs_equality(result, terms[0])
        elif op == "min":
            self.model.add_min_equality(result, terms)
        else:
            self.model.add_max_equality(result, terms)
        return result, span

    def _check(self, span: Interval) -> None:
        if max(abs(span[0]), abs(span[1])) > LARGEST:
            self.fresh(span)

    def _division(
        self, op: str, parts: list[tuple[Linear, Interval]], given: Literal
    ) -> tuple[Linear, Interval]:
        """a == q*b + r with 0 <= r < b (or b < r <= 0): Python's floor division."""
        (a, a_span), (b, b_span) = parts
        if op == "cdiv":
            quotient, span = self._division("//", [(-a, (-a_span[1], -a_span[0])), parts[1]], given)
            return -quotient, (-span[1], -span[0])
        if b_span == (0, 0):
            self._forbid(given)
            return 0, (0, 0)
        if b_span[0] <= 0 <= b_span[1]:
            # A stand-in that is never 0 equals the divisor wherever the value matters.
            stand_in = self.model.new_int_var_from_domain(
                self.cp.Domain.from_intervals(
                    [p for p in ([b_span[0], -1], [1, b_span[1]]) if p[0] <= p[1]]
                ),
                "",
            )
            self._require(stand_in == b, given)
            b = stand_in
        quotient_span = OPERATIONS["//"](a_span, b_span)
        remainder_span = OPERATIONS["%"](a_span, b_span)
        quotient, remainder = self.fresh(quotient_span), self.fresh(remainder_span)
        if type(b) is int:
            product: Linear = quotient * b
        else:
            product = self.fresh(OPERATIONS["*"](quotient_span, b_span))
            self.model.add_multiplication_equality(product, [quotient, b])
        self.model.add(a == product + remainder)
        if b_span[0] >= 0:
            self.model.add(remainder < b)
        elif b_span[1] <= 0:
            self.model.add(remainder > b)
        else:
            positive = self.model.new_bool_var("")
            self.model.add(b >= 1).only_enforce_if(positive)
            self.model.add(remainder < b).only_enforce_if(positive)
            self.model.add(remainder >= 0).only_enforce_if(positive)
            self.model.add(b <= -1).only_enforce_if(positive.negated())
            self.model.add(remainder > b).only_enforce_if(positive.negated())
            self.model.add(remainder <= 0).only_enforce_if(positive.negated())
        return (quotient, quotient_span) if op == "//" else (remainder, remainder_span)

    def _power(
        self, parts: list[tuple[Linear, Interval]], given: Literal
    ) -> tuple[Linear, Interval]:
        (base, base_span), (exponent, (least, most)) = parts
        if most < 0:
            self._forbid(given)
            return 0, (0, 0)
        span = OPERATIONS["**"](base_span, (least, most))
        powers: list[tuple[Linear, Interval]] = [(1, (1, 1))]
        for _ in range(most):
            previous, previous_span = powers[-1]
            following = OPERATIONS["*"](previous_span, base_span)
            if type(previous) is int or type(base) is int:
                powers.append((previous * base, following))
                continue
            product = self.fresh(following)
            self.model.add_multiplication_equality(product, [previous, base])
            powers.append((product, following))
        if least == most:
            return powers[most]
        result = self.fresh(span)
        chosen = [self.model.new_bool_var("") for _ in powers]
        harmless = self.model.new_bool_var("")
        self._require(harmless == 0, given)
        self.model.add_exactly_one([*chosen, harmless])
        for k, (literal, (power, _)) in enumerate(zip(chosen, powers, strict=True)):
            self.model.add(exponent == k).only_enforce_if(literal)
            self.model.add(result == power).only_enforce_if(literal)
        return result, span

    def _choice(self, args: tuple[Any, ...], given: Literal) -> tuple[Linear, Interval]:
        held, failed = self.model.new_bool_var(""), self.model.new_bool_var("")
        self.state(conjunction(normal(args[0])), held)
        self.state(conjunction(normal(args[0], False)), failed)
        if given is None:
            self.model.add_bool_or([held, failed])
        else:
            self.model.add_bool_or([held, failed]).only_enforce_if(given)
        (a, a_span), (b, b_span) = self.value(args[1], held), self.value(args[2], failed)
        span = min(a_span[0], b_span[0]), max(a_span[1], b_span[1])
        result = self.fresh(span)
        self.model.add(result == a).only_enforce_if(held)
        self.model.add(result == b).only_enforce_if(failed)
        return result, span

    def _require(self, condition: Any, given: Literal) -> None:
        stated = self.model.add(condition)
        if given is not None:
            stated.only_enforce_if(given)

    def _forbid(self, given: Literal) -> None:
        self.model.add_bool_or([] if given is None else [given.negated()])

    # Constraints

    def state(self, node: Constraint, given: Literal) -> None:
        """States that ``node``, in the form of `lower.normal`, holds where ``given`` is true."""
        op, args = node.op, node.args
        if op == "true":
            return
        if op == "false":
            self._forbid(given)
        elif op == "and":
            self.state(args[0], given)
            self.state(args[1], given)
        elif op == "or":
            branches = [self.model.new_bool_var("") for _ in args]
            for branch, arg in zip(branches, args, strict=True):
                self.state(arg, branch)
            self.model.add_bool_or([*branches, given.negated()])
        elif op in {"in", "not in"}:
            self._member(self.value(args[0], given), args[1], op == "in", given)
        elif op in {"table", "not table"}:
            terms = [self.value(term, given) for term in args[0]]
            self._table(terms, args[1], op == "table", given)
        elif op in COMPARE:
            (left, left_span), (right, right_span) = (self.value(arg, given) for arg in args)
            self._check(OPERATIONS["-"](left_span, right_span))
            condition = COMPARE[op](left, right)
            if isinstance(condition, bool):
                if not condition:
                    self._forbid(given)
            else:
                self._require(condition, given)
        else:
            raise ModelError(f"CP-SAT cannot call the Python function in `{node}`")

    def _member(
        self, term: tuple[Linear, Interval], listed: Sequence[int], wanted: bool, given: Literal
    ) -> None:
        value, span = term
        domain = self.cp.Domain.from_values([v for v in listed if span[0] <= v <= span[1]])
        if not wanted:
            domain = domain.complement().intersection_with(self.cp.Domain(*span))
        if domain.is_empty() or type(value) is int:
            if domain.is_empty() or not domain.contains(value):
                self._forbid(given)
            return
        self.model.add_linear_expression_in_domain(value, domain).only_enforce_if(given)

    def _table(
        self,
        terms: Sequence[tuple[Linear, Interval]],
        rows: Sequence[tuple[int, ...]],
        wanted: bool,
        given: Literal,
    ) -> None:
        choices = []
        for row in rows:
            if wanted:
                literal = self.model.new_bool_var("")
                choices.append(literal)
                for (term, span), cell in zip(terms, row, strict=True):
                    self._member((term, span), [cell], True, literal)
                continue
            differs = []
            for (term, span), cell in zip(terms, row, strict=True):
                literal = self.model.new_bool_var("")
                self._member((term, span), [cell], False, literal)
                differs.append(literal)
            self.model.add_bool_or(differs).only_enforce_if(given)
        if wanted:
            self.model.add_bool_or(choices).only_enforce_if(given)
