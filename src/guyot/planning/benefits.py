r"""From loss gradients at sampled gates to what every structure earns.

A step samples a 0/1 gate xi_j for every structure and one backward pass gives dC/dxi_j at
xi_j for all of them. The benefit of structure j, in nats, is

    b_j = C(xi_j = 0) - C(xi_j = 1) = - integral_0^1 C'_j(t) dt

and the estimators differ in how they put C'_j(0) and C'_j(1) together. Each keeps one running
mean per side, counted in samples of that side, so that a rarely sampled side is remembered longer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guyot.core.errors import MisconfiguredError

_STATE = ("mean_one", "weight_one", "mean_zero", "weight_zero")


@dataclass(frozen=True)
class SideSums:
    """Gate gradients of one step by sampled side.

    With several ranks, each of which samples its own gates, a sample is worth the share of the
    step's images that it saw: the fields are means over the ranks, see `averaged`. So the window
    of an `Estimator` holds the same number of images whatever the number of ranks.

    Attributes:
        sum_one: sum of dC/dxi_j over samples with xi_j = 1, nats, shape (gates,).
        count_one: number of such samples, shape (gates,); a share of the ranks if there are many.
        sum_zero: the same for xi_j = 0.
        count_zero: number of such samples.
    """

    sum_one: Tensor
    count_one: Tensor
    sum_zero: Tensor
    count_zero: Tensor

    @classmethod
    def from_sample(cls, gradient: Tensor, gate: Tensor) -> SideSums:
        """One backward pass.

        Args:
            gradient: dC/dxi, nats, shape (gates,).
            gate: the sampled xi, 0 or 1, shape (gates,).

        Example:
            >>> SideSums.from_sample(torch.tensor([2.0, 3.0]), torch.tensor([1, 0])).sum_one
            tensor([2., 0.])
        """
        one = gate.to(gradient)
        on = gradient * one
        return cls(on, one, gradient - on, 1 - one)

    def averaged(self, mean: Callable[[Tensor], Tensor]) -> SideSums:
        """Of all ranks, each with a sample of its own.

        Args:
            mean: over the ranks, of a tensor of shape (3, gates); called once.
        """
        one, zero, count = mean(torch.stack([self.sum_one, self.sum_zero, self.count_one]))
        return SideSums(one, count, zero, 1 - count)

    @property
    def silent(self) -> bool:
        """True if no gradient reached any gate on any rank."""
        sums = torch.stack([self.sum_one, self.sum_zero])
        return bool(sums.numel()) and not bool(sums.any())

    @property
    def finite(self) -> bool:
        """False if any gradient was NaN or infinite; such a step is better skipped."""
        return bool(torch.isfinite(self.sum_one.sum() + self.sum_zero.sum()))


class Estimator(ABC):
    r"""Running means of both sides and a rule that makes a benefit of them.

    With n samples of a side in one step (a fraction when a sample is one rank's of several), their
    mean enters with weight 1 - decay**n; the mean is corrected for its start at 0 (as in Adam). A
    step without samples of a side leaves it alone.

    Args:
        total: number of gates.
        decay: of the running mean, per *sample* of the side; the window is 1 / (1 - decay).
        device: where the means live.

    Raises:
        MisconfiguredError: decay outside [0, 1).
    """

    name: ClassVar[str]

    def __init__(
        self, total: int, decay: float = 0.96, device: torch.device | str | None = None
    ) -> None:
        if not 0 <= decay < 1:
            raise MisconfiguredError(
                f"decay={decay} is out of range: choose 0 <= decay < 1, e.g. 0.96 "
                "for a window of 25 samples."
            )
        self.decay = decay
        self._state = {key: torch.zeros(total, device=device) for key in _STATE}

    def update(self, sums: SideSums) -> None:
        """Take in one step's samples.

        Raises:
            MisconfiguredError: the sums are for another number of gates.
        """
        total = self._state["mean_one"].shape
        if sums.sum_one.shape != total:
            raise MisconfiguredError(
                f"sums of shape {tuple(sums.sum_one.shape)} for an estimator of {total[0]} "
                "gates: after a removal call select() with the kept gates."
            )
        self._side("one", sums.sum_one, sums.count_one)
        self._side("zero", sums.sum_zero, sums.count_zero)

    def _side(self, side: str, total: Tensor, count: Tensor) -> None:
        """mean <- d**n mean + (1 - d**n) total / n, and its weight."""
        state = self._state
        keep = torch.exp(count * math.log(self.decay)) if self.decay > 0 else (count == 0).float()
        fresh = 1 - keep
        n = torch.where(count > 0, count, 1)
        state[f"mean_{side}"].mul_(keep).add_(fresh * total / n)
        state[f"weight_{side}"].mul_(keep).add_(fresh)

    def _sides(self) -> tuple[Tensor, Tensor]:
        """Bias-corrected means (C'(1), C'(0)); a side without samples takes the other's."""
        state = self._state
        one, zero = (
            state[f"mean_{s}"] / state[f"weight_{s}"].clamp(min=1e-12) for s in ("one", "zero")
        )
        return (
            torch.where(state["weight_one"] > 0, one, zero),
            torch.where(state["weight_zero"] > 0, zero, one),
        )

    @abstractmethod
    def benefit(self, theta: Tensor) -> Tensor:
        """Estimated b_j = C(xi_j=0) - C(xi_j=1), nats, shape (gates,); 0 before any sample.

        Args:
            theta: keep probabilities, shape (gates,).
        """

    def select(self, kept: Tensor) -> None:
        """After a removal: go on with these gates only.

        Args:
            kept: indices (int64) or a mask (bool) over the present gates, in the new order.
        """
        self._state = {key: value[kept].clone() for key, value in self._state.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The means and their weights, all of shape (gates,)."""
        return {key: value.clone() for key, value in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            MisconfiguredError: entries are missing or of unequal shapes.
        """
        if set(state) != set(_STATE) or len({value.shape for value in state.values()}) != 1:
            raise MisconfiguredError(
                f"estimator state has entries {sorted(state)}: expected {sorted(_STATE)}, "
                "all of one shape."
            )
        device = self._state["mean_one"].device
        self._state = {key: state[key].to(device, copy=True) for key in _STATE}


class TwoSided(Estimator):
    r"""b = -(E C'(1) + E C'(0)) / 2, the trapezoid over the gate (the default) [ours].

    Bias: exact when C is quadratic in xi_j; otherwise -(1/12) C''' to leading order, independent
    of theta_j, so that it makes no interior equilibrium.
    Variance: (var_1 / n_1 + var_0 / n_0) / 4 with n the effective number of samples of a side, at
    most (1 + decay) / (1 - decay); no importance weights, which would grow as 1 / theta and
    1 / (1 - theta). While a side has no sample, the other side alone.
    """

    name = "two-sided"

    def benefit(self, theta: Tensor) -> Tensor:
        """Trapezoid of both sides, nats, shape (gates,)."""
        one, zero = self._sides()
        return -0.5 * (one + zero)


class StraightThrough(Estimator):
    r"""b = -(theta E C'(1) + (1 - theta) E C'(0)): the gradient through the sample as it came.

    Source: Bengio, Leonard, Courville, arXiv:1308.3432.
    Bias: (theta - 1/2) (C'(0) - C'(1)) against the two-sided rule. For convex C it falls as theta
    rises, which makes stable interior equilibria: gates stay undecided. For comparison only.
    Variance: theta**2 var_1 / n_1 + (1 - theta)**2 var_0 / n_0.
    """

    name = "straight-through"

    def benefit(self, theta: Tensor) -> Tensor:
        """Sides weighted as they are sampled, nats, shape (gates,)."""
        one, zero = self._sides()
        return -(theta * one + (1 - theta) * zero)


class FirstOrderTaylor(Estimator):
    r"""b = -E C'(1): first-order Taylor expansion about the active structure.

    Source: Molchanov et al., arXiv:1906.10771 (without the square).
    Bias: -C''/2 for quadratic C. Where the weights are stationary under weight decay lambda,
    theta C'(1) = -lambda ||w||**2, so b is the weights' magnitude. For comparison only.
    Variance: var_1 / n_1. A gate that was never sampled active takes C'(0).
    """

    name = "taylor"

    def benefit(self, theta: Tensor) -> Tensor:
        """The active side alone, nats, shape (gates,)."""
        return -self._sides()[0]


ESTIMATORS: dict[str, type[Estimator]] = {
    cls.name: cls for cls in (TwoSided, StraightThrough, FirstOrderTaylor)
}


def estimator(
    name: str, total: int, decay: float = 0.96, device: torch.device | str | None = None
) -> Estimator:
    """An estimator by name.

    Example:
        >>> estimator("two-sided", total=3).benefit(torch.ones(3))
        tensor([-0., -0., -0.])

    Raises:
        MisconfiguredError: unknown name.
    """
    if name not in ESTIMATORS:
        raise MisconfiguredError(f"estimator={name!r} is unknown: choose one of {[*ESTIMATORS]}.")
    return ESTIMATORS[name](total, decay, device)
