"""A found structure in words: the widths that are left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guyot.core.types import Structures


@dataclass(frozen=True)
class Width:
    """Units of one group before and after; 0 after: it went with the layer it belonged to."""

    name: str
    before: int
    after: int


def widths(original: Structures, structure: Mapping[str, Any]) -> tuple[Width, ...]:
    """Return the width of every unit group, in the order of the network.

    Args:
        original: structures of the full network.
        structure: what `Discovery.structure` says of the smaller one.
    """
    where = {tensor.name: tensor.layers for tensor in original.tensors}
    removed = {
        number
        for number, layer in enumerate(original.layers)
        if layer.name in structure["removed_layers"]
    }
    found: list[Width] = []
    for group in original.groups:
        left = len(structure["units"].get(group.name, range(group.size)))
        if all(removed & set(where[slot.tensor]) for slot in group.members):
            left = 0
        found.append(Width(group.name, group.size, left))
    return tuple(found)
