"""Modules of any cell, and sLSTM with the initialisation of its authors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from flashrnn.cells import slstm
from flashrnn.errors import OptionError
from flashrnn.ir.cell import DENSE, Cell, cell_of
from flashrnn.nn.base import InCellOrder, Recurrent

Tensor = torch.Tensor
OptionalTensor = Tensor | None


class RNNLayer(Recurrent):
    """Layers of any cell, called as torch.nn.LSTM is.

        rnn = flashrnn.nn.RNNLayer(128, 256, cell="peephole_lstm", num_heads=4)
        output, (h, c) = rnn(x)     # x [T, B, 128]; output [T, B, 256]; h, c [1, B, 256]

    cell: a cell or its name. Parameters of each direction of each layer, the gates in the cell's
    order: weight_ih [G_w * hidden_size, I], weight_hh [G_r * hidden_size, head_dim]
    ([G_r * hidden_size] for an element-wise recurrence), bias [G * hidden_size], and unit
    [K, hidden_size], the cell's per-unit parameters, where it has some. The state is a tuple in the
    order of the cell's states, h first; a tensor where there is only h. The other arguments are
    those of `LSTM`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        cell: str | Cell,
        num_heads: int = 1,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        gradient_clip: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            cell_of(cell), input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, 0, device, dtype, num_heads=num_heads, zoneout=zoneout,
            recurrent_dropout=recurrent_dropout, gradient_clip=gradient_clip, backend=backend,
        )  # fmt: skip

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        cell, H = self.cell, self.hidden_size
        rows = len(cell.recurrent) * H
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (len(cell.input) * H, self._layer_input(layer)),
            "weight_hh": (rows, self.head_dim) if cell.recurrence == DENSE else (rows,),
        }
        if self.bias:
            shapes["bias"] = (len(cell.gates) * H,)
        if cell.parameters:
            shapes["unit"] = (len(cell.parameters), H)
        return shapes

    def _in_cell_order(self, parameters: Sequence[Tensor]) -> InCellOrder:
        """One direction's parameters: they are in the cell's order."""
        w, r, *rest = parameters
        b = rest.pop(0) if self.bias else None
        return w, r, b, rest[0] if rest else None

    def _wanted_in_cell_order(self, needs: Sequence[bool]) -> tuple[bool, bool, bool, bool]:
        """Which of them have a gradient, from which parameters need one."""
        w, r, *rest = needs
        b = self.bias and rest.pop(0)
        return w, r, b, bool(rest) and rest[0]

    def _gradients_of(
        self, w: OptionalTensor, r: OptionalTensor, b: OptionalTensor, unit: OptionalTensor
    ) -> tuple[OptionalTensor, ...]:
        """The parameters' gradients."""
        return (w, r, *((b,) if self.bias else ()), *((unit,) if self.cell.parameters else ()))

    def extra_repr(self) -> str:
        """Sizes, and every argument that is not its default; the cell, unless the class says it."""
        sizes = super().extra_repr()
        return f"{sizes}, cell={self.cell.name}" if type(self) is RNNLayer else sizes


class SLSTM(RNNLayer):
    """sLSTM (Beck et al. 2024, section 2.2): states (h, c, n, m), gates i f z o, heads.

        rnn = flashrnn.nn.SLSTM(128, 256, num_heads=4, batch_first=True)
        output, (h, c, n, m) = rnn(x)   # x [B, T, 128]; output [B, T, 256]; the states [1, B, 256]

    Initialised as in the authors' published code: input weights normal with the deviation
    sqrt(2 / (5 * inputs)) (Nguyen & Salazar 2019), recurrent weights zero, biases zero but for the
    forget gate's, which falls from 5 to -7 over the units of a head as
    5 - 12 (d / (D - 1)) ** (0.3 + 1.3 * layer / (num_layers - 1)): memories of many lengths, longer
    ones in later layers. zoneout: the rate of h, or (that of h, 0): c, n and m share a scale
    exp(m), so a mean of theirs at inference is no state. The other arguments are those of `LSTM`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        gradient_clip: float | None = None,
        backend: str = "auto",
    ) -> None:
        zoneout = zoneout if isinstance(zoneout, tuple) else (zoneout, 0.0)
        if zoneout[1:] != (0.0,):
            raise OptionError(
                f"zoneout={zoneout!r}: c, n and m of an sLSTM share a scale, so only h can be kept "
                "for a step: pass one number"
            )
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype, cell=slstm, num_heads=num_heads, zoneout=zoneout,
            recurrent_dropout=recurrent_dropout, gradient_clip=gradient_clip, backend=backend,
        )  # fmt: skip

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the class says."""
        for index, parameters in enumerate(self.all_weights):
            w, r, *bias = parameters
            torch.nn.init.normal_(w, 0.0, math.sqrt(2.0 / (5.0 * w.shape[1])))
            torch.nn.init.zeros_(r)
            if bias:
                depth = index // self.num_directions / max(1, self.num_layers - 1)
                gates = torch.nn.init.zeros_(bias[0]).view(-1, self.num_heads, self.head_dim)
                unit = torch.arange(self.head_dim, dtype=w.dtype, device=w.device)
                place = unit / max(1, self.head_dim - 1)
                gates[self.cell.gates.index("f")] = 5.0 - 12.0 * place ** (0.3 + 1.3 * depth)
