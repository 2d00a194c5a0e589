"""Run the exported graph with parts left out: masked, or sliced to other widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from guyot.core.axis import kept_indices, size_of, spread
from guyot.core.inputs import Inputs, arguments, flat, tensors_of
from guyot.core.locate import first_names, named_tensors
from guyot.core.torch_private import schema_of
from guyot.core.types import Axis, KeepPlan, Structures
from guyot.structures.branches import Branch
from guyot.structures.inference import Inference
from guyot.structures.trace import Trace
from guyot.structures.verify.behaviour import projected
from guyot.surgery import masks_of, present
from guyot.surgery.operate import select


@dataclass(frozen=True)
class Change:
    """How a replay differs from the traced graph.

    Attributes:
        shapes: node -> the shape to give its result.
        literals: node -> position -> the integer, or the list of them, to pass instead.
        shortcuts: node of an addition -> the operand that stays.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    literals: dict[str, dict[int, int | list[int]]] = field(default_factory=dict)
    shortcuts: dict[str, int] = field(default_factory=dict)


class _Interpreter(fx.Interpreter):
    """Run the exported graph with other tensors, other widths or fewer branches."""

    def __init__(self, trace: Trace, change: Change) -> None:
        super().__init__(fx.GraphModule(nn.Module(), trace.graph))
        self.change = change

    def run_node(self, n: fx.Node) -> Any:
        change = self.change
        if n.name in change.shortcuts:
            args, _ = self.fetch_args_kwargs_from_env(n)
            return args[change.shortcuts[n.name]]
        if n.name in change.shapes:
            args, _ = self.fetch_args_kwargs_from_env(n)
            return args[0].reshape(change.shapes[n.name])
        if n.name in change.literals:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            stated = change.literals[n.name]
            return n.target(*(stated.get(i, arg) for i, arg in enumerate(args)), **kwargs)  # pyright: ignore[reportCallIssue]
        return super().run_node(n)


