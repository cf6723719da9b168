"""LSTM, GRU and RNN with the parameters, gate orders and call of torch.nn's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flashrnn.cells import elman, elman_relu, gru, lstm
from flashrnn.errors import OptionError
from flashrnn.ir.cell import Cell
from flashrnn.nn.base import InCellOrder, Recurrent

Tensor = torch.Tensor
OptionalTensor = Tensor | None


class TorchLayout(Recurrent):
    """Parameters weight_ih, weight_hh, bias_ih, bias_hh and weight_hr as torch.nn has them."""

    @property
    def mode(self) -> str:
        """torch.nn's name for the cell."""
        return self.cell.name.upper()

    def _shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        rows = len(self.cell.input) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, self._layer_input(layer)),
            "weight_hh": (rows, self.output_size // self.num_heads),
        }
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.head_dim)
        return shapes

    def _in_cell_order(self, parameters: Sequence[Tensor]) -> InCellOrder:
        """One direction's parameters, but for a projection, with gates as the cell has them."""
        w, r, *biases = parameters
        return w, self._rotated(r, 1), self._joined_bias(*biases) if biases else None, None

    def _wanted_in_cell_order(self, needs: Sequence[bool]) -> tuple[bool, bool, bool, bool]:
        """Which of them have a gradient, from which parameters need one."""
        w, r, *biases = needs
        return w, r, any(biases), False

    def _gradients_of(
        self, w: OptionalTensor, r: OptionalTensor, b: OptionalTensor, unit: OptionalTensor
    ) -> tuple[OptionalTensor, ...]:
        """The parameters' gradients from those of `_in_cell_order`."""
        d_r = None if r is None else self._rotated(r, -1)
        if not self.bias:
            return w, d_r
        return (w, d_r, *((None, None) if b is None else self._parted_bias(b)))

    def _rotated(self, r: Tensor, gates: int) -> Tensor:
        """r [G_r * hidden_size, P] from torch.nn's order of gates into the cell's; back by -1."""
        return r

    def _joined_bias(self, b_in: Tensor, b_rec: Tensor) -> Tensor:
        """The cell's bias [G * hidden_size] from torch.nn's two.

        A difference, so that the gradients are computed apart. Those of a sum may be one memory
        (views of it, or what torch.compile makes of them), and whoever changes one in place, a
        clip, a scaler or another backward(), would change both.
        """
        return torch.sub(b_in, b_rec, alpha=-1)

    def _parted_bias(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of torch.nn's two biases from that of the cell's."""
        return d, d.clone()


class LSTM(TorchLayout):
    """torch.nn.LSTM on fused kernels; gates i f g o, states (h, c).

        rnn = flashrnn.nn.LSTM(128, 256, num_layers=2, batch_first=True)
        output, (h, c) = rnn(x)     # x [B, T, 128]; output [B, T, 256]; h, c [2, B, 256]

    Arguments, parameters (weight_ih_l0 [4 * hidden_size, input_size], ...), initialisation and the
    call are torch.nn.LSTM's (proj_size: Sak et al. 2014); see `forward` and `step`. And:
    num_heads: heads that do not mix in the recurrence; weight_hh is [4 * hidden_size, head_dim]
    (weight_hr [proj_size, head_dim]). zoneout: the rate at which units keep their state, one
    number or (that of h, that of c) (Krueger et al. 2017). recurrent_dropout: the rate at which
    weights of weight_hh are zero, drawn once per call (Merity et al. 2018). gradient_clip: a bound
    for what flows back through time into h (before projection). backend: see `flashrnn.flashrnn`.
    Raises OptionError, ArgumentError and BackendError, InputError when called.
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
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        gradient_clip: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            lstm, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype, num_heads=num_heads, zoneout=zoneout,
            recurrent_dropout=recurrent_dropout, gradient_clip=gradient_clip, backend=backend,
        )  # fmt: skip


class GRU(TorchLayout):
    """torch.nn.GRU on fused kernels; gates r z n, its reset gate after the product; state h.

        rnn = flashrnn.nn.GRU(128, 256, bidirectional=True)
        output, h = rnn(x)          # x [T, B, 128]; output [T, B, 512]; h [2, B, 256]

    Arguments, parameters and the call are torch.nn.GRU's; the others as in `LSTM`, zoneout one
    number. Raises as `LSTM`.
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
        proj_size: int = 0,
        num_heads: int = 1,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        gradient_clip: float | None = None,
        backend: str = "auto",
    ) -> None:
        _refuse_projection(proj_size)
        super().__init__(
            gru, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            0, device, dtype, num_heads=num_heads, zoneout=zoneout,
            recurrent_dropout=recurrent_dropout, gradient_clip=gradient_clip, backend=backend,
        )  # fmt: skip

    def _rotated(self, r: Tensor, gates: int) -> Tensor:
        # torch.nn has (r, z, n), the cell (n, r, z)
        return r.roll(gates * self.hidden_size, 0)

    def _joined_bias(self, b_in: Tensor, b_rec: Tensor) -> Tensor:
        two = 2 * self.hidden_size
        return torch.cat((b_rec[two:], b_in[:two] + b_rec[:two], b_in[two:]))  # n_rec r z n_in

    def _parted_bias(self, d: Tensor) -> tuple[Tensor, Tensor]:
        H = self.hidden_size
        n_rec, gates, n_in = d[:H], d[H : 3 * H], d[3 * H :]
        return torch.cat((gates, n_in)), torch.cat((gates, n_rec))


class RNN(TorchLayout):
    """torch.nn.RNN on fused kernels: the Elman network, with nonlinearity "tanh" or "relu".

        rnn = flashrnn.nn.RNN(128, 256)
        output, h = rnn(x)          # x [T, B, 128]; output [T, B, 256]; h [1, B, 256]

    Arguments, parameters and the call are torch.nn.RNN's; the others as in `LSTM`, zoneout one
    number. Raises as `LSTM`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
        num_heads: int = 1,
        zoneout: float = 0.0,
        recurrent_dropout: float = 0.0,
        gradient_clip: float | None = None,
        backend: str = "auto",
    ) -> None:
        _refuse_projection(proj_size)
        cells: dict[str, Cell] = {"tanh": elman, "relu": elman_relu}
        if nonlinearity not in cells:
            raise OptionError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        super().__init__(
            cells[nonlinearity], input_size, hidden_size, num_layers, bias, batch_first, dropout,
            bidirectional, 0, device, dtype, num_heads=num_heads, zoneout=zoneout,
            recurrent_dropout=recurrent_dropout, gradient_clip=gradient_clip, backend=backend,
        )  # fmt: skip
        self.nonlinearity = nonlinearity

    @property
    def mode(self) -> str:
        """torch.nn's name for the cell."""
        return f"RNN_{self.nonlinearity.upper()}"

    def extra_repr(self) -> str:
        """Sizes, and every argument that is not its default."""
        other = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return super().extra_repr() + other


def _refuse_projection(proj_size: int) -> None:
    if proj_size:
        raise OptionError("proj_size argument is only supported for LSTM, not RNN or GRU")
