"""One `torch.export` graph of the user's model; nothing else in guyot knows `torch.export`."""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.inputs import (
    Inputs,
    arguments,
    call_model,
    changed,
    check_inputs,
    copied,
    on_meta,
    sharing_copy,
    tensors_of,
    weightless_copy,
)
from guyot.core.locate import named_tensors
from guyot.core.torch_private import dispatching, schema_of, weightless
from guyot.structures.watch import Event, Watch

LARGE = 4_000_000
"""Numbers in the tensors of a network from which on copies of them are avoided."""

_CHECKS = {torch.ops.aten._assert_tensor_metadata.default}
_REGIONS = {
    torch.ops.higher_order.wrap_with_set_grad_enabled,
    torch.ops.higher_order.wrap_with_autocast,
}


@dataclass(frozen=True)
class CallRecord:
    """How a module was called.

    Attributes:
        argument: position or name of the tensor whose shape the (first) result has, or of the first
            tensor; None when there was none.
        alike: whether the argument and the (first) result have the same shape.
        tensor: whether a tensor came back, alone or first in a tuple.
        dimensions: how many the (first) result has; 0 where it is no tensor.
        others: None: it came alone; else which arguments the other values are, None for another.
    """

    argument: int | str | None
    alike: bool
    tensor: bool
    dimensions: int
    others: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Trace:
    """The exported graph in terms of the user's own names.

    Attributes:
        graph: operators of one forward pass.
        tensors: placeholder name -> qualified name of the parameter or buffer it stands for.
        constants: placeholder name -> a tensor that `forward` made up.
        inputs: placeholder names of the user's inputs, in order.
        calls: qualified name of a module -> how it was called, every time.
        events: qualified name of a module -> where its methods add and state lengths, in order.
    """

    graph: fx.Graph
    tensors: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    calls: Mapping[str, Sequence[CallRecord]]
    events: Mapping[str, Sequence[Event]]


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of the node's tensor result; None when it is not one tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def module_of(node: fx.Node) -> str:
    """Qualified name of the innermost module whose `forward` made the node ('' is the root)."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return entries[-1][0] if entries else ""


def call_of(node: fx.Node) -> str:
    """Return a key like `module_of` that differs for every call of a module."""
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack)[-1] if stack else ""


Around = Callable[[nn.Module], contextlib.AbstractContextManager[Any]]
"""Makes a context for one forward pass of a network."""


def _alone(_: nn.Module) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext()


def trace(model: nn.Module, example_inputs: Inputs, around: Around = _alone) -> Trace:
    """Export the model once.

    Args:
        model: the network.
        example_inputs: its arguments.
        around: what to watch its forward pass with, outside of `torch.export`.

    Raises:
        MisconfiguredError: the example inputs do not fit the model.
        UnsupportedError: the model runs but `torch.export` cannot trace it.
    """
    check_inputs(model, example_inputs)
    return _traced(model, example_inputs, training=False, around=around)


def trace_of_training(model: nn.Module, example_inputs: Inputs, exported: Trace) -> Trace | None:
    """Export the model in training mode if it has parameters that only run there.

    Args:
        model: the network.
        example_inputs: its arguments.
        exported: its graph in evaluation mode.

    Returns:
        None where evaluation mode uses every parameter, or where training mode cannot be traced.
    """
    used = {n.name for n in exported.graph.nodes if n.op == "placeholder" and n.users}
    names = {name for key, name in exported.tensors.items() if key not in used}
    if not names.intersection(name for name, _ in model.named_parameters()):
        return None
    try:
        return _traced(model, example_inputs, training=True)
    except (MisconfiguredError, UnsupportedError):
        return None


def is_large(model: nn.Module) -> bool:
    """Say whether a copy of the weights of a model is worth avoiding."""
    return sum(tensor.numel() for tensor in named_tensors(model).values()) >= LARGE


def watched(
    model: nn.Module, inputs: Inputs, around: Around
) -> tuple[Mapping[str, Sequence[CallRecord]], Mapping[str, Sequence[Event]]]:
    """Run a model, which may change; return how modules were called, and what they state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, calls, events = _watched_run(model.eval(), inputs, around)
    return calls, events


