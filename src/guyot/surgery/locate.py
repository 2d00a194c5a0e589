"""Find the real tensor behind a qualified name, gated (parametrised) or not."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that stores the tensor of a qualified name, and its key there.

    Example:
        >>> owner_of(nn.Sequential(nn.Linear(2, 3)), "0.weight")
        (Linear(in_features=2, out_features=3, bias=True), 'weight')
    """
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, key):
        return module.parametrizations[key], "original"  # pyright: ignore[reportIndexIssue,reportReturnType]
    return module, key


def tensor_at(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a qualified name, without gates."""
    module, key = owner_of(model, name)
    return getattr(module, key)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside `torch.compile`, `DistributedDataParallel` or `AveragedModel`."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in _WRAPPERS:
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


_WRAPPERS = {"DistributedDataParallel", "DataParallel", "AveragedModel"}
