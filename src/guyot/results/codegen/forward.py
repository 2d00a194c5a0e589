"""The body of a `forward` method, written from one call of a module."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from guyot.core.errors import UnsupportedError
from guyot.core.torch_private import OVERLOAD
from guyot.results.codegen.calls import ModuleCall, Scattered, Source, operands, symbolic
from guyot.results.codegen.layout import Layout
from guyot.results.codegen.leaves import written
from guyot.results.codegen.markup import number, plain
from guyot.results.codegen.operators import Expression, expression
from guyot.results.codegen.text import is_name, quoted

_FRESH = "xyzuvw"
_LONGEST = 52  # characters of a value that is written inside another one
_ARITHMETIC: dict[Any, str] = {
    operator.mul: "*",
    operator.add: "+",
    operator.sub: "-",
    operator.floordiv: "//",
}


@dataclass(frozen=True)
class Forward:
    """A `forward` method.

    Attributes:
        arguments: names, without self.
        lines: statements, the last of them `return`.
        single: it gives one tensor.
    """

    arguments: tuple[str, ...]
    lines: tuple[str, ...]
    single: bool

    @property
    def text(self) -> str:
        """All of it, with marked numbers."""
        return "\n".join((", ".join(self.arguments), *self.lines))


def forward_of(source: Source, call: ModuleCall, layout: Layout) -> Forward:
    """Write the `forward` of a module from one call of it.

    Raises:
        Scattered: shapes inside the call depend on what only its caller knows.
        UnsupportedError: something cannot be written as source code.
    """
    return _Writer(source, call, layout).write()


class _Writer:
    """Writes statement after statement; is the `Names` of the operators.

    A value that is used once, by the next statement, is not bound to a variable: it is `pending`
    and written inside that statement.
    """

    def __init__(self, source: Source, call: ModuleCall, layout: Layout) -> None:
        self._source, self._call, self._layout = source, call, layout
        self._items = [item for item in call.items if not _unpacked(item)]
        self._left = Counter(value for item in self._items for value in self._taken(item))
        self._left.update(_flat(source.outputs) if not call.key else call.outputs)
        self._variables: dict[fx.Node, str] = {}
        self._dying: list[fx.Node] = []
        self._pending: tuple[fx.Node, Expression] | None = None
        self._lines: list[str] = []

    def write(self) -> Forward:
        """Write all statements, then the outputs."""
        for node in self._call.inputs:
            given = self._source.inputs.get(node.name, "") if not self._call.key else ""
            self._variables[node] = given or self._fresh()
        arguments = tuple(self._variables.values())
        for item in self._items:
            self._item(item)
        outputs = self._source.outputs if not self._call.key else self._call.outputs
        if isinstance(outputs, tuple) and len(outputs) == 1 and self._call.key:
            (outputs,) = outputs
        if self._pending is not None and outputs is not self._pending[0]:
            self._bind_pending()
        text = self(outputs)
        self._lines.append(f"return {text[1:-1] if isinstance(outputs, tuple) else text}")
        single = isinstance(outputs, fx.Node) and isinstance(outputs.meta.get("val"), Tensor)
        return Forward(arguments, tuple(self._lines), single)

    def _taken(self, item: fx.Node | ModuleCall) -> list[fx.Node]:
        """Return the values in a statement, once per occurrence."""
        if isinstance(item, ModuleCall):
            return [*item.inputs] * self._layout.uses(item)
        return operands(item)

    # -- statements --------------------------------------------------------------------------

    def _item(self, item: fx.Node | ModuleCall) -> None:
        taken = Counter(self._taken(item))
        self._bind_unless_used(taken)
        made = self._expression(item)
        self._pending = None
        self._left -= taken
        self._dying += [n for n in taken if n in self._variables and not self._left[n]]
        results = (
            [[node] for node in item.outputs] if isinstance(item, ModuleCall) else _results(item)
        )
        if len(results) == 1 and results[0] and self._left[results[0][0]] == 1:
            self._pending = results[0][0], made
        else:
            self._bind(results, made)

    def _bind_unless_used(self, taken: Mapping[fx.Node, int]) -> None:
        """Give the pending value a variable, unless the next statement can hold it."""
        if self._pending is None:
            return
        node, made = self._pending
        if taken.get(node) != 1 or len(plain(made.text)) > _LONGEST:
            self._bind_pending()

    def _bind_pending(self) -> None:
        assert self._pending is not None
        (node, made), self._pending = self._pending, None
        self._bind([[node]], made)

    def _bind(self, results: list[list[fx.Node]], made: Expression) -> None:
        """Write an assignment, and reuse the names of values that are not needed any more."""
        free = [self._variables.pop(node) for node in self._dying if node in self._variables]
        self._dying.clear()
        if not any(self._left[node] for nodes in results for node in nodes):
            self._lines.append(made.text)
            return
        targets: list[str] = []
        for nodes in results:
            if not any(self._left[node] for node in nodes):
                targets.append("_")
                continue
            taken = {*self._variables.values(), *targets}
            name = next((name for name in free if name not in taken), "") or self._fresh(targets)
            self._variables.update((node, name) for node in nodes if self._left[node])
            targets.append(name)
        self._lines.append(f"{', '.join(targets)} = {made.text}")

    def _fresh(self, besides: Sequence[str] = ()) -> str:
        taken = {*self._variables.values(), *besides}
        letters = (f"{letter}{count or ''}" for count in range(1000) for letter in _FRESH)
        return next(name for name in letters if name not in taken)

    # -- expressions -------------------------------------------------------------------------

    def _expression(self, item: fx.Node | ModuleCall) -> Expression:
        if isinstance(item, ModuleCall):
            callee = self._layout.attribute(item.path, self._call.path)
            return Expression(self._layout.called(item, callee, [self(n) for n in item.inputs]))
        if item.target is operator.getitem:
            return Expression(f"{self(item.args[0])}[{item.args[1]}]")
        if not isinstance(item.target, OVERLOAD):
            raise UnsupportedError(
                f"the operator {item.target} of {self._call.path or 'forward'} cannot be written "
                "as source code: export the model as pt2 or onnx"
            )
        made = expression(item, self)
        if _unpacks(item) and len(item.meta["val"]) == 1:
            return Expression(f"{made.text}[0]")
        return made

    def __call__(self, value: Any, hint: str = "", *, tight: bool = False) -> str:
        """Return the text of an operand."""
        if isinstance(value, fx.Node):
            return self._node(value, tight)
        if isinstance(value, Mapping):
            items = (f"{_key(key)}: {self(item)}" for key, item in value.items())
            return f"{{{', '.join(items)}}}"
        if isinstance(value, list | tuple):
            items = ", ".join(self(item, hint) for item in value)
            comma = "," * (len(value) == 1)
            return f"[{items}]" if isinstance(value, list) else f"({items}{comma})"
        return written(value, hint)

    def _node(self, node: fx.Node, tight: bool) -> str:
        if symbolic(node):
            text = self._length(node)
            return f"({text})" if tight and " " in text else text
        if self._pending is not None and node is self._pending[0]:
            made = self._pending[1]
            return f"({made.text})" if tight and made.loose else made.text
        if node in self._variables:
            return self._variables[node]
        if node.name in self._source.literals:
            return self._source.literals[node.name]
        name = self._source.own_name(node, self._call.path)
        assert name is not None, f"{node} is nowhere in {self._call.path}"
        owner, _, key = name.rpartition(".")
        path = ".".join(part for part in (self._call.path, owner) if part)
        holder = self._layout.attribute(path, self._call.path)
        return f"{holder}.{key}" if is_name(key) else f"getattr({holder}, {quoted(key)})"

    def _length(self, node: fx.Node) -> str:
        """Write a number that depends on the inputs' shapes, from the shape of a variable."""
        wanted = node.meta["val"].node.expr
        for exact in (True, False):
            for value, name in self._variables.items():
                shape = getattr(value.meta.get("val"), "shape", ())
                for dim, size in enumerate(shape):
                    if not isinstance(size, torch.SymInt):
                        continue
                    ratio = wanted / size.node.expr
                    if ratio == 1:
                        return f"{name}.shape[{dim}]"
                    if not exact and ratio.is_Integer:
                        return f"{name}.shape[{dim}] * {number('size', int(ratio))}"
                    if not exact and (1 / ratio).is_Integer:
                        return f"{name}.shape[{dim}] // {number('size', int(1 / ratio))}"
        if node.target in _ARITHMETIC:
            left, right = (self(argument, "size", tight=True) for argument in node.args)
            return f"{left} {_ARITHMETIC[node.target]} {right}"
        if not self._call.key:
            raise UnsupportedError(
                f"the length {node.meta['val']} cannot be written as source code: export the model "
                "as pt2 or onnx"
            )
        raise Scattered(self._call.key)

    def device(self) -> str:
        """Return the device of any tensor at hand."""
        for node, name in self._variables.items():
            if isinstance(node.meta.get("val"), Tensor):
                return f"{name}.device"
        return 'torch.device("cpu")'


