"""The network drawn block by block: widths and MACs before and after, and what vanished.

A block is a residual branch, or an operator that is in none; two or three such operators of one
module stand together. A block lists the unit groups that live inside it; a group on the residual
stream stands where it is produced outside of branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from guyot.report.history import History, Line

_TOGETHER = 3
"""Operators of one module that share a row."""


@dataclass(frozen=True)
class Box:
    """Units of one group.

    Attributes:
        group: its number; None for a width that cannot change.
        name: of the group.
        before: units.
        after: units that are left.
        stride: entries of one unit: 1, or the size of a head.
    """

    group: int | None
    name: str
    before: int
    after: int
    stride: int = 1


@dataclass(frozen=True)
class Block:
    """A residual branch or an operator.

    Attributes:
        name: of the branch or operator.
        inside: the one module of the branch that computes, where its name says more.
        layer: number of the branch; None for an operator on the trunk.
        gone: the branch went.
        boxes: the groups inside.
        macs: of one image, in the full network.
        left: in the network that is left.
        apart: begins a new part of the network.
        operations: numbers of the operators inside.
    """

    name: str
    layer: int | None
    gone: bool
    boxes: Sequence[Box]
    macs: int
    left: int
    inside: str = ""
    apart: bool = False
    operations: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """Return its name, and the module inside where that says more."""
        return f"{self.name} {self.inside}".rstrip()


def blocks(run: History) -> list[Block]:
    """Return the blocks of a run's network in order; empty without discovery."""
    operations: Sequence[Line] = run.network.get("operations", ())
    sizes: dict[int, int] = {}
    for operation in operations:
        for layer in operation["layers"]:
            sizes[layer] = sizes.get(layer, 0) + 1
    modules = _modules(operations)
    members: dict[int | str, list[int]] = {}
    for number, operation in enumerate(operations):
        inside: Sequence[int] = operation["layers"]
        name: str = operation["name"]
        key: int | str = min(inside, key=sizes.__getitem__) if inside else modules.get(name, name)
        members.setdefault(key, []).append(number)
    left = run.removals[-1]["operations"] if run.removals else None
    found = [_block(run, key, inside, left) for key, inside in members.items()]
    parents = [block.name.rpartition(".")[0] for block in found]
    return [
        replace(block, apart=place > 0 and parents[place] != parents[place - 1])
        for place, block in enumerate(found)
    ]


def _modules(operations: Sequence[Line]) -> dict[str, str]:
    """Map operators on the trunk to the module that they share with one or two others."""
    found: dict[str, str] = {}
    alone = [(not o["layers"], o["name"].rpartition(".")[0]) for o in operations]
    for (trunk, module), run in groupby(range(len(operations)), key=alone.__getitem__):
        names = {operations[place]["name"] for place in run}
        if trunk and "." in module and 2 <= len(names) <= _TOGETHER:
            found |= dict.fromkeys(names, module)
    return found


def _inside(name: str, operations: Sequence[str]) -> str:
    """Return the part of a branch that all of its operators are in, such as `mlp`.

    Example:
        >>> _inside("blocks.0:2", ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2"])
        'mlp'
        >>> _inside("blocks.0", ["blocks.0.conv1", "blocks.0.conv2"])
        ''
    """
    owner = name.partition(":")[0]
    parts = {n.removeprefix(owner + ".").partition(".")[0] for n in operations}
    (part,) = parts if len(parts) == 1 else ("",)
    return part if part and f"{owner}.{part}" != name and part not in name else ""


def _block(
    run: History, key: int | str, inner: Sequence[int], left: Mapping[str, int] | None
) -> Block:
    operations = [run.network["operations"][number] for number in inner]
    layer = key if isinstance(key, int) else None
    numbers = dict.fromkeys(number for operation in operations for number in operation["groups"])
    groups = [(number, run.groups[number]) for number in numbers]
    boxes = [
        Box(number, group["name"], group["size"], run.width(group), group.get("stride", 1))
        for number, group in groups
        if layer is None or layer in group["layers"]
    ]
    if layer is None and not boxes:
        last = operations[-1]
        boxes = [Box(None, last["name"], last["width"], last["width"])]
    macs = sum(operation["macs"] for operation in operations)
    names = {operation["name"] for operation in operations}
    after = macs if left is None else sum(left.get(name, 0) for name in names)
    name = key if isinstance(key, str) else run.layers[key]
    gone = layer is not None and run.layers[layer] in run.removed_layers
    inside = "" if layer is None else _inside(name, sorted(names))
    return Block(name, layer, gone, boxes, macs, after, inside, operations=tuple(inner))


def _macs_over_time(run: History, found: Sequence[Block]) -> list[list[float]] | None:
    """Return the MACs of each block at each snapshot; None for a run that did not write them."""
    if not all("macs" in line for line in run.snapshots):
        return None
    return [
        [sum(line["macs"][number] for number in block.operations) for line in run.snapshots]
        for block in found
    ]


def over_time(run: History, found: Sequence[Block]) -> dict[str, Any]:
    """Return what the slider shows: expected widths and MACs, and estimates, per snapshot."""
    snapshots = run.snapshots
    return {
        "steps": [line["step"] for line in snapshots],
        "full": run.network["macs"],
        "macs": _macs_over_time(run, found),
        "groups": [
            {
                "name": group["name"],
                "size": group["size"],
                "stride": group.get("stride", 1),
                "expected": [line["expected"][number] for line in snapshots],
                "price": [line["price"][number] for line in snapshots],
                "earned": [line["earned"][number] for line in snapshots],
            }
            for number, group in enumerate(run.groups)
        ],
        "layers": [
            {
                "name": name,
                "theta": [line["layers"]["theta"][number] for line in snapshots],
                "price": [line["layers"]["price"][number] for line in snapshots],
                "benefit": [line["layers"]["benefit"][number] for line in snapshots],
            }
            for number, name in enumerate(run.layers)
        ],
    }
