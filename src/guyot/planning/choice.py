"""From keep probabilities to one deterministic network: a mask, within a budget if there is one.

Widths are chosen among multiples of a group's quantum (and its full size). Units of a group stay
in the order of (theta, benefit / price). All counts are exact: a candidate network is evaluated
by its widths, not by expectation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guyot.planning.candidates import Ranking, SearchSpace, Sizes
from guyot.planning.config import TARGET_TOLERANCE
from guyot.planning.search import Bounds, Search
from guyot.planning.vectors import GateValues


@dataclass(frozen=True)
class Choice:
    """Describe a deterministic network.

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


def choose(
    space: SearchSpace, gates: GateValues, nu: float = 1.0, target: float | None = None
) -> Choice:
    """Round keep probabilities to a network.

    Without a target: layers with theta >= 1/2 stay; a group keeps its units with theta >= 1/2,
    rounded to the neighbouring level with the larger sum of benefit - nu * price, but at least one
    level while its layer stays. A group with no unit at 1/2 or above that lives inside one layer
    takes that layer with it.

    With a target: of few possible networks, that within the tolerance which loses least benefit.
    Of many, undecided quanta and layers are ranked by (theta, benefit / price) and kept while the
    budget lasts; then quanta and layers are added, dropped and swapped until C^ is within the
    tolerance and no such change loses less benefit. What is decided (theta 0 or 1) is
    overturned only if the target is out of reach otherwise.

    Gates that are not alive are never in the mask, even where a level is wide enough for them
    (there they stay as exact zeros).

    Args:
        space: what can be chosen.
        gates: at this step.
        nu: the multiplier.
        target: C^ to reach.
    """
    ranking = Ranking(space, gates, nu)
    if target is None:
        sizes, within = _rounded(space, ranking), True
    else:
        search = Search(space, ranking, target)
        sizes = _nearest(search)
        within = search.miss(sizes) <= 0
    return _described(space, ranking, gates, sizes, within)


def trim(space: SearchSpace, gates: GateValues, target: float) -> Choice:
    """Drop from the full network what loses least for what it saves, until a target is met.

    Each round drops one quantum of a group or one layer: that with the smallest loss of benefit
    per complexity saved, of equal ones the larger. What would pass below the target is dropped only
    if nothing else is left. Unlike `choose` this takes no account of keep probabilities, and a
    structure that contributes nothing goes even if it is large.

    Args:
        space: what can be chosen.
        gates: their benefits; all of them can go.
        target: C^ to meet.
    """
    ranking = Ranking(space, gates, nu=1.0)
    sizes = Sizes(space.top.clone(), torch.ones(space.index.layers, dtype=torch.bool))
    while (cost := float(space.cost(sizes))) > (1 + TARGET_TOLERANCE) * target:
        moves = _drops(sizes)
        costs = space.cost(moves)
        rises = ranking.lost(moves) - ranking.lost(sizes)
        saved = cost - costs
        useful = saved > 1e-12
        if not bool(useful.any()):
            break
        inside = useful & (costs >= (1 - TARGET_TOLERANCE) * target)
        if bool(inside.any()):
            ratio = torch.where(inside, rises / saved.clamp(min=1e-12), torch.inf)
            least = ratio <= ratio.min() + 1e-12
            best = int(torch.where(least, saved, -1).argmax())
        else:
            best = int(torch.where(useful, costs, -1).argmax())
        sizes = Sizes(moves.level[best], moves.on[best])
    within = abs(cost - target) <= TARGET_TOLERANCE * target
    return _described(space, ranking, gates, sizes, within)


def _drops(sizes: Sizes) -> Sizes:
    """Return networks with one quantum or one layer less."""
    groups = (sizes.level > 0).nonzero().flatten()
    layers = sizes.on.nonzero().flatten()
    level = sizes.level.repeat(len(groups) + len(layers), 1)
    on = sizes.on.repeat(len(groups) + len(layers), 1)
    level[torch.arange(len(groups)), groups] -= 1
    on[len(groups) + torch.arange(len(layers)), layers] = False
    return Sizes(level, on)


def _described(
    space: SearchSpace, ranking: Ranking, gates: GateValues, sizes: Sizes, within: bool
) -> Choice:
    widths, on = space.effective(sizes)
    mask = torch.zeros(space.index.total, dtype=torch.bool)
    for g, order in enumerate(ranking.order):
        mask[space.index.units(g)] = mask.new_zeros(len(order)).scatter(
            0, order[: int(widths[g])], True
        )
    mask[space.index.layer_slice] = on
    attained, lost = float(space.cost(sizes)), float(ranking.lost(sizes))
    return Choice(mask.to(gates.alive) & gates.alive, attained, lost, within)


def _rounded(space: SearchSpace, ranking: Ranking) -> Sizes:
    """Return theta >= 1/2 with widths at the better neighbouring level."""
    on = ranking.layer_theta >= 0.5
    level = torch.zeros_like(space.top)
    for g, half in enumerate(ranking.half.tolist()):
        widths = space.levels[g, : int(space.top[g]) + 1]
        upper = int((widths < half).sum())
        lower = upper if int(widths[upper]) == half else max(0, upper - 1)
        a, b = int(widths[lower]), int(widths[upper])
        worth = (ranking.benefit - ranking.price)[g]
        level[g] = upper if float(worth[b] - worth[a]) > 0 else lower
        home = space.homes[g]
        if half == 0 and home is not None:
            on[home] = False
    return Sizes(level, on)


def _nearest(search: Search) -> Sizes:
    """Return the best network near the target: first among the undecided, then among all."""
    space, ranking = search.space, search.ranking
    full = torch.tensor(space.index.group_sizes, dtype=torch.int64)
    last = space.levels <= ranking.ones[:, None]
    first = space.levels < (full - ranking.zeros)[:, None]
    low = Sizes(torch.minimum((last.sum(1) - 1).clamp(min=0), space.top), ranking.layer_theta >= 1)
    high = Sizes(torch.minimum(first.sum(1), space.top), ranking.layer_theta > 0)
    for g in (ranking.zeros == full).nonzero().flatten().tolist():
        if (home := space.homes[g]) is not None:
            low.on[home], high.on[home] = False, False
    best = search.best(Bounds(low, high))
    if search.miss(best) > 0:
        reach = space.levels < ranking.alive[:, None]
        largest = Sizes(reach.sum(1).clamp(max=space.top), ranking.layer_theta >= 0)
        other = search.best(Bounds(space.smallest, largest))
        if search.miss(other) < search.miss(best):
            best = other
    return best
