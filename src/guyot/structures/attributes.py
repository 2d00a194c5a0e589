"""Attributes of the user's modules that state lengths: they must follow when the lengths change.

Where a `forward` says `x.view(-1, self.num_heads, self.head_dim)` the graph only shows numbers. An
attribute of the module that has the same value and a name for such a thing is taken to be where a
number came from; so is one that has the size of a dimension of the module's own tensors, as far as
there is only one such dimension. A module with one weight may state what that reads, or makes, if
the name says `out`. Verification runs the module afterwards.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from torch import fx, nn

from guyot.core.types import Attribute, Axis, Fixed, Units
from guyot.structures.axes import DimVar, leaves, parts_of
from guyot.structures.axis_graph import AxisGraph
from guyot.structures.trace import module_of

COUNTS = re.compile(r"(^|_)n?(heads?|groups?)$")
"""Names of numbers of heads or groups."""

LENGTHS = re.compile(
    r"(^|_)(\w*dims?|d|dh|nf|nx|\w*size|width|channels|chs|features|planes)(_\w+)?$"
)
"""Names of widths."""

MADE = re.compile(r"(^|_)out(_|$)")
"""Names of widths that a module makes; the others are of what it reads."""

OTHERS = re.compile(
    r"window|patch|kernel|vocab|im(a)?ge?|chunk|grid|batch|seq|len|pool|input|output|shift|pad"
)
"""What has a size but is no width."""


def attributes(
    graph: AxisGraph, model: nn.Module, axis: Callable[[DimVar], Axis]
) -> tuple[Attribute, ...]:
    """Return all attributes that state the length of a dimension that may shrink.

    Args:
        graph: after `run()`.
        model: whose modules have the attributes.
        axis: what became of a dim.
    """
    seen: dict[tuple[str, str], Attribute] = {}
    for module, name, dim in graph.attributes:
        resolved = axis(dim)
        stands = getattr(model.get_submodule(module), name, dim.size) == dim.size
        if stands and not isinstance(resolved, Fixed):
            seen[module, name] = Attribute(module, name, resolved)
    own = learned(graph)
    in_forward: dict[str, dict[Axis, int]] = defaultdict(dict)
    for node, number, dim in stated(graph):
        if own.issuperset(leaves(dim)):  # not a number of tokens or samples
            in_forward[module_of(node)][axis(dim)] = number
    for node in graph.outputs:  # a forward that cuts a tensor into pieces knows its length
        place = graph.named(node, "dim", None)
        if isinstance(place, int) and node.args[0] in graph.dims:
            whole = graph.dims[node.args[0]][place]
            in_forward[module_of(node)][axis(whole)] = whole.size
    of_tensors: dict[str, dict[Axis, int]] = defaultdict(dict)
    read: dict[str, list[set[Axis]]] = defaultdict(list)
    for name, dims in graph.tensors.items():
        owner = name.rpartition(".")[0]
        for module in (owner, owner.rpartition(".")[0]):
            of_tensors[module].update((axis(part), part.size) for d in dims for part in parts_of(d))
            if len(dims) > 1:
                read[module].append({axis(dim) for dim in dims[1:]})
    for sources in (in_forward, of_tensors):
        for module, numbers in sources.items():
            if any(not isinstance(resolved, Fixed) for resolved in numbers):
                own = model.get_submodule(module)
                sole = read[module][0] if len(read[module]) == 1 else None
                for found in _explained(own, module, numbers, sole):
                    seen.setdefault((module, found.name), found)
    return tuple(seen.values())


def _explained(
    module: nn.Module, path: str, numbers: dict[Axis, int], read: Container[Axis] | None
) -> Iterator[Attribute]:
    """Yield attributes of a module with the value of a stated number and a name that fits.

    Args:
        module: whose attributes they are.
        path: its qualified name.
        numbers: axis -> its size.
        read: the axes that the only weight of the module reads; None if it has others.
    """
    for name, value in vars(module).items():
        if type(value) is not int or OTHERS.search(name):
            continue
        fits = [a for a, n in numbers.items() if n == value and _named_like(name, a)]
        if len(fits) > 1 and read is not None and not COUNTS.search(name):
            fits = [a for a in fits if (a in read) is not bool(MADE.search(name))]
        if len(fits) == 1 and not isinstance(fits[0], Fixed):
            yield Attribute(path, name, fits[0])


def _named_like(name: str, axis: Axis) -> bool:
    """Return whether an attribute may stand for an axis, by its name."""
    if COUNTS.search(name):
        return isinstance(axis, Units)
    return bool(LENGTHS.search(name))


def stated(graph: AxisGraph) -> Iterator[tuple[fx.Node, int, DimVar]]:
    """Yield every number that an operator's arguments state about a dim."""
    for node in graph.shaped:
        yield from _each(node, node.args[-1], graph.dims[node])
    for node, position, dims in graph.literals:
        given = node.args[position] if position < len(node.args) else None
        yield from _each(node, given, (dims,) if isinstance(dims, DimVar) else dims)


def _each(
    node: fx.Node, given: Any, dims: Sequence[DimVar]
) -> Iterator[tuple[fx.Node, int, DimVar]]:
    for number, dim in zip(*numbers_of(node, given, dims), strict=True):
        if type(number) is int and number == dim.size and number > 1:
            yield node, number, dim


def numbers_of(
    node: fx.Node, given: Any, dims: Sequence[DimVar]
) -> tuple[list[Any], Sequence[DimVar]]:
    """Return the numbers that an argument states and the dims that they are about."""
    numbers: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]  # pyright: ignore[reportUnknownArgumentType]
    if len(numbers) != len(dims):  # unflatten states some dims in the middle
        start = int(node.args[1]) % (len(dims) - len(numbers) + 1)  # pyright: ignore[reportArgumentType]
        dims = dims[start : start + len(numbers)]
    return numbers, dims


def learned(graph: AxisGraph) -> set[DimVar]:
    """Return all leaves of the dims of parameters and buffers."""
    return {leaf for dims in graph.tensors.values() for dim in dims for leaf in leaves(dim)}
