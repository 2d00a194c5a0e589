"""Walk the graph once, apply the rules, and read groups, tensors and operations off the dims."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from guyot.structure.axes import Dim, find, freeze, leaves, resolve
from guyot.structure.branches import Branch
from guyot.structure.rules import SPACE, Dims, rule_for
from guyot.structure.trace import Trace, module_of, shape_of
from guyot.surgery import first_names, named_tensors
from guyot.types import (
    Attribute,
    Axis,
    Fixed,
    Frozen,
    Operation,
    Slot,
    Structures,
    TensorShape,
    UnitGroup,
)

BATCH = "the batch"


class Walk:
    """What rules see: dims of every node, and verbs to say what an operator does.

    Attributes:
        dims: node -> dims of its tensor result.
        outputs: node -> dims of each of its results, for operators with several.
        contracted: (tensor, dim) pairs that gates can multiply.
    """

    def __init__(self, trace: Trace, model: nn.Module) -> None:
        self.trace = trace
        self.tensors: dict[str, Dims] = {}
        self.dims: dict[fx.Node, Dims] = {}
        self.outputs: dict[fx.Node, list[Dims]] = {}
        self.contracted: dict[Slot, None] = {}
        self.attributes: list[tuple[str, str, Dim]] = []
        self.counts: list[tuple[fx.Node, str, tuple[Dim, ...]]] = []
        self.shaped: list[fx.Node] = []
        self.literals: list[tuple[fx.Node, int, Dim]] = []
        self.batch = Dim(0, BATCH)
        self.canonical = first_names(model)
        self.aliases: dict[str, list[str]] = defaultdict(list)
        for name, first in self.canonical.items():
            self.aliases[first].append(name)
        for name, tensor in named_tensors(model).items():
            if self.canonical[name] == name:
                self.tensors[name] = tuple(Dim(size) for size in tensor.shape)

    def name(self, node: fx.Node) -> str:
        """The module that made the node, for messages."""
        return module_of(node) or str(node.target)

    def operands(self, node: fx.Node, *positions: int) -> tuple[Dims, ...]:
        """Dims of positional tensor arguments."""
        return tuple(self.dims[node.args[p]] for p in positions)  # pyright: ignore[reportArgumentType]

    def argument(self, node: fx.Node, position: int, name: str, default: Any) -> Any:
        """A positional or keyword argument of the operator."""
        if position < len(node.args):
            return node.args[position]
        return node.kwargs.get(name, default)

    def has(self, node: fx.Node, position: int, name: str) -> bool:
        """Whether an optional tensor argument was given."""
        return isinstance(self.argument(node, position, name, None), fx.Node)

    def fresh(self, node: fx.Node, start: int) -> Dims:
        """New dims, which never shrink, for the node's result from dimension `start` on."""
        shape = shape_of(node)
        assert shape is not None
        return tuple(Dim(size) if start == 0 else Dim(size, SPACE) for size in shape[start:])

    def constant(self, size: int) -> Dim:
        """A dim that never shrinks."""
        return Dim(size, SPACE)

    def parameter(self, node: fx.Node, position: int) -> str | None:
        """Qualified name of the parameter or buffer at an argument; None when it is computed."""
        operand = node.args[position]
        name = self.trace.tensors.get(getattr(operand, "name", ""))
        return None if name is None else self.canonical[name]

    def contract(self, node: fx.Node, position: int, dim: int) -> None:
        """Say that the operator sums over dimension `dim` of the weight at an argument."""
        name = self.parameter(node, position)
        if name is None:
            (dims,) = self.operands(node, position)
            freeze(dims[dim], f"{self.name(node)} reads it through a weight that is computed")
        else:
            self.contracted[Slot(name, dim)] = None

    def attribute(self, node: fx.Node, position: int, attribute: str, dim: Dim) -> None:
        """Say that an attribute of the modules that own a parameter states a dim's size."""
        canonical = self.parameter(node, position)
        for name in () if canonical is None else self.aliases[canonical]:
            self.attributes.append((name.rpartition(".")[0], attribute, dim))

    def count(self, node: fx.Node, *dims: Dim) -> None:
        """Say that one sample costs the product of these dims in multiply-accumulates."""
        self.counts.append((node, self.name(node), dims))

    def samples(self, dims: Dims) -> Dims:
        """The leading dims of a tensor without the batch, also where others are folded into it."""
        if not dims:
            return ()
        first, batch = find(dims[0]), find(self.batch)
        parts = [find(part) for part in first.parts] if first.kind == "product" else [first]
        if batch.size <= 1 or batch in parts:
            folded = [part for part in parts if part is not batch and part.size > 1]
        else:
            folded = [self.constant(first.size // batch.size)] if first.size > batch.size else []
        return (*folded, *dims[1:])

    def literal_shape(self, node: fx.Node) -> None:
        """Say that the node's arguments state the shape of its result."""
        self.shaped.append(node)

    def literal(self, node: fx.Node, position: int, dim: Dim) -> None:
        """Say that an integer argument of the operator states a dim's size."""
        self.literals.append((node, position, dim))

    def run(self) -> None:
        """Visit every node."""
        for node in self.trace.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                for operand in node.all_input_nodes:
                    for dim in self._all_dims(operand):
                        freeze(dim, "an output of the network")
            else:
                self._call(node)

    def _placeholder(self, node: fx.Node) -> None:
        shape = shape_of(node)
        if shape is None:
            return
        name = self.trace.tensors.get(node.name)
        if name is not None:
            self.dims[node] = self.tensors[self.canonical[name]]
        elif node.name in self.trace.inputs and shape:
            if self.batch.size == 0:
                self.batch = Dim(shape[0], BATCH)
            first = self.batch if shape[0] == self.batch.size else Dim(shape[0], SPACE)
            rest = [Dim(size, "an input of the network") for size in shape[1:]]
            self.dims[node] = (first, *rest)
        else:
            self.dims[node] = tuple(Dim(size, "a constant of forward") for size in shape)

    def _all_dims(self, node: fx.Node) -> Iterable[Dim]:
        for dims in [self.dims.get(node, ()), *self.outputs.get(node, ())]:
            yield from dims

    def _call(self, node: fx.Node) -> None:
        if getattr(node.target, "__name__", "") == "getitem":
            source, position = node.args[0], node.args[1]
            if source in self.outputs:
                self.dims[node] = self.outputs[source][position]  # pyright: ignore[reportArgumentType,reportCallIssue]
                return
        rule = rule_for(node.target)
        if rule is None:
            self._unknown(node)
            return
        result = rule(self, node)
        if isinstance(result, list):
            self.outputs[node] = result
            return
        shape = shape_of(node)
        assert shape == tuple(dim.size for dim in result), (node, shape, result)
        self.dims[node] = result

    def _unknown(self, node: fx.Node) -> None:
        reason = f"operator {node.target} in {self.name(node)} has no rule"
        for operand in node.all_input_nodes:
            for dim in self._all_dims(operand):
                freeze(dim, reason)
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            self.dims[node] = tuple(Dim(size, reason) for size in value.shape)
        elif isinstance(value, (list, tuple)):
            self.outputs[node] = [
                tuple(Dim(size, reason) for size in getattr(item, "shape", ())) for item in value
            ]


@dataclass
class Inference:
    """The result of a walk: structures, and the axes the graph interpreter needs.

    Attributes:
        structures: what can go and what everything costs.
        shapes: name of a node whose arguments state a shape -> axes of its result.
        literals: name of a node -> position of an integer argument -> the axis it states.
    """

    structures: Structures
    shapes: dict[str, tuple[Axis, ...]]
    literals: dict[str, dict[int, Axis]]


def _members(walk: Walk) -> dict[Dim, list[Slot]]:
    members: dict[Dim, list[Slot]] = defaultdict(list)
    for name, dims in walk.tensors.items():
        for position, dim in enumerate(dims):
            for leaf in leaves(dim):
                if leaf.size > 1:
                    members[leaf].append(Slot(name, position))
    return members


def infer(
    walk: Walk, branches: Sequence[Branch], trainable: set[str], excluded: dict[str, str]
) -> Inference:
    """Read groups, tensors, operations and layers off a finished walk.

    Args:
        walk: after `run()`.
        branches: the removable residual branches.
        trainable: names of the tensors that count as parameters.
        excluded: name of a group -> reason why it must not shrink.
    """
    members = _members(walk)
    frozen: dict[str, str] = {}
    groups: list[UnitGroup] = []
    number: dict[Dim, int] = {}
    taken: set[str] = set()
    for leaf, slots in members.items():
        readers = tuple(slot for slot in slots if slot in walk.contracted)
        writers = [slot for slot in slots if slot not in walk.contracted]
        name = _group_name(writers or slots, taken)
        reason = leaf.reason or excluded.get(name)
        if reason is None and not readers:
            reason = "no weight reads it"
        if reason is not None:
            if reason != SPACE and any(slot.tensor in trainable for slot in slots):
                frozen[name] = reason
            continue
        number[leaf] = len(groups)
        groups.append(UnitGroup(name, leaf.size, tuple(slots), readers))

    def axis(dim: Dim) -> Axis:
        return resolve(dim, lambda leaf: number.get(find(leaf)))

    holders: dict[str | fx.Node, list[int]] = defaultdict(list)
    for position, branch in enumerate(branches):
        for part in (*branch.layer.tensors, *branch.nodes):
            holders[part].append(position)
    tensors = tuple(
        TensorShape(
            name,
            tuple(axis(dim) for dim in dims),
            tuple(holders.get(name, ())),
            name in trainable,
        )
        for name, dims in walk.tensors.items()
    )
    operations = tuple(
        Operation(
            name,
            tuple(axis(d) for d in dims if find(d) is not find(walk.batch)),
            tuple(holders.get(node, ())),
        )
        for node, name, dims in walk.counts
    )
    structures = Structures(
        groups=tuple(groups),
        layers=tuple(branch.layer for branch in branches),
        tensors=tensors,
        operations=operations,
        attributes=_attributes(walk, axis),
        frozen=tuple(Frozen(name, reason) for name, reason in frozen.items()),
        input_shapes=_input_shapes(walk.trace),
    )
    shapes = {node.name: tuple(axis(d) for d in walk.dims[node]) for node in walk.shaped}
    literals: dict[str, dict[int, Axis]] = defaultdict(dict)
    for node, position, dim in walk.literals:
        literals[node.name][position] = axis(dim)
    return Inference(structures, shapes, literals)


def _input_shapes(trace: Trace) -> tuple[tuple[int, ...], ...]:
    nodes = [n for n in trace.graph.nodes if n.op == "placeholder" and n.name in trace.inputs]
    return tuple(shape for node in nodes if (shape := shape_of(node)) is not None)


def _group_name(slots: Sequence[Slot], taken: set[str]) -> str:
    stem = slots[0].tensor.rpartition(".")[0] or slots[0].tensor
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}:{count}"
    taken.add(name)
    return name


def _attributes(walk: Walk, axis: Any) -> tuple[Attribute, ...]:
    seen: dict[tuple[str, str], Attribute] = {}
    for module, attribute, dim in walk.attributes:
        resolved = axis(dim)
        if not isinstance(resolved, Fixed):
            seen[module, attribute] = Attribute(module, attribute, resolved)
    return tuple(seen.values())
