"""The given spaces under pytest-benchmark: `pytest bench/constrint`."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.constrint.suite import SPACES
from constrint import Model

PATHS = sorted(SPACES.glob("*.json"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_columns(benchmark: Any, path: Path) -> None:
    data = json.loads(path.read_text())

    def columns() -> dict[str, Any]:
        return Model.from_space(data["params"], data["constraints"]).enumerate().columns()

    result = benchmark(columns)
    assert {len(column) for column in result.values()} == {data["valid"]}
