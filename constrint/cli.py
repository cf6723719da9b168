"""The command line: questions to a model in a .constrint file.

Exit codes: 0 solved, 1 infeasible, 2 bad input, 3 out of time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from constrint.errors import ConstrintError, Infeasible, ModelError, TimeLimit
from constrint.model import Model, largest, smallest

SOLVED, INFEASIBLE, BAD_INPUT, OUT_OF_TIME = range(4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        model = _read(options)
        with _progress(options):
            return int(options.run(model, options))
    except Infeasible as error:
        _report(
            options,
            {
                "infeasible": True,
                "message": str(error),
                "conflict": [
                    {"name": rule.name, "text": str(rule.constraint)} for rule in error.conflict
                ],
            },
            str(error),
        )
        return INFEASIBLE
    except TimeLimit as error:
        print(f"constrint: {error}", file=sys.stderr)
        return OUT_OF_TIME
    except BrokenPipeError:  # the reader of the answers has seen enough
        sys.stderr.close()
        return SOLVED
    except (ConstrintError, OSError, UnicodeDecodeError) as error:
        print(f"constrint: {error}", file=sys.stderr)
        return BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="constrint", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("file", metavar="FILE", help="a .constrint file; - reads the input")
        added.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", help="fix a variable"
        )
        added.add_argument("--json", action="store_true", help="answer in JSON")
        added.add_argument("--time-limit", type=float, metavar="SECONDS")
        added.set_defaults(run=run)
        return added

    solve = command("solve", _solve, "the best solution, and how tight each constraint is")
    solve.add_argument(
        "--prefer",
        action="append",
        default=[],
        metavar="largest:NAME",
        help="prefer a large (largest:NAME) or small (smallest:NAME) value; the first counts most",
    )
    solve.add_argument("--engine", choices=["native", "cpsat"], default="native")
    listing = command("enumerate", _enumerate, "all solutions, one a line")
    listing.add_argument("--limit", type=int, metavar="N", help="at most N of them")
    command("count", _count, "the number of solutions")
    sample = command("sample", _sample, "different solutions drawn at random")
    sample.add_argument("-n", type=int, default=1, help="how many")
    sample.add_argument("--seed", type=int, help="the same seed draws the same solutions")
    command("explain", _explain, "why there is no solution")
    graph = command("graph", _graph, "the constraint graph, in Graphviz' language or as a picture")
    graph.add_argument("--picture", metavar="PATH", help="draw it into an image file instead")
    return parser


def _read(options: argparse.Namespace) -> Model:
    from constrint.text import parse

    text = sys.stdin.read() if options.file == "-" else Path(options.file).read_text("utf-8")
    model = parse(text)
    for setting in options.set:
        name, _, value = setting.partition("=")
        try:
            number = int(value)
        except ValueError:
            raise ModelError(f"--set {setting}: write NAME=VALUE with an integer") from None
        model.add(_variable(model, name, "--set") == number, name=f"--set {setting}")
    return model


def _variable(model: Model, name: str, option: str) -> Any:
    if name not in model.variables:
        raise ModelError(
            f"{option}: no variable {name!r} in the model; it has {', '.join(model.variables)}"
        )
    return model.variables[name]


def _progress(options: argparse.Namespace) -> AbstractContextManager[Any]:
    """A spinner on the terminal while a long question runs."""
    if options.json or not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status("solving")


def _report(options: argparse.Namespace, data: Any, text: str) -> None:
    print(json.dumps(data) if options.json else text)


def _solve(model: Model, options: argparse.Namespace) -> int:
    for preference in options.prefer:
        word, _, name = preference.partition(":")
        if word not in {"largest", "smallest"} or not name:
            raise ModelError(f"--prefer {preference}: write largest:NAME or smallest:NAME")
        target = _variable(model, name, "--prefer")
        model.prefer(largest(target) if word == "largest" else smallest(target))
    solution = model.solve(time_limit=options.time_limit, engine=options.engine)
    records = model.binding(solution)
    lines = [f"{name} = {value}" for name, value in solution.items()]
    if not solution.optimal:
        lines.append("(the best found in the time there was)")
    _report(
        options,
        {
            "solution": dict(solution),
            "optimal": solution.optimal,
            "constraints": [
                {"name": r.name, "text": r.text, "slack": _plain(r.slack)} for r in records
            ],
        },
        "\n".join([*lines, *(f"  {record}" for record in records)]),
    )
    return SOLVED


def _plain(number: Any) -> Any:
    return number if number is None or isinstance(number, int) else str(number)


def _line(config: dict[str, int], options: argparse.Namespace) -> str:
    if options.json:
        return json.dumps(config)
    return " ".join(f"{name}={value}" for name, value in config.items())


def _enumerate(model: Model, options: argparse.Namespace) -> int:
    space = model.enumerate(options.time_limit)
    limit = space.count() if options.limit is None else options.limit
    if limit < 0:
        raise ModelError(f"--limit {limit}: it must not be negative")
    for k, config in enumerate(space):
        if k >= limit:
            break
        print(_line(config, options))
    return SOLVED if space else INFEASIBLE


def _count(model: Model, options: argparse.Namespace) -> int:
    count = model.enumerate(options.time_limit).count()
    _report(options, {"count": count}, str(count))
    return SOLVED if count else INFEASIBLE


def _sample(model: Model, options: argparse.Namespace) -> int:
    space = model.enumerate(options.time_limit)
    if not space:
        return INFEASIBLE
    for config in space.sample(options.n, options.seed):
        print(_line(config, options))
    return SOLVED


def _explain(model: Model, options: argparse.Namespace) -> int:
    error = model.explain()
    if error is not None:
        raise error
    _report(options, {"infeasible": False}, "there is a solution")
    return SOLVED


def _graph(model: Model, options: argparse.Namespace) -> int:
    from constrint.graph import dot, picture

    if options.picture:
        picture(model, options.picture)
    else:
        print(dot(model), end="")
    return SOLVED


if __name__ == "__main__":
    sys.exit(main())
