"""Find the source of a method as its author wrote it, and make a method from other source.

The undecorated function of a method is called its *author's function* here. Its syntax tree is read
from the file that it was compiled from, so positions in the tree are those of the running code.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import itertools
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from guyot.core.errors import UnsupportedError

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Method:
    """The source of one method of a class.

    Attributes:
        kind: the class.
        name: of the method.
        function: the author's function.
        definition: its syntax tree; a copy that may be changed.
        scope: name of the class whose body it stands in; "" outside of one.
    """

    kind: type
    name: str
    function: Any  # FunctionType, which type checkers would bind
    definition: ast.FunctionDef
    scope: str


@functools.cache
def author_function(kind: type, name: str) -> FunctionType | None:
    """The undecorated function of a method, or None where there is none in Python.

    Example:
        >>> import torch
        >>> class Block(torch.nn.Module):
        ...     @torch.no_grad()
        ...     def forward(self, x): ...
        >>> author_function(Block, "forward").__code__.co_argcount
        2
    """
    waiting: list[Any] = [inspect.getattr_static(kind, name, None)]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, FunctionType) or id(found) in seen:
            continue
        seen.add(id(found))
        inner = getattr(found, "__wrapped__", None)
        if inner is None and found.__code__.co_name == name:
            return found
        waiting.append(inner)
        waiting += [_content(cell) for cell in found.__closure__ or ()]
    return None


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was put into it yet
        return None


def method_of(kind: type, name: str) -> Method:
    """The source of a method.

    Raises:
        UnsupportedError: there is none, or it is not the text that was compiled.
    """
    function = author_function(kind, name)
    if function is None:
        raise UnsupportedError(f"{kind.__qualname__} has no method {name} written in Python")
    code = function.__code__
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    for scope, definition in _functions(text):
        first = min([definition.lineno, *(d.lineno for d in definition.decorator_list)])
        if first == code.co_firstlineno and definition.name == name and _same(definition, code):
            return Method(kind, name, function, copy.deepcopy(definition), scope)
    raise UnsupportedError(f"the source of {kind.__qualname__}.{name} is not available")


@functools.lru_cache(maxsize=32)
def _functions(text: str) -> list[tuple[str, ast.FunctionDef]]:
    """All functions of a file, with the names of the classes around them."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # the file is not what was compiled
        return []
    found: list[tuple[str, ast.FunctionDef]] = []
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        scope, node = waiting.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                found.append((scope, child))
            waiting.append((child.name if isinstance(child, ast.ClassDef) else scope, child))
    return found


def _same(definition: ast.FunctionDef, code: CodeType) -> bool:
    args = definition.args
    names = [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return code.co_varnames[: len(names)] == tuple(names)


def plain_text(method: Method) -> str:
    """The text of a changed definition, without decorators, annotations and defaults."""
    definition = copy.deepcopy(method.definition)
    definition.decorator_list, definition.returns = [], None
    arguments = definition.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for argument in (*every, arguments.vararg, arguments.kwarg):
        if argument is not None:
            argument.annotation = None
    nothing = ast.Constant(None)
    arguments.defaults = [nothing for _ in arguments.defaults]
    arguments.kw_defaults = [None if d is None else nothing for d in arguments.kw_defaults]
    if method.scope:
        _Mangled(method.scope).visit(definition)
    return ast.unparse(ast.fix_missing_locations(definition))


class _Mangled(ast.NodeTransformer):
    """Write out the names that Python changes in the body of a class."""

    def __init__(self, scope: str) -> None:
        self._prefix = f"_{scope.lstrip('_')}"

    def _name(self, name: str) -> str:
        private = name.startswith("__") and not name.endswith("__")
        return f"{self._prefix}{name}" if private else name

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = self._name(node.attr)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._name(node.id)
        return node


@functools.cache
def compiled(kind: type, name: str, text: str) -> Callable[..., Any]:
    """A method from other source that sees the names, defaults and decorators of the author's.

    Args:
        kind: the class whose method it takes the place of.
        name: of the method.
        text: what `plain_text` gave.

    Raises:
        UnsupportedError: the author's function or one of its decorators is not to be had.
    """
    method = method_of(kind, name)
    function = method.function
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    try:
        around = {key: cell.cell_contents for key, cell in cells.items()}
    except ValueError as error:
        raise UnsupportedError(f"{kind.__qualname__}.{name} uses a name without a value") from error
    body = "\n".join(f"    {line}" for line in text.splitlines())
    whole = f"def made({', '.join(around)}):\n{body}\n    return {name}\n"
    file = f"<guyot {next(_numbers)}: {kind.__qualname__}.{name}>"
    linecache.cache[file] = len(whole), None, whole.splitlines(keepends=True), file
    made: dict[str, Any] = {}
    exec(compile(whole, file, "exec", dont_inherit=True), function.__globals__, made)
    result: Any = made["made"](**around)
    for key in ("__defaults__", "__kwdefaults__", "__annotations__", "__doc__", "__qualname__"):
        setattr(result, key, getattr(function, key))
    result.__module__ = function.__module__
    for decorator in reversed(method.definition.decorator_list):
        expression = compile(ast.Expression(decorator), file, "eval", dont_inherit=True)
        try:
            result = eval(expression, function.__globals__, around)(result)
        except Exception as error:
            raise UnsupportedError(
                f"a decorator of {kind.__qualname__}.{name} cannot be put on again: {error}"
            ) from error
    return result
