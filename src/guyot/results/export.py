"""A finished network in other formats: source code, a `torch.export` program, ONNX, transformers.

| written by | what it is | needs |
|---|---|---|
| `to_source` | a Python module and its weights | torch and safetensors |
| `to_program` | `.pt2`, for `torch.export.load` | torch |
| `to_onnx` | `.onnx`, for ONNX Runtime and others | no torch |
| `to_pretrained` | a language model, for `from_pretrained` | transformers |

What is written is read back and compared with the model, on batches of several sizes, before it
gets its name. Every format takes batches of any size, in evaluation mode. Where `forward` fixes the
size, it is that of the example inputs, and a warning says so.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from guyot.core.errors import MisconfiguredError, UnsupportedError, first_line
from guyot.core.inputs import (
    Inputs,
    arguments,
    call_model,
    changed,
    check_inputs,
    check_weights,
    evaluation_mode,
    tensors_of,
)
from guyot.core.locate import unwrap
from guyot.core.packages import module_from
from guyot.core.storage import write_tensors
from guyot.core.torch_private import pytree
from guyot.core.warning import warn
from guyot.gates.checks import check_model, check_whole
from guyot.results.codegen import Source, module_text
from guyot.results.delivery import (
    Exported,
    OnnxNetwork,
    largest_gap,
    onnx_package,
    staged,
    with_samples,
)
from guyot.results.pretrained import Pretrained, to_pretrained
from guyot.structures.trace import plain_graph

__all__ = [
    "Exported",
    "OnnxNetwork",
    "Pretrained",
    "program",
    "to_onnx",
    "to_pretrained",
    "to_program",
    "to_source",
]

CODE, WEIGHTS = "model.py", "model.safetensors"
_EXACT, _ONNX = 1e-5, 1e-4


def to_source(model: nn.Module, example_inputs: Inputs, folder: str | Path) -> Exported:
    """Write a readable Python module and the weights beside it, which need no guyot.

    `model.py` holds plain classes with the widths that are left; its `load()` gives the network
    with the weights of `model.safetensors`. Modules of `torch.nn` stay what they are. What does
    nothing in evaluation mode (stochastic depth, auxiliary heads) is left out.

    Args:
        model: finished; it is not changed.
        example_inputs: arguments of its `forward`, or a mapping of keyword arguments.
        folder: does not exist.

    Warns:
        GuyotWarning: parameters that evaluation mode does not use were left out, or `forward`
            fixes the number of samples.

    Raises:
        MisconfiguredError: the folder exists, or the inputs do not fit.
        UnsupportedError: the model cannot be exported or written as source code.
    """
    model, inputs = _prepared(model, example_inputs)
    exported, batch = _traced(model, inputs)
    source = _source(model, exported)
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
        **source.constants,
    }
    with staged(folder) as scratch:
        scratch.mkdir()
        (scratch / CODE).write_text(module_text(source), encoding="utf-8")
        module = module_from(scratch / CODE, "guyot_exported")
        names = list(module.Network().state_dict())
        write_tensors(scratch / WEIGHTS, {name: tensors[name] for name in names})
        _warn_unused(model, names)
        gap = largest_gap(model, module.load(), inputs, _EXACT, batch=batch)
    return Exported.of(folder, gap, batch)


def to_program(model: nn.Module, example_inputs: Inputs, path: str | Path) -> Exported:
    """Write a `.pt2` file: `torch.export.load(path).module()` runs it without the model's code.

    Args:
        model: finished; it is not changed.
        example_inputs: arguments of its `forward`, or a mapping of keyword arguments.
        path: does not exist.

    Warns:
        GuyotWarning: `forward` fixes the number of samples.

    Raises:
        MisconfiguredError: the file exists, or the inputs do not fit.
        UnsupportedError: the model cannot be exported.
    """
    if Path(path).suffix != ".pt2":
        raise MisconfiguredError(f"output={str(path)!r} must end in .pt2: give such a name")
    model, inputs = _prepared(model, example_inputs)
    exported, batch = _traced(model, inputs)
    with staged(path) as scratch:
        torch.export.save(exported, scratch)
        network = torch.export.load(scratch).module()
        gap = largest_gap(model, network, inputs, _EXACT, batch=batch, flat=False)
    return Exported.of(path, gap, batch)


def to_onnx(model: nn.Module, example_inputs: Inputs, path: str | Path) -> Exported:
    """Write an ONNX file, checked by `onnx.checker` and compared in ONNX Runtime.

    Inputs have the names of `forward`'s arguments; the output is called "output", or by its key in
    a mapping. Traces of the source files that `torch.onnx` writes into the file are taken out.

    Args:
        model: finished; it is not changed.
        example_inputs: arguments of its `forward`, or a mapping of keyword arguments.
        path: does not exist.

    Warns:
        GuyotWarning: `forward` fixes the number of samples.

    Raises:
        MisconfiguredError: the file exists, the inputs do not fit, or a package is missing.
        UnsupportedError: the model cannot be exported, an operator has no ONNX counterpart, or ONNX
            Runtime gives other outputs (by more than 1e-4).
    """
    onnx = onnx_package()
    model, inputs = _prepared(model, example_inputs)
    exported, batch = _traced(model, inputs)
    with staged(path) as scratch, _quiet():
        try:
            written = torch.onnx.export(
                exported,
                dynamo=True,
                verbose=False,
                input_names=_input_names(exported),
                output_names=_output_names(exported),
                dynamic_shapes=_shapes(model, inputs, "batch") if batch is None else None,
            )
        except Exception as error:
            raise UnsupportedError(
                f"torch.onnx cannot write {type(model).__name__}: {first_line(error)}; "
                "export it as pt2 or state-dict"
            ) from error
        assert written is not None
        proto = written.model_proto
        _forget_origin(proto)
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, scratch)
        gap = largest_gap(model, OnnxNetwork(scratch), inputs, _ONNX, batch=batch)
    return Exported.of(path, gap, batch)


# -- programs ----------------------------------------------------------------------------------


def program(model: nn.Module, example_inputs: Inputs) -> ExportedProgram:
    """Return the model as a `torch.export` program in evaluation mode, for batches of any size.

    Args:
        model: finished.
        example_inputs: arguments of its `forward`, or a mapping of keyword arguments.

    Raises:
        UnsupportedError: `torch.export` cannot trace it, or its `forward` fixes the batch size.
    """
    shapes = _shapes(model, example_inputs, Dim("batch"))
    with _attributes_kept(model):
        try:
            return _export(model, with_samples(example_inputs, 2, noise=False), shapes)
        except Exception as error:
            raise UnsupportedError(
                f"torch.export cannot trace {type(model).__name__} for batches of any size: "
                f"{first_line(error)}; forward must not depend on the values of tensors, nor "
                "fix the number of samples (len(x) does, x.shape[0] does not)"
            ) from error


def _traced(model: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, int | None]:
    """Return the model as a program, and the only number of samples that it takes.

    Raises:
        UnsupportedError: `torch.export` cannot trace it.
    """
    try:
        return program(model, inputs), None
    except UnsupportedError as error:
        with _attributes_kept(model):
            try:
                with evaluation_mode(model), torch.no_grad():
                    call_model(model, inputs)  # what forward remembers of shapes fits these
                exported = _export(model, inputs, None)
            except Exception:  # noqa: BLE001 - the first error says more
                raise error from None
        batch = int(tensors_of(inputs)[0].shape[0])
        warn(f"what is written takes batches of {batch} only, as in example_inputs: {error}")
        return exported, batch


def _export(model: nn.Module, inputs: Inputs, shapes: dict[str, Any] | None) -> ExportedProgram:
    """Return a program without a trace of where the sources lie."""
    args, kwargs = arguments(model, inputs)
    with evaluation_mode(model), _quiet():
        exported = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)
    return exported


@contextlib.contextmanager
def _attributes_kept(model: nn.Module) -> Generator[None]:
    """Give modules back the attributes that `forward` sets: tracing leaves symbols in them."""
    kept = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for attributes, before in kept:
            attributes.clear()
            attributes.update(before)


def _prepared(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """Return the plain model and its inputs on the CPU."""
    model = unwrap(model)
    check_model(model)
    check_whole(model)
    check_inputs(model, inputs)
    check_weights(model)
    if any(tensor.device.type != "cpu" for tensor in model.state_dict().values()):
        model = copy.deepcopy(model).cpu()
    return model, changed(inputs, lambda tensor: tensor.detach().cpu())


def _shapes(model: nn.Module, inputs: Inputs, batch: Any) -> dict[str, Any]:
    """Tell for every argument of `forward` which of its dimensions is the batch."""
    args, kwargs = arguments(model, inputs)
    bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
    size = tensors_of(inputs)[0].shape[0]

    def dynamic(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {0: batch} if value.dim() and value.shape[0] == size else {}
        if isinstance(value, Mapping):
            return {key: dynamic(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(dynamic(item) for item in value)
        return None

    return {name: dynamic(value) for name, value in bound.items()}


# -- source code -------------------------------------------------------------------------------


def _source(model: nn.Module, exported: ExportedProgram) -> Source:
    """Describe the program in terms of the model's own names."""
    names: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for key, tensor in module.named_parameters(recurse=False, remove_duplicate=False):
            names.setdefault(id(tensor), []).append(f"{path}.{key}".lstrip("."))
        for key, tensor in module.named_buffers(recurse=False, remove_duplicate=False):
            names.setdefault(id(tensor), []).append(f"{path}.{key}".lstrip("."))
    graph = plain_graph(exported.graph_module)
    _keep_casts_inside(graph)
    tensors: dict[str, tuple[str, ...]] = {}
    constants: dict[str, Tensor] = {}
    literals: dict[str, str] = {}
    inputs: dict[str, str] = {}
    for spec in exported.graph_signature.input_specs:
        name = str(getattr(spec.arg, "name", ""))
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            tensors[name] = tuple(names[id(_at(model, str(spec.target)))])
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            value = cast(Tensor, exported.constants[str(spec.target)])
            if value.dim():
                key = f"constant_{len(constants)}"
                tensors[name], constants[key] = (key,), value
            else:
                literals[name] = f"torch.tensor({value.item()!r}, dtype={value.dtype})"
        elif not hasattr(spec.arg, "value"):
            inputs[name] = name
    for node in graph.nodes:  # a copy of a number is that number
        if node.target is torch.ops.aten.lift_fresh_copy.default and node.args[0].name in literals:
            literals[node.name] = literals[node.args[0].name]
    (output,) = graph.find_nodes(op="output")
    kinds = {spec.kind for spec in exported.graph_signature.output_specs}
    if kinds != {OutputKind.USER_OUTPUT}:
        raise UnsupportedError(
            f"{type(model).__name__} changes its buffers in evaluation mode and cannot be written "
            "as source code: export it as pt2 or onnx"
        )
    assert exported.call_spec.out_spec is not None
    outputs = pytree().tree_unflatten(list(output.args[0]), exported.call_spec.out_spec)
    return Source(model, graph, tensors, constants, literals, inputs, outputs)


