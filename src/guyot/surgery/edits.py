"""Change the source of a method: take an addition out, or state other lengths.

An edit names the place of an expression. All edits of a method are carried out on the tree that the
places were found in, at once, so their order does not matter. Where an addition goes, statements go
that only served it: their values are pure, and nothing reads them any more.
"""

from __future__ import annotations

import ast
import builtins
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from guyot.core.errors import UnsupportedError
from guyot.core.types import Place
from guyot.surgery.source import Method

SHAPING = {"view", "reshape", "unflatten", "expand", "split", "split_with_sizes", "narrow"}
"""Methods and functions that state lengths."""

OUT_OF_PLACE = {f"{n}_": n for n in "add sub mul div relu sigmoid tanh clamp neg exp".split()}
"""Operators in place -> the same into memory of their own."""

COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}

PLAIN = (bool, int, float, str, nn.Module, type(None))
"""Types of the attributes whose comparison says which way a method goes."""


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
    cleaner = _Cleaner(method, module, gone)
    _Settled(cleaner).visit(method.definition)
    body, _ = cleaner.cleaned(method.definition.body, set())
    method.definition.body = body or [ast.Pass()]
    ast.fix_missing_locations(method.definition)
    cleaner.look_at_choices()
    used = _paths(method.definition, cleaner.own, cleaner.unreached)
    for path in sorted(used):
        if any(_related(path, name) for name in gone):
            raise UnsupportedError(
                f"{method.kind.__qualname__}.{method.name} uses {path} beyond its addition"
            )
    return [p for p in sorted(used) if p and getattr(_child(module, p), "inplace", False)]


def _related(path: str, name: str) -> bool:
    """Say whether one is the other, or lies in it."""
    return f"{path}.".startswith(f"{name}.") or f"{name}.".startswith(f"{path}.")


