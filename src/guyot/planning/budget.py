"""The multiplier nu that takes the expected complexity along a path to a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from guyot.planning.dynamics import Phases, speed, step
from guyot.planning.vectors import GateState, GateValues

# Tuned on simulated noisy benefits; none of them has a unit.
_RELAXATION = 0.02
"""Share of discovery in which a deviation from the path is made up."""
_RATE = 200.0
"""Largest change of log nu per step, times the horizon."""
_SCALE_RATE = 5.0
"""How fast the speed's unit follows nu, per step, times the horizon."""
_SPAN = 6.0
"""Largest nu / scale and scale / nu."""


@dataclass(frozen=True)
class BudgetState(GateState):
    """Keep what a `Budget` has found so far.

    Attributes:
        nu: the multiplier; the gates' prices are nu * unit prices.
        scale: the reference prices are scale * unit reference prices.
        initial: C^ where the path begins; None before the first update.
        last: step of the last update; None before it.
    """

    nu: float = 0.0
    scale: float = 0.0
    initial: float | None = None
    last: int | None = None


@dataclass(frozen=True)
class Budget:
    r"""Find the multiplier nu, in nats, with which C^(theta) follows a path to the target.

    With unit prices c_j (nu = 1) and reference prices c~_j, n steps at multiplier nu and scale s
    move theta_j by n theta0/H * clip((b_j - nu c_j) / (s c~_j) + ..., -m, m), projected to
    [0, 1]; to first order C^ changes by sum_j dC^/dtheta_j * dtheta_j. For fixed s this falls
    monotonically in nu for any signs of the b_j (with s = nu it would not where b_j < 0), so
    bisection in log nu finds the nu whose change is the wanted one,

        path(t + n) - path(t) + n (path(t) - C^) / tau.

    No gain is to be tuned. The change of log nu per step is bounded, since the b_j are noisy, and
    log s follows log nu slowly, so that in the mean the step is that of a fixed nu. The path
    reaches the target when the gates begin to commit (`Phases.commit`). From then on nu is
    constant, and the plan that the gates are driven to meets the target as closely as possible
    [ours].

    Attributes:
        target: C^ to reach, share of the full network.
        phases: of the run.
        theta0: initial keep probability.
        max_speed: m of `speed`.
    """

    target: float
    phases: Phases
    theta0: float = 0.9
    max_speed: float = 2.0

    def path(self, initial: float, step: int) -> float:
        """Return C^ wanted at a step: from `initial` by 3u**2 - 2u**3 to the target."""
        u = min(1.0, self.phases.progress(step) / (1 - self.phases.commit))
        return initial + (self.target - initial) * u * u * (3 - 2 * u)

    def update(
        self, state: BudgetState, now: int, gates: GateValues, expected: float, ahead: int = 1
    ) -> BudgetState:
        """Return `nu` and `scale` for the steps that the gates take next.

        Args:
            state: after the last update.
            now: optimiser step.
            gates: at this step.
            expected: C^(theta).
            ahead: n, how many steps they take.
        """
        initial, nu, scale = state.initial, state.nu, state.scale
        if initial is None:
            initial = expected
            nu = scale = float(gates.benefit.abs().sum() / gates.price.sum().clamp(min=1e-30))
        if not nu > 0:
            nu = scale = 1e-6
        steps = now - state.last if state.last is not None else 1
        horizon = self.phases.horizon
        if self.phases.progress(now) >= 1 - self.phases.commit:
            return BudgetState(scale, scale, initial, now)
        tau = max(_RELAXATION * self.phases.discovery_steps, 2 * steps, 2)
        wanted = self.path(initial, now + ahead) - self.path(initial, now)
        wanted += ahead * (self.path(initial, now) - expected) / tau
        slope = gates.gradient * gates.alive

        def change(nu: float) -> float:
            reference_price = scale * gates.reference_price
            drift = speed(gates.benefit, nu * gates.price, reference_price, self.max_speed)
            moved = step(gates.theta, drift, self.theta0, horizon, ahead)
            return float(slope @ (moved - gates.theta))

        bound = math.exp(min(1.0, _RATE * steps / horizon))
        low = max(nu / bound, scale / _SPAN)
        high = max(low, min(nu * bound, scale * _SPAN))
        nu = _bisect(change, wanted, low, high)
        if nu > low:  # at the lower end no nu would do: a smaller unit would only wind up
            scale *= (nu / scale) ** min(1.0, _SCALE_RATE * steps / horizon)
        return BudgetState(nu, scale, initial, now)


def _bisect(
    change: Callable[[float], float], wanted: float, low: float, high: float, halvings: int = 12
) -> float:
    """Return the nu in [low, high] where the falling function `change` passes `wanted`."""
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