def _keep_casts_inside(graph: fx.Graph) -> None:
    """Let readers of a cast that changes nothing, outside its module, read what was cast.

    PyTorch gives the same tensor back then, so the trace says that the module's caller reads it.
    """
    casts = {torch.ops.aten.to.dtype, torch.ops.aten.to.dtype_layout, torch.ops.aten.to.device}
    for node in graph.nodes:
        if node.target in casts and node.meta["val"].dtype == node.args[0].meta["val"].dtype:
            calls = [*(node.meta.get("nn_module_stack") or {})]
            for user in list(node.users):
                if [*(user.meta.get("nn_module_stack") or {})][: len(calls)] != calls:
                    user.replace_input_with(node, node.args[0])


def _at(model: nn.Module, name: str) -> Tensor:
    path, _, key = name.rpartition(".")
    return getattr(model.get_submodule(path), key)


def _warn_unused(model: nn.Module, names: list[str]) -> None:
    left_out = [name for name, _ in model.named_parameters() if name not in names]
    if left_out:
        warn(
            f"{len(left_out)} parameters that evaluation mode does not use were left out, e.g. "
            f"{left_out[0]}",
        )


# -- ONNX --------------------------------------------------------------------------------------


def _input_names(exported: ExportedProgram) -> list[str]:
    names = exported.graph_signature.user_inputs
    return [name for name in names if isinstance(name, str)]


def _output_names(exported: ExportedProgram) -> list[str]:
    spec = exported.call_spec.out_spec
    assert spec is not None
    paths = pytree().tree_flatten_with_path(pytree().tree_unflatten([0] * spec.num_leaves, spec))[0]
    keys = [
        "_".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path) for path, _ in paths
    ]
    return [f"output_{key}" if key.isdigit() else key or "output" for key in keys]


def _forget_origin(proto: Any) -> None:
    """Take out what says in which source file an operator was written."""
    del proto.metadata_props[:]
    graph = proto.graph
    for part in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        del part.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Silence PyTorch's exporters, which warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
