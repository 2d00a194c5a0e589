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

from guyot.core.types import Structures
from guyot.costs.complexity import Complexity
from guyot.planning.settle.candidates import Order, Space, State, levels_of
from guyot.planning.settle.search import Goal, search

__all__ = ["Choice", "choose", "floor", "levels_of"]

TOLERANCE = 0.01
"""How close to a target counts as met, relative."""


@dataclass(frozen=True)
class Choice:
    """A deterministic network.

    Attributes:
        mask: what stays, bool, shape (gates,). Units of a removed layer's own groups are False.
        attained: exact C^ of the chosen widths and layers, share of the full network.
        lost: estimated benefit of all that goes, nats (a removed layer counts once, as a whole).
        within: the target was met to the tolerance; True without a target.
    """

    mask: Tensor
    attained: float
    lost: float
    within: bool


def floor(structures: Structures, complexity: Complexity, quantum: Sequence[int]) -> float:
    """Smallest C^ that can be reached: no layers, every other group at one quantum.

    Raises:
        MisconfiguredError: quantum does not fit the groups.
    """
    space = Space(structures, complexity, quantum)
    off = torch.zeros(len(structures.layers), dtype=torch.bool)
    return float(space.cost(State(torch.zeros_like(space.top), off)))


def choose(
    theta: Tensor,
    benefit: Tensor,
    price: Tensor,
    structures: Structures,
    complexity: Complexity,
    quantum: Sequence[int],
    target: float | None = None,
    alive: Tensor | None = None,
) -> Choice:
    """Round keep probabilities to a network.

    Without a target: layers with theta >= 1/2 stay; a group keeps its units with theta >= 1/2,
    rounded to the neighbouring level with the larger sum of benefit - price, but at least one
    level while its layer stays. A group with no unit at 1/2 or above that lives inside one layer
    takes that layer with it.

    With a target: undecided quanta and layers are ranked by (theta, benefit / price) and kept
    while the budget lasts; then quanta and layers are added, dropped and swapped until C^ is
    within `TOLERANCE * target` and no such change loses less benefit. What is decided (theta 0 or
    1) is overturned only if the target is out of reach otherwise.

    Args:
        theta: keep probabilities, shape (gates,).
        benefit: nats, shape (gates,).
        price: nats, or in any unit if there is a target.
        structures: what can go.
        complexity: of the same structures.
        quantum: per group; 1 for exact widths, times the number of blocks its units come in.
        target: C^ to reach.
        alive: False for what was given up for good, bool, shape (gates,): never in the mask, even
            where a level is wide enough for it (there it stays as exact zeros).

    Raises:
        MisconfiguredError: quantum does not fit the groups.
    """
    space = Space(structures, complexity, quantum)
    alive = torch.ones_like(theta, dtype=torch.bool) if alive is None else alive
    theta = torch.where(alive, theta, -1)
    units = Order(space, *(x.detach().double().cpu() for x in (theta, benefit, price)))
    if target is None:
        state, within = _rounded(space, units), True
    else:
        state, within = _within(space, units, target, TOLERANCE * target)
    widths, on = space.effective(state)
    mask = torch.zeros(space.index.total, dtype=torch.bool)
    for g, order in enumerate(units.order):
        mask[space.index.units(g)] = mask.new_zeros(len(order)).scatter(
            0, order[: int(widths[g])], True
        )
    mask[space.index.layer_slice] = on
    return Choice(
        mask.to(alive) & alive, float(space.cost(state)), float(units.lost(state)), within
    )


def _rounded(space: Space, units: Order) -> State:
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
        home = space.homes[g]
        if half == 0 and home is not None:
            on[home] = False
    return State(level, on)


def _within(space: Space, units: Order, target: float, tolerance: float) -> tuple[State, bool]:
    """The best state near the target: first among the undecided, then among all."""
    sizes = torch.tensor(space.index.group_sizes, dtype=torch.int64)
    last = space.levels <= units.ones[:, None]
    first = space.levels < (sizes - units.zeros)[:, None]
    low = State(torch.minimum((last.sum(1) - 1).clamp(min=0), space.top), units.layer_theta >= 1)
    high = State(torch.minimum(first.sum(1), space.top), units.layer_theta > 0)
    for g in (units.zeros == sizes).nonzero().flatten().tolist():
        if (home := space.homes[g]) is not None:
            low.on[home], high.on[home] = False, False
    reach = space.levels < units.alive[:, None]
    everything = (
        State(torch.zeros_like(space.top), torch.zeros_like(low.on)),
        State(reach.sum(1).clamp(max=space.top), units.layer_theta >= 0),
    )
    goal = Goal(target, tolerance)
    best: State | None = None
    for bounds in ((low, high), everything):
        state = search(space, units, *bounds, goal)
        if best is None or goal.excess(space.cost(state)) < goal.excess(space.cost(best)):
            best = state
        if goal.excess(space.cost(best)) <= 0:
            return best, True
    assert best is not None
    return best, False
