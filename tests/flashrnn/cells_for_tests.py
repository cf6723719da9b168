"""Throw-away cells that together use every feature of the declaration."""

from flashrnn import cell, equal, exp, log_sigmoid, maximum, minimum, sigmoid, tanh, where


@cell(gates="n_rec r z n_in", recurrent="n_rec r z", input="r z n_in", states="h")
def gated(g, s):
    """The GRU: recurrent and input part of one gate apart, h used outside the product."""
    r, z = sigmoid(g.r), sigmoid(g.z)
    n = tanh(g.n_in + r * g.n_rec)
    return {"h": z * s.h + (1.0 - z) * n}


@cell(gates="i f z o", states="h c n m")
def stabilised(g, s):
    """The sLSTM (Beck et al. 2024): four states, maximum, where."""
    a = log_sigmoid(g.f) + s.m
    m = where(equal(s.n, 0.0), g.i, maximum(g.i, a))
    i, f = exp(g.i - m), exp(a - m)
    c = f * s.c + i * tanh(g.z)
    n = maximum(f * s.n + i, 1.0)
    return {"h": sigmoid(g.o) * c / n, "c": c, "n": n, "m": m}


@cell(gates="i f z o", states="h c", parameters="p_i p_o")
def peephole(g, s, p):
    """Per-unit parameters."""
    c = sigmoid(g.f) * s.c + sigmoid(g.i + p.p_i * s.c) * tanh(g.z)
    return {"h": sigmoid(g.o + p.p_o * c) * tanh(c), "c": c}


@cell(gates="a", states="h", recurrence="elementwise")
def independent(g, s):
    """The IndRNN: no product at all."""
    return {"h": maximum(g.a, 0.0)}


@cell(gates="u v w", recurrent="w u", input="v w", states="h k", parameters="q")
def shuffled(g, s, p):
    """Orders of R, Wx and b that disagree; a state that is another's old value."""
    return {"h": tanh(g.u + p.q * g.v) * minimum(g.w, 2.0), "k": s.h}


ALL = [gated, stabilised, peephole, independent, shuffled]
