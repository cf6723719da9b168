"""Tests compile into a cache of their own, kept between runs beside pytest's."""

import os
from pathlib import Path

import pytest

os.environ["FLASHRNN_CACHE"] = str(Path(__file__).parent.parent / ".pytest_cache" / "flashrnn")
# Compiled graphs that are kept know an operator's schema, not the shapes that its code gives today.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write what tests/golden should contain"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch finds no NVIDIA GPU on this machine")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A kernel that breaks CUDA breaks it for all that its process does later, so the process ends.

    Another worker of pytest-xdist then goes on; without them, pytest ends.
    """
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        pytest.exit(f"{item.nodeid} left CUDA unusable: {error}", returncode=3)
