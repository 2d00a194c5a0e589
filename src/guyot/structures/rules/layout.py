"""Operators that stretch, repeat, shift, pad, stack and cut out along dims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import (
    SPACE,
    DimVar,
    DimVars,
    concat,
    factor,
    freeze,
    product,
    split,
    unify,
)
from guyot.structures.rules.pointwise import overloads
from guyot.structures.rules.registry import rule
from guyot.structures.rules.shape import regroup
from guyot.structures.trace import shape_of

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten


@rule(*overloads("expand broadcast_to".split()))
def stretch(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Stretch dims of size 1, put new ones in front; all entries of such a dim are alike."""
    (x,) = graph.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    added = len(shape) - len(x)
    result = [
        x[place - added] if place >= added and x[place - added].size == size else graph.new(size)
        for place, size in enumerate(shape)
    ]
    graph.literal_sizes(node, 1, result)
    for place, dim in enumerate(result[added:]):
        if x[place].size == 1 < dim.size:  # keys, once for each query that shares them
            graph.own_attribute(node, "num_key_value_groups", dim)
    return tuple(result)


@rule(*overloads("expand_as view_as reshape_as".split()))
def like(graph: AxisGraph, node: fx.Node) -> DimVars:
    """The shape is that of the second operand."""
    x, other = graph.operands(node, 0, 1)
    if node.target is aten.expand_as.default:
        for one, two in zip(reversed(x), reversed(other), strict=False):
            if one.size == two.size:
                unify(one, two)
        return other
    return tuple(regroup(list(x), [dim.size for dim in other]))


