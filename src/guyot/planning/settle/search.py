"""Local search for the network near a target that loses least benefit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guyot.planning.settle.candidates import Order, Space, State


@dataclass(frozen=True)
class Goal:
    """C^ within `target` +- `tolerance`."""

    target: float
    tolerance: float

    def excess(self, cost: Tensor) -> Tensor:
        """Distance of C^ to the tolerance band, 0 inside."""
        return ((cost - self.target).abs() - self.tolerance).clamp(min=0)

    def key(self, cost: Tensor, lost: Tensor) -> tuple[float, float]:
        """What is minimised: first the distance, then the benefit lost."""
        return round(float(self.excess(cost)), 9), round(float(lost), 9)

    def promising(self, costs: Tensor, losses: Tensor, count: int = 8) -> list[int]:
        """Indices of the best candidates, best first."""
        excess = self.excess(costs)
        inside = (excess <= 0).nonzero().flatten()
        if len(inside):
            return inside[torch.argsort(losses[inside])[:count]].tolist()
        return torch.argsort(excess)[:count].tolist()


def search(
    space: Space, units: Order, low: State, high: State, goal: Goal, restarts: int = 64
) -> State:
    """Fill and improve; if that misses, again with one variable forced to another value."""
    best = _improved(space, units, _filled(space, units, low, high, goal), low, high, goal)
    forced = _forced(best, low, high)
    near = goal.excess(space.cost(forced[0])) if len(forced[1]) else torch.zeros(0)
    for k in torch.argsort(near)[:restarts].tolist():
        if goal.excess(space.cost(best)) <= 0:
            break
        bounds = [_with(bound, *forced, k) for bound in (low, high)]
        state = _filled(space, units, bounds[0], bounds[1], goal)
        state = _improved(space, units, state, bounds[0], bounds[1], goal)
        if goal.excess(space.cost(state)) < goal.excess(space.cost(best)):
            best = state
    return best


def _forced(state: State, low: State, high: State) -> tuple[State, Tensor]:
    """States with one variable (second result: groups, then layers) at any other value."""
    groups = len(state.level)
    values = [
        (g, k)
        for g in range(groups)
        for k in range(int(low.level[g]), int(high.level[g]) + 1)
        if k != int(state.level[g])
    ]
    values += [(groups + int(v), -1) for v in (low.on != high.on).nonzero().flatten()]
    level, on = state.level.repeat(len(values), 1), state.on.repeat(len(values), 1)
    for row, (v, k) in enumerate(values):
        if k < 0:
            on[row, v - groups] ^= True
        else:
            level[row, v] = k
    return State(level, on), torch.tensor([v for v, _ in values], dtype=torch.int64)


def _with(bound: State, states: State, variable: Tensor, k: int) -> State:
    """A bound in which the variable of state k has the value it has there."""
    level, on, v = bound.level.clone(), bound.on.clone(), int(variable[k])
    if v < len(level):
        level[v] = states.level[k, v]
    else:
        on[v - len(level)] = states.on[k, v - len(level)]
    return State(level, on)


def _filled(space: Space, units: Order, low: State, high: State, goal: Goal) -> State:
    """From `low`, keep items best first while the target is not passed."""
    items, groups = units.items(low, high), len(space.top)

    def kept(count: int) -> State:
        chosen = items[:count]
        more = torch.bincount(chosen[chosen < groups], minlength=groups)
        on = low.on.clone()
        on[chosen[chosen >= groups] - groups] = True
        return State(low.level + more, on)

    fits, too_many = 0, len(items) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if float(space.cost(kept(middle))) <= goal.target:
            fits = middle
        else:
            too_many = middle
    return kept(fits)


def _moves(state: State, low: State, high: State) -> tuple[State, Tensor]:
    """All states one quantum or layer away, and what each changes (groups, then layers)."""
    groups = len(state.level)
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
    return State(level, on), variable


def _improved(
    space: Space,
    units: Order,
    state: State,
    low: State,
    high: State,
    goal: Goal,
    rounds: int = 200,
) -> State:
    """Add, drop and swap while it brings C^ into the tolerance or, inside, loses less."""
    for _ in range(rounds):
        moves, variable = _moves(state, low, high)
        count = len(variable)
        if count == 0:
            break
        cost, lost = space.cost(state), units.lost(state)
        costs, losses = space.cost(moves), units.lost(moves)
        first, second = torch.triu_indices(count, count, 1)
        swaps = variable[first] != variable[second]
        first, second = first[swaps], second[swaps]
        # pairs are ranked as if their changes added up, and evaluated exactly before they count
        pair_costs, pair_losses = (
            x[first] + x[second] - now for x, now in ((costs, cost), (losses, lost))
        )
        all_costs, all_losses = torch.cat([costs, pair_costs]), torch.cat([losses, pair_losses])
        for k in goal.promising(all_costs, all_losses):
            i, j = (k, None) if k < count else (first[k - count], second[k - count])
            candidate = State(moves.level[i], moves.on[i])
            if j is not None:
                candidate = State(
                    candidate.level + moves.level[j] - state.level,
                    candidate.on ^ moves.on[j] ^ state.on,
                )
            if goal.key(space.cost(candidate), units.lost(candidate)) < goal.key(cost, lost):
                state = candidate
                break
        else:
            break
    return state
