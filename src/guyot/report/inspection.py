"""What can go in a network and what it costs, before anything is trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guyot.core.types import Layer, Structures, UnitGroup
from guyot.costs.complexity import Complexity
from guyot.planning.candidates import SearchSpace


@dataclass(frozen=True)
class Price:
    """What goes with one unit, or with one layer, from the full network.

    Attributes:
        macs: multiply-accumulates of one sample.
        params: trainable parameters.
    """

    macs: int
    params: int


@dataclass(frozen=True)
class GroupEntry:
    """A group of units.

    Attributes:
        group: its name, size, members and readers.
        layer: the innermost layer that holds all of it; None outside.
        unit: the price of one unit.
    """

    group: UnitGroup
    layer: str | None
    unit: Price


@dataclass(frozen=True)
class LayerEntry:
    """A residual branch.

    Attributes:
        name: of the layer.
        inside: the innermost layer around it; None outside.
        price: of the whole branch.
    """

    name: str
    inside: str | None
    price: Price


@dataclass(frozen=True)
class Inspection:
    """A network's anatomy.

    Attributes:
        input_shapes: of the example inputs, with the batch.
        full: the whole network.
        least: what is left when all layers and all units but one of every group are gone.
        entries: groups and layers in the order of the network, a layer before what it holds.
        frozen: reason -> names of the dims and layers that stay for it.
    """

    input_shapes: tuple[tuple[int, ...], ...]
    full: Price
    least: Price
    entries: tuple[GroupEntry | LayerEntry, ...]
    frozen: dict[str, tuple[str, ...]]

    @property
    def groups(self) -> list[GroupEntry]:
        """The groups of units."""
        return [entry for entry in self.entries if isinstance(entry, GroupEntry)]

    @property
    def layers(self) -> list[LayerEntry]:
        """The residual branches."""
        return [entry for entry in self.entries if isinstance(entry, LayerEntry)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "input_shapes": [list(shape) for shape in self.input_shapes],
            **vars(self.full),
            "least": vars(self.least),
            "groups": [
                {
                    "name": entry.group.name,
                    "units": entry.group.size,
                    "layer": entry.layer,
                    "macs_per_unit": entry.unit.macs,
                    "params_per_unit": entry.unit.params,
                    "writers": [vars(slot) for slot in entry.group.writers],
                    "readers": [vars(slot) for slot in entry.group.readers],
                    "tied": list(entry.group.tied),
                }
                for entry in self.groups
            ],
            "layers": [
                {"name": entry.name, "inside": entry.inside, **vars(entry.price)}
                for entry in self.layers
            ],
            "frozen": [
                {"name": name, "reason": reason}
                for reason, names in self.frozen.items()
                for name in names
            ],
        }


def inspection_of(structures: Structures) -> Inspection:
    """Price everything that can go.

    Costs are affine in every gate, so the derivative by a gate at the full network is exactly what
    goes with it.

    Example:
        >>> from torch import nn
        >>> from guyot import find_structures
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> seen = inspection_of(find_structures(mlp, (torch.ones(2, 8),)))
        >>> seen.full, seen.groups[0].unit, seen.least
        (Price(macs=192, params=212), Price(macs=12, params=13), Price(macs=12, params=17))
    """
    index = structures.index
    complexity = Complexity(structures, alpha=0.0)
    macs, params = (_prices(cost, index.total) for cost in (complexity.macs, complexity.params))
    gates = {group.name: index.offsets[number] for number, group in enumerate(structures.groups)}
    layers = {layer.name: index.layer(number) for number, layer in enumerate(structures.layers)}

    def entry(around: str | None, found: UnitGroup | Layer) -> GroupEntry | LayerEntry:
        if isinstance(found, UnitGroup):
            gate = gates[found.name]
            return GroupEntry(found, around, Price(macs[gate], params[gate]))
        gate = layers[found.name]
        return LayerEntry(found.name, around, Price(macs[gate], params[gate]))

    frozen: dict[str, list[str]] = defaultdict(list)
    for item in structures.frozen:
        frozen[item.reason].append(item.name)
    return Inspection(
        structures.input_shapes,
        Price(round(complexity.full.macs), round(complexity.full.params)),
        _least(structures, complexity),
        tuple(entry(*pair) for pair in structures.nested),
        {reason: tuple(names) for reason, names in frozen.items()},
    )


def _prices(cost: Callable[[Tensor], Tensor], gates: int) -> list[int]:
    """Return what goes with every gate of the full network."""
    theta = torch.ones(gates, dtype=torch.float64, requires_grad=True)
    total = cost(theta)
    if not total.requires_grad:  # nothing to count
        return [0] * gates
    (gradient,) = torch.autograd.grad(total, theta)
    return gradient.round().long().tolist()


def _least(structures: Structures, full: Complexity) -> Price:
    quanta = structures.index.blocks
    shares = (
        SearchSpace(structures, Complexity(structures, alpha), quanta).least if cost > 0 else 0.0
        for alpha, cost in ((1.0, full.full.macs), (0.0, full.full.params))
    )
    macs, params = shares
    return Price(round(macs * full.full.macs), round(params * full.full.params))