def _traced(
    model: nn.Module, example_inputs: Inputs, *, training: bool, around: Around = _alone
) -> Trace:
    """Export a copy of a model; another one, since some keep caches, is watched while it runs."""
    meta = on_meta(model)
    context = weightless() if meta else contextlib.nullcontext()
    with context:
        copy = (weightless_copy if meta else sharing_copy)(model).train(training)
        if meta:
            example_inputs = changed(example_inputs, lambda x: torch.empty_like(x, device="cpu"))
            model = weightless_copy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = [tuple(x.shape) for x in tensors_of(example_inputs)]
        try:
            with context:
                share = is_large(model) and not meta
                outputs, calls, events = _run(model, example_inputs, training, share, around)
        except Exception as error:
            raise MisconfiguredError(
                f"the model does not run on example_inputs of shapes {shapes}: {error}; "
                "pass inputs as the training loop does"
            ) from error
        _register_dataclasses(outputs)
        try:
            program = torch.export.export(copy, *arguments(copy, example_inputs), strict=False)
        except Exception as error:
            raise UnsupportedError(
                f"torch.export cannot trace {type(copy).__name__}: "
                f"{str(error).strip().splitlines()[0]}; {_way_out(str(error))}"
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
    graph = plain_graph(program.graph_module)
    return Trace(graph, tensors, constants, tuple(inputs), calls, events)


def _run(
    model: nn.Module, inputs: Inputs, training: bool, share: bool, around: Around
) -> tuple[Any, Mapping[str, Sequence[CallRecord]], Mapping[str, Sequence[Event]]]:
    """Run a copy of a model; return its outputs, how modules were called, and what they state.

    The copy shares the weights, if it may and as long as `forward` only reads them.
    """
    if share:
        first = sharing_copy(model).train(training)
        try:
            with _written_to(first):
                return _watched_run(first, inputs, around)
        except Exception:  # noqa: BLE001  (a copy of its own says what is wrong)
            pass
    return _watched_run(copied(model).train(training), inputs, around)


def _watched_run(
    model: nn.Module, inputs: Inputs, around: Around
) -> tuple[Any, Mapping[str, Sequence[CallRecord]], Mapping[str, Sequence[Event]]]:
    with torch.no_grad(), _watched(model) as calls, Watch(model) as watch, around(model):
        return call_model(model, inputs), calls, watch.events


def _written_to(model: nn.Module) -> Any:
    """Return a context in which an operator that writes a parameter of a model raises an error."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def handler(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        schema = schema_of(func)
        for number, argument in enumerate(schema.arguments if schema else ()):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[number] if number < len(args) else kwargs.get(argument.name)
                if any(x.untyped_storage().data_ptr() in own for x in tensors_of(value)):
                    raise UnsupportedError(f"{func} writes a parameter")
        return func(*args, **kwargs)

    return dispatching(handler)


def _way_out(error: str) -> str:
    """Return what helps against an error of `torch.export`."""
    if "fake tensor in the exported program constant's list" in error:
        return (
            "what writes into weight.data in forward must move to the training loop, after "
            "optimizer.step()"
        )
    return (
        "control flow that depends on data must move out of forward (see torch.export's "
        "documentation of torch.cond)"
    )


def _register_dataclasses(outputs: Any) -> None:
    """Tell `torch.export` the fields of dataclasses that a model returns, unless it knows them."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, (list, tuple)):
        for value in outputs:
            _register_dataclasses(value)
    elif is_dataclass(outputs) and not isinstance(outputs, type):
        with contextlib.suppress(ValueError):  # it is known
            torch.export.register_dataclass(type(outputs))
        for field in fields(outputs):
            _register_dataclasses(getattr(outputs, field.name))


@contextlib.contextmanager
def _watched(model: nn.Module) -> Generator[dict[str, list[CallRecord]]]:
    """Write down how every module is called."""
    calls: dict[str, list[CallRecord]] = defaultdict(list)
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        calls[names[module]].append(_described_call(args, kwargs, out))

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _described_call(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> CallRecord:
    values: list[Any] = list(out) if isinstance(out, (tuple, list)) and out else [out]  # pyright: ignore[reportUnknownArgumentType]
    given: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
    tensors = [key for key, value in given.items() if isinstance(value, Tensor)]
    alike = [k for k in tensors if given[k].shape == getattr(values[0], "shape", None)]
    key_of = {id(given[key]): key for key in tensors}
    others = None if values[0] is out else tuple(key_of.get(id(value)) for value in values[1:])
    first = next(iter([*alike, *tensors]), None)
    dimensions = values[0].dim() if isinstance(values[0], Tensor) else 0
    return CallRecord(first, bool(alike), isinstance(values[0], Tensor), dimensions, others)


def plain_graph(module: fx.GraphModule) -> fx.Graph:
    """Return the graph without regions (no_grad, autocast), checks and casts that do nothing.

    Such a region is a call of a graph of its own; its operators take the place of the call.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target in _CHECKS:
            graph.erase_node(node)
        elif getattr(node.target, "overloadpacket", None) is torch.ops.aten.to and _is_same(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _REGIONS:
            _inline(node, module)
    return graph


def _is_same(node: fx.Node) -> bool:
    """Return whether a cast changes neither dtype nor device."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta["val"], node.meta["val"]
    return (before.dtype, before.device) == (after.dtype, after.device)


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
