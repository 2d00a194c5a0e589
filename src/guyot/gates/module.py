"""A gate on one parameter of a user's module: a property multiplies the weight by masks.

It does so while a forward pass runs. Otherwise `module.weight` is the parameter itself, which may
be clipped, re-initialised or given to an optimiser. The user's `forward` stays as it is. Where a
linear layer or convolution reads fewer numbers than its weight has, what it reads is multiplied
instead, which is the same sum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from guyot.core.locate import raw_tensor
from guyot.core.torch_private import attributes_as_weights, computes_as, convolve

Mask = Callable[[bool], Tensor]
"""Give the values that multiply a weight, in training mode or not."""

Operator = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Compute a module's output from the module, what it reads and its weight."""

_HOST = "_gated_by"
"""The attribute of a gated module that knows the model."""


class Gate:
    """Multiply one weight by the masks of its dims and layers.

    While the model as a whole trains, these are sampled gates, which receive gradients; otherwise
    those of the most probable network. The mode of a part that was set to `eval()` alone does not
    count.

    Args:
        masks: broadcast over the weight.
        inputs: one more mask, over dim 1 alone: it can as well multiply what the weight reads.
    """

    def __init__(self, masks: Sequence[Mask], inputs: Mask | None = None) -> None:
        self._masks = tuple(masks)
        self.inputs = inputs

    def masked(self, weight: Tensor, training: bool, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight, as `dtype`, times sampled gates (training) or probable ones."""
        masks = self._masks if self.inputs is None else (*self._masks, self.inputs)
        return _product(weight, masks, training, dtype)

    def between(
        self, read: Tensor, weight: Tensor, training: bool, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what is read and the weight, with the gates of the inputs on what is read."""
        assert self.inputs is not None
        read = _product(read, (self.inputs,), training, dtype)
        return read, _product(weight, self._masks, training, dtype)


def _product(
    tensor: Tensor, masks: Sequence[Mask], training: bool, dtype: torch.dtype | None
) -> Tensor:
    if dtype is not None:
        tensor = tensor.to(dtype)
    for values in masks:
        mask = values(training)
        tensor = tensor * (mask if mask.dtype is tensor.dtype else mask.to(tensor.dtype))
    return tensor


class Host:
    """Say for the modules of a model whether a forward pass runs, and in which mode.

    In a deep copy of the model it is the copy's. A part that is copied alone has its own mode.

    Args:
        model: whose mode counts; None: that of each part.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._depth = 0
        self._handles: list[RemovableHandle] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Host:
        """Belong to the copy of the model if `memo` knows one."""
        return Host(memo.get(id(self._model)))

    @property
    def running(self) -> bool:
        """Say whether a forward pass of the model or of a part of it runs."""
        return self._depth > 0

    def training(self, part: nn.Module) -> bool:
        """Return the mode that counts for a part of the model."""
        return (part if self._model is None else self._model).training

    def watch(self, module: nn.Module) -> None:
        """Notice the calls of a module, also those that end in an error."""
        enter = module.register_forward_pre_hook(self.enter, prepend=True)
        leave = module.register_forward_hook(self.leave, always_call=True)
        self._handles += [enter, leave]

    def forget(self) -> None:
        """Notice no more calls."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def enter(self, *_: Any) -> None:
        """Note that a forward pass begins."""
        self._depth += 1

    def leave(self, *_: Any) -> None:
        """Note that it ends."""
        self._depth -= 1


class Gated:
    """Mark the class of a module that has gates."""


def put_gate(module: nn.Module, key: str, gate: Gate, host: Host) -> None:
    """Make the module's attribute `key` its parameter or buffer times a gate in a forward pass.

    The module gets a subclass of its own with a property of that name. The parameter stays where
    it is, so `parameters()` and `state_dict()` are the same as without gates.

    Example:
        >>> linear = nn.Linear(2, 1)
        >>> put_gate(linear, "weight", Gate([lambda training: torch.zeros(1, 2)]), Host(linear))
        >>> bool((linear(torch.ones(2)) == linear.bias).all()), isinstance(linear, nn.Linear)
        (True, True)
        >>> type(linear.weight).__name__, bool(linear.weight.any()), [*linear.state_dict()]
        ('Parameter', True, ['weight', 'bias'])
    """

    def gated(self: nn.Module) -> Tensor:
        own: Host = self.__dict__[_HOST]
        weight = raw_tensor(self, key)
        if not own.running:
            return weight
        return gate.masked(weight, own.training(self), _narrowed(weight) if operator else None)

    def fewer(self: nn.Module, input: Tensor) -> Tensor:  # noqa: A002  (the name that is known)
        weight = raw_tensor(self, key)
        if not _fewer(input, weight):
            return running(self, input)
        assert operator is not None
        training = self.__dict__[_HOST].training(self)
        return operator(self, *gate.between(input, weight, training, _narrowed(weight)))

    def running(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own: Host = self.__dict__[_HOST]
        own.enter()
        try:
            return plain.forward(self, *args, **kwargs)
        finally:
            own.leave()

    def recurrent(self: nn.RNNBase, *args: Any, **kwargs: Any) -> Any:
        own: Host = self.__dict__[_HOST]
        own.enter()
        try:
            with attributes_as_weights(self):
                return plain.forward(self, *args, **kwargs)
        finally:
            own.leave()

    plain = type(module)
    operator = _operator(plain)
    forward: Any = recurrent if nn.RNNBase in plain.__mro__ else running
    if operator and gate.inputs and key == "weight" and getattr(module, "groups", 1) == 1:
        forward = fewer
    forward = functools.wraps(plain.forward, updated=())(forward)  # it keeps its signature
    members = {key: property(gated), "forward": forward, "__module__": plain.__module__}
    module.__class__ = type(plain.__name__, (plain, Gated), members)
    module.__dict__[_HOST] = host


def remove_gates(module: nn.Module, plain: type[nn.Module]) -> None:
    """Take all gates off a module, which is of its own class again."""
    module.__class__ = plain
    del module.__dict__[_HOST]


def _linear(module: Any, read: Tensor, weight: Tensor) -> Tensor:
    return F.linear(read, weight, module.bias)


_OPERATORS: dict[type[nn.Module], Operator] = {
    nn.Linear: _linear,
    nn.Conv1d: convolve,
    nn.Conv2d: convolve,
    nn.Conv3d: convolve,
}


def _operator(kind: type[nn.Module]) -> Operator | None:
    """Return the operator that alone reads the parameters of a module, if it is one above."""
    own = next(base for base in kind.__mro__ if not issubclass(base, Gated))
    for known, operator in _OPERATORS.items():
        if computes_as(own, known):
            return operator
    return None


def _fewer(read: Tensor, weight: Tensor) -> bool:
    """Say whether what is read, in a shape with a batch, has fewer entries than the weight."""
    batched = read.dim() == weight.dim() if weight.dim() > 2 else read.dim() > 1
    return batched and read.numel() < weight.numel()


def _narrowed(weight: Tensor) -> torch.dtype | None:
    """Return bfloat16 where autocast narrows a weight to that.

    A weight times 0 or 1 is the same before and after, and half of the bytes are moved.
    """
    device = weight.device.type
    narrow = (
        weight.dtype is torch.float32
        and torch.is_autocast_enabled(device)
        and torch.get_autocast_dtype(device) is torch.bfloat16
    )
    return torch.bfloat16 if narrow else None
