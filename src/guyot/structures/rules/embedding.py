"""Tables and entries that are looked up by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.structures.axes import Dims, freeze
from guyot.structures.rules.pointwise import overloads
from guyot.structures.rules.registry import rule
from guyot.structures.trace import shape_of

if TYPE_CHECKING:
    from guyot.structures.walk import Walk

aten = torch.ops.aten


@rule(aten.embedding.default)
def embedding(walk: Walk, node: fx.Node) -> Dims:
    """Weight (entries, width): one row for every index."""
    weight, index = walk.operands(node, 0, 1)
    freeze(weight[0], f"the entries of {walk.name(node)} are looked up by number")
    walk.attribute(node, 0, "embedding_dim", weight[1])
    return (*index, weight[1])


@rule(*overloads(["index"]))
def index(walk: Walk, node: fx.Node) -> Dims:
    """`x[a, :, b]`: dims with an index are looked up, the others pass.

    Neighbouring indices leave their dims in their place, separated ones put them in front.
    """
    (x,) = walk.operands(node, 0)
    given: list[fx.Node | None] = list(node.args[1])  # pyright: ignore[reportArgumentType,reportAssignmentType]
    shape = shape_of(node)
    assert shape is not None
    places = [place for place, entry in enumerate(given) if entry is not None]
    for place in places:
        freeze(x[place], f"{walk.name(node)} looks its entries up by number")
    passing = [dim for place, dim in enumerate(x) if place not in places]
    adjacent = places == list(range(places[0], places[-1] + 1))
    before = places[0] if adjacent else 0
    looked_up = len(shape) - len(passing)
    new = [walk.constant(size) for size in shape[before : before + looked_up]]
    return (*passing[:before], *new, *passing[before:])


@rule(*overloads(["select"]))
def select(walk: Walk, node: fx.Node) -> Dims:
    """One entry of a dim, by its number."""
    (x,) = walk.operands(node, 0)
    place = int(walk.argument(node, 1, "dim", 0)) % len(x)
    freeze(x[place], f"{walk.name(node)} takes one of its entries by number")
    return (*x[:place], *x[place + 1 :])


@rule(*overloads(["unbind"]))
def unbind(walk: Walk, node: fx.Node) -> list[Dims]:
    """Every entry of a dim on its own."""
    (x,) = walk.operands(node, 0)
    place = int(walk.argument(node, 1, "dim", 0)) % len(x)
    freeze(x[place], f"{walk.name(node)} takes its entries apart")
    return [(*x[:place], *x[place + 1 :])] * x[place].size


@rule(*overloads(["index_select"]))
def index_select(walk: Walk, node: fx.Node) -> Dims:
    """Some entries of a dim, by their numbers."""
    (x,) = walk.operands(node, 0)
    place = int(walk.argument(node, 1, "dim", 0)) % len(x)
    shape = shape_of(node)
    assert shape is not None
    freeze(x[place], f"{walk.name(node)} looks its entries up by number")
    return (*x[:place], walk.constant(shape[place]), *x[place + 1 :])


@rule(*overloads("zeros ones full new_zeros new_ones new_full".split()))
def filled(walk: Walk, node: fx.Node) -> Dims:
    """A tensor of one value: every part of it is like every other."""
    shape = shape_of(node)
    assert shape is not None
    dims = tuple(walk.new(size) for size in shape)
    walk.literal_sizes(node, 1 if str(node.target).startswith("aten.new_") else 0, dims)
    return dims


@rule(*overloads("arange linspace eye lift_fresh_copy".split()))
def numbers(walk: Walk, node: fx.Node) -> Dims:
    """Made from numbers in `forward`: nothing in it may go."""
    shape = shape_of(node)
    assert shape is not None
    return tuple(walk.constant(size) for size in shape)
