"""Find the real tensor behind a qualified name, gated or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from guyot.core.torch_private import compiled_module, compiles_calls


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that stores the tensor of a qualified name, and its key there.

    Example:
        >>> owner_of(nn.Sequential(nn.Linear(2, 3)), "0.weight")
        (Linear(in_features=2, out_features=3, bias=True), 'weight')
    """
    path, _, key = name.rpartition(".")
    return model.get_submodule(path), key


def raw_tensor(module: nn.Module, key: str) -> Tensor:
    """Return a module's own parameter or buffer, whatever a gate makes of the attribute."""
    tensor = module._parameters.get(key)  # pyright: ignore[reportPrivateUsage]
    if tensor is None:
        tensor = module._buffers[key]  # pyright: ignore[reportPrivateUsage]
    assert tensor is not None
    return tensor


def tensor_at(model: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer of a qualified name, without gates."""
    return raw_tensor(*owner_of(model, name))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by every name they have."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def first_names(model: nn.Module) -> dict[str, str]:
    """Return, for every name of a parameter or buffer, the first name of the same tensor.

    Example:
        >>> tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
        >>> tied[1].weight = tied[0].weight
        >>> first_names(tied)
        {'0.weight': '0.weight', '1.weight': '0.weight'}
    """
    first: dict[int, str] = {}
    return {name: first.setdefault(id(t), name) for name, t in named_tensors(model).items()}


class Part(nn.Module):
    """A network inside the module that a `DistributedDataParallel` is around.

    Args:
        module: the network.
        wrapper: around it, or around a module that holds it.
    """

    def __init__(self, module: nn.Module, wrapper: DistributedDataParallel) -> None:
        super().__init__()
        self.module = module
        self.__dict__["wrapper"] = wrapper  # no part of this module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        return self.module(*args, **kwargs)


def wrappings(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the module, what it wraps, and so on: the last one is the user's.

    Wrappers are `torch.compile`, `AveragedModel`, `DistributedDataParallel` and `Part`.
    """
    yield model
    inner = compiled_module(model)
    if inner is None and isinstance(model, AveragedModel | DistributedDataParallel | Part):
        inner = model.module
    if isinstance(inner, nn.Module):
        yield from wrappings(inner)


def is_compiled(model: nn.Module) -> bool:
    """Say whether `torch.compile` or `compile()` was called for the model or a part of it."""
    *outer, innermost = wrappings(model)
    wrapped = any(compiled_module(module) is not None for module in outer)
    return wrapped or any(compiles_calls(module) for module in innermost.modules())


def wrapper_of(model: nn.Module) -> DistributedDataParallel | None:
    """Return the outermost `DistributedDataParallel` around the user's module."""
    for module in wrappings(model):
        if isinstance(module, DistributedDataParallel):
            return module
        if isinstance(module, Part):
            return module.__dict__["wrapper"]
    return None


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's module inside all wrappers."""
    *_, innermost = wrappings(model)
    return innermost
