"""The migration page: it names everything, its code runs, and its differences are as it says."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from flashrnn import nn

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "migrating-from-torch-nn.md").read_text(encoding="utf-8")


def test_its_code_runs() -> None:
    space: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
        exec(block, space)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_it_names_every_argument_and_method(name) -> None:
    theirs, ours = getattr(torch.nn, name), getattr(nn, name)
    arguments = set(inspect.signature(torch.nn.RNNBase.__init__).parameters) - {"self", "mode"}
    arguments |= {"nonlinearity"} if name == "RNN" else set()
    mine = set(inspect.signature(ours.__init__).parameters) - {"self"}
    assert arguments <= mine
    inherited = set(dir(torch.nn.Module)) | set(torch.nn.Module().__dict__)
    methods = {m for m in dir(theirs) if not m.startswith("_")} - inherited
    attributes = {a for a in theirs(3, 4).__dict__ if not a.startswith("_")} - inherited
    extra = {m for m in dir(ours) if not m.startswith("_")} - inherited
    extra -= {"num_directions", "head_dim", "output_size", "first_weight"}  # conveniences
    for word in arguments | mine | methods | attributes | extra:
        assert f"`{word}" in PAGE, word


def test_what_is_said_to_be_the_same_is_there() -> None:
    for name in ("LSTM", "GRU", "RNN"):
        theirs, ours = getattr(torch.nn, name)(3, 4), getattr(nn, name)(3, 4)
        for attribute in ("input_size", "hidden_size", "num_layers", "bias", "batch_first",
                          "dropout", "bidirectional", "proj_size", "mode"):  # fmt: skip
            assert getattr(ours, attribute) == getattr(theirs, attribute)
        assert [[w.shape for w in ws] for ws in ours.all_weights] == [
            [w.shape for w in ws] for ws in theirs.all_weights
        ]
    assert nn.RNN(3, 4, nonlinearity="relu").mode == "RNN_RELU"


def test_positional_arguments_mean_the_same() -> None:
    lstm = (3, 4, 2, False, True, 0.5, True, 2, "cpu", torch.float64)
    gru = (3, 4, 2, False, True, 0.5, True)
    rnn = (3, 4, 2, "relu", False, True, 0.5, True)
    for name, arguments in (("LSTM", lstm), ("GRU", gru), ("RNN", rnn)):
        theirs, ours = (getattr(lib, name)(*arguments) for lib in (torch.nn, nn))
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert (ours.batch_first, ours.dropout) == (theirs.batch_first, theirs.dropout)
        assert next(ours.parameters()).dtype == next(theirs.parameters()).dtype


class TestDifferences:
    def test_no_subclass(self) -> None:
        assert not isinstance(nn.LSTM(3, 4), torch.nn.RNNBase)

    def test_packed_size_is_checked(self) -> None:
        packed = pack_sequence([torch.zeros(3, 6)])
        with pytest.raises(RuntimeError, match="must be equal to input_size"):
            nn.LSTM(5, 4)(packed)

    def test_dropout_of_a_packed_sequence_is_of_the_same_rate(self) -> None:
        torch.manual_seed(0)
        ours = nn.RNN(3, 400, 2, dropout=0.3, nonlinearity="relu", bias=False)
        with torch.no_grad():  # the second layer is the identity: what it gets is what it gives
            ours.weight_ih_l0.fill_(1.0)
            ours.weight_hh_l0.zero_()
            ours.weight_ih_l1.copy_(torch.eye(400))
            ours.weight_hh_l1.zero_()
        packed = pack_sequence([torch.ones(4, 3), torch.ones(2, 3)])
        data = ours(packed)[0].data
        torch.testing.assert_close(data.unique(), torch.tensor([0.0, 3 / 0.7]))
        assert (data == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)

    def test_no_projection_may_be_said(self) -> None:
        assert nn.GRU(3, 4, proj_size=0).proj_size == 0
        with pytest.raises(ValueError, match="only supported for LSTM"):
            torch.nn.GRU(3, 4, proj_size=0)

    def test_no_torchscript(self) -> None:
        with pytest.raises(Exception, match=r".+"):
            torch.jit.script(nn.LSTM(3, 4))
