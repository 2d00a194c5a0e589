"""Residual branches that can go as a whole.

The *cone* of an operand of an addition is everything that serves only this operand: all users of
its operators lie in the cone or are the addition. An addition `a = u + v` closes a residual branch
u when u's cone reads v itself (the identity shortcut), maybe through a norm that parallel branches
share, or something that v's cone reads too, as it is, pooled (a projection), or with dropout (an
adapter). What else the cone reads is context: masks, positions, an encoder's output. Where both
operands have weights, the branch is the one with more of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from guyot.core.reasons import Reason, ReasonKind
from guyot.core.torch_private import schema_of
from guyot.core.types import Layer, Place
from guyot.structures.places import ADDITIONS, places_of
from guyot.structures.rules.pointwise import overloads
from guyot.structures.trace import Trace, call_of, module_of
from guyot.structures.writers import WEIGHTED, Writers

aten = torch.ops.aten

_NOT_AFFINE = Reason(ReasonKind.BRANCH, "its residual branch does not end in an affine operator")
_CALLED_AGAIN = Reason(ReasonKind.BRANCH, "its module is called more than once")
_SHARED = Reason(ReasonKind.BRANCH, "the parameters that end its branch are shared")
POOLS = set(overloads("avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d".split()))
DROPOUTS = set(overloads(["dropout", "feature_dropout"]))


@dataclass(frozen=True)
class Branch:
    """A layer with its place in the graph.

    Attributes:
        layer: what other parts of guyot see.
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


def _cone(operand: fx.Node, addition: fx.Node, fed: set[fx.Node], used: set[fx.Node]) -> _Cone:
    others = {o for o in addition.all_input_nodes if o is not operand}
    nodes: set[fx.Node] = set()
    reads: set[fx.Node] = set()
    waiting = {operand}
    while waiting:
        node = max(waiting)
        waiting.discard(node)
        users = used.intersection(node.users)
        serves = users <= nodes or (node is operand and users == {addition})
        if serves and node not in others and node.op != "placeholder":
            nodes.add(node)
            waiting.update(node.all_input_nodes)
        elif node in fed or node in others:
            reads.add(node)
    written = {user for node in nodes for user in node.users if user not in used}
    while written:  # what writes into a tensor of the branch and is not used itself
        nodes |= written
        written = {user for node in written for user in node.users} - nodes
    return _Cone(frozenset(nodes), frozenset(reads))


def fed_nodes(trace: Trace) -> set[fx.Node]:
    """Return the nodes that depend on an input (parameters do not count)."""
    fed: set[fx.Node] = set()
    for node in trace.graph.nodes:
        given = node.op == "placeholder" and node.name in trace.inputs
        if given or any(source in fed for source in node.all_input_nodes):
            fed.add(node)
    return fed


def _used(trace: Trace) -> set[fx.Node]:
    """Return the nodes whose results reach an output; others only write into tensors that exist."""
    used: set[fx.Node] = set()
    for node in reversed(trace.graph.nodes):
        if node.op == "output" or any(user in used for user in node.users):
            used.add(node)
    return used


def _sides(node: fx.Node, fed: set[fx.Node], used: set[fx.Node]) -> Iterator[tuple[int, _Cone]]:
    """Yield operands of an addition that are branches: position and cone.

    What the same module has added up before comes last, then the heavier is first, then what an
    addition in place does not write.
    """
    operands = node.all_input_nodes
    cones = [_cone(operand, node, fed, used) for operand in operands]
    sums = [n.target in ADDITIONS and module_of(n) == module_of(node) for n in operands]
    order = (1, 0) if schema_of(node.target).is_mutable else (0, 1)
    for side in sorted(order, key=lambda side: (sums[side], -cones[side].weights)):
        cone, shortcut = cones[side], operands[1 - side]
        if cone.weights and (
            any(_normalised(read, shortcut, fed) for read in cone.reads)
            or _before(cone.reads, DROPOUTS) & _before(cones[1 - side].reads, POOLS | DROPOUTS)
        ):
            yield (
                next(i for i, arg in enumerate(node.args[:2]) if arg is operands[side]),
                cone,
            )


