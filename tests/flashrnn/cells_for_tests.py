"""Cells that use what the common ones do not, and a throw-away one that no library has."""

from flashrnn import cell, minimum, tanh
from flashrnn.cells import indrnn, peephole_lstm


@cell(gates="u v w", recurrent="w u", input="v w", states="h k", parameters="q")
def shuffled(g, s, p):
    """Orders of R, Wx and b that disagree; a state that is another's old value."""
    return {"h": tanh(g.u + p.q * g.v) * minimum(g.w, 2.0), "k": s.h}


ALL = [peephole_lstm, indrnn, shuffled]
