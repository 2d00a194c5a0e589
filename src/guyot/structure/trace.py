"""One `torch.export` graph of the user's model; nothing else in guyot knows `torch.export`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from guyot.errors import MisconfiguredError, UnsupportedError


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


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """The model in evaluation mode; every module's own mode comes back afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_inputs(model: nn.Module, example_inputs: Sequence[Any]) -> None:
    """Refuse example inputs on another device than the model or without a batch dimension."""
    if isinstance(example_inputs, Tensor):
        raise MisconfiguredError(
            "example_inputs is one tensor; pass a tuple of the arguments of the model's forward, "
            "e.g. (images,)"
        )
    tensors = [value for value in example_inputs if isinstance(value, Tensor)]
    if not tensors:
        raise MisconfiguredError(
            f"example_inputs={type(example_inputs).__name__} holds no tensor; "
            "pass a tuple of the arguments of the model's forward, e.g. (images,)"
        )
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise MisconfiguredError(
            f"the model {type(model).__name__} has no parameters; pass the network to train"
        )
    for position, value in enumerate(tensors):
        if value.device != parameter.device:
            raise MisconfiguredError(
                f"example input {position} is on {value.device} and the model on "
                f"{parameter.device}; move one with .to({str(parameter.device)!r})"
            )
        if value.dim() == 0:
            raise MisconfiguredError(
                f"example input {position} is a scalar; dimension 0 must be the batch"
            )
    if parameter.device.type == "meta":
        raise MisconfiguredError(
            "the model is on the meta device and has no weights to check; "
            'give it some with model.to_empty(device="cpu") and initialise them'
        )


def trace(model: nn.Module, example_inputs: Sequence[Any]) -> Trace:
    """Export the model once.

    Raises:
        MisconfiguredError: the example inputs do not fit the model.
        UnsupportedError: the model runs but `torch.export` cannot trace it.
    """
    check_inputs(model, example_inputs)
    with evaluation_mode(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = [tuple(x.shape) for x in example_inputs if isinstance(x, Tensor)]
        try:
            with torch.no_grad():
                model(*example_inputs)
        except Exception as error:
            raise MisconfiguredError(
                f"the model does not run on example_inputs of shapes {shapes}: {error}; "
                "pass inputs as the training loop does"
            ) from error
        try:
            program = torch.export.export(model, tuple(example_inputs), strict=False)
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
    return Trace(program.graph, tensors, constants, tuple(inputs))
