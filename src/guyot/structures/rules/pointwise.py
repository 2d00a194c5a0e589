"""Elementwise operators with one, two or more tensor operands (with broadcasting)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import DimVars, unify
from guyot.structures.rules.registry import rule
from guyot.structures.trace import shape_of

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten

UNARY = (
    "relu relu_ relu6 hardtanh hardtanh_ gelu silu silu_ sigmoid sigmoid_ tanh tanh_ elu elu_ celu "
    "selu selu_ mish mish_ softplus hardswish hardswish_ hardsigmoid hardsigmoid_ leaky_relu "
    "leaky_relu_ dropout dropout_ feature_dropout alpha_dropout clone contiguous detach detach_ "
    "abs neg exp sqrt rsqrt square clamp clamp_ log_sigmoid to type_as _to_copy alias "
    "real imag conj resolve_conj zeros_like ones_like full_like empty_like zero_ fill_ zero fill"
).split()
MANY = (
    "add add_ sub sub_ mul mul_ div div_ maximum minimum where pow addcmul lerp _prelu_kernel"
).split()


def overloads(names: Iterable[str]) -> list[object]:
    """Every overload of the named aten operators that this PyTorch has."""
    packets = [getattr(aten, name) for name in names if hasattr(aten, name)]
    return [getattr(packet, overload) for packet in packets for overload in packet.overloads()]


@rule(*overloads(UNARY))
def unary(graph: AxisGraph, node: fx.Node) -> DimVars:
    """The output has the dims of the first operand."""
    (x,) = graph.operands(node, 0)
    return x


@rule(*overloads(MANY), torch.Tag.pointwise)
def elementwise(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Dims are aligned from the right; those of size 1 stretch."""
    operands = [graph.dims[arg] for arg in node.all_input_nodes if arg in graph.dims]
    result = [graph.new(size) for size in shape_of(node) or ()]
    for position in range(1, len(result) + 1):
        for operand in operands:
            if position <= len(operand) and operand[-position].size == result[-position].size:
                if result[-position].size == 1:
                    continue
                unify(operand[-position], result[-position])
    return tuple(result)


@rule(aten.prelu.default)
def prelu(graph: AxisGraph, node: fx.Node) -> DimVars:
    """The weight has one slope for all channels, or one for each."""
    x, weight = graph.operands(node, 0, 1)
    if weight[0].size > 1:
        unify(weight[0], x[min(1, len(x) - 1)])
        graph.attribute(node, 1, "num_parameters", weight[0])
    return x
