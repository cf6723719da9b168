"""Triton kernels for the tests of the compiler report."""

import triton
import triton.language as tl


@triton.jit
def recurrence(x, r, h, T, D: tl.constexpr, ROWS: tl.constexpr):
    """h = sigmoid(h R + x), T times: one loop, R in shared memory or in registers."""
    at = tl.arange(0, ROWS)[:, None] * D + tl.arange(0, D)[None, :]
    weights = tl.load(r + tl.arange(0, D)[:, None] * D + tl.arange(0, D)[None, :])
    state = tl.zeros((ROWS, D), dtype=tl.float32)
    for t in range(T):
        state = tl.dot(state.to(weights.dtype), weights) + tl.load(x + t * ROWS * D + at)
        state = 1.0 / (1.0 + tl.exp(-state))
        tl.store(h + t * ROWS * D + at, state.to(weights.dtype))


@triton.jit
def nested(x, y, T, K, SIZE: tl.constexpr):
    """A sum over K inside of a loop over T, then a shorter loop beside it."""
    at = tl.arange(0, SIZE)
    state = tl.zeros((SIZE,), dtype=tl.float32)
    for t in range(T):
        for k in range(K):
            state += tl.load(x + k * SIZE + at)
        tl.store(y + t * SIZE + at, tl.exp(state))
    for t in range(T):
        tl.store(y + t * SIZE + at, state)
