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

from guyot.structures.axes import Dim, find, leaves

if TYPE_CHECKING:
    from guyot.structures.walk import Walk


def blocks_of(walk: Walk, together: Container[Dim]) -> dict[Dim, Dim]:
    """For every leaf whose units are each block's own the leaf that numbers the blocks.

    Args:
        walk: after `run()`.
        together: leaves that are to stay the same units in every block.
    """
    number: dict[Dim, Dim] = {}
    undecided: set[Dim] = set()
    for block, own in walk.own_units:
        block, own = find(block), find(own)
        fits = block.kind == own.kind == "leaf" and min(block.size, own.size) > 1
        if not fits or own in together or number.setdefault(own, block) is not block:
            undecided.add(own)
    undecided.update(own for own, block in number.items() if block in number)
    found = {own: block for own, block in number.items() if own not in undecided}
    for name, dims in walk.tensors.items():
        for place, dim in enumerate(dims):
            alone = walk.blocked.get((name, place))
            undecided.update(_lost(dim, found, [] if alone is None else [alone]))
    for several in (*walk.dims.values(), *(d for all_ in walk.outputs.values() for d in all_)):
        beside = [leaf for dim in several for leaf in leaves(dim)]
        for dim in several:
            undecided.update(_lost(dim, found, beside))
    return {own: block for own, block in found.items() if own not in undecided}


def _lost(dim: Dim, found: dict[Dim, Dim], beside: Iterable[Dim]) -> list[Dim]:
    """The leaves of a dim that stand there without what numbers their blocks."""
    dim = find(dim)
    if dim.kind == "leaf":
        block = found.get(dim)
        return [] if block is None or any(find(b) is block for b in beside) else [dim]
    parts = [find(part) for part in dim.parts]
    lost: list[Dim] = []
    for part in parts:
        if part.kind != "leaf":
            lost += _lost(part, found, ())
        elif part in found:
            once = parts.count(part) == parts.count(found[part]) == 1
            lost += [] if once and dim.kind == "product" else [part]
    return lost
