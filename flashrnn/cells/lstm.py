"""Long short-term memory (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al.)."""

from flashrnn.ir.cell import cell
from flashrnn.ir.ops import sigmoid, tanh


@cell(gates="i f z o", states="h c")
def lstm(g, s):
    c = sigmoid(g.f) * s.c + sigmoid(g.i) * tanh(g.z)
    return {"h": sigmoid(g.o) * tanh(c), "c": c}
