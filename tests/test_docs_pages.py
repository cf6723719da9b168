"""Python blocks of the pages run; tables that the code could contradict agree with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flashrnn import cell_names, options

DOCS = Path(__file__).parent.parent / "docs"
PAGES = ["pytorch.md", "migrating-from-flashrnn.md"]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    scope: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(DOCS / page), "exec"), scope)


def test_the_table_of_options_is_the_codes() -> None:
    text = (DOCS / "pytorch.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \|$", text, re.M)
    assert {name: tuple(told.split(", ")) for name, told in table} == options.CARRIED


def test_names_that_are_said_to_be_the_same_exist() -> None:
    text = (DOCS / "migrating-from-flashrnn.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith('| `function="lstm"'))
    assert set(re.findall(r'"(\w+)"', row)) <= set(cell_names())
