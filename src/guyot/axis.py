"""Short recursive functions over axes: sizes, kept indices and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from guyot.types import Axis, Concat, Fixed, Product, Units


def groups_in(axis: Axis) -> tuple[int, ...]:
    """The groups that occur in an axis, in order, with repetition."""
    match axis:
        case Fixed():
            return ()
        case Units(group):
            return (group,)
        case Product(parts) | Concat(parts):
            return tuple(group for part in parts for group in groups_in(part))


def size_of(axis: Axis, sizes: Sequence[int]) -> int:
    """Length of a dimension when group `g` has `sizes[g]` units.

    Example:
        >>> size_of(Concat((Units(0), Product((Units(1), Fixed(4))))), sizes=[3, 2])
        11
    """
    match axis:
        case Fixed(size):
            return size
        case Units(group):
            return sizes[group]
        case Product(parts):
            return prod(size_of(part, sizes) for part in parts)
        case Concat(parts):
            return sum(size_of(part, sizes) for part in parts)


def expand(axis: Axis, units: Callable[[int], Tensor], ones: Callable[[int], Tensor]) -> Tensor:
    """Spread one value per unit over a dimension; fixed parts get `ones(size)`.

    Example:
        >>> gates = {0: torch.tensor([1.0, 0.0])}
        >>> expand(Product((Units(0), Fixed(2))), gates.__getitem__, torch.ones)
        tensor([1., 1., 0., 0.])
    """
    match axis:
        case Fixed(size):
            return ones(size)
        case Units(group):
            return units(group)
        case Product(parts):
            result = expand(parts[0], units, ones)
            for part in parts[1:]:
                result = (result[:, None] * expand(part, units, ones)[None, :]).flatten()
            return result
        case Concat(parts):
            return torch.cat([expand(part, units, ones) for part in parts])


def kept_indices(axis: Axis, masks: Sequence[Tensor]) -> Tensor | None:
    """Indices of a dimension that stay; None when all do.

    Args:
        axis: the dimension.
        masks: for every group a bool tensor of shape (units,), True where the unit stays.

    Returns:
        int64 tensor of kept indices, increasing.

    Example:
        >>> kept_indices(Concat((Fixed(1), Units(0))), [torch.tensor([True, False, True])])
        tensor([0, 1, 3])
    """
    if all(bool(masks[group].all()) for group in groups_in(axis)):
        return None
    mask = expand(axis, lambda group: masks[group], lambda size: torch.ones(size, dtype=torch.bool))
    return mask.nonzero().flatten()
