"""Tables and entries that are looked up by number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.core.torch_private import schema_of
from guyot.structures.axes import DimVars, freeze
from guyot.structures.rules.pointwise import overloads
from guyot.structures.rules.registry import rule
from guyot.structures.trace import shape_of

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten


@rule(aten.embedding.default)
def embedding(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Weight (entries, width): one row for every index."""
    weight, index = graph.operands(node, 0, 1)
    freeze(weight[0], f"the entries of {graph.name(node)} are looked up by number")
    graph.attribute(node, 0, "embedding_dim", weight[1])
    return (*index, weight[1])


@rule(*overloads(["index"]))
def index(graph: AxisGraph, node: fx.Node) -> DimVars:
    """`x[a, :, b]`: dims with an index are looked up, the others pass.

    Neighbouring indices leave their dims in their place, separated ones put them in front.
    """
    (x,) = graph.operands(node, 0)
    given: list[fx.Node | None] = list(node.args[1])  # pyright: ignore[reportArgumentType,reportAssignmentType]
    shape = shape_of(node)
    assert shape is not None
    places = [place for place, entry in enumerate(given) if entry is not None]
    for place in places:
        freeze(x[place], f"{graph.name(node)} looks its entries up by number")
    passing = [dim for place, dim in enumerate(x) if place not in places]
    adjacent = places == list(range(places[0], places[-1] + 1))
    before = places[0] if adjacent else 0
    looked_up = len(shape) - len(passing)
    new = [graph.constant(size) for size in shape[before : before + looked_up]]
    return (*passing[:before], *new, *passing[before:])


@rule(*overloads(["select"]))
def take_entry(graph: AxisGraph, node: fx.Node) -> DimVars:
    """One entry of a dim, by its number."""
    (x,) = graph.operands(node, 0)
    place = int(graph.argument(node, 1, "dim", 0)) % len(x)
    freeze(x[place], f"{graph.name(node)} takes one of its entries by number")
    return (*x[:place], *x[place + 1 :])


@rule(*overloads(["unbind"]))
def unbind(graph: AxisGraph, node: fx.Node) -> list[DimVars]:
    """Every entry of a dim on its own."""
    (x,) = graph.operands(node, 0)
    place = int(graph.argument(node, 1, "dim", 0)) % len(x)
    freeze(x[place], f"{graph.name(node)} takes its entries apart")
    return [(*x[:place], *x[place + 1 :])] * x[place].size


@rule(*overloads(["index_select"]))
def index_select(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Some entries of a dim, by their numbers."""
    (x,) = graph.operands(node, 0)
    place = int(graph.argument(node, 1, "dim", 0)) % len(x)
    shape = shape_of(node)
    assert shape is not None
    freeze(x[place], f"{graph.name(node)} looks its entries up by number")
    return (*x[:place], graph.constant(shape[place]), *x[place + 1 :])


@rule(*overloads("zeros ones full new_zeros new_ones new_full".split()))
def constant_fill(graph: AxisGraph, node: fx.Node) -> DimVars:
    """A tensor of one value: every part of it is like every other."""
    shape = shape_of(node)
    assert shape is not None
    dims = tuple(graph.new(size) for size in shape)
    graph.literal_sizes(node, int(schema_of(node.target).arguments[0].name == "self"), dims)
    return dims


@rule(*overloads("arange linspace eye lift_fresh_copy".split()))
def number_range(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Made from numbers in `forward`: nothing in it may go."""
    shape = shape_of(node)
    assert shape is not None
    return tuple(graph.constant(size) for size in shape)
