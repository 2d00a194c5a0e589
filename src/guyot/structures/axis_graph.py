"""The exported graph with a dimension variable for every dimension of every tensor.

One rule for each operator says which of them are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from guyot.core.locate import first_names, named_tensors
from guyot.core.reasons import Reason, ReasonKind
from guyot.core.torch_private import schema_of
from guyot.core.types import Slot
from guyot.structures.axes import SPACE, DimVar, DimVars, freeze, leaves, root_of
from guyot.structures.fixed_costs import macs_of_operator
from guyot.structures.trace import Trace, module_of, shape_of

BATCH = Reason(ReasonKind.NOT_UNITS, "the batch")
_INPUT = Reason(ReasonKind.NOT_UNITS, "an input of the network")
_CONSTANT = Reason(ReasonKind.NOT_UNITS, "a constant of forward")
OUTPUT = Reason(ReasonKind.NOT_UNITS, "an output of the network")

aten = torch.ops.aten
VIEWS = {
    aten.t.default,
    aten.transpose.int,
    aten.permute.default,
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.dim,
    aten.unsqueeze.default,
    aten.numpy_T.default,
    aten.mT.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.to.dtype,
}
"""Operators behind which a weight is still that weight."""


_PRODUCTS = {aten.mv.default, aten.mm.default, aten.matmul.default}
"""Operators that sum over one dim: a gate on another dim of a factor is a gate on the result."""

_FACTORS: dict[Any, int] = {aten.mul.Tensor: 2, aten.div.Tensor: 1, aten.square.default: 1}
"""Operators, entry by entry, that are 0 where one of so many first operands is 0."""


def base_of(node: fx.Node) -> fx.Node:
    """Return the node that a view is a view of; a node that is computed is its own base."""
    while node.target in VIEWS:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node


Rule = Callable[["AxisGraph", fx.Node], DimVars | list[DimVars]]
"""What an operator does to dims; returns the dims of its result."""


class AxisGraph:
    """Hold the dims of every node and offer rules the verbs that say what an operator does.

    Args:
        trace: the exported graph.
        model: the network that was traced.
        rule_for: the rule of an operator, or None.
        beside: the graph of the same network in another mode, whose tensors these are as well.

    Attributes:
        dims: node -> dims of its tensor result.
        outputs: node -> dims of each of its results, for operators with several.
        contracted: (tensor, dim) pairs that gates can multiply.
        own_units: pairs of dims: blocks, and units that each of them might lose on its own.
        blocked: (tensor, dim) -> what numbers the blocks that dimension 0 of it is made of.
        multiples: pairs of a dim and what the number of its entries has to be a multiple of.
    """

    def __init__(
        self,
        trace: Trace,
        model: nn.Module,
        rule_for: Callable[[Any], Rule | None],
        beside: AxisGraph | None = None,
    ) -> None:
        self.trace, self._rule_for = trace, rule_for
        self.tensors: dict[str, DimVars] = {}
        self.dims: dict[fx.Node, DimVars] = {}
        self.outputs: dict[fx.Node, list[DimVars]] = {}
        self.contracted: dict[Slot, None] = {}
        self.own_units: list[tuple[DimVar, DimVar]] = []
        self.blocked: dict[tuple[str, int], DimVar] = {}
        self.multiples: list[tuple[DimVar, int]] = []
        self.attributes: list[tuple[str, str, DimVar]] = []
        self.counts: list[tuple[fx.Node, str, tuple[DimVar, ...]]] = []
        self.shaped: list[fx.Node] = []
        self.literals: list[tuple[fx.Node, int, DimVar | DimVars]] = []
        self.batch = DimVar(0, BATCH)
        self._read_only: list[tuple[fx.Node, int, str]] = []
        self._parameters = {name for name, _ in model.named_parameters()}
        self._fed: set[fx.Node] = set()
        self._batched = False
        self.canonical = first_names(model)
        self.aliases: dict[str, list[str]] = defaultdict(list)
        for name, first in self.canonical.items():
            self.aliases[first].append(name)
        for name, tensor in named_tensors(model).items():
            if self.canonical[name] == name:
                self.tensors[name] = tuple(DimVar(size) for size in tensor.shape)
        if beside is not None:
            self.tensors, self.contracted = beside.tensors, beside.contracted
            self.own_units, self.blocked = beside.own_units, beside.blocked
            self.attributes, self.multiples = beside.attributes, beside.multiples

    def name(self, node: fx.Node) -> str:
        """Return the module that made the node, for messages."""
        return module_of(node) or str(node.target)

    def operands(self, node: fx.Node, *positions: int) -> tuple[DimVars, ...]:
        """Return the dims of positional tensor arguments."""
        return tuple(self.dims[node.args[p]] for p in positions)  # pyright: ignore[reportArgumentType]

    def argument(self, node: fx.Node, position: int, name: str, default: Any) -> Any:
        """Return a positional or keyword argument of the operator."""
        if position < len(node.args):
            return node.args[position]
        return node.kwargs.get(name, default)

    def named(self, node: fx.Node, name: str, default: Any) -> Any:
        """Return an argument by the name that the operator's schema gives it."""
        names = [argument.name for argument in schema_of(node.target).arguments]
        return self.argument(node, names.index(name), name, default) if name in names else default

    def has(self, node: fx.Node, position: int, name: str) -> bool:
        """Return whether an optional tensor argument was given."""
        return isinstance(self.argument(node, position, name, None), fx.Node)

    def fresh(self, node: fx.Node, start: int) -> DimVars:
        """Return new dims, which never shrink, for the node's result from dimension `start` on."""
        shape = shape_of(node)
        assert shape is not None
        return tuple(DimVar(size) if start == 0 else DimVar(size, SPACE) for size in shape[start:])

    def new(self, size: int) -> DimVar:
        """Return a dim that may shrink with whatever it meets."""
        return DimVar(size)

    def constant(self, size: int) -> DimVar:
        """Return a dim that never shrinks."""
        return DimVar(size, SPACE)

    def parameter(self, node: fx.Node, position: int | fx.Node) -> str | None:
        """Qualified name of the parameter or buffer at an argument; None when it is computed."""
        operand = self._operand(node, position)
        name = self.trace.tensors.get(getattr(operand, "name", ""))
        return None if name is None else self.canonical[name]

    def _operand(self, node: fx.Node, position: int | fx.Node) -> Any:
        """Return a positional argument, or one that is given as itself since it is in a list."""
        return position if isinstance(position, fx.Node) else node.args[position]

    def contract(self, node: fx.Node, position: int | fx.Node, dim: int) -> None:
        """Say that the operator sums over dimension `dim` of the weight at an argument."""
        operand = self._operand(node, position)
        assert isinstance(operand, fx.Node)
        if not self.reads(operand, dim):
            reason = f"{self.name(node)} reads it through a weight that is computed"
            freeze(self.dims[operand][dim], reason)

    def count_fixed(self, node: fx.Node) -> None:
        """Count what an operator costs that cannot shrink."""
        macs = macs_of_operator(node)
        if macs:
            samples = self.batch.size if self._batched else 1
            self.count(node, self.constant(max(1, round(macs / samples))))

    def reads(self, operand: fx.Node, dim: int) -> bool:
        """Let gates multiply the weight behind an operand; False when it is no weight.

        A weight may have been transposed or reshaped, as long as the dim is one of its own, or
        flattens some of them.
        """
        wanted = root_of(self.dims[operand][dim])
        parts = [part for part in wanted.parts if not self.is_batch(part)]
        parts = parts if wanted.kind == "product" else []
        for name, places in self._weights_behind(base_of(operand)):
            for place in sorted(places, key=lambda place: place != dim):  # both may be the units
                if root_of(self.tensors[name][place]) is wanted:
                    self.contracted[Slot(name, place)] = None
                    return True
            own = {root_of(self.tensors[name][place]): place for place in places}
            if parts and all(root_of(part) in own for part in parts):
                self.contracted |= {Slot(name, own[root_of(part)]): None for part in parts}
                return True
        return False

    def _weights_behind(self, node: fx.Node) -> Iterator[tuple[str, Sequence[int]]]:
        """Yield parameters whose gates act as gates of a node would, and in which dims.

        Behind a weight norm g v / |v| these are g where its rows are, and v where they are not: the
        norm of a row of v without some columns is that of the row with zeros there. Behind entries
        that are looked up by number (an expert's matrix) these are the other dims. Behind products
        and quotients these are the dims that are left, as in a spectral norm W / (u' W v): without
        a row of W the sum u' W v is that with zeros there. Sums are followed where nothing depends
        on an input: else they make activations, whose readers have weights of their own.
        """
        if node.target is aten.index.Tensor and len(node.args[1]) == 1:  # pyright: ignore[reportArgumentType]
            for name, places in self._weights_behind(base_of(node.all_input_nodes[0])):
                yield name, [place for place in places if place]
            return
        if node.target is aten._weight_norm.default:
            v, g = (base_of(source) for source in node.all_input_nodes)
            row = int(self.argument(node, 2, "dim", 0)) % len(self.dims[node])
            for name, _ in self._weights_behind(g):
                yield name, (row,)
            for name, places in self._weights_behind(v):
                yield name, [place for place in places if place != row]
            return
        if node.target in _FACTORS or (node.target in _PRODUCTS and node not in self._fed):
            own = {root_of(dim) for dim in self.dims[node]}
            for source in node.all_input_nodes[: _FACTORS.get(node.target)]:
                for name, places in self._weights_behind(base_of(source)):
                    dims = self.tensors[name]
                    yield name, [place for place in places if root_of(dims[place]) in own]
            return
        name = self.trace.tensors.get(node.name)
        if name is not None and self.canonical[name] in self._parameters:
            yield self.canonical[name], range(len(self.tensors[self.canonical[name]]))

    def only_read(self, operand: fx.Node, dims: Sequence[int], reason: str) -> None:
        """Say that some dims of a weight may shrink only where an operator contracts them.

        Args:
            operand: the weight.
            dims: of it.
            reason: of those that no operator contracts.
        """
        self._read_only += [(operand, dim, reason) for dim in dims]

    def blocks(self, node: fx.Node, position: int, block: DimVar, *own: DimVar) -> None:
        """Say that blocks might lose units of their own, all of them as many.

        Args:
            node: the operator.
            position: of its weight, whose dimension 0 is made of the blocks, outermost, and whose
                dimension 1 lists units of one block.
            block: numbers the blocks.
            own: the units of a block.
        """
        self.own_units += [(block, units) for units in own]
        if (name := self.parameter(node, position)) is not None:
            self.blocked[name, 1] = block

    def multiple(self, dim: DimVar, number: int) -> None:
        """Say that an operator refuses lengths of a dim that are no multiples of a number."""
        self.multiples.append((dim, number))

    def attribute(
        self, node: fx.Node, position: int | fx.Node, attribute: str, dim: DimVar
    ) -> None:
        """Say that an attribute of the modules that own a parameter states a dim's size.

        A weight that is computed from parameters belongs to the module that computes with it.
        """
        canonical = self.parameter(node, position)
        for name in () if canonical is None else self.aliases[canonical]:
            self.attributes.append((name.rpartition(".")[0], attribute, dim))
        operand = self._operand(node, position)
        if canonical is None and any(True for _ in self._weights_behind(base_of(operand))):
            self.attributes.append((module_of(node), attribute, dim))

    def own_attribute(self, node: fx.Node, attribute: str, dim: DimVar) -> None:
        """Say that an attribute of the module that runs an operator states a dim's size.

        Modules that have no such attribute are left alone.
        """
        self.attributes.append((module_of(node), attribute, dim))

    def count(self, node: fx.Node, *dims: DimVar) -> None:
        """Say that one sample costs the product of these dims in multiply-accumulates."""
        self.counts.append((node, self.name(node), dims))

    def is_batch(self, dim: DimVar) -> bool:
        """Return whether a dim numbers the samples."""
        return root_of(dim) is root_of(self.batch)

    def samples(self, dims: DimVars) -> DimVars:
        """Return dims without the batch, also where others are folded into it.

        What does not depend on an input is computed once, whatever the batch.
        """
        if not dims or not self._batched:
            return dims
        batch = root_of(self.batch)
        parts = [
            part
            for dim in map(root_of, dims)
            for part in (map(root_of, dim.parts) if dim.kind == "product" else [dim])
        ]
        if batch.size <= 1 or batch in parts:
            return tuple(part for part in parts if part is not batch and part.size > 1)
        first = root_of(dims[0])
        if first.size % batch.size:  # the samples were averaged before
            return dims
        folded = [self.constant(first.size // batch.size)] if first.size > batch.size else []
        return (*folded, *dims[1:])

    def literal_shape(self, node: fx.Node) -> None:
        """Say that the node's arguments state the shape of its result."""
        self.shaped.append(node)

    def literal(self, node: fx.Node, position: int, dim: DimVar | DimVars) -> None:
        """Say that an integer argument of the operator, or a list of them, states dims' sizes."""
        self.literals.append((node, position, dim))

    def literal_sizes(self, node: fx.Node, position: int, dims: Sequence[DimVar]) -> None:
        """Say that an argument lists the sizes of dims; where it says -1 it need not follow."""
        self.literals.append((node, position, tuple(dims)))

    def run(self) -> None:
        """Visit every node."""
        for node in self.trace.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "output":
                for operand in node.all_input_nodes:
                    for dim in self._all_dims(operand):
                        freeze(dim, OUTPUT)
            else:
                self._call(node)
        for operand, dim, reason in self._read_only:
            names = [name for name, _ in self._weights_behind(base_of(operand))]
            if not any(Slot(name, dim) in self.contracted for name in names):
                freeze(self.dims[operand][dim], reason)

    def _placeholder(self, node: fx.Node) -> None:
        shape = shape_of(node)
        if shape is None:
            return
        name = self.trace.tensors.get(node.name)
        if name is not None:
            self.dims[node] = self.tensors[self.canonical[name]]
        elif node.name in self.trace.inputs and shape:
            if self.batch.size == 0:
                self.batch = DimVar(shape[0], BATCH)
            first = self.batch if shape[0] == self.batch.size else DimVar(shape[0], SPACE)
            rest = [DimVar(size, _INPUT) for size in shape[1:]]
            self.dims[node] = (first, *rest)
            self._fed.add(node)
        else:
            self.dims[node] = tuple(DimVar(size, _CONSTANT) for size in shape)

    def _all_dims(self, node: fx.Node) -> Iterable[DimVar]:
        for dims in [self.dims.get(node, ()), *self.outputs.get(node, ())]:
            yield from dims

    def _call(self, node: fx.Node) -> None:
        if getattr(node.target, "__name__", "") == "getitem":
            source, position = node.args[0], node.args[1]
            if source in self._fed:
                self._fed.add(node)
            if source in self.outputs:
                self.dims[node] = self.outputs[source][position]  # pyright: ignore[reportArgumentType,reportCallIssue]
                return
        self._batched = any(source in self._fed for source in node.all_input_nodes)
        if self._batched:
            self._fed.add(node)
        rule = self._rule_for(node.target)
        result = self.unknown(node) if rule is None else rule(self, node)
        if isinstance(result, list):
            self.outputs[node] = result
            return
        shape = shape_of(node) or ()
        assert shape == tuple(dim.size for dim in result), (node, shape, result)
        self.dims[node] = result

    def unknown(self, node: fx.Node) -> Any:
        """Freeze what an operator touches that no rule covers; its multiply-accumulates stay.

        Where all that it touches is frozen anyway (positions, masks) nothing is lost.
        """
        reason = Reason(
            ReasonKind.NO_RULE, f"operator {node.target} in {self.name(node)} has no rule"
        )
        touched = [dim for operand in node.all_input_nodes for dim in self._all_dims(operand)]
        if all(leaf.reason or leaf.size == 1 for dim in touched for leaf in leaves(dim)):
            reason = SPACE
        for dim in touched:
            freeze(dim, reason)
        self.count_fixed(node)
        value = node.meta.get("val")
        if isinstance(value, (list, tuple)):
            return [tuple(DimVar(n, reason) for n in getattr(item, "shape", ())) for item in value]
        return tuple(DimVar(size, reason) for size in getattr(value, "shape", ()))
