"""Arithmetic in float64 whatever dtypes a model asks for."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

NARROW = {torch.float32, torch.float16, torch.bfloat16}


def may_narrow(graph: fx.Graph) -> bool:
    """Whether an operator names a narrower type, or makes a tensor, maybe of the default type.

    What has no schema may do anything.
    """
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        dtypes = {x for x in (*node.args, *node.kwargs.values()) if isinstance(x, torch.dtype)}
        if not node.all_input_nodes or dtypes & NARROW or not hasattr(node.target, "_schema"):
            return True
    return False


class DoublePrecision(TorchDispatchMode):
    """Casts to narrower floating-point types and tensors made in them are float64 inside.

    A model may compute its norms or softmax in float32 on purpose. Two ways to leave a structure
    out can only be compared to the last digits where nothing is rounded on the way.

    Example:
        >>> with DoublePrecision():
        ...     torch.ones(1, dtype=torch.float64).to(torch.float32).dtype
        torch.float64
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in NARROW:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
