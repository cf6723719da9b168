"""jax.lax.scan over the cell's equations, compiled by XLA for the CPU.

XLA's thread pool is made once per back end, as large as the environment's NPROC says or as the
processors that the process may use; so a change of the number of threads makes a new back end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from jax.extend.backend import clear_backends

from bench.layers.problem import Contender, Kind, Problem, Results
from bench.peers import equations
from flashrnn.ir.cell import DENSE

Arrays = dict[str, Any]

# jnp.maximum halves the gradient of a tie; the cells give it to the first
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": jnp.exp,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "log_sigmoid": jax.nn.log_sigmoid,
    "maximum": lambda x, y: jnp.where(x < y, y, x),
    "minimum": lambda x, y: jnp.where(y < x, y, x),
    "where": jnp.where,
    "stop_gradient": lax.stop_gradient,
}

_threads_of_backend = 0


def contender(problem: Problem, kind: Kind, threads: int) -> Contender:
    """The scan of any cell, with gradients by jax.vjp."""
    _use(threads)
    run = _layer(problem)
    arrays = {name: jnp.asarray(w.numpy()) for name, w in problem.weights.items()}
    inputs, d_h = jnp.asarray(problem.inputs.numpy()), jnp.asarray(problem.d_h.numpy())
    name = problem.input_name

    def train(x: Any, weights: Arrays, cotangent: Any) -> Arrays:
        if kind.d_inputs:
            h, back = jax.vjp(run, x, weights)
            d_x, d_weights = back(cotangent)
            rest = {f"d_{name}": d_x}
        else:
            h, back = jax.vjp(lambda w: run(x, w), weights)
            (d_weights,) = back(cotangent)
            rest = {}
        return {"h": h, **rest, **{f"d_{w}": d for w, d in d_weights.items()}}

    def infer(x: Any, weights: Arrays, _cotangent: Any) -> Arrays:
        return {"h": run(x, weights)}

    compiled = jax.jit(train if kind.d_weights else infer).lower(inputs, arrays, d_h).compile()

    def call() -> Arrays:
        results: Arrays = jax.block_until_ready(compiled(inputs, arrays, d_h))
        return results

    return Contender("jax.lax.scan", call, _read)


def _read(results: Arrays) -> Results:
    return {name: torch.from_numpy(np.array(x)) for name, x in results.items()}


def _use(threads: int) -> None:
    """The back end's thread pool of this size."""
    global _threads_of_backend  # noqa: PLW0603  (jax's back end is one per process, too)
    if threads == _threads_of_backend:
        return
    os.environ["NPROC"] = str(threads)
    jax.clear_caches()
    clear_backends()
    jax.config.update("jax_platforms", "cpu")
    _threads_of_backend = threads


def _layer(problem: Problem) -> Callable[[Any, Arrays], Any]:
    """inputs, weights -> h [T, B, N * D]; heads come first in a step, as in the plain loop."""
    cell, dims = problem.cell, problem.dims
    step = equations.step(cell, FUNCTIONS)
    B, T, N, D = dims.B, dims.T, dims.N, dims.D
    outer = [cell.gates.index(g) for g in cell.input]
    split = partial(jnp.split, axis=-1)

    def product(c: Any, a: Any, b: Any) -> Any:
        return c + a @ b

    def run(inputs: Any, weights: Arrays) -> Any:
        wx = inputs
        if "W" in weights:
            W = weights["W"]
            rows = inputs.reshape(T * B, -1) @ W.reshape(-1, W.shape[-1]).T
            wx = rows.reshape(T, B, len(outer), N, D)
        wx = (wx + weights["b"][jnp.array(outer)]).transpose(0, 3, 1, 2, 4).reshape(T, N, B, -1)
        shared, named = _weights(problem, weights)

        def body(states: tuple[Any, ...], now: Any) -> tuple[tuple[Any, ...], Any]:
            gate = equations.gates(cell, now, states[0], shared, split, product)
            new = step(gate, dict(zip(cell.states, states, strict=True)), named)
            return new, new[0]

        zeros = jnp.zeros((N, B, D), wx.dtype)
        if N == 1:
            wx, zeros = wx[:, 0], zeros[0]
        _, h = lax.scan(body, (zeros,) * len(cell.states), wx)
        return h if N == 1 else h.transpose(0, 2, 1, 3).reshape(T, B, N * D)

    return run


def _weights(problem: Problem, weights: Arrays) -> tuple[Arrays, dict[tuple[str, str], Any]]:
    """What `equations.gates` takes, and the per-unit weights."""
    cell, N = problem.cell, problem.dims.N
    R, b = weights["R"], weights["b"]
    unit = (lambda x: x[0]) if N == 1 else (lambda x: x[:, None])
    shared: Arrays = {}
    named: dict[tuple[str, str], Any] = {}
    if cell.recurrence == DENSE:
        R = R.transpose(1, 3, 0, 2).reshape(N, problem.dims.D, -1)
        own = [
            jnp.zeros_like(b[0]) if g in cell.input else b[cell.gates.index(g)]
            for g in cell.recurrent
        ]
        shared = {"R": R[0] if N == 1 else R, "b": unit(jnp.stack(own, 1).reshape(N, -1))}
    else:
        named |= {("recurrent", g): unit(R[k]) for k, g in enumerate(cell.recurrent)}
    for k, name in enumerate(cell.parameters):
        named[("parameter", name)] = unit(weights["parameters"][k])
    return shared, named
