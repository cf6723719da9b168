"""The parser of the text form; `constrint.text` describes the form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from constrint.constraint import Constraint, all_different, any_of, member, table
from constrint.errors import ConstrintError, ModelError
from constrint.expression import (
    Expression,
    Variable,
    cdiv,
    either,
    largest_of,
    smallest_of,
    substituted,
)
from constrint.model import Model
from constrint.tokens import KEYWORDS, Token, error, tokens

Node = Constraint | Expression

UNDECLARED = range(1, (1 << 30) + 1)
_COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">="})


class Parser:
    """Recursive descent; each method reads one level of precedence."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = tokens(source)
        self.at = 0
        self.result = Model()
        self.lists: dict[Variable, tuple[int, ...]] = {}  # of the comparison being read

    def model(self) -> Model:
        """The model that the whole source states."""
        while self.here.kind != "end":
            if not self.accept(";"):
                self.statement()
                if self.here.kind != "end":
                    self.expect(";")
        return self.result

    # Tokens

    @property
    def here(self) -> Token:
        return self.tokens[self.at]

    def accept(self, *texts: str) -> str | None:
        token = self.here
        if token.kind in {"mark", "name"} and token.text in texts:
            self.at += 1
            return token.text
        return None

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.wrong(f"expected {text!r}, found {self.here.text!r}")

    def take(self, kind: str, what: str) -> str:
        token = self.here
        if token.kind != kind or (kind == "name" and token.text in KEYWORDS):
            raise self.wrong(f"expected {what}, found {token.text!r}")
        self.at += 1
        return token.text

    def wrong(self, message: str, at: Token | None = None) -> ConstrintError:
        return error(self.source, (at or self.here).position, message)

    # Statements

    def statement(self) -> None:
        start = self.here
        try:
            if self.accept("model"):
                self.result.name = self.take("string", "a name in quotes")[1:-1]
            elif self.accept("var"):
                name = self.take("name", "a variable's name")
                self.expect(":")
                self.result.int_var(name, self.domain())
            elif word := self.accept("minimize", "maximize"):
                objective = self.number(self.sum, "a preference")
                self.result.prefer((objective, 1 if word == "minimize" else -1))
            else:
                name = ""
                if self.here.kind == "string":
                    name = self.take("string", "a name")[1:-1]
                    self.expect(":")
                self.result.add(self.condition(self.implication, start), name=name or None)
        except ModelError as problem:
            if type(problem) is ModelError:
                raise self.wrong(str(problem), start) from problem
            raise

    def domain(self) -> range | tuple[int, ...]:
        if self.accept("{", "["):
            return self.integers("}", "]")
        low = self.integer()
        self.expect("..")
        high = self.integer()
        step = self.integer() if self.accept("step") else 1
        if step < 1:
            raise self.wrong(f"a step of {step}: it must be at least 1")
        return range(low, high + 1, step)

    def integer(self) -> int:
        sign = -1 if self.accept("-") else 1
        return sign * int(self.take("number", "an integer"))

    def integers(self, *closing: str) -> tuple[int, ...]:
        """Integers up to a closing mark, which is read too."""
        found: list[int] = []
        while not self.accept(*closing):
            if found:
                self.expect(",")
            found.append(self.integer())
        return tuple(found)

    # Conditions

    def condition(self, level: Callable[[], Node], start: Token | None = None) -> Constraint:
        start = start or self.here
        node = level()
        if isinstance(node, Expression):
            raise self.wrong(f"`{node}` is a number where a condition is expected", start)
        return node

    def number(self, level: Callable[[], Node], place: str) -> Expression:
        start = self.here
        node = level()
        if isinstance(node, Constraint):
            raise self.wrong(f"`{node}` is a condition, but {place} takes a number", start)
        return node

    def implication(self) -> Node:
        return self.joined(self.disjunction, ("implies",), "implies")

    def disjunction(self) -> Node:
        return self.joined(self.conjunction, ("or", "|"), "or")

    def conjunction(self) -> Node:
        return self.joined(self.negation, ("and", "&"), "and")

    def joined(self, level: Callable[[], Node], words: tuple[str, ...], op: str) -> Node:
        start = self.here
        left = level()
        while self.accept(*words):
            if isinstance(left, Expression):
                raise self.wrong(f"`{left}` is a number, but {op!r} joins conditions", start)
            left = Constraint(op, left, self.condition(level))
        return left

    def negation(self) -> Node:
        if self.accept("not", "~"):
            return Constraint("not", self.condition(self.negation))
        return self.comparison()

    def comparison(self) -> Node:
        """A comparison, or whatever stands in its place. Lists stand for any of their values."""
        outer, self.lists = self.lists, {}
        try:
            return self._comparison()
        finally:
            self.lists = {**outer, **self.lists}

    def _comparison(self) -> Node:
        start = self.here
        left = self.sum()
        result: Constraint | None = None
        while op := self.accept(*_COMPARISONS, "divides", "in"):
            if isinstance(left, Constraint):
                raise self.wrong(f"`{left}` is a condition, but {op!r} takes numbers", start)
            if op == "in":
                if not self.accept("{", "["):
                    raise self.wrong("expected a list of integers")
                part = member(left, self.integers("}", "]"))
                right = left
            else:
                right = self.number(self.sum, op)
                part = Constraint(op, left, right)
            result = part if result is None else Constraint("and", result, part)
            left = right
        if result is None:
            return left
        return self.any_of_lists(result)

    def any_of_lists(self, node: Constraint) -> Constraint:
        """``node`` for some values of the lists that were read in it."""
        lists, self.lists = self.lists, {}
        if not lists:
            return node
        if node.op == "==" and len(lists) == 1:
            (placeholder, listed), (left, right) = next(iter(lists.items())), node.args
            if left is placeholder or right is placeholder:
                return member(right if left is placeholder else left, listed)
        choices = [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
        return any_of(substituted(node, choice) for choice in choices)

    # Numbers

    def sum(self) -> Node:
        return self.arithmetic(self.product, ("+", "-"))

    def product(self) -> Node:
        return self.arithmetic(self.sign, ("*", "/", "//", "%"))

    def arithmetic(self, level: Callable[[], Node], marks: tuple[str, ...]) -> Node:
        start = self.here
        left = level()
        while op := self.accept(*marks):
            if isinstance(left, Constraint):
                raise self.wrong(f"`{left}` is a condition, but {op!r} takes numbers", start)
            left = Expression(op, left, self.number(level, repr(op)))
        return left

    def sign(self) -> Node:
        if self.accept("-"):
            operand = self.number(self.sign, "'-'")
            return Expression("const", -operand.args[0]) if operand.op == "const" else -operand
        return self.power()

    def power(self) -> Node:
        base = self.atom()
        if self.accept("**", "^"):
            if isinstance(base, Constraint):
                raise self.wrong(f"`{base}` is a condition, but '**' takes numbers")
            return base ** self.number(self.sign, "'**'")
        return base

    def atom(self) -> Node:
        token = self.here
        if token.kind == "number":
            self.at += 1
            return Expression("const", int(token.text))
        if self.accept("("):
            node = self.implication()
            self.expect(")")
            return node
        if self.accept("["):
            listed = self.integers("]")
            placeholder = Variable("list", Model().int_var("list", listed).domain)
            self.lists[placeholder] = listed
            return placeholder
        if token.kind == "name" and token.text in KEYWORDS:
            return self.call()
        name = self.take("name", "a number, a variable or a bracket")
        if name not in self.result.variables:
            self.result.int_var(name, UNDECLARED)
        return self.result.variables[name]

    def call(self) -> Node:
        word = self.accept(
            "true", "false", "if", "min", "max", "abs", "cdiv", "all_different", "table"
        )
        if word is None:
            raise self.wrong(f"unexpected {self.here.text!r}")
        if word in {"true", "false"}:
            return Constraint(word)
        start = self.here
        self.expect("(")
        if word == "if":
            condition = self.condition(self.implication)
            self.expect(",")
            then, otherwise = self.numbers(")")
            return either(condition, then, otherwise)
        if word in {"all_different", "table"}:
            self.expect("[")
            terms = self.numbers("]")
            if word == "all_different":
                self.expect(")")
                return all_different(terms)
            self.expect(",")
            return table(terms, self.rows())
        arguments = self.numbers(")")
        wanted = {"abs": 1, "cdiv": 2}.get(word)
        if wanted not in {None, len(arguments)}:
            raise self.wrong(f"{word} takes {wanted} numbers, not {len(arguments)}", start)
        functions: dict[str, Callable[..., Expression]] = {
            "min": smallest_of,
            "max": largest_of,
            "abs": abs,
            "cdiv": cdiv,
        }
        return functions[word](*arguments)

    def numbers(self, closing: str) -> list[Expression]:
        found: list[Expression] = []
        while not self.accept(closing):
            if found:
                self.expect(",")
            found.append(self.number(self.sum, "a call"))
        return found

    def rows(self) -> list[tuple[int, ...]]:
        self.expect("[")
        found: list[tuple[int, ...]] = []
        while not self.accept("]"):
            if found:
                self.expect(",")
            self.expect("(")
            found.append(self.integers(")"))
        self.expect(")")
        return found
