"""The ``.constrint`` text form: `parse` and `print_model`.

    # comments run to the end of the line; statements end with a semicolon
    model "cpu forward";
    var b: 1..8;                     # also 0..64 step 16, and {1, 2, 4}
    var v: {1, 2, 4};
    "vector registers": 4*b*v + b + 1 <= 32;
    b == [2, 4] | v > 1;             # a list stands for any of its values
    maximize b*v;

Operators, loosest first: ``implies``; ``or`` ``|``; ``and`` ``&``; ``not`` ``~``; comparisons
(which chain), ``divides``, ``in``; ``+ -``; ``* / // %``; unary ``-``; ``**`` ``^``. A variable
that is not declared ranges over 1 .. 2**30, as in the form published with FlashRNN.
"""

from __future__ import annotations

from constrint.constraint import Constraint
from constrint.errors import ModelError
from constrint.expression import Expression, Variable
from constrint.model import Model
from constrint.parser import Parser
from constrint.tokens import KEYWORDS


def parse(source: str) -> Model:
    """The model that ``source`` states; raises ParseError with line, column and caret."""
    return Parser(source).model()


def print_model(model: Model) -> str:
    """The text of a model, from which `parse` makes the same model."""
    lines = [f'model "{model.name}";'] if model.name else []
    for name, variable in model.variables.items():
        if not name.isidentifier() or not name.isascii() or name in KEYWORDS:
            raise ModelError(f"the text form has no way to write a variable named {name!r}")
        lines.append(f"var {name}: {_domain_text(variable)};")
    for rule in model.rules:
        if _holds_call(rule.constraint):
            raise ModelError(f"the text form has no way to write the Python function in `{rule}`")
        if rule.name and '"' in rule.name:
            raise ModelError(f"the text form has no way to write a quote in the name {rule.name!r}")
        title = f'"{rule.name}": ' if rule.name else ""
        lines.append(f"{title}{rule.constraint};")
    words = {1: "minimize", -1: "maximize"}
    lines += [f"{words[sign]} {node};" for node, sign in model.objectives]
    return "\n".join(lines) + "\n"


def _domain_text(variable: Variable) -> str:
    values = variable.domain.values
    if isinstance(values, range) and len(values) > 2:
        step = f" step {values.step}" if values.step != 1 else ""
        return f"{values[0]}..{values[-1]}{step}"
    return f"{{{', '.join(map(str, values))}}}"


def _holds_call(node: object) -> bool:
    if not isinstance(node, Constraint | Expression):
        return False
    parts = [p for arg in node.args for p in (arg if isinstance(arg, tuple) else (arg,))]
    return node.op == "call" or any(_holds_call(part) for part in parts)
