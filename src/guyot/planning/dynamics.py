"""How keep probabilities move, in which phase, and when they are final.

All vectors are flat over the gates, numbered as in `guyot.core.types.GateIndex`. Nothing here
removes anything: conditions return masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from guyot.core.errors import MisconfiguredError, TooFewStepsError
from guyot.planning.config import SHORTEST
from guyot.planning.vectors import GateState


class Phase(Enum):
    """Name what a training step does with the gates."""

    WARM_UP = "warm-up"
    DISCOVERY = "discovery"
    FINE_TUNE = "fine-tune"


@dataclass(frozen=True)
class Phases:
    """Divide a run into warm-up, discovery (whose last part commits), and fine-tuning.

    Attributes:
        total_steps: optimiser steps of the whole run.
        warmup: share of the steps without gates at the start; 0 skips the phase.
        discovery_end: share of the steps after which undecided gates are rounded.
        commit: last share of discovery, in which undecided gates are driven to 0 or 1.
        commitment_max: strength of that at the end of discovery, see `speed`. It moves a gate by
            0.9 / H * commit * discovery_steps * commitment_max / 2 = 2.25 in all, the drift by
            at most 0.9, so under a plan that does not change every gate arrives.
        shortest: steps every phase needs.
        skip: steps of discovery that are left out at its end, see `ending`.

    Raises:
        MisconfiguredError: shares are out of order.
        TooFewStepsError: there are too few steps; it names the smallest number.

    Example:
        >>> phases = Phases(1000)
        >>> phases.discovery_start, phases.discovery_stop, phases.horizon
        (100, 400, 150)
        >>> phases.at(99).value, phases.at(100).value, phases.at(400).value
        ('warm-up', 'discovery', 'fine-tune')
    """

    total_steps: int
    warmup: float = 0.1
    discovery_end: float = 0.4
    commit: float = 0.25
    commitment_max: float = 10.0
    shortest: int = SHORTEST
    skip: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < self.discovery_end < 1:
            raise MisconfiguredError(
                f"warmup={self.warmup} and discovery_end={self.discovery_end} are out of order: "
                "choose 0 <= warmup < discovery_end < 1."
            )
        if not 0 < self.commit < 1:
            raise MisconfiguredError(
                f"commit={self.commit} is out of range: choose 0 < commit < 1."
            )
        if not self._fits(self.total_steps):
            lengths = (self.warmup or 1.0, self.discovery_end - self.warmup, 1 - self.discovery_end)
            enough = math.ceil(self.shortest / min(lengths))
            while not self._fits(enough):
                enough += 1
            raise TooFewStepsError(self.total_steps, self.shortest, enough)

    def _fits(self, total: int) -> bool:
        """Say whether every phase gets its steps."""
        start, stop = round(total * self.warmup), round(total * self.discovery_end)
        lengths = [stop - start, total - stop] + ([start] if self.warmup > 0 else [])
        return min(lengths) >= self.shortest

    @property
    def discovery_start(self) -> int:
        """Return the first step with gates."""
        return round(self.total_steps * self.warmup)

    @property
    def discovery_stop(self) -> int:
        """Return the first step after discovery."""
        return round(self.total_steps * self.discovery_end) - self.skip

    @property
    def discovery_steps(self) -> int:
        """Return the length of discovery with what `skip` leaves out: the unit of all speeds."""
        return self.discovery_stop + self.skip - self.discovery_start

    @property
    def horizon(self) -> int:
        """Return H, the steps in which a structure without benefit goes from theta_0 to 0."""
        return max(1, self.discovery_steps // 2)

    def at(self, step: int) -> Phase:
        """Return the phase of a step, counted from 0."""
        if step < self.discovery_start:
            return Phase.WARM_UP
        return Phase.DISCOVERY if step < self.discovery_stop else Phase.FINE_TUNE

    def discovered(self, step: int) -> int:
        """Return how many steps with gates are over after a step; the first step has none.

        Example:
            >>> Phases(1000).discovered(100), Phases(1000, warmup=0.0).discovered(1)
            (1, 1)
        """
        return step - max(1, self.discovery_start) + 1

    def progress(self, step: int) -> float:
        """Return the share of discovery that is over, in [0, 1]."""
        return min(1.0, max(0.0, (step - self.discovery_start) / self.discovery_steps))

    def ending(self, step: int) -> Phases:
        """Return the same phases, except that this step is the last one with gates.

        Example:
            >>> phases = Phases(1000)
            >>> phases.discovery_stop, phases.ending(200).discovery_stop
            (400, 201)
        """
        left = self.discovery_stop - step - 1
        return replace(self, skip=self.skip + max(0, left))

    def commitment(self, step: int) -> float:
        """Return mu of `speed`: 0, then a linear rise over the last part of discovery."""
        over = (self.progress(step) - (1 - self.commit)) / self.commit
        return self.commitment_max * max(0.0, over)


def sample(theta: Tensor, epsilon: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw independent gates, 1 with probability clamp(theta, epsilon, 1 - epsilon).

    The clamp samples both sides now and then: a structure at 0 still shows what it would earn.

    Args:
        theta: shape (gates,).
        epsilon: least probability of either side, in [0, 1/2].
        generator: source of randomness.

    Returns:
        0/1 of the shape and dtype of `theta`.
    """
    return torch.bernoulli(theta.clamp(epsilon, 1 - epsilon), generator=generator)


