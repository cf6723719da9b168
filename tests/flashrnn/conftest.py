from pathlib import Path

import numpy as np
import pytest
import torch

from flashrnn.runtime import scratch


@pytest.fixture
def golden():
    """Loads a case of tests/golden as float64 tensors."""

    def load(name: str) -> dict[str, torch.Tensor]:
        path = Path(__file__).parent.parent / "golden" / f"{name}.npz"
        with np.load(path) as file:
            return {k: torch.from_numpy(file[k]) for k in file}

    return load


@pytest.fixture
def poisoned():
    """What torch hands out uninitialised is NaN, and the kernels keep no memory of calls before."""
    scratch._kept.__dict__.clear()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
