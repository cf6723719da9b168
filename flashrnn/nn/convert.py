"""From torch.nn's modules to ours, one by one or all inside a model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from flashrnn.api import choose_backend
from flashrnn.errors import ArgumentError
from flashrnn.nn.torch_layout import GRU, LSTM, RNN, TorchLayout

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Bases of everything recurrent in torch.nn and in its quantized namesakes.
_BASES = ("RNNBase", "RNNCellBase")


@dataclass(frozen=True)
class Conversion:
    """What `convert` did: by path inside the model, what a module has become, and why one stays."""

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"replaced {path}: {now}" for path, now in self.replaced.items()]
        lines += [f"left {path}: {why}" for path, why in self.left.items()]
        return "\n".join(lines) or "no recurrent modules found"


def from_torch(module: torch.nn.Module, *, backend: str = "auto") -> TorchLayout:
    """The module that computes what a torch.nn.LSTM, GRU or RNN does.

    It holds the same Parameter objects, so an optimizer that has them goes on, and nothing is
    copied; copy.deepcopy makes it independent. Raises ArgumentError where `convert` would leave
    the module, with the reason.
    """
    why = _reason_to_leave(module, backend)
    if why is not None:
        raise ArgumentError(f"from_torch cannot convert {type(module).__name__}: {why}")
    assert isinstance(module, torch.nn.RNNBase)
    sizes = (module.input_size, module.hidden_size, module.num_layers)
    # on the meta device nothing is drawn, so the random state stays as it is
    new: TorchLayout
    if isinstance(module, torch.nn.LSTM):
        new = LSTM(*sizes, module.bias, proj_size=module.proj_size, device="meta",
                   bidirectional=module.bidirectional, backend=backend)  # fmt: skip
    elif isinstance(module, torch.nn.GRU):
        new = GRU(*sizes, module.bias, device="meta", bidirectional=module.bidirectional,
                  backend=backend)  # fmt: skip
    else:
        new = RNN(*sizes, str(module.nonlinearity), module.bias, device="meta",
                  bidirectional=module.bidirectional, backend=backend)  # fmt: skip
    new.batch_first, new.dropout = module.batch_first, module.dropout
    for name, parameter in module.named_parameters():
        setattr(new, name, parameter)
    return new.train(module.training)


def convert(model: torch.nn.Module, *, backend: str = "auto") -> Conversion:
    """Replace every torch.nn.LSTM, GRU and RNN inside a model, in place.

    A module that stands at several places stays one module. The report names what was replaced
    and what was left, with the reason: subclasses, modules with hooks, cells, and what has no fused
    kernels where it is. The model itself cannot be replaced: see `from_torch`.
    """
    report = Conversion()
    done: dict[int, TorchLayout] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not any(base.__name__ in _BASES for base in type(module).__mro__):
            continue
        why = _reason_to_leave(module, backend)
        if why is None and not path:
            why = "it is the model itself: use from_torch"
        if why is not None:
            report.left[path] = why
            continue
        new = done.setdefault(id(module), from_torch(module, backend=backend))
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
        report.replaced[path] = repr(new)
    return report


def _reason_to_leave(module: torch.nn.Module, backend: str) -> str | None:
    kind = type(module)
    if kind not in (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN):
        if any(base.__name__ == "RNNCellBase" for base in kind.__mro__):
            return f"{kind.__name__} is one step; the loop around it would have to go too"
        return f"{kind.__module__}.{kind.__qualname__} is not torch.nn.LSTM, GRU or RNN itself"
    assert isinstance(module, torch.nn.RNNBase)
    hooks = [name for name in _HOOKS if getattr(module, name)]
    if hooks:
        return f"it has hooks, which would be lost ({', '.join(h.strip('_') for h in hooks)})"
    return _reason_in_weights(module, backend)


def _reason_in_weights(module: torch.nn.RNNBase, backend: str) -> str | None:
    own = dict(module.named_parameters(recurse=False))
    missing = [name for names in module._all_weights for name in names if name not in own]
    if missing:
        return f"{missing[0]} is no parameter of its own"
    weights = list(own.values())
    if len({(w.dtype, w.device) for w in weights}) > 1:
        return "its parameters differ in dtype or device"
    choice = choose_backend(weights[0])
    return choice.reason if backend == "auto" and choice.backend == "reference" else None
