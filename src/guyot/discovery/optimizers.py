"""The optimisers of a run: what must be true of them, and when they step."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from guyot.core.condition import Condition, require
from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.discovery.closures import with_gradients

_ADVICE = "give an optimizer of torch that holds the model's parameters, or a list of several"
_OPTIMIZERS = Condition(
    lambda given: isinstance(given, Iterable) and not isinstance(given, str | Mapping), _ADVICE
)
_OPTIMIZER = Condition(lambda given: hasattr(given, "param_groups"), _ADVICE)

Measure = Callable[[Optimizer], None]


class Optimizers:
    """Hold the optimisers of a run, which share the model's parameters, and notice their steps.

    Args:
        model: whose parameters they train.
        given: one of them, or all; maybe in wrappers of other programs.

    Attributes:
        each: without wrappers.
        steps: how many they made since the last `restart`.

    Raises:
        MisconfiguredError: a parameter that trains is in none of them, or in two, or one is no
            optimiser.
        UnsupportedError: one of them shards its state.
    """

    def __init__(self, model: nn.Module, given: Optimizer | Iterable[Optimizer]) -> None:
        several = [given] if isinstance(given, Optimizer) else given
        require("optimizer", several, _OPTIMIZERS)
        several = list(several)
        for optimizer in several:
            require("optimizer", optimizer, _OPTIMIZER)
        self.each = [inner_optimizer(optimizer) for optimizer in several]
        self.steps = 0
        self._hooks: list[Any] = []
        check_optimizers(model, self.each)

    @property
    def sgd_weight_decay(self) -> float | None:
        """Return the least L2 coefficient of SGD's groups; None if not all of them are SGD."""
        if not all(isinstance(optimizer, torch.optim.SGD) for optimizer in self.each):
            return None
        groups = [group for optimizer in self.each for group in optimizer.param_groups]
        return min(float(group["weight_decay"]) for group in groups)

    def check_sliceable(self) -> None:
        """Refuse optimisers whose state cannot be sliced, as far as that shows before a step.

        Raises:
            UnsupportedError: one keeps tensors that have no entry per entry of their parameter.
        """
        for optimizer in self.each:
            check_sliceable(optimizer)

    def watch(self, measure: Measure) -> None:
        """Count steps from now on; measure gradients when all are there, before each step."""

        def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_gradients(lambda: measure(optimizer), args, kwargs)

        for optimizer in self.each:
            self._hooks += [
                optimizer.register_step_pre_hook(before),
                optimizer.register_step_post_hook(self._count),
            ]

    def forget(self) -> None:
        """Notice no more steps."""
        for hook in self._hooks:
            hook.remove()

    def _count(self, *_: object) -> None:
        self.steps += 1


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters that an optimiser holds."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimiser inside the wrappers of accelerate and Lightning."""
    inner = getattr(optimizer, "optimizer", None)
    return inner_optimizer(inner) if isinstance(inner, Optimizer) else optimizer


def check_optimizers(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Refuse optimisers that do not hold every parameter that trains once, or shard their state."""
    for optimizer in optimizers:
        if any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(optimizer).__mro__):
            raise UnsupportedError(
                "ZeroRedundancyOptimizer keeps each parameter's state in one of the processes, and "
                "surgery slices it in all of them: use the optimiser that it wraps"
            )
    counts = Counter(id(p) for one in optimizers for p in parameters_of(one))
    kinds = ", ".join(type(optimizer).__name__ for optimizer in optimizers) or "none"
    if twice := [n for n, p in model.named_parameters() if counts[id(p)] > 1]:
        raise MisconfiguredError(
            f"{len(twice)} of the model's parameters are in two of the optimizers ({kinds}), e.g. "
            f"{twice[0]}: give every parameter to one of them"
        )
    missing = [n for n, p in model.named_parameters() if p.requires_grad and not counts[id(p)]]
    if missing:
        one = len(optimizers) == 1
        who = "the optimizer does not hold" if one else f"the optimizers ({kinds}) do not hold"
        raise MisconfiguredError(
            f"{who} {len(missing)} of the model's parameters, e.g. {missing[0]}: build it from "
            "model.parameters() of this very model, give a list of optimizers that hold all of "
            "them together, or set requires_grad=False on what must not train"
        )


def check_sliceable(optimizer: Optimizer) -> None:
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


def keeps_elementwise_state(optimizer: Optimizer) -> bool:
    """Say whether its state surely has one entry per entry of the parameter, or one in all."""
    state = _rehearsed(optimizer)
    return bool(state) and _foreign(state) is None


def _rehearsed(optimizer: Optimizer) -> dict[Tensor, Any] | None:
    """Return the state after one step of a copy with the same settings on a small parameter.

    None where that cannot be done: optimisers that wrap others or need more than their settings.
    """
    optimizer = inner_optimizer(optimizer)
    kind = type(optimizer)
    if kind.__getstate__ is not Optimizer.__getstate__:
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
