"""Check found structures numerically: masked == sliced, in the graph and in the user's module.

All checks run in float64 on a copy whose parameters and buffers are perturbed, so that nothing
is hidden behind a weight that happens to be zero (a zero-initialised last BatchNorm, a small
LayerScale). Groups and layers are tried all at once; only if that fails are they halved until
every culprit is found.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from guyot.axis import expand, kept_indices, size_of
from guyot.structure.branches import Branch
from guyot.structure.inference import Inference
from guyot.structure.trace import Trace, evaluation_mode
from guyot.surgery import first_names, masks_of, named_tensors, operate
from guyot.surgery.operate import select
from guyot.types import Axis, KeepPlan, Structures

TOLERANCE = 1e-8


@dataclass(frozen=True)
class _Change:
    """How a replay differs from the traced graph.

    Attributes:
        shapes: node -> the shape to give its result.
        literals: node -> position -> the integer to pass instead.
        shortcuts: node of an addition -> the operand that stays.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    literals: dict[str, dict[int, int]] = field(default_factory=dict)
    shortcuts: dict[str, int] = field(default_factory=dict)


class _Replay(fx.Interpreter):
    """Run the exported graph with other tensors, other widths or fewer branches."""

    def __init__(self, trace: Trace, change: _Change) -> None:
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