def _key(key: Any) -> str:
    """Write the key of a mapping."""
    return quoted(key) if isinstance(key, str) else plain(written(key))


def _flat(values: Any) -> list[fx.Node]:
    """Return the nodes in nested outputs."""
    found: list[fx.Node] = []
    fx.map_arg(values, lambda node: found.append(node) or node)
    return found


def _unpacks(node: fx.Node) -> bool:
    """Tell whether an operator gives several tensors that are only taken apart."""
    several = isinstance(node.meta.get("val"), tuple | list)
    return several and all(user.target is operator.getitem for user in node.users)


def _unpacked(item: fx.Node | ModuleCall) -> bool:
    """Tell whether a value is bound by the statement that makes it and others."""
    if isinstance(item, ModuleCall) or item.target is not operator.getitem:
        return False
    whole = item.args[0]
    return isinstance(whole, fx.Node) and _unpacks(whole)


def _results(node: fx.Node) -> list[list[fx.Node]]:
    """Return the values of an operator; several nodes can stand for the same one."""
    if not _unpacks(node):
        return [[node]]
    parts: list[list[fx.Node]] = [[] for _ in node.meta["val"]]
    for user in node.users:
        parts[int(user.args[1])].append(user)  # pyright: ignore[reportArgumentType]
    return parts
