"""Throw-away cells that use what no cell of the library does."""

from flashrnn import cell, maximum, minimum, sigmoid, tanh


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


ALL = [peephole, independent, shuffled]
