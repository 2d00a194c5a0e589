"""Take residual branches out of the methods that add them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from guyot.core.errors import UnsupportedError
from guyot.core.types import Layer
from guyot.surgery.derive import derive
from guyot.surgery.edits import Drop


def drop_of(layer: Layer) -> Drop:
    """The edit that takes a branch out of its owner's method.

    Raises:
        UnsupportedError: nobody knows where the owner adds it, or it adds others there, too.
    """
    if layer.place is None:
        raise UnsupportedError("its addition is in no method of its module, or in a loop")
    return Drop(layer.place, layer.operand, gone_with(layer))


def gone_with(layer: Layer) -> tuple[str, ...]:
    """The modules and other tensors that go with a branch, by their names in its owner."""
    inside = f"{layer.owner}." if layer.owner else ""
    whole = tuple(f"{module}." for module in layer.modules)
    loose = (
        [name for name in layer.tensors if not name.startswith(whole)] if whole else layer.tensors
    )
    return tuple(
        name.removeprefix(inside) for name in (*layer.modules, *loose) if name.startswith(inside)
    )


def check_edit(owner: nn.Module, layer: Layer) -> None:
    """Refuse a branch that cannot be taken out of the method that adds it.

    Raises:
        UnsupportedError: there is no source, or the method uses what goes in other ways.
    """
    derive(owner, [drop_of(layer)])


def discard(owner: nn.Module, names: Iterable[str]) -> None:
    """Take modules, parameters and buffers away from a module.

    An entry of a list stays, as an `nn.Identity`, so that the others keep their places.

    Example:
        >>> block = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> discard(block, ["1", "0.bias"])
        >>> block, block[0].bias
        (Sequential(
          (0): Linear(in_features=2, out_features=2, bias=False)
          (1): Identity()
        ), None)
    """
    for name in names:
        path, _, key = name.rpartition(".")
        parent = owner.get_submodule(path)
        if key in parent._modules:  # pyright: ignore[reportPrivateUsage]
            if key.isdigit():
                setattr(parent, key, nn.Identity())
            else:
                delattr(parent, key)
        elif hasattr(parent, key):
            setattr(parent, key, None)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of a descendant."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