class Replay:
    """Runs of the exported graph of one model on the same inputs.

    Args:
        model: holds the tensors.
        inputs: of every run.
        trace: the graph.
        inference: which axes its tensors, shapes and literals have.
        branches: which nodes add the layers of `inference.structures`.
        narrow: the inference describes a narrower network than the graph, and this is the model.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        trace: Trace,
        inference: Inference,
        branches: Sequence[Branch],
        *,
        narrow: bool = False,
    ) -> None:
        self._model, self._trace = model, trace
        self._inference, self._branches = inference, branches
        named, identities = named_tensors(model), first_names(model)
        self._names = {key: identities[name] for key, name in trace.tensors.items()}
        self._tensors = {key: named[name].detach() for key, name in trace.tensors.items()}
        leaves = flat(arguments(model, inputs))
        self._given: dict[str, Any] = dict(zip(trace.inputs, leaves, strict=True))
        self._written = _written(trace.graph)
        self._narrow = narrow
        self._whole = self._change(KeepPlan()) if narrow else Change()

    def _converted(self, constant: Tensor) -> Tensor:
        """Return a constant in the floating-point type that the model has."""
        kinds = {t.dtype for t in self._tensors.values() if t.is_floating_point()}
        double = as_double(constant)
        return double.float() if torch.float32 in kinds and double.is_floating_point() else double

    def on(self, inputs: Inputs) -> Replay:
        """The same on other inputs."""
        return Replay(
            self._model,
            inputs,
            self._trace,
            self._inference,
            self._branches,
            narrow=self._narrow,
        )

    def masked(self, plan: KeepPlan) -> list[Tensor]:
        """The outputs when weights do not read what the plan leaves out."""
        return self._run(self._scaled(self.scales(plan)), self._whole)

    def scales(self, plan: KeepPlan) -> dict[str, Tensor]:
        """Return the factors of tensors where a plan leaves something out, by first names."""
        structures = self._inference.structures
        scales = reader_masks(structures, masks_of(structures, plan))
        zero = torch.zeros((), dtype=torch.float64)
        zeroed = {w for n in plan.removed_layers for w in structures.layers[n].writers}
        return scales | dict.fromkeys(zeroed, zero)

    def _scaled(self, scales: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            key: (self._tensors[key] * scales[name]).to(self._tensors[key].dtype)
            if name in scales
            else self._tensors[key]
            for key, name in self._names.items()
        }

    def moving(self) -> dict[tuple[str, int], Tensor]:
        """Return derivatives by the gates of those groups and layers that outputs depend on.

        The keys are ("group" or "layer", number); a derivative of a group has shape (units,).
        """
        return self.masked_and_moving(KeepPlan())[1]

    @torch.enable_grad()
    def masked_and_moving(
        self, plan: KeepPlan
    ) -> tuple[list[Tensor], dict[tuple[str, int], Tensor]]:
        """Return the outputs of `masked`, and `moving` there, from one run.

        A group counts if a unit that the plan keeps does.
        """
        structures = self._inference.structures
        masks = masks_of(structures, plan)
        units = [mask.to(torch.float64).requires_grad_() for mask in masks]
        there = [float(n not in plan.removed_layers) for n in range(len(structures.layers))]
        layers = [torch.tensor(gate, dtype=torch.float64).requires_grad_() for gate in there]
        scales = reader_masks(structures, units)
        for layer, gate in zip(structures.layers, layers, strict=True):
            for writer in layer.writers:
                scales[writer] = scales[writer] * gate if writer in scales else gate
        outputs = self._run(self._scaled(scales), self._whole)
        total = sum(projected(output) for output in outputs if output.requires_grad)
        masked = [output.detach() for output in outputs]
        if not isinstance(total, Tensor) or not (units or layers):
            return masked, {}
        found = torch.autograd.grad(total, [*units, *layers], allow_unused=True)
        names = [("group", n) for n in range(len(units))]
        names += [("layer", n) for n in range(len(layers))]
        return masked, {
            name: gradient
            for name, gradient, kept in zip(names, found, [*masks, *layers], strict=True)
            if gradient is not None and bool((gradient[kept] if kept.dim() else gradient).any())
        }

    def sliced(self, plan: KeepPlan) -> list[Tensor]:
        """The outputs when what the plan leaves out is not there."""
        structures = self._inference.structures
        masks = present(structures, plan)
        by_name = {tensor.name: tensor for tensor in structures.tensors}
        tensors = {
            key: select(
                self._tensors[key], tuple(kept_indices(a, masks) for a in by_name[name].axes)
            )
            for key, name in self._names.items()
        }
        return self._run(tensors, self._change(plan))

    def _change(self, plan: KeepPlan) -> Change:
        """Return how the graph differs when what a plan leaves out is not there."""
        sizes = [int(mask.sum()) for mask in present(self._inference.structures, plan)]
        shapes = {
            node: tuple(size_of(axis, sizes) for axis in axes)
            for node, axes in self._inference.shapes.items()
        }
        literals = {
            node: {position: _sizes(axis, sizes) for position, axis in stated.items()}
            for node, stated in self._inference.literals.items()
        }
        shortcuts = {
            self._branches[n].addition.name: 1 - self._branches[n].layer.operand
            for n in plan.removed_layers
        }
        return Change(shapes, literals, shortcuts)

    def _run(self, tensors: Mapping[str, Tensor], change: Change) -> list[Tensor]:
        constants = {key: self._converted(value) for key, value in self._trace.constants.items()}
        values: list[Any] = []
        for node in self._trace.graph.nodes:
            if node.op == "placeholder":
                for source in (tensors, constants, self._given):
                    if node.name in source:
                        value = source[node.name]
                        copied = node.name in self._written and isinstance(value, Tensor)
                        values.append(value.clone() if copied else value)
        return tensors_of(_Interpreter(self._trace, change).run(*values))


def _written(graph: fx.Graph) -> set[str]:
    """Placeholders that an operator changes in place, maybe through views of them."""
    written: set[str] = set()
    for node in graph.nodes:
        schema = schema_of(node.target)
        if node.op != "call_function" or (schema is not None and not schema.is_mutable):
            continue
        for base in node.all_input_nodes:
            while base.op != "placeholder" and base.all_input_nodes:
                base = base.all_input_nodes[0]
            written.add(base.name)
    return written


def as_double(tensor: Tensor) -> Tensor:
    """On the CPU, in float64 if it is a floating-point tensor."""
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def _sizes(axis: Axis | tuple[Axis, ...], sizes: Sequence[int]) -> int | list[int]:
    if isinstance(axis, tuple):
        return [size_of(one, sizes) for one in axis]
    return size_of(axis, sizes)


def reader_masks(structures: Structures, masks: Sequence[Tensor]) -> dict[str, Tensor]:
    """For every reader a 0/1 tensor that broadcasts over it: 0 where it reads a left-out unit."""
    shapes = {tensor.name: tensor.axes for tensor in structures.tensors}
    result: dict[str, Tensor] = {}
    for slot in {slot: None for group in structures.groups for slot in group.readers}:
        axes = shapes[slot.tensor]
        scale = spread(
            axes,
            slot.dim,
            lambda group: masks[group].to(torch.float64),
            lambda size: torch.ones(size, dtype=torch.float64),
        )
        result[slot.tensor] = result[slot.tensor] * scale if slot.tensor in result else scale
    return result
