"""Every operator of the graph with what it computes and moves: what latency is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import fx

from guyot.core.torch_private import schema_of
from guyot.core.types import Axis, Fixed, Kernel
from guyot.structures.axes import DimVar, root_of
from guyot.structures.axis_graph import AxisGraph
from guyot.structures.branches import Branch
from guyot.structures.trace import module_of

ROOT = "(root)"
Shape = tuple[Axis, ...]


def kernels_of(
    graph: AxisGraph, branches: Sequence[Branch], axis: Callable[[DimVar], Axis]
) -> tuple[Kernel, ...]:
    """Return the operators that run, in order; those that only look at a tensor differently do not.

    Args:
        graph: after `run()`.
        branches: the removable residual branches.
        axis: the immutable axis of a dim.
    """
    counts: dict[fx.Node, list[Shape]] = defaultdict(list)
    for node, _, dims in graph.counts:
        counts[node].append(tuple(axis(d) for d in dims if root_of(d) is not root_of(graph.batch)))
    homes: dict[fx.Node, list[int]] = defaultdict(list)
    for number, branch in enumerate(branches):
        for node in _gone(branch):
            homes[node].append(number)
    moved: dict[fx.Node, tuple[Shape, ...]] = {}

    def activations(node: fx.Node) -> tuple[Shape, ...]:
        if node not in moved:
            results = [graph.dims[node]] if node in graph.dims else graph.outputs.get(node, [])
            moved[node] = tuple(_without_batch(graph, dims, axis) for dims in results)
        return moved[node]

    kernels: list[Kernel] = []
    for node in graph.trace.graph.nodes:
        if not _runs(node):
            continue
        tensors = [s for s in node.all_input_nodes if s.name in graph.trace.tensors]
        sources = [s for s in node.all_input_nodes if s not in tensors]
        names = (graph.canonical[graph.trace.tensors[s.name]] for s in tensors)
        kernels.append(
            Kernel(
                name=module_of(node) or ROOT,
                macs=tuple(counts.get(node, ())),
                activations=tuple(shape for s in (*sources, node) for shape in activations(s)),
                tensors=tuple(dict.fromkeys(names)),
                layers=tuple(homes.get(node, ())),
            )
        )
    return tuple(kernels)


def _gone(branch: Branch) -> list[fx.Node]:
    """Return the operators that run no more: with stand-ins those in the modules replaced."""
    if all(spec.stays for spec in branch.layer.stand_ins):
        return [*branch.nodes, branch.addition]
    inside = tuple(f"{spec.module}." for spec in branch.layer.stand_ins)
    return [node for node in branch.nodes if f"{module_of(node)}.".startswith(inside)]


def _runs(node: fx.Node) -> bool:
    """Return whether an operator computes something; a view does not."""
    schema = schema_of(node.target)
    if node.op != "call_function" or schema is None or not schema.returns:
        return False
    alias = schema.returns[0].alias_info
    return alias is None or alias.is_write


def _without_batch(
    graph: AxisGraph, dims: Sequence[DimVar], axis: Callable[[DimVar], Axis]
) -> Shape:
    """Return the axes of one sample; a product loses its factor of the batch."""
    batch = root_of(graph.batch)
    parts = [
        part
        for dim in map(root_of, dims)
        for part in (map(root_of, dim.parts) if dim.kind == "product" else (dim,))
    ]
    kept = [part for part in parts if part is not batch]
    unknown = len(kept) == len(parts) and kept and kept[0].size == batch.size > 1
    resolved = [axis(part) for part in (kept[1:] if unknown else kept)]
    return tuple(a for a in resolved if a != Fixed(1))
