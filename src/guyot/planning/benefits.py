r"""From loss gradients at sampled gates to what every structure earns.

A step samples a 0/1 gate xi_j for every structure and one backward pass gives dC/dxi_j at
xi_j for all of them. The benefit of structure j, in nats, is

    b_j = C(xi_j = 0) - C(xi_j = 1) = - integral_0^1 C'_j(t) dt

and the estimators differ in how they put C'_j(0) and C'_j(1) together. `SideMeans` keeps running
means per side, counted in samples of that side, so that a rarely sampled side is remembered longer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guyot.core.errors import MisconfiguredError
from guyot.core.types import Structures
from guyot.planning.config import ESTIMATORS
from guyot.planning.vectors import GateState


@dataclass(frozen=True)
class SideSums:
    """Hold the gate gradients of some steps by sampled side.

    With several ranks each rank samples its own gates, and a sample counts as the share of the
    step's images that the rank saw: the fields are means over the ranks. So the window of
    `SideMeans` holds the same number of images for any number of ranks.

    Attributes:
        sum_one: sum of dC/dxi_j over samples with xi_j = 1, nats, shape (gates,).
        count_one: number of such samples, shape (gates,); a share of the ranks if there are many.
        sum_zero: the same for xi_j = 0.
        count_zero: number of such samples.
        square_one: sum of B (dC/dxi_j)**2 over samples with xi_j = 1, where a rank's loss is the
            mean of B predictions (images, tokens).
        square_zero: the same for xi_j = 0.
        predictions: B, the mean over steps and ranks.
    """

    sum_one: Tensor
    count_one: Tensor
    sum_zero: Tensor
    count_zero: Tensor
    square_one: Tensor
    square_zero: Tensor
    predictions: float

    @classmethod
    def from_sample(cls, gradient: Tensor, gate: Tensor, predictions: int = 1) -> SideSums:
        """Split the gradients of one backward pass.

        Args:
            gradient: dC/dxi, nats, shape (gates,).
            gate: the sampled xi, 0 or 1, shape (gates,).
            predictions: B, how many predictions the loss is the mean of.

        Example:
            >>> SideSums.from_sample(torch.tensor([2.0, 3.0]), torch.tensor([1, 0])).sum_one
            tensor([2., 0.])
        """
        one = gate.to(gradient)
        on, squares = gradient * one, predictions * gradient.square()
        return cls(on, one, gradient - on, 1 - one, squares * one, squares * (1 - one), predictions)

    @property
    def steps(self) -> int:
        """Return how many steps these are."""
        counts = self.count_one + self.count_zero
        return round(float(counts[0])) if len(counts) else 0


@dataclass(frozen=True)
class SideMeans(GateState):
    """Keep running means of gate gradients by sampled side, float32, shape (gates,) each.

    With n samples of a side in one step (a fraction when a sample is one rank's of several), their
    mean enters with weight 1 - decay**n. A step without samples of a side leaves it as it is.

    Attributes:
        mean_one: of dC/dxi_j over samples with xi_j = 1, biased towards its start at 0, nats.
        weight_one: sum of the weights in it; divided by it the mean is unbiased (as in Adam).
        square_one: the same of B (dC/dxi_j)**2, see `SideSums`.
        predictions_one: the same of B.
        mean_zero: the same for xi_j = 0, as are those below.
        weight_zero: sum of the weights.
        square_zero: of B (dC/dxi_j)**2.
        predictions_zero: of B.
    """

    mean_one: Tensor
    weight_one: Tensor
    square_one: Tensor
    predictions_one: Tensor
    mean_zero: Tensor
    weight_zero: Tensor
    square_zero: Tensor
    predictions_zero: Tensor

    @classmethod
    def start(cls, total: int) -> SideMeans:
        """Return means without any sample, for a number of gates."""
        return cls(*(torch.zeros(total) for _ in range(8)))

    def updated(self, sums: SideSums, decay: float) -> SideMeans:
        """Return the means with the samples of one step.

        Args:
            sums: of the step.
            decay: of the means, per *sample* of the side; the window is 1 / (1 - decay) samples.

        Raises:
            MisconfiguredError: the sums are for another number of gates.
        """
        if sums.sum_one.shape != self.mean_one.shape:
            raise MisconfiguredError(
                f"sums of shape {tuple(sums.sum_one.shape)} for means of {len(self.mean_one)} "
                "gates: after a removal call select() with the kept gates."
            )

        def side(name: str) -> tuple[Tensor, ...]:
            """Return mean <- d**n mean + (1 - d**n) total / n, its weight, and two more means."""
            count: Tensor = getattr(sums, f"count_{name}")
            keep = torch.exp(count * math.log(decay)) if decay > 0 else (count == 0).float()
            fresh = 1 - keep
            n = torch.where(count > 0, count, 1)

            def mean(key: str, total: Tensor) -> Tensor:
                return getattr(self, f"{key}_{name}") * keep + fresh * total / n

            return (
                mean("mean", getattr(sums, f"sum_{name}")),
                getattr(self, f"weight_{name}") * keep + fresh,
                mean("square", getattr(sums, f"square_{name}")),
                mean("predictions", sums.predictions * count),
            )

        return SideMeans(*side("one"), *side("zero"))

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Return unbiased (C'(1), C'(0)); a side without samples takes the other's."""
        one = self.mean_one / self.weight_one.clamp(min=1e-12)
        zero = self.mean_zero / self.weight_zero.clamp(min=1e-12)
        return (
            torch.where(self.weight_one > 0, one, zero),
            torch.where(self.weight_zero > 0, zero, one),
        )


def two_sided(means: SideMeans, theta: Tensor) -> Tensor:  # noqa: ARG001  (one signature)
    r"""Return b = -(E C'(1) + E C'(0)) / 2, the trapezoid over the gate (the default) [ours].

    Bias: exact when C is quadratic in xi_j; otherwise -(1/12) C''' to leading order, independent
    of theta_j, so that it makes no interior equilibrium.
    Variance: (var_1 / n_1 + var_0 / n_0) / 4 with n the effective number of samples of a side, at
    most (1 + decay) / (1 - decay); no importance weights, which would grow as 1 / theta and
    1 / (1 - theta). While a side has no sample, the other side alone.
    """
    one, zero = means.sides
    return -0.5 * (one + zero)


def straight_through(means: SideMeans, theta: Tensor) -> Tensor:
    r"""Return b = -(theta E C'(1) + (1 - theta) E C'(0)): the sides weighted as they are sampled.

    Source: Bengio, Leonard, Courville, arXiv:1308.3432.
    Bias: (theta - 1/2) (C'(0) - C'(1)) against the two-sided rule. For convex C it falls as theta
    rises, which makes stable interior equilibria: gates stay undecided. For comparison only.
    Variance: theta**2 var_1 / n_1 + (1 - theta)**2 var_0 / n_0.
    """
    one, zero = means.sides
    return -(theta * one + (1 - theta) * zero)


def first_order_taylor(means: SideMeans, theta: Tensor) -> Tensor:  # noqa: ARG001  (as above)
    r"""Return b = -E C'(1): first-order Taylor expansion about the active structure.

    Source: Molchanov et al., arXiv:1906.10771 (without the square).
    Bias: -C''/2 for quadratic C. Where the weights are stationary under weight decay lambda,
    theta C'(1) = -lambda ||w||**2, so b is the weights' magnitude. For comparison only.
    Variance: var_1 / n_1. A gate that was never sampled active takes C'(0).
    """
    return -means.sides[0]


def fisher(means: SideMeans, theta: Tensor) -> Tensor:  # noqa: ARG001  (as above)
    r"""Return b = -E g + B Var[g] / 2, g = C'(1): second order about the active structure.

        b_j = C(0) - C(1) = -C'(1) + C''(1) / 2 + (third order)

    The loss is the mean of B predictions' negative log-likelihoods. The expected square of the
    derivative of one of them stands for the curvature (the Fisher information), and as g is a mean
    of B, the variance of one is B Var[g]. Tokens of one sequence count one by one: given what came
    before, derivatives of a token's likelihood have no mean, so those of two do not correlate. A
    gate gathers the gradients of all readers of its group before the square. Sources: Theis et
    al., arXiv:1801.05787; for coupled groups Liu et al., arXiv:2108.00708.

    Bias: the third order; labels in place of draws from the model, which is nothing where the
    model's probabilities are right; and -1/n of the curvature, with n the effective number of
    samples. It does not depend on theta_j, so it makes no interior equilibrium, and it needs one
    side only: gates need not be drawn at random.
    Variance: var / n + (B var)**2 / (2 n) with var = Var[g] and Gaussian g. The first part falls
    with B as 1 / B, the second does not: only the window tells a curvature from chance.
    A gate that was active keeps what it earned when it last was. One that never was is expanded
    about 0: b = -E C'(0) - B Var[C'(0)] / 2.
    """
    (one, bend_one), (zero, bend_zero) = _expansion(means, "one"), _expansion(means, "zero")
    return torch.where(means.weight_one > 0, bend_one / 2 - one, -bend_zero / 2 - zero)


def curvature(means: SideMeans) -> Tensor:
    """Return B Var[g] / 2, g = C'(1): `fisher` without its first order [ours].

    Trained weights lie where the first order is nothing. After a cut it is what the cut cost, and
    training pays that back; it says little about which units are worth keeping.
    """
    return _expansion(means, "one")[1] / 2


def _expansion(means: SideMeans, name: str) -> tuple[Tensor, Tensor]:
    """Return E g and B Var[g] of a side."""
    weight: Tensor = getattr(means, f"weight_{name}")
    mean, square, predictions = (
        getattr(means, f"{key}_{name}") / weight.clamp(min=1e-12)
        for key in ("mean", "square", "predictions")
    )
    return mean, (square - predictions * mean.square()).clamp(min=0)


@dataclass(frozen=True)
class Homes:
    """Say which group a unit belongs to, and which layer holds all of that group.

    Attributes:
        group: number of the group, int64, shape (units,).
        gate: gate of the layer, int64, shape (groups,); 0 where there is none.
        inside: there is one, bool, shape (groups,).
    """

    group: Tensor
    gate: Tensor
    inside: Tensor

    @classmethod
    def of(cls, structures: Structures) -> Homes:
        """Return them for some structures."""
        index = structures.index
        homes = [structures.home_of(group) for group in structures.groups]
        return cls(
            group=index.group_of_gate[: index.layer_slice.start],
            gate=torch.tensor([0 if h is None else index.layer(h) for h in homes]).long(),
            inside=torch.tensor([h is not None for h in homes]).bool(),
        )


def with_branches(benefit: Tensor, on: Tensor, homes: Homes) -> Tensor:
    r"""Return benefits in which the units of a branch add up to it when they are few.

    What the units of a group contribute one by one, S in sum, is less than what their branch b_l
    does: neighbours take over, and where a normalisation follows, the output does not depend on
    the units' common scale, so that the last one seems to be worth nothing. Let D(f) be the rise
    of the loss without a share f of the n units that are on, D(0) = 0, D'(0) = S, D(1) = b_l. The
    quadratic through these is D(f) = S f + (b_l - S) f**2, and the next unit costs

        D(1 / n) = S / n + (b_l - S) / n**2

    So (b_l - S) / n**2 is added to every unit where it is positive; a last unit gets b_l [ours].

    Args:
        benefit: nats, shape (gates,).
        on: which gates are 1, bool, shape (gates,).
        homes: the branch of every group.
    """
    units, groups = len(homes.group), len(homes.gate)
    active = on[:units].to(benefit)

    def summed(values: Tensor) -> Tensor:
        return benefit.new_zeros(groups).index_add(0, homes.group, values)

    count = summed(active)
    missing = (benefit[homes.gate] - summed(active * benefit[:units].clamp(min=0))).clamp(min=0)
    extra = torch.where(homes.inside & (count > 0), missing / count.clamp(min=1).square(), 0)
    return torch.cat([benefit[:units] + extra[homes.group], benefit[units:]])


@dataclass(frozen=True)
class LayerMeans(GateState):
    """Keep running means of what layers earn, measured by forward passes with and without them.

    The first measurements of a layer have equal weights, later ones `RATE`. Structures that were
    not measured have none.

    Attributes:
        mean: C(0) - C(1), nats, float32, shape (gates,).
        count: how often it was measured, int32, shape (gates,).
    """

    RATE: ClassVar[float] = 0.2

    mean: Tensor
    count: Tensor

    @classmethod
    def start(cls, total: int) -> LayerMeans:
        """Return means without any measurement, for a number of gates."""
        return cls(torch.zeros(total), torch.zeros(total, dtype=torch.int32))

    def updated(self, gates: Tensor, rises: Tensor) -> LayerMeans:
        """Return the means with one more measurement of some gates.

        Args:
            gates: numbers, int64, shape (n,).
            rises: C(0) - C(1), nats, shape (n,); what is not finite does not count.
        """
        gates, rises = gates[rises.isfinite()], rises[rises.isfinite()]
        count = self.count.index_add(0, gates, torch.ones_like(gates, dtype=torch.int32))
        rate = (1 / count[gates]).clamp(min=self.RATE)
        old = self.mean[gates]
        return LayerMeans(self.mean.index_copy(0, gates, old + rate * (rises - old)), count)

    def over(self, benefit: Tensor) -> Tensor:
        """Return benefits, shape (gates,), with what was measured in the place of estimates."""
        return torch.where(self.count > 0, self.mean, benefit)


_RULES: dict[str, Callable[[SideMeans, Tensor], Tensor]] = dict(
    zip(ESTIMATORS, (two_sided, fisher, straight_through, first_order_taylor), strict=True)
)


def benefit(estimator: str, means: SideMeans, theta: Tensor) -> Tensor:
    """Return the estimate of b_j = C(xi_j=0) - C(xi_j=1), nats, shape (gates,).

    It is 0 before any sample.

    Args:
        estimator: one of `guyot.planning.config.ESTIMATORS`.
        means: of the samples so far.
        theta: keep probabilities, shape (gates,).

    Example:
        >>> means = SideMeans.start(2).updated(
        ...     SideSums.from_sample(torch.tensor([-1.0, -3.0]), torch.tensor([1, 0])), decay=0.96
        ... )
        >>> benefit("two-sided", means, theta=torch.ones(2))
        tensor([1., 3.])
    """
    return _RULES[estimator](means, theta)