@rule(*overloads(["repeat"]))
def repeat(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Copies are laid end to end: the outer factor numbers the copy."""
    (x,) = graph.operands(node, 0)
    times: list[int] = list(graph.argument(node, 1, "repeats", ()))
    padded = (*(graph.constant(1) for _ in range(len(times) - len(x))), *x)
    return tuple(product(graph.constant(n), dim) for n, dim in zip(times, padded, strict=True))


@rule(*overloads(["tile"]))
def tile(graph: AxisGraph, node: fx.Node) -> DimVars:
    """As `repeat`; dims that no number is given for are not repeated."""
    (x,) = graph.operands(node, 0)
    given: list[int] = list(graph.argument(node, 1, "dims", ()))
    times = [1] * (len(x) - len(given)) + given
    padded = (*(graph.constant(1) for _ in range(len(times) - len(x))), *x)
    return tuple(product(graph.constant(n), dim) for n, dim in zip(times, padded, strict=True))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Every entry is repeated: the inner factor numbers the copy."""
    (x,) = graph.operands(node, 0)
    if graph.argument(node, 2, "dim", None) is None:
        return graph.unknown(node)
    place = int(graph.argument(node, 2, "dim", 0)) % len(x)
    copies = graph.constant(int(graph.argument(node, 1, "repeats", 1)))
    return (*x[:place], product(x[place], copies), *x[place + 1 :])


@rule(*overloads("roll flip".split()))
def moved(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Entries change their places along some dims, which must then keep all of them."""
    (x,) = graph.operands(node, 0)
    places = graph.named(node, "dims", ()) or range(len(x))
    for place in places:
        freeze(x[place], f"{graph.name(node)} moves its entries")
    return x


@rule(*overloads("tril triu".split()))
def triangle(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Entries of the last two dims are kept or zeroed by their numbers."""
    (x,) = graph.operands(node, 0)
    for dim in x[-2:]:
        freeze(dim, f"{graph.name(node)} keeps a triangle of it")
    return x


@rule(*overloads("pad constant_pad_nd".split()))
def pad(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Padding with a constant lays dims that never shrink beside the padded one."""
    (x,) = graph.operands(node, 0)
    amounts: list[int] = list(graph.argument(node, 1, "pad", ()))
    constant = graph.argument(node, 2, "mode", "constant") == "constant" or (
        node.target is aten.constant_pad_nd.default
    )
    result = list(x)
    for back, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        place = len(x) - 1 - back
        if constant and before >= 0 and after >= 0:
            result[place] = concat(graph.constant(before), x[place], graph.constant(after))
        else:
            freeze(x[place], f"{graph.name(node)} pads it with its own entries or crops it")
            result[place] = graph.constant(x[place].size + before + after)
    return tuple(result)


@rule(*overloads(["stack"]))
def stack(graph: AxisGraph, node: fx.Node) -> DimVars:
    """A new dim numbers the operands; the others are the same."""
    tensors: list[fx.Node] = list(node.args[0])  # pyright: ignore[reportArgumentType,reportAssignmentType]
    operands = [graph.dims[tensor] for tensor in tensors]
    first = operands[0]
    for operand in operands[1:]:
        for one, two in zip(first, operand, strict=True):
            unify(one, two)
    place = int(graph.argument(node, 1, "dim", 0)) % (len(first) + 1)
    return (*first[:place], graph.constant(len(operands)), *first[place:])


@rule(*overloads("slice narrow".split()))
def cut_out(graph: AxisGraph, node: fx.Node) -> DimVars:
    """A run of a dim: one of up to three pieces laid end to end, and the literals say where."""
    (x,) = graph.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    place = int(graph.argument(node, 1, "dim", 0)) % len(x)
    size, length = x[place].size, shape[place]
    if length == size:
        return x
    if int(graph.argument(node, 4, "step", 1)) != 1:
        freeze(x[place], f"{graph.name(node)} takes every so many of its entries")
        return (*x[:place], graph.constant(length), *x[place + 1 :])
    start = graph.argument(node, 2, "start", 0) or 0
    start = max(0, start + size if start < 0 else min(start, size))
    before, piece, after = split_run(x[place], start, length)
    if start:
        graph.literal(node, 2, before)
    if after.size:
        end = (
            piece
            if getattr(node.target, "overloadpacket", None) is aten.narrow
            else concat(before, piece)
        )
        graph.literal(node, 3, end)
    return (*x[:place], piece, *x[place + 1 :])


def split_run(dim: DimVar, start: int, length: int) -> tuple[DimVar, DimVar, DimVar]:
    """Return what comes before a run of a dim, the run, and what comes after.

    Example:
        >>> split_run(DimVar(9), 2, 3)
        (2, 3, 4)
    """
    sizes = (start, length, dim.size - start - length)
    pieces = iter(split(dim, [size for size in sizes if size]))
    before, piece, after = (next(pieces) if size else DimVar(0, SPACE) for size in sizes)
    return before, piece, after


@rule(aten.glu.default)
def glu(graph: AxisGraph, node: fx.Node) -> DimVars:
    """The first half of a dim times the sigmoid of the second: both are the same units."""
    (x,) = graph.operands(node, 0)
    place = int(graph.argument(node, 1, "dim", -1)) % len(x)
    first, second = split(x[place], [x[place].size // 2] * 2)
    unify(first, second)
    return (*x[:place], first, *x[place + 1 :])


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(graph: AxisGraph, node: fx.Node) -> DimVars:
    """(..., C r r, H, W) to (..., C, H r, W r): every channel takes r x r others along."""
    (x,) = graph.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    channel, pixels = factor(x[-3], shape[-3])
    for dim in (pixels, *x[-2:]):
        freeze(dim, f"{graph.name(node)} lays it out as pixels")
    return (*x[:-3], channel, *(graph.constant(size) for size in shape[-2:]))


@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(graph: AxisGraph, node: fx.Node) -> DimVars:
    """(..., C, H r, W r) to (..., C r r, H, W): the inner factor numbers the pixel."""
    (x,) = graph.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    for dim in x[-2:]:
        freeze(dim, f"{graph.name(node)} lays it out as channels")
    pixels = graph.constant(shape[-3] // x[-3].size)
    return (*x[:-3], product(x[-3], pixels), *(graph.constant(size) for size in shape[-2:]))


@rule(aten.rot90.default)
def rotated(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Two dims are turned: they change places where the turns are odd, and their entries move."""
    (x,) = graph.operands(node, 0)
    first, second = (place % len(x) for place in graph.argument(node, 2, "dims", (0, 1)))
    for place in (first, second):
        freeze(x[place], f"{graph.name(node)} moves its entries")
    result = list(x)
    if int(graph.argument(node, 1, "k", 1)) % 2:
        result[first], result[second] = x[second], x[first]
    return tuple(result)


@rule(aten.unfold.default)
def sliding_windows(graph: AxisGraph, node: fx.Node) -> DimVars:
    """One dim is cut into windows; a new last dim numbers the place in a window."""
    (x,) = graph.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    place = int(graph.argument(node, 1, "dimension", 0)) % len(x)
    freeze(x[place], f"{graph.name(node)} cuts windows out of it")
    windows, size = graph.constant(shape[place]), graph.constant(shape[-1])
    return (*x[:place], windows, *x[place + 1 :], size)


@rule(aten.col2im.default)
def fold(graph: AxisGraph, node: fx.Node) -> DimVars:
    """(N, C k k, places) to (N, C, H, W): windows are added up, channel by channel."""
    (x,) = graph.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    channel, window = factor(x[-2], shape[-3])
    for dim in (window, x[-1]):
        freeze(dim, f"{graph.name(node)} adds its windows up")
    return (*x[:-2], channel, *(graph.constant(size) for size in shape[-2:]))


@rule(aten.im2col.default)
def unfold(graph: AxisGraph, node: fx.Node) -> DimVars:
    """(N, C, H, W) to (N, C k k, places): the inner factor numbers the place in the window."""
    (x,) = graph.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    for dim in x[-2:]:
        freeze(dim, f"{graph.name(node)} cuts windows out of it")
    window = graph.constant(shape[-2] // x[-3].size)
    return (*x[:-3], product(x[-3], window), graph.constant(shape[-1]))


@rule(aten.channel_shuffle.default)
def channel_shuffle(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Channels as groups x n become n x groups."""
    (x,) = graph.operands(node, 0)
    groups, rest = factor(x[1], int(graph.argument(node, 1, "groups", 1)))
    freeze(groups, f"the groups that {graph.name(node)} shuffles are a number in forward")
    return (x[0], product(rest, groups), *x[2:])
