"""The network drawn block by block: widths and MACs before and after, and what vanished.

A block is a residual branch, or an operator that is in none. It lists the unit groups that live
inside it; a group on the residual stream stands where it is produced outside of branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from guyot.report.history import History, Line


@dataclass(frozen=True)
class Box:
    """Units of one group.

    Attributes:
        group: its number; None for a width that cannot change.
        name: of the group.
        before: units.
        after: units that are left.
    """

    group: int | None
    name: str
    before: int
    after: int


@dataclass(frozen=True)
class Block:
    """A residual branch or an operator.

    Attributes:
        name: of the branch or operator.
        layer: number of the branch; None for an operator on the trunk.
        gone: the branch went.
        boxes: the groups inside.
        macs: of one image, in the full network.
        left: in the network that is left.
        apart: begins a new part of the network.
    """

    name: str
    layer: int | None
    gone: bool
    boxes: Sequence[Box]
    macs: int
    left: int
    apart: bool = False


def blocks(run: History) -> list[Block]:
    """The blocks of a run's network in order; empty without discovery."""
    operations: Sequence[Line] = run.network.get("operations", ())
    sizes: dict[int, int] = {}
    for operation in operations:
        for layer in operation["layers"]:
            sizes[layer] = sizes.get(layer, 0) + 1
    members: dict[int | str, list[Line]] = {}
    for operation in operations:
        inside = operation["layers"]
        key = min(inside, key=sizes.__getitem__) if inside else operation["name"]
        members.setdefault(key, []).append(operation)
    left = run.removals[-1]["operations"] if run.removals else None
    found = [_block(run, key, inside, left) for key, inside in members.items()]
    parents = [block.name.rpartition(".")[0] for block in found]
    return [
        replace(block, apart=place > 0 and parents[place] != parents[place - 1])
        for place, block in enumerate(found)
    ]


def _block(
    run: History, key: int | str, operations: Sequence[Line], left: Mapping[str, int] | None
) -> Block:
    layer = key if isinstance(key, int) else None
    numbers = dict.fromkeys(number for operation in operations for number in operation["groups"])
    inside = [(number, run.groups[number]) for number in numbers]
    boxes = [
        Box(number, group["name"], group["size"], run.width(group))
        for number, group in inside
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
    return Block(name, layer, gone, boxes, macs, after)


def over_time(run: History) -> dict[str, Any]:
    """What the slider shows: per snapshot the widths that are expected, and what was estimated."""
    snapshots = run.snapshots
    return {
        "steps": [line["step"] for line in snapshots],
        "groups": [
            {
                "name": group["name"],
                "size": group["size"],
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
