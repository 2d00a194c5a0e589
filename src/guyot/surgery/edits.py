"""Change the source of a method: take an addition out, or state other lengths.

An edit names the place of an expression. All edits of a method are carried out on the tree that the
places were found in, at once, so their order does not matter. Where an addition goes, statements go
that only served it: their values are pure, and nothing reads them any more.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from guyot.core.errors import UnsupportedError
from guyot.core.types import Place
from guyot.surgery.cleaner import Cleaner, Settled
from guyot.surgery.source import Method
from guyot.surgery.syntax import child_of, paths_of, related, resolved

SHAPING = {"view", "reshape", "unflatten", "expand", "split", "split_with_sizes", "narrow"}
"""Methods and functions that state lengths."""

OUT_OF_PLACE = {f"{n}_": n for n in "add sub mul div relu sigmoid tanh clamp neg exp".split()}
"""Operators in place -> the same into memory of their own."""


@dataclass(frozen=True)
class Drop:
    """Take an addition out.

    Attributes:
        place: of the addition.
        operand: 0 or 1, the operand that goes.
        gone: what goes with it: modules, parameters and buffers by names relative to the module.
    """

    place: Place
    operand: int
    gone: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """State other lengths in a call.

    Attributes:
        place: of the call.
        sizes: numbers, attributes that hold them, or None for what the call says itself.
    """

    place: Place
    sizes: tuple[int | str | None, ...]


Edit = Drop | State


def edit(method: Method, edits: Sequence[Edit], module: nn.Module) -> list[str]:
    """Change the definition of a method.

    Args:
        method: changed in place.
        edits: all that concern it.
        module: one that has the method.

    Returns:
        The children, by their names, that must not act in place any more.

    Raises:
        UnsupportedError: there is no such expression at a place, or what goes is still used.
    """
    changes = _Changes(method, edits)
    changes.visit(method.definition)
    if missing := [each.place.span for each in edits if each not in changes.done]:
        raise UnsupportedError(
            f"{method.kind.__qualname__}.{method.name} says nothing that can be changed in line "
            f"{missing[0][0]}"
        )
    drops = [each for each in edits if isinstance(each, Drop)]
    if not drops:
        return []
    _OutOfPlace(method).visit(method.definition)
    gone = {name for drop in drops for name in drop.gone}
    cleaner = Cleaner(method, module, gone)
    Settled(cleaner).visit(method.definition)
    body, _ = cleaner.cleaned(method.definition.body, set())
    method.definition.body = body or [ast.Pass()]
    ast.fix_missing_locations(method.definition)
    cleaner.look_at_choices()
    used = paths_of(method.definition, cleaner.own, cleaner.unreached)
    for path in sorted(used):
        if any(related(path, name) for name in gone):
            raise UnsupportedError(
                f"{method.kind.__qualname__}.{method.name} uses {path} beyond its addition"
            )
    return [p for p in sorted(used) if p and getattr(child_of(module, p), "inplace", False)]


def _span(node: ast.AST) -> tuple[int, int, int, int]:
    keys = ("lineno", "col_offset", "end_lineno", "end_col_offset")
    return tuple(getattr(node, key, 0) for key in keys)  # pyright: ignore[reportReturnType]


class _Changes(ast.NodeTransformer):
    """Carries edits out, inner expressions first."""

    def __init__(self, method: Method, edits: Sequence[Edit]) -> None:
        self._method = method
        self._edits = {(type(each), each.place.span): each for each in edits}
        self.done: set[Edit] = set()

    def _here(self, node: ast.AST, kind: type[Edit]) -> Any:
        found = self._edits.get((kind, _span(node)))
        if found is not None:
            self.done.add(found)
        return found

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        drop = self._here(node, Drop) if isinstance(node.op, ast.Add) else None
        self.generic_visit(node)
        if drop is None:
            return node
        return node.right if drop.operand == 0 else node.left

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        drop = self._here(node, Drop) if isinstance(node.op, ast.Add) else None
        self.generic_visit(node)
        if drop is None:
            return node
        if drop.operand == 1:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        """`out.add_(x)` on its own changes `out`."""
        call = node.value
        name = call.func.value if _is_method(call) else None  # pyright: ignore[reportAttributeAccessIssue]
        self.generic_visit(node)
        if call is node.value or not isinstance(name, ast.Name) or node.value is name:
            return node
        target = ast.copy_location(ast.Name(name.id, ast.Store()), name)
        return ast.copy_location(ast.Assign([target], node.value), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        drop = self._here(node, Drop) if called in ("add", "add_") else None
        state = self._here(node, State) if called in SHAPING else None
        self.generic_visit(node)
        if drop is not None:
            operands = [*([] if self._function(node) else [node.func.value]), *node.args]  # pyright: ignore[reportAttributeAccessIssue]
            if len(operands) != 2 or node.keywords:
                raise UnsupportedError(f"{ast.unparse(node)} is more than an addition")
            return operands[1 - drop.operand]
        if state is not None:
            self._state(node, state.sizes)
        return node

    def _function(self, call: ast.Call) -> bool:
        """Say whether a call is one of a function and not of a tensor's method."""
        if not isinstance(call.func, ast.Attribute):
            return True
        return isinstance(resolved(call.func.value, self._method), ModuleType)

    def _state(self, call: ast.Call, sizes: tuple[int | str | None, ...]) -> None:
        (own,) = self._method.definition.args.args[:1]
        stated = [_expression(size, own.arg) for size in sizes]
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        first = int(self._function(call)) + int(name == "unflatten")
        given = call.args[first:]
        if call.keywords and not given:
            raise UnsupportedError(f"{ast.unparse(call)} states lengths by name")
        one = given[0]
        if isinstance(one, (ast.Tuple, ast.List)) and _as_many(one.elts, sizes):
            one.elts = [new or old for new, old in zip(stated, one.elts, strict=True)]
        elif isinstance(one, (ast.Tuple, ast.List)) or any(_starred(each) for each in given):
            whole = one if isinstance(one, (ast.Tuple, ast.List)) else ast.Tuple(given, ast.Load())
            call.args = [*call.args[:first], _merged(whole, stated)]
            if whole is one:
                call.args += given[1:]
        elif len(sizes) == 1 or (
            len(given) >= len(sizes) > 1 and name not in ("split", "unflatten")
        ):
            pairs = zip(stated, given[: len(sizes)], strict=True)
            new = [size or old for size, old in pairs]
            call.args = [*call.args[:first], *new, *given[len(sizes) :]]
        else:
            call.args = [*call.args[:first], _merged(one, stated), *given[1:]]


