"""Suite `scan`: attention over prefixes beside a copy of the same bytes, and beside its peers.

What a scan must move is counted (scores, values and outputs once; for the backward pass values,
outputs and their gradients in, two gradients out) and set against what `copy_` moves per second on
the same tensor, and what loops move that only read and write the same tensors, in the same
interleaved run. Outputs are preallocated there; with fresh outputs,
as the library and every peer make them, page faults are a part of the time.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from autotune.measure import Timing, interleave
from bench import files
from bench.machine import Machine, confined
from bench.scan_streams import mover
from bench.suites import Suite
from flashrnn.attention import ScanState, scan_attention, step
from flashrnn.attention.family import eager_composite
from flashrnn.runtime import scan_attention_kernels as kernels
from flashrnn.scan_reference import attention_reference as reference

Tensor = torch.Tensor
Calls = dict[str, Callable[[], object]]
Row = dict[str, Any]

HEADS = ((8, 64), (4, 128), (32, 16))
LENGTHS = (64, 512, 4096, 16384, 65536)
# Beyond these a quadratic peer takes minutes or all memory.
MOST_QUADRATIC, MOST_FUSED_QUADRATIC = 1024, 4096
POSITIONS = (100, 10_000, 1_000_000)
CACHES = (1_000, 10_000, 100_000, 1_000_000)
SAMPLE_SECONDS = 5e-3
STORES = {"through the caches": False, "past the caches": True}


class Problem:
    """Random inputs of one shape, and outputs to write into."""

    def __init__(self, T: int, N: int, D: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.T, self.N, self.D = T, N, D
        self.s = torch.randn(1, T, N, generator=g)
        self.v, self.d_o = (torch.randn(1, T, N, D, generator=g) for _ in range(2))
        self.o, self.d_v, self.copy = (torch.zeros_like(self.v) for _ in range(3))
        self.d_s = torch.zeros_like(self.s)
        state = ScanState.empty(1, N, D, self.v)
        self.last = (state.m.clone(), state.u.clone(), state.w.clone())
        self.saved = torch.zeros(kernels.slots(1, T, packed=False), 2, N)
        inputs = (self.s, self.v, None, None, False)
        self._inference = kernels.forward_ready(*inputs, self.o, self.last, None)
        self._training = kernels.forward_ready(*inputs, self.o, self.last, self.saved)
        self._gradients = kernels.backward_ready(
            *inputs, self.o, self.last, self.saved, self.d_o, None, self.d_s, self.d_v, None
        )

    @property
    def bytes(self) -> dict[str, int]:
        """What each call must move."""
        values, scores = self.v.numel() * 4, self.s.numel() * 4
        forward = 2 * values + scores
        return {"forward": forward, "forward+backward": forward + 4 * values + 2 * scores}

    def forward(self) -> None:
        self._inference.run()

    def both(self) -> None:
        self._training.run()
        self._gradients.run()

    def bare(self, name: str, *, backward: bool) -> Calls:
        """Loops that only move the values, outputs and gradients of a call, by kind of store."""
        calls: Calls = {}
        for stores, past_caches in STORES.items():
            there = mover((self.v,), self.copy, past_caches=past_caches)
            back = mover((self.v, self.o, self.d_o), self.d_v, past_caches=past_caches)
            calls[f"{name}, {stores}"] = partial(_each, (there, back)) if backward else there
        return calls


def bandwidth(problem: Problem, seconds: float) -> Row:
    """Ours with preallocated outputs against two copies, and against loops with the same streams.

    A bare loop stores through the caches or past them, whichever is faster.
    """
    copies: Calls = {
        "copy_": lambda: problem.copy.copy_(problem.v),
        "non-temporal copy": mover((problem.v,), problem.copy, past_caches=True),
    }
    calls: Calls = {"forward": problem.forward, "forward+backward": problem.both, **copies}
    calls |= problem.bare("bare forward", backward=False)
    calls |= problem.bare("bare forward+backward", backward=True)
    timings = interleave(calls, seconds=seconds, sample_seconds=SAMPLE_SECONDS)
    copied = 2 * problem.v.numel() * 4

    def moved(name: str) -> int:
        if "bare" in name:
            return copied * (3 if "backward" in name else 1)
        return problem.bytes.get(name, copied)

    rates = {name: moved(name) / timings[name].median for name in calls}
    for name in problem.bytes:
        both_ways = [rates.pop(f"bare {name}, {stores}") for stores in STORES]
        rates[f"bare {name}"] = max(both_ways)
    shares = {
        f"{name} of {peer}": rates[name] / rates[peer]
        for name in problem.bytes
        for peer in (*copies, f"bare {name}")
    }
    shares |= {
        f"bare {name} of copy_": rates[f"bare {name}"] / rates["copy_"] for name in problem.bytes
    }
    per_token = {
        f"{name} per token, in copied tokens": timings[name].median / timings["copy_"].median
        for name in problem.bytes
    }
    return {
        "kind": "bandwidth", "T": problem.T, "N": problem.N, "D": problem.D,
        "bytes_per_second": rates, "shares": shares, "per_token": per_token,
        "samples": _samples(timings),
    }  # fmt: skip


def peers(problem: Problem, seconds: float) -> Row:
    """Ours with fresh outputs against what else computes the same, forward and backward."""
    s, v = problem.s.clone().requires_grad_(), problem.v.clone().requires_grad_()
    runs: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "flashrnn": lambda s, v: scan_attention(s, v)[0],
        "eager composite": eager_composite,
    }
    if problem.T <= MOST_QUADRATIC:
        runs["masked softmax"] = lambda s, v: reference(s, v)[0]
    if problem.T <= MOST_FUSED_QUADRATIC:
        runs["scaled_dot_product_attention"] = expanded_query
    exact = reference(s.double(), v.double())[0] if problem.T <= MOST_QUADRATIC else None
    calls: Calls = {}
    errors = {}
    for name, run in runs.items():
        if exact is not None:
            errors[name] = ((run(s, v) - exact).abs().max() / exact.abs().max()).item()

        def both(run: Callable[[Tensor, Tensor], Tensor] = run) -> object:
            return torch.autograd.grad(run(s, v), (s, v), problem.d_o)

        calls[name] = both
    if importlib.util.find_spec("jax") is not None:
        calls["jax.lax.associative_scan"] = _jax(problem)
    timings = interleave(calls, seconds=seconds, sample_seconds=SAMPLE_SECONDS)
    ours = timings["flashrnn"].median
    return {
        "kind": "peers, forward+backward, fresh outputs from the pool of mapped memory",
        "T": problem.T, "N": problem.N, "D": problem.D, "errors": errors,
        "times_ours": {k: t.median / ours for k, t in timings.items() if k != "flashrnn"},
        "samples": _samples(timings),
    }  # fmt: skip


def expanded_query(s: Tensor, v: Tensor) -> Tensor:
    """Causal attention whose query is the constant 1 and whose keys are the scores."""
    k = s.transpose(1, 2).unsqueeze(-1)
    q = torch.ones_like(k)
    o = torch.nn.functional.scaled_dot_product_attention(
        q, k, v.transpose(1, 2), is_causal=True, scale=1.0
    )
    return o.transpose(1, 2)


def streaming(N: int, D: int, seconds: float) -> Row:
    """One token: ours at several positions, a cache of keys and values at several lengths."""
    s_t, v_t, q = torch.randn(1, N), torch.randn(1, N, D), torch.randn(1, N, 1, D)
    calls: Calls = {}
    sizes = {}
    for position in POSITIONS:
        state = ScanState.empty(1, N, D, v_t)
        for start in range(0, position, 10_000):
            count = min(10_000, position - start)
            state = scan_attention(torch.randn(1, count, N), torch.randn(1, count, N, D), state)[1]
        name = f"step at {position}"
        sizes[name] = sum(x.untyped_storage().nbytes() for x in state)

        def ours(state: ScanState = state) -> object:
            return step(state, s_t, v_t)

        calls[name] = ours
    for length in CACHES:
        if 8 * length * N * D > 8 << 30:
            continue
        k, v = torch.zeros(1, N, length, D), torch.zeros(1, N, length, D)
        name = f"cache of {length}"
        sizes[name] = 2 * k.numel() * 4

        def attend(k: Tensor = k, v: Tensor = v) -> object:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

        calls[name] = attend
    with torch.no_grad():
        timings = interleave(calls, seconds=seconds, sample_seconds=SAMPLE_SECONDS)
    return {
        "kind": "streaming", "N": N, "D": D, "bytes": sizes,
        "seconds": {k: t.median for k, t in timings.items()}, "samples": _samples(timings),
    }  # fmt: skip


def rows(lengths: tuple[int, ...], seconds: float) -> Iterator[Row]:
    """Every case, one at a time."""
    for N, D in HEADS:
        for T in lengths:
            problem = Problem(T, N, D)
            yield bandwidth(problem, seconds)
            yield peers(problem, seconds)
    yield streaming(*HEADS[0], seconds)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the suite."""
    parser.add_argument("--threads", type=int, default=1, help="for everyone (1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of samples per case (3)")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="T")


