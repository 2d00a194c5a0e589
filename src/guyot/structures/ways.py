"""The ways in which a branch can go.

Where the method that adds the branch is plain, its class is derived without the addition, and the
branch's modules are deleted. Where it does more with them, it stays as it is, and *stand-ins* take
the place of the branch's modules: the last before the addition returns zeros, the others return
their argument. A parameter of the caller that scales the branch stays then, since it is read: it
scales zeros, and its gradient is zero. Where the module that adds the branch does nothing else, it
stays and returns its own argument.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from guyot.core.errors import UnsupportedError
from guyot.core.torch_private import schema_of
from guyot.core.types import Layer, StandIn
from guyot.structures.branches import Branch, fed_nodes
from guyot.structures.rules.pointwise import overloads
from guyot.structures.trace import CallRecord, Trace
from guyot.structures.writers import ADDING, KEEPS_ZERO, WEIGHTED, Writers
from guyot.surgery import check_edit
from guyot.surgery.edits import Drop
from guyot.surgery.layers import drop_of

aten = torch.ops.aten
PRODUCTS = {
    aten.scaled_dot_product_attention.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.einsum.default,
}
"""What costs multiply-accumulates without weights."""
SCALING = set(overloads(["mul", "mul_"]))
"""Products of numbers, entry by entry."""


class Callers:
    """Which modules' calls made which operators of a graph.

    Operators on constants (positions, empty biases) do not count: they can be made anywhere.
    """

    def __init__(self, trace: Trace) -> None:
        self._made: dict[str, set[fx.Node]] = defaultdict(set)
        self._calls: Mapping[str, tuple[CallRecord, ...]] = {
            k: tuple(v) for k, v in trace.calls.items()
        }
        self._names: Mapping[str, str] = trace.tensors
        self._fed = fed_nodes(trace)
        self._real: set[fx.Node] = set()
        for node in trace.graph.nodes:
            known = node.op == "placeholder" and (
                node.name in trace.inputs or node.name in trace.tensors
            )
            if known or any(source in self._real for source in node.all_input_nodes):
                self._real.add(node)
                for path in _paths(node):
                    self._made[path].add(node)

    def contains(self, owner: str, branch: Branch) -> bool:
        """Say whether all of a branch runs inside the module that adds it."""
        return not owner or all(
            owner in _paths(node) for node in branch.nodes if node in self._real
        )

    def replaced(self, branch: Branch) -> Layer | str:
        """Return a branch whose modules have stand-ins, or the reason why nothing may be one."""
        inside = self.inside(branch)
        places = {node: path for path in inside for node in self._made[path]}
        for node in branch.nodes:
            if node not in places and (node.target in WEIGHTED or node.target in PRODUCTS):
                return "a module of it does more than this branch"
        last, scales = self._end(branch, places.keys())
        if last not in places:
            return "what its addition adds is not made by one module of it"
        within = tuple(f"{path}." for path in inside)
        tensors = tuple(name for name in branch.layer.tensors if name.startswith(within))
        writers = branch.layer.writers
        if not scales.issuperset(set(branch.layer.tensors) - set(tensors)):
            return "some of its parameters belong to a module that does more than this branch"
        if not set(writers).issubset(tensors):
            names = {key: name for key, name in self._names.items() if name in tensors}
            found = Writers(names, branch.nodes, self._fed).of(last)
            if found is None:
                return "what scales it belongs to a module that does more than this branch"
            writers = tuple(sorted(found))
        stand_ins = self._stand_ins(branch, inside, last)
        if isinstance(stand_ins, str):
            return stand_ins
        return replace(branch.layer, writers=writers, tensors=tensors, stand_ins=stand_ins)

    def _end(self, branch: Branch, made: Container[fx.Node]) -> tuple[fx.Node, set[str]]:
        """Return the last operator of a branch that its modules made, or where the search ended.

        Also the names of the tensors that scale what it gives.
        """
        last: fx.Node = branch.operand
        scales: set[str] = set()
        while last in branch.nodes and last not in made:
            keeps = last.target in KEEPS_ZERO or (last.target in ADDING and last.args[1] == 0)
            first = last.args[0]
            if keeps and isinstance(first, fx.Node):
                last = first
                continue
            factors = last.all_input_nodes if last.target in SCALING else []
            parts = [factor for factor in factors if factor in self._fed]
            if len(parts) != 1:
                break
            (last,) = parts
            scales |= self._read(set(factors) - {last})
        return last, scales

    def _read(self, nodes: set[fx.Node]) -> set[str]:
        """Return the names of the tensors that nodes are computed from."""
        names: set[str] = set()
        waiting = [*nodes]
        while waiting:
            node = waiting.pop()
            names |= {self._names[node.name]} if node.name in self._names else set()
            waiting += node.all_input_nodes
        return names

    def _stand_ins(
        self, branch: Branch, inside: Sequence[str], last: fx.Node
    ) -> tuple[StandIn, ...] | str:
        """Return what stands in for modules, or why nothing may; `last` is to give zeros."""
        found: list[StandIn] = []
        for path in inside:
            calls = self._calls.get(path, ())
            if len(calls) != 1 or calls[0].argument is None or not calls[0].tensor:
                return f"its module {path} is not called once with a tensor, for a tensor"
            zero, call = last in self._made[path], calls[0]
            assert call.argument is not None
            spec = StandIn(path, call.argument, call.others, zero)
            if zero:
                ones = None if call.alike else call.dimensions
                dense = self._in_place(branch, last)
                if dense and not call.alike:
                    return f"something is added in place to the result of its module {path}"
                spec = replace(spec, ones=ones, dense=dense, narrow=last.target in WEIGHTED)
            found.append(spec)
        return tuple(found)

    def passing(self, branch: Branch) -> StandIn | str:
        """Return how the module that adds a branch returns its argument, or why it may not."""
        owner = branch.layer.owner
        calls = self._calls.get(owner, ())
        if not owner or len(calls) != 1 or not (calls[0].alike and calls[0].tensor):
            return "the module that adds it is not called once, for a tensor of the same shape"
        others = self._made[owner] - branch.nodes - {branch.addition}
        given = set(branch.addition.all_input_nodes) - {branch.operand}
        if given & self._made[owner] or any(not _is_identity(node) for node in others):
            return "the module that adds it does something else as well"
        (call,) = calls
        assert call.argument is not None
        return StandIn(owner, call.argument, call.others, zero=False, stays=True)

    def _in_place(self, branch: Branch, last: fx.Node) -> bool:
        """Say whether something writes into what a branch makes, from its last module on.

        An addition in place writes into its first operand.
        """
        after = [n for n in branch.nodes if n > last]
        after += [branch.addition] if branch.addition.args[0] is branch.operand else []
        schemas = (schema_of(node.target) for node in after)
        return any(schema is not None and schema.is_mutable for schema in schemas)

    def _makes_only(self, path: str, branch: Branch) -> bool:
        """Say whether a module makes nothing but operators of a branch, and idle dropouts.

        A module that is only a dropout may be called in other places as well.
        """
        made = self._made[path]
        outside = made - branch.nodes
        return not outside or (all(map(_is_idle, outside)) and not all(map(_is_idle, made)))

    def inside(self, branch: Branch) -> tuple[str, ...]:
        """Return the outermost modules that make nothing but operators of a branch."""
        paths = dict.fromkeys(path for node in sorted(branch.nodes) for path in _paths(node))
        whole = [path for path in paths if path and self._makes_only(path, branch)]
        return tuple(
            path for path in whole if not any(path.startswith(f"{other}.") for other in whole)
        )


class Edits:
    """Which branches can be taken out of the methods that add them.

    Args:
        model: the network.
        alike: name of a module -> that of a module which is equal to it, so that both answers are.
    """

    def __init__(self, model: nn.Module, alike: Callable[[str], str] = str) -> None:
        self._model, self._alike = model, alike
        self._known: dict[tuple[str, Drop], str] = {}

    def trouble(self, layer: Layer) -> str:
        """Return why a branch cannot be taken out; "" if it can."""
        try:
            key = self._alike(layer.owner), drop_of(layer)
        except UnsupportedError as error:
            return str(error)
        if key not in self._known:
            try:
                check_edit(self._model.get_submodule(layer.owner), layer)
                self._known[key] = ""
            except UnsupportedError as error:
                self._known[key] = str(error)
        return self._known[key]


def ways_of(edits: Edits, callers: Callers, branch: Branch) -> list[Branch] | str:
    """The branch as it may be removed, the better way first, or the reasons why it cannot be."""
    found: list[Branch] = []
    reasons: list[str] = []
    layer = replace(branch.layer, modules=callers.inside(branch))
    if not callers.contains(layer.owner, branch):
        reasons.append("its branch runs outside the module that adds it")
    elif trouble := edits.trouble(layer):
        reasons.append(trouble)
    else:
        found.append(replace(branch, layer=layer))
    replaced = callers.replaced(replace(branch, layer=layer))
    if isinstance(replaced, str):
        reasons.append(replaced)
    else:
        found.append(replace(branch, layer=replaced))
    passing = callers.passing(branch)
    if isinstance(passing, StandIn):
        found.append(replace(branch, layer=replace(layer, stand_ins=(passing,))))
    return found or "; ".join(reasons)


def _is_identity(node: fx.Node) -> bool:
    """Say whether an operator returns its first operand: it divides or multiplies by 1."""
    scales = {aten.div.Tensor, aten.mul.Tensor, aten.div.Scalar, aten.mul.Scalar}
    return node.target in scales and bool(node.args[1] == 1)


def _is_idle(node: fx.Node) -> bool:
    """Say whether an operator is a dropout that drops nothing.

    It returns its very operand, so whatever reads that later seems to read the dropout.
    """
    return node.target is aten.dropout.default and not node.args[2]


def _paths(node: fx.Node) -> tuple[str, ...]:
    """Qualified names of the modules in whose calls a node was made, outermost first."""
    return tuple(entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values())
