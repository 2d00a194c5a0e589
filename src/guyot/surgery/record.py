"""What was removed so far, in the numbering of the original network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from guyot.core.contents import REMOVAL
from guyot.core.errors import MisconfiguredError
from guyot.core.schema import misfit
from guyot.core.trees import describe
from guyot.core.types import KeepPlan, Structures
from guyot.surgery import Shrunk, present


@dataclass(frozen=True)
class Removal:
    """Record which units and layers were removed at one step.

    Attributes:
        step: optimiser step.
        units: group name -> indices that were removed, numbered as in the original network.
        layers: names of the layers that were removed.
        macs: MACs of one sample afterwards (physical widths).
    """

    step: int
    units: Mapping[str, tuple[int, ...]]
    layers: tuple[str, ...]
    macs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        units = {name: list(indices) for name, indices in self.units.items()}
        return {
            "step": self.step,
            "units": units,
            "layers": list(self.layers),
            "macs": self.macs,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Removal:
        """The inverse of `to_dict`.

        Raises:
            MisconfiguredError: these are not the values of a removal.
        """
        if wrong := misfit(values, REMOVAL):
            raise MisconfiguredError(
                f"{describe(values)} is no removal ({wrong}): expected step, units, layers and macs"
            )
        units = {name: tuple(indices) for name, indices in values["units"].items()}
        return cls(values["step"], units, tuple(values["layers"]), values["macs"])


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
        for number, mask in enumerate(present(before, plan)):
            if not bool(mask.all()):
                name = before.groups[number].name
                gone = self._origin[before.index.units(number)][~mask] - self._first[name]
                units[name] = tuple(gone.tolist())
        names = {layer.name for layer in left.structures.layers}
        layers = tuple(layer.name for layer in before.layers if layer.name not in names)
        self._origin = self._origin[left.gates]
        self.removals.append(Removal(step, units, layers, macs))

    def plan(self, before: Structures, removal: Removal) -> KeepPlan:
        """The plan that a removal carried out.

        Args:
            before: the structures when it happened, all earlier removals of it being in here.
            removal: numbered as in the original network.

        Raises:
            MisconfiguredError: it names what is not there, or leaves a group without units.
        """
        groups = {group.name: number for number, group in enumerate(before.groups)}
        layers = {layer.name: number for number, layer in enumerate(before.layers)}
        kept: dict[int, torch.Tensor] = {}
        for name, units in removal.units.items():
            if name not in groups:
                raise MisconfiguredError(_absent(removal, f"units of {name!r}", groups))
            number = groups[name]
            present = self._origin[before.index.units(number)] - self._first[name]
            wanted = set(units)
            gone = torch.tensor([unit in wanted for unit in present.tolist()])
            if not units or int(gone.sum()) != len(units) or bool(gone.all()):
                raise MisconfiguredError(
                    f"the removal of step {removal.step} takes {len(units)} units of {name!r}, "
                    f"{int(gone.sum())} of which are among its {len(present)}: build the model as "
                    "it was built for the run"
                )
            kept[number] = (~gone).nonzero().flatten()
        if unknown := [name for name in removal.layers if name not in layers]:
            raise MisconfiguredError(_absent(removal, f"the layer {unknown[0]!r}", layers))
        return KeepPlan(kept, frozenset(layers[name] for name in removal.layers))

    @property
    def structure(self) -> dict[str, Any]:
        """Return what is left, as plain data for JSON, see `guyot.rebuild`.

        Groups that the user tied are listed one by one, so that nobody has to know of the tie.
        """
        gone: dict[str, set[int]] = {}
        for removal in self.removals:
            for name, units in removal.units.items():
                gone.setdefault(name, set()).update(units)
        kept: dict[str, list[int]] = {}
        for group in self.original.groups:
            if group.name in gone:
                left = sorted(set(range(group.size)) - gone[group.name])
                kept |= {name: list(left) for name in (group.name, *group.tied)}
        return {
            "units": kept,
            "removed_layers": [name for removal in self.removals for name in removal.layers],
        }


def _absent(removal: Removal, what: str, known: Mapping[str, int]) -> str:
    return (
        f"the removal of step {removal.step} takes {what}, but the network has "
        f"{sorted(known)}: build the model as it was built for the run"
    )
