"""Which units each group of a grouped convolution may have of its own.

The channels that a convolution with G groups reads or makes are G blocks of n. By itself inference
says that they are a product, G x n: a unit of the second factor is a channel in *every* block. As
far as nothing else looks at that factor without the first, every block may lose channels of its
own, as long as all lose as many: then n stands for G n units, and a place in the network where the
two factors meet says which of them is meant.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from guyot.structures.axes import DimVar, leaves, root_of

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph


def blocks_of(graph: AxisGraph, together: Container[DimVar]) -> dict[DimVar, DimVar]:
    """Return, for leaves whose units are each block's own, the leaf that numbers the blocks.

    Args:
        graph: after `run()`.
        together: leaves that are to stay the same units in every block.
    """
    number: dict[DimVar, DimVar] = {}
    undecided: set[DimVar] = set()
    for block, own in graph.own_units:
        block, own = root_of(block), root_of(own)
        fits = block.kind == own.kind == "leaf" and min(block.size, own.size) > 1
        if not fits or own in together or number.setdefault(own, block) is not block:
            undecided.add(own)
    undecided.update(own for own, block in number.items() if block in number)
    found = {own: block for own, block in number.items() if own not in undecided}
    for name, dims in graph.tensors.items():
        for place, dim in enumerate(dims):
            alone = graph.blocked.get((name, place))
            undecided.update(_lost(dim, found, [] if alone is None else [alone]))
    for several in (*graph.dims.values(), *(d for all_ in graph.outputs.values() for d in all_)):
        beside = [leaf for dim in several for leaf in leaves(dim)]
        for dim in several:
            undecided.update(_lost(dim, found, beside))
    return {own: block for own, block in found.items() if own not in undecided}


def _lost(dim: DimVar, found: dict[DimVar, DimVar], beside: Iterable[DimVar]) -> list[DimVar]:
    """Return the leaves of a dim that stand there without what numbers their blocks."""
    dim = root_of(dim)
    if dim.kind == "leaf":
        block = found.get(dim)
        return [] if block is None or any(root_of(b) is block for b in beside) else [dim]
    parts = [root_of(part) for part in dim.parts]
    lost: list[DimVar] = []
    for part in parts:
        if part.kind != "leaf":
            lost += _lost(part, found, ())
        elif part in found:
            once = parts.count(part) == parts.count(found[part]) == 1
            lost += [] if once and dim.kind == "product" else [part]
    return lost
