"""From keep probabilities to one deterministic network: a mask, within a budget if there is one.

Widths are chosen among multiples of a group's quantum (and its full size), units of a group stay
in the order of (theta, benefit / price). All counts are exact: a candidate network is evaluated
by its widths, not by expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guyot.complexity import Complexity
from guyot.errors import MisconfiguredError
from guyot.types import Structures

_TINY = 1e-12


@dataclass(frozen=True)
class Choice:
    """A deterministic network.

    Attributes:
        mask: what stays, bool, shape (gates,). Units of a removed layer's own groups are False.
        attained: exact C^ of the mask, share of the full network.
        lost: estimated benefit of all that goes, nats (a removed layer counts once, as a whole).
        within: the target was met to the tolerance; True without a target.
    """

    mask: Tensor
    attained: float
    lost: float
    within: bool


def levels_of(size: int, quantum: int) -> list[int]:
    """Widths a group may keep, ascending: multiples of the quantum, and its full size.

    Example:
        >>> levels_of(20, 8), levels_of(3, 8)
        ([8, 16, 20], [3])
    """
    return sorted({*range(quantum, size + 1, quantum), size})


@dataclass(frozen=True)
class _State:
    """Networks as level numbers per group (..., groups) and switches per layer (..., layers)."""

    level: Tensor
    on: Tensor


class _Space:
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

    def effective(self, state: _State) -> tuple[Tensor, Tensor]:
        """What is really there: widths (0 in a removed layer) and layers (not in a removed one)."""
        off = (~state.on).double()
        alive = off @ self.inside.T.double() == 0
        on = state.on & (off @ self.parents.T.double() == 0)
        groups = torch.arange(len(self.top))
        return torch.where(alive, self.levels[groups, state.level], 0), on

    def cost(self, state: _State) -> Tensor:
        """Exact C^, shape (...)."""
        widths, on = self.effective(state)
        return self.complexity.normalised.at(widths, on)

    def innermost(self, group: int) -> int | None:
        """The smallest layer the whole group lives in."""
        candidates = self.inside[group].nonzero().flatten().tolist()
        return max(candidates, key=lambda c: int(self.parents[c].sum()), default=None)


def _groups_inside(structures: Structures) -> Tensor:
    """(groups, layers): all tensors of the group belong to the layer."""
    where = {tensor.name: set(tensor.layers) for tensor in structures.tensors}
    inside = torch.zeros(len(structures.groups), len(structures.layers), dtype=torch.bool)
    for g, group in enumerate(structures.groups):
        sets = [where[slot.tensor] for slot in group.members]
        for layer in set.intersection(*sets) if sets else ():
            inside[g, layer] = True
    return inside


def _layers_inside(structures: Structures) -> Tensor:
    """(layers, layers): whatever belongs to layer i belongs to layer j as well, j != i."""
    count = len(structures.layers)
    inside = torch.zeros(count, count, dtype=torch.bool)
    sets = [set(item.layers) for item in (*structures.tensors, *structures.operations)]
    for layer in range(count):
        own = [s for s in sets if layer in s]
        for parent in set.intersection(*own) - {layer} if own else ():
            inside[layer, parent] = True
    return inside


def floor(structures: Structures, complexity: Complexity, quantum: Sequence[int]) -> float:
    """Smallest C^ that can be reached: no layers, every other group at one quantum.

    Raises:
        MisconfiguredError: quantum does not fit the groups.
    """
    space = _Space(structures, complexity, quantum)
    off = torch.zeros(len(structures.layers), dtype=torch.bool)
    return float(space.cost(_State(torch.zeros_like(space.top), off)))


def choose(
    theta: Tensor,
    benefit: Tensor,
    price: Tensor,
    structures: Structures,
    complexity: Complexity,
    quantum: Sequence[int],
    target: float | None = None,
    tolerance: float = 0.01,
) -> Choice:
    """Round keep probabilities to a network.

    Without a target: layers with theta >= 1/2 stay; a group keeps its units with theta >= 1/2,
    rounded to the neighbouring level with the larger sum of benefit - price, but at least one
    level while its layer stays. A group with no unit at 1/2 or above that lives inside one layer
    takes that layer with it.

    With a target: undecided quanta and layers are ranked by (theta, benefit / price) and kept
    while the budget lasts; then quanta and layers are added, dropped and swapped until C^ is
    within `tolerance * target` and no such change loses less benefit. What is decided (theta 0 or
    1) is overturned only if the target is out of reach otherwise.

    Args:
        theta: keep probabilities, shape (gates,).
        benefit: nats, shape (gates,).
        price: nats, or in any unit if there is a target.
        structures: what can go.
        complexity: of the same structures.
        quantum: per group; 1 for exact widths.
        target: C^ to reach.
        tolerance: relative.

    Raises:
        MisconfiguredError: quantum does not fit the groups.
    """
    space = _Space(structures, complexity, quantum)
    units = _Order(space, theta.double(), benefit.double(), price.double())
    if target is None:
        state, within = _rounded(space, units), True
    else:
        state, within = _within(space, units, target, tolerance * target)
    widths, on = space.effective(state)
    mask = torch.zeros(space.index.total, dtype=torch.bool, device=theta.device)
    for g, order in enumerate(units.order):
        mask[space.index.units(g)] = mask.new_zeros(len(order)).scatter(
            0, order[: int(widths[g])], True
        )
    mask[space.index.layer_slice] = on.to(theta.device)
    return Choice(mask, float(space.cost(state)), float(units.lost(state)), within)


class _Order:
    """Units of every group from the most to the least worth keeping, with running sums."""

    def __init__(self, space: _Space, theta: Tensor, benefit: Tensor, price: Tensor) -> None:
        self.space, index = space, space.index
        self.layer_theta, self.layer_benefit = theta[index.layer_slice], benefit[index.layer_slice]
        self.layer_ratio = self.layer_benefit / price[index.layer_slice].clamp(min=_TINY)
        sizes = index.group_sizes
        shape = (len(sizes), max(sizes, default=0) + 1)
        self.order: list[Tensor] = []
        self.theta, self.benefit, self.price = (torch.zeros(shape).double() for _ in range(3))
        self.half, self.ones, self.zeros = (
            torch.zeros(len(sizes), dtype=torch.int64) for _ in range(3)
        )
        for g, size in enumerate(sizes):
            t, b, c = (x[index.units(g)] for x in (theta, benefit, price))
            order = torch.argsort(b / c.clamp(min=_TINY), descending=True, stable=True)
            order = order[torch.argsort(t[order], descending=True, stable=True)]
            self.order.append(order)
            for sums, x in ((self.theta, t), (self.benefit, b), (self.price, c)):
                sums[g, 1 : size + 1] = x[order].cumsum(0)
            self.half[g], self.ones[g], self.zeros[g] = (
                int(m.sum()) for m in (t >= 0.5, t >= 1, t <= 0)
            )

    def lost(self, state: _State) -> Tensor:
        """Benefit of what is missing, nats, shape (...); inside a removed layer only the layer."""
        widths, on = self.space.effective(state)
        groups = torch.arange(len(self.order))
        sizes = torch.tensor(self.space.index.group_sizes, dtype=torch.int64)
        missing = self.benefit[groups, sizes] - self.benefit[groups, widths]
        units = torch.where(widths > 0, missing, 0).sum(-1)
        nested = ~state.on & ((~state.on).double() @ self.space.parents.T.double() > 0)
        layers = torch.where(state.on | nested, 0, self.layer_benefit)
        return units + layers.sum(-1)

    def items(self, low: _State, high: _State) -> list[tuple[float, float, int, int]]:
        """Quanta (group, -1) and layers (-1, layer) between two states, best first."""
        found = []
        levels = self.space.levels
        for g in range(len(self.order)):
            for k in range(int(low.level[g]), int(high.level[g])):
                a, b = int(levels[g, k]), int(levels[g, k + 1])
                ratio = (self.benefit[g, b] - self.benefit[g, a]) / (
                    self.price[g, b] - self.price[g, a]
                ).clamp(min=_TINY)
                mean = (self.theta[g, b] - self.theta[g, a]) / (b - a)
                found.append((float(mean), float(ratio), g, -1))
        for layer in (high.on & ~low.on).nonzero().flatten().tolist():
            found.append(
                (float(self.layer_theta[layer]), float(self.layer_ratio[layer]), -1, layer)
            )
        return sorted(found, reverse=True)


def _rounded(space: _Space, units: _Order) -> _State:
    """theta >= 1/2, widths to the better neighbouring level."""
    on = units.layer_theta >= 0.5
    level = torch.zeros_like(space.top)
    for g, half in enumerate(units.half.tolist()):
        widths = space.levels[g, : int(space.top[g]) + 1]
        upper = int((widths < half).sum())
        lower = upper if int(widths[upper]) == half else max(0, upper - 1)
        a, b = int(widths[lower]), int(widths[upper])
        worth = (units.benefit - units.price)[g]
        level[g] = upper if float(worth[b] - worth[a]) > 0 else lower
        home = space.innermost(g)
        if half == 0 and home is not None:
            on[home] = False
    return _State(level, on)


def _within(
    space: _Space, units: _Order, target: float, tolerance: float
) -> tuple[_State, bool]:
    """The best state near the target: first among the undecided, then among all."""
    sizes = torch.tensor(space.index.group_sizes, dtype=torch.int64)
    last = space.levels <= units.ones[:, None]
    first = space.levels < (sizes - units.zeros)[:, None]
    low = _State(
        torch.minimum((last.sum(1) - 1).clamp(min=0), space.top), units.layer_theta >= 1
    )
    high = _State(torch.minimum(first.sum(1), space.top), units.layer_theta > 0)
    for g in ((units.zeros == sizes) & space.inside.any(1)).nonzero().flatten().tolist():
        home = space.innermost(g)
        low.on[home], high.on[home] = False, False
    everything = (
        _State(torch.zeros_like(space.top), torch.zeros_like(low.on)),
        _State(space.top, torch.ones_like(low.on)),
    )
    best: _State | None = None
    for bounds in ((low, high), everything):
        state = _improved(space, units, _filled(space, units, *bounds, target), *bounds, target, tolerance)
        error = abs(float(space.cost(state)) - target)
        if best is None or error < abs(float(space.cost(best)) - target):
            best = state
        if error <= tolerance:
            return state, True
    assert best is not None
    return best, False


def _filled(space: _Space, units: _Order, low: _State, high: _State, target: float) -> _State:
    """From `low`, keep items best first while the target is not passed."""
    items = units.items(low, high)

    def kept(count: int) -> _State:
        state = _State(low.level.clone(), low.on.clone())
        for _, _, group, layer in items[:count]:
            if layer < 0:
                state.level[group] += 1
            else:
                state.on[layer] = True
        return state

    fits, too_many = 0, len(items) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if float(space.cost(kept(middle))) <= target:
            fits = middle
        else:
            too_many = middle
    return kept(fits)


def _moves(state: _State, low: _State, high: _State) -> tuple[_State, Tensor]:
    """All states one quantum or layer away, and what each changes (groups, then layers)."""
    groups, layers = len(state.level), len(state.on)
    up = (state.level < high.level).nonzero().flatten()
    down = (state.level > low.level).nonzero().flatten()
    flip = (low.on != high.on).nonzero().flatten()
    variable = torch.cat([up, down, groups + flip])
    level = state.level.repeat(len(variable), 1)
    on = state.on.repeat(len(variable), 1)
    rows = torch.arange(len(variable))
    level[rows[: len(up)], up] += 1
    level[rows[len(up) : len(up) + len(down)], down] -= 1
    on[rows[len(up) + len(down) :], flip] ^= True
    assert level.shape[1] == groups and on.shape[1] == layers
    return _State(level, on), variable


def _improved(
    space: _Space,
    units: _Order,
    state: _State,
    low: _State,
    high: _State,
    target: float,
    tolerance: float,
    rounds: int = 500,
) -> _State:
    """Add, drop and swap while it brings C^ into the tolerance or, inside, loses less."""
    for _ in range(rounds):
        cost, lost = space.cost(state), units.lost(state)
        moves, variable = _moves(state, low, high)
        if len(variable) == 0:
            return state
        costs, losses = space.cost(moves) - cost, units.lost(moves) - lost
        pair_costs = (costs[:, None] + costs).masked_fill(variable[:, None] == variable, torch.inf)
        pair_losses = losses[:, None] + losses
        now = _key(cost, lost, target, tolerance)
        first, second = torch.triu_indices(len(variable), len(variable), 1)
        all_costs = torch.cat([costs, pair_costs[first, second]]) + cost
        all_losses = torch.cat([losses, pair_losses[first, second]]) + lost
        for k in _best(all_costs, all_losses, target, tolerance):
            candidate = _State(moves.level[k], moves.on[k]) if k < len(variable) else None
            if candidate is None:
                i, j = first[k - len(variable)], second[k - len(variable)]
                candidate = _State(
                    moves.level[i] + moves.level[j] - state.level,
                    moves.on[i] ^ moves.on[j] ^ state.on,
                )
            if _key(space.cost(candidate), units.lost(candidate), target, tolerance) < now:
                state = candidate
                break
        else:
            return state
    return state


def _key(cost: Tensor, lost: Tensor, target: float, tolerance: float) -> tuple[float, float]:
    """What is minimised: first the distance to the tolerance band, then the benefit lost."""
    return round(max(0.0, abs(float(cost) - target) - tolerance), 9), round(float(lost), 9)


def _best(costs: Tensor, losses: Tensor, target: float, tolerance: float, count: int = 8):
    """Indices of the most promising (approximate) candidates, best first."""
    excess = ((costs - target).abs() - tolerance).clamp(min=0)
    inside = (excess <= 0).nonzero().flatten()
    if len(inside):
        return inside[torch.argsort(losses[inside])[:count]].tolist()
    return torch.argsort(excess)[:count].tolist()
