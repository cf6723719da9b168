"""IndRNN: each unit sees its own past alone (Li et al. 2018), with relu."""

from flashrnn.ir.cell import cell
from flashrnn.ir.ops import maximum


@cell(gates="z", states="h", recurrence="elementwise")
def indrnn(g, s):
    return {"h": maximum(g.z, 0.0)}
