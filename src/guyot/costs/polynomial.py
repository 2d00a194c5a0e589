"""What a network costs as a polynomial in its gates: MACs, parameters.

Every tensor and every operator of a `Structures` is a product of axes, and an axis is a number,
the width n_g = sum_j xi_j of a unit group, or a product or concatenation of such. Expanding gives

    cost(xi) = sum_m coefficient_m * prod_g n_g ** p_mg * prod_{l in layers_m} xi_l

The gates are independent, so E[cost] factorises over groups and layers. A gate that occurs more
than once counts once (xi**2 = xi): for the width of one group this is

    E[n**p] = sum_j S(p, j) * j! * e_j(theta)

with S the Stirling numbers of the second kind and e_j the elementary symmetric polynomials, which
are affine in every single theta [ours].

Where the units of a group come in B equal blocks (the inputs of a grouped convolution), n_g is the
mean width of a block, sum_j xi_j / B. In a network that is really cut all blocks have as many
units, so its cost is exact; in between n_g stands for blocks that lose evenly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import factorial

import torch
from torch import Tensor

from guyot.core.errors import MisconfiguredError
from guyot.core.types import Axis, Concat, Fixed, GateIndex, Product, Structures, Units, Within

Powers = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Monomial:
    """`coefficient * prod n_group**power * prod xi_layer`.

    Attributes:
        coefficient: MACs, parameters or a share of them.
        groups: (group, power) sorted by group, powers at least 1.
        layers: sorted layers, each once.
    """

    coefficient: float
    groups: Powers
    layers: tuple[int, ...]


def widths_of(axis: Axis) -> dict[Powers, int]:
    """Return the size of an axis as a polynomial in the group widths: powers -> coefficient.

    Example:
        >>> widths_of(Concat((Fixed(3), Product((Units(0), Fixed(4))))))
        {(): 3, ((0, 1),): 4}
    """
    match axis:
        case Fixed(size):
            return {(): size}
        case Units(group) | Within(group):
            return {((group, 1),): 1}
        case Product(parts):
            return _product(parts)
        case Concat(parts):
            total: dict[Powers, int] = {}
            for part in parts:
                for powers, coefficient in widths_of(part).items():
                    total[powers] = total.get(powers, 0) + coefficient
            return total


def _product(axes: Iterable[Axis]) -> dict[Powers, int]:
    """Return the product of several axes, expanded."""
    total: dict[Powers, int] = {(): 1}
    for axis in axes:
        factor = widths_of(axis)
        expanded: dict[Powers, int] = {}
        for left, a in total.items():
            for right, b in factor.items():
                powers = _times(left, right)
                expanded[powers] = expanded.get(powers, 0) + a * b
        total = expanded
    return total


def _times(left: Powers, right: Powers) -> Powers:
    """Multiply n**left by n**right: powers add up."""
    powers = dict(left)
    for group, power in right:
        powers[group] = powers.get(group, 0) + power
    return tuple(sorted(powers.items()))


def monomials_of(axes: Sequence[Axis], layers: Sequence[int] = ()) -> tuple[Monomial, ...]:
    """Return a product of axes inside `layers` as monomials.

    Example:
        >>> monomials_of((Units(0), Units(0), Fixed(9)), layers=(2, 2))
        (Monomial(coefficient=9, groups=((0, 2),), layers=(2,)),)
    """
    once = tuple(sorted(set(layers)))
    return tuple(Monomial(value, powers, once) for powers, value in _product(axes).items())


def merge(monomials: Iterable[Monomial]) -> tuple[Monomial, ...]:
    """Add up monomials in the same variables; those with coefficient 0 go."""
    total: dict[tuple[Powers, tuple[int, ...]], float] = {}
    for m in monomials:
        key = (m.groups, m.layers)
        total[key] = total.get(key, 0) + m.coefficient
    return tuple(Monomial(value, *key) for key, value in total.items() if value != 0)


def macs_of(structures: Structures) -> tuple[Monomial, ...]:
    """Return multiply-accumulates of one sample (1 MAC = 2 FLOPs)."""
    return merge(m for op in structures.operations for m in monomials_of(op.axes, op.layers))


def params_of(structures: Structures) -> tuple[Monomial, ...]:
    """Return the number of trainable parameters."""
    trainable = (t for t in structures.tensors if t.trainable)
    return merge(m for t in trainable for m in monomials_of(t.axes, t.layers))


@cache
def _stirling(p: int, j: int) -> int:
    """Return Stirling's number of the second kind: partitions of p things into j sets."""
    if p == j:
        return 1
    if j == 0 or j > p:
        return 0
    return j * _stirling(p - 1, j) + _stirling(p - 1, j - 1)


