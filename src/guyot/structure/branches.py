"""Residual branches that can go as a whole.

The *cone* of an operand of an addition is everything that serves only this operand: all users of
its operators lie in the cone or are the addition. An addition `a = u + v` closes a residual branch
u when u's cone reads v itself (the identity shortcut) or something that v's cone reads too (a
projection). What else the cone reads is context: masks, positions, an encoder's output. Where both
operands have weights, the branch is the one with more of them.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from guyot.structure.rules.pointwise import overloads
from guyot.structure.trace import Trace, call_of, module_of
from guyot.structure.walk import origin
from guyot.types import Layer

aten = torch.ops.aten

ADDITIONS = {aten.add.Tensor, aten.add_.Tensor}
PRODUCTS = {aten.mul.Tensor, aten.mul_.Tensor}
WEIGHTED: dict[object, tuple[int, ...]] = {
    aten.conv1d.default: (1, 2),
    aten.conv2d.default: (1, 2),
    aten.conv3d.default: (1, 2),
    aten.conv1d.padding: (1, 2),
    aten.conv2d.padding: (1, 2),
    aten.conv3d.padding: (1, 2),
    aten.linear.default: (1, 2),
    aten.addmm.default: (2, 0),
    aten.mm.default: (1,),
    aten.matmul.default: (1,),
}
"""Operators with multiply-accumulates; where they have their weight and bias."""
AFFINE = WEIGHTED | {
    aten.batch_norm.default: (1, 2),
    aten.layer_norm.default: (2, 3),
    aten.rms_norm.default: (2,),
    aten.group_norm.default: (2, 3),
}
"""Operators that are 0 when their weight and bias are."""
KEEPS_ZERO = frozenset(
    overloads(
        (
            "dropout dropout_ feature_dropout relu relu_ relu6 gelu silu silu_ tanh tanh_ "
            "hardswish hardswish_ leaky_relu leaky_relu_ elu elu_ contiguous clone alias to view "
            "reshape reshape_as view_as _unsafe_view flatten unflatten permute transpose squeeze "
            "unsqueeze roll pad constant_pad_nd slice index expand chunk split split_with_sizes "
            "unbind"
        ).split()
    )
) | {operator.getitem}
RELU = {aten.relu.default, aten.relu_.default}


@dataclass(frozen=True)
class Branch:
    """A layer with its place in the graph.

    Attributes:
        layer: what the rest of guyot sees.
        addition: the node that adds the branch to the shortcut.
        nodes: the operators that go with the branch.
    """

    layer: Layer
    addition: fx.Node
    nodes: frozenset[fx.Node]

    @property
    def operand(self) -> fx.Node:
        """The node whose result the branch adds."""
        operand = self.addition.args[self.layer.operand]
        assert isinstance(operand, fx.Node)
        return operand


@dataclass(frozen=True)
class _Cone:
    """What serves one operand of an addition only, and what it reads."""

    nodes: frozenset[fx.Node]
    reads: frozenset[fx.Node]

    @property
    def weights(self) -> int:
        return sum(node.target in WEIGHTED for node in self.nodes)


def _cone(operand: fx.Node, addition: fx.Node, fed: set[fx.Node]) -> _Cone:
    others = {o for o in addition.all_input_nodes if o is not operand}
    nodes: set[fx.Node] = set()
    reads: set[fx.Node] = set()
    waiting = {operand}
    while waiting:
        node = max(waiting)
        waiting.discard(node)
        users = set(node.users)
        serves = users <= nodes or (node is operand and users == {addition})
        if serves and node not in others and node.op != "placeholder":
            nodes.add(node)
            waiting.update(node.all_input_nodes)
        elif node in fed:
            reads.add(node)
    return _Cone(frozenset(nodes), frozenset(reads))


def _fed(trace: Trace) -> set[fx.Node]:
    """Nodes that depend on an input (parameters do not count)."""
    fed: set[fx.Node] = set()
    for node in trace.graph.nodes:
        given = node.op == "placeholder" and node.name in trace.inputs
        if given or any(source in fed for source in node.all_input_nodes):
            fed.add(node)
    return fed


def _sides(node: fx.Node, fed: set[fx.Node]) -> Iterator[tuple[int, _Cone, fx.Node]]:
    """Operands of an addition that are branches, the heavier first: position, cone, shortcut."""
    operands = node.all_input_nodes
    cones = [_cone(operand, node, fed) for operand in operands]
    for side in sorted((0, 1), key=lambda side: -cones[side].weights):
        cone, shortcut = cones[side], operands[1 - side]
        if cone.weights and (shortcut in cone.reads or cone.reads & cones[1 - side].reads):
            yield (
                next(i for i, arg in enumerate(node.args[:2]) if arg is operands[side]),
                cone,
                shortcut,
            )


def _writers(node: fx.Node, nodes: frozenset[fx.Node], trace: Trace) -> tuple[str, ...] | None:
    """Parameters of the last affine operator of a branch; None when there is none.

    Where the branch ends in a sum both summands must be 0, where it ends in a product one factor.
    """
    while node in nodes:
        places = AFFINE.get(node.target)
        if places is not None:
            return _parameters(node, places, trace)
        if node.target in ADDITIONS or node.target in PRODUCTS:
            found = [_term(arg, nodes, trace) for arg in node.args[:2]]
            if node.target in PRODUCTS:
                return next((names for names in found if names), None)
            if None in found:
                return None
            return tuple(name for names in found if names for name in names)
        if node.target not in KEEPS_ZERO:
            return None
        node = node.args[0]  # pyright: ignore[reportAssignmentType]
    return None


def _term(arg: object, nodes: frozenset[fx.Node], trace: Trace) -> tuple[str, ...] | None:
    """Parameters that make one operand of a sum or product 0."""
    if not isinstance(arg, fx.Node):
        return None
    name = trace.tensors.get(origin(arg).name)
    return _writers(arg, nodes, trace) if name is None else (name,)


def _parameters(node: fx.Node, places: tuple[int, ...], trace: Trace) -> tuple[str, ...] | None:
    """The weight and, if there is one, the bias of an operator; None when one is computed."""
    given = [node.args[place] for place in places if place < len(node.args)]
    names = [trace.tensors.get(origin(a).name) for a in given if isinstance(a, fx.Node)]
    if not names or given[0] is None or None in names:
        return None
    return tuple(name for name in names if name is not None)


class _Uses:
    """Which operators use which tensor; names are those that a tensor has first."""

    def __init__(self, trace: Trace, canonical: dict[str, str]) -> None:
        self.users: dict[str, set[fx.Node]] = defaultdict(set)
        self.read: dict[fx.Node, list[str]] = defaultdict(list)
        for node in trace.graph.nodes:
            for source in node.all_input_nodes:
                if source.name in trace.tensors:
                    name = canonical[trace.tensors[source.name]]
                    self.users[name].add(node)
                    self.read[node].append(name)
        self.used: dict[str, list[str]] = defaultdict(list)
        self.idle: dict[str, list[str]] = defaultdict(list)
        for name in dict.fromkeys(canonical.values()):
            kind = self.used if name in self.users else self.idle
            kind[name.rpartition(".")[0]].append(name)

    def only_in(self, nodes: frozenset[fx.Node]) -> tuple[str, ...]:
        """Tensors that only these operators use, and counters and the like beside them."""
        read = dict.fromkeys(name for node in sorted(nodes) for name in self.read.get(node, ()))
        own = [name for name in read if self.users[name] <= nodes]
        modules = dict.fromkeys(name.rpartition(".")[0] for name in own)
        whole = [module for module in modules if set(self.used[module]).issubset(own)]
        return (*own, *(name for module in whole for name in self.idle.get(module, ())))


def find_branches(trace: Trace, canonical: dict[str, str]) -> tuple[list[Branch], dict[str, str]]:
    """All removable residual branches, and for those that are not: name -> reason.

    Args:
        trace: the exported graph.
        canonical: qualified name -> the first name of the same tensor.
    """
    fed = _fed(trace)
    uses = _Uses(trace, canonical)
    position: dict[str, int] = defaultdict(int)
    taken: set[str] = set()
    calls: dict[str, set[str]] = defaultdict(set)
    branches: list[Branch] = []
    refused: dict[str, str] = {}
    for node in trace.graph.nodes:
        if node.op != "call_function" or not call_of(node):
            continue
        calls[module_of(node)].add(call_of(node))
        if node.target not in ADDITIONS or len(node.all_input_nodes) != 2:
            continue
        owner = module_of(node)
        place = position[owner]
        position[owner] += 1
        if node not in fed or not (sides := list(_sides(node, fed))):
            continue
        name = owner or "(root)"
        for operand, cone, shortcut in sides:
            writers = _writers(node.args[operand], cone.nodes, trace)  # pyright: ignore[reportArgumentType]
            if writers is None:
                continue
            name = name if name not in taken else f"{name}:{place + 1}"
            taken.add(name)
            layer = Layer(
                name=name,
                writers=tuple(canonical[writer] for writer in writers),
                owner=owner,
                addition=place,
                operand=operand,
                tensors=uses.only_in(cone.nodes),
                rectified=shortcut.target in RELU and shortcut in cone.reads,
            )
            branches.append(Branch(layer, node, cone.nodes))
            break
        else:
            refused[owner] = "its residual branch does not end in an affine operator"
    return _removable(branches, calls, refused), refused


def _removable(
    branches: list[Branch], calls: dict[str, set[str]], refused: dict[str, str]
) -> list[Branch]:
    kept: list[Branch] = []
    for branch in branches:
        if len(calls[branch.layer.owner]) > 1:
            refused[branch.layer.name] = "its module is called more than once"
        elif set(branch.layer.writers) - set(branch.layer.tensors):
            refused[branch.layer.name] = "the parameters that end its branch are shared"
        else:
            kept.append(branch)
    return kept
