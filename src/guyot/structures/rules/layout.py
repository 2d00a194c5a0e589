"""Operators that stretch, repeat, shift, pad, stack and cut out along dims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import SPACE, Dim, Dims, concat, factor, freeze, product, split, unify
from guyot.structures.rules.pointwise import overloads
from guyot.structures.rules.registry import rule
from guyot.structures.rules.shape import regroup
from guyot.structures.trace import shape_of

if TYPE_CHECKING:
    from guyot.structures.walk import Walk

aten = torch.ops.aten


@rule(*overloads("expand broadcast_to".split()))
def expand(walk: Walk, node: fx.Node) -> Dims:
    """Dims of size 1 stretch, new ones come in front; where they go one entry is like another."""
    (x,) = walk.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    added = len(shape) - len(x)
    result = [
        x[place - added] if place >= added and x[place - added].size == size else walk.new(size)
        for place, size in enumerate(shape)
    ]
    walk.literal_sizes(node, 1, result)
    return tuple(result)


@rule(*overloads("expand_as view_as reshape_as".split()))
def like(walk: Walk, node: fx.Node) -> Dims:
    """The shape is that of the second operand."""
    x, other = walk.operands(node, 0, 1)
    if str(node.target).startswith("aten.expand_as"):
        for one, two in zip(reversed(x), reversed(other), strict=False):
            if one.size == two.size:
                unify(one, two)
        return other
    return tuple(regroup(list(x), [dim.size for dim in other]))


@rule(*overloads(["repeat"]))
def repeat(walk: Walk, node: fx.Node) -> Dims:
    """Copies are laid end to end: the outer factor numbers the copy."""
    (x,) = walk.operands(node, 0)
    times: list[int] = list(walk.argument(node, 1, "repeats", ()))
    padded = (*(walk.constant(1) for _ in range(len(times) - len(x))), *x)
    return tuple(product(walk.constant(n), dim) for n, dim in zip(times, padded, strict=True))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(walk: Walk, node: fx.Node) -> Dims:
    """Every entry is repeated: the inner factor numbers the copy."""
    (x,) = walk.operands(node, 0)
    if walk.argument(node, 2, "dim", None) is None:
        return walk.unknown(node)
    place = int(walk.argument(node, 2, "dim", 0)) % len(x)
    copies = walk.constant(int(walk.argument(node, 1, "repeats", 1)))
    return (*x[:place], product(x[place], copies), *x[place + 1 :])


@rule(*overloads("roll flip".split()))
def moved(walk: Walk, node: fx.Node) -> Dims:
    """Entries change their places along some dims, which must then keep all of them."""
    (x,) = walk.operands(node, 0)
    position = 2 if str(node.target).startswith("aten.roll") else 1
    places = walk.argument(node, position, "dims", ()) or range(len(x))
    for place in places:
        freeze(x[place], f"{walk.name(node)} moves its entries")
    return x


@rule(*overloads("tril triu".split()))
def triangle(walk: Walk, node: fx.Node) -> Dims:
    """Entries of the last two dims are kept or zeroed by their numbers."""
    (x,) = walk.operands(node, 0)
    for dim in x[-2:]:
        freeze(dim, f"{walk.name(node)} keeps a triangle of it")
    return x


@rule(*overloads("pad constant_pad_nd".split()))
def pad(walk: Walk, node: fx.Node) -> Dims:
    """Padding with a constant lays dims that never shrink beside the padded one."""
    (x,) = walk.operands(node, 0)
    amounts: list[int] = list(walk.argument(node, 1, "pad", ()))
    constant = walk.argument(node, 2, "mode", "constant") == "constant" or (
        node.target is aten.constant_pad_nd.default
    )
    result = list(x)
    for back, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        place = len(x) - 1 - back
        if constant and before >= 0 and after >= 0:
            result[place] = concat(walk.constant(before), x[place], walk.constant(after))
        else:
            freeze(x[place], f"{walk.name(node)} pads it with its own entries or crops it")
            result[place] = walk.constant(x[place].size + before + after)
    return tuple(result)


@rule(*overloads(["stack"]))
def stack(walk: Walk, node: fx.Node) -> Dims:
    """A new dim numbers the operands; the others are the same."""
    tensors: list[fx.Node] = list(node.args[0])  # pyright: ignore[reportArgumentType,reportAssignmentType]
    operands = [walk.dims[tensor] for tensor in tensors]
    first = operands[0]
    for operand in operands[1:]:
        for one, two in zip(first, operand, strict=True):
            unify(one, two)
    place = int(walk.argument(node, 1, "dim", 0)) % (len(first) + 1)
    return (*first[:place], walk.constant(len(operands)), *first[place:])


@rule(*overloads("slice narrow".split()))
def cut_out(walk: Walk, node: fx.Node) -> Dims:
    """A run of a dim: one of up to three pieces laid end to end, and the literals say where."""
    (x,) = walk.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    place = int(walk.argument(node, 1, "dim", 0)) % len(x)
    size, length = x[place].size, shape[place]
    if length == size:
        return x
    if int(walk.argument(node, 4, "step", 1)) != 1:
        freeze(x[place], f"{walk.name(node)} takes every so many of its entries")
        return (*x[:place], walk.constant(length), *x[place + 1 :])
    start = walk.argument(node, 2, "start", 0) or 0
    start = max(0, start + size if start < 0 else min(start, size))
    before, piece, after = cut(x[place], start, length)
    if start:
        walk.literal(node, 2, before)
    if after.size:
        end = piece if str(node.target).startswith("aten.narrow") else concat(before, piece)
        walk.literal(node, 3, end)
    return (*x[:place], piece, *x[place + 1 :])


def cut(dim: Dim, start: int, length: int) -> tuple[Dim, Dim, Dim]:
    """What comes before a run of a dim, the run, and what comes after.

    Example:
        >>> cut(Dim(9), 2, 3)
        (2, 3, 4)
    """
    sizes = (start, length, dim.size - start - length)
    pieces = iter(split(dim, [size for size in sizes if size]))
    before, piece, after = (next(pieces) if size else Dim(0, SPACE) for size in sizes)
    return before, piece, after


@rule(aten.glu.default)
def glu(walk: Walk, node: fx.Node) -> Dims:
    """The first half of a dim times the sigmoid of the second: both are the same units."""
    (x,) = walk.operands(node, 0)
    place = int(walk.argument(node, 1, "dim", -1)) % len(x)
    first, second = split(x[place], [x[place].size // 2] * 2)
    unify(first, second)
    return (*x[:place], first, *x[place + 1 :])


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(walk: Walk, node: fx.Node) -> Dims:
    """(..., C r r, H, W) to (..., C, H r, W r): every channel takes r x r others along."""
    (x,) = walk.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    channel, pixels = factor(x[-3], shape[-3])
    for dim in (pixels, *x[-2:]):
        freeze(dim, f"{walk.name(node)} lays it out as pixels")
    return (*x[:-3], channel, *(walk.constant(size) for size in shape[-2:]))


@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(walk: Walk, node: fx.Node) -> Dims:
    """(..., C, H r, W r) to (..., C r r, H, W): the inner factor numbers the pixel."""
    (x,) = walk.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    for dim in x[-2:]:
        freeze(dim, f"{walk.name(node)} lays it out as channels")
    pixels = walk.constant(shape[-3] // x[-3].size)
    return (*x[:-3], product(x[-3], pixels), *(walk.constant(size) for size in shape[-2:]))


@rule(aten.im2col.default)
def unfold(walk: Walk, node: fx.Node) -> Dims:
    """(N, C, H, W) to (N, C k k, places): the inner factor numbers the place in the window."""
    (x,) = walk.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    for dim in x[-2:]:
        freeze(dim, f"{walk.name(node)} cuts windows out of it")
    window = walk.constant(shape[-2] // x[-3].size)
    return (*x[:-3], product(x[-3], window), walk.constant(shape[-1]))


@rule(aten.channel_shuffle.default)
def channel_shuffle(walk: Walk, node: fx.Node) -> Dims:
    """Channels as groups x n become n x groups."""
    (x,) = walk.operands(node, 0)
    groups, rest = factor(x[1], int(walk.argument(node, 1, "groups", 1)))
    freeze(groups, f"the groups that {walk.name(node)} shuffles are a number in forward")
    return (x[0], product(rest, groups), *x[2:])
