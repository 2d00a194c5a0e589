"""What is left of a `Structures` after a `KeepPlan`: pure bookkeeping, no tensors of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guyot.core.errors import MisconfiguredError
from guyot.core.types import (
    Attribute,
    Axis,
    Concat,
    Fixed,
    KeepPlan,
    Kernel,
    Product,
    Restated,
    Structures,
    UnitGroup,
    Units,
    Within,
)


@dataclass(frozen=True)
class Shrunk:
    """The smaller structures.

    Attributes:
        structures: what is left.
        gates: for every gate left its number before; int64, shape (gates left,).
    """

    structures: Structures
    gates: Tensor


def masks_of(structures: Structures, plan: KeepPlan) -> list[Tensor]:
    """For every group which units the plan keeps; bool, shape (units,)."""
    masks: list[Tensor] = []
    for number, group in enumerate(structures.groups):
        mask = torch.ones(group.size, dtype=torch.bool)
        if number in plan.kept:
            mask = torch.zeros(group.size, dtype=torch.bool)
            mask[plan.kept[number]] = True
        masks.append(mask)
    return masks


def present(structures: Structures, plan: KeepPlan) -> list[Tensor]:
    """For every group which units are there afterwards; bool, shape (units,).

    A block of units that goes takes its own units along, whatever the plan says of them.

    Raises:
        MisconfiguredError: blocks that stay would keep different numbers of units.
    """
    masks = masks_of(structures, plan)
    for number, group in enumerate(structures.groups):
        blocks = structures.blocks_of(group)
        if blocks == 1:
            continue
        rows = masks[number].view(blocks, -1)
        there = torch.ones(blocks, dtype=torch.bool)
        if isinstance(group.block, Units):
            there = masks[group.block.group]
        counts = rows.sum(1)[there]
        if len(counts.unique()) > 1:
            raise MisconfiguredError(
                f"the plan keeps {counts.tolist()[:8]} units in the blocks of {group.name}: keep "
                "as many in each, any of them, since the groups of a convolution are of one width"
            )
        masks[number] = (rows & there[:, None]).flatten()
    return masks


def all_removed_layers(structures: Structures, plan: KeepPlan) -> frozenset[int]:
    """The layers of the plan and those nested in them."""
    beginning: dict[str, list[int]] = defaultdict(list)
    for number, layer in enumerate(structures.layers):
        for name in layer.tensors[:1]:
            beginning[name].append(number)
    gone = set(plan.removed_layers)
    for outer in plan.removed_layers:
        inside = set(structures.layers[outer].tensors)
        gone.update(
            number
            for name in inside
            for number in beginning.get(name, ())
            if inside.issuperset(structures.layers[number].tensors)
        )
    return frozenset(gone)


def removed_tensors(structures: Structures, plan: KeepPlan) -> frozenset[str]:
    """Names of the parameters and buffers that go with the removed layers."""
    layers = all_removed_layers(structures, plan)
    return frozenset(name for layer in layers for name in structures.layers[layer].tensors)


def shrink_structures(structures: Structures, plan: KeepPlan) -> Shrunk:
    """The structures that a network has after a plan was carried out.

    A group that no weight reads any more (its readers went with a layer) becomes fixed.

    Example:
        >>> from guyot.core.types import Slot
        >>> slots = (Slot("a.weight", 0), Slot("b.weight", 1))
        >>> group = UnitGroup("a", 4, slots, slots[1:])
        >>> before = Structures((group,), (), (), ())
        >>> after = shrink_structures(before, KeepPlan({0: torch.tensor([0, 3])}))
        >>> after.structures.groups[0].size, after.gates
        (2, tensor([0, 3]))
    """
    gone_layers = all_removed_layers(structures, plan)
    gone = removed_tensors(structures, plan)
    index = structures.index
    groups: list[UnitGroup] = []
    gates: list[Tensor] = []
    meaning: dict[int, Axis] = {}
    masks = present(structures, plan)
    for number, (group, mask) in enumerate(zip(structures.groups, masks, strict=True)):
        size = int(mask.sum())
        readers = tuple(slot for slot in group.readers if slot.tensor not in gone)
        members = tuple(slot for slot in group.members if slot.tensor not in gone)
        if not readers:
            block = group.block
            blocks = block.size if isinstance(block, Fixed) else int(masks[block.group].sum())
            meaning[number] = Fixed(size // blocks)
            continue
        meaning[number] = Units(len(groups))
        groups.append(replace(group, size=size, members=members, readers=readers))
        gates.append(index.offsets[number] + mask.nonzero().flatten())
    left = [n for n in range(len(structures.layers)) if n not in gone_layers]
    renumber = {old: new for new, old in enumerate(left)}
    gates.append(torch.tensor([index.layer(n) for n in left], dtype=torch.int64))

    without = settled(structures, plan)

    def axes(old: Sequence[Axis]) -> tuple[Axis, ...]:
        return tuple(_substitute(axis, meaning) for axis in old)

    def layers(old: Sequence[int]) -> tuple[int, ...]:
        return tuple(renumber[layer] for layer in old)

    smaller = replace(
        structures,
        groups=tuple(replace(g, block=_number(g.block, meaning)) for g in groups),
        layers=tuple(structures.layers[n] for n in left),
        tensors=tuple(
            replace(t, axes=axes(t.axes), layers=layers(t.layers))
            for t in structures.tensors
            if t.name not in gone
        ),
        operations=tuple(
            replace(op, axes=axes(op.axes), layers=layers(op.layers))
            for op in structures.operations
            if not gone_layers.intersection(op.layers)
        ),
        kernels=tuple(
            _shrunk(kernel, axes, layers(kernel.layers))
            for kernel in structures.kernels
            if not gone_layers.intersection(kernel.layers)
        ),
        restated=_pending(structures, plan, without, meaning),
        attributes=tuple(
            Attribute(a.module, a.name, axes([a.axis])[0])
            for a in structures.attributes
            if a.module not in without
        ),
    )
    return Shrunk(smaller, torch.cat(gates))


def _shrunk(
    kernel: Kernel, axes: Callable[[Sequence[Axis]], tuple[Axis, ...]], layers: tuple[int, ...]
) -> Kernel:
    return replace(
        kernel,
        macs=tuple(axes(product) for product in kernel.macs),
        activations=tuple(axes(shape) for shape in kernel.activations),
        layers=layers,
    )


def _pending(
    structures: Structures, plan: KeepPlan, without: set[str], meaning: dict[int, Axis]
) -> tuple[Restated, ...]:
    """The modules that are still whose class is to be derived when a group of theirs shrinks."""
    done = {spec.module for spec in due(structures, plan)} | without
    left = {number: axis.group for number, axis in meaning.items() if isinstance(axis, Units)}
    return tuple(
        replace(
            spec,
            groups=tuple(left[group] for group in spec.groups if group in left),
            stuck=tuple((left[group], why) for group, why in spec.stuck if group in left),
        )
        for spec in structures.restated
        if spec.module not in done
    )


def settled(structures: Structures, plan: KeepPlan) -> set[str]:
    """Modules that lose all their tensors."""
    gone = removed_tensors(structures, plan)
    left = {
        module
        for tensor in structures.tensors
        if tensor.name not in gone
        for module in above(tensor.name)
    }
    return {module for name in gone for module in above(name)} - left


def due(structures: Structures, plan: KeepPlan) -> tuple[Restated, ...]:
    """The modules whose class a plan calls to be derived, with what stops them now."""
    cut = {number for number, mask in enumerate(present(structures, plan)) if not bool(mask.all())}
    return tuple(
        replace(spec, stuck=tuple(each for each in spec.stuck if each[0] in cut))
        for spec in structures.restated
        if cut.intersection(spec.groups)
    )


def above(name: str) -> list[str]:
    """The modules that a qualified name lies in, outermost first, without the root.

    Example:
        >>> above("layer1.0.conv.weight")
        ['layer1', 'layer1.0', 'layer1.0.conv']
    """
    return [name[:position] for position, letter in enumerate(name) if letter == "."]


def _substitute(axis: Axis, meaning: dict[int, Axis]) -> Axis:
    match axis:
        case Fixed():
            return axis
        case Units(group):
            return meaning[group]
        case Within(group, block, offset):
            own = meaning[group]
            if isinstance(own, Units):
                return Within(own.group, _number(block, meaning), offset)
            return own
        case Product(parts):
            return Product(tuple(_substitute(part, meaning) for part in parts))
        case Concat(parts):
            return Concat(tuple(_substitute(part, meaning) for part in parts))


def _number(block: Fixed | Units, meaning: dict[int, Axis]) -> Fixed | Units:
    """Return what numbers the blocks from now on."""
    new = _substitute(block, meaning)
    assert isinstance(new, Fixed | Units)
    return new
