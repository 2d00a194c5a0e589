"""Which widths are physically possible, and what may go now.

A *logical* width counts the units that can still be active, a *physical* one the entries that the
tensors really have. Hardware computes some widths no faster than the next larger multiple, so
units that are gone stay as exact zeros until a whole quantum of their group can go.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import ceil, gcd, lcm

import torch
from torch import Tensor

from guyot.core.axis import best
from guyot.core.condition import require
from guyot.core.patterns import MULTIPLES, chosen
from guyot.core.types import KeepPlan, Structures, Units
from guyot.costs.polynomial import Polynomial, macs_of


def quanta_of(structures: Structures, round_to: int | Mapping[str, int]) -> tuple[int, ...]:
    """Return the quantum of every group: its numbers of units are multiples of this.

    Widths are counted in entries of weights. Where a unit has several (a head), as few units as
    make a multiple: with heads of 64 entries and `round_to=8` any number of heads will do. Equal
    blocks of units (the groups of a convolution) lose as many each, so the quantum of such a group
    is that of a block times the number of blocks. What an operator refuses is no multiple.

    Args:
        structures: what there is.
        round_to: one number for all, or by patterns of group names, later ones first; 1 where
            none matches.

    Raises:
        MisconfiguredError: no number of 1 or more, or a pattern that matches no group.

    Example:
        >>> from guyot.core.types import UnitGroup
        >>> group = UnitGroup("stem", 32, (), ())
        >>> quanta_of(Structures((group,), (), (), ()), {"*": 4, "st*": 16})
        (16,)
    """
    require("round_to", round_to, MULTIPLES)
    names = [group.name for group in structures.groups]
    by_pattern = round_to if isinstance(round_to, Mapping) else {"*": round_to}
    quanta = dict.fromkeys(names, 1)
    for pattern, value in by_pattern.items() if names else ():
        quanta |= dict.fromkeys(chosen("round_to", pattern, names, "group"), value)
    each = [q // gcd(q, g.stride) for q, g in zip(quanta.values(), structures.groups, strict=True)]
    for number, (group, wanted) in enumerate(zip(structures.groups, quanta.values(), strict=True)):
        blocks = structures.blocks_of(group)
        if blocks > 1:
            least = blocks
            if isinstance(group.block, Units):  # blocks may go, in multiples of their own quantum
                least = gcd(blocks, each[group.block.group])
            each[number] = blocks * (wanted // gcd(wanted, group.stride * least))
    needed = (structures.blocks_of(group) * group.multiple for group in structures.groups)
    return tuple(lcm(quantum, least) for quantum, least in zip(each, needed, strict=True))


def protect(alive: Tensor, score: Tensor, structures: Structures, quanta: Sequence[int]) -> Tensor:
    """Revive what the network cannot do without.

    A group outside layers keeps at least one quantum, its best by `score`. A group inside a layer
    keeps its best unit as long as the layer stays: what the last unit does is what the layer does,
    so the layer's own gate decides.

    Args:
        alive: bool, shape (gates,).
        score: which units are better, shape (gates,).
        structures: what there is.
        quanta: per group.

    Returns:
        bool, shape (gates,).
    """
    alive = alive.clone()
    index = structures.index
    for number, group in enumerate(structures.groups):
        where = index.units(number)
        home = structures.home_of(group)
        least = min(group.size, quanta[number]) if home is None else structures.blocks_of(group)
        if home is not None and not alive[index.layer(home)]:
            continue
        if int(alive[where].sum()) < least:
            order = score[where] + alive[where] * (score[where].max() - score[where].min() + 1)
            units = alive[where].clone()
            units[best(order, least, structures.blocks_of(group))] = True
            alive[where] = units
    return alive


def physical_plan(structures: Structures, alive: Tensor, quanta: Sequence[int]) -> KeepPlan:
    """Plan what can be sliced away: whole quanta of units that are gone, and gone layers.

    Of equal blocks none loses a unit before all that stay can lose one.

    Args:
        structures: what there is.
        alive: bool, shape (gates,).
        quanta: per group.

    Example:
        >>> from guyot.core.types import Slot, UnitGroup
        >>> group = UnitGroup("a", 8, (Slot("a.weight", 0),), (Slot("b.weight", 1),))
        >>> alive = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0], dtype=torch.bool)
        >>> physical_plan(Structures((group,), (), (), ()), alive, quanta=[4]).kept[0]
        tensor([0, 1, 2, 4])
    """
    index = structures.index
    kept: dict[int, Tensor] = {}
    for number, group in enumerate(structures.groups):
        units, blocks = alive[index.units(number)].cpu(), structures.blocks_of(group)
        rows = units.view(blocks, -1)
        if isinstance(group.block, Units):
            rows = rows & alive[index.units(group.block.group)].cpu()[:, None]
        quantum, count = quanta[number] // blocks, int(rows.sum(1).max())
        width = blocks * max(1, -(-count // quantum)) * quantum
        if width < group.size:
            kept[number] = best(rows.flatten().to(torch.int8), width, blocks)
    gone = frozenset(n for n in range(len(structures.layers)) if not bool(alive[index.layer(n)]))
    return KeepPlan(kept, gone)


def uniform_plan(structures: Structures, macs: float, quanta: Sequence[int]) -> KeepPlan:
    """Plan the slimmest network that keeps the same share of every group and at least some MACs.

    Widths are rounded up to whole quanta. No layer goes.

    Args:
        structures: what there is.
        macs: of one sample.
        quanta: per group.

    Example:
        >>> from torch import nn
        >>> from guyot import find_structures
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> found = find_structures(mlp, torch.ones(2, 8))
        >>> len(uniform_plan(found, macs=100, quanta=[1]).kept[0])  # of 16, 12 MACs each
        9
    """
    rows = [group.size // structures.blocks_of(group) for group in structures.groups]
    shares = sorted({(kept + 1) / size for size in rows for kept in range(size)})
    total = Polynomial(macs_of(structures), structures.index)
    layers = torch.ones(len(structures.layers))

    def plan(share: float) -> KeepPlan:
        alive = torch.ones(structures.index.total, dtype=torch.bool)
        for number, size in enumerate(rows):
            units = alive[structures.index.units(number)].view(-1, size)
            units[:, ceil(share * size - 1e-9) :] = False
        return physical_plan(structures, alive, quanta)

    def enough(share: float) -> bool:
        kept = plan(share).kept
        sizes = enumerate(structures.index.group_sizes)
        widths = torch.tensor([len(kept[n]) if n in kept else size for n, size in sizes])
        return float(total.at(widths, layers)) >= macs

    place = bisect_left(shares, True, key=enough)
    return plan(shares[place]) if place < len(shares) else KeepPlan()
