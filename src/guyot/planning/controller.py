"""Everything that is numbered by gates: probabilities, means, prices, and their motion.

The controller moves keep probabilities and says what is condemned and what a settled network
would be. It never sees a module; `guyot.discovery.session` carries out what it says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from guyot.core.errors import MisconfiguredError
from guyot.core.patterns import Patterns
from guyot.core.types import Structures
from guyot.costs.complexity import Complexity, Cost
from guyot.costs.widths import protect, quanta_of
from guyot.planning import dynamics
from guyot.planning.benefits import SideSums, estimator
from guyot.planning.budget import Budget
from guyot.planning.dynamics import Phases, ZeroPatience
from guyot.planning.settle import Choice, choose, floor

_FORGET = 0.99
"""Per measurement, how fast the running upper bound of gradients follows smaller ones."""

_VECTORS = {
    "theta": "theta",
    "alive": "alive",
    "prices": "prices",
    "gradient": "_gradient",
    "reference": "_reference",
    "bound": "_bound",
    "norm": "_norm",
}
"""Names in a checkpoint of the vectors over gates that a `Controller` moves."""


DIALS = ("target", "nu", "alpha", "beta")
"""Names of what a user sets, see `Dials`."""


@dataclass(frozen=True)
class DiscoveryConfig:
    """Everything that has a default good enough not to be touched.

    Attributes:
        warmup: share of the steps before gates come on.
        discovery_end: share of the steps at which what is left is settled.
        theta0: initial keep probability.
        epsilon: least probability with which either side of a gate is sampled.
        sharpness: 1: gates are sampled with their keep probabilities; larger: with these
            stretched about 1/2, see `Controller.sample`.
        patience: share of discovery for which a probability must stay 0 before it is final.
        estimator: "two-sided", "straight-through" or "taylor".
        decay: of the estimator's running means, per sample.
        max_speed: bound of the normalised drift.
        round_to: widths that are not full are multiples of this: one number, or one for every
            pattern of group names (1 for groups that none matches, of several the last). What
            suits a device `guyot.costs.quantum.measure_quantum` finds out.
        units: gate units.
        layers: gate residual branches.
        ignore: patterns (`guyot.core.patterns`) of names of modules that stay whole: none of their
            tensors shrinks, and no residual branch that uses one goes.
        freeze: patterns of names of groups and layers that stay as they are.
        tie: sets of patterns of names of groups; the groups of a set lose the same units.
        removals: how many times during discovery structures may be removed.
        seed: of the sampled gates.

    Raises:
        MisconfiguredError: a value out of range.
    """

    warmup: float = 0.1
    discovery_end: float = 0.4
    theta0: float = 0.9
    epsilon: float = 0.01
    sharpness: float = 4.0
    patience: float = 0.05
    estimator: str = "two-sided"
    decay: float = 0.96
    max_speed: float = 2.0
    round_to: int | Mapping[str, int] = 8
    units: bool = True
    layers: bool = True
    ignore: Patterns = ()
    freeze: Patterns = ()
    tie: Sequence[Patterns] = ()
    removals: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fits, way_out in (
            ("theta0", 0 < self.theta0 <= 1, "a probability above 0, e.g. 0.9"),
            ("epsilon", 0 <= self.epsilon < 0.5, "a probability below 1/2, e.g. 0.01"),
            ("sharpness", self.sharpness >= 1, "1 or more, e.g. 4"),
            ("patience", 0 < self.patience <= 1, "a share of discovery, e.g. 0.05"),
            ("max_speed", self.max_speed > 0, "a positive bound, e.g. 2"),
            ("removals", self.removals >= 1, "how many times structures may be removed, e.g. 40"),
        ):
            if not fits:
                raise MisconfiguredError(f"{name}={getattr(self, name)}: give {way_out}")


@dataclass(frozen=True)
class Dials:
    """What the user wants: `nu` or `target`, and what complexity means.

    Attributes:
        nu: nats of training loss worth paying to remove all complexity; None with a target.
        target: share of the complexity to keep; None with `nu`.
        alpha: 1: MACs ... 0: parameters; or a `Cost`, which may count latency.
        beta: 0: what each structure costs ... 1: whole layers only.

    Raises:
        MisconfiguredError: both or neither of `nu` and `target`, or `nu` below 0.
    """

    nu: float | None
    target: float | None
    alpha: float | Cost = 1.0
    beta: float = 0.8

    def __post_init__(self) -> None:
        if (self.nu is None) == (self.target is None):
            raise MisconfiguredError(
                f"nu={self.nu} and target={self.target}: give one of them, e.g. target=0.5 to "
                "keep half of the complexity"
            )
        if self.nu is not None and not 0 <= self.nu < float("inf"):
            raise MisconfiguredError(
                f"nu={self.nu}: give the nats of training loss worth paying to remove all of the "
                "complexity, 0 or more, e.g. 0.3"
            )


class Controller:
    """Keep probabilities of all gates and what moves them.

    All of it is on the CPU, wherever the model is: some thousand numbers, which come out the same,
    to the last bit, in every process that computes them.

    Args:
        structures: what there is.
        dials: what the user wants.
        phases: when.
        config: the rest.
        weight_decay: lambda of the optimiser if it is (momentum) SGD, for which the certificate
            of removal is proved; else None.

    Attributes:
        structures: what is left.
        complexity: of what is left, as a share of the full network.
        full: what the full network costs.
        theta: keep probabilities, float32, shape (gates,); what costs nothing starts at 1.
        alive: False for what was given up, bool, shape (gates,).
        generator: source of the sampled gates, in the same state on all ranks.

    Raises:
        MisconfiguredError: alpha, beta, target or round_to out of range, a latency table of another
            network, or a target that the coupled groups do not allow.
    """

    def __init__(
        self,
        structures: Structures,
        dials: Dials,
        phases: Phases,
        config: DiscoveryConfig,
        weight_decay: float | None,
    ) -> None:
        total = structures.index.total
        self.structures, self.dials, self.phases, self.config = structures, dials, phases, config
        if (table := Cost.of(dials.alpha).table) is not None:
            table.check(structures)
        self.complexity = Complexity(structures, dials.alpha, dials.beta)
        self.full = self.complexity.full
        self.quanta = quanta_of(structures, config.round_to)
        self._quantum = {
            group.name: quantum // structures.blocks_of(group)
            for group, quantum in zip(structures.groups, self.quanta, strict=True)
        }
        self.least = floor(structures, self.complexity, self.quanta)
        self.budget: Budget | None = None
        if dials.target is not None:
            self.budget = Budget(dials.target, phases, config.theta0, config.max_speed)
            self._check_target(dials.target)
        self.theta = torch.full((total,), config.theta0)
        self.alive = torch.ones(total, dtype=torch.bool)
        self.prices = torch.zeros(total)
        self._gradient = torch.zeros(total)
        self._reference = self.complexity.reference_prices()
        self.theta[self._reference == 0] = 1.0
        self._estimator = estimator(config.estimator, total, config.decay)
        steps = phases.discovery_steps
        self._zeros = ZeroPatience(total, max(1, round(config.patience * steps)))
        self.interval = max(1, steps // config.removals)
        self.pricing = max(1, min(10, self.interval))
        self._still = 0
        self._plan: Tensor | None = None
        self._weight_decay = weight_decay
        self._bound = torch.zeros(total)
        self._norm = torch.full((total,), torch.inf)
        self.generator = torch.Generator().manual_seed(config.seed)

    def _check_target(self, target: float) -> None:
        if target < self.least:
            raise MisconfiguredError(
                f"target={target} is below {self.least:.3f}, the least that the coupled groups "
                "allow (all layers gone, one quantum of every group): choose a larger target, a "
                "smaller round_to, or freeze fewer groups"
            )

    @property
    def nu(self) -> float:
        """The multiplier in force, nats."""
        return self.budget.nu if self.budget is not None else (self.dials.nu or 0.0)

    @property
    def macs(self) -> int:
        """MACs of one sample at the present physical widths."""
        return round(float(self.complexity.macs(torch.ones_like(self.theta))))

    @property
    def benefit(self) -> Tensor:
        """Estimated benefits, nats, shape (gates,)."""
        return self._estimator.benefit(self.theta)

    @property
    def undecided(self) -> int:
        """Gates that are neither 0 nor 1."""
        return int(((self.theta > 0) & (self.theta < 1) & self.alive).sum())

    @property
    def polarised(self) -> float:
        """Share of the gates above 0 that are at 0.95 or more; 1 when none is above 0."""
        left = self.theta[self.theta > 0]
        return float((left >= 0.95).double().mean()) if len(left) else 1.0

    @property
    def decided(self) -> bool:
        """All gates have been 1 or given up for `patience`, and a target is reached."""
        if self._still < self._zeros.patience:
            return False
        return self.dials.target is None or self.expected <= 1.01 * self.dials.target

    @property
    def expected(self) -> float:
        """C^(theta), share of the full network."""
        return float(self.complexity.expected(self.theta))

    @property
    def decisions(self) -> tuple[Tensor, ...]:
        """What must be the same on all ranks, each of shape (gates,)."""
        return (self.theta, self.alive, *(() if self._plan is None else (self._plan,)))

    def price(self) -> None:
        """Compute prices at the present probabilities."""
        self._gradient = self.complexity.gradient(self.theta)
        self.prices = self._gradient * self.complexity.charge.to(self._gradient)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw gates; 0/1, float32, shape (gates,).

        The probabilities are theta stretched about 1/2 by `sharpness`: both agree at every
        deterministic network, but the weights train in few networks near the most probable one
        instead of in the whole cloud of undecided ones [ours].
        """
        stretched = 0.5 + self.config.sharpness * (self.theta - 0.5)
        return dynamics.sample(stretched, self.config.epsilon, generator) * self.alive

    def measured(self, weight_norm: Tensor, gradient_norm: Tensor) -> None:
        """Take in the norms of what the gates scale, for the certificate of removal."""
        self._norm = weight_norm
        bound = torch.maximum(_FORGET * self._bound, gradient_norm)
        self._bound = torch.where(bound.isfinite(), bound, self._bound)

    def advance(self, sums: SideSums, step: int) -> Tensor:
        """One step of the method: gradients -> benefits -> keep probabilities.

        Args:
            sums: this step's gate gradients by sampled side.
            step: optimiser step.

        Returns:
            Which gates are condemned, bool, shape (gates,).
        """
        self._estimator.update(sums)
        benefit = self.benefit
        if step % self.pricing == 0:
            self.price()
            if self.budget is not None:
                self.budget.update(
                    step,
                    self.theta,
                    benefit,
                    self.prices,
                    self._reference,
                    self._gradient * self.alive,
                    self.expected,
                )
        price = self.nu * self.prices
        scale = self.budget.scale if self.budget is not None else self.nu
        commitment = self.phases.commitment(step)
        if commitment > 0 and (self._plan is None or step % self.interval == 0):
            self._plan = self.choose().mask
        drift = dynamics.speed(
            benefit,
            price,
            scale * self._reference,
            self.config.max_speed,
            commitment,
            self._plan,
        )
        moved = dynamics.step(self.theta, drift, self.config.theta0, self.phases.horizon)
        self.theta = torch.where(self.alive, moved, 0)
        still = not bool(((self.theta < 1) & self.alive).any())
        self._still = self._still + 1 if still else 0
        gone = self._zeros.update(self.theta, benefit, price) | self._certified(price)
        return gone & self.alive

    def _certified(self, price: Tensor) -> Tensor:
        """Gates in the domain of attraction of 0."""
        if not self._weight_decay:
            return torch.zeros_like(self.alive)
        inside = dynamics.certified(self.theta, self._norm, self._bound, price, self._weight_decay)
        return inside & (self._bound > 0)

    def give_up(self, condemned: Tensor) -> None:
        """Mark gates as gone, but for what the network cannot do without."""
        score = self.benefit - self.nu * self.prices
        alive = self.alive & ~condemned
        self.alive = protect(alive, score, self.structures, self.quanta)
        self.theta = torch.where(self.alive, self.theta, 0)

    def choose(self) -> Choice:
        """The network that would be settled on now."""
        return choose(
            self.theta,
            self.benefit,
            self.nu * self.prices,
            self.structures,
            self.complexity,
            self.quanta,
            self.dials.target,
            self.alive,
        )

    def settle(self, alive: Tensor) -> None:
        """Decide everything at once."""
        self.alive = alive.to(self.alive)
        self.theta = self.alive.to(self.theta)

    def select(self, structures: Structures, gates: Tensor) -> None:
        """After surgery: go on with what is left.

        Args:
            structures: the smaller structures.
            gates: for every gate left its number before, int64.
        """
        self.structures = structures
        self.theta, self.alive = self.theta[gates], self.alive[gates]
        self._reference = self._reference[gates]
        self._norm, self._bound = self._norm[gates], self._bound[gates]
        self._plan = None if self._plan is None else self._plan[gates]
        self._estimator.select(gates)
        self._zeros.select(gates)
        self.quanta = tuple(
            self._quantum[group.name] * structures.blocks_of(group) for group in structures.groups
        )
        self.complexity = Complexity(structures, self.dials.alpha, self.dials.beta, self.full)
        self.price()

    def state_dict(self) -> dict[str, Any]:
        """All that moves; every tensor of it has the shape (gates,)."""
        vectors = {name: getattr(self, attribute).clone() for name, attribute in _VECTORS.items()}
        return {
            **vectors,
            "plan": None if self._plan is None else self._plan.clone(),
            "still": self._still,
            "skip": self.phases.skip,
            "estimator": self._estimator.state_dict(),
            "zeros": self._zeros.state_dict(),
            "budget": None if self.budget is None else self.budget.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, for the structures that are left."""
        for name, attribute in _VECTORS.items():
            setattr(self, attribute, state[name].to("cpu", copy=True))
        plan = state["plan"]
        self._plan = None if plan is None else plan.to("cpu", copy=True)
        self._still = int(state["still"])
        self.phases = replace(self.phases, skip=int(state["skip"]))
        self._estimator.load_state_dict(state["estimator"])
        self._zeros.load_state_dict(state["zeros"])
        if self.budget is not None:
            self.budget.phases = self.phases
            self.budget.load_state_dict(state["budget"])
