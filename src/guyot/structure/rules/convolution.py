"""Convolutions of any rank and number of groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structure.axes import Dim, factor, freeze, product, unify
from guyot.structure.rules.registry import SPACE, Dims, rule

if TYPE_CHECKING:
    from guyot.structure.walk import Walk

aten = torch.ops.aten


@rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
@rule(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def convolution(walk: Walk, node: fx.Node) -> Dims:
    """Weight (out, in / groups, *kernel): dimension 1 contracts the input's channels."""
    x, weight = walk.operands(node, 0, 1)
    groups = int(walk.argument(node, 6, "groups", 1))
    kernel = weight[2:]
    outputs = weight[0]
    inputs = x[1]
    for dim in kernel:
        freeze(dim, SPACE)
    if groups == 1:
        unify(weight[1], inputs)
        fan_in: tuple[Dim, ...] = (weight[1],)
    else:
        group, inner = factor(inputs, groups)
        out_group, out_inner = factor(outputs, groups)
        unify(group, out_group)
        unify(weight[1], inner)
        for dim in (inner, out_inner):
            freeze(dim, f"channels inside the {groups} groups of {walk.name(node)}")
        walk.attribute(node, 1, "groups", group)
        walk.literal(node, 6, group)
        fan_in = (weight[1],)
    walk.contract(node, 1, dim=1)
    if walk.has(node, 2, "bias"):
        (bias,) = walk.operands(node, 2)
        unify(bias[0], outputs)
    walk.attribute(node, 1, "in_channels", inputs)
    walk.attribute(node, 1, "out_channels", outputs)
    space = walk.fresh(node, start=2)
    walk.count(node, outputs, product(*fan_in), *kernel, *walk.samples((x[0], *space)))
    return (x[0], outputs, *space)
