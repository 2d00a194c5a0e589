"""The frozen vocabulary: what a network's structure is, in terms every floor shares.

A network has **unit groups** (sets of channels, neurons or heads that shrink together) and
**layers** (residual branches that can go as a whole). Every unit and every layer is a
*structure* with one gate. Gates of a network are numbered once: the units of group 0, of
group 1, ..., then the layers. All flat vectors over gates (keep probabilities, benefits, prices)
use this numbering, which `GateIndex` holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from guyot.core.outline import Item, names_text, tree_lines
from guyot.core.reasons import Reason, ReasonKind


@dataclass(frozen=True)
class Fixed:
    """A dimension that never shrinks (batch, space, kernel, classes)."""

    size: int


@dataclass(frozen=True)
class Units:
    """A dimension with one entry per unit of a group."""

    group: int


@dataclass(frozen=True)
class Product:
    """A dimension that flattens several, outermost first: heads x head_dim, C x H x W."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True)
class Concat:
    """A dimension that lays several end to end: the input of a DenseNet layer."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True)
class Within:
    """A dimension with one entry per unit that each of several equal blocks has of its own.

    What a grouped convolution reads: every block of outputs has as many inputs as every other, but
    which of its inputs a block has lost is its own affair.

    Attributes:
        group: the units of all blocks, block after block.
        block: what numbers the blocks: `Units`, or `Fixed` where no block can go.
        offset: where in its `Product` the block stands, -1: just outside of it; 0: it stands alone
            in a dimension, and dimension 0 of that tensor is made of the blocks, outermost.
    """

    group: int
    block: Fixed | Units
    offset: int = 0


Axis = Fixed | Units | Within | Product | Concat


@dataclass(frozen=True)
class Slot:
    """One dimension of one parameter or buffer.

    Attributes:
        tensor: qualified name in the model, e.g. `"layer1.0.conv1.weight"`.
        dim: the dimension.
    """

    tensor: str
    dim: int


@dataclass(frozen=True)
class UnitGroup:
    """Units that exist together: one equivalence class of axes.

    Attributes:
        name: the tensor that first produces the units, e.g. `"layer1.0.conv1"`.
        size: number of units.
        members: every tensor dimension in which the group occurs; removal slices them all.
        readers: the members that contract the units; gates multiply these.
        stride: entries that one unit has in the dimensions of the weights that compute with it: 1
            for a channel, the size of a head for a head.
        tied: names of the groups that the user made one with it.
        block: what numbers the equal blocks that the units come in, one after the other; all blocks
            lose as many units as each other, and a block that goes takes its units along.
        multiple: an operator refuses numbers of units (in a block) that are no multiples of this.
    """

    name: str
    size: int
    members: tuple[Slot, ...]
    readers: tuple[Slot, ...]
    tied: tuple[str, ...] = ()
    stride: int = 1
    block: Fixed | Units = Fixed(1)
    multiple: int = 1

    @property
    def writers(self) -> tuple[Slot, ...]:
        """The members that do not read: they make the units, or pass them on."""
        readers = set(self.readers)
        return tuple(slot for slot in self.members if slot not in readers)

    @property
    def relations(self) -> tuple[tuple[str, list[str]], ...]:
        """Return the modules that make the units, those that read them, and the tied groups."""
        made, read = _modules(self.writers), _modules(self.readers)
        return ("made by", made), ("read by", read), ("tied to", list(self.tied))


def _modules(slots: Iterable[Slot]) -> list[str]:
    """Return the modules of some tensors; a parameter of the root is named itself."""
    return list(dict.fromkeys(slot.tensor.rpartition(".")[0] or slot.tensor for slot in slots))


@dataclass(frozen=True)
class StandIn:
    """What takes the place of a module of a removed branch whose caller stays as it is.

    Attributes:
        module: qualified name of the module that goes.
        argument: position or name of the argument that is passed on or whose shape a zero has.
        others: None: the result is a tensor; else a tuple of it and these: arguments, or None.
        zero: the result is 0, else the argument.
        ones: the zero has as many dimensions as this, all of length 1; None: the argument's shape.
        dense: the zero has memory of its own, since something is added to it in place.
        narrow: under autocast the zero is of the type that autocast computes in.
        stays: the module stays, and its forward returns the argument; what is in it goes.
    """

    module: str
    argument: int | str
    others: tuple[int | str | None, ...] | None
    zero: bool
    ones: int | None = None
    dense: bool = False
    narrow: bool = False
    stays: bool = False


@dataclass(frozen=True)
class Place:
    """An expression in the source of a method of a module's class.

    Attributes:
        method: name of the method.
        file: where its source is.
        span: first line, first column, last line and last column, as Python counts them.
    """

    method: str
    file: str
    span: tuple[int, int, int, int]


@dataclass(frozen=True)
class Layer:
    """A residual branch `y = shortcut(x) + branch(x)` that can be removed as a whole.

    Attributes:
        name: qualified name of the module that adds the branch.
        writers: parameters whose joint scaling by 0 makes the branch exactly 0.
        owner: qualified name of the module whose method contains the addition.
        operand: 0 or 1, which operand of the addition is the branch.
        tensors: parameters and buffers that only the branch uses.
        stand_ins: what takes the place of the branch's modules; none where the addition is taken
            out of the owner's method.
        place: where the owner's class adds the branch; None: unknown, or it stays.
        modules: the outermost modules that compute nothing but this branch.
    """

    name: str
    writers: tuple[str, ...]
    owner: str
    operand: int
    tensors: tuple[str, ...]
    stand_ins: tuple[StandIn, ...] = ()
    place: Place | None = None
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorShape:
    """A parameter or buffer as a product of axes, inside zero or more layers.

    Attributes:
        name: qualified name.
        axes: one per dimension.
        layers: the layers it belongs to (indices into `Structures.layers`).
        trainable: counts as a parameter.
    """

    name: str
    axes: tuple[Axis, ...]
    layers: tuple[int, ...]
    trainable: bool


@dataclass(frozen=True)
class Operation:
    """Multiply-accumulates of one operator for one sample: the product of its axes.

    Attributes:
        name: the operator's module, e.g. `"layer1.0.conv1"`.
        axes: their product is the MACs (output channels, inputs per output, kernel, space).
        layers: the layers it runs in.
    """

    name: str
    axes: tuple[Axis, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Kernel:
    """One operator that runs in a forward pass: what it computes and what it moves.

    Attributes:
        name: the module whose `forward` calls it, e.g. `"layer1.0.conv1"`.
        macs: products of axes that add up to its MACs for one sample; empty where it has none.
        activations: axes of every tensor it reads or writes that grows with the batch, without
            the batch.
        tensors: names of the parameters and buffers it reads.
        layers: the layers it runs in.
    """

    name: str
    macs: tuple[tuple[Axis, ...], ...]
    activations: tuple[tuple[Axis, ...], ...]
    tensors: tuple[str, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Attribute:
    """A module's static attribute that states the length of a dimension.

    Attributes:
        module: qualified name of the module.
        name: the attribute, e.g. `"out_channels"`.
        axis: the dimension whose length it states.
    """

    module: str
    name: str
    axis: Axis


@dataclass(frozen=True)
class Restated:
    """A module whose `forward` states lengths that no attribute holds: its class is derived.

    Attributes:
        module: qualified name.
        sizes: calls in its methods that shape a tensor, each with the lengths it is to state: a
            number, the attribute that holds it, or None for what the method says itself.
        groups: it is due when one of these loses units.
        stuck: groups whose lengths it cannot follow, each with the reason.
    """

    module: str
    sizes: tuple[tuple[Place, tuple[int | str | None, ...]], ...]
    groups: tuple[int, ...]
    stuck: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Frozen:
    """A group or layer that cannot be removed.

    Attributes:
        name: of the group or layer.
        reason: why, for people.
        kind: why, for code.
    """

    name: str
    reason: str
    kind: ReasonKind

    @classmethod
    def of(cls, reasons: Mapping[str, Reason]) -> tuple[Frozen, ...]:
        """Return one entry for every name and its reason."""
        return tuple(cls(name, reason.text, reason.kind) for name, reason in reasons.items())


_SHOWN = 4
"""How many names of many the tree shows."""


def _item(group: UnitGroup) -> Item:
    """Describe a group: its units, who makes them and who reads them."""
    below = [
        Item(f"{title} {names_text(names, _SHOWN)}") for title, names in group.relations if names
    ]
    return Item(f"{group.name}: {group.size} units", below)


@dataclass(frozen=True)
class Structures:
    """What can go in a network, and what everything costs.

    Attributes:
        groups: unit groups.
        layers: removable residual branches.
        tensors: every parameter and buffer.
        operations: every operator with MACs.
        attributes: static attributes of modules that must follow.
        restated: modules whose class is derived when certain groups shrink.
        frozen: what cannot go and why.
        input_shapes: shapes of the example inputs the MACs refer to (with the batch dimension).
        kernels: every operator that runs, in order; what latency is made of.
    """

    groups: tuple[UnitGroup, ...]
    layers: tuple[Layer, ...]
    tensors: tuple[TensorShape, ...]
    operations: tuple[Operation, ...]
    attributes: tuple[Attribute, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    input_shapes: tuple[tuple[int, ...], ...] = ()
    kernels: tuple[Kernel, ...] = ()
    restated: tuple[Restated, ...] = ()

    def __str__(self) -> str:
        """Return the tree of what can go, and what stays; `guyot inspect` shows it with costs."""
        below: dict[str | None, list[UnitGroup | Layer]] = defaultdict(list)
        for around, found in self.nested:
            below[around].append(found)

        def items(around: str | None) -> list[Item]:
            return [
                Item(f"layer {found.name}", items(found.name))
                if isinstance(found, Layer)
                else _item(found)
                for found in below[around]
            ]

        stays: dict[str, list[str]] = defaultdict(list)
        for frozen in self.frozen:
            stays[frozen.reason].append(frozen.name)
        kept = [Item(f"{names_text(names, _SHOWN)}: {reason}") for reason, names in stays.items()]
        tail = ["stays", *tree_lines(kept)] if kept else []
        units = sum(group.size for group in self.groups)
        head = f"{units} units in {len(self.groups)} groups, {len(self.layers)} layers"
        return "\n".join([head, *tree_lines(items(None)), *tail])

    @cached_property
    def nested(self) -> tuple[tuple[str | None, UnitGroup | Layer], ...]:
        """Groups and layers in the order of the network, each with the layer that holds it."""
        order = {tensor.name: number for number, tensor in enumerate(self.tensors)}
        found: list[tuple[int, int, str | None, UnitGroup | Layer]] = []
        for group in self.groups:
            home = self.home_of(group)
            around = None if home is None else self.layers[home].name
            found.append((min(order[slot.tensor] for slot in group.members), 1, around, group))
        for number, layer in enumerate(self.layers):
            held = frozenset.intersection(*(self.holders[name] for name in layer.tensors))
            homes = sorted(held - {number}, key=lambda other: len(self.layers[other].tensors))
            around = self.layers[homes[0]].name if homes else None
            first = min(order[tensor] for tensor in layer.tensors)
            found.append((first, -len(layer.tensors), around, layer))
        ordered = sorted(found, key=lambda entry: entry[:2])
        return tuple((around, entry) for _, _, around, entry in ordered)

    @cached_property
    def index(self) -> GateIndex:
        """The numbering of all gates."""
        sizes = tuple(group.size for group in self.groups)
        return GateIndex(sizes, len(self.layers), tuple(map(self.blocks_of, self.groups)))

    def blocks_of(self, group: UnitGroup) -> int:
        """Return in how many blocks the units of a group come."""
        block = group.block
        return block.size if isinstance(block, Fixed) else self.groups[block.group].size

    @cached_property
    def holders(self) -> dict[str, frozenset[int]]:
        """For every tensor the layers it belongs to."""
        return {tensor.name: frozenset(tensor.layers) for tensor in self.tensors}

    def layers_around(self, group: UnitGroup) -> frozenset[int]:
        """Return the layers that hold all of a group."""
        held = [self.holders[slot.tensor] for slot in group.members]
        return frozenset.intersection(*held) if held else frozenset()

    def home_of(self, group: UnitGroup) -> int | None:
        """Return the innermost layer that holds all of a group, or None."""
        homes = sorted(self.layers_around(group))
        return min(homes, key=lambda n: len(self.layers[n].tensors), default=None)


@dataclass(frozen=True)
class GateIndex:
    """The numbering of gates: units of group 0, group 1, ..., then one gate per layer.

    Attributes:
        group_sizes: units of every group.
        layers: number of layers.
        blocks: in how many blocks the units of every group come; () if all come in one.

    Example:
        >>> index = GateIndex((3, 2), layers=1)
        >>> index.total, index.units(1), index.layer(0)
        (6, slice(3, 5, None), 5)
    """

    group_sizes: tuple[int, ...]
    layers: int
    blocks: tuple[int, ...] = ()

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First gate of every group, and, last, of the layers."""
        offsets = [0]
        for size in self.group_sizes:
            offsets.append(offsets[-1] + size)
        return tuple(offsets)

    @property
    def total(self) -> int:
        """Number of gates."""
        return self.offsets[-1] + self.layers

    def units(self, group: int) -> slice:
        """Return the gates of a group."""
        return slice(self.offsets[group], self.offsets[group + 1])

    def layer(self, layer: int) -> int:
        """Return the gate of a layer."""
        return self.offsets[-1] + layer

    @property
    def layer_slice(self) -> slice:
        """The gates of all layers."""
        return slice(self.offsets[-1], self.total)

    @cached_property
    def group_of_gate(self) -> Tensor:
        """For every gate its group, layers numbered after the groups; int64, shape (total,)."""
        sizes = torch.tensor([*self.group_sizes] + [1] * self.layers, dtype=torch.int64)
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)


@dataclass(frozen=True)
class KeepPlan:
    """What stays, relative to a `Structures`: indices per group, and which layers go.

    Attributes:
        kept: group -> sorted kept unit indices, int64; a missing group keeps all.
        removed_layers: indices of layers that go.
    """

    kept: Mapping[int, Tensor] = field(default_factory=dict)
    removed_layers: frozenset[int] = frozenset()

    @property
    def empty(self) -> bool:
        """True when the plan removes nothing."""
        return not self.kept and not self.removed_layers
