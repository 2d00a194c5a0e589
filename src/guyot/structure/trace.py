"""One `torch.export` graph of the user's model; nothing else in guyot knows `torch.export`."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from guyot.errors import MisconfiguredError, UnsupportedError
from guyot.structure.inputs import (
    Inputs,
    arguments,
    call,
    check_inputs,
    evaluation_mode,
    tensors_of,
)

_CHECKS = {torch.ops.aten._assert_tensor_metadata.default}
_REGIONS = {
    torch.ops.higher_order.wrap_with_set_grad_enabled,
    torch.ops.higher_order.wrap_with_autocast,
}


@dataclass(frozen=True)
class Trace:
    """The exported graph in terms of the user's own names.

    Attributes:
        graph: operators of one forward pass in evaluation mode.
        tensors: placeholder name -> qualified name of the parameter or buffer it stands for.
        constants: placeholder name -> a tensor that `forward` made up.
        inputs: placeholder names of the user's inputs, in order.
    """

    graph: fx.Graph
    tensors: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: tuple[str, ...]


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of the node's tensor result; None when it is not one tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def module_of(node: fx.Node) -> str:
    """Qualified name of the innermost module whose `forward` made the node ('' is the root)."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return entries[-1][0] if entries else ""


def call_of(node: fx.Node) -> str:
    """Like `module_of`, but different for every call of a module that is called repeatedly."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack)[-1] if stack else ""


def trace(model: nn.Module, example_inputs: Inputs) -> Trace:
    """Export the model once.

    Raises:
        MisconfiguredError: the example inputs do not fit the model.
        UnsupportedError: the model runs but `torch.export` cannot trace it.
    """
    check_inputs(model, example_inputs)
    with evaluation_mode(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = [tuple(x.shape) for x in tensors_of(example_inputs)]
        try:
            with torch.no_grad():
                call(model, example_inputs)
        except Exception as error:
            raise MisconfiguredError(
                f"the model does not run on example_inputs of shapes {shapes}: {error}; "
                "pass inputs as the training loop does"
            ) from error
        try:
            program = torch.export.export(model, *arguments(model, example_inputs), strict=False)
        except Exception as error:
            raise UnsupportedError(
                f"torch.export cannot trace {type(model).__name__}: "
                f"{str(error).strip().splitlines()[0]}; control flow that depends on data must "
                "move out of forward (see torch.export's documentation of torch.cond)"
            ) from error
    tensors: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    inputs: list[str] = []
    for spec in program.graph_signature.input_specs:
        name = getattr(spec.arg, "name", "")
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            tensors[name] = str(spec.target)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constants[name] = cast(Tensor, program.constants[str(spec.target)])
        else:
            inputs.append(name)
    return Trace(plain_graph(program.graph_module), tensors, constants, tuple(inputs))


def plain_graph(module: fx.GraphModule) -> fx.Graph:
    """The graph without regions (no_grad, autocast) and without checks of metadata.

    Such a region is a call of a graph of its own; its operators take the place of the call.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target in _CHECKS:
            graph.erase_node(node)
        elif node.target in _REGIONS:
            _inline(node, module)
    return graph


def _inline(region: fx.Node, module: fx.GraphModule) -> None:
    """Put the operators of a region in its place."""
    graph = region.graph
    place = next(i for i, arg in enumerate(region.args) if getattr(arg, "op", "") == "get_attr")
    body = region.args[place]
    assert isinstance(body, fx.Node)
    inner = cast(fx.GraphModule, module.get_submodule(str(body.target)))
    copies: dict[fx.Node, Any] = {}
    given = iter(region.args[place + 1 :])
    results: Any = ()
    with graph.inserting_before(region):
        for node in plain_graph(inner).nodes:
            if node.op == "placeholder":
                copies[node] = next(given)
            elif node.op == "output":
                results = fx.map_arg(node.args[0], copies.__getitem__)
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
    for user in list(region.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(region)
    if not body.users:
        graph.erase_node(body)
