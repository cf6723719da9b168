"""Loops that only move the tensors of a scan: how fast their streams can go, whatever is computed.

A copy reads one stream and writes one; attention's backward pass reads three. How much of a copy's
rate is left for such a loop depends on the caches, and what is left bounds every implementation.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import torch

from autotune.device import Device
from flashrnn.runtime.build import open_library

Tensor = torch.Tensor

_SOURCE = """\
// Sums of one or three streams, by stores through the caches or past them.
#include "cpu/storage.hpp"

struct Arguments {{
  const float* from[3];
  float* to;
  int64_t count, streams, past_caches;
}};
using S = flashrnn::Simd<float, {vector_bytes}>;
using M = flashrnn::Memory<S, float>;

template <int Streams, bool PastCaches>
void move(const Arguments* a) {{
  for (int64_t i = 0; i + S::lanes <= a->count; i += S::lanes) {{
    S::Vec x = S::load(a->from[0] + i);
    for (int k = 1; k < Streams; ++k) x += S::load(a->from[k] + i);
    if constexpr (PastCaches) M::stream(a->to + i, x);
    else S::store(a->to + i, x);
  }}
  flashrnn::fence();
}}

FLASHRNN_EXPORT int64_t flashrnn_move(const Arguments* a) {{
  if (a->streams == 1) a->past_caches ? move<1, true>(a) : move<1, false>(a);
  else a->past_caches ? move<3, true>(a) : move<3, false>(a);
  return 0;
}}
"""


def mover(sources: tuple[Tensor, ...], to: Tensor, *, past_caches: bool) -> Callable[[], None]:
    """A call that writes the sum of one or three tensors to another, all float32 of one shape.

    Only whole vectors are moved. past_caches: by non-temporal stores.
    """
    if len(sources) not in (1, 3):
        raise ValueError(f"one or three tensors are read, not {len(sources)}")
    device = Device.current()
    source = _SOURCE.format(vector_bytes=device.vector_bytes)
    library = open_library("streams", source, device, ("flashrnn_move",))
    addresses = [x.data_ptr() for x in sources] + [0] * (3 - len(sources))
    arguments = struct.pack(
        "=7q", *addresses, to.data_ptr(), to.numel(), len(sources), int(past_caches)
    )

    def move() -> None:
        library.flashrnn_move(arguments)

    return move
