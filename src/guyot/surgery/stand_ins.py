"""Small plain modules that stand in for those of a removed branch."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from guyot.core.types import StandIn


def stand_in(spec: StandIn, module: nn.Module) -> nn.Module:
    """A module without parameters that takes any arguments and returns zeros or some of them.

    It has the plain attributes of the module whose place it takes, for callers that ask for them.

    Example:
        >>> nothing = stand_in(StandIn("attn", "x", (0, None), zero=True), nn.Linear(3, 2))
        >>> nothing("bias", mask=None, x=torch.ones(1, 2))
        (tensor([[0., 0.]]), 'bias', None)
        >>> nothing.in_features, nothing.weight
        (3, None)
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
    result = fx.GraphModule(nn.Module(), graph, class_name="Zeros" if spec.zero else "Passing")
    copy_plain(module, result)
    for name in module._parameters:  # pyright: ignore[reportPrivateUsage]
        result.register_parameter(name, None)
    return result


def act_out_of_place(model: nn.Module, spec: StandIn) -> None:
    """Let the modules beside a stand-in not overwrite what it passes on: the branch's own input.

    Example:
        >>> block = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
        >>> act_out_of_place(block, StandIn("0", 0, None, zero=False))
        >>> block[1]
        ReLU()
    """
    for module in model.get_submodule(spec.module.rpartition(".")[0]).modules():
        if getattr(module, "inplace", False):
            setattr(module, "inplace", False)  # noqa: B010  (a module of unknown type)


def copy_plain(source: nn.Module, target: nn.Module) -> None:
    """Give a module the numbers, flags, strings and tuples that another has as attributes."""
    for name, value in vars(source).items():
        if not hasattr(target, name) and isinstance(value, (int, float, str, tuple, type(None))):
            setattr(target, name, value)