def speed(
    benefit: Tensor,
    price: Tensor,
    reference_price: Tensor,
    max_speed: float = 2.0,
    commitment: float = 0.0,
    plan: Tensor | None = None,
) -> Tensor:
    r"""Return the drift clip((b - c) / c~, -m, m) + mu (2 plan - 1), in units of c~.

    A gate without a (finite) reference price or a finite benefit has no drift of its own. The
    clip is symmetric about 0, so symmetric noise does not reverse the mean drift [ours].

    The second term is minus the gradient of mu sum_j c~_j |theta_j - plan_j|, a charge for not
    being the network that would be chosen now. Gates with b = c would stay undecided for long;
    this term rounds the network step by step, while its weights adapt and the plan may still
    change [ours].

    Args:
        benefit: nats, shape (gates,).
        price: c, nats.
        reference_price: c~, price in the full network, nats.
        max_speed: m.
        commitment: mu.
        plan: 0/1, shape (gates,); needed if mu > 0.

    Returns:
        Shape (gates,); -1 takes a gate from theta_0 to 0 in one horizon.
    """
    drift = (benefit - price) / reference_price
    moves = (reference_price > 0) & torch.isfinite(drift)
    drift = torch.where(moves, drift.clamp(-max_speed, max_speed), 0)
    if commitment > 0:
        assert plan is not None, "commitment needs a plan"
        drift = drift + commitment * (2 * plan.to(drift) - 1)
    return drift


def step(
    theta: Tensor,
    drift: Tensor,
    theta0: float,
    horizon: int,
    steps: int = 1,
) -> Tensor:
    """Take projected, preconditioned gradient steps: clip(theta + n theta0 / H * speed, 0, 1).

    Args:
        theta: keep probabilities, shape (gates,).
        drift: of `speed`, shape (gates,).
        theta0: initial keep probability.
        horizon: H in steps.
        steps: n, of the optimiser, since the last time.

    Example:
        >>> one = torch.ones(3)
        >>> drift = speed(torch.tensor([0.0, 2.0, 1.0]), price=one, reference_price=one)
        >>> step(0.9 * one, drift, theta0=0.9, horizon=90)
        tensor([0.8900, 0.9100, 0.9000])
    """
    return (theta + steps * theta0 / horizon * drift).clamp(0, 1)


def certified(
    theta: Tensor,
    weight_norm: Tensor,
    gradient_bound: Tensor,
    price: Tensor,
    weight_decay: float,
) -> Tensor:
    r"""Find gates in A = { ||w|| < c / G, theta < lambda c / G**2 }: theta goes to 0 for good.

    On A, |b| <= G ||w|| < c, so theta falls and stays below lambda c / G**2; then
    d||w||/dt <= theta G - lambda ||w|| < lambda (c / G - ||w||), so ||w|| stays below c / G:
    A is forward invariant and theta reaches 0 in finite time [ours; the paper states that such
    domains of attraction exist].

    Args:
        theta: keep probabilities, shape (gates,).
        weight_norm: ||w_j||, of the weights that gate j scales.
        gradient_bound: G_j >= ||dC/d(xi_j w_j)||, nats per unit of weight.
        price: c_j, nats.
        weight_decay: lambda of the optimiser.

    Returns:
        bool, shape (gates,).
    """
    small = weight_norm * gradient_bound < price
    return small & (theta * gradient_bound.square() < weight_decay * price)


@dataclass(frozen=True)
class ZeroSteps(GateState):
    """Count the steps in a row for which theta was 0 and still falling (b < c).

    Attributes:
        steps: int32, shape (gates,).
    """

    steps: Tensor

    @classmethod
    def start(cls, total: int) -> ZeroSteps:
        """Return counts of 0 for a number of gates."""
        return cls(torch.zeros(total, dtype=torch.int32))

    def updated(self, theta: Tensor, benefit: Tensor, price: Tensor, steps: int = 1) -> ZeroSteps:
        """Return the counts with some more steps."""
        again = (theta <= 0) & (benefit < price)
        return ZeroSteps(torch.where(again, self.steps + steps, 0))
