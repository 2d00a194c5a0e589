"""Entries that are gathered, scattered, ordered, sampled or transformed along some dims.

Such a dim must keep all of its entries; the dims beside it pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from guyot.core.torch_private import schema_of
from guyot.structures.axes import DimVars, freeze, unify
from guyot.structures.rules.pointwise import overloads
from guyot.structures.rules.registry import rule
from guyot.structures.trace import shape_of

if TYPE_CHECKING:
    from guyot.structures.axis_graph import AxisGraph

aten = torch.ops.aten


def _alike_beside(x: DimVars, others: list[DimVars], place: int, reason: str) -> None:
    """Freeze one dim of some tensors; the dims beside it are the same where they are as long."""
    for other in (x, *others):
        freeze(other[place], reason)
    for other in others:
        for beside, (one, two) in enumerate(zip(x, other, strict=True)):
            if beside != place:
                unify(one, two)  # freezes both where only a part of one is used


@rule(aten.gather.default, aten.take_along_dim.default)
def gather(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Look entries of one dim up by numbers that have the shape of the result."""
    position = 2 if node.target is aten.gather.default else 1
    x, index = graph.operands(node, 0, position)
    place = graph.named(node, "dim", None)
    if place is None or len(x) != len(index):
        return graph.unknown(node)
    reason = f"{graph.name(node)} looks its entries up by number"
    _alike_beside(x, [index], int(place) % len(x), reason)
    return index


@rule(
    *overloads(["scatter_add"]),
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter_reduce.two,
    *overloads("index_add index_copy index_reduce index_fill".split()),
)
def scatter(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Write or add entries along one dim at places that are given by number."""
    (x,) = graph.operands(node, 0)
    place = int(graph.argument(node, 1, "dim", 0)) % len(x)
    reason = f"{graph.name(node)} writes its entries by number"
    given = [graph.dims[source] for source in node.all_input_nodes[1:]]
    freeze(x[place], reason)
    for dims in given:
        if len(dims) != len(x):  # the numbers along the dim
            for dim in dims:
                freeze(dim, reason)
    _alike_beside(x, [dims for dims in given if len(dims) == len(x) > 1], place, reason)
    return x


@rule(*overloads("sort argsort topk cummax cummin".split()))
def ordered(graph: AxisGraph, node: fx.Node) -> DimVars | list[DimVars]:
    """Order the entries of one dim, or choose some of them."""
    (x,) = graph.operands(node, 0)
    place = int(graph.named(node, "dim", -1)) % len(x)
    freeze(x[place], f"{graph.name(node)} orders its entries")
    several = isinstance(node.meta["val"], (tuple, list))
    values = node.meta["val"] if several else [node.meta["val"]]
    chosen = graph.constant(values[0].shape[place])
    result = (*x[:place], chosen, *x[place + 1 :])
    return [result] * len(values) if several else result


@rule(aten.diff.default)
def differences(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Subtract neighbours along one dim."""
    (x,) = graph.operands(node, 0)
    if len(node.all_input_nodes) > 1:
        return graph.unknown(node)
    shape = shape_of(node)
    assert shape is not None
    place = int(graph.argument(node, 2, "dim", -1)) % len(x)
    freeze(x[place], f"{graph.name(node)} subtracts its neighbours")
    return (*x[:place], graph.constant(shape[place]), *x[place + 1 :])


@rule(*overloads("grid_sampler grid_sampler_2d grid_sampler_3d".split()))
def grid_sample(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Sample x (N, C, *space) at the places of a grid (N, *new space, dims of space)."""
    x, grid = graph.operands(node, 0, 1)
    unify(x[0], grid[0])
    for dim in (*x[2:], *grid[1:]):
        freeze(dim, f"{graph.name(node)} samples along it")
    return (*x[:2], *grid[1:-1])


@rule(*overloads("max_unpool2d max_unpool3d".split()))
def unpooled(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Put entries back where they were the largest of their window."""
    x, places = graph.operands(node, 0, 1)
    shape = shape_of(node)
    assert shape is not None
    space = 3 if node.target is aten.max_unpool3d.default else 2
    _alike_beside(x, [places], len(x) - 1, f"{graph.name(node)} pools it")
    for dim in x[-space:]:
        freeze(dim, f"{graph.name(node)} pools it")
    return (*x[:-space], *(graph.constant(size) for size in shape[-space:]))


_FOURIER = (
    "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fftshift fft_ifftshift "
    "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn"
)


@rule(*overloads(_FOURIER.split()))
def fourier(graph: AxisGraph, node: fx.Node) -> DimVars:
    """Transform some dims: every entry of the result depends on all of theirs."""
    (x,) = graph.operands(node, 0)
    shape = shape_of(node)
    assert shape is not None
    defaults = {
        argument.name: argument.default_value for argument in schema_of(node.target).arguments
    }
    given = graph.named(node, "dim", defaults["dim"])
    lengths = graph.named(node, "s", None)
    if given is None:
        given = range(-len(x if lengths is None else lengths), 0)
    places = {place % len(x) for place in ([given] if isinstance(given, int) else given)}
    for place in places:
        freeze(x[place], f"{graph.name(node)} transforms it")
    return tuple(
        graph.constant(shape[place]) if place in places else dim for place, dim in enumerate(x)
    )


@rule(aten.view_as_complex.default)
def as_complex(graph: AxisGraph, node: fx.Node) -> DimVars:
    """The last dim is the real and the imaginary part."""
    (x,) = graph.operands(node, 0)
    freeze(x[-1], f"{graph.name(node)} takes it for real and imaginary parts")
    return x[:-1]


@rule(aten.view_as_real.default)
def as_real(graph: AxisGraph, node: fx.Node) -> DimVars:
    """A new last dim has the real and the imaginary part."""
    (x,) = graph.operands(node, 0)
    return (*x, graph.constant(2))
