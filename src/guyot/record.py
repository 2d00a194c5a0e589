"""What was removed so far, in the numbering of the original network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from guyot.surgery import Shrunk, masks_of
from guyot.types import KeepPlan, Structures


@dataclass(frozen=True)
class Removal:
    """One moment at which structures went for good.

    Attributes:
        step: optimiser step.
        units: group name -> indices that went, numbered as in the original network.
        layers: names of the layers that went.
        macs: MACs of one sample afterwards (physical widths).
    """

    step: int
    units: Mapping[str, tuple[int, ...]]
    layers: tuple[str, ...]
    macs: int


class Record:
    """The removals of a run.

    Attributes:
        original: the structures of the full network.
        removals: in order.
    """

    def __init__(self, original: Structures) -> None:
        self.original = original
        self.removals: list[Removal] = []
        self._origin = torch.arange(original.index.total)
        self._first = {
            group.name: original.index.offsets[number]
            for number, group in enumerate(original.groups)
        }

    def add(self, step: int, before: Structures, plan: KeepPlan, left: Shrunk, macs: int) -> None:
        """Note one removal.

        Args:
            step: optimiser step.
            before: the structures that the plan was for.
            plan: what stayed.
            left: what surgery gave back.
            macs: MACs of one sample afterwards.
        """
        units: dict[str, tuple[int, ...]] = {}
        for number, mask in enumerate(masks_of(before, plan)):
            if not bool(mask.all()):
                name = before.groups[number].name
                gone = self._origin[before.index.units(number)][~mask] - self._first[name]
                units[name] = tuple(gone.tolist())
        names = {layer.name for layer in left.structures.layers}
        layers = tuple(layer.name for layer in before.layers if layer.name not in names)
        self._origin = self._origin[left.gates]
        self.removals.append(Removal(step, units, layers, macs))

    @property
    def structure(self) -> dict[str, Any]:
        """What is left, as plain data for JSON, see `guyot.rebuild`."""
        gone: dict[str, set[int]] = {}
        for removal in self.removals:
            for name, units in removal.units.items():
                gone.setdefault(name, set()).update(units)
        sizes = {group.name: group.size for group in self.original.groups}
        return {
            "units": {
                name: sorted(set(range(sizes[name])) - units) for name, units in gone.items()
            },
            "removed_layers": [name for removal in self.removals for name in removal.layers],
        }
