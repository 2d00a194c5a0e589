"""Which modules get a derived class, because their `forward` states what may change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from torch import fx

from guyot.core.axis import groups_in
from guyot.core.types import Attribute, Axis, Fixed, Place, Restated
from guyot.structures.attributes import learned, numbers_of
from guyot.structures.axes import DimVar, leaves, root_of
from guyot.structures.axis_graph import AxisGraph
from guyot.structures.places import places_of
from guyot.structures.trace import module_of

SPLITS = {"split", "split_with_sizes"}
Statement = tuple[fx.Node, list[Any], Sequence[DimVar]]
ListedSizes = tuple[int | str | None, ...]


def statements(graph: AxisGraph) -> dict[str, list[Statement]]:
    """For every module the operators of its own `forward` that state lengths, in order."""
    found: dict[fx.Node, tuple[list[Any], Sequence[DimVar]]] = {}
    for node in graph.shaped:
        found[node] = numbers_of(node, node.args[-1], graph.dims[node])
    for node, position, dims in graph.literals:
        if position == 1 and operator_name(node) in {*SPLITS, "expand"}:
            every = (dims,) if isinstance(dims, DimVar) else dims
            found[node] = numbers_of(node, node.args[position], every)
    by_module: dict[str, list[Statement]] = defaultdict(list)
    for node in sorted(found):
        by_module[module_of(node)].append((node, *found[node]))
    return by_module


def operator_name(node: fx.Node) -> str:
    """Return what a `forward` calls the operator."""
    name = str(node.target).split(".")[1]
    return "split" if name in SPLITS else name


def modules_stating(graph: AxisGraph, axis: Callable[[DimVar], Axis]) -> dict[int, set[str]]:
    """For every group the modules that state lengths and have to do with it."""
    found: dict[int, set[str]] = defaultdict(set)
    for module, groups in _concerned(graph, axis).items():
        for group in groups:
            found[group].add(module)
    return found


def _concerned(graph: AxisGraph, axis: Callable[[DimVar], Axis]) -> dict[str, set[int]]:
    """For every module that states lengths the groups of these and of its own tensors."""
    found: dict[str, set[int]] = {
        module: {g for _, _, dims in calls for d in dims for g in groups_in(axis(d))}
        for module, calls in statements(graph).items()
    }
    for name, dims in graph.tensors.items():
        owner = name.rpartition(".")[0]
        for module in {owner, owner.rpartition(".")[0]} & found.keys():
            found[module].update(group for dim in dims for group in groups_in(axis(dim)))
    return found


def restated(
    graph: AxisGraph, axis: Callable[[DimVar], Axis], modules: set[str]
) -> tuple[tuple[Restated, ...], tuple[Attribute, ...]]:
    """Return what the given modules are to state, and the attributes that will hold lengths."""
    specs: list[Restated] = []
    attributes: list[Attribute] = []
    every = statements(graph) if modules else {}
    own, concerned = learned(graph), _concerned(graph, axis) if modules else {}
    places = places_of(graph.trace) if modules else {}
    for module in sorted(modules):
        names: dict[Axis, str] = {}
        sizes: dict[Place, ListedSizes] = {}
        stuck: dict[int, str] = {}
        for node, numbers, dims in every[module]:
            stated = tuple(_sizes(numbers, dims, axis, own, names, root_of(graph.batch)))
            if all(size is None for size in stated):
                continue
            place = places.get(node)
            if place is None:
                reason = f"it is not known where it states the lengths of {operator_name(node)}"
                stuck |= dict.fromkeys(concerned[module], reason)
                continue
            earlier = sizes.setdefault(place, stated)
            pairs = list(zip_longest(stated, earlier))
            sizes[place] = tuple(size if size == other else None for size, other in pairs)
            for size, other in pairs:
                if size != other:
                    reason = f"it states other lengths by {operator_name(node)} every time"
                    following = [held for held, name in names.items() if name in (size, other)]
                    groups = [group for held in following for group in groups_in(held)]
                    stuck |= dict.fromkeys(groups or concerned[module], reason)
        groups = tuple(sorted(concerned[module]))
        specs.append(Restated(module, tuple(sizes.items()), groups, tuple(stuck.items())))
        attributes += [Attribute(module, name, resolved) for resolved, name in names.items()]
    return tuple(specs), tuple(attributes)


def _sizes(
    numbers: Sequence[Any],
    dims: Sequence[DimVar],
    axis: Callable[[DimVar], Axis],
    own: set[DimVar],
    names: dict[Axis, str],
    batch: DimVar,
) -> Iterator[int | str | None]:
    """Return what is to be stated: what may change by attributes, what weights have by numbers.

    An attribute must not hold the batch of the example, so nothing is stated for what is folded
    into the batch; verification tells whether the `forward` follows by itself.
    """
    for number, dim in zip(numbers, dims, strict=True):
        resolved = axis(dim)
        if number != dim.size or batch in leaves(dim):  # -1, a symbol, or another batch's
            yield None
        elif not isinstance(resolved, Fixed):
            yield names.setdefault(resolved, f"length_{len(names) + 1}")
        else:
            yield resolved.size if dim.size > 1 and own.issuperset(leaves(dim)) else None
