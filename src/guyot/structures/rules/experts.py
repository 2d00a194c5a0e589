"""Products of rows with the matrix of the expert that each was sent to."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import DimVars, freeze, unify
from guyot.structures.axis_graph import base_of
from guyot.structures.rules.registry import rule
from guyot.structures.trace import shape_of

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

ALIGNED = 8
"""Entries of 16 bits in the 16 bytes that a row of either operand has to be a multiple of."""


@rule(torch.ops.aten._grouped_mm.default, "transformers.grouped_mm_fallback.default")
def grouped_product(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Rows (S, k), matrices (experts, k, n): all experts have the same units.

    The kernels want rows that lie 16 bytes apart, so k comes in multiples, and n where the matrices
    are not transposed.
    """
    if len(node.args) < 3 or len(shape_of(node.args[1]) or ()) != 3:  # pyright: ignore[reportArgumentType]
        return graph.unknown(node)
    rows, matrices = graph.operands(node, 0, 1)
    if len(rows) != 2:
        return graph.unknown(node)
    freeze(matrices[0], f"{graph.name(node)} sends rows to them by number")
    unify(rows[1], matrices[1])
    graph.contract(node, 1, dim=1)
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    stored = graph.dims[base_of(weight)][-1]
    for dim in (rows[1], stored):
        graph.multiple(dim, gcd(ALIGNED, dim.size))
    graph.count(node, *matrices[1:], *graph.samples(rows[:1]))
    return (rows[0], matrices[2])
