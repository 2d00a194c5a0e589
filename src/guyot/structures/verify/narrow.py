"""A narrow twin of a network: the same operators on shorter dims, to verify structures on.

What is verified depends on which dims meet, not on how long they are. The twin is made of slices of
the network's own tensors, by the same surgery that removes units, and also along dims that never
shrink (the width of a transformer, its vocabulary). It costs what the graph costs, not what the
weights weigh.

The twin stands for the network as long as

1.  dims that were equally long are so still, and others differ: what fits by chance in the twin
    fits by chance in the network;
2.  the `forward` of the twin computes what the graph of the *network* computes at these lengths, to
    rounding errors of float64. A `forward` that takes another way for other lengths does not.

Where one of them fails, the network itself is verified.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor, nn

from guyot.core.inputs import Inputs, arguments, changed, flat, on_meta, sharing_copy
from guyot.core.locate import named_tensors
from guyot.core.reasons import Reason, ReasonKind
from guyot.core.types import Axis, Fixed, KeepPlan, Structures, TensorShape, UnitGroup, Units
from guyot.structures.attributes import attributes
from guyot.structures.axes import (
    DimVar,
    Length,
    leaves,
    length_with,
    parts_of,
    resolve_axis,
    root_of,
)
from guyot.structures.axis_graph import OUTPUT, AxisGraph
from guyot.structures.inference import members_of
from guyot.structures.trace import is_large, module_of
from guyot.structures.verify.drawn import EMBEDDING, index_of, row_counts
from guyot.surgery import operate

SHORT = 9
"""The least number of entries that a dim is shortened to."""

aten = torch.ops.aten
_NORMS = {aten.layer_norm.default, aten.rms_norm.default}
_BY_NUMBER = {
    aten.index.Tensor,
    aten.index_select.default,
    aten.select.int,
    aten.gather.default,
    aten.unbind.int,
    aten.cumsum.default,
}
"""Operators that name single entries, which a shorter dim may not have."""


@dataclass(frozen=True)
class Twin:
    """A network to verify structures on.

    Attributes:
        model: the network.
        inputs: its arguments.
        length: how long each dim is in it.
    """

    model: nn.Module
    inputs: Inputs
    length: Length


def narrow_twins(model: nn.Module, inputs: Inputs, graph: AxisGraph) -> Iterator[Twin]:
    """Yield narrow twins of a network, the narrowest first; none of a small one.

    Args:
        model: the network; it is not changed. It may be on the meta device.
        inputs: its arguments.
        graph: after `run()`.
    """
    meta = on_meta(model)
    if not meta and not is_large(model):
        return
    for chosen in (_may_be_shorter, lambda reason: reason is None):
        sizes = _short(graph, chosen)
        if not sizes and not meta:
            continue
        try:
            twin = _sliced(model, graph, sizes)
        except Exception:  # noqa: BLE001  (whatever a user's class raises)
            continue
        yield Twin(twin, _within(twin, inputs, graph), length_with(sizes))


def _may_be_shorter(reason: Reason | None) -> bool:
    return reason is None or reason.kind is ReasonKind.OPERATOR or reason == OUTPUT


def _short(graph: AxisGraph, chosen: Callable[[Reason | None], bool]) -> dict[DimVar, int]:
    """Return shorter sizes of leaves: dims of equal lengths stay so, others stay different."""
    stay = {leaf for dims in _taken_by_number(graph) for dim in dims for leaf in leaves(dim)}
    candidates: dict[int, list[DimVar]] = defaultdict(list)
    for leaf in members_of(graph):
        if chosen(leaf.reason) and leaf not in stay:
            candidates[leaf.size].append(leaf)
    composed: dict[int, set[DimVar]] = defaultdict(set)
    every = (dim for dims in graph.tensors.values() for dim in dims)
    for dim in {part for whole in every for part in parts_of(whole)}:
        if dim.kind != "leaf":
            composed[dim.size].add(dim)
    taken = {leaf.size for dims in graph.dims.values() for dim in dims for leaf in leaves(dim)}
    short: dict[DimVar, int] = {}
    length = length_with(short)
    for size, alike in sorted(candidates.items()):  # what a dim is composed of is shorter
        lengths = {length(dim) for dim in composed[size]}
        if not lengths:
            least = _least(graph, size)
            fitting = (n for n in range(least, size, least) if n >= SHORT and n not in taken)
            lengths = {next(fitting, size)}
        taken |= lengths
        if len(lengths) == 1:
            short.update(dict.fromkeys(alike, lengths.pop()))
    return {leaf: size for leaf, size in short.items() if size < leaf.size}


def _least(graph: AxisGraph, size: int) -> int:
    """Return what the length of every dim of a size has to be a multiple of."""
    return lcm(
        *(number for dim, number in graph.multiples if size in {x.size for x in leaves(dim)})
    )


def _taken_by_number(graph: AxisGraph) -> Iterator[Sequence[DimVar]]:
    """Yield dims that hold entries which are named by their numbers."""
    for node, dims in graph.dims.items():
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        if node.target in _BY_NUMBER:
            left = {root_of(dim) for dim in dims}
            yield [dim for dim in graph.dims.get(source, ()) if root_of(dim) not in left]
        elif node.target is EMBEDDING and index_of(node) not in graph.trace.inputs:
            yield graph.dims[source][:1]


def _sliced(model: nn.Module, graph: AxisGraph, sizes: dict[DimVar, int]) -> nn.Module:
    """Return a copy of a model of which the first entries of each chosen leaf are left."""
    numbers = {leaf: number for number, leaf in enumerate(sizes)}
    members = members_of(graph)
    structures = Structures(
        groups=tuple(
            UnitGroup(str(number), leaf.size, tuple(members[leaf]), ())
            for leaf, number in numbers.items()
        ),
        layers=(),
        tensors=tuple(
            TensorShape(
                name,
                tuple(resolve_axis(dim, lambda x: numbers.get(root_of(x))) for dim in dims),
                (),
                False,
            )
            for name, dims in graph.tensors.items()
        ),
        operations=(),
    )
    twin = sharing_copy(model)
    plan = KeepPlan({numbers[leaf]: torch.arange(size) for leaf, size in sizes.items()})
    operate(twin, structures, plan)
    _tell(twin, model, graph, length_with(sizes))
    return _with_numbers(twin)


def _tell(twin: nn.Module, model: nn.Module, graph: AxisGraph, length: Length) -> None:
    """Set the attributes of a twin that state lengths; dims of one length need no telling apart."""

    def axis(dim: DimVar) -> Axis:
        own = root_of(dim).size
        return Fixed(own) if length(dim) == own else Units(length(dim))

    for found in attributes(graph, model, axis):
        assert isinstance(found.axis, Units)
        setattr(twin.get_submodule(found.module), found.name, found.axis.group)
    for node, dims in graph.dims.items():
        owner = twin.get_submodule(module_of(node)) if node.target in _NORMS else twin
        if node.target in _NORMS and hasattr(owner, "normalized_shape"):
            count = len(node.args[1])  # pyright: ignore[reportArgumentType]
            vars(owner)["normalized_shape"] = tuple(map(length, dims[-count:]))


def _with_numbers(model: nn.Module) -> nn.Module:
    """Give tensors of the meta device numbers, 0 what counts or points; put all on the CPU."""
    if not on_meta(model):
        return model
    known = {name: x.clone() for name, x in named_tensors(model).items() if not x.is_meta}
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) - 0.5)
        for buffer in model.buffers():
            buffer.zero_()
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        for name, tensor in named_tensors(model).items():
            if name in known:
                tensor.copy_(known[name])
    return model


def _within(model: nn.Module, inputs: Inputs, graph: AxisGraph) -> Inputs:
    """Return inputs on the CPU that name no row of a table that a model has not."""
    given, rows = flat(arguments(model, inputs)), row_counts(model, graph.trace)
    count = dict(zip(map(id, given), map(rows.get, graph.trace.inputs), strict=True))

    def less(tensor: Tensor) -> Tensor:
        number = count.get(id(tensor))
        meta = tensor.device.type == "meta"
        real = torch.zeros_like(tensor, device="cpu") if meta else tensor.cpu()
        return real if number is None else real % number

    return changed(inputs, less)