def _normalised(node: fx.Node, source: fx.Node, fed: set[fx.Node]) -> bool:
    """Return whether a node is another, or made from that alone without convolution or matrix."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is source or node not in fed or node in seen:
            continue
        if node.target in WEIGHTED or not node.all_input_nodes:
            return False
        seen.add(node)
        waiting.extend(node.all_input_nodes)
    return True


def _before(reads: frozenset[fx.Node], operators: set[object]) -> set[fx.Node]:
    """Return what a cone reads, and what these operators made that from."""
    found: set[fx.Node] = set()
    for node in reads:
        found.add(node)
        while node.target in operators:
            (node,) = node.all_input_nodes
            found.add(node)
    return found


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
        """Return the tensors that only these operators use, and counters beside them."""
        read = dict.fromkeys(name for node in sorted(nodes) for name in self.read.get(node, ()))
        own = [name for name in read if self.users[name] <= nodes]
        modules = dict.fromkeys(name.rpartition(".")[0] for name in own)
        whole = [module for module in modules if set(self.used[module]).issubset(own)]
        return (*own, *(name for module in whole for name in self.idle.get(module, ())))


def find_branches(
    trace: Trace, canonical: dict[str, str], trainable: set[str]
) -> tuple[list[Branch], dict[str, Reason]]:
    """Return all removable residual branches, and for the others name -> reason.

    Args:
        trace: the exported graph.
        canonical: qualified name -> the first name of the same tensor.
        trainable: first names of the parameters; buffers have gates where no parameters end it.
    """
    firsts = {key: canonical[name] for key, name in trace.tensors.items()}
    parameters = {key: name for key, name in firsts.items() if name in trainable}
    fed, used = fed_nodes(trace), _used(trace)
    uses, places = _Uses(trace, canonical), places_of(trace)
    times = Counter[tuple[str, Place | None]](
        (module_of(node), place) for node, place in places.items()
    )
    position: dict[str, int] = defaultdict(int)
    taken: set[str] = set()
    calls: dict[str, set[str]] = defaultdict(set)
    branches: list[Branch] = []
    refused: dict[str, Reason] = {}
    for node in trace.graph.nodes:
        if node.op != "call_function" or not call_of(node):
            continue
        calls[module_of(node)].add(call_of(node))
        if node.target not in ADDITIONS or len(node.all_input_nodes) != 2:
            continue
        owner = module_of(node)
        place = position[owner]
        position[owner] += 1
        if node not in fed or not (sides := list(_sides(node, fed, used))):
            continue
        name = owner or "(root)"
        for operand, cone in sides:
            writers = next(
                (
                    found
                    for names in (parameters, firsts)
                    if (found := Writers(names, cone.nodes, fed).of(node.args[operand]))
                ),
                None,
            )
            if writers is None:
                continue
            name = name if name not in taken else f"{name}:{place + 1}"
            taken.add(name)
            layer = Layer(
                name=name,
                writers=tuple(sorted(writers)),
                owner=owner,
                operand=operand,
                tensors=uses.only_in(cone.nodes),
                place=places.get(node) if times[owner, places.get(node)] == 1 else None,
            )
            branches.append(Branch(layer, node, cone.nodes))
            break
        else:
            refused[owner] = _NOT_AFFINE
    return _removable(branches, calls, refused), refused


def _removable(
    branches: list[Branch], calls: dict[str, set[str]], refused: dict[str, Reason]
) -> list[Branch]:
    kept: list[Branch] = []
    for branch in branches:
        if len(calls[branch.layer.owner]) > 1:
            refused[branch.layer.name] = _CALLED_AGAIN
        elif set(branch.layer.writers) - set(branch.layer.tensors):
            refused[branch.layer.name] = _SHARED
        else:
            kept.append(branch)
    return kept
