"""Slow and obvious truths that fast code is tested against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod

import torch
from torch import Tensor

from guyot.core.types import (
    Axis,
    Concat,
    Fixed,
    Layer,
    Operation,
    Product,
    Slot,
    Structures,
    TensorShape,
    UnitGroup,
    Units,
    Within,
)
from guyot.planning.vectors import GateValues


def all_gates(n: int) -> Iterator[Tensor]:
    """Every 0/1 vector of n gates, float64."""
    for bits in product((0.0, 1.0), repeat=n):
        yield torch.tensor(bits, dtype=torch.float64)


def probability(gate: Tensor, theta: Tensor) -> Tensor:
    """P(xi = gate) under independent Bernoulli(theta)."""
    return torch.where(gate > 0, theta, 1 - theta).prod()


def gate_values(
    theta: Tensor, benefit: Tensor, price: Tensor, alive: Tensor | None = None, **known: Tensor
) -> GateValues:
    """All gates alive and in the full network, unless said otherwise."""
    alive = torch.ones_like(theta, dtype=torch.bool) if alive is None else alive
    known = {"reference_price": price, "gradient": price} | known
    return GateValues(theta, alive, benefit, price, **known)


def enumerated_mean(function: Callable[[Tensor], float | Tensor], theta: Tensor) -> Tensor:
    """E[function(xi)] as the sum over all 2**n gates."""
    terms = [probability(g, theta) * function(g) for g in all_gates(len(theta))]
    return torch.stack(terms).sum()


def size_of(axis: Axis, widths: list[int]) -> int:
    """Entries an axis has when the groups have these widths."""
    match axis:
        case Fixed(size):
            return size
        case Units(group):
            return widths[group]
        case Within(group, block):
            return widths[group] // size_of(block, widths)
        case Product(parts):
            return prod(size_of(part, widths) for part in parts)
        case Concat(parts):
            return sum(size_of(part, widths) for part in parts)


def counted(structures: Structures, gate: Tensor) -> tuple[int, int]:
    """(MACs, trainable parameters) of the network in which exactly these gates are on.

    Counts axis by axis; a tensor or operator in a removed layer counts 0.
    """
    index = structures.index
    widths = [int(gate[index.units(g)].sum()) for g in range(len(structures.groups))]

    def total(items) -> int:
        return sum(
            prod(size_of(axis, widths) for axis in item.axes)
            for item in items
            if all(gate[index.layer(layer)] > 0 for layer in item.layers)
        )

    return total(structures.operations), total(t for t in structures.tensors if t.trainable)


def exact_benefit(loss: Callable[[Tensor], Tensor], theta: Tensor, j: int) -> Tensor:
    """E[C(xi_j = 0) - C(xi_j = 1)] over the other gates, by enumeration."""

    def difference(gate: Tensor) -> Tensor:
        off, on = gate.clone(), gate.clone()
        off[j], on[j] = 0, 1
        return loss(off) - loss(on)

    return enumerated_mean(difference, theta)


def unit_group(name: str, size: int, *slots: tuple[str, int]) -> UnitGroup:
    """A group whose last slot reads it."""
    members = tuple(Slot(*slot) for slot in slots)
    return UnitGroup(name, size, members, members[-1:])


def residual_network(
    stream: int = 2, inner: tuple[int, ...] = (2, 3), pixels: int = 4, classes: int = 2
) -> Structures:
    """Stem, residual blocks `x + conv2(conv1(x))` on one gated stream, classifier.

    Group 0 is the stream, group i + 1 the interior of block i.
    """
    conv = {"stem": (Units(0), Fixed(3))}
    layers, groups = [], []
    stream_slots = [("stem.weight", 0)]
    for i in range(len(inner)):
        a, b = f"b{i}.conv1", f"b{i}.conv2"
        conv[a], conv[b] = (Units(i + 1), Units(0)), (Units(0), Units(i + 1))
        groups.append(unit_group(a, inner[i], (f"{a}.weight", 0), (f"{b}.weight", 1)))
        stream_slots += [(f"{b}.weight", 0), (f"{a}.weight", 1)]
        layers.append(Layer(f"b{i}", (f"{b}.weight",), f"b{i}", 0, (f"{a}.weight", f"{b}.weight")))
    of = {f"b{i}.conv{k}": (i,) for i in range(len(inner)) for k in (1, 2)}
    tensors = [
        TensorShape(f"{n}.weight", (*axes, Fixed(3), Fixed(3)), of.get(n, ()), trainable=True)
        for n, axes in conv.items()
    ]
    operations = [
        Operation(n, (*axes, Fixed(9), Fixed(pixels)), of.get(n, ())) for n, axes in conv.items()
    ]
    tensors.append(TensorShape("head.weight", (Fixed(classes), Units(0)), (), trainable=True))
    operations.append(Operation("head", (Fixed(classes), Units(0)), ()))
    stream_slots.append(("head.weight", 1))
    return Structures(
        (unit_group("stem", stream, *stream_slots), *groups),
        tuple(layers),
        tuple(tensors),
        tuple(operations),
    )
