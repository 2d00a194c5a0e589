"""Short recursive functions over axes: sizes, kept indices and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from guyot.core.types import Axis, Concat, Fixed, Product, Units, Within

Values = Callable[[int], Tensor]


def groups_in(axis: Axis) -> tuple[int, ...]:
    """Return the groups that occur in an axis, in order, with repetition."""
    match axis:
        case Fixed():
            return ()
        case Units(group) | Within(group):
            return (group,)
        case Product(parts) | Concat(parts):
            return tuple(group for part in parts for group in groups_in(part))


def size_of(axis: Axis, sizes: Sequence[int]) -> int:
    """Return the length of a dimension when group `g` has `sizes[g]` units.

    Example:
        >>> size_of(Concat((Units(0), Product((Units(1), Fixed(4))))), sizes=[3, 2])
        11
        >>> size_of(Within(0, block=Fixed(2)), sizes=[6])
        3
    """
    match axis:
        case Fixed(size):
            return size
        case Units(group):
            return sizes[group]
        case Within(group, block):
            return sizes[group] // size_of(block, sizes)
        case Product(parts):
            return prod(size_of(part, sizes) for part in parts)
        case Concat(parts):
            return sum(size_of(part, sizes) for part in parts)


def entry_values(axis: Axis, units: Values, ones: Values) -> Tensor:
    """Spread one value per unit over a dimension; fixed parts get `ones(size)`.

    Example:
        >>> gates = {0: torch.tensor([1.0, 0.0])}
        >>> entry_values(Product((Units(0), Fixed(2))), gates.__getitem__, torch.ones)
        tensor([1., 1., 0., 0.])
    """
    match axis:
        case Fixed(size):
            return ones(size)
        case Units(group):
            return units(group)
        case Within():
            raise AssertionError(f"{axis} stands in a product or alone in a dimension of a weight")
        case Product(parts):
            return _multiplied(parts, units, ones).flatten()
        case Concat(parts):
            return torch.cat([entry_values(part, units, ones) for part in parts])


def _multiplied(parts: Sequence[Axis], units: Values, ones: Values) -> Tensor:
    """Return the values over a product, with one dimension per factor."""
    found = [
        None if isinstance(part, Within) else entry_values(part, units, ones) for part in parts
    ]
    result: Tensor | None = None
    for place, (part, values) in enumerate(zip(parts, found, strict=True)):
        shape = [1] * len(parts)
        shape[place] = -1
        if isinstance(part, Within):
            block = found[place + part.offset]
            assert block is not None
            shape[place + part.offset] = len(block)
            own = units(part.group).view(len(block), -1)
            values = own if part.offset < 0 else own.T
        assert values is not None
        values = values.reshape(shape)
        result = values if result is None else result * values
    assert result is not None
    return result


def spread(axes: Sequence[Axis], dim: int, units: Values, ones: Values) -> Tensor:
    """Return one value per unit over a dimension of a tensor, in a shape that broadcasts over it.

    Example:
        >>> gates = {0: torch.tensor([1.0, 0.0, 0.0, 1.0])}
        >>> axes = (Fixed(4), Within(0, block=Fixed(2)))  # a convolution of 2 groups, 2 inputs each
        >>> spread(axes, 1, gates.__getitem__, torch.ones)
        tensor([[1., 0.],
                [1., 0.],
                [0., 1.],
                [0., 1.]])
    """
    axis, shape = axes[dim], [1] * len(axes)
    if isinstance(axis, Within):
        blocks, rows = (len(entry_values(a, units, ones)) for a in (axis.block, axes[0]))
        own = units(axis.group).view(blocks, 1, -1)
        shape[0], shape[dim] = rows, own.shape[-1]
        return own.expand(-1, rows // blocks, -1).reshape(shape)
    shape[dim] = -1
    return entry_values(axis, units, ones).view(shape)


def kept_indices(axis: Axis, masks: Sequence[Tensor]) -> Tensor | None:
    """Return the indices of a dimension that stay; None when all do.

    Args:
        axis: the dimension.
        masks: for every group a bool tensor of shape (units,), True where the unit stays.

    Returns:
        int64 tensor of kept indices in their new order, shape (entries,); shape (blocks, entries)
        where each block of dimension 0 keeps others (`Within` alone in a dimension).

    Example:
        >>> kept_indices(Concat((Fixed(1), Units(0))), [torch.tensor([True, False, True])])
        tensor([0, 1, 3])
    """
    if all(bool(masks[group].all()) for group in groups_in(axis)):
        return None
    if isinstance(axis, Within):
        return _own(axis, _entries(axis.block, masks), masks)
    return _entries(axis, masks)


def _entries(axis: Axis, masks: Sequence[Tensor]) -> Tensor:
    """Return the entries of a dimension that stay, by their old numbers, in their new order."""
    match axis:
        case Fixed(size):
            return torch.arange(size)
        case Units(group):
            return masks[group].nonzero().flatten()
        case Within():
            raise AssertionError(f"{axis} stands in a product or alone in a dimension of a weight")
        case Product(parts):
            return _combined(parts, masks)
        case Concat(parts):
            sizes = [len(mask) for mask in masks]
            starts = accumulate((size_of(part, sizes) for part in parts), initial=0)
            pieces = (s + _entries(p, masks) for s, p in zip(starts, parts, strict=False))
            return torch.cat(list(pieces))


def _combined(parts: Sequence[Axis], masks: Sequence[Tensor]) -> Tensor:
    """As `_entries` for a product: a factor's entries times the length of what is inside of it."""
    sizes = [len(mask) for mask in masks]
    total = torch.zeros([1] * len(parts), dtype=torch.int64)
    inner = 1
    for place, part in reversed(list(enumerate(parts))):
        shape = [1] * len(parts)
        shape[place] = -1
        if isinstance(part, Within):
            blocks = _entries(parts[place + part.offset], masks)
            shape[place + part.offset] = len(blocks)
            own = _own(part, blocks, masks)
            entries = own if part.offset < 0 else own.T
        else:
            entries = _entries(part, masks)
        total = total + inner * entries.reshape(shape)
        inner *= size_of(part, sizes)
    return total.flatten()


def _own(axis: Within, blocks: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Return which of their own units some blocks keep, shape (blocks, units of a block)."""
    before = size_of(axis.block, [len(mask) for mask in masks])
    mask = masks[axis.group].view(before, -1)[blocks]
    return mask.nonzero()[:, 1].view(len(blocks), -1)


def best(score: Tensor, count: int, blocks: int = 1) -> Tensor:
    """Return the units with the highest scores, as many in each of the blocks they come in.

    Args:
        score: shape (units,), block after block.
        count: how many units, a multiple of `blocks`.
        blocks: number of blocks.

    Returns:
        int64, shape (count,), increasing.

    Example:
        >>> best(torch.tensor([4.0, 3.0, 1.0, 2.0]), 2, blocks=2)
        tensor([0, 3])
    """
    rows = score.view(blocks, -1)
    chosen = rows.argsort(dim=1, descending=True, stable=True)[:, : count // blocks]
    start = torch.arange(blocks, device=score.device)[:, None] * rows.shape[1]
    return (start + chosen).flatten().sort().values
