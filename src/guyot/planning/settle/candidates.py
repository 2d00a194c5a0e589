"""The networks one can choose from: widths per group and switches per layer, in batches.

What each costs is counted exactly, what each loses is the sum of the benefits of what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guyot.core.errors import MisconfiguredError
from guyot.core.types import Structures
from guyot.costs.complexity import Complexity

_TINY = 1e-12


def levels_of(size: int, quantum: int) -> list[int]:
    """Widths a group may keep, ascending: multiples of the quantum, and its full size.

    Example:
        >>> levels_of(20, 8), levels_of(3, 8)
        ([8, 16, 20], [3])
    """
    return sorted({*range(quantum, size + 1, quantum), size})


@dataclass(frozen=True)
class State:
    """Networks as level numbers per group (..., groups) and switches per layer (..., layers)."""

    level: Tensor
    on: Tensor


class Space:
    """All networks that can be chosen, and what they cost and lose, in batches."""

    def __init__(
        self, structures: Structures, complexity: Complexity, quantum: Sequence[int]
    ) -> None:
        sizes = [group.size for group in structures.groups]
        if len(quantum) != len(sizes) or min([*quantum, 1]) < 1:
            raise MisconfiguredError(
                f"quantum={list(quantum)} does not fit: give one integer >= 1 for each of the "
                f"{len(sizes)} groups (1 for exact widths)."
            )
        self.structures, self.complexity, self.index = structures, complexity, structures.index
        levels = [levels_of(size, q) for size, q in zip(sizes, quantum, strict=True)]
        self.top = torch.tensor([len(level) - 1 for level in levels], dtype=torch.int64)
        depth = int(self.top.max()) + 1 if sizes else 1
        padded = [level + [level[-1]] * (depth - len(level)) for level in levels]
        self.levels = torch.tensor(padded, dtype=torch.int64).reshape(len(sizes), depth)
        self.inside = _groups_inside(structures)
        self.parents = _layers_inside(structures)
        self.homes = [structures.home_of(group) for group in structures.groups]

    def effective(self, state: State) -> tuple[Tensor, Tensor]:
        """What is really there: widths (0 in a removed layer) and layers (not in a removed one)."""
        off = (~state.on).double()
        alive = off @ self.inside.T.double() == 0
        on = state.on & (off @ self.parents.T.double() == 0)
        groups = torch.arange(len(self.top))
        return torch.where(alive, self.levels[groups, state.level], 0), on

    def cost(self, state: State) -> Tensor:
        """Exact C^, shape (...)."""
        widths, on = self.effective(state)
        return self.complexity.normalised.at(widths, on)


def _groups_inside(structures: Structures) -> Tensor:
    """(groups, layers): all tensors of the group belong to the layer."""
    inside = torch.zeros(len(structures.groups), len(structures.layers), dtype=torch.bool)
    for g, group in enumerate(structures.groups):
        inside[g, sorted(structures.layers_around(group))] = True
    return inside


def _layers_inside(structures: Structures) -> Tensor:
    """(layers, layers): whatever belongs to layer i belongs to layer j as well, j != i."""
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


def _by_turns(order: Tensor, blocks: int) -> Tensor:
    """Units best first, one of every block at a time.

    Example:
        >>> _by_turns(torch.tensor([0, 1, 3, 2]), blocks=2)
        tensor([0, 3, 1, 2])
    """
    place = torch.empty_like(order).scatter(0, order, torch.arange(len(order)))
    start = torch.arange(0, len(order), len(order) // blocks)
    return (place.view(blocks, -1).argsort(1) + start[:, None]).T.flatten()


class Order:
    """Units of every group from the most to the least worth keeping, with running sums.

    Where units come in equal blocks, the best of every block come first, then the second best, and
    so on: every block keeps as many.

    A theta below 0 marks what was given up: last in the order, without benefit or price.
    """

    def __init__(self, space: Space, theta: Tensor, benefit: Tensor, price: Tensor) -> None:
        self.space, index = space, space.index
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
                order = _by_turns(order, blocks[g])
            self.order.append(order)
            for sums, x in ((self.theta, t), (self.benefit, b), (self.price, c)):
                sums[g, 1 : size + 1] = torch.where(t < 0, 0, x)[order].cumsum(0)
            self.half[g], self.ones[g], self.zeros[g], self.alive[g] = (
                int(m.sum()) for m in (t >= 0.5, t >= 1, t <= 0, t >= 0)
            )

    def lost(self, state: State) -> Tensor:
        """Benefit of what is missing, nats, shape (...); inside a removed layer only the layer."""
        widths = self.space.effective(state)[0]
        groups = torch.arange(len(self.order))
        sizes = torch.tensor(self.space.index.group_sizes, dtype=torch.int64)
        missing = self.benefit[groups, sizes] - self.benefit[groups, widths]
        units = torch.where(widths > 0, missing, 0).sum(-1)
        nested = ~state.on & ((~state.on).double() @ self.space.parents.T.double() > 0)
        layers = torch.where(state.on | nested | (self.layer_theta < 0), 0, self.layer_benefit)
        return units + layers.sum(-1)

    def items(self, low: State, high: State) -> Tensor:
        """Quanta (their group) and layers (groups + layer) between two states, best first."""
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
