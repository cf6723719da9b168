"""Gated recurrent unit, its reset gate after the product (Cho et al. 2014, as in cuDNN)."""

from flashrnn.ir.cell import cell
from flashrnn.ir.ops import sigmoid, tanh


@cell(gates="n_rec r z n_in", recurrent="n_rec r z", input="r z n_in", states="h")
def gru(g, s):
    n = tanh(g.n_in + sigmoid(g.r) * g.n_rec)
    z = sigmoid(g.z)
    return {"h": z * s.h + (1.0 - z) * n}
