"""What becomes of every module in source code: PyTorch's own, a container, or a class."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

from torch import nn

from guyot.results.codegen.calls import ModuleCall, Source, operands
from guyot.results.codegen.leaves import constructor
from guyot.results.codegen.text import is_name, quoted


class Kind(enum.Enum):
    """How a module is written."""

    LEAF = "a module of torch.nn"
    SEQUENTIAL = "nn.Sequential"
    LIST = "nn.ModuleList"
    DICT = "nn.ModuleDict"
    CLASS = "a class of its own"


class Layout:
    """The modules that the graph needs, and how each is written.

    Args:
        source: model and graph.
        root: its calls.

    Attributes:
        kinds: qualified name -> kind, of the modules that are needed.
        calls: qualified name -> its calls.
        tensors: names of parameters, buffers and constants that classes declare.
    """

    def __init__(self, source: Source, root: ModuleCall) -> None:
        self.source = source
        self.calls: dict[str, list[ModuleCall]] = {}
        for call in root.calls():
            self.calls.setdefault(call.path, []).append(call)
        placeholders = {node for node in root.nodes() for node in operands(node)}
        used = [name for node in placeholders for name in source.tensors.get(node.name, ())]
        inner = [*self.calls, *(name.rpartition(".")[0] for name in used)]
        needed = {"", *(path for each in inner for path in _with_ancestors(each))}
        modules = dict(source.model.named_modules(remove_duplicate=False))
        self.modules = {path: modules[path] for path in modules if path in needed}
        self._constructors = {path: constructor(module) for path, module in self.modules.items()}
        self.kinds = {path: self._kind(path, module) for path, module in self.modules.items()}
        self.tensors = {
            name: None for name in sorted(used) if self.kinds[name.rpartition(".")[0]] is Kind.CLASS
        }

    def _kind(self, path: str, module: nn.Module) -> Kind:
        calls = self.calls.get(path, [])
        if path and self._constructors[path] is not None:
            attention = isinstance(module, nn.MultiheadAttention)
            if all(_self_attention(call) if attention else _plain(call) for call in calls):
                return Kind.LEAF
        if isinstance(module, nn.Sequential) and all(self._chain(call) for call in calls):
            return Kind.SEQUENTIAL
        if isinstance(module, nn.ModuleList) and not calls:
            return Kind.LIST
        if isinstance(module, nn.ModuleDict) and not calls:
            return Kind.DICT
        return Kind.CLASS

    def _chain(self, call: ModuleCall) -> bool:
        """Tell whether a call passes one value through children in their order."""
        names = [name for name, _ in self.modules[call.path].named_children()]
        prefix = f"{call.path}." if call.path else ""
        (value, *others), place = call.inputs or (None,), -1
        for item in call.items:
            name = item.path.removeprefix(prefix) if isinstance(item, ModuleCall) else ""
            if not isinstance(item, ModuleCall) or name not in names[place + 1 :]:
                return False
            if item.inputs != (value,) or len(item.outputs) != 1:
                return False
            (value,), place = item.outputs, names.index(name)
        return not others and call.outputs == (value,)

    def ties(self) -> list[str]:
        """Return statements in the root that make one parameter of those that are the same."""
        ties: list[str] = []
        for names in dict.fromkeys(self.source.tensors.values()):
            owners = [name.rpartition(".") for name in names]
            there = [(self.attribute(at, ""), key) for at, _, key in owners if at in self.kinds]
            ties += [_tied(*other, *there[0]) for other in there[1:]]
        return ties

    def text(self, path: str) -> str:
        """Return the constructor call of a leaf."""
        text = self._constructors[path]
        assert text is not None
        return text

    def attribute(self, path: str, scope: str) -> str:
        """Return the module `path` in the methods of the module `scope`."""
        text, here = "self", scope
        inside = path.removeprefix(f"{scope}." if scope else "") if path != scope else ""
        for part in inside.split(".") if inside else ():
            kind = self.kinds[here]
            if kind in (Kind.LIST, Kind.SEQUENTIAL) and part.isdigit():
                text += f"[{part}]"
            elif kind is Kind.DICT:
                text += f"[{quoted(part)}]"
            else:
                text += f".{part}" if is_name(part) else f".get_submodule({quoted(part)})"
            here = f"{here}.{part}" if here else part
        return text

    def uses(self, call: ModuleCall) -> int:
        """Count how often each argument is written in a call of a module."""
        attention = isinstance(self.modules[call.path], nn.MultiheadAttention)
        return 3 if attention and self.kinds[call.path] is Kind.LEAF else 1

    def called(self, call: ModuleCall, callee: str, arguments: Sequence[str]) -> str:
        """Write a call of a module."""
        if self.uses(call) == 1:
            return f"{callee}({', '.join(arguments)})"
        return f"{callee}({', '.join([*arguments] * 3)}, need_weights=False)[0]"


def _tied(owner: str, key: str, other: str, first: str) -> str:
    """Write the statement that makes a parameter the first one."""
    value = f"{other}.{first}" if is_name(first) else f"getattr({other}, {quoted(first)})"
    return (
        f"{owner}.{key} = {value}" if is_name(key) else f"setattr({owner}, {quoted(key)}, {value})"
    )


def _with_ancestors(path: str) -> Iterator[str]:
    """Yield `a.b.c`, `a.b`, `a`."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _plain(call: ModuleCall) -> bool:
    """Tell whether a call takes and gives one tensor and calls no other module."""
    flat = not any(isinstance(item, ModuleCall) for item in call.items)
    return flat and len(call.inputs) == len(call.outputs) == 1


def _self_attention(call: ModuleCall) -> bool:
    """Tell whether a call of `nn.MultiheadAttention` has one input, no mask and no weights."""
    attention = [
        node
        for node in call.nodes()
        if str(node.target) == "aten.scaled_dot_product_attention.default"
    ]
    return (
        len(attention) == 1
        and len(attention[0].args) == 3
        and not attention[0].kwargs
        and len(call.inputs) == len(call.outputs) == 1
    )
