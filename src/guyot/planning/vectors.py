"""Vectors over gates: how they are saved, restored and shortened, and what is known of each gate.

Gates are numbered as in `guyot.core.types.GateIndex`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from guyot.core.errors import MisconfiguredError


@dataclass(frozen=True)
class GateState:
    """Keep what moves during a run: vectors over gates, plain values, and more of this class.

    The fields of a subclass say what is saved, restored and shortened.

    Example:
        >>> import torch
        >>> @dataclass(frozen=True)
        ... class Counts(GateState):
        ...     steps: Tensor
        ...     last: int | None = None
        >>> Counts(torch.tensor([5, 6, 7]), 3).select(torch.tensor([2, 0])).state_dict()
        {'steps': tensor([7, 5]), 'last': 3}
    """

    def select(self, gates: Tensor) -> Self:
        """Keep some gates.

        Args:
            gates: for every gate that stays its number so far, int64, in the new order.
        """
        shorter = {
            name: value.select(gates) if isinstance(value, GateState) else value[gates]
            for name, value in vars(self).items()
            if isinstance(value, GateState | Tensor)
        }
        return replace(self, **shorter)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all fields by name; fields of this class become dicts, too."""
        return {
            name: value.state_dict() if isinstance(value, GateState) else _copy(value)
            for name, value in vars(self).items()
        }

    def restored(self, state: Mapping[str, Any]) -> Self:
        """Return the state that `state_dict` described.

        Raises:
            MisconfiguredError: an entry is missing, or there is one too many.
        """
        if set(state) != set(vars(self)):
            raise MisconfiguredError(
                f"the state of the gates has entries {sorted(state)}: give {sorted(vars(self))}"
            )
        values = {
            name: own.restored(state[name]) if isinstance(own, GateState) else _copy(state[name])
            for name, own in vars(self).items()
        }
        return replace(self, **values)


def _copy(value: Any) -> Any:
    return value.to("cpu", copy=True) if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class GateValues:
    """Say what is known of every gate at one step; all vectors have the shape (gates,).

    Attributes:
        theta: keep probabilities.
        alive: False for what was removed for good, bool.
        benefit: b, nats.
        price: c for nu = 1; times nu it is in nats.
        reference_price: c~ for nu = 1, the price in the full network.
        gradient: dC^/dtheta.
    """

    theta: Tensor
    alive: Tensor
    benefit: Tensor
    price: Tensor
    reference_price: Tensor
    gradient: Tensor
