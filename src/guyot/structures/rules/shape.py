"""Operators that move, merge, cut and join dims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import (
    DimVar,
    DimVars,
    concat,
    freeze,
    frozen_dims,
    product,
    root_of,
    split,
    take,
    unify,
)
from guyot.structures.rules.pointwise import overloads
from guyot.structures.rules.registry import rule
from guyot.structures.trace import shape_of

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten


@rule(*overloads("view reshape flatten unflatten _unsafe_view view_copy".split()))
def reshape(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Old and new dims are matched by their sizes, outermost first."""
    (x,) = graph.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    if node.target is not aten.flatten.using_ints:
        graph.literal_shape(node)
    return tuple(regroup(list(x), list(shape)))


def regroup(dims: list[DimVar], sizes: list[int]) -> list[DimVar]:
    """Express dims of the given sizes as products and factors of other dims.

    Example:
        >>> regroup([DimVar(2), DimVar(6)], [2, 3, 2])
        [2, 3, 2]
    """
    rest = product(*dims)
    result: list[DimVar] = []
    for size in sizes:
        factors = root_of(rest).parts if root_of(rest).kind == "product" else (rest,)
        cut = take(factors, size)
        if cut is None:
            text = f"a reshape to {tuple(sizes)} cuts across dimensions"
            return [*frozen_dims(sizes, text, *dims)]
        taken, rest = cut
        result.append(taken)
    return result


@rule(*overloads(["permute"]))
def permute(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Dims are reordered."""
    (x,) = graph.operands(node, 0)
    order = graph.argument(node, 1, "dims", ())
    return tuple(x[dim] for dim in order)


@rule(aten.transpose.int, *overloads("swapaxes swapdims".split()))
def transpose(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Two dims change places."""
    (x,) = graph.operands(node, 0)
    dims = list(x)
    first, second = int(graph.argument(node, 1, "dim0", 0)), int(graph.argument(node, 2, "dim1", 0))
    dims[first], dims[second] = dims[second], dims[first]
    return tuple(dims)


@rule(*overloads("movedim moveaxis".split()))
def move_dims(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Some dims get other positions; the others keep their order."""
    (x,) = graph.operands(node, 0)
    given = [graph.argument(node, 1, "source", 0), graph.argument(node, 2, "destination", 0)]
    source, destination = (
        [place % len(x) for place in ([one] if isinstance(one, int) else one)] for one in given
    )
    order = [place for place in range(len(x)) if place not in source]
    for to, place in sorted(zip(destination, source, strict=True)):
        order.insert(to, place)
    return tuple(x[place] for place in order)


@rule(*overloads(["mT", "t"]))
def matrix_transpose(graph: AxisGraph, node: fx.Node) -> DimVars:
    """The last two dims change places."""
    (x,) = graph.operands(node, 0)
    return (*x[:-2], *reversed(x[-2:]))


@rule(*overloads(["unsqueeze"]))
def unsqueeze(graph: AxisGraph, node: fx.Node) -> DimVars:
    """A dim of size 1 is put in."""
    (x,) = graph.operands(node, 0)
    position = int(graph.argument(node, 1, "dim", 0)) % (len(x) + 1)
    return (*x[:position], graph.constant(1), *x[position:])


@rule(*overloads(["squeeze"]))
def squeeze(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Dims of size 1 go: all, or the named ones."""
    (x,) = graph.operands(node, 0)
    given = graph.argument(node, 1, "dim", None)
    listed = range(len(x)) if given is None else [given] if isinstance(given, int) else given
    gone = {dim % len(x) for dim in listed if x[dim].size == 1}
    return tuple(dim for position, dim in enumerate(x) if position not in gone)


@rule(*(getattr(aten, name).default for name in "cat concat concatenate hstack".split()))
def cat(graph: AxisGraph, node: fx.Node) -> DimVars:
    """The joined dim is a concatenation; the others are the same in every operand."""
    tensors: list[fx.Node] = list(node.args[0])  # pyright: ignore[reportArgumentType,reportAssignmentType]
    operands = [graph.dims[tensor] for tensor in tensors]
    axis = int(graph.argument(node, 1, "dim", 0)) % len(operands[0])
    if node.target is aten.hstack.default:
        axis = min(1, len(operands[0]) - 1)
    result = list(operands[0])
    for operand in operands[1:]:
        for position, dim in enumerate(operand):
            if position != axis:
                unify(dim, result[position])
    result[axis] = concat(*(operand[axis] for operand in operands))
    return tuple(result)


@rule(*overloads("chunk split split_with_sizes".split()), aten.tensor_split.sections)
def split_evenly(graph: AxisGraph, node: fx.Node) -> list[DimVars]:
    """The cut dim is the concatenation of the pieces; those cut by one number stay equal."""
    (x,) = graph.operands(node, 0)
    axis = int(graph.argument(node, 2, "dim", 0)) % len(x)
    values = node.meta["val"]
    pieces = split(x[axis], [value.shape[axis] for value in values])
    stated = node.args[1]
    if isinstance(stated, (list, tuple)):
        graph.literal(node, 1, pieces)
    elif len({piece.size for piece in pieces}) > 1:
        freeze(x[axis], f"{graph.name(node)} cuts it into unequal pieces")
    else:
        for piece in pieces[1:]:
            unify(pieces[0], piece)
        if getattr(node.target, "overloadpacket", None) is aten.split:
            graph.literal(node, 1, pieces[0])
    return [(*x[:axis], piece, *x[axis + 1 :]) for piece in pieces]
