"""What a training step of a module shows, and whether a cut module shows the same as a masked one.

Two modules are run in training mode, without chance: one whose weights do not read what a plan
leaves out, and one that is really cut. Outputs, gradients (also which are None), buffers,
attributes that change and the modules whose hooks fire have to agree, as far as they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from guyot.core.axis import groups_in, kept_indices
from guyot.core.inputs import Inputs, call_model, tensors_of
from guyot.core.torch_private import version_of
from guyot.core.types import KeepPlan, Structures
from guyot.surgery import present
from guyot.surgery.operate import Indices, select

TRAINING_TOLERANCE = 1e-6
"""Of gradients and batch statistics in float64, relative to the largest; 1e8 roundings."""

_DROPOUTS = {
    getattr(place, name)
    for place in (F, torch)
    for name in (
        "dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout alpha_dropout_ "
        "feature_dropout feature_dropout_ feature_alpha_dropout feature_alpha_dropout_"
    ).split()
    if hasattr(place, name)
}
_CONSTANTS = {
    **dict.fromkeys(("bernoulli", "bernoulli_"), 1.0),
    **dict.fromkeys(("rand", "rand_like", "uniform_"), 0.5),
    **dict.fromkeys(("randn", "randn_like", "normal_"), 0.0),
}
"""What draws numbers -> what comes instead; a drawn 1 keeps a sample's path."""