def _child(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


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
        return isinstance(_resolved(call.func.value, self._method), ModuleType)

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


def _resolved(node: ast.expr, method: Method) -> Any:
    """Return what a dotted name means outside of the function; None if it is none of that."""
    if isinstance(node, ast.Name):
        code = method.function.__code__
        if node.id in code.co_varnames or node.id in code.co_cellvars:
            return None
        scope = method.function.__globals__
        return scope.get(node.id, getattr(builtins, node.id, None))
    if isinstance(node, ast.Attribute):
        return getattr(_resolved(node.value, method), node.attr, None)
    return None


def _path(node: ast.expr, own: str) -> str | None:
    """`self.a.b[0]` as a qualified name; None for what is none."""
    if isinstance(node, ast.Name):
        return "" if node.id == own else None
    if isinstance(node, ast.Attribute):
        key = node.attr
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        key = str(node.slice.value)
    else:
        return None
    inner = _path(node.value, own)
    return None if inner is None else f"{inner}.{key}" if inner else key


def _paths(tree: ast.AST, own: str, without: Sequence[ast.AST]) -> set[str]:
    """The longest qualified names that a method reads from its module."""
    inside = {id(node) for part in without for node in ast.walk(part)}
    found: set[str] = set()
    for node in ast.walk(tree):  # outer expressions first
        if isinstance(node, (ast.Attribute, ast.Subscript)) and id(node) not in inside:
            path = _path(node, own)
            if path is not None:
                inside.update(id(inner) for inner in ast.walk(node))
                found.add(path)
    return found


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
        if not isinstance(name, ast.Name) or _resolved(name, self._method) is not None:
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


class _Cleaner:
    """Takes out statements whose values nobody reads.

    Args:
        method: the changed method.
        module: has it.
        gone: names of what goes.

    Attributes:
        own: name of the argument that is the module.
        unreached: parts of the method that settings of the module switch off.
    """

    def __init__(self, method: Method, module: nn.Module, gone: set[str]) -> None:
        self._method, self._module, self._gone = method, module, gone
        arguments = method.definition.args
        self.own = (*arguments.posonlyargs, *arguments.args)[0].arg
        self.unreached: list[ast.AST] = []

    def cleaned(
        self, statements: Sequence[ast.stmt], live: set[str]
    ) -> tuple[list[ast.stmt], set[str]]:
        """The statements that are needed, and the names that they read; `live` are read later."""
        kept: list[ast.stmt] = []
        self.unreached += self._unreached_after(statements)
        for statement in reversed(statements):
            needed, live = self._one(statement, live)
            kept += [] if needed is None else [needed]
        return kept[::-1], live

    def _one(self, statement: ast.stmt, live: set[str]) -> tuple[ast.stmt | None, set[str]]:
        match statement:
            case ast.Pass():
                return None, live
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Name(id=same)) if name == same:
                return None, live
            case ast.Assign(targets=targets, value=value):
                return self._assigned(statement, targets, value, live)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                return self._assigned(statement, [target], value, live)
            case ast.If(test=test, body=body, orelse=orelse):
                switched = self.switch(test)
                self.unreached += [] if switched is None else orelse if switched else body
                body, first = self.cleaned(body, set(live))
                orelse, second = self.cleaned(orelse, set(live))
                if not body and not orelse and self._pure(test):
                    return None, live
                statement.body, statement.orelse = body or [ast.Pass()], orelse
                reached = {None: first | second, True: first, False: second}[switched]
                return statement, reached | _read(test)
            case ast.With(items=items, body=body):
                body, inner = self.cleaned(body, set(live))
                statement.body = body or [ast.Pass()]
                return statement, inner.union(*(_read(item) for item in items))
            case ast.Return() | ast.Raise():
                return statement, _read(statement)
            case _:
                return statement, live | _read(statement)

    def _unreached_after(self, statements: Sequence[ast.stmt]) -> Sequence[ast.stmt]:
        """Return the statements that follow an `if` which always returns."""
        for position, statement in enumerate(statements):
            if isinstance(statement, ast.If):
                switched = self.switch(statement.test)
                taken = [] if switched is None else statement.body if switched else statement.orelse
                if taken and isinstance(taken[-1], (ast.Return, ast.Raise)):
                    return statements[position + 1 :]
        return []

    def look_at_choices(self) -> None:
        """Note what `a if self.flag else b` does not reach."""
        for node in ast.walk(self._method.definition):
            if isinstance(node, ast.IfExp) and (switched := self.switch(node.test)) is not None:
                self.unreached.append(node.orelse if switched else node.body)

    def switch(self, test: ast.expr) -> bool | None:
        """The value of a test that asks for nothing but settings of the module; None for others."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            value = self.switch(test.operand)
            return None if value is None else not value
        if isinstance(test, ast.BoolOp):
            values = [self.switch(part) for part in test.values]
            settled = isinstance(test.op, ast.Or)
            if settled in values:
                return settled
            return None if None in values else not settled
        if (there := self._is_there(test)) is not None:
            return there
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            compare = COMPARISONS.get(type(test.ops[0]))
            sides = [self._setting(side) for side in (test.left, *test.comparators)]
            if compare is None or not all(sides):
                return None
            return bool(compare(*(value for side in sides for value in side)))
        setting = self._setting(test)
        return setting[0] if setting and isinstance(setting[0], bool) else None

    def asks_for_gone(self, test: ast.expr) -> bool:
        """Say whether a test reads something that goes."""
        paths = _paths(test, self.own, ())
        return any(_related(path, name) for path in paths for name in self._gone)

    def _is_there(self, test: ast.expr) -> bool | None:
        """The value of `self.x is not None` where x is a tensor or goes; None for other tests.

        What has gone in an earlier edit was there when the module ran.
        """
        match test:
            case ast.Compare(
                left=ast.Attribute(value=ast.Name(id=name), attr=attribute),
                ops=[ast.Is() | ast.IsNot() as asks],
                comparators=[ast.Constant(value=None)],
            ) if name == self.own:
                value = getattr(self._module, attribute, None)
                if attribute in self._gone or isinstance(value, torch.Tensor):
                    return isinstance(asks, ast.IsNot)
            case _:
                pass
        return None

    def _setting(self, node: ast.expr) -> tuple[Any, ...]:
        """The value of a constant or of a plain attribute of the module; () for others."""
        if isinstance(node, ast.Constant):
            return (node.value,)
        path = _path(node, self.own) if isinstance(node, ast.Attribute) else None
        if not path or path == "training":
            return ()
        value = getattr(self._module, path, self)
        return (value,) if isinstance(value, PLAIN) else ()

    def _assigned(
        self, statement: ast.stmt, targets: list[ast.expr], value: ast.expr, live: set[str]
    ) -> tuple[ast.stmt | None, set[str]]:
        names: set[str] = set()
        plain = True
        for target in targets:
            for part in target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target]:
                plain &= isinstance(part, ast.Name)
                names |= {part.id} if isinstance(part, ast.Name) else set()
        if plain and not names & live and self._pure(value):
            return None, live
        return statement, (live - names if plain else live) | _read(statement)

    def _pure(self, value: ast.expr) -> bool:
        """Say whether an expression only computes something."""
        impure = (ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom)
        return all(
            not isinstance(node, impure)
            and (not isinstance(node, ast.Call) or self._computes(node))
            for node in ast.walk(value)
        )

    def _computes(self, call: ast.Call) -> bool:
        """Say whether a call has no effect: of a module that goes, of PyTorch, of a tensor."""
        path = _path(call.func, self.own)
        if path is not None:
            child = _child(self._module, path)
            within = any(f"{path}.".startswith(f"{name}.") for name in self._gone)
            return within or (child is not None and not [*child.parameters(), *child.buffers()])
        meant = _resolved(call.func, self._method)
        if meant is not None:
            home = str(getattr(meant, "__module__", "") or "")
            library = home.partition(".")[0] in ("torch", "builtins", "math")
            return library or hasattr(torch, getattr(meant, "__name__", " "))
        return isinstance(call.func, ast.Attribute) and not call.func.attr.endswith("_")


class _Settled(ast.NodeTransformer):
    """Leaves of a choice only what is reached, where it asks whether something is there that goes.

    Args:
        cleaner: knows the values of tests.
    """

    def __init__(self, cleaner: _Cleaner) -> None:
        self._cleaner = cleaner

    def _reached(self, node: ast.If | ast.IfExp) -> Any:
        self.generic_visit(node)
        switched = self._cleaner.switch(node.test)
        if switched is None or not self._cleaner.asks_for_gone(node.test):
            return node
        return (node.body if switched else node.orelse) or ast.copy_location(ast.Pass(), node)

    visit_If = visit_IfExp = _reached


def _read(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def by_method(edits: Sequence[Edit]) -> Mapping[str, list[Edit]]:
    """Edits by the methods that they concern."""
    found: dict[str, list[Edit]] = {}
    for each in edits:
        found.setdefault(each.place.method, []).append(each)
    return found
