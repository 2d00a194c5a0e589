"""Linear layers and matrix products with a parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import Dims, unify
from guyot.structures.rules.registry import rule

if TYPE_CHECKING:
    from guyot.structures.walk import Walk

aten = torch.ops.aten


@rule(aten.linear.default)
def linear(walk: Walk, node: fx.Node) -> Dims:
    """Weight (out, in): dimension 1 contracts the last dimension of the input."""
    x, weight = walk.operands(node, 0, 1)
    unify(x[-1], weight[1])
    walk.contract(node, 1, dim=1)
    if walk.has(node, 2, "bias"):
        (bias,) = walk.operands(node, 2)
        unify(bias[0], weight[0])
    walk.attribute(node, 1, "in_features", weight[1])
    walk.attribute(node, 1, "out_features", weight[0])
    walk.count(node, weight[0], weight[1], *walk.samples(x[:-1]))
    return (*x[:-1], weight[0])
