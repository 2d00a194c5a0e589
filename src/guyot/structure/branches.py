"""Residual branches that can go as a whole.

An addition `a = u + v` closes a residual branch when everything between its immediate dominator
`s` (the last tensor through which all of `a` flows) and one operand is used by nothing else. The
other operand is the shortcut: `s` itself, or a path from `s`. Where both operands have weights,
the branch is the one with more of them and the other is the (downsampling) shortcut.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import fx

from guyot.structure.trace import Trace, call_of, module_of
from guyot.types import Layer

aten = torch.ops.aten

ADDITIONS = {aten.add.Tensor, aten.add_.Tensor}
WEIGHTED = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv2d.padding,
    aten.linear.default,
}
AFFINE = {aten.batch_norm.default, aten.layer_norm.default}
KEEPS_ZERO = {
    aten.dropout.default,
    aten.dropout_.default,
    aten.relu.default,
    aten.relu_.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
}
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


def _dominators(trace: Trace) -> dict[fx.Node, fx.Node | None]:
    """Immediate dominator of every node that depends on an input (parameters do not count)."""
    parent: dict[fx.Node, fx.Node | None] = {}
    depth: dict[fx.Node, int] = {}
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            if node.name in trace.inputs:
                parent[node], depth[node] = None, 0
            continue
        sources = [source for source in node.all_input_nodes if source in depth]
        if not sources:
            continue
        common: fx.Node | None = sources[0]
        for other in sources[1:]:
            walk: fx.Node | None = other
            while common is not walk and common is not None and walk is not None:
                if depth[common] >= depth[walk]:
                    common = parent[common]
                else:
                    walk = parent[walk]
            common = common if common is walk else None
        parent[node] = common
        depth[node] = 0 if common is None else depth[common] + 1
    return parent


def _between(start: fx.Node, end: fx.Node, known: dict[fx.Node, fx.Node | None]) -> set[fx.Node]:
    """Nodes on paths from `start` (exclusive) to `end` (inclusive)."""
    found: set[fx.Node] = set()
    stack = [end]
    while stack:
        node = stack.pop()
        if node is start or node in found or node not in known:
            continue
        found.add(node)
        stack.extend(node.all_input_nodes)
    return found


def _weights(nodes: set[fx.Node]) -> int:
    return sum(node.target in WEIGHTED for node in nodes)


def _writers(operand: fx.Node, nodes: set[fx.Node], trace: Trace) -> tuple[str, ...] | None:
    """Parameters of the last affine operator of a branch; None when there is none."""
    node = operand
    while node in nodes:
        if node.target in WEIGHTED or node.target in AFFINE:
            first = 1 if node.target is not aten.layer_norm.default else 2
            placeholders = [a for a in node.args[first : first + 2] if isinstance(a, fx.Node)]
            names = [trace.tensors.get(p.name) for p in placeholders]
            if not names or None in names or (node.target in AFFINE and len(names) < 2):
                return None
            return tuple(name for name in names if name is not None)
        if node.target not in KEEPS_ZERO:
            return None
        node = node.args[0]
    return None


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

    def only_in(self, nodes: set[fx.Node]) -> tuple[str, ...]:
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
    parent = _dominators(trace)
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
        start = parent.get(node)
        found = _branch_of(node, start, parent)
        if start is None or found is None:
            continue
        operand, nodes = found
        branch_node = node.args[operand]
        writers = _writers(branch_node, nodes, trace)
        if writers is None:
            refused[owner] = "its residual branch does not end in an affine operator"
            continue
        name = owner or "(root)"
        name = name if name not in taken else f"{name}:{place + 1}"
        taken.add(name)
        layer = Layer(
            name=name,
            writers=tuple(canonical[writer] for writer in writers),
            owner=owner,
            addition=place,
            operand=operand,
            tensors=uses.only_in(nodes),
            rectified=start.target in RELU and node.args[1 - operand] is start,
        )
        branches.append(Branch(layer, node, frozenset(nodes)))
    return _removable(branches, calls, refused), refused


def _branch_of(
    node: fx.Node, start: fx.Node | None, parent: dict[fx.Node, fx.Node | None]
) -> tuple[int, set[fx.Node]] | None:
    """Which operand of an addition is a branch that nothing else uses, and its nodes."""
    if start is None:
        return None
    sides = [_between(start, operand, parent) for operand in node.all_input_nodes]
    order = sorted((0, 1), key=lambda side: -_weights(sides[side]))
    for side in order:
        nodes, other = sides[side], sides[1 - side]
        operand = node.all_input_nodes[side]
        exclusive = all(user in nodes or user is node for n in nodes for user in n.users)
        if _weights(nodes) and exclusive and not nodes & other:
            position = next(i for i, arg in enumerate(node.args[:2]) if arg is operand)
            return position, nodes
    return None


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
