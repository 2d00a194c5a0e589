"""Read groups, tensors and operations off the dims of a finished graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd, lcm, prod

from torch import fx, nn

from guyot.core.reasons import Reason, ReasonKind
from guyot.core.types import (
    Axis,
    Frozen,
    Operation,
    Slot,
    Structures,
    TensorShape,
    UnitGroup,
    Within,
)
from guyot.structures.attributes import attributes
from guyot.structures.axes import (
    SPACE,
    DimVar,
    Length,
    leaves,
    own_length,
    resolve_axis,
    root_of,
)
from guyot.structures.axis_graph import AxisGraph
from guyot.structures.blocks import blocks_of
from guyot.structures.branches import Branch
from guyot.structures.kernels import kernels_of
from guyot.structures.restated import modules_stating, restated
from guyot.structures.trace import Trace, shape_of
from guyot.structures.verify.remedies import Remedies


@dataclass
class Inference:
    """The result of a graph: structures, and the axes the graph interpreter needs.

    Attributes:
        structures: what can go and what everything costs.
        shapes: name of a node whose arguments state a shape -> axes of its result.
        literals: name of a node -> position of an integer argument -> the axis it states.
        stating: group -> the modules whose `forward` states a length with it.
    """

    structures: Structures
    shapes: dict[str, tuple[Axis, ...]]
    literals: dict[str, dict[int, Axis | tuple[Axis, ...]]]
    stating: dict[int, set[str]]


@dataclass
class GroupNames:
    """The names of groups.

    Attributes:
        of: leaf -> name of its group.
        tied: name of a group -> names of the groups that are one with it.
    """

    of: dict[DimVar, str]
    tied: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def name_groups(graph: AxisGraph) -> GroupNames:
    """Name every class of dims after the tensor that first produces it."""
    taken: set[str] = set()
    names: dict[DimVar, str] = {}
    members = members_of(graph)
    for leaf in sorted(members, key=lambda leaf: leaf.reason == SPACE):  # units come first
        slots = members[leaf]
        writers = [slot for slot in slots if slot not in graph.contracted]
        names[leaf] = _group_name(writers or slots, taken)
    return GroupNames(names)


def members_of(graph: AxisGraph) -> dict[DimVar, list[Slot]]:
    """Return, for every leaf with more than one entry, where it is in parameters and buffers."""
    members: dict[DimVar, list[Slot]] = defaultdict(list)
    for name, dims in graph.tensors.items():
        for position, dim in enumerate(dims):
            for leaf in leaves(dim):
                if leaf.size > 1:
                    members[leaf].append(Slot(name, position))
    return members


def _stride(graph: AxisGraph, leaf: DimVar, slots: Sequence[Slot], block: DimVar | None) -> int:
    """Return the greatest common divisor of the entries per unit in the weights of a group."""
    weights = {slot.tensor for slot in graph.contracted}
    return gcd(
        *(
            _entries(graph.tensors[slot.tensor][slot.dim], leaf, block)
            for slot in slots
            if slot.tensor in weights
        )
    )


def _entries(dim: DimVar, leaf: DimVar, block: DimVar | None) -> int:
    """Return the entries per unit of a leaf in a dim that holds it; 0 in one that does not.

    What stands beside it and may shrink itself does not count, nor what numbers its blocks.
    """
    dim = root_of(dim)
    if dim.kind == "leaf":
        return int(dim is root_of(leaf))
    found = [_entries(part, leaf, block) for part in dim.parts]
    if dim.kind == "concat":
        return gcd(*found)
    beside = (root_of(part) for part, inside in zip(dim.parts, found, strict=True) if not inside)
    fixed = (
        part.size
        for part in beside
        if part is not block and all(below.reason for below in leaves(part))
    )
    return max(found) * prod(fixed)


def _groups(
    graph: AxisGraph,
    names: GroupNames,
    blocks: Mapping[DimVar, DimVar],
    trainable: Container[str],
    excluded: Mapping[str, Reason],
    length: Length,
) -> tuple[dict[DimVar, int], list[UnitGroup], dict[str, Reason]]:
    """Number the leaves that may shrink; return their groups, and why the others may not."""
    frozen: dict[str, Reason] = {}
    groups: list[UnitGroup] = []
    number: dict[DimVar, int] = {}
    multiples: dict[DimVar, int] = defaultdict(lambda: 1)
    for dim, least in graph.multiples:
        for leaf in leaves(dim):
            multiples[leaf] = lcm(multiples[leaf], least)
    for leaf, slots in members_of(graph).items():
        readers = tuple(slot for slot in slots if slot in graph.contracted)
        name = names.of[leaf]
        tied = names.tied.get(name, ())
        reason = leaf.reason or excluded.get(name)
        if reason is None and not readers:
            reason = Reason(ReasonKind.NOT_LEARNED, "no weight reads it")
        if reason is None and not any(s.tensor in trainable for s in slots if s not in readers):
            reason = Reason(ReasonKind.NOT_LEARNED, "nothing that learns makes it")
        if reason is not None:
            if reason != SPACE and any(slot.tensor in trainable for slot in slots):
                frozen |= dict.fromkeys((name, *tied), reason)
            continue
        number[leaf] = len(groups)
        block = blocks.get(leaf)
        size = length(leaf) * (length(block) if block else 1)
        stride = _stride(graph, leaf, slots, block)
        least = gcd(multiples[leaf], leaf.size)
        groups.append(UnitGroup(name, size, tuple(slots), readers, tied, stride, multiple=least))
    return number, groups, frozen


def infer(
    graph: AxisGraph,
    names: GroupNames,
    branches: Sequence[Branch],
    model: nn.Module,
    remedies: Remedies,
    length: Length = own_length,
) -> Inference:
    """Read groups, tensors, operations and layers off a finished graph.

    Args:
        graph: after `run()`.
        names: of the groups.
        branches: the removable residual branches.
        model: the network that was traced.
        remedies: what failed before and is done about it.
        length: of every dim; another than the network's own describes a narrower one.
    """
    trainable = {graph.canonical[name] for name, _ in model.named_parameters()}
    blocks = blocks_of(
        graph, {leaf for leaf, name in names.of.items() if name in remedies.together}
    )
    number, groups, frozen = _groups(graph, names, blocks, trainable, remedies.excluded, length)

    def axis(dim: DimVar) -> Axis:
        return resolve_axis(dim, lambda leaf: number.get(root_of(leaf)), blocks.get, length)

    for leaf in blocks:
        if leaf in number and isinstance(own := axis(leaf), Within):
            groups[number[leaf]] = replace(groups[number[leaf]], block=own.block)

    holders: dict[str | fx.Node, list[int]] = defaultdict(list)
    for position, branch in enumerate(branches):
        for part in (*branch.layer.tensors, *branch.nodes):
            holders[part].append(position)
    tensors = tuple(
        TensorShape(
            name,
            tuple(axis(dim) for dim in dims),
            tuple(holders.get(name, ())),
            name in trainable,
        )
        for name, dims in graph.tensors.items()
    )
    specs, lengths = restated(graph, axis, remedies.rewritten)
    structures = Structures(
        groups=tuple(groups),
        layers=tuple(branch.layer for branch in branches),
        tensors=tensors,
        operations=_operations(graph, axis, holders),
        attributes=attributes(graph, model, axis) + lengths,
        restated=specs,
        frozen=Frozen.of(frozen),
        input_shapes=_input_shapes(graph.trace),
        kernels=kernels_of(graph, branches, axis),
    )
    shapes = {node.name: tuple(axis(d) for d in graph.dims[node]) for node in graph.shaped}
    return Inference(structures, shapes, _literals(graph, axis), modules_stating(graph, axis))


def _operations(
    graph: AxisGraph, axis: Callable[[DimVar], Axis], holders: Mapping[str | fx.Node, Sequence[int]]
) -> tuple[Operation, ...]:
    batch = root_of(graph.batch)
    return tuple(
        Operation(
            name,
            tuple(axis(d) for d in dims if root_of(d) is not batch),
            tuple(holders.get(node, ())),
        )
        for node, name, dims in graph.counts
    )


def _literals(
    graph: AxisGraph, axis: Callable[[DimVar], Axis]
) -> dict[str, dict[int, Axis | tuple[Axis, ...]]]:
    literals: dict[str, dict[int, Axis | tuple[Axis, ...]]] = defaultdict(dict)
    for node, position, stated in graph.literals:
        one = isinstance(stated, DimVar)
        literals[node.name][position] = axis(stated) if one else tuple(map(axis, stated))
    return literals


def _input_shapes(trace: Trace) -> tuple[tuple[int, ...], ...]:
    nodes = [n for n in trace.graph.nodes if n.op == "placeholder" and n.name in trace.inputs]
    return tuple(shape for node in nodes if (shape := shape_of(node)) is not None)


def _group_name(slots: Sequence[Slot], taken: set[str]) -> str:
    stem = slots[0].tensor.rpartition(".")[0] or slots[0].tensor
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}:{count}"
    taken.add(name)
    return name
