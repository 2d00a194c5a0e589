"""Multiply-accumulates of operators that no rule covers: they are counted, and stay."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode


def _bilinear(args: tuple[Any, ...], size: int) -> int:
    """Count a product of two inputs and a weight for every output."""
    weight = args[2]
    return size * prod(weight.shape[1:])


def _deformable(args: tuple[Any, ...], size: int) -> int:
    """Count as for a convolution of that weight: (out, in / groups, *kernel)."""
    return size * prod(args[1].shape[1:])


def _grouped(args: tuple[Any, ...], size: int) -> int:
    """Count a product with one expert's matrix for every row: (rows, k), (experts, k, n)."""
    return size * args[0].shape[-1]


def _recurrent(args: tuple[Any, ...], _: int) -> int:
    """Count every matrix of every layer and direction once for every token."""
    listed = (item for given in args if isinstance(given, (list, tuple)) for item in given)
    matrices = [item for item in listed if isinstance(item, Tensor) and item.dim() == 2]
    return prod(args[0].shape[:-1]) * sum(matrix.numel() for matrix in matrices)


_OWN: dict[str, Callable[[tuple[Any, ...], int], int]] = {
    "aten.bilinear": _bilinear,
    "aten._grouped_mm": _grouped,
    **{f"aten.{name}": _recurrent for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "torchvision.deform_conv2d": _deformable,
    "transformers.grouped_mm_fallback": _grouped,
}
"""Operators that PyTorch's counter does not know; of arguments and the size of the result."""


def macs_of_operator(node: fx.Node) -> int:
    """Return the multiply-accumulates of an operator for the whole batch of the example.

    What PyTorch's `torch.utils.flop_counter` counts, half of it, is counted on the fake tensors of
    the exported graph; it looks into operators that are made of others.
    """
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: source.meta.get("val"))
    own = _OWN.get(str(getattr(node.target, "overloadpacket", "")))
    if own is not None:
        return own(args, getattr(node.meta["val"], "numel", int)())
    if not callable(node.target) or not hasattr(node.target, "overloadpacket"):
        return 0
    with FlopCounterMode(display=False) as counter:
        node.target(*args, **kwargs)
    return counter.get_total_flops() // 2
