"""The ways in which a branch can go.

Where the method that adds the branch is plain, its class is derived without the addition, and the
branch's modules are deleted. Where it does more with them, it stays as it is, and *stand-ins* take
the place of the branch's modules: the last before the addition returns zeros, the others return
their argument. Where the module that adds the branch does nothing else, it stays and returns its
own argument.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx, nn

from guyot.core.errors import UnsupportedError
from guyot.core.torch_private import schema_of
from guyot.core.types import StandIn
from guyot.structures.branches import Branch
from guyot.structures.trace import CallRecord, Trace
from guyot.structures.writers import KEEPS_ZERO, WEIGHTED
from guyot.surgery import check_edit

aten = torch.ops.aten
PRODUCTS = {
    aten.scaled_dot_product_attention.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.einsum.default,
}
"""What costs multiply-accumulates without weights."""


class Callers:
    """Which modules' calls made which operators of a graph.

    Operators on constants (positions, empty biases) do not count: they can be made anywhere.
    """

    def __init__(self, trace: Trace) -> None:
        self._made: dict[str, set[fx.Node]] = defaultdict(set)
        self._calls: Mapping[str, tuple[CallRecord, ...]] = {
            k: tuple(v) for k, v in trace.calls.items()
        }
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

    def stand_ins(self, branch: Branch) -> tuple[StandIn, ...] | str:
        """Return what may stand in for the modules of a branch, or the reason why nothing may."""
        inside = self.inside(branch)
        places = {node: path for path in inside for node in self._made[path]}
        for node in branch.nodes:
            if node not in places and (node.target in WEIGHTED or node.target in PRODUCTS):
                return "a module of it does more than this branch"
        last = branch.operand
        while last not in places and last in branch.nodes and last.target in KEEPS_ZERO:
            last = last.args[0]  # pyright: ignore[reportAssignmentType]
        if last not in places:
            return "what its addition adds is not made by one module of it"
        names = branch.layer.tensors
        if any(not name.startswith(tuple(f"{path}." for path in inside)) for name in names):
            return "some of its parameters belong to a module that does more than this branch"
        found: list[StandIn] = []
        for path in inside:
            calls = self._calls.get(path, ())
            if len(calls) != 1 or calls[0].argument is None or not calls[0].tensor:
                return f"its module {path} is not called once with a tensor, for a tensor"
            zero, call = path == places[last], calls[0]
            assert call.argument is not None
            spec = StandIn(path, call.argument, call.rest, zero)
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
        return StandIn(owner, call.argument, call.rest, zero=False, stays=True)

    def _in_place(self, branch: Branch, last: fx.Node) -> bool:
        """Say whether something writes into what a branch makes, from its last module on."""
        after = [n for n in (*branch.nodes, branch.addition) if n > last]
        schemas = (schema_of(node.target) for node in after)
        return any(schema is not None and schema.is_mutable for schema in schemas)

    def _makes_only(self, path: str, branch: Branch) -> bool:
        """Say whether a module makes nothing but operators of a branch, and idle dropouts.

        A module that is only a dropout may be called elsewhere as well.
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


def ways_of(model: nn.Module, callers: Callers, branch: Branch) -> list[Branch] | str:
    """The branch as it may be removed, the better way first, or the reasons why it cannot be."""
    found: list[Branch] = []
    reasons: list[str] = []
    layer = replace(branch.layer, modules=callers.inside(branch))
    if not callers.contains(layer.owner, branch):
        reasons.append("its branch runs outside the module that adds it")
    else:
        try:
            check_edit(model.get_submodule(layer.owner), layer)
            found.append(replace(branch, layer=layer))
        except UnsupportedError as error:
            reasons.append(str(error))
    stand_ins = callers.stand_ins(branch)
    if isinstance(stand_ins, str):
        reasons.append(stand_ins)
    else:
        found.append(replace(branch, layer=replace(layer, stand_ins=stand_ins)))
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
