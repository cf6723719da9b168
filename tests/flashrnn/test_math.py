"""The vector functions of csrc/cpu/math.hpp, in units of the last place."""

import ctypes

import numpy as np
import pytest

from autotune.device import Device
from flashrnn.runtime.build import build

SOURCE = """
#include "cpu/math.hpp"
using S = flashrnn::Simd<{real}, {vector_bytes}>;
FLASHRNN_EXPORT void apply(const {real}* x, {real}* y, int64_t count) {{
  for (int64_t i = 0; i < count; i += S::lanes)
    S::store(y + i, flashrnn::math::{name}<S>(S::load(x + i, count - i)), count - i);
}}
"""
# function: (reference on long double, bound in ulp as stated in math.hpp, interval)
FUNCTIONS = {
    "exp": (np.exp, 2, (-80, 80)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 3, (-80, 80)),
    "tanh": (np.tanh, 4, (-12, 12)),
    "log_sigmoid": (lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))), 4, (-80, 80)),
}


def vector_function(name, dtype, isa):
    device = Device.current()
    if isa not in device.isas:
        pytest.skip(f"this processor has no {isa}")
    device = device.with_isa(isa)
    real = {"float32": "float", "float64": "double"}[dtype]
    source = SOURCE.format(real=real, vector_bytes=device.vector_bytes, name=name)
    library = ctypes.CDLL(str(build(f"test-{name}-{dtype}", source, device)))

    def call(x):
        x = np.ascontiguousarray(x, dtype=dtype)
        y = np.full_like(x, np.nan)
        library.apply(
            ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_int64(x.size)
        )
        return y

    return call


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_bounds(name, dtype, isa) -> None:
    function = vector_function(name, dtype, isa)
    exact, bound, (low, high) = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    wide = rng.uniform(low, high, 200_001)
    small = rng.uniform(-1, 1, 100_000) * 10.0 ** rng.uniform(-30, 0, 100_000)
    x = np.concatenate((wide, small, [0.0, -0.0, low, high])).astype(dtype)
    reference = exact(x.astype(np.longdouble))
    y = function(x)
    ulp = np.spacing(np.abs(reference).astype(dtype)).astype(np.longdouble)
    assert np.max(np.abs(y.astype(np.longdouble) - reference) / ulp) <= bound


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ends_and_nan(dtype) -> None:
    inf, nan = np.inf, np.nan
    x = [-inf, inf, nan, -1e30, 1e30, -200.0, 200.0]
    isa = Device.current().isa
    tiny = {"float32": 1.5e-38, "float64": 1e-86}[dtype]  # sigmoid stops at the normal numbers
    results = {name: vector_function(name, dtype, isa)(x) for name in FUNCTIONS}
    for y in results.values():
        assert np.isnan(y[2])
        assert not np.isnan(np.delete(y, 2)).any()
    assert results["exp"][0] == 0
    assert results["exp"][1] == inf
    np.testing.assert_array_equal(results["tanh"][[0, 1, 3, 4]], [-1, 1, -1, 1])
    np.testing.assert_array_equal(results["sigmoid"][[1, 4, 6]], 1)
    assert 0 <= results["sigmoid"][0] <= tiny
    np.testing.assert_array_equal(
        results["log_sigmoid"][[1, 3, 4, 5]], np.array([0, x[3], 0, -200], dtype)
    )


def test_subnormal_results_are_right() -> None:
    x = np.linspace(-103, -88, 1000).astype(np.float32)
    y = vector_function("exp", "float32", Device.current().isa)(x)
    exact = np.exp(x.astype(np.float64))
    assert np.max(np.abs(y - exact)) <= 1.5 * np.finfo(np.float32).smallest_subnormal
    assert (y[:100] > 0).any()
