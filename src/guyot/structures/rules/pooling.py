"""Pooling, resampling, padding and reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import DimVar, DimVars, freeze
from guyot.structures.rules.pointwise import overloads
from guyot.structures.rules.registry import rule
from guyot.structures.trace import shape_of

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten

POOLING = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d "
    "upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
).split()
WITH_INDICES = (
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
).split()


def _pooled(graph: AxisGraph, node: fx.Node, shape: Sequence[int]) -> DimVars:
    """All but the dims of space pass; those are new."""
    (x,) = graph.operands(node, 0)
    windowed = 1 if "1d" in str(node.target) else 3 if "3d" in str(node.target) else 2
    for dim in x[-windowed:]:
        freeze(dim, f"{graph.name(node)} pools or resamples it")
    return (*x[:-windowed], *(graph.constant(size) for size in shape[-windowed:]))


@rule(*overloads(POOLING))
def pooling(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Batch and channels pass; the dims of space are new."""
    return _pooled(graph, node, shape_of(node) or ())


@rule(*overloads(WITH_INDICES))
def pooling_with_indices(graph: AxisGraph, node: fx.Node) -> list[DimVars]:
    """As pooling, with the places of the largest entries as a second result."""
    return [_pooled(graph, node, value.shape) for value in node.meta["val"]]


@rule(
    *overloads("mean sum amax amin prod var std norm linalg_vector_norm logsumexp".split()),
    *overloads("argmax argmin any all".split()),
)
def reduction(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Reduced dims must not shrink (a mean would change) but in sums that have weights."""
    return _reduced(graph, node)


@rule(
    *(getattr(aten, name).dim for name in "max min median nanmedian var_mean std_mean".split()),
    *(getattr(aten, name).correction for name in "var_mean std_mean".split()),
    *(getattr(aten, name).default for name in "max min median var_mean std_mean".split()),
    *overloads("mode kthvalue aminmax".split()),
)
def reduction_in_pairs(graph: AxisGraph, node: fx.Node) -> DimVars | list[DimVars]:
    """As `reduction`, maybe with two results: values and places, or spread and mean."""
    result = _reduced(graph, node)
    return [result, result] if isinstance(node.meta["val"], (tuple, list)) else result


def _reduced(graph: AxisGraph, node: fx.Node) -> DimVars:
    (x,) = graph.operands(node, 0)
    given = graph.named(node, "dim", None)
    listed = range(len(x)) if given is None else [given] if isinstance(given, int) else given
    reduced = {dim % len(x) for dim in listed} or set(range(len(x)))
    keep = bool(graph.named(node, "keepdim", False))
    weighted = node.target is aten.sum.dim_IntList
    for position in reduced:
        if weighted and graph.reads(node.all_input_nodes[0], position):
            continue  # zeros add nothing
        freeze(x[position], f"{graph.name(node)} reduces over it")
    result: list[DimVar] = []
    for position, dim in enumerate(x):
        if position not in reduced:
            result.append(dim)
        elif keep:
            result.append(graph.constant(1))
    return tuple(result)
