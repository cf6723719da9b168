"""LSTM with one gate for input and forgetting (the CIFG variant of Greff et al. 2017)."""

from flashrnn.ir.cell import cell
from flashrnn.ir.ops import sigmoid, tanh


@cell(gates="f z o", states="h c")
def coupled_lstm(g, s):
    f = sigmoid(g.f)
    c = f * s.c + (1.0 - f) * tanh(g.z)
    return {"h": sigmoid(g.o) * tanh(c), "c": c}
