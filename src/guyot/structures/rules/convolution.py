"""Convolutions of any rank and number of groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import SPACE, DimVar, DimVars, factor, freeze, product, unify
from guyot.structures.rules.pointwise import overloads
from guyot.structures.rules.registry import rule

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten


@rule(*overloads("conv1d conv2d conv3d".split()))
def convolution(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Weight (out, in / groups, *kernel): dimension 1 contracts the input's channels.

    Groups of channels may go, and inside of the groups all lose as many channels, each its own.
    """
    x, weight = graph.operands(node, 0, 1)
    outputs, inputs = weight[0], x[1]
    groups = int(graph.argument(node, 6, "groups", 1))
    if groups == 1:
        unify(weight[1], inputs)
    else:
        group, inner = factor(inputs, groups)
        numbers, made = factor(outputs, groups)
        unify(group, numbers)
        unify(weight[1], inner)
        if graph.is_batch(group):  # every sample has weights of its own
            return _finish(graph, node, outputs, 1, (made, *weight[1:]))
        graph.blocks(node, 1, group, inner, made)
        graph.attribute(node, 1, "groups", group)
        graph.literal(node, 6, group)
    return _finish(graph, node, outputs, 1, weight)


@rule(*overloads("conv_transpose1d conv_transpose2d conv_transpose3d".split()))
def transposed_convolution(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Weight (in, out / groups, *kernel): dimension 0 contracts the input's channels."""
    x, weight = graph.operands(node, 0, 1)
    groups = int(graph.argument(node, 6, "groups", 1))
    unify(weight[0], x[1])
    outputs = weight[1]
    if groups > 1:
        group, inner = factor(x[1], groups)
        outputs = product(group, weight[1])
        if graph.is_batch(group):
            return _finish(graph, node, outputs, 0, (inner, *weight[1:]))
        graph.blocks(node, 1, group, inner, weight[1])
        graph.attribute(node, 1, "groups", group)
        graph.literal(node, 6, group)
    return _finish(graph, node, outputs, 0, weight)


def _finish(
    graph: AxisGraph, node: fx.Node, outputs: DimVar, contracted: int, counted: DimVars
) -> DimVars:
    """Note what all convolutions share: kernel, space, bias, attributes, multiply-accumulates.

    Args:
        graph: holds the dims.
        node: the convolution.
        outputs: its channels.
        contracted: the dim of the weight that is summed over.
        counted: dims of the weight of one sample.
    """
    x, weight = graph.operands(node, 0, 1)
    for dim in weight[2:]:
        freeze(dim, SPACE)
    for dim in x[2:]:
        freeze(dim, f"the kernel of {graph.name(node)} moves along it")
    graph.contract(node, 1, dim=contracted)
    if graph.has(node, 2, "bias"):
        (bias,) = graph.operands(node, 2)
        unify(bias[0], outputs)
    graph.attribute(node, 1, "in_channels", x[1])
    graph.attribute(node, 1, "out_channels", outputs)
    space = graph.fresh(node, start=2)
    # Every position of the larger side meets each weight once: outputs, or transposed inputs.
    positions = space if contracted == 1 else x[2:]
    graph.count(node, *counted, *graph.samples((x[0], *positions)))
    return (x[0], outputs, *space)
