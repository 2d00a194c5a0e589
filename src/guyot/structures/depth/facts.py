"""Whether the structures of a network are those of the short network, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from guyot.core.types import Axis, Concat, Fixed, Product, Slot, Structures, Units, Within

Fact = tuple[Any, ...]
Rename = Callable[[str], str]


def same_facts(whole: Structures, short: Structures, rename: Rename) -> bool:
    """Say whether all that is known of every block holds for the block that stands for it.

    Args:
        whole: the structures of a network.
        short: those of the short network.
        rename: name of something in the network -> its name in the short one.
    """
    return set(_facts(whole, rename)) == set(_facts(short, str))


def _facts(structures: Structures, rename: Rename) -> Iterator[Fact]:
    groups = [rename(group.name) for group in structures.groups]
    layers = [rename(layer.name) for layer in structures.layers]

    def named(axis: Axis) -> Fact:
        match axis:
            case Fixed(size):
                return ("fixed", size)
            case Units(group):
                return ("units", groups[group])
            case Within(group, block, offset):
                return ("within", groups[group], named(block), offset)
            case Product(parts):
                return ("product", *map(named, parts))
            case Concat(parts):
                return ("concat", *map(named, parts))

    def slots(several: Iterable[Slot]) -> frozenset[Fact]:
        return frozenset((rename(slot.tensor), slot.dim) for slot in several)

    def within(numbers: Sequence[int]) -> frozenset[str]:
        return frozenset(layers[number] for number in numbers)

    def tensors(several: Iterable[str]) -> frozenset[str]:
        return frozenset(map(rename, several))

    for group, name in zip(structures.groups, groups, strict=True):
        numbers = (group.size, group.stride, group.multiple, named(group.block))
        tied = tuple(map(rename, group.tied))
        yield ("group", name, numbers, tied, slots(group.members), slots(group.readers))
    for layer, name in zip(structures.layers, layers, strict=True):
        stand_ins = frozenset(
            (rename(s.module), s.argument, s.others, s.zero, s.ones, s.dense, s.narrow, s.stays)
            for s in layer.stand_ins
        )
        parts = (tensors(layer.writers), tensors(layer.tensors), tensors(layer.modules), stand_ins)
        yield ("layer", name, rename(layer.owner), layer.operand, layer.place, *parts)
    for tensor in structures.tensors:
        axes = tuple(map(named, tensor.axes))
        yield ("tensor", rename(tensor.name), axes, within(tensor.layers), tensor.trainable)
    for op in structures.operations:
        yield ("operation", rename(op.name), tuple(map(named, op.axes)), within(op.layers))
    for found in structures.attributes:
        yield ("attribute", rename(found.module), found.name, named(found.axis))
    for spec in structures.restated:
        held = frozenset(groups[group] for group in spec.groups)
        stuck = frozenset((groups[group], why) for group, why in spec.stuck)
        yield ("restated", rename(spec.module), spec.sizes, held, stuck)
    for frozen in structures.frozen:
        yield ("frozen", rename(frozen.name), frozen.kind)
