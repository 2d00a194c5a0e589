"""Inputs drawn at random: a check with zeros might compare nothing."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from guyot.core.inputs import Inputs, arguments, changed, flat
from guyot.core.locate import named_tensors
from guyot.structures.axis_graph import base_of
from guyot.structures.trace import Trace

EMBEDDING = torch.ops.aten.embedding.default


def drawn(model: nn.Module, inputs: Inputs, trace: Trace, seed: int) -> Inputs:
    """Inputs near the given ones: noise is added to numbers, and tokens are drawn.

    Args:
        model: takes them.
        inputs: examples.
        trace: the graph, which tells which of them are rows of an embedding.
        seed: others give other inputs, with more noise.
    """
    generator = torch.Generator().manual_seed(seed)
    leaves = flat(arguments(model, inputs))
    rows = dict(zip(map(id, leaves), map(row_counts(model, trace).get, trace.inputs), strict=True))

    def other(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            spread = float(tensor.std()) if tensor.numel() > 1 else 0.0
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            spread = spread if spread > 1e-3 else 1.0
            return tensor + noise.to(tensor.dtype) * spread * (1 + seed)
        count = rows.get(id(tensor))
        if count is None:
            return tensor
        return torch.randint(count, tensor.shape, generator=generator, dtype=tensor.dtype)

    return changed(inputs, other)


def row_counts(model: nn.Module, trace: Trace) -> dict[str, int]:
    """Return, for every input that indexes an embedding, the number of rows that a model has."""
    tensors, found = named_tensors(model), dict[str, int]()
    for node in trace.graph.nodes:
        index, table = index_of(node), trace.tensors.get(looked_up_in(node))
        if index in trace.inputs and table is not None:
            rows = len(tensors[table])
            found[index] = min(rows, found.get(index, rows))
    return found


def index_of(node: fx.Node) -> str:
    """Return the name of what indexes an embedding; of any other operator ''."""
    return base_of(node.args[1]).name if node.target is EMBEDDING else ""  # pyright: ignore[reportArgumentType]


def looked_up_in(node: fx.Node) -> str:
    """Return the name of the table of an embedding; of any other operator ''."""
    return node.all_input_nodes[0].name if node.target is EMBEDDING else ""
