"""sLSTM: exponential gates with a normaliser n and a stabiliser m (Beck et al. 2024, 2.2)."""

from flashrnn.ir.cell import cell
from flashrnn.ir.ops import equal, exp, log_sigmoid, maximum, sigmoid, tanh, where


@cell(gates="i f z o", states="h c n m")
def slstm(g, s):
    a = log_sigmoid(g.f) + s.m
    m = where(equal(s.n, 0.0), g.i, maximum(g.i, a))
    i, f = exp(g.i - m), exp(a - m)
    c = f * s.c + i * tanh(g.z)
    n = maximum(f * s.n + i, 1.0)
    return {"h": sigmoid(g.o) * c / n, "c": c, "n": n, "m": m}
