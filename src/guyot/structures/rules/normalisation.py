"""Normalisations: per channel (BatchNorm), or over dims that must then not shrink."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import DimVars, factor, freeze, unify
from guyot.structures.rules.pointwise import overloads
from guyot.structures.rules.registry import rule

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten


@rule(aten.batch_norm.default, aten.instance_norm.default)
def batch_norm(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Weight, bias and statistics (of all samples or of each) have one entry per channel."""
    (x,) = graph.operands(node, 0)
    for position, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
        if graph.has(node, position, name):
            (vector,) = graph.operands(node, position)
            unify(vector[0], x[1])
            graph.attribute(node, position, "num_features", x[1])
    return x


@rule(aten.layer_norm.default)
def layer_norm(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Statistics run over the last dims: masking a unit would change them, so they are frozen."""
    return _over_last_dims(graph, node, "LayerNorm", (2, "weight"), (3, "bias"))


@rule(aten.rms_norm.default)
def rms_norm(graph: AxisGraph, node: fx.Node) -> DimVars:
    """The root mean square runs over the last dims: masking a unit would change it."""
    return _over_last_dims(graph, node, "RMSNorm", (2, "weight"))


def _over_last_dims(
    graph: AxisGraph, node: fx.Node, kind: str, *vectors: tuple[int, str]
) -> DimVars:
    """Statistics over `normalized_shape` freeze these dims; vectors have the same ones."""
    (x,) = graph.operands(node, 0)
    normalised = x[len(x) - len(node.args[1]) :]  # pyright: ignore[reportArgumentType]
    for position, name in vectors:
        if graph.has(node, position, name):
            (vector,) = graph.operands(node, position)
            for a, b in zip(vector, normalised, strict=True):
                unify(a, b)
    graph.literal_sizes(node, 1, normalised)
    for dim in normalised:
        freeze(dim, f"the statistics of {graph.name(node)} ({kind}) run over it")
    return x


@rule(aten._weight_norm.default)
def weight_norm(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Return a weight g v / |v|: one norm for every entry of a dim, over all other dims.

    A row may be removed, and a column that an operator reads. A column that it writes may not: its
    norm is that of the whole row.
    """
    v, g = graph.operands(node, 0, 1)
    row = int(graph.argument(node, 2, "dim", 0))
    if row < 0 or len(v) != len(g):
        return graph.unknown(node)
    unify(v[row], g[row])
    (operand, _) = node.all_input_nodes
    graph.only_read(
        operand,
        [place for place in range(len(v)) if place != row],
        f"the norm of {graph.name(node)} (weight_norm) runs over it",
    )
    return v


@rule(aten.group_norm.default)
def group_norm(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Statistics run over the channels of a group: a group may go, a channel of it may not."""
    (x,) = graph.operands(node, 0)
    group, channel = factor(x[1], int(graph.argument(node, 1, "num_groups", 1)))
    freeze(channel, f"the statistics of {graph.name(node)} (GroupNorm) run over it")
    graph.literal(node, 1, group)
    for position, name in ((2, "weight"), (3, "bias")):
        if graph.has(node, position, name):
            (vector,) = graph.operands(node, position)
            unify(vector[0], x[1])
            graph.attribute(node, position, "num_channels", x[1])
            graph.attribute(node, position, "num_groups", group)
    return x


@rule(*overloads("softmax log_softmax _softmax _log_softmax".split()))
def softmax(graph: AxisGraph, node: fx.Node) -> DimVars:
    """The sum runs over one dim: masking an entry would change it."""
    (x,) = graph.operands(node, 0)
    freeze(x[int(graph.argument(node, 1, "dim", -1))], f"{graph.name(node)} sums over it (softmax)")
    return x


@rule(*overloads("cumsum cumprod".split()))
def running(graph: AxisGraph, node: fx.Node) -> DimVars:
    """An entry holds what came before it."""
    (x,) = graph.operands(node, 0)
    freeze(x[int(graph.argument(node, 1, "dim", 0))], f"{graph.name(node)} adds up along it")
    return x
