"""What a model is called with: one tensor, positional arguments, or a mapping of keywords."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.condition import Condition, require
from guyot.core.errors import MisconfiguredError

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""The only argument of a `forward`, its positional arguments, or its keyword arguments."""


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """Run a model on inputs and return what it returns.

    Example:
        >>> call_model(nn.Identity(), {"input": 3}), call_model(nn.Identity(), (3,))
        (3, 3)
    """
    args, kwargs = arguments(model, inputs)
    return model(*args, **kwargs)


def arguments(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments, the latter in the order of the signature.

    A `forward` that takes `use_cache` (models of text) and is not given it gets False: a cache of
    keys and values is no part of the network. So does one that takes any keyword arguments and has
    such a model inside.

    Example:
        >>> class Text(nn.Module):
        ...     def forward(self, ids, mask=None, use_cache=True): ...
        >>> arguments(Text(), {"mask": 1, "ids": 0})
        ((), {'ids': 0, 'mask': 1, 'use_cache': False})
    """
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    args = () if isinstance(inputs, Mapping) else tuple(inputs)
    given = dict(inputs) if isinstance(inputs, Mapping) else {}
    parameters = inspect.signature(model.forward).parameters
    names = list(parameters)
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    inside = free and any(_takes_use_cache(type(module)) for module in model.modules())
    if inside or "use_cache" in names[len(args) :]:
        given.setdefault("use_cache", False)
    known = [name for name in names if name in given]
    return args, {name: given[name] for name in dict.fromkeys([*known, *given])}


@functools.lru_cache(1024)
def _takes_use_cache(kind: type[nn.Module]) -> bool:
    return "use_cache" in inspect.signature(kind.forward).parameters


def changed(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the same nest of mappings, lists and tuples with other tensors in it.

    Example:
        >>> import torch
        >>> changed({"ids": [torch.ones(1), None]}, lambda x: x + 1)
        {'ids': [tensor([2.]), None]}
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: changed(item, function) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        items = [changed(item, function) for item in value]  # pyright: ignore[reportUnknownVariableType]
        return items if isinstance(value, list) else tuple(items)
    return value


def flat(value: Any) -> list[Any]:
    """Return the leaves of a nest of mappings, lists, tuples and dataclasses, in order.

    Example:
        >>> flat({"a": (1, None), "b": [2]})
        [1, None, 2]
    """
    if not isinstance(value, Mapping) and is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, Mapping):
        value = list(value.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in flat(item)]  # pyright: ignore[reportUnknownVariableType]
    return [value]


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in a nest of mappings, lists, tuples and dataclasses, in order."""
    return [leaf for leaf in flat(value) if isinstance(leaf, Tensor)]


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a deep copy of a model, also of one whose hooks keep computed tensors as attributes.

    `torch.nn.utils.weight_norm` and `spectral_norm` do so, and PyTorch refuses to copy such.

    Args:
        model: any module.
        memo: as that of `copy.deepcopy`.
    """
    memo = dict(memo or {})
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def weightless_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model on the CPU whose tensors have no numbers.

    Make and call it in the context `weightless`.
    """
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
        parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
    return copied(model, memo)


def sharing_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model whose parameters share the memory of the model's own.

    Surgery gives parameters new memory, so it may be done to the copy. Training may not.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = twin = nn.Parameter(parameter.detach(), parameter.requires_grad)
        vars(twin).update(vars(parameter))
    return copied(model, memo)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Put a model in evaluation mode; restore every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_inputs(model: nn.Module, example_inputs: Inputs) -> None:
    """Refuse example inputs on another device than the model or without a batch dimension."""
    tensors = tensors_of(example_inputs)
    if not tensors:
        raise MisconfiguredError(
            f"example_inputs={type(example_inputs).__name__} holds no tensor; "
            "pass a tensor, a tuple of the arguments of the model's forward, e.g. (ids, mask), or "
            'its keyword arguments, e.g. {"input_ids": ids}'
        )
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise MisconfiguredError(
            f"the model {type(model).__name__} has no parameters; pass the network to train"
        )
    for position, value in enumerate(tensors):
        if value.device != parameter.device and parameter.device.type != "meta":
            raise MisconfiguredError(
                f"example input {position} is on {value.device} and the model on "
                f"{parameter.device}; move one with .to({str(parameter.device)!r})"
            )
        if value.dim() == 0:
            raise MisconfiguredError(
                f"example input {position} is a scalar; dimension 0 must be the batch"
            )


def on_meta(model: nn.Module) -> bool:
    """Say whether a model has parameters without numbers."""
    return any(parameter.device.type == "meta" for parameter in model.parameters())


_MODULE = Condition(
    lambda model: isinstance(model, nn.Module), "give the network itself, a torch.nn.Module"
)


def check_module(model: nn.Module) -> None:
    """Refuse what is no module, such as the function that makes one.

    Raises:
        MisconfiguredError: it is none.
    """
    require("model", model, _MODULE)


def check_weights(model: nn.Module) -> None:
    """Refuse a model without numbers in its parameters."""
    if on_meta(model):
        raise MisconfiguredError(
            "the model is on the meta device and has no weights; "
            'give it some with model.to_empty(device="cpu") and initialise them'
        )
