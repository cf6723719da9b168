from pathlib import Path

import numpy as np
import pytest
import torch

from flashrnn import repeated
from flashrnn.nn import direct
from flashrnn.packs import pack
from flashrnn.runtime import (
    flat_layer,
    kernels,
    launch,
    layer_kernels,
    pool,
    recurrence_kernels,
    scan_attention_kernels,
    scan_launch,
    scratch,
    triton_kernels,
    triton_scan,
)

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def own_packs(tmp_path, monkeypatch):
    """An empty cache directory, and nothing known of the packs and plans of others."""
    monkeypatch.setenv("FLASHRNN_CACHE", str(tmp_path))
    monkeypatch.setattr(triton_kernels, "_plans", {})
    monkeypatch.setattr(triton_scan, "_plans", {})
    pack._read.cache_clear()
    yield
    pack._read.cache_clear()


@pytest.fixture
def golden_text(request):
    """Holds a text to a file of tests/golden, or writes the file under --update-golden."""

    def hold(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing: pytest --update-golden writes it"
        assert text == path.read_text(encoding="utf-8"), f"{path}: see pytest --update-golden"

    return hold


@pytest.fixture
def golden():
    """Loads a case of tests/golden as float64 tensors."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(GOLDEN / f"{name}.npz") as file:
            return {k: torch.from_numpy(file[k]) for k in file}

    return load


def forget_kernels() -> None:
    """Of this process's memory, all that calls of CPU kernels follow from."""
    repeated.checked.clear()
    direct._fitting.clear()
    launch._kernels.clear()
    launch._sequence_maker.cache_clear()
    kernels._plans.clear()
    scan_launch._plans.clear()
    for module in (flat_layer, layer_kernels, recurrence_kernels, scan_attention_kernels):
        module._forward_forms.clear()
        module._backward_forms.clear()


@pytest.fixture
def fresh_kernels():
    """No kernel is at hand before, and none of these is afterwards."""
    forget_kernels()
    yield forget_kernels
    forget_kernels()


@pytest.fixture
def poisoned(monkeypatch):
    """What is handed out uninitialised is NaN, and the kernels keep no memory of calls before."""
    scratch._kept.__dict__.clear()
    forget_kernels()
    torch.use_deterministic_algorithms(True)

    def allocate(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype):
        return torch.empty_strided(shape, strides, dtype=dtype)

    monkeypatch.setattr(pool, "_allocate", allocate)
    monkeypatch.setattr(
        pool, "_block", lambda dtype, count: torch.full((count,), torch.nan, dtype=dtype)
    )
    large = (pool.SMALLEST_BYTES,)
    makers = [pool.maker((3,), (1,), torch.float32), pool.pooled(large, (1,), torch.float32)]
    made = torch.empty(3), torch.zeros(1).new_empty(3), *(make() for make in makers)
    assert all(x.isnan().all() for x in made)
    yield
    torch.use_deterministic_algorithms(False)
    forget_kernels()
