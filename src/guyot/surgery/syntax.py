"""What expressions in the source of a method mean: names of modules, of functions, of values."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Sequence
from typing import Any

from torch import nn

from guyot.surgery.source import Method


def related(path: str, name: str) -> bool:
    """Say whether one is the other, or lies in it."""
    return f"{path}.".startswith(f"{name}.") or f"{name}.".startswith(f"{path}.")


def child_of(module: nn.Module, path: str) -> nn.Module | None:
    """Return a descendant of a module, or None where there is none of that name."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def resolved(node: ast.expr, method: Method) -> Any:
    """Return what a dotted name means outside of the function; None if it is none of that."""
    if isinstance(node, ast.Name):
        code = method.function.__code__
        if node.id in code.co_varnames or node.id in code.co_cellvars:
            return None
        scope = method.function.__globals__
        return scope.get(node.id, getattr(builtins, node.id, None))
    if isinstance(node, ast.Attribute):
        return getattr(resolved(node.value, method), node.attr, None)
    return None


def path_of(node: ast.expr, own: str) -> str | None:
    """`self.a.b[0]` as a qualified name; None for what is none."""
    if isinstance(node, ast.Name):
        return "" if node.id == own else None
    if isinstance(node, ast.Attribute):
        key = node.attr
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        key = str(node.slice.value)
    else:
        return None
    inner = path_of(node.value, own)
    return None if inner is None else f"{inner}.{key}" if inner else key


def paths_of(tree: ast.AST, own: str, without: Sequence[ast.AST]) -> set[str]:
    """The longest qualified names that a method reads from its module."""
    inside = {id(node) for part in without for node in ast.walk(part)}
    found: set[str] = set()
    for node in ast.walk(tree):  # outer expressions first
        if isinstance(node, (ast.Attribute, ast.Subscript)) and id(node) not in inside:
            path = path_of(node, own)
            if path is not None:
                inside.update(id(inner) for inner in ast.walk(node))
                found.add(path)
    return found


def names_read(node: ast.AST) -> set[str]:
    """Return the local and global names that an expression or statement reads."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
