"""Minimal gated unit (Zhou et al. 2016), its one gate after the product, as in our GRU."""

from flashrnn.ir.cell import cell
from flashrnn.ir.ops import sigmoid, tanh


@cell(gates="n_rec f n_in", recurrent="n_rec f", input="f n_in", states="h")
def minimal_gru(g, s):
    f = sigmoid(g.f)
    n = tanh(g.n_in + f * g.n_rec)
    return {"h": (1.0 - f) * s.h + f * n}
