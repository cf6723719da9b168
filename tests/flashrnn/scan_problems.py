"""Random problems for the scans, tilings forced on them, and how results are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from flashrnn.attention import ScanState, scan_attention
from flashrnn.runtime import scan_attention_kernels, scan_launch, triton_scan
from flashrnn.tiling.triton_scan import TritonScanTiling

NAMES = ("o", "m", "u", "w", "d_scores", "d_v", "d_m0", "d_u0", "d_w0")
DOUBLE = torch.float64


def random_state(G, N, D, generator, dtype=DOUBLE) -> ScanState:
    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=DOUBLE)

    parts = (normal(G, N), normal(G, N).abs() + 1, normal(G, N, D))
    return ScanState(*(x.to(dtype).requires_grad_() for x in parts))


def problem(B, T, N, D, *, G=None, dtype=DOUBLE, state=True, scale=1.0, seed=0):
    """scores, v and a state of G rows (None without), all requiring gradients."""
    g = torch.Generator().manual_seed(seed)
    s = (torch.randn(B, T, N, generator=g, dtype=DOUBLE) * scale).to(dtype).requires_grad_()
    v = torch.randn(B, T, N, D, generator=g, dtype=DOUBLE).to(dtype).requires_grad_()
    real = torch.promote_types(dtype, torch.float32)
    return s, v, random_state(G or B, N, D, g, real) if state else None


def everything(function, s, v, state, outputs=slice(None), seed=1, **options):
    """Results and gradients of all inputs, for random cotangents of the chosen outputs."""
    o, last = function(s, v, state, **options)
    results = (o, *last)[outputs]
    g = torch.Generator().manual_seed(seed)
    cotangents = [torch.randn(x.shape, generator=g, dtype=DOUBLE).to(x.dtype) for x in results]
    inputs = (s, v, *(state or ()))
    grads = torch.autograd.grad(results, inputs, cotangents, allow_unused=True)
    grads = [torch.zeros_like(x) if d is None else d for d, x in zip(grads, inputs, strict=True)]
    return dict(zip(NAMES, (*(x.detach() for x in (o, *last)), *grads), strict=False))


def cast(s, v, state, dtype=DOUBLE):
    """The same numbers in another dtype."""
    parts = [x.detach().to(dtype).requires_grad_() for x in (s, v, *(state or ()))]
    return parts[0], parts[1], ScanState(*parts[2:]) if state else None


def error(got, expected, floor=1e-300) -> float:
    """Largest error over the largest |expected|; infinite where they are finite elsewhere."""
    if not torch.equal(torch.isfinite(got), torch.isfinite(expected)):
        return torch.inf
    got, expected = got.double(), expected.double()
    difference = torch.where(got == expected, 0.0, (got - expected).abs())
    scale = torch.where(torch.isfinite(expected), expected.abs(), 0.0)
    return (difference.max() / scale.max().clamp_min(floor)).item() if got.numel() else 0.0


def assert_close(got, expected, bound) -> None:
    for name, value in expected.items():
        found = error(got[name], value, floor=1.0)  # some gradients are zero but for rounding
        assert found <= bound, f"{name}: {found:.1e} > {bound:.1e}"


@contextmanager
def tiling(monkeypatch, **changes) -> Iterator[None]:
    """Every scan within runs with this tiling; threads among the changes sets their number."""
    real = scan_launch.plan_for
    threads = changes.pop("threads", None)

    def plan_for(*arguments, training=False):
        plan = real(*arguments)
        problem = replace(plan.problem, threads=threads or plan.problem.threads)
        return scan_launch.load(problem, replace(plan.tiling, **changes), tuned=False)

    def forget() -> None:
        scan_attention_kernels._forward_forms.clear()
        scan_attention_kernels._backward_forms.clear()

    with monkeypatch.context() as m:
        forget()
        m.setattr(scan_attention_kernels, "plan_for", plan_for)
        m.setattr("flashrnn.runtime.linear_scan.plan_for", plan_for)
        m.setattr(scan_launch, "PARALLEL_NUMBERS", 0)
        yield
        forget()


@contextmanager
def triton_tiling(monkeypatch, t_per_block=16, d_per_program=32, t_per_chunk=1 << 20) -> Iterator:
    """Every Triton scan within runs with this tiling; one chunk unless said otherwise."""
    tiling = TritonScanTiling(t_per_block, d_per_program, t_per_chunk, num_warps=1)
    with monkeypatch.context() as m:
        m.setattr(triton_scan, "_plans", {})
        m.setattr(triton_scan.SCANS, "best", lambda *_: tiling)
        yield


def by_triton(s, v, state=None, **options):
    return scan_attention(s, v, state, **options, backend="triton")


def plain(s, v, state=None, **options):
    return scan_attention(s, v, state, **options, backend="cpu")
