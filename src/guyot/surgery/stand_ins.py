"""Small plain modules that stand in for those of a removed branch."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from guyot.types import StandIn


def stand_in(spec: StandIn) -> nn.Module:
    """A module without parameters that takes any arguments and returns zeros or some of them.

    Example:
        >>> nothing = stand_in(StandIn("block.attn", "x", rest=(0, None), zero=True))
        >>> nothing("bias", mask=None, x=torch.ones(1, 2))
        (tensor([[0., 0.]]), 'bias', None)
    """
    graph = fx.Graph()
    args, kwargs = graph.placeholder("*args"), graph.placeholder("**kwargs")

    def given(argument: int | str | None) -> fx.Node | None:
        if argument is None:
            return None
        source = args if isinstance(argument, int) else kwargs
        return graph.call_function(operator.getitem, (source, argument))

    result = given(spec.argument)
    if spec.zero:
        result = graph.call_function(torch.zeros_like, (result,))
    graph.output(result if spec.rest is None else (result, *map(given, spec.rest)))
    return fx.GraphModule(nn.Module(), graph, class_name="Zeros" if spec.zero else "Passing")
