"""Search for the network near a target that loses least benefit: all of a few, else local steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from guyot.planning.candidates import Ranking, SearchSpace, Sizes
from guyot.planning.config import TARGET_TOLERANCE

_RESTARTS, _ROUNDS, _CANDIDATES = 64, 200, 8
_SAME = 1e-9
"""Shares of C^ and nats that differ by less are equal."""
_FEW = 1024
"""So many networks are evaluated one and all."""


@dataclass(frozen=True)
class Bounds:
    """Bound the networks to search among, both ends included."""

    low: Sizes
    high: Sizes

    def fixed(self, sizes: Sizes, variable: int) -> Bounds:
        """Fix one variable (groups, then layers) at the value it has in a network."""

        def end(bound: Sizes) -> Sizes:
            level, on = bound.level.clone(), bound.on.clone()
            if variable < len(level):
                level[variable] = sizes.level[variable]
            else:
                on[variable - len(level)] = sizes.on[variable - len(level)]
            return Sizes(level, on)

        return Bounds(end(self.low), end(self.high))

    @property
    def count(self) -> int:
        """Number of networks, those of equal widths and layers included."""
        levels = (self.high.level - self.low.level + 1).tolist()
        return prod(levels) * 2 ** int((self.low.on != self.high.on).sum())

    def networks(self) -> Sizes:
        """Return all networks, shapes (count, groups) and (count, layers)."""
        low, high = (torch.cat([end.level, end.on.long()]) for end in (self.low, self.high))
        values = [torch.arange(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        every = torch.cartesian_prod(*values).reshape(-1, len(values))
        groups = len(self.low.level)
        return Sizes(every[:, :groups], every[:, groups:].bool())


@dataclass(frozen=True)
class Search:
    """Look for the network that meets a target and loses least benefit.

    Attributes:
        space: all networks that can be chosen.
        ranking: of their units.
        target: C^ to meet within `TARGET_TOLERANCE`, relative.
    """

    space: SearchSpace
    ranking: Ranking
    target: float

    def excess(self, cost: Tensor) -> Tensor:
        """Return how far C^ is outside the tolerance; 0 inside."""
        return ((cost - self.target).abs() - TARGET_TOLERANCE * self.target).clamp(min=0)

    def miss(self, sizes: Sizes) -> float:
        """Return how far C^ of a network is outside the tolerance; 0 inside."""
        return float(self.excess(self.space.cost(sizes)))

    def best(self, bounds: Bounds) -> Sizes:
        """Return the best of few networks.

        Of many, fill and improve; if that misses, do so with one variable fixed at another value.
        """
        if bounds.count <= _FEW:
            return self._best_of_all(bounds.networks())
        best = self._improved(self._filled(bounds), bounds)
        others, variables = _all_changes(best, bounds)
        near = self.excess(self.space.cost(others)) if len(variables) else torch.zeros(0)
        for k in torch.argsort(near)[:_RESTARTS].tolist():
            if self.miss(best) <= 0:
                break
            fixed = bounds.fixed(Sizes(others.level[k], others.on[k]), int(variables[k]))
            sizes = self._improved(self._filled(fixed), fixed)
            if self.miss(sizes) < self.miss(best):
                best = sizes
        return best

    def _best_of_all(self, networks: Sizes) -> Sizes:
        excess = self.excess(self.space.cost(networks))
        near = excess <= excess.min() + _SAME
        best = int(torch.where(near, self.ranking.lost(networks), torch.inf).argmin())
        return Sizes(networks.level[best], networks.on[best])

    def _filled(self, bounds: Bounds) -> Sizes:
        """Add items to the lower bound, best first, up to the target."""
        items = self.ranking.items(bounds.low, bounds.high)
        groups, low = len(self.space.top), bounds.low

        def kept(count: int) -> Sizes:
            chosen = items[:count]
            more = torch.bincount(chosen[chosen < groups], minlength=groups)
            on = low.on.clone()
            on[chosen[chosen >= groups] - groups] = True
            return Sizes(low.level + more, on)

        fits, too_many = 0, len(items) + 1
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if float(self.space.cost(kept(middle))) <= self.target:
                fits = middle
            else:
                too_many = middle
        return kept(fits)

    def _improved(self, sizes: Sizes, bounds: Bounds) -> Sizes:
        """Add, drop and swap while C^ gets closer to the tolerance or, inside, less is lost."""
        for _ in range(_ROUNDS):
            moves, variable = _small_changes(sizes, bounds)
            count = len(variable)
            if count == 0:
                break
            cost, lost = self.space.cost(sizes), self.ranking.lost(sizes)
            costs, losses = self.space.cost(moves), self.ranking.lost(moves)
            first, second = torch.triu_indices(count, count, 1)
            swaps = variable[first] != variable[second]
            first, second = first[swaps], second[swaps]
            # pairs are ranked as if their changes added up, and evaluated exactly before they count
            pair_costs, pair_losses = (
                x[first] + x[second] - now for x, now in ((costs, cost), (losses, lost))
            )
            for k in self._promising(
                torch.cat([costs, pair_costs]), torch.cat([losses, pair_losses])
            ):
                i, j = (k, None) if k < count else (first[k - count], second[k - count])
                candidate = Sizes(moves.level[i], moves.on[i])
                if j is not None:
                    candidate = Sizes(
                        candidate.level + moves.level[j] - sizes.level,
                        candidate.on ^ moves.on[j] ^ sizes.on,
                    )
                exact = self.space.cost(candidate), self.ranking.lost(candidate)
                if self._key(*exact) < self._key(cost, lost):
                    sizes = candidate
                    break
            else:
                break
        return sizes

    def _promising(self, costs: Tensor, losses: Tensor) -> list[int]:
        """Return the indices of the best candidates, best first."""
        excess = self.excess(costs)
        inside = (excess <= 0).nonzero().flatten()
        if len(inside):
            return inside[torch.argsort(losses[inside])[:_CANDIDATES]].tolist()
        return torch.argsort(excess)[:_CANDIDATES].tolist()

    def _key(self, cost: Tensor, lost: Tensor) -> tuple[int, ...]:
        """Return what is minimised: first the excess, then the benefit lost."""
        return tuple(round(float(x) / _SAME) for x in (self.excess(cost), lost))


def _all_changes(sizes: Sizes, bounds: Bounds) -> tuple[Sizes, Tensor]:
    """Return networks with one variable at any other value, and that variable of each.

    Variables are numbered: groups, then layers.
    """
    groups = len(sizes.level)
    values = [
        (g, k)
        for g in range(groups)
        for k in range(int(bounds.low.level[g]), int(bounds.high.level[g]) + 1)
        if k != int(sizes.level[g])
    ]
    flips = (bounds.low.on != bounds.high.on).nonzero().flatten()
    values += [(groups + int(v), -1) for v in flips]
    level, on = sizes.level.repeat(len(values), 1), sizes.on.repeat(len(values), 1)
    for row, (v, k) in enumerate(values):
        if k < 0:
            on[row, v - groups] ^= True
        else:
            level[row, v] = k
    return Sizes(level, on), torch.tensor([v for v, _ in values], dtype=torch.int64)


def _small_changes(sizes: Sizes, bounds: Bounds) -> tuple[Sizes, Tensor]:
    """Return networks one quantum or layer away, and the variable that each changes."""
    groups = len(sizes.level)
    up = (sizes.level < bounds.high.level).nonzero().flatten()
    down = (sizes.level > bounds.low.level).nonzero().flatten()
    flip = (bounds.low.on != bounds.high.on).nonzero().flatten()
    variable = torch.cat([up, down, groups + flip])
    level = sizes.level.repeat(len(variable), 1)
    on = sizes.on.repeat(len(variable), 1)
    rows = torch.arange(len(variable))
    level[rows[: len(up)], up] += 1
    level[rows[len(up) : len(up) + len(down)], down] -= 1
    on[rows[len(up) + len(down) :], flip] ^= True
    return Sizes(level, on), variable
