"""Everything that is numbered by gates: probabilities, means, prices, and their motion.

The controller moves keep probabilities. It says which gates can be removed and which network would
be chosen now. It never sees a module; `guyot.discovery.discovery` carries out what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from guyot.core.types import Structures
from guyot.costs.complexity import Complexity, Cost
from guyot.costs.widths import protect, quanta_of
from guyot.gates.calibration import without_empty_groups
from guyot.planning import dynamics
from guyot.planning.benefits import (
    Homes,
    LayerMeans,
    SideMeans,
    SideSums,
    benefit,
    with_branches,
)
from guyot.planning.budget import Budget, BudgetState
from guyot.planning.candidates import SearchSpace
from guyot.planning.choice import Choice, choose
from guyot.planning.config import MOST_PROBABLE, TARGET_TOLERANCE, Dials, DiscoveryConfig
from guyot.planning.dynamics import Phases, ZeroSteps
from guyot.planning.vectors import GateState, GateValues

_FORGET = 0.99
"""Per measurement, how fast the running upper bound of gradients follows smaller ones."""

DECIDE_EVERY = 10
"""Most steps from one move of the gates to the next; a device need not wait in between."""

_MOVES = 20
"""Least moves in a horizon."""

MEASURE_EVERY = 10
"""Least steps from one measurement of layers to the next."""

MEASURE_LAYERS = 3
"""Layers of one measurement."""


@dataclass(frozen=True)
class ControllerState(GateState):
    """Keep everything that a `Controller` moves; vectors have the shape (gates,).

    Attributes:
        theta: keep probabilities, float32; what costs nothing starts at 1.
        alive: False for what was removed for good, bool.
        prices: for nu = 1.
        gradient: dC^/dtheta.
        reference: prices in the full network, for nu = 1.
        bound: running upper bound of the norm of dC/d(xi_j w_j).
        norm: of the weights that each gate scales.
        plan: the network that gates commit to, bool; None before they do.
        still: steps in a row in which all gates were decided.
        skip: see `Phases`.
        estimator: means of the gates' gradients.
        layers: what layers earn, where it was measured.
        zeros: steps that each theta has been 0.
        budget: None without a target.
    """

    theta: Tensor
    alive: Tensor
    prices: Tensor
    gradient: Tensor
    reference: Tensor
    bound: Tensor
    norm: Tensor
    plan: Tensor | None
    still: int
    skip: int
    estimator: SideMeans
    layers: LayerMeans
    zeros: ZeroSteps
    budget: BudgetState | None

    @classmethod
    def start(cls, reference: Tensor, theta0: float, phases: Phases, budget: bool) -> Self:
        """Return the state before the first step.

        Args:
            reference: prices in the full network.
            theta0: initial keep probability.
            phases: of the run.
            budget: there is a target.
        """
        zeros, total = torch.zeros_like(reference), len(reference)
        return cls(
            theta=torch.where(reference == 0, 1.0, torch.full_like(reference, theta0)),
            alive=torch.ones(total, dtype=torch.bool),
            prices=zeros,
            gradient=zeros,
            reference=reference,
            bound=zeros,
            norm=torch.full_like(reference, torch.inf),
            plan=None,
            still=0,
            skip=phases.skip,
            estimator=SideMeans.start(total),
            layers=LayerMeans.start(total),
            zeros=ZeroSteps.start(total),
            budget=BudgetState() if budget else None,
        )


class Controller:
    """Move the keep probabilities of all gates.

    Everything is on the CPU, also when the model is not: some thousand numbers, which come out the
    same, to the last bit, in every process that computes them.

    Args:
        structures: what there is.
        dials: what the user wants.
        phases: of the run.
        config: everything else.
        weight_decay: lambda of the optimiser if it is (momentum) SGD, for which the certificate
            of removal is proved; else None.

    Attributes:
        structures: what is left.
        complexity: of what is left, as a share of the full network.
        full: cost of the full network.
        least: the smallest share of the complexity that can be reached.
        quanta: of the widths, per group.
        state: what moves.
        generator: source of the sampled gates, in the same state on all ranks.
        every: steps between two moves of the gates.
        interval: steps between two removals, a multiple of that.

    Raises:
        MisconfiguredError: round_to is out of range, the latency table is of another
            network, or the coupled groups do not allow the target.
    """

    def __init__(
        self,
        structures: Structures,
        dials: Dials,
        phases: Phases,
        config: DiscoveryConfig,
        weight_decay: float | None,
    ) -> None:
        self.structures, self.dials, self.config = structures, dials, config
        if (table := Cost.of(dials.alpha).table) is not None:
            table.check(structures)
        self.complexity = Complexity(structures, dials.alpha, dials.beta)
        self.full = self.complexity.full
        self.quanta = quanta_of(structures, config.round_to)
        self._quantum_of_block = {
            group.name: quantum // structures.blocks_of(group)
            for group, quantum in zip(structures.groups, self.quanta, strict=True)
        }
        self._space = SearchSpace(structures, self.complexity, self.quanta)
        self._homes = Homes.of(structures)
        self.least = self._space.least
        self._budget: Budget | None = None
        if dials.target is not None:
            self._space.check(dials.target)
            self._budget = Budget(dials.target, phases, config.theta0, config.max_speed)
        self._phases = phases
        self._patience = max(1, round(config.patience * phases.discovery_steps))
        interval = max(1, phases.discovery_steps // config.removals)
        self.every = max(1, min(DECIDE_EVERY, interval, phases.horizon // _MOVES))
        self.interval = interval // self.every * self.every
        self._weight_decay = weight_decay
        self.generator = torch.Generator().manual_seed(config.seed)
        reference = self.complexity.reference_prices()
        self.state = ControllerState.start(
            reference, config.theta0, phases, budget=self._budget is not None
        )

    @property
    def phases(self) -> Phases:
        """Return the phases of the run."""
        return replace(self._phases, skip=self.state.skip)

    @property
    def nu(self) -> float:
        """Return the multiplier in force, nats."""
        return self.state.budget.nu if self.state.budget is not None else (self.dials.nu or 0.0)

    @property
    def macs(self) -> int:
        """Return the MACs of one sample at the present physical widths."""
        return round(float(self.complexity.macs(torch.ones_like(self.state.theta))))

    @property
    def expected(self) -> float:
        """Return C^(theta), share of the full network."""
        return float(self.complexity.expected(self.state.theta))

    @property
    def gate_values(self) -> GateValues:
        """Return what is known of every gate now."""
        state = self.state
        return GateValues(
            theta=state.theta,
            alive=state.alive,
            benefit=self._benefit(),
            price=state.prices,
            reference_price=state.reference,
            gradient=state.gradient,
        )

    def _benefit(self) -> Tensor:
        """Return what every gate earns, nats, shape (gates,)."""
        state, estimator = self.state, self.config.estimator
        found = benefit(estimator, state.estimator, state.theta)
        if estimator == "fisher":
            layers = self.structures.index.layer_slice
            found[layers] = benefit("two-sided", state.estimator, state.theta)[layers]
        found = state.layers.over(found)
        if estimator != "fisher":
            return found
        return with_branches(found, (state.theta >= 0.5) & state.alive, self._homes)

    @property
    def undecided(self) -> int:
        """Return how many gates are neither 0 nor 1."""
        theta = self.state.theta
        return int(((theta > 0) & (theta < 1) & self.state.alive).sum())

    @property
    def polarised(self) -> float:
        """Return the share of the gates above 0 that are at 0.95 or more; 1 if none is above 0."""
        left = self.state.theta[self.state.theta > 0]
        return float((left >= 0.95).double().mean()) if len(left) else 1.0

    @property
    def decided(self) -> bool:
        """Say whether all gates have been 1 or removed for `patience`, and a target is reached."""
        if self.state.still < self._patience:
            return False
        target = self.dials.target
        return target is None or self.expected <= (1 + TARGET_TOLERANCE) * target

    @property
    def decisions(self) -> tuple[Tensor, ...]:
        """Return what must be the same on all ranks, each of shape (gates,)."""
        plan = self.state.plan
        return (self.state.theta, self.state.alive, *(() if plan is None else (plan,)))

    def deciding(self, step: int) -> bool:
        """Say whether the gates move after a step: the first, every `every`th, and the last."""
        passed = self._phases.discovered(step)
        stop = self._phases.discovery_stop + self._phases.skip - self.state.skip
        return passed == 1 or passed % self.every == 0 or step + 1 == stop

    def removing(self, step: int) -> bool:
        """Say whether structures may be removed after a step."""
        return self._phases.discovered(step) % self.interval == 0

    def span(self, step: int) -> tuple[int, int]:
        """Return the steps between two moves to which a step belongs: the first and the last."""
        first, last = step, step
        while self._phases.discovered(first) > 1 and not self.deciding(first - 1):
            first -= 1
        while not self.deciding(last):
            last += 1
        return first, last

    def price(self) -> None:
        """Compute prices at the present probabilities."""
        gradient = self.complexity.gradient(self.state.theta)
        prices = gradient * self.complexity.charge.to(gradient)
        self.state = replace(self.state, gradient=gradient, prices=prices)

    def sample(self, generator: torch.Generator, steps: int = 1) -> Tensor:
        """Draw gates for some steps; 0/1, float32, shape (steps, gates).

        The probabilities are theta stretched about 1/2 by `sharpness`: both agree at every
        deterministic network, but the weights train in few networks near the most probable one
        instead of in the whole cloud of undecided ones [ours].

        Units with "fisher", and layers that were measured, need no other side: their gates are 1
        exactly where theta >= 1/2, unless the user says how to draw.
        """
        drawn, layers = self.config.draw, self.structures.index.layer_slice
        gates = self._drawn(*drawn.units, generator, steps)
        measured = bool(self.state.layers.count.any())
        if layers.start < layers.stop and not measured and drawn.layers != drawn.units:
            gates[:, layers] = self._drawn(*drawn.layers, generator, steps)[:, layers]
        gates = gates * self.state.alive
        if drawn.units != MOST_PROBABLE:
            return gates
        return without_empty_groups(gates, self.state.theta, self.state.alive, self.structures)

    def _drawn(
        self, sharpness: float, epsilon: float, generator: torch.Generator, steps: int
    ) -> Tensor:
        stretched = 0.5 + sharpness * (self.state.theta - 0.5)
        stretched = stretched.nan_to_num(nan=1.0)  # infinity times 0
        return dynamics.sample(stretched.expand(steps, -1), epsilon, generator)

    def take_norms(self, weight_norm: Tensor, gradient_norm: Tensor) -> None:
        """Take in the norms of what the gates scale, for the certificate of removal."""
        bound = torch.maximum(_FORGET * self.state.bound, gradient_norm)
        bound = torch.where(bound.isfinite(), bound, self.state.bound)
        self.state = replace(self.state, norm=weight_norm, bound=bound)

    def layers_due(self, step: int) -> Tensor:
        """Return the gates of the layers that are to be measured after a step, int64, shape (n,).

        All at first. Then a few at a time, in turn, so that it costs little more than a step does.
        """
        index = self.structures.index
        new = (self.state.layers.count[index.layer_slice] == 0).nonzero().flatten()
        if len(new):
            return index.layer_slice.start + new
        passed = self._phases.discovered(step)
        if passed % MEASURE_EVERY >= self.every or not index.layers:
            return torch.zeros(0, dtype=torch.int64)
        first = passed // MEASURE_EVERY * MEASURE_LAYERS
        turn = torch.arange(first, first + min(MEASURE_LAYERS, index.layers)) % index.layers
        return index.layer_slice.start + turn

    def take_layers(self, gates: Tensor, rises: Tensor) -> None:
        """Take in what some layers earn.

        Args:
            gates: of `layers_due`.
            rises: of the loss without each of them, nats, the same shape.
        """
        self.state = replace(self.state, layers=self.state.layers.updated(gates, rises))

    def learn(self, sums: SideSums) -> None:
        """Take in gate gradients.

        Args:
            sums: of the steps since the last call, by sampled side.
        """
        means = self.state.estimator.updated(sums, self.config.decay)
        self.state = replace(self.state, estimator=means)

    def advance(self, sums: SideSums, step: int) -> Tensor:
        """Take steps of the method: gradients -> benefits -> keep probabilities.

        The gates move as far as they would step by step with the means of all these steps.

        Args:
            sums: gate gradients by sampled side, of the steps since the last call.
            step: the last of these optimiser steps.

        Returns:
            Which gates can be removed for good, bool, shape (gates,).
        """
        self.learn(sums)
        steps = sums.steps
        self._update_prices(step, steps)
        gates = self.gate_values
        price = self.nu * gates.price
        commitment = self._phases.commitment(step)
        if commitment > 0 and (self.state.plan is None or self.removing(step)):
            self.state = replace(self.state, plan=self.choose().mask)
        scale = self.nu if self.state.budget is None else self.state.budget.scale
        drift = dynamics.speed(
            gates.benefit,
            price,
            scale * gates.reference_price,
            self.config.max_speed,
            commitment,
            self.state.plan,
        )
        moved = dynamics.step(gates.theta, drift, self.config.theta0, self._phases.horizon, steps)
        theta = torch.where(gates.alive, moved, 0)
        still = not bool(((theta < 1) & gates.alive).any())
        self.state = replace(
            self.state,
            theta=theta,
            still=self.state.still + steps if still else 0,
            zeros=self.state.zeros.updated(theta, gates.benefit, price, steps),
        )
        observed = self.state.zeros.steps >= self._patience
        return (observed | self._certified(price)) & gates.alive

    def _update_prices(self, step: int, ahead: int) -> None:
        """Compute prices, and with a target the multiplier that they take."""
        self.price()
        if self._budget is not None:
            assert self.state.budget is not None
            known = self.gate_values, self.expected, ahead
            budget = self._budget.update(self.state.budget, step, *known)
            self.state = replace(self.state, budget=budget)

    def _certified(self, price: Tensor) -> Tensor:
        """Find the gates in the domain of attraction of 0."""
        state = self.state
        if not self._weight_decay:
            return torch.zeros_like(state.alive)
        inside = dynamics.certified(state.theta, state.norm, state.bound, price, self._weight_decay)
        return inside & (state.bound > 0)

    def remove(self, removable: Tensor) -> None:
        """Mark gates as removed, except those that the network cannot do without."""
        gates = self.gate_values
        score = gates.benefit - self.nu * gates.price
        alive = protect(gates.alive & ~removable, score, self.structures, self.quanta)
        self.state = replace(self.state, alive=alive, theta=torch.where(alive, gates.theta, 0))

    def decide(self, alive: Tensor) -> None:
        """Set every gate to 0 or 1 for good.

        Args:
            alive: bool, shape (gates,).
        """
        self.state = replace(self.state, alive=alive, theta=alive.to(self.state.theta))

    def choose(self) -> Choice:
        """Return the network that would be chosen now."""
        return choose(self._space, self.gate_values, self.nu, self.dials.target)

    def select(self, structures: Structures, gates: Tensor) -> None:
        """Continue with what surgery left.

        Args:
            structures: the smaller structures.
            gates: for every gate left its number before, int64.
        """
        self.structures = structures
        self.quanta = tuple(
            self._quantum_of_block[group.name] * structures.blocks_of(group)
            for group in structures.groups
        )
        self.complexity = Complexity(structures, self.dials.alpha, self.dials.beta, self.full)
        self._space = SearchSpace(structures, self.complexity, self.quanta)
        self._homes = Homes.of(structures)
        self.state = self.state.select(gates)
        self.price()

    def state_dict(self) -> dict[str, Any]:
        """Return all that moves; every tensor of it has the shape (gates,)."""
        return self.state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, for the structures that are left."""
        self.state = self.state.restored(state)
