"""Take statements out of a method that nobody needs once a branch is gone."""

from __future__ import annotations

import ast
import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from guyot.surgery.source import Method
from guyot.surgery.syntax import child_of, names_read, path_of, paths_of, related, resolved

COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}

LOOPING = ("enumerate", "zip", "reversed")
"""Functions that go over what they are given."""

GROWING = ("append", "extend")
"""Methods by which a list grows."""

PLAIN = (bool, int, float, str, nn.Module, type(None))
"""Types of the attributes whose comparison says which way a method goes."""


class Cleaner:
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
        self._lists = _own_lists(method)
        self._going: set[str] = set()  # variables of loops over modules that go

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
                return statement, reached | names_read(test)
            case ast.With(items=items, body=body):
                body, inner = self.cleaned(body, set(live))
                statement.body = body or [ast.Pass()]
                return statement, inner.union(*(names_read(item) for item in items))
            case ast.For() if self._straight(statement):
                return self._looped(statement, live)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))) if (
                name in self._lists - live and self._pure(statement.value)
            ):
                return None, live
            case ast.Return() | ast.Raise():
                return statement, names_read(statement)
            case _:
                return statement, live | names_read(statement)

    def _straight(self, loop: ast.For) -> bool:
        """Say whether a loop ends only where its body does, for the last time."""
        leaves = (ast.Break, ast.Continue, ast.Return)
        return not loop.orelse and not any(isinstance(node, leaves) for node in ast.walk(loop))

    def _looped(self, loop: ast.For, live: set[str]) -> tuple[ast.stmt | None, set[str]]:
        """A loop without what nobody reads, neither afterwards nor the next time."""
        bound, modules = _named(loop.target), self._iterated(loop.iter)
        if modules and all(self._goes(path) for path in modules):
            self._going |= bound
        carried: set[str] = set()
        while True:
            _, read = self.cleaned(copy.deepcopy(loop.body), live | carried)
            if read <= live | carried:
                break
            carried |= read
        body, read = self.cleaned(loop.body, live | carried)
        if not body and self._pure(loop.iter):
            return None, live
        loop.body = body or [ast.Pass()]
        runs = bool(modules) and all(self._length(path) for path in modules)
        return loop, ((read if runs else read | live) - bound) | names_read(loop.iter)

    def _iterated(self, iterated: ast.expr) -> list[str]:
        """The lists of modules that a loop goes over; [] where it goes over something else."""
        if isinstance(iterated, ast.Call) and getattr(iterated.func, "id", "") in LOOPING:
            found = [self._iterated(each) for each in iterated.args]
            return [path for paths in found for path in paths] if all(found) else []
        path = path_of(iterated, self.own)
        return [path] if path and self._length(path) is not None else []

    def _length(self, path: str) -> int | None:
        child = child_of(self._module, path)
        return len(child) if isinstance(child, (nn.ModuleList, nn.Sequential)) else None

    def _goes(self, path: str) -> bool:
        """Say whether every module of a list goes."""
        names = [f"{path}.{number}" for number in range(self._length(path) or 0)]
        return all(self._within(name) for name in names)

    def _within(self, path: str) -> bool:
        return any(f"{path}.".startswith(f"{name}.") for name in self._gone)

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
        paths = paths_of(test, self.own, ())
        return any(related(path, name) for path in paths for name in self._gone)

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
        path = path_of(node, self.own) if isinstance(node, ast.Attribute) else None
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
        return statement, (live - names if plain else live) | names_read(statement)

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
        path = path_of(call.func, self.own)
        if path is not None:
            child = child_of(self._module, path)
            return self._within(path) or (
                child is not None and not [*child.parameters(), *child.buffers()]
            )
        if isinstance(call.func, ast.Name) and call.func.id in self._going:
            return True
        if isinstance(call.func, ast.Attribute) and call.func.attr in GROWING:
            return isinstance(call.func.value, ast.Name) and call.func.value.id in self._lists
        meant = resolved(call.func, self._method)
        if meant is not None:
            home = str(getattr(meant, "__module__", "") or "")
            library = home.partition(".")[0] in ("torch", "builtins", "math")
            return library or hasattr(torch, getattr(meant, "__name__", " "))
        return isinstance(call.func, ast.Attribute) and not call.func.attr.endswith("_")


class Settled(ast.NodeTransformer):
    """Leaves of a choice only what is reached, where it asks whether something is there that goes.

    Args:
        cleaner: knows the values of tests.
    """

    def __init__(self, cleaner: Cleaner) -> None:
        self._cleaner = cleaner

    def _reached(self, node: ast.If | ast.IfExp) -> Any:
        self.generic_visit(node)
        switched = self._cleaner.switch(node.test)
        if switched is None or not self._cleaner.asks_for_gone(node.test):
            return node
        return (node.body if switched else node.orelse) or ast.copy_location(ast.Pass(), node)

    visit_If = visit_IfExp = _reached


def _named(target: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def _own_lists(method: Method) -> set[str]:
    """The local lists of a method that have no second name: they grow, and operators read them."""
    names: set[str] = set()
    others: set[str] = set()
    seen: set[int] = set()
    for node in ast.walk(method.definition):  # outer expressions first
        match node:
            case ast.Assign(targets=[ast.Name(id=name) as target], value=ast.List()):
                names.add(name)
                seen.add(id(target))
            case ast.Call(func=ast.Attribute(value=ast.Name() as name, attr=attr)) if (
                attr in GROWING
            ):
                seen.add(id(name))
            case ast.Call(args=[ast.Name() as name, *_]) if _is_torch(node, method):
                seen.add(id(name))
            case ast.Subscript(value=ast.Name() as name, ctx=ast.Load()):
                seen.add(id(name))
            case ast.Name(id=name) if id(node) not in seen:
                others.add(name)
            case _:
                pass
    return names - others


def _is_torch(call: ast.Call, method: Method) -> bool:
    home = getattr(resolved(call.func, method), "__module__", None)
    return str(home or "").partition(".")[0] == "torch" or (
        isinstance(call.func, ast.Attribute) and resolved(call.func.value, method) is torch
    )
