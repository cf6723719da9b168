"""The simple recurrent network (Elman 1990), with tanh or relu."""

from flashrnn.ir.cell import cell
from flashrnn.ir.ops import maximum, tanh


@cell(gates="z", states="h")
def elman(g, s):
    return {"h": tanh(g.z)}


@cell(gates="z", states="h")
def elman_relu(g, s):
    return {"h": maximum(g.z, 0.0)}
