"""Linear layers and matrix products with a parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import DimVars, unify
from guyot.structures.rules.registry import rule

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten


@rule(aten.linear.default)
def linear(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Weight (out, in): dimension 1 contracts the last dimension of the input."""
    x, weight = graph.operands(node, 0, 1)
    unify(x[-1], weight[1])
    graph.contract(node, 1, dim=1)
    if graph.has(node, 2, "bias"):
        (bias,) = graph.operands(node, 2)
        unify(bias[0], weight[0])
    graph.attribute(node, 1, "in_features", weight[1])
    graph.attribute(node, 1, "out_features", weight[0])
    graph.count(node, weight[0], weight[1], *graph.samples(x[:-1]))
    return (*x[:-1], weight[0])


@rule(aten.bilinear.default)
def bilinear(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Weight (out, in of the first, in of the second): it contracts both inputs."""
    first, second, weight = graph.operands(node, 0, 1, 2)
    for place, x in ((1, first), (2, second)):
        unify(x[-1], weight[place])
        graph.contract(node, 2, dim=place)
        graph.attribute(node, 2, f"in{place}_features", weight[place])
    if graph.has(node, 3, "bias"):
        (bias,) = graph.operands(node, 3)
        unify(bias[0], weight[0])
    graph.attribute(node, 2, "out_features", weight[0])
    for one, two in zip(first[:-1], second[:-1], strict=True):
        unify(one, two)
    graph.count(node, *weight, *graph.samples(first[:-1]))
    return (*first[:-1], weight[0])
