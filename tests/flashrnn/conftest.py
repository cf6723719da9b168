from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def golden():
    """Loads a case of tests/golden as float64 tensors."""

    def load(name: str) -> dict[str, torch.Tensor]:
        path = Path(__file__).parent.parent / "golden" / f"{name}.npz"
        with np.load(path) as file:
            return {k: torch.from_numpy(file[k]) for k in file}

    return load
