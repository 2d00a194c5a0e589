"""Arithmetic in float64 whatever dtypes a model asks for."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from guyot.core.torch_private import dispatching, schema_of

NARROW = {torch.float32, torch.float16, torch.bfloat16}


def may_narrow(graph: fx.Graph) -> bool:
    """Return whether an operator names a narrower type or makes a tensor of the default type.

    What has no schema may do anything.
    """
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        dtypes = {x for x in (*node.args, *node.kwargs.values()) if isinstance(x, torch.dtype)}
        if not node.all_input_nodes or dtypes & NARROW or schema_of(node.target) is None:
            return True
    return False


def double_precision() -> Any:
    """Return a context in which casts to narrower floating-point types are casts to float64.

    So are tensors that are made in it. A model may compute its norms or softmax in float32 on
    purpose. Two ways to leave a structure out can only be compared to the last digits where nothing
    is rounded on the way.

    Example:
        >>> with double_precision():
        ...     torch.ones(1, dtype=torch.float64).to(torch.float32).dtype
        torch.float64
    """

    def widened(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("dtype") in NARROW:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)

    return dispatching(widened)
