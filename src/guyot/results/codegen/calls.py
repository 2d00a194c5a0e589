"""The exported graph as a tree of module calls: who computes what, from what, for whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from guyot.core.torch_private import schema_of

_SILENT = {"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size"}


class Scattered(Exception):
    """The call of a module cannot be told apart from what surrounds it.

    Attributes:
        key: of the call.
    """

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


@dataclass(eq=False)
class ModuleCall:
    """One call of a module.

    Attributes:
        key: differs between the calls of one module.
        path: qualified name of the module; "" is the root.
        items: operators of its own `forward` and calls of other modules, in order.
        inputs: values that come from outside, in order of first use; the user's for the root.
        outputs: values that are used outside, in order.
    """

    key: str
    path: str
    items: list[fx.Node | ModuleCall] = field(default_factory=list)
    inputs: tuple[fx.Node, ...] = ()
    outputs: tuple[fx.Node, ...] = ()

    def nodes(self) -> Iterator[fx.Node]:
        """Return all operators, also those of inner calls."""
        for item in self.items:
            if isinstance(item, ModuleCall):
                yield from item.nodes()
            else:
                yield item

    def calls(self) -> Iterator[ModuleCall]:
        """Return this call and all inside."""
        yield self
        for item in self.items:
            if isinstance(item, ModuleCall):
                yield from item.calls()


@dataclass(frozen=True)
class Source:
    """What source code is made from.

    Attributes:
        model: the root module.
        graph: its operators, by `torch.export`, in evaluation mode.
        tensors: placeholder -> every qualified name of its parameter, buffer or constant.
        constants: name in `tensors` -> a tensor that `forward` made up.
        literals: placeholder -> source text of a constant that is one number.
        inputs: placeholder of a user's input -> its name in `forward`.
        outputs: what `forward` gives back: nested tuples, lists and dicts of nodes and constants.
    """

    model: nn.Module
    graph: fx.Graph
    tensors: Mapping[str, tuple[str, ...]]
    constants: Mapping[str, Tensor]
    literals: Mapping[str, str]
    inputs: Mapping[str, str]
    outputs: Any

    def own_name(self, node: fx.Node, path: str) -> str | None:
        """Return a tensor's name relative to a module that holds it; None when it does not."""
        prefix = f"{path}." if path else ""
        for name in self.tensors.get(node.name, ()) if node.op == "placeholder" else ():
            if name.startswith(prefix):
                return name.removeprefix(prefix)
        return None


def symbolic(node: fx.Node) -> bool:
    """Tell whether a node is a number made from the shapes of tensors."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat)


def mutates(node: fx.Node) -> bool:
    """Tell whether an operator writes to an operand."""
    schema = schema_of(node.target)
    return schema is not None and schema.is_mutable


def operands(node: fx.Node) -> list[fx.Node]:
    """Return tensors that an operator takes, once per occurrence."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), lambda n: found.append(n) or n)
    return [n for n in found if not symbolic(n)]


def call_tree(source: Source, flat: set[str]) -> ModuleCall:
    """Return the tree of calls.

    Args:
        source: model and graph.
        flat: keys of calls that count as operators of their caller.

    Raises:
        Scattered: a call that must be put into `flat`.
    """
    root = ModuleCall("", "")
    modules = dict(source.model.named_modules(remove_duplicate=False))
    first = {id(module): name for name, module in source.model.named_modules()}
    open_calls, closed = [root], set[str]()
    live = [node for node in _live(source.graph) if node.name not in source.literals]
    for node in live:
        chain = [root.key]
        path = root.path
        keys = {root.key: path}
        for key, (name, _) in (node.meta.get("nn_module_stack") or {}).items():
            name = first[id(modules[name])] if name in modules else ""
            inside = name and name.startswith(f"{path}." if path else "")
            if inside and key not in flat:
                chain.append(key)
                path = keys[key] = name
        depth = 1
        while depth < min(len(chain), len(open_calls)) and open_calls[depth].key == chain[depth]:
            depth += 1
        closed.update(call.key for call in open_calls[depth:])
        del open_calls[depth:]
        for key in chain[depth:]:
            if key in closed:
                raise Scattered(key)
            call = ModuleCall(key, keys[key])
            open_calls[-1].items.append(call)
            open_calls.append(call)
        open_calls[-1].items.append(node)
    (output,) = source.graph.find_nodes(op="output")
    for call in root.calls():
        _connect(source, call, {*live, output})
    root.outputs = tuple(output.all_input_nodes)
    return root


def _live(graph: fx.Graph) -> list[fx.Node]:
    """Return what the output or a written tensor depends on, without numbers and checks."""
    needed: set[fx.Node] = set()
    kept: list[fx.Node] = []
    for node in reversed(graph.nodes):
        packet = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if packet in _SILENT:
            continue
        if node.op == "output" or node in needed or mutates(node):
            needed.update(node.all_input_nodes)
            if node.op == "call_function" and not symbolic(node):
                kept.append(node)
    return kept[::-1]


def _connect(source: Source, call: ModuleCall, live: set[fx.Node]) -> None:
    """Find what a call takes and gives."""
    inside = set(call.nodes())
    inputs: dict[fx.Node, None] = {}
    for node in source.graph.find_nodes(op="placeholder") if not call.key else ():
        if node.name in source.inputs:
            inputs[node] = None
    for node in call.nodes():
        for value in operands(node):
            known = value in inside or value.name in source.literals
            if not known and source.own_name(value, call.path) is None:
                inputs[value] = None
    call.inputs = tuple(inputs)
    call.outputs = tuple(
        node
        for node in call.nodes()
        if any(user in live and user not in inside for user in node.users)
    )