class Calm(TorchFunctionMode):
    """Nothing is dropped out, and what draws numbers gives constants.

    Example:
        >>> with Calm():
        ...     F.dropout(torch.ones(2), 0.5), torch.empty(2).bernoulli_(0.1)
        (tensor([1., 1.]), tensor([1., 1.]))
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs |= {"dropout_p": 0.0} if len(args) <= 4 else {}
        elif func is F.multi_head_attention_forward:
            kwargs["training"] = False  # it is for dropout alone
        constant = _CONSTANTS.get(getattr(func, "__name__", ""))
        result = func(*args, **kwargs)
        return result if constant is None else result.fill_(constant)


@dataclass
class Behaviour:
    """What one training step showed.

    Attributes:
        outputs: of `forward`.
        gradients: of the parameters, by name; None where none arrived.
        buffers: afterwards, by name.
        changed: names of modules -> plain attributes that are other than before, with their
            tensors, or by how much they changed if they are numbers.
        fired: names of the modules whose hooks fired, and of all that have no tensors.
        written: names of the parameters that `forward` wrote into or replaced.
    """

    outputs: list[Tensor]
    gradients: Mapping[str, Tensor | None]
    buffers: Mapping[str, Tensor]
    changed: Mapping[str, Mapping[str, Any]]
    fired: set[str]
    written: set[str]


def observe(model: nn.Module, inputs: Inputs) -> Behaviour:
    """A forward and backward pass in training mode; the model's buffers change."""
    modules = dict(model.named_modules())
    fired = {n for n, m in modules.items() if not [*m.parameters(), *m.buffers()]}
    before = {name: plain_attributes(module) for name, module in modules.items()}
    handles = [
        module.register_forward_hook(_noting(fired, name)) for name, module in modules.items()
    ]
    parameters = dict(model.named_parameters())
    versions = {name: version_of(parameter) for name, parameter in parameters.items()}
    model.train()
    try:
        with Calm(), torch.enable_grad():
            outputs = tensors_of(call_model(model, inputs))
            total = sum(projected(out) for out in outputs if out.requires_grad)
            learning = {name: p for name, p in parameters.items() if p.requires_grad}
            found: Sequence[Tensor | None] = [None] * len(learning)
            if isinstance(total, Tensor) and learning:
                found = torch.autograd.grad(total, [*learning.values()], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    changed = {
        name: {key: _shown(*values) for key, values in changes(before[name], module).items()}
        for name, module in modules.items()
    }
    gradients = dict(zip(learning, found, strict=True))
    after = dict(model.named_parameters())
    written = {
        name
        for name, parameter in parameters.items()
        if after.get(name) is not parameter or version_of(parameter) != versions[name]
    }
    shown, buffers = [out.detach() for out in outputs], dict(model.named_buffers())
    return Behaviour(shown, gradients, buffers, changed, fired, written)


def _noting(fired: set[str], name: str) -> Callable[..., None]:
    def note(*_: Any) -> None:
        fired.add(name)

    return note


def projected(output: Tensor) -> Tensor:
    """A sum in which every entry has a weight of its own."""
    numbers = torch.arange(output.numel(), device=output.device, dtype=torch.float64)
    weights = numbers * 0.7 + 0.3
    return (output * weights.cos().view(output.shape).to(output.dtype)).sum()


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return the attributes that no `nn.Module` has by itself."""
    inner = vars(nn.Module()).keys()
    return {name: value for name, value in vars(module).items() if name not in inner}


def changes(before: Mapping[str, Any], module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return the plain attributes that are new or bound to something else: before and now."""
    after = plain_attributes(module)
    return {
        name: (before.get(name), value)
        for name, value in after.items()
        if name not in before or before[name] is not value
    }


def _shown(before: Any, now: Any) -> Any:
    if isinstance(before, int) and isinstance(now, int):
        return now - before
    return [tensor.detach() for tensor in tensors_of(now)]


def _alike(expected: Any, found: Any, tolerance: float) -> bool:
    """Say whether an attribute changes alike; tensors of other shapes are shorter, so skipped."""
    if not isinstance(expected, list) or not isinstance(found, list):
        return expected == found
    return len(expected) == len(found) and all(
        one.shape != two.shape or agree([one], [two], tolerance)
        for one, two in zip(expected, found, strict=True)
    )


def disagreement(
    masked: Behaviour,
    cut: Behaviour,
    structures: Structures,
    plan: KeepPlan,
    tolerance: float = TRAINING_TOLERANCE,
) -> str | None:
    """Return what differs between the masked and the cut network; None when nothing does."""
    masks = present(structures, plan)
    kept = {
        tensor.name: tuple(kept_indices(axis, masks) for axis in tensor.axes)
        for tensor in structures.tensors
    }
    if written := masked.written & _touched(structures, plan):
        return f"forward writes into {min(written)}, which is not the weight that gates give it"
    if not agree(masked.outputs, cut.outputs, tolerance):
        return "in training mode its outputs are others than those of the masked network"
    for name, gradient in cut.gradients.items():
        expected = masked.gradients.get(name)
        if (gradient is None) is not (expected is None) and not _nothing(gradient, expected):
            which = "a gradient" if expected is None else "no gradient"
            return f"{name} gets {which} any more"
        if (
            gradient is not None
            and expected is not None
            and not _as(expected, gradient, kept[name], tolerance)
        ):
            return f"the gradient of {name} is another than in the masked network"
    for name, buffer in cut.buffers.items():
        expected = masked.buffers.get(name)
        if expected is not None and not _as(expected, buffer, kept.get(name, ()), tolerance):
            return f"after a training step {name} is another than in the masked network"
    for name, changed in cut.changed.items():
        expected = masked.changed.get(name, changed)
        if expected.keys() != changed.keys():
            return f"forward sets other attributes of {name or 'the model'} than before"
        for key, value in changed.items():
            if not _alike(expected[key], value, tolerance):
                where = f"{name}.{key}".removeprefix(".")
                return f"forward sets {where} to another value than in the masked network"
    if silent := sorted((masked.fired & cut.changed.keys()) - cut.fired):
        return f"the hooks of {silent[0]} do not fire any more"
    return None


def _touched(structures: Structures, plan: KeepPlan) -> set[str]:
    """Return the names of the tensors that a plan shortens or takes away."""
    gone = {name for number in plan.removed_layers for name in structures.layers[number].tensors}
    return gone | {
        tensor.name
        for tensor in structures.tensors
        if any(group in plan.kept for axis in tensor.axes for group in groups_in(axis))
    }


def _nothing(gradient: Tensor | None, expected: Tensor | None) -> bool:
    """Say whether a gradient that is 0 where a branch is masked is None where it is gone."""
    return gradient is None and expected is not None and not bool(expected.any())


def _as(expected: Tensor, found: Tensor, indices: Indices, tolerance: float) -> bool:
    """Say whether a tensor is the part of another that stays."""
    if any(index is not None for index in indices):
        expected = select(expected, indices)
    return agree([expected], [found], tolerance)


def agree(
    left: Sequence[Tensor], right: Sequence[Tensor], tolerance: float = TRAINING_TOLERANCE
) -> bool:
    """Say whether tensors have the same shapes and, up to rounding, the same finite values.

    Example:
        >>> agree([torch.ones(2)], [torch.ones(2) + 1e-7]), agree([torch.ones(2)], [])
        (True, False)
    """
    return len(left) == len(right) and all(
        a.shape == b.shape
        and (
            not a.numel()
            or bool(((a - b).abs().max() <= tolerance * (1 + b.abs().max())) & b.isfinite().all())
            if a.is_floating_point() or a.is_complex()
            else torch.equal(a, b)
        )
        for a, b in zip(left, right, strict=True)
    )
