"""The multiplier nu that takes the expected complexity along a path to a target."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from guyot.core.errors import MisconfiguredError
from guyot.planning.dynamics import Phases, speed

_APART = 1.02
"""Least ratio of neighbouring targets of a family: settling meets each of them within 1 %."""


@dataclass(frozen=True)
class BudgetConfig:
    """Constants of `Budget`, tuned on simulated noisy benefits; they have no unit to set.

    Attributes:
        relaxation: share of discovery in which a deviation from the reference is made up.
        rate: largest change of log nu per step, times the horizon.
        scale_rate: how fast the speed's unit follows nu, per step, times the horizon.
        span: largest nu / scale and scale / nu.
    """

    relaxation: float = 0.02
    rate: float = 200.0
    scale_rate: float = 5.0
    span: float = 6.0


class Budget:
    r"""Finds the multiplier nu, in nats, with which C^(theta) follows a path to the target.

    With unit prices c_j (nu = 1) and reference prices c~_j, one step of `step` at multiplier nu
    and scale s moves theta_j by theta0/H * clip((b_j - nu c_j) / (s c~_j) + ..., -m, m), projected
    to [0, 1]; to first order C^ changes by sum_j dC^/dtheta_j * dtheta_j. For fixed s this falls
    monotonically in nu, whatever the signs of the b_j (with s = nu it would not where b_j < 0), so
    bisection in log nu finds the nu whose change is the wanted one,

        ref(t + 1) - ref(t) + (ref(t) - C^) / tau.

    No gain is to be tuned. The change of log nu per step is bounded, since the b_j are noisy, and
    log s follows log nu slowly, so that in the mean the step is that of a fixed nu. The path
    reaches the target when the gates begin to commit (`Phases.commit`); from then on nu rests,
    and the plan that the gates are taken to meets the target as closely as it can be met [ours].

    Args:
        target: C^ to reach, share of the full network.
        phases: when.
        theta0: initial keep probability.
        max_speed: see `speed`.
        config: constants.

    Attributes:
        nu: the multiplier; the gates' prices are nu * unit prices.
        scale: the reference prices are scale * unit reference prices.

    Raises:
        MisconfiguredError: target outside (0, 1).
    """

    def __init__(
        self,
        target: float,
        phases: Phases,
        theta0: float = 0.9,
        max_speed: float = 2.0,
        config: BudgetConfig | None = None,
    ) -> None:
        if not 0 < target < 1:
            raise MisconfiguredError(
                f"target={target} is out of range: choose the share of the complexity to keep, "
                "between 0 and 1, e.g. 0.5."
            )
        self.target, self.phases, self.theta0, self.max_speed = target, phases, theta0, max_speed
        self.config = config or BudgetConfig()
        self.nu = 0.0
        self.scale = 0.0
        self._initial: float | None = None
        self._last: int | None = None

    def reference(self, step: int) -> float:
        """C^ wanted at a step: a smooth path (3u**2 - 2u**3), then the target."""
        if self._initial is None:
            return self.target
        u = min(1.0, self.phases.progress(step) / (1 - self.phases.commit))
        return self._initial + (self.target - self._initial) * u * u * (3 - 2 * u)

    def update(
        self,
        step: int,
        theta: Tensor,
        benefit: Tensor,
        price: Tensor,
        reference_price: Tensor,
        gradient: Tensor,
        expected: float,
    ) -> None:
        """Set `nu` and `scale` for this step and those until the next update.

        Args:
            step: optimiser step.
            theta: keep probabilities, shape (gates,).
            benefit: nats.
            price: for nu = 1.
            reference_price: for nu = 1.
            gradient: dC^/dtheta, shape (gates,).
            expected: C^(theta).
        """
        if self._initial is None:
            self._initial = expected
            self.nu = self.scale = float(benefit.abs().sum() / price.sum().clamp(min=1e-30))
        if not self.nu > 0:
            self.nu = self.scale = 1e-6
        steps = step - self._last if self._last is not None else 1
        self._last = step
        progress, horizon = self.phases.progress(step), self.phases.horizon
        if progress >= 1 - self.phases.commit:
            self.nu = self.scale
            return
        tau = max(self.config.relaxation * self.phases.discovery_steps, 2 * steps, 2)
        wanted = self.reference(step + 1) - self.reference(step)
        wanted += (self.reference(step) - expected) / tau

        def change(nu: float) -> float:
            drift = speed(benefit, nu * price, self.scale * reference_price, self.max_speed)
            after = (theta + self.theta0 / horizon * drift).clamp(0, 1)
            return float(gradient @ (after - theta))

        bound = math.exp(min(1.0, self.config.rate * steps / horizon))
        low = max(self.nu / bound, self.scale / self.config.span)
        high = max(low, min(self.nu * bound, self.scale * self.config.span))
        self.nu = _bisect(change, wanted, low, high)
        if self.nu > low:  # at the lower end no nu would do: a smaller unit would only wind up
            follow = min(1.0, self.config.scale_rate * steps / horizon)
            self.scale *= (self.nu / self.scale) ** follow

    def state_dict(self) -> dict[str, float | int | None]:
        """What has to survive a checkpoint."""
        return {
            "nu": self.nu,
            "scale": self.scale,
            "initial": self._initial,
            "last": self._last,
        }

    def load_state_dict(self, state: Mapping[str, float | int | None]) -> None:
        """Restore what `state_dict` gave."""
        self.nu, self.scale = float(state["nu"] or 0), float(state["scale"] or 0)
        initial, last = state["initial"], state["last"]
        self._initial = None if initial is None else float(initial)
        self._last = None if last is None else int(last)


def check_targets(targets: Sequence[float]) -> str | None:
    """What is wrong with the targets of a family, and the way out; None if nothing is."""
    given = ",".join(f"{target:g}" for target in targets)
    if len(targets) < 2:
        return f"targets={given}: give at least two sizes, such as 0.7,0.5, or one target"
    for target in targets:
        if not (math.isfinite(target) and 0 < target < 1):
            return (
                f"targets={given}: {target:g} is out of range, give shares of the complexity to "
                "keep, between 0 and 1"
            )
    for larger, smaller in itertools.pairwise(targets):
        if larger < smaller:
            return (
                f"targets={given}: {smaller:g} after {larger:g} is out of order, give the largest "
                "first, as the network gets smaller"
            )
        if larger < _APART * smaller:
            return (
                f"targets={given}: {larger:g} and {smaller:g} are the same network, since a target "
                "is met within 1 %; leave one out"
            )
    return None


def _bisect(
    change: Callable[[float], float], wanted: float, low: float, high: float, halvings: int = 12
) -> float:
    """The nu in [low, high] where the falling function `change` passes `wanted`."""
    if change(low) <= wanted:
        return low
    if change(high) >= wanted:
        return high
    for _ in range(halvings):
        middle = math.sqrt(low * high)
        if change(middle) > wanted:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