def run(options: argparse.Namespace, out: Console, file: Path) -> None:
    """Run, print each case, and keep the file whole after each."""
    machine, found = asdict(Machine.current()), []
    with confined(options.threads):
        for row in rows(tuple(options.lengths), options.seconds):
            found.append(row)
            _print(row, out)
            data = {"suite": "scan", "machine": machine, "threads": options.threads, "rows": found}
            files.write(file, data)


def show(out: Console, file: Path) -> None:
    """Print a file that `run` wrote."""
    for row in files.read(file)["rows"]:
        _print(row, out)


def _print(row: Row, out: Console) -> None:
    sizes = " ".join(f"{k}={row[k]}" for k in ("T", "N", "D") if k in row)
    table = Table(title=f"{row['kind']}: {sizes}", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, rate in row.get("bytes_per_second", {}).items():
        table.add_row(name, f"{rate / 1e9:.1f} GB/s")
    for name, share in row.get("shares", {}).items():
        table.add_row(name, f"{share:.0%}")
    for name, count in row.get("per_token", {}).items():
        table.add_row(name, f"{count:.2f}")
    for name, times in row.get("times_ours", {}).items():
        table.add_row(name, f"{times:.1f} × ours")
    for name, seconds in row.get("seconds", {}).items():
        table.add_row(name, f"{seconds * 1e6:.1f} µs, {row['bytes'][name]} bytes")
    out.print(table)


def _each(calls: tuple[Callable[[], object], ...]) -> None:
    for call in calls:
        call()


def _samples(timings: dict[str, Timing]) -> dict[str, list[float]]:
    return {name: list(t.samples) for name, t in timings.items()}


def _jax(problem: Problem) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp

    def merge(a: Any, b: Any) -> Any:
        m = jnp.maximum(a[0], b[0])
        of_a, of_b = jnp.exp(a[0] - m), jnp.exp(b[0] - m)
        w = a[2] * of_a[..., None] + b[2] * of_b[..., None]
        return m, a[1] * of_a + b[1] * of_b, w

    def forward(s: Any, v: Any) -> Any:
        _, u, w = jax.lax.associative_scan(merge, (s, jnp.ones_like(s), v), axis=1)
        return w / u[..., None]

    s, v, d_o = (jnp.asarray(x.numpy()) for x in (problem.s, problem.v, problem.d_o))

    both = jax.jit(lambda s, v: jax.vjp(forward, s, v)[1](d_o))
    return lambda: jax.block_until_ready(both(s, v))


SCAN = Suite(add_arguments, run, show)