def _as_many(elements: Sequence[ast.expr], sizes: Sequence[Any]) -> bool:
    return len(elements) == len(sizes) and not any(_starred(each) for each in elements)


def _starred(node: ast.expr) -> bool:
    return isinstance(node, ast.Starred)


def _expression(size: int | str | None, own: str) -> ast.expr | None:
    if size is None:
        return None
    if isinstance(size, int):
        return ast.Constant(size)
    return ast.Attribute(ast.Name(own, ast.Load()), size, ast.Load())


def _merged(lengths: ast.expr, stated: Sequence[ast.expr | None]) -> ast.expr:
    """Return what gives the author's lengths where nothing is stated."""
    new = ast.Tuple([size or ast.Constant(None) for size in stated], ast.Load())
    text = "tuple((old if new is None else new for old, new in zip(LENGTHS, STATED, strict=True)))"
    merged = ast.parse(text, mode="eval").body
    for node in ast.walk(merged):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "zip":
            node.args[:2] = [lengths, new]
    return merged


def _is_method(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)


class _OutOfPlace(ast.NodeTransformer):
    """Operators that may now meet the module's own input must not overwrite it."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.target, ast.Name):
            return node
        value = ast.BinOp(ast.Name(node.target.id, ast.Load()), node.op, node.value)
        return ast.copy_location(ast.Assign([node.target], value), node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        changes = _is_method(node.value) and node.value.func.attr in OUT_OF_PLACE  # pyright: ignore[reportAttributeAccessIssue]
        self.generic_visit(node)
        name = node.value.func.value if changes else None  # pyright: ignore[reportAttributeAccessIssue]
        if not isinstance(name, ast.Name) or resolved(name, self._method) is not None:
            return node
        return ast.copy_location(ast.Assign([ast.Name(name.id, ast.Store())], node.value), node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute):
            node.func.attr = OUT_OF_PLACE.get(node.func.attr, node.func.attr)
        for keyword in node.keywords:
            if keyword.arg == "inplace":
                keyword.value = ast.Constant(False)
        return node


def by_method(edits: Sequence[Edit]) -> Mapping[str, list[Edit]]:
    """Edits by the methods that they concern."""
    found: dict[str, list[Edit]] = {}
    for each in edits:
        found.setdefault(each.place.method, []).append(each)
    return found