class Verifier:
    """Holds the perturbed copy and compares the three ways to leave structures out."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any],
        trace: Trace,
        inference: Inference,
        branches: Sequence[Branch],
    ) -> None:
        self.trace = trace
        self.inference = inference
        self.branches = branches
        self.model = _perturbed(model)
        self.inputs = [_as_double(value) for value in example_inputs]
        self.trains = self._runs_in_training(self.model)

    def failures(self) -> tuple[dict[int, str], dict[int, str]]:
        """Groups and layers that must not be touched: number -> reason."""
        structures = self.inference.structures
        suspects = [("group", n) for n in range(len(structures.groups))]
        suspects += [("layer", n) for n in range(len(structures.layers))]
        found: dict[tuple[str, int], str] = {}
        self._search(suspects, found)
        groups = {n: reason for (kind, n), reason in found.items() if kind == "group"}
        layers = {n: reason for (kind, n), reason in found.items() if kind == "layer"}
        return groups, layers

    def _search(self, suspects: list[tuple[str, int]], found: dict[tuple[str, int], str]) -> None:
        if not suspects:
            return
        reason = self._try(suspects)
        if reason is None:
            return
        if len(suspects) == 1:
            found[suspects[0]] = reason
            return
        before = len(found)
        middle = len(suspects) // 2
        self._search(suspects[:middle], found)
        self._search(suspects[middle:], found)
        if len(found) == before:
            found.update(dict.fromkeys(suspects, f"only together with others: {reason}"))

    def _plan(self, suspects: list[tuple[str, int]]) -> KeepPlan:
        generator = torch.Generator().manual_seed(0)
        chosen = {number for kind, number in suspects if kind == "group"}
        kept: dict[int, Tensor] = {}
        for number, group in enumerate(self.inference.structures.groups):
            units = _uneven(group.size, generator)
            if number in chosen:
                kept[number] = units
        return KeepPlan(kept, frozenset(n for kind, n in suspects if kind == "layer"))

    @torch.no_grad()
    def _try(self, suspects: list[tuple[str, int]]) -> str | None:
        """Why leaving the suspects out goes wrong; None when all is well."""
        plan = self._plan(suspects)
        try:
            masked = self._replay(self._masked(plan), _Change())
            sliced = self._replay(*self._sliced(plan))
        except Exception as error:  # noqa: BLE001  (whatever a user's forward raises)
            return f"the graph does not run without it: {_first_line(error)}"
        if not _close(masked, sliced):
            return "masking and slicing it give different outputs"
        module = copy.deepcopy(self.model)
        try:
            operate(module, self.inference.structures, plan)
            with evaluation_mode(module):
                own = _tensors(module(*_copies(self.inputs)))
        except Exception as error:  # noqa: BLE001  (whatever a user's forward raises)
            return f"the model's own forward does not run without it: {_first_line(error)}"
        if not _close(own, sliced):
            return "the model's own forward gives another output than its graph"
        if self.trains and not self._runs_in_training(module):
            return "the model's forward and backward in training mode do not run without it"
        return None

    def _runs_in_training(self, model: nn.Module) -> bool:
        """Do forward and backward run in training mode? Leaves no trace."""
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        modes = {module: module.training for module in model.modules()}
        parameters = [p for p in model.parameters() if p.requires_grad]
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                outputs = _tensors(model.train()(*_copies(self.inputs)))
                total = sum(output.sum() for output in outputs if output.requires_grad)
                if isinstance(total, Tensor):
                    torch.autograd.grad(total, parameters, allow_unused=True)
        except Exception:  # noqa: BLE001  (whatever a user's forward raises)
            return False
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for buffer, saved in buffers:
                    buffer.copy_(saved)
        return True

    def _tensors(self) -> dict[str, Tensor]:
        named = named_tensors(self.model)
        return {key: named[name].detach() for key, name in self.trace.tensors.items()}

    def _masked(self, plan: KeepPlan) -> dict[str, Tensor]:
        structures = self.inference.structures
        scales = reader_masks(structures, masks_of(structures, plan))
        zeroed = {w for n in plan.removed_layers for w in structures.layers[n].writers}
        tensors = self._tensors()
        identities = first_names(self.model)
        for key, name in self.trace.tensors.items():
            canonical = identities[name]
            if canonical in scales:
                tensors[key] = tensors[key] * scales[canonical]
            if canonical in zeroed:
                tensors[key] = torch.zeros_like(tensors[key])
        return tensors

    def _sliced(self, plan: KeepPlan) -> tuple[dict[str, Tensor], _Change]:
        structures = self.inference.structures
        masks = masks_of(structures, plan)
        sizes = [int(mask.sum()) for mask in masks]
        by_name = {tensor.name: tensor for tensor in structures.tensors}
        tensors = self._tensors()
        identities = first_names(self.model)
        for key, name in self.trace.tensors.items():
            axes = by_name[identities[name]].axes
            tensors[key] = select(tensors[key], tuple(kept_indices(a, masks) for a in axes))
        shapes = {
            node: tuple(size_of(axis, sizes) for axis in axes)
            for node, axes in self.inference.shapes.items()
        }
        literals = {
            node: {position: size_of(axis, sizes) for position, axis in stated.items()}
            for node, stated in self.inference.literals.items()
        }
        shortcuts = {
            self.branches[n].addition.name: 1 - self.branches[n].layer.operand
            for n in plan.removed_layers
        }
        return tensors, _Change(shapes, literals, shortcuts)

    def _replay(self, tensors: dict[str, Tensor], change: _Change) -> list[Tensor]:
        given = dict(zip(self.trace.inputs, _copies(self.inputs), strict=False))
        constants = {key: _as_double(value) for key, value in self.trace.constants.items()}
        values: list[Any] = []
        for node in self.trace.graph.nodes:
            if node.op == "placeholder":
                for source in (tensors, constants, given):
                    if node.name in source:
                        values.append(source[node.name])
        return _tensors(_Replay(self.trace, change).run(*values))


def reader_masks(structures: Structures, masks: Sequence[Tensor]) -> dict[str, Tensor]:
    """For every reader a 0/1 tensor that broadcasts over it: 0 where it reads a left-out unit."""
    shapes = {tensor.name: tensor.axes for tensor in structures.tensors}
    result: dict[str, Tensor] = {}
    for slot in {slot: None for group in structures.groups for slot in group.readers}:
        axes = shapes[slot.tensor]
        vector = expand_mask(axes[slot.dim], masks)
        view = [1] * len(axes)
        view[slot.dim] = -1
        scale = vector.view(view)
        result[slot.tensor] = result[slot.tensor] * scale if slot.tensor in result else scale
    return result


def expand_mask(axis: Axis, masks: Sequence[Tensor]) -> Tensor:
    """A 0/1 float64 vector over a dimension."""
    return expand(
        axis,
        lambda group: masks[group].to(torch.float64),
        lambda size: torch.ones(size, dtype=torch.float64),
    )


def _uneven(size: int, generator: torch.Generator) -> Tensor:
    """Some two thirds of the units of a group, never the same backwards."""
    count = max(1, size * 2 // 3)
    while True:
        units = torch.randperm(size, generator=generator)[:count].sort().values
        if not torch.equal(units, size - 1 - units.flip(0)):
            return units


def _perturbed(model: nn.Module) -> nn.Module:
    """A float64 copy on the CPU with random weights near the model's own."""
    double = copy.deepcopy(model).cpu().double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*double.parameters(), *double.buffers()]:
            if not tensor.is_floating_point():
                continue
            spread = float(tensor.std()) if tensor.numel() > 1 else 0.0
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
            positive = bool((tensor >= 0).all())
            tensor.add_(noise * (spread if spread > 1e-3 else 0.5))
            if positive:
                tensor.abs_()
    return double


def _as_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.double() if value.is_floating_point() else value
    return value


def _copies(values: Sequence[Any]) -> list[Any]:
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        return _tensors(list(output.values()))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _tensors(item)]  # pyright: ignore[reportUnknownVariableType]
    return []


def _close(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(
        a.shape == b.shape
        and bool(((a - b).abs().max() <= TOLERANCE * (1 + b.abs().max())) & a.isfinite().all())
        for a, b in zip(left, right, strict=True)
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
