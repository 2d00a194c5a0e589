"""Remove residual branches from user modules: what is left is a smaller, plain module."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import fx, nn

from guyot.core.errors import UnsupportedError
from guyot.core.randomness import isolated
from guyot.core.types import Layer

_ADDITIONS = {operator.add, operator.iadd, torch.add}
_ADD_METHODS = {"add", "add_"}
_RELU_FUNCTIONS = {torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_}


class Shallow(fx.Tracer):
    """Trace one module's own `forward`; every child is a leaf and buffers stay buffers."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Every child is one."""
        return True


def in_both_modes(
    module: nn.Module, name: str, purpose: str, trace: Callable[[nn.Module], fx.Graph]
) -> tuple[fx.Graph, fx.Graph]:
    """The graphs of one module's `forward` in training and in evaluation mode.

    Raises:
        UnsupportedError: `forward` cannot be traced, or draws random numbers as it is traced: the
            graph would have one outcome for ever.
    """
    was_training = module.training
    graphs: list[fx.Graph] = []
    problem = f"the forward of {name} ({type(module).__name__}) cannot be {purpose}"
    try:
        with isolated() as drawn:
            for mode in (True, False):
                module.training = mode
                graphs.append(trace(module))
            if drawn():
                raise UnsupportedError("what it does depends on random numbers")
    except Exception as error:
        raise UnsupportedError(f"{problem}: {str(error).strip().splitlines()[0]}") from error
    finally:
        module.training = was_training
    return graphs[0], graphs[1]


def _own_graph(owner: nn.Module, name: str) -> fx.Graph:
    """The graph of one module's `forward`, the same in both modes.

    Raises:
        UnsupportedError: `forward` cannot be traced, or depends on `self.training` or on chance.
    """
    purpose = "rebuilt without its branch"
    training, evaluating = in_both_modes(owner, name, purpose, Shallow().trace)
    if str(training) != str(evaluating):
        raise UnsupportedError(f"the forward of {name} depends on self.training")
    return training


def _is_addition(node: fx.Node) -> bool:
    added = (node.op == "call_function" and node.target in _ADDITIONS) or (
        node.op == "call_method" and node.target in _ADD_METHODS
    )
    return added and all(isinstance(arg, fx.Node) for arg in node.args[:2])


def check_rewritable(owner: nn.Module, name: str, addition: int) -> None:
    """Refuse an owner whose `forward` does not show the addition of a branch.

    Raises:
        UnsupportedError: `forward` cannot be traced, or the addition is not in it.
    """
    _addition(_own_graph(owner, name), name, addition)


def _addition(graph: fx.Graph, name: str, number: int) -> fx.Node:
    """An addition of a module's `forward` by its number."""
    additions = [node for node in graph.nodes if _is_addition(node)]
    if number >= len(additions):
        raise UnsupportedError(
            f"addition {number + 1} of {name} is not in the trace of its forward"
        )
    return additions[number]


def without_branches(owner: nn.Module, name: str, layers: Sequence[Layer]) -> nn.Module:
    """The module with the branches of the given layers gone.

    A chain of what remains becomes an `nn.Sequential` under the same child names (so parameter
    names do not change), nothing at all an `nn.Identity`, anything else an `fx.GraphModule`.

    Raises:
        UnsupportedError: `forward` cannot be rebuilt.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = nn.Conv2d(4, 4, 3, padding=1)
        ...     def forward(self, x):
        ...         return x + self.conv(x)
        >>> layer = Layer("", (), owner="", addition=0, operand=1, tensors=())
        >>> without_branches(Block(), "block", [layer])
        Identity()
    """
    graph = _own_graph(owner, name)
    for layer, node in [(layer, _addition(graph, name, layer.addition)) for layer in layers]:
        shortcut = node.args[1 - layer.operand]
        assert isinstance(shortcut, fx.Node)
        node.replace_all_uses_with(shortcut)
        graph.erase_node(node)
    remainder = fx.GraphModule(owner, graph, class_name=type(owner).__name__)
    remainder.graph.eliminate_dead_code()
    remainder = fx.GraphModule(remainder, remainder.graph, class_name=type(owner).__name__)
    graph = remainder.graph  # of a module without the parameters that only dead code used
    _out_of_place(owner, graph)
    chain = _chain(owner, graph)
    if chain is None:
        remainder.delete_all_unused_submodules()
        remainder.recompile()
        rebuilt: nn.Module = remainder
    elif not chain or (
        all(layer.rectified for layer in layers)
        and all(type(module) is nn.ReLU for module in chain.values())
    ):
        rebuilt = nn.Identity()
    else:
        rebuilt = nn.Sequential(chain)
    rebuilt.training = owner.training
    return rebuilt


def _out_of_place(owner: nn.Module, graph: fx.Graph) -> None:
    """Operators that now act on the module's own input must not overwrite it."""
    own = {node for node in graph.nodes if node.op == "placeholder"}
    for node in graph.nodes:
        if not node.args or node.args[0] not in own:
            continue
        if node.op == "call_module":
            module = owner.get_submodule(node.target)
            if getattr(module, "inplace", False):
                setattr(module, "inplace", False)  # noqa: B010  (a module of unknown type)
            elif next(module.parameters(), None) is None:
                own.add(node)  # an identity, or dropout in evaluation mode
        elif node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        elif node.target is operator.iadd:
            node.target = operator.add
        elif node.op == "call_method" and node.target.endswith("_"):
            node.target = node.target.rstrip("_")


def _chain(owner: nn.Module, graph: fx.Graph) -> OrderedDict[str, nn.Module] | None:
    """The modules of a graph that only passes one tensor through them in turn, else None."""
    nodes = list(graph.nodes)
    if sum(node.op == "placeholder" for node in nodes) != 1:
        return None
    last = nodes[0]
    chain: OrderedDict[str, nn.Module] = OrderedDict()
    for node in nodes[1:-1]:
        if node.all_input_nodes != [last] or node.args[:1] != (last,):
            return None
        called = node.op == "call_module" and node.args == (last,) and not node.kwargs
        if called and "." not in node.target and node.target not in chain:
            chain[node.target] = owner.get_submodule(node.target)
        elif node.target in _RELU_FUNCTIONS and "activation" not in chain:
            chain["activation"] = nn.ReLU()
        else:
            return None
        last = node
    return chain if nodes[-1].args == (last,) else None


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of a descendant."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
