"""Matrix products: of activations with each other, or with a parameter whatever its layout."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import DimVar, DimVars, freeze, unify
from guyot.structures.rules.pointwise import overloads
from guyot.structures.rules.registry import rule

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten


@rule(*overloads("mm bmm mv dot vdot matmul".split()))
def product_of(graph: AxisGraph, node: fx.Node) -> DimVars:
    """(..., m, k) @ (..., k, n): the dims before the last two are broadcast."""
    return _product(graph, node, 0, 1)


@rule(*overloads("addmm baddbmm addmv addbmm".split()))
def sum_of_products(graph: AxisGraph, node: fx.Node) -> DimVars:
    """A tensor plus a product; the tensor is broadcast to the product."""
    if node.target is aten.addbmm.default:
        return graph.unknown(node)
    added = graph.dims[node.args[0]]  # pyright: ignore[reportArgumentType]
    result = _product(graph, node, 1, 2)
    for one, two in zip(reversed(added), reversed(result), strict=False):
        if one.size == two.size:
            unify(one, two)
    return result


def _product(graph: AxisGraph, node: fx.Node, first: int, second: int) -> DimVars:
    left, right = graph.operands(node, first, second)
    place = max(len(right) - 2, 0)
    unify(left[-1], right[place])
    contract(graph, node, (node.args[first], len(left) - 1), (node.args[second], place))
    outer = broadcast_dims(left[:-2], right[:-2])
    rows, columns = left[-2:-1], right[place + 1 :]
    graph.count(node, *graph.samples((*outer, *rows, *columns)), left[-1])
    return (*outer, *rows, *columns)


def broadcast_dims(left: DimVars, right: DimVars) -> DimVars:
    """Dims aligned from the right; those of size 1 stretch to the other's."""
    result: list[DimVar] = []
    for position in range(1, max(len(left), len(right)) + 1):
        given = [dims[-position] for dims in (left, right) if position <= len(dims)]
        wide = [dim for dim in given if dim.size > 1] or given
        for dim in wide[1:]:
            unify(wide[0], dim)
        result.insert(0, wide[0])
    return tuple(result)


def contract(graph: AxisGraph, node: fx.Node, *places: tuple[object, int]) -> None:
    """Say that a product sums over a dim of its operands: gates act on one that is a weight."""
    for operand, dim in places:
        assert isinstance(operand, fx.Node)
        if graph.reads(operand, dim):
            return
    for operand, dim in places:
        assert isinstance(operand, fx.Node)
        freeze(
            graph.dims[operand][dim], f"{graph.name(node)} sums over it in a product of activations"
        )


@rule(aten.tensordot.default)
def tensordot(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Sum over pairs of dims, one of each operand; the others of the first come first."""
    left, right = graph.operands(node, 0, 1)
    pairs = [
        (one % len(left), two % len(right))
        for one, two in zip(node.args[2], node.args[3], strict=True)  # pyright: ignore[reportArgumentType]
    ]
    for one, two in pairs:
        unify(left[one], right[two])
        contract(graph, node, (node.args[0], one), (node.args[1], two))
    summed = tuple(left[one] for one, _ in pairs)
    first = tuple(dim for n, dim in enumerate(left) if n not in {one for one, _ in pairs})
    second = tuple(dim for n, dim in enumerate(right) if n not in {two for _, two in pairs})
    graph.count(node, *graph.samples((*first, *second)), *summed)
    return (*first, *second)


@rule(aten.einsum.default)
def einsum(graph: AxisGraph, node: fx.Node) -> DimVars:
    """The same letter is the same dim; letters that the output lacks are summed over."""
    equation = str(node.args[0]).replace(" ", "")
    operands: list[fx.Node] = list(node.args[1])  # pyright: ignore[reportArgumentType,reportAssignmentType]
    dims = [graph.dims[operand] for operand in operands]
    if "." in equation or "->" not in equation or len(operands) > 2:
        return graph.unknown(node)
    inputs, output = equation.split("->")
    letters = inputs.split(",")
    if any(count > 1 for term in letters for count in Counter(term).values()):
        return graph.unknown(node)
    of: dict[str, DimVar] = {}
    for term, named in zip(letters, dims, strict=True):
        for letter, dim in zip(term, named, strict=True):
            if dim.size == 1 or of.setdefault(letter, dim).size == 1:
                of[letter] = dim if of.get(letter, dim).size == 1 else of[letter]
            else:
                unify(of[letter], dim)
    shared = {letter for letter in of if letter not in output and all(letter in t for t in letters)}
    for letter in of.keys() - set(output):
        if letter in shared and len(operands) == 2:
            contract(
                graph, node, *((o, t.index(letter)) for o, t in zip(operands, letters, strict=True))
            )
        else:
            freeze(of[letter], f"{graph.name(node)} sums over it")
    if shared and len(operands) == 2:
        multiplied = tuple(
            dim for letter, dim in of.items() if letter in output or letter in shared
        )
        graph.count(node, *graph.samples(multiplied))
    return tuple(of[letter] for letter in output)
