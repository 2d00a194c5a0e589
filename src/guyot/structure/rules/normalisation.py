"""Normalisations: per channel (BatchNorm), or over dims that must then not shrink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structure.axes import freeze, unify
from guyot.structure.rules.registry import Dims, rule

if TYPE_CHECKING:
    from guyot.structure.inference import Walk

aten = torch.ops.aten


@rule(aten.batch_norm.default)
def batch_norm(walk: Walk, node: fx.Node) -> Dims:
    """Weight, bias and running statistics have one entry per channel."""
    (x,) = walk.operands(node, 0)
    for position, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
        if walk.has(node, position, name):
            (vector,) = walk.operands(node, position)
            unify(vector[0], x[1])
            walk.attribute(node, position, "num_features", x[1])
    return x


@rule(aten.layer_norm.default)
def layer_norm(walk: Walk, node: fx.Node) -> Dims:
    """Statistics run over the last dims: masking a unit would change them, so they are frozen."""
    (x,) = walk.operands(node, 0)
    normalised = x[len(x) - len(node.args[1]) :]  # pyright: ignore[reportArgumentType]
    for position, name in ((2, "weight"), (3, "bias")):
        if walk.has(node, position, name):
            (vector,) = walk.operands(node, position)
            for a, b in zip(vector, normalised, strict=True):
                unify(a, b)
    for dim in normalised:
        freeze(dim, f"the statistics of {walk.name(node)} (LayerNorm) run over it")
    return x
