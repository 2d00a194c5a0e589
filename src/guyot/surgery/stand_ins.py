"""Small plain modules that stand in for those of a removed branch.

The author's `forward` runs as it is: `x + branch(x)` adds zeros. A zero is a scalar that is
expanded to a shape, so it costs no memory and hardly any time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.torch_private import Moving
from guyot.core.types import StandIn
from guyot.surgery.derive import replace_methods


class Passing(Moving):
    """Takes any arguments and returns some of them.

    It has the plain attributes of the module whose place it takes, and its parameters and buffers
    as scalars that are expanded to their shapes: a `forward` may ask for a weight's dtype.

    Args:
        spec: what to return.
        module: whose place it takes.

    Example:
        >>> Passing(StandIn("norm", 0, None, zero=False), nn.LayerNorm(2))(torch.ones(1, 2))
        tensor([[1., 1.]])
    """

    def __init__(self, spec: StandIn, module: nn.Module) -> None:
        super().__init__()
        self.returns = (spec.argument, spec.others)
        copy_plain(module, self)
        tensors = (module._parameters, module._buffers)  # pyright: ignore[reportPrivateUsage]
        self._shapes = {
            name: tensor.shape
            for named in tensors
            for name, tensor in named.items()
            if tensor is not None
        }
        for named in tensors:
            for name, tensor in named.items():
                value = None if tensor is None else tensor.new_zeros(()).expand(tensor.shape)
                self.__dict__[name] = value

    def moved(self, change: Callable[[Tensor], Tensor]) -> None:
        """Follow the model to another device or dtype."""
        for name, shape in self._shapes.items():
            self.__dict__[name] = change(self.__dict__[name].new_zeros(())).expand(shape)

    def _first(self, given: Any) -> Any:
        return given

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first result and the others."""
        return _returned(self.returns, self._first, args, kwargs)

    def extra_repr(self) -> str:
        """Nothing: it has no settings."""
        return ""


class Zeros(Passing):
    """As `Passing`, but the first result is zero.

    Example:
        >>> nothing = Zeros(StandIn("attn", "x", (0, None), zero=True), nn.Linear(3, 2))
        >>> nothing("bias", mask=None, x=torch.ones(1, 2))
        (tensor([[0., 0.]]), 'bias', None)
        >>> nothing.in_features, nothing.weight.shape, [*nothing.parameters()]
        (3, torch.Size([2, 3]), [])
    """

    def __init__(self, spec: StandIn, module: nn.Module) -> None:
        super().__init__(spec, module)
        self.zero = (spec.ones, spec.dense, spec.narrow)

    def _first(self, given: Tensor) -> Tensor:
        ones, dense, narrow = self.zero
        dtype, device = given.dtype, given.device.type
        if narrow and dtype is not torch.float64 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if not dtype.is_floating_point:
            dtype = torch.get_default_dtype()
        if dense:
            return torch.zeros_like(given, dtype=dtype)
        zero = given.new_zeros((), dtype=dtype)
        return zero.expand((1,) * ones if ones is not None else given.shape)


def stand_in(spec: StandIn, module: nn.Module) -> nn.Module:
    """Return what takes the place of a module, in its mode."""
    return (Zeros if spec.zero else Passing)(spec, module).train(module.training)


def _returned(
    returns: tuple[int | str, tuple[int | str | None, ...] | None],
    change: Callable[[Any], Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Return some of a call's arguments, the first of them changed."""
    argument, others = returns

    def given(key: int | str | None) -> Any:
        if key is None:
            return None
        return args[key] if isinstance(key, int) else kwargs[key]

    first = change(given(argument))
    return first if others is None else (first, *map(given, others))


def passed(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Return some of the arguments; the forward of a module that does nothing any more."""
    return _returned(self.returned_arguments, lambda given: given, args, kwargs)


def let_pass(module: nn.Module, spec: StandIn) -> None:
    """Let a module return its argument; its class, hooks and attributes stay.

    Example:
        >>> norm = nn.LayerNorm(2)
        >>> let_pass(norm, StandIn("norm", 0, None, zero=False, stays=True))
        >>> norm(torch.tensor([1.0, 5.0])), isinstance(norm, nn.LayerNorm)
        (tensor([1., 5.]), True)
    """
    vars(module)["returned_arguments"] = (spec.argument, spec.others)
    replace_methods(module, {"forward": passed})


def act_out_of_place(model: nn.Module, spec: StandIn) -> None:
    """Let the modules beside a stand-in not overwrite what it passes on: the branch's own input.

    Example:
        >>> block = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
        >>> act_out_of_place(block, StandIn("0", 0, None, zero=False))
        >>> block[1]
        ReLU()
    """
    for module in model.get_submodule(spec.module.rpartition(".")[0]).modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010  (a module of unknown type)


def copy_plain(source: nn.Module, target: nn.Module) -> None:
    """Give a module the numbers, flags, strings and tuples that another has as attributes."""
    for name, value in vars(source).items():
        if not hasattr(target, name) and isinstance(value, (int, float, str, tuple, type(None))):
            setattr(target, name, value)
