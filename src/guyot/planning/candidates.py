"""The networks to choose from: widths per group and switches per layer, in batches.

The cost of each is counted exactly; its loss is the sum of the benefits of what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guyot.core.errors import MisconfiguredError
from guyot.core.types import Structures
from guyot.costs.complexity import Complexity
from guyot.planning.vectors import GateValues

_TINY = 1e-12


def levels_of(size: int, quantum: int) -> list[int]:
    """Return the widths a group may keep, ascending: multiples of the quantum, and its full size.

    Example:
        >>> levels_of(20, 8), levels_of(3, 8)
        ([8, 16, 20], [3])
    """
    return sorted({*range(quantum, size + 1, quantum), size})


@dataclass(frozen=True)
class Sizes:
    """Describe networks by level numbers per group and switches per layer.

    Attributes:
        level: numbers in the list that `levels_of` gives for the group, int64, (..., groups).
        on: False for a layer that goes, bool, (..., layers).
    """

    level: Tensor
    on: Tensor


class SearchSpace:
    """Hold all networks that can be chosen, and count their cost in batches.

    Args:
        structures: what can go.
        complexity: of the same structures.
        quanta: of the widths, per group; 1 for exact widths, times the number of blocks that the
            group's units come in.

    Raises:
        MisconfiguredError: the quanta do not fit the groups.
    """

    def __init__(
        self, structures: Structures, complexity: Complexity, quanta: Sequence[int]
    ) -> None:
        sizes = [group.size for group in structures.groups]
        if len(quanta) != len(sizes) or min([*quanta, 1]) < 1:
            raise MisconfiguredError(
                f"quanta={list(quanta)} does not fit: give one integer >= 1 for each of the "
                f"{len(sizes)} groups (1 for exact widths)."
            )
        self.complexity, self.index = complexity, structures.index
        levels = [levels_of(size, q) for size, q in zip(sizes, quanta, strict=True)]
        self.top = torch.tensor([len(level) - 1 for level in levels], dtype=torch.int64)
        depth = int(self.top.max()) + 1 if sizes else 1
        padded = [level + [level[-1]] * (depth - len(level)) for level in levels]
        self.levels = torch.tensor(padded, dtype=torch.int64).reshape(len(sizes), depth)
        self.inside = _groups_inside(structures)
        self.parents = _layers_inside(structures)
        self.homes = [structures.home_of(group) for group in structures.groups]

    def effective(self, sizes: Sizes) -> tuple[Tensor, Tensor]:
        """Return widths (0 in a layer that goes) and layers (without those in one that goes)."""
        off = (~sizes.on).double()
        alive = off @ self.inside.T.double() == 0
        on = sizes.on & (off @ self.parents.T.double() == 0)
        groups = torch.arange(len(self.top))
        return torch.where(alive, self.levels[groups, sizes.level], 0), on

    def cost(self, sizes: Sizes) -> Tensor:
        """Return the exact C^, shape (...)."""
        widths, on = self.effective(sizes)
        return self.complexity.normalised.at(widths, on)

    @property
    def smallest(self) -> Sizes:
        """Return the smallest network: no layers, every other group at one quantum."""
        off = torch.zeros(self.index.layers, dtype=torch.bool)
        return Sizes(torch.zeros_like(self.top), off)

    @property
    def least(self) -> float:
        """Return the smallest C^ that can be reached."""
        return float(self.cost(self.smallest))

    def check(self, target: float) -> None:
        """Refuse a share of the complexity that cannot be reached.

        Raises:
            MisconfiguredError: it is below `least`.
        """
        if target < self.least:
            raise MisconfiguredError(
                f"target={target} is below {self.least:.3f}, the least that the coupled groups "
                "allow (all layers gone, one quantum of every group): choose a larger target, a "
                "smaller round_to, or freeze fewer groups"
            )


def _groups_inside(structures: Structures) -> Tensor:
    """Return where all tensors of a group belong to a layer, (groups, layers)."""
    inside = torch.zeros(len(structures.groups), len(structures.layers), dtype=torch.bool)
    for g, group in enumerate(structures.groups):
        inside[g, sorted(structures.layers_around(group))] = True
    return inside


def _layers_inside(structures: Structures) -> Tensor:
    """Return where all of layer i belongs to layer j != i as well, (layers, layers)."""
    count = len(structures.layers)
    inside = torch.zeros(count, count, dtype=torch.bool)
    common: dict[int, set[int]] = {}
    for item in (*structures.tensors, *structures.operations):
        for layer in item.layers:
            common[layer] = common.get(layer, set(item.layers)).intersection(item.layers)
    for layer, parents in common.items():
        for parent in parents - {layer}:
            inside[layer, parent] = True
    return inside


def _alternating(order: Tensor, blocks: int) -> Tensor:
    """Return units best first, one of every block at a time.

    Example:
        >>> _alternating(torch.tensor([0, 1, 3, 2]), blocks=2)
        tensor([0, 3, 1, 2])
    """
    place = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
    start = torch.arange(0, len(order), len(order) // blocks)
    return (place.view(blocks, -1).argsort(1) + start[:, None]).T.flatten()


class Ranking:
    """Rank the units of every group from the most to the least worth keeping, with running sums.

    Where units come in equal blocks, the best of every block come first, then the second best, and
    so on: every block keeps as many. Gates that are not alive come last, without benefit or price.

    Args:
        space: what can be chosen.
        gates: on the device of the space, the CPU.
        nu: the multiplier; with it prices are in nats.
    """

    def __init__(self, space: SearchSpace, gates: GateValues, nu: float) -> None:
        self.space, index = space, space.index
        theta, benefit, price = (
            vector.detach().double().cpu()
            for vector in (
                torch.where(gates.alive, gates.theta, -1),  # last in the order
                gates.benefit,
                nu * gates.price,
            )
        )
        self.layer_theta, self.layer_benefit = theta[index.layer_slice], benefit[index.layer_slice]
        self.layer_ratio = self.layer_benefit / price[index.layer_slice].clamp(min=_TINY)
        sizes, blocks = index.group_sizes, index.blocks or (1,) * len(index.group_sizes)
        shape = (len(sizes), max(sizes, default=0) + 1)
        self.order: list[Tensor] = []
        self.theta, self.benefit, self.price = (torch.zeros(shape).double() for _ in range(3))
        self.half, self.ones, self.zeros, self.alive = (
            torch.zeros(len(sizes), dtype=torch.int64) for _ in range(4)
        )
        for g, size in enumerate(sizes):
            t, b, c = (x[index.units(g)] for x in (theta, benefit, price))
            order = torch.argsort(b / c.clamp(min=_TINY), descending=True, stable=True)
            order = order[torch.argsort(t[order], descending=True, stable=True)]
            if blocks[g] > 1:
                order = _alternating(order, blocks[g])
            self.order.append(order)
            for sums, x in ((self.theta, t), (self.benefit, b), (self.price, c)):
                sums[g, 1 : size + 1] = torch.where(t < 0, 0, x)[order].cumsum(0)
            self.half[g], self.ones[g], self.zeros[g], self.alive[g] = (
                int(m.sum()) for m in (t >= 0.5, t >= 1, t <= 0, t >= 0)
            )

    def lost(self, sizes: Sizes) -> Tensor:
        """Return the benefit of what is missing, nats, shape (...); a layer counts as a whole."""
        widths = self.space.effective(sizes)[0]
        groups = torch.arange(len(self.order))
        full = torch.tensor(self.space.index.group_sizes, dtype=torch.int64)
        missing = self.benefit[groups, full] - self.benefit[groups, widths]
        units = torch.where(widths > 0, missing, 0).sum(-1)
        nested = ~sizes.on & ((~sizes.on).double() @ self.space.parents.T.double() > 0)
        layers = torch.where(sizes.on | nested | (self.layer_theta < 0), 0, self.layer_benefit)
        return units + layers.sum(-1)

    def items(self, low: Sizes, high: Sizes) -> Tensor:
        """Return quanta (their group) and layers (groups + layer) between two sizes, best first."""
        groups = torch.arange(len(self.order))[:, None]
        a, b = self.space.levels[:, :-1], self.space.levels[:, 1:]
        theta, benefit, price = (
            sums[groups, b] - sums[groups, a] for sums in (self.theta, self.benefit, self.price)
        )
        number = torch.arange(a.shape[1])
        between = (number >= low.level[:, None]) & (number < high.level[:, None])
        free = high.on & ~low.on
        theta = torch.cat([(theta / (b - a).clamp(min=1))[between], self.layer_theta[free]])
        ratio = torch.cat([(benefit / price.clamp(min=_TINY))[between], self.layer_ratio[free]])
        layers = len(self.order) + free.nonzero().flatten()
        variable = torch.cat([groups.expand_as(between)[between], layers])
        by_ratio = torch.argsort(ratio, descending=True, stable=True)
        return variable[by_ratio][torch.argsort(theta[by_ratio], descending=True, stable=True)]
