"""Inputs drawn at random: a check with zeros might compare nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from guyot.core.inputs import Inputs, arguments, changed, flat
from guyot.structures.trace import Trace, shape_of


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
    rows = dict(zip(map(id, leaves), map(_rows(trace.graph).get, trace.inputs), strict=True))

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


def _rows(graph: fx.Graph) -> dict[str, int]:
    """For every input that indexes an embedding the number of its rows."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.target is torch.ops.aten.embedding.default:
            table, index = node.args[:2]
            shape: Any = shape_of(table)
            if index.op == "placeholder" and shape:
                found[index.name] = min(shape[0], found.get(index.name, shape[0]))
    return found
