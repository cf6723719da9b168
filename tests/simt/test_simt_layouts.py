"""Fragments of the warp's matrix instructions, stated apart from the model: by strides.

The layouts are the functions (lane, value) -> element of NVIDIA's CuTe (mma_traits_sm80.hpp), with
elements of A and C numbered row + 16 column, those of B column + 8 row.
"""

from pathlib import Path

import numpy as np
import pytest
from simt_driver import Library, array, pointers

SOURCE = (Path(__file__).parent / "kernels.cpp").read_text()
RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def library():
    return Library(SOURCE)


def at(lane_strides, value_shape, value_strides) -> np.ndarray:
    """The element of each lane and value, [32, values]; lanes count as (4, 8)."""
    lanes = np.arange(32)
    of_lane = lanes % 4 * lane_strides[0] + lanes // 4 * lane_strides[1]
    values = np.zeros(1, int)
    for size, stride in zip(value_shape, value_strides, strict=True):
        values = (np.arange(size)[:, None] * stride + values[None]).reshape(-1)
    return of_lane[:, None] + values[None]


A16 = at((32, 1), (2, 2, 2), (16, 8, 128))
B16 = at((16, 1), (2, 2), (8, 64))
A8 = at((16, 1), (2, 2), (8, 64))
B8 = at((8, 1), (2,), (32,))
C = at((32, 1), (2, 2), (16, 8))


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_layouts_reach_each_element_once() -> None:
    for layout, size in ((A16, 256), (B16, 128), (A8, 128), (B8, 64), (C, 128)):
        assert sorted(layout.reshape(-1)) == list(range(size))


@pytest.mark.parametrize("kind, terms", [("bfloat16", 16), ("float16", 16), ("tf32", 8)])
def test_products(kind, terms, library) -> None:
    # small integers: exact in every type and sum
    a, b = RNG.integers(-8, 9, (16, terms)), RNG.integers(-8, 9, (terms, 8))
    c = RNG.integers(-8, 9, (16, 8)).astype(np.float32)
    flat_a, flat_b = a.T.reshape(-1), b.reshape(-1)
    if kind == "tf32":
        in_a = flat_a[A8].astype(np.float32).view(np.uint32)
        in_b = flat_b[B8].astype(np.float32).view(np.uint32)
    else:
        bits = bfloat16_bits if kind == "bfloat16" else lambda x: x.astype(np.float16).view("u2")
        in_a, in_b = bits(flat_a[A16]).view(np.uint32), bits(flat_b[B16]).view(np.uint32)
    flat_c = c.T.reshape(-1)[C]
    out = array("out", np.zeros((32, 4), np.float32), "output")
    inputs = [array("a", in_a), array("b", in_b), array("c", flat_c)]
    n = {"bfloat16": 0, "float16": 1, "tf32": 2}[kind]
    regions = [out.region, *(i.region for i in inputs)]
    assert library.run("product", pointers(out, *inputs, n=n), regions) == []
    np.testing.assert_array_equal(out.values, (a @ b + c).T.reshape(-1)[C])


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(transposed, library) -> None:
    """Lane l gets elements 2 (l % 4) and the next of row l / 4; transposed, of column l / 4."""
    matrices = RNG.integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    out = array("out", np.zeros((4, 32, 2), np.uint16), "output")
    rows = array("rows", matrices)
    name = "matrices_transposed" if transposed else "matrices"
    regions = [out.region, rows.region]
    assert library.run(name, pointers(out, rows), regions, shared=512) == []
    expected = matrices.transpose(0, 2, 1) if transposed else matrices
    np.testing.assert_array_equal(out.values, expected.reshape(4, 32, 2))


def test_tf32_rounds_to_nearest_and_products_cut_off(library) -> None:
    x = np.array([1.0, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11, np.inf, np.nan], np.float32)
    values = np.pad(x, (0, 26))
    out, source = array("out", np.zeros(32, np.float32), "output"), array("in", values)
    assert library.run("rounded", pointers(out, source), [out.region, source.region]) == []
    expected = np.array([1.0, 1 + 2**-10, 1.0, -1 - 2**-10, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(out.values[:6], expected)

    a = np.zeros((32, 4), np.float32)
    b, c = np.zeros((32, 2), np.float32), np.zeros((32, 4), np.float32)
    a[0, 0], b[0, 0] = 1 + 2**-10 + 2**-11, 1.0  # row 0, column 0, term 0
    result = array("out", np.zeros((32, 4), np.float32), "output")
    inputs = [array("a", a.view(np.uint32)), array("b", b.view(np.uint32)), array("c", c)]
    regions = [result.region, *(i.region for i in inputs)]
    assert library.run("product", pointers(result, *inputs, n=2), regions) == []
    assert result.values[0, 0] == 1 + 2**-10


def test_shared_memory_begins_poisoned(library) -> None:
    out = array("out", np.zeros(32, np.uint32), "output")
    assert library.run("poison", pointers(out), [out.region], shared=128) == []
    assert (out.values == 0xFFFFFFFF).all()
