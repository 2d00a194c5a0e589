"""What complexity means, and the price of every gate: derivatives of one polynomial."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from guyot.core.condition import did_you_mean, is_number
from guyot.core.errors import MisconfiguredError
from guyot.core.types import Structures
from guyot.costs.latency import LatencyTable, latency_of
from guyot.costs.polynomial import Monomial, Polynomial, macs_of, params_of

_COSTS = ("macs", "params", "latency")


@dataclass(frozen=True)
class Cost:
    r"""Weigh MACs, parameters and latency into one complexity, a share of the full network's.

        C^ = ( macs * M / M_full + params * P / P_full + latency * T / T_full )
             / ( macs + params + latency )

    The dial `alpha` is `Cost(macs=alpha, params=1 - alpha)`.

    Attributes:
        macs: weight of the MACs.
        params: weight of the parameters.
        latency: weight of the measured latency.
        table: the measurement; given if and only if `latency` is above 0.

    Raises:
        MisconfiguredError: a negative weight, no weight at all, or latency without its table.

    Examples:
        >>> Cost(macs=1, params=3).shares
        (0.25, 0.75, 0.0)
        >>> Cost.of(0.25).shares
        (0.25, 0.75, 0.0)
    """

    macs: float = 0.0
    params: float = 0.0
    latency: float = 0.0
    table: LatencyTable | None = None

    def __post_init__(self) -> None:
        weights = (self.macs, self.params, self.latency)
        fine = all(is_number(weight) and 0 <= weight < math.inf for weight in weights)
        if not fine or not sum(weights):
            raise MisconfiguredError(
                f"macs={self.macs}, params={self.params}, latency={self.latency} weigh nothing: "
                "give weights of 0 or more, at least one of them above 0"
            )
        if (self.latency > 0) != (self.table is not None):
            raise MisconfiguredError(
                f"latency={self.latency} {'without' if self.table is None else 'with'} a latency "
                "table: give both, such as Cost(latency=1, table=LatencyTable.load(file)), or "
                "neither"
            )

    @classmethod
    def of(cls, alpha: float | Cost) -> Cost:
        """Return the cost that a dial `alpha` stands for; a cost is itself."""
        return alpha if isinstance(alpha, Cost) else cls(macs=alpha, params=1 - alpha)

    @property
    def shares(self) -> tuple[float, float, float]:
        """The weights of MACs, parameters and latency, adding up to 1."""
        total = self.macs + self.params + self.latency
        return self.macs / total, self.params / total, self.latency / total


@dataclass(frozen=True)
class Totals:
    """What a network costs: MACs of one sample, trainable parameters, milliseconds of a pass."""

    macs: float
    params: float
    latency: float = 0.0


def weights_of(cost: str) -> dict[str, float]:
    """Return the weights of a `Cost` as they are written on a command line.

    Raises:
        MisconfiguredError: another word than macs, params and latency, or no number.

    Example:
        >>> weights_of("latency"), weights_of("macs=1,latency=3")
        ({'latency': 1.0}, {'macs': 1.0, 'latency': 3.0})
    """
    weights: dict[str, float] = {}
    for part in cost.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = math.nan
        if name not in _COSTS or not 0 <= weights[name] < math.inf:
            raise MisconfiguredError(
                f"cost={cost!r}: give weights of {', '.join(_COSTS)}, 0 or more, such as latency "
                f"or macs=1,latency=3{'' if name in _COSTS else did_you_mean(name, _COSTS)}"
            )
    if not any(weights.values()):
        raise MisconfiguredError(f"cost={cost!r} weighs nothing: give a weight above 0")
    return weights


class Complexity:
    r"""Normalised complexity and the price of every gate.

    With the MACs, parameters and latency of the full network as units and the shares of a `Cost`,

        C^(theta) = macs * E[MACs] / full_macs + params * E[params] / full_params
                    + latency * E[milliseconds] / full_milliseconds

    and R = nu * ((1 - beta) C^ + beta D), D = sum_l theta_l c^_l, where c^_l is layer l's own
    share of C^ at its present kept width. C^ is affine in theta_l, so this share is dC^/dtheta_l.
    A layer is charged for the width it has *now*: c^_l counts as constant in the gradient of D.
    Hence a layer's price is (1 - beta) c^_l + beta c^_l = c^_l, and a unit's is
    (1 - beta) dC^/dtheta_j: beta discounts units, layers always pay in full [ours]. Without
    layers beta has no meaning and units pay in full. No price depends on its own theta.

    Args:
        structures: what can go and what it costs now.
        alpha: 1 counts MACs only, 0 parameters only; or any `Cost`.
        beta: 0 charges units and layers alike, 1 charges whole layers only.
        full: what the original network costs; `None`: `structures` are its own.

    Raises:
        MisconfiguredError: nothing to measure by.

    Attributes:
        charge: price of a gate divided by dC^/dtheta, float64, shape (gates,).
    """

    def __init__(
        self,
        structures: Structures,
        alpha: float | Cost = 1.0,
        beta: float = 0.0,
        full: Totals | None = None,
    ) -> None:
        self.cost = Cost.of(alpha)
        index = structures.index
        self.beta, self.index = beta, index
        self._macs = Polynomial(macs_of(structures), index)
        self._params = Polynomial(params_of(structures), index)
        table = self.cost.table
        self._latency = Polynomial(latency_of(structures, table) if table else (), index)
        ones = torch.ones(index.total)
        self.full = full or Totals(
            *(float(f(ones)) for f in (self.macs, self.params, self.latency))
        )
        self.normalised = Polynomial(self._shares(), index)
        self.charge = torch.ones(index.total, dtype=torch.float64)
        if index.layers:
            self.charge[: index.offsets[-1]] = 1 - beta

    def _shares(self) -> Iterator[Monomial]:
        """Return the monomials of C^."""
        macs, params, latency = self.cost.shares
        for polynomial, share, full, what, way_out in (
            (
                self._macs,
                macs,
                self.full.macs,
                "MACs",
                "use alpha=0 (parameters only), or a model with convolutions or linear layers",
            ),
            (
                self._params,
                params,
                self.full.params,
                "trainable parameters",
                "use alpha=1 (MACs only), or unfreeze the parameters",
            ),
            (
                self._latency,
                latency,
                self.full.latency,
                "ms of latency",
                "measure this network with `guyot profile`",
            ),
        ):
            if share > 0 and not full > 0:
                raise MisconfiguredError(
                    f"the network has {full:g} {what}, nothing to measure a share of {share:g} by: "
                    f"{way_out}."
                )
            weight = share / full if share > 0 else 0.0
            for m in polynomial.monomials:
                yield Monomial(m.coefficient * weight, m.groups, m.layers)

    def macs(self, theta: Tensor) -> Tensor:
        """Return E[MACs] of one sample, float64 scalar."""
        return self._macs.expected(theta)

    def params(self, theta: Tensor) -> Tensor:
        """Return E[trainable parameters], float64 scalar."""
        return self._params.expected(theta)

    def latency(self, theta: Tensor) -> Tensor:
        """Return E[milliseconds] of one pass, float64 scalar; 0 where no table measures it."""
        return self._latency.expected(theta)

    def expected(self, theta: Tensor) -> Tensor:
        """Return C^(theta), a share of the full network, float64 scalar."""
        return self.normalised.expected(theta)

    def gradient(self, theta: Tensor) -> Tensor:
        """Return dC^/dtheta at `theta`, detached, shape (gates,), dtype of `theta`."""
        if not len(theta):
            return torch.zeros_like(theta)
        with torch.enable_grad():
            at = theta.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.expected(at), at)
        return gradient

    def prices(self, theta: Tensor) -> Tensor:
        """Return prices for nu = 1, shape (gates,); times nu they are nats."""
        return self.gradient(theta) * self.charge.to(theta)

    def reference_prices(self) -> Tensor:
        """Return the prices at theta = 1 of the network as it stands, float32, shape (gates,)."""
        return self.prices(torch.ones(self.index.total))
