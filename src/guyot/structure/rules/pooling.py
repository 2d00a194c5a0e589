"""Pooling, resampling, padding and reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structure.axes import freeze
from guyot.structure.rules.pointwise import overloads
from guyot.structure.rules.registry import Dims, rule

if TYPE_CHECKING:
    from guyot.structure.walk import Walk

aten = torch.ops.aten

POOLING = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest2d "
    "upsample_bilinear2d"
).split()


@rule(*overloads(POOLING))
def pooling(walk: Walk, node: fx.Node) -> Dims:
    """Batch and channels pass; the dims of space are new."""
    (x,) = walk.operands(node, 0)
    return (x[0], x[1], *walk.fresh(node, start=2))


@rule(
    *overloads("mean sum amax amin prod var std norm linalg_vector_norm logsumexp".split()),
    *overloads("argmax argmin any all".split()),
)
def reduction(walk: Walk, node: fx.Node) -> Dims:
    """Reduced dims must not shrink (a mean would change); the others pass."""
    (x,) = walk.operands(node, 0)
    given = walk.named(node, "dim", None)
    listed = range(len(x)) if given is None else [given] if isinstance(given, int) else given
    reduced = {dim % len(x) for dim in listed} or set(range(len(x)))
    keep = bool(walk.named(node, "keepdim", False))
    for position in reduced:
        freeze(x[position], f"{walk.name(node)} reduces over it")
    result: list[object] = []
    for position, dim in enumerate(x):
        if position not in reduced:
            result.append(dim)
        elif keep:
            result.append(walk.constant(1))
    return tuple(result)  # pyright: ignore[reportReturnType]
