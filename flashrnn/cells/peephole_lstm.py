"""LSTM whose gates see the cell state (Gers & Schmidhuber 2000, "Recurrent nets that time")."""

from flashrnn.ir.cell import cell
from flashrnn.ir.ops import sigmoid, tanh


@cell(gates="i f z o", states="h c", parameters="p_i p_f p_o")
def peephole_lstm(g, s, p):
    i, f = sigmoid(g.i + p.p_i * s.c), sigmoid(g.f + p.p_f * s.c)
    c = f * s.c + i * tanh(g.z)
    return {"h": sigmoid(g.o + p.p_o * c) * tanh(c), "c": c}
