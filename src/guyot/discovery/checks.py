"""What must be true of a user's model and optimiser, with errors that say the way out."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.errors import (
    MisconfiguredError,
    SequenceError,
    UnsupportedError,
)
from guyot.core.inputs import Inputs
from guyot.core.locate import named_tensors
from guyot.core.types import Structures
from guyot.core.warning import warn
from guyot.planning.config import DiscoveryConfig
from guyot.planning.dynamics import Phases
from guyot.structures import find_structures


def sgd_weight_decay(optimizer: torch.optim.Optimizer) -> float | None:
    """Return the least L2 coefficient of SGD's groups; None for other optimisers."""
    if not isinstance(optimizer, torch.optim.SGD):
        return None
    return min(float(group["weight_decay"]) for group in optimizer.param_groups)


def inner_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser inside the wrappers of accelerate and Lightning."""
    inner = getattr(optimizer, "optimizer", None)
    return inner_optimizer(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser that does not hold every parameter that trains, or shards their state."""
    if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(optimizer).__mro__):
        raise UnsupportedError(
            "ZeroRedundancyOptimizer keeps each parameter's state in one of the processes, and "
            "surgery slices it in all of them: use the optimiser that it wraps"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise MisconfiguredError(
            f"the optimizer does not hold {len(missing)} of the model's parameters, e.g. "
            f"{missing[0]}: build it from model.parameters() of this very model, or set "
            "requires_grad=False on what must not train"
        )


def check_sliceable(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser whose state cannot be sliced, as far as that shows before its first step.

    Raises:
        UnsupportedError: it keeps tensors that have no entry per entry of their parameter.
    """
    entry = _foreign(optimizer.state) or _foreign(_rehearsed(optimizer) or {})
    if isinstance(optimizer, torch.optim.LBFGS):  # a step of it needs the loss
        entry = "'old_dirs', a list, for all parameters"
    if entry is not None:
        raise UnsupportedError(
            f"{type(optimizer).__name__} keeps {entry}: guyot cannot slice it when the parameter "
            "gets smaller; use an optimiser with elementwise state (SGD, Adam, AdamW, RMSprop, ...)"
        )


def keeps_elementwise_state(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether its state surely has one entry per entry of the parameter, or one in all."""
    state = _rehearsed(optimizer)
    return bool(state) and _foreign(state) is None


def _rehearsed(optimizer: torch.optim.Optimizer) -> dict[Tensor, Any] | None:
    """Return the state after one step of a copy with the same settings on a small parameter.

    None where that cannot be done: optimisers that wrap others or need more than their settings.
    """
    optimizer = inner_optimizer(optimizer)
    kind = type(optimizer)
    if kind.__getstate__ is not torch.optim.Optimizer.__getstate__:
        return None
    if not {"state", "param_groups"} <= optimizer.__dict__.keys():
        return None  # properties that may lead to the real ones
    device = next((p.device for g in optimizer.param_groups for p in g["params"]), None)
    parameter = nn.Parameter(torch.ones(4, 6, device=device))
    parameter.grad = torch.ones_like(parameter)
    double = copy.copy(optimizer)
    double.state = defaultdict(dict)
    double.param_groups = [{**optimizer.param_groups[0], "params": [parameter]}]
    step: Callable[..., Any] = kind.step
    try:
        getattr(step, "__wrapped__", step)(double)  # without the hooks of a real step
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return None
    return dict(double.state)


def _foreign(state: dict[Any, Any]) -> str | None:
    """Describe an entry of a state that is neither one number nor of its parameter's shape."""
    for parameter, entries in state.items():
        for name, value in entries.items() if isinstance(entries, dict) else ():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                shapes = tuple(value.shape), tuple(parameter.shape)
                return f"{name!r} of shape {shapes[0]} for a parameter of shape {shapes[1]}"
            if isinstance(value, list | tuple | dict):
                return f"{name!r}, a {type(value).__name__}, for a parameter"
    return None


def check_copy(model: nn.Module, follower: nn.Module) -> None:
    """Refuse a copy whose parameters and buffers are not those of the model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    others = {name: tuple(tensor.shape) for name, tensor in named_tensors(follower).items()}
    differing = sorted(
        name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name)
    )
    if differing:
        name = differing[0]
        raise MisconfiguredError(
            f"{type(follower).__name__} is no copy of {type(model).__name__}: {name} has shape "
            f"{others.get(name)} there and {shapes.get(name)} in the model; copy the model before "
            "anything was removed"
        )


def prunable_structures(
    model: nn.Module, example_inputs: Inputs, config: DiscoveryConfig
) -> Structures:
    """Find what can go, with the settings of a configuration.

    Raises:
        MisconfiguredError: nothing can go, and why.
    """
    structures = find_structures(
        model,
        example_inputs,
        units=config.units,
        layers=config.layers,
        ignore=config.ignore,
        freeze=config.freeze,
        tie=config.tie,
    )
    if structures.index.total:
        return structures
    reasons = "; ".join(f"{f.name}: {f.reason}" for f in structures.frozen[:5])
    raise MisconfiguredError(
        "the model has no prunable structure (no unit group and no residual branch)"
        + (f": {reasons}" if reasons else "")
        + "; a network needs at least one hidden layer between input and output"
    )


NOT_FINITE = (
    "NaN or inf in the loss or its gradients",
    "lower the learning rate or clip gradients",
)
NO_GRADIENT = ("no gradient reached the gates", "train in model.train() and with loss.backward()")


def warn_skipped(skipped: int, step: int, reason: str, way_out: str) -> None:
    """Warn, the first time and then every hundredth, that a step taught the gates nothing."""
    if skipped == 1 or skipped % 100 == 0:
        warn(
            f"{reason} at step {step} ({skipped} so far): keep probabilities are left as they "
            f"were; {way_out} if this continues",
        )


_EVIDENCE = 0.1
"""Share of discovery's steps that must have measured something before a network is chosen."""


def check_measured(step: int, skipped: int, phases: Phases, removing: bool) -> None:
    """Refuse to choose a network when nearly nothing was measured: the choice would be arbitrary.

    Args:
        step: optimiser steps so far.
        skipped: steps with gates that taught the gates nothing.
        phases: of the run.
        removing: something would go; if not, one step that measured is enough.

    Raises:
        SequenceError: too few steps measured what structures earn.
    """
    total = step - max(1, phases.discovery_start)
    measured = max(0, total - skipped)
    enough = math.ceil(_EVIDENCE * phases.discovery_steps) if removing else 1
    if measured >= enough:
        return
    if skipped > total / 2:
        why = (
            f"{skipped} steps were skipped, because no gradient reached the gates, or because it "
            "was NaN or inf: call loss.backward() in every step, and train in model.train() (to "
            "freeze BatchNorm, set its modules alone to eval())"
        )
    else:
        why = f"discovery ends at step {phases.discovery_stop}: train until then"
    raise SequenceError(
        f"no network can be chosen at step {step}: {measured} of {phases.discovery_steps} steps of "
        f"discovery measured what units and layers are worth, and {enough} are needed; {why}. "
        "abandon() ends the run without a choice"
    )


def warn_missed(target: float | None, attained: float, quanta: Sequence[int], left: bool) -> None:
    """Warn that a target was not met, and say why.

    Args:
        target: of the run.
        attained: share of the complexity that is left.
        quanta: of the groups that are left, what their widths are multiples of.
        left: whether something more could have stayed.
    """
    steps = sorted(set(quanta))
    why = f"{attained:.4f} is the closest that "
    if not left and target is not None and attained < target:
        why = (
            f"{attained:.4f} was all that was left when discovery ended, since units and layers "
            "raised the loss more than they lowered it; that happens by noise when the learning "
            "rate is high or discovery has few steps: lower the rate, or train for longer"
        )
    elif any(step > 1 for step in steps):
        multiples = " or ".join(map(str, steps))
        why += f"the widths allow (multiples of {multiples}); a smaller round_to comes closer"
    else:
        why += "the units and layers that are left come to: each is a step as large as that"
    warn(f"target={target} was not met: {why}")


NO_PRICE = 1e-7
"""Nats below which the price of a whole network is lost in a float32 loss: gates stay off."""


def warn_extreme(
    nu: float | None,
    steps: int,
    phases: Phases,
    removed: bool,
    attained: float | None,
    least: float,
) -> None:
    """Warn that nothing was removed, or all that can be, and say why; except for nu = 0.

    Args:
        nu: of the run; None with a target.
        steps: optimiser steps so far.
        phases: of the run.
        removed: something was removed.
        attained: share of the complexity that is left; None if discovery did not end.
        least: the smallest share that can be.
    """
    if nu == 0:
        return  # plain training was asked for
    if not removed:
        text = f"nothing was removed{_why_nothing(nu, steps, phases)}"
    elif nu is not None and attained is not None and attained <= 1.05 * least:
        text = (
            f"everything that could go is gone: {attained:.4f} of the complexity is left and "
            f"{least:.4f} is the floor that keeps a path from input to output (all layers gone, "
            f"the least width in every group); nu={nu:g} asks for more: lower nu"
        )
    else:
        return
    warn(text)


def _why_nothing(nu: float | None, steps: int, phases: Phases) -> str:
    """Say why nothing was removed, and what would help."""
    if nu is not None and nu < NO_PRICE:
        return (
            f", no gate ever came on: nu={nu:g} is less than a float32 loss can "
            f"show ({NO_PRICE:g}); raise nu, or give 0 for training without discovery"
        )
    if steps == 0:
        return ": step() was never called; call it once after every optimizer.step()"
    start = max(1, phases.discovery_start)
    if steps < start:
        return (
            f": gates begin at step {start:,} of total_steps={phases.total_steps:,}, and training "
            f"ended after {steps:,}; train for total_steps, or announce fewer"
        )
    return f" in {steps:,} steps: every structure earned its price; " + (
        "give a target below 1" if nu is None else f"raise nu={nu:g}, or give a target"
    )
