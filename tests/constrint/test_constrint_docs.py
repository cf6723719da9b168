"""The tutorial runs, and the page of operators names everything that is exported."""

import doctest
import re
from pathlib import Path

import constrint
import constrint.model

DOCS = Path(__file__).parents[2] / "docs" / "constrint"


def test_the_tutorial_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(compile(block, "tutorial.md", "exec"), names)
    told = capsys.readouterr().out
    assert "tilings; the best:" in told and "shared bytes:" in told
    assert "these cannot hold together" in told
    assert max(len(block.splitlines()) for block in blocks) <= 36


def test_the_examples_in_docstrings_run():
    result = doctest.testmod(constrint.model)
    assert result.attempted > 0 and result.failed == 0


def test_every_modelling_function_is_documented():
    page = (DOCS / "operators.md").read_text()
    functions = [n for n in constrint.__all__ if n.islower()]
    assert [n for n in functions if f"{n}(" not in page] == []
