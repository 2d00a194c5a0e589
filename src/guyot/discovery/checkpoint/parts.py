"""Optimisers, schedulers and others with a state: how it is restored, and when it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from guyot.core.errors import MisconfiguredError
from guyot.core.randomness import set_random_state
from guyot.core.storage import Stored, loaded
from guyot.core.trees import difference
from guyot.core.warning import warn
from guyot.discovery.checkpoint.shards import load_weights, placed, placed_as, shapes
from guyot.discovery.optimizers import keeps_elementwise_state, parameters_of

REMEDY = "build model, discovery and all parts as for the first start"
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that the `load_state_dict` of others may raise at a state that is not theirs."""


class Stateful(Protocol):
    """Stand for an optimiser, a scheduler, a gradient scaler, an average of the weights, ..."""

    def state_dict(self) -> Any:
        """Return what must survive: tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restore what `state_dict` gave."""
        ...


def restore(part: Stateful, name: str, state: Any, file: Path, sharded: bool) -> None:
    """Give a part its state; the error of one that does not fit names the file.

    Args:
        part: gets it.
        name: of the part.
        state: was read, but for its tensors.
        file: it comes from.
        sharded: tensors of the part may be sharded as the model is.
    """
    try:
        problem = _give(part, state, sharded)
    except (*UNFIT, RuntimeError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
    if problem is not None:
        raise MisconfiguredError(f"{file}: {name} does not fit: {problem}; {REMEDY}")


def _give(part: Stateful, state: Any, sharded: bool) -> str | None:
    """Give a part its state; or say in what it does not fit."""
    problem = None
    if isinstance(part, torch.optim.lr_scheduler.LRScheduler):
        state, own = loaded(state), part.state_dict()
        found = state
        if isinstance(state, Mapping):  # some schedulers get entries as they go
            found = {key: state[key] for key in own if key in state}
        problem = difference(own, found)
    elif isinstance(part, torch.optim.Optimizer):
        problem = _misfit(part, shapes(state))
        state = state if problem else _spread(part, state)
    elif isinstance(part, nn.Module) and _is_of_tensors(part, state):
        problem = difference(part.state_dict(), shapes(state))
        if problem is None:
            load_weights(part, state)
        return problem
    else:
        state = placed_as(state, part.state_dict() if sharded else None)
    if problem is None:
        cast(Stateful, part).load_state_dict(state)
    return problem


def _is_of_tensors(part: nn.Module, state: Any) -> bool:
    """Say whether a state is all that a module without an own way to load it needs."""
    plain = type(part).load_state_dict is nn.Module.load_state_dict
    return (
        plain and isinstance(state, Mapping) and all(isinstance(v, Stored) for v in state.values())
    )


def restore_random(state: Any, file: Path) -> None:
    """Give the global sources of random numbers their states; an error names the file."""
    try:
        set_random_state(state)
        saved = len(state["cuda"])
    except (*UNFIT, RuntimeError) as error:
        raise MisconfiguredError(f"{file}: random does not fit: {error}") from error
    if saved != torch.cuda.device_count():
        warn(
            f"{file}: it holds the random states of {saved} GPUs and "
            f"{torch.cuda.device_count()} are here, whose random numbers are new",
        )


def _spread(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state whose tensors are sharded as their parameters are."""
    parameters = parameters_of(optimizer)

    def spread(number: int, value: Any) -> Any:
        like = parameters[number]
        elementwise = isinstance(value, Stored) and value.shape == like.shape
        return placed(value, like) if elementwise else loaded(value)

    entries = {
        number: {key: spread(number, value) for key, value in own.items()}
        for number, own in state["state"].items()
    }
    return {**loaded({**state, "state": {}}), "state": entries}


def _misfit(optimizer: torch.optim.Optimizer, state: Any) -> str | None:
    """Say in what a state is not that of this optimiser; None if it is."""
    own = {**optimizer.state_dict(), "state": {}}
    if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
        return difference(own, state) or "state is no mapping"
    if found := difference(own, {**state, "state": {}}):
        return found
    parameters = parameters_of(optimizer)
    elementwise = keeps_elementwise_state(optimizer)
    for number, entries in state["state"].items():
        if number not in range(len(parameters)) or not isinstance(entries, Mapping):
            return f"state.{number} is of no parameter"
        for key, value in entries.items():
            if elementwise and isinstance(value, Tensor) and value.dim():
                expected = parameters[number].detach().to(value.dtype)
                if found := difference(expected, value):
                    return f"state.{number}.{key}: {found}"
    return None