class Polynomial:
    """Monomials compiled to index tensors, so that an evaluation is a few vector operations.

    All factors a monomial can have stand in one table `[1, E[n_g] for all g, E[n_g**2] for all
    g, ..., theta_l for all l]`; a monomial is its coefficient times a few entries of the table.

    Args:
        monomials: the sum.
        index: the numbering of the gates.

    Example:
        >>> n_squared = Polynomial(monomials_of((Units(0), Units(0))), GateIndex((2,), layers=0))
        >>> float(n_squared.expected(torch.tensor([1.0, 1.0])))
        4.0
        >>> float(n_squared.expected(torch.tensor([0.5, 0.5])))  # (0 + 1 + 1 + 4) / 4
        1.5
    """

    def __init__(self, monomials: Iterable[Monomial], index: GateIndex) -> None:
        self.monomials = merge(monomials)
        self.index = index
        groups = len(index.group_sizes)
        self._order = max((p for m in self.monomials for _, p in m.groups), default=1)
        rows = [
            [1 + (power - 1) * groups + group for group, power in m.groups]
            + [1 + self._order * groups + layer for layer in m.layers]
            for m in self.monomials
        ]
        depth = max((len(row) for row in rows), default=0)
        self._columns = [
            torch.tensor([row[k] if k < len(row) else 0 for row in rows], dtype=torch.int64)
            for k in range(depth)
        ]
        self._coefficients = torch.tensor(
            [float(m.coefficient) for m in self.monomials], dtype=torch.float64
        )
        self._group = index.group_of_gate[: index.offsets[-1]]
        self._blocks = torch.tensor(index.blocks or [1] * groups, dtype=torch.float64)

    def expected(self, theta: Tensor) -> Tensor:
        """Return the expectation under independent Bernoulli gates; at a 0/1 vector the value.

        Args:
            theta: keep probabilities, shape (gates,).

        Returns:
            A float64 scalar, differentiable, affine in every single theta.

        Raises:
            MisconfiguredError: `theta` has another shape.
        """
        if theta.shape != (self.index.total,):
            raise MisconfiguredError(
                f"theta has shape {tuple(theta.shape)}, but these structures have "
                f"{self.index.total} gates: pass one keep probability per gate."
            )
        theta = theta.double()
        moments = self._moments(theta[: self.index.offsets[-1]])
        return self._sum(torch.cat([theta.new_ones(1), *moments, theta[self.index.layer_slice]]))

    def at(self, widths: Tensor, layers: Tensor) -> Tensor:
        """Return exact value of whole networks given by their widths.

        Args:
            widths: number of kept units, of all blocks together, shape (..., groups).
            layers: 0 or 1, shape (..., layers).

        Returns:
            float64, shape (...).
        """
        widths, layers = widths.double() / self._blocks, layers.double()
        powers = [widths**p for p in range(1, self._order + 1)]
        one = layers.new_ones(*layers.shape[:-1], 1)
        return self._sum(torch.cat([one, *powers, layers], dim=-1))

    def _moments(self, theta: Tensor) -> list[Tensor]:
        """Return E[n], E[n**2], ... of every group, each of shape (groups,)."""
        group = self._group.to(theta.device)
        zeros = theta.new_zeros(len(self.index.group_sizes))
        orders = range(1, self._order + 1)
        power_sums = [zeros.index_add(0, group, theta if k == 1 else theta**k) for k in orders]
        elementary = [torch.ones_like(zeros)]
        for k in orders:  # Newton: k e_k = sum_i (-1)**(i-1) e_{k-i} p_i
            terms = [(-1) ** (i - 1) * elementary[k - i] * power_sums[i - 1] for i in orders[:k]]
            elementary.append(torch.stack(terms).sum(0) / k)
        blocks = self._blocks.to(theta.device)
        return [
            torch.stack(
                [_stirling(p, j) * factorial(j) * elementary[j] for j in range(1, p + 1)]
            ).sum(0)
            / blocks**p
            for p in orders
        ]

    def _sum(self, table: Tensor) -> Tensor:
        """Sum coefficient times factors over monomials; table of shape (..., entries)."""
        value = self._coefficients.to(table.device)
        for column in self._columns:
            value = value * table[..., column.to(table.device)]
        return value.sum(-1)
