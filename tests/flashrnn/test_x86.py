"""The operations of csrc/cpu/x86.hpp: builtins of GCC and intrinsics are the same."""

import ctypes
import platform
from dataclasses import replace

import pytest
import torch

from autotune.device import Device
from flashrnn.runtime.build import build, open_library

DEVICE = Device.current()
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="x86.hpp is read on x86-64 alone"
)

# Each operation of a type's vectors, from a, b, c to one vector of results behind the other.
OPERATIONS = """\
{intrinsics}
#include "cpu/storage.hpp"
using namespace flashrnn;

template <class R>
void all(const R* a, const R* b, const R* c, R* to, int64_t count) {{
  using S = Simd<R, {bytes}>;
  const auto next = [&](auto v) {{ S::store(to, v); to += S::lanes; }};
  next(S::fma(S::load(a), S::load(b), S::load(c)));
  if constexpr (S::scales) next(S::scale(S::load(a), S::broadcast(-3)));
  else next(S::load(a) * R(0.125));
  next(S::clamp(S::load(a), R(-0.5), R(0.75)));
  next(S::load(a, count));
  S::store(to, S::load(b), count);
  to += S::lanes;
  next(S::broadcast(S::any(~S::first(S::lanes - 1))));
  next(S::broadcast(S::any(S::load(b) != S::load(b))));
  Memory<S, R>::stream(to, S::load(c));
  to += S::lanes;
  if constexpr (sizeof(R) == 4) {{
    Float16 halves[S::lanes];
    Memory<S, Float16>::store(halves, S::load(a));
    next(Memory<S, Float16>::load(halves));
  }}
  fence();
}}

struct Arguments {{ const void *a, *b, *c; void* to; int64_t count; }};
template <class R>
int64_t run(const Arguments* x) {{
  all((const R*)x->a, (const R*)x->b, (const R*)x->c, (R*)x->to, x->count);
  return 0;
}}
FLASHRNN_EXPORT int64_t run_float32(const Arguments* x) {{ return run<float>(x); }}
FLASHRNN_EXPORT int64_t run_float64(const Arguments* x) {{ return run<double>(x); }}
"""
ENTRIES = ("run_float32", "run_float64")
ISAS = {"generic": 16, "avx2": 32, "avx512": 64}


def source(isa: str, *, intrinsics: bool) -> str:
    define = "#define FLASHRNN_INTRINSICS" if intrinsics else ""
    return OPERATIONS.format(intrinsics=define, bytes=ISAS[isa])


def results(isa: str, dtype: torch.dtype, count: int, *, intrinsics: bool) -> torch.Tensor:
    library = open_library(
        "test-x86", source(isa, intrinsics=intrinsics), DEVICE.with_isa(isa), ENTRIES
    )
    lanes = ISAS[isa] // dtype.itemsize
    g = torch.Generator().manual_seed(3)
    a, b, c = (torch.randn(lanes, generator=g, dtype=dtype) for _ in range(3))
    a[1] = float("nan")
    # aligned to the widest vector, as a store past the caches asks for
    space = torch.full((9 * lanes + 64,), 7.0, dtype=dtype)
    to = space[(-space.data_ptr() % 64) // dtype.itemsize :][: 9 * lanes]
    pointers = [x.data_ptr() for x in (a, b, c, to)]
    run = library.run_float32 if dtype == torch.float32 else library.run_float64
    run(bytes((ctypes.c_int64 * 5)(*pointers, count)))
    return to.clone()


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa in DEVICE.isas])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_builtins_do_what_intrinsics_do(isa, dtype) -> None:
    """To the bit, and what each should: NaN passes a clamp, masks keep to their lanes."""
    lanes = ISAS[isa] // dtype.itemsize
    for count in range(1, lanes + 1):
        ours, theirs = (results(isa, dtype, count, intrinsics=i) for i in (False, True))
        assert torch.equal(ours.nan_to_num(99.0), theirs.nan_to_num(99.0))
        _, scaled, clamped, loaded, stored, some, none, *_ = ours.split(lanes)
        assert scaled[1].isnan() and torch.equal((8 * scaled[2:]).clamp(-0.5, 0.75), clamped[2:])
        assert clamped[1].isnan() and clamped.nan_to_num(0).abs().max() <= 0.75
        assert (loaded[count:] == 0).all() and (stored[count:] == 7).all()
        assert (some == 1).all() and (none == 0).all()


@pytest.mark.parametrize("intrinsics", [False, True])
def test_what_may_not_run_here_compiles(intrinsics) -> None:
    device = replace(DEVICE, isa="avx512", vector_bytes=64)
    assert build("test-x86", source("avx512", intrinsics=intrinsics), device).is_file()
