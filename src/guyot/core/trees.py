"""State as a tree: dicts, lists and tuples whose leaves are tensors and plain values.

`state_dict()`s of models, optimisers and schedulers are such trees. Here they are compared, and
mapped leaf by leaf.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def mapped(tree: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """Return the same tree with every tensor, or every leaf of another kind, changed.

    Example:
        >>> import torch
        >>> mapped({"a": [torch.ones(2), 3]}, lambda tensor: tuple(tensor.shape))
        {'a': [(2,), 3]}
    """
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, Counter):
        return tree
    if isinstance(tree, Mapping):
        return {key: mapped(value, change, kind) for key, value in tree.items()}
    if isinstance(tree, list):
        return [mapped(value, change, kind) for value in tree]
    if isinstance(tree, tuple):
        return tuple(mapped(value, change, kind) for value in tree)
    return tree


def difference(expected: Any, found: Any, *, values: bool = False) -> str | None:
    """Return the first respect in which two trees do not fit, in words; None if they fit.

    Trees fit when they have the same keys, the same kinds of leaves, and tensors of the same
    shapes and dtypes. A number fits every number; None fits None, numbers and tensors.

    Args:
        expected: the tree here.
        found: the tree that was read.
        values: plain leaves must be equal, too; tuples and lists of the same values are.

    Example:
        >>> difference({"lr": 0.1, "steps": [1, 2]}, {"lr": 0.5, "steps": [1, 2]})
        >>> difference({"lr": 0.1, "steps": [1, 2]}, {"lr": 0.5, "steps": [1, 2]}, values=True)
        'lr is 0.5, expected 0.1'
        >>> difference({"lr": 0.1}, {})
        'lr is missing'
    """
    return next(_differences(expected, found, "", values), None)


def _differences(expected: Any, found: Any, path: str, values: bool) -> Iterator[str]:
    name = path or "the state"
    if isinstance(expected, Tensor) and isinstance(found, Tensor):
        if expected.shape != found.shape or expected.dtype != found.dtype:
            yield f"{name} is {describe(found)}, expected {describe(expected)}"
    elif isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in [*expected, *(key for key in found if key not in expected)]:
            where = f"{path}.{key}" if path else str(key)
            if key not in found:
                yield f"{where} is missing"
            elif key not in expected:
                yield f"{where} is unexpected"
            else:
                yield from _differences(expected[key], found[key], where, values)
    elif isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        if len(expected) != len(found):
            yield f"{name} has {len(found)} entries, expected {len(expected)}"
        for number, pair in enumerate(zip(expected, found, strict=False)):
            yield from _differences(*pair, f"{path}[{number}]", values)
    elif values:
        if expected != found or _kind(expected) != _kind(found):
            yield f"{name} is {describe(found)}, expected {describe(expected)}"
    elif not _fits(_kind(expected), _kind(found)):
        yield f"{name} is {describe(found)}, expected {describe(expected)}"


def _kind(leaf: Any) -> str:
    if isinstance(leaf, bool):
        return "bool"
    if isinstance(leaf, int | float):
        return "number"
    return type(leaf).__name__ if not isinstance(leaf, Tensor) else "tensor"


def _fits(expected: str, found: str) -> bool:
    return expected == found or (expected == "NoneType" and found in ("number", "tensor"))


def finite(tree: Any) -> Any:
    """Return the same tree with None for NaN and inf, and with names as keys: what JSON can hold.

    Example:
        >>> finite({1: [0.5, float("nan")]})
        {'1': [0.5, None]}
    """
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, Mapping):
        return {str(key): finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return tree


def json_text(tree: Mapping[str, Any]) -> str:
    """Return a tree of plain values as JSON for people: indented, lists of integers on one line."""
    text = json.dumps(finite(tree), indent=1, allow_nan=False)
    return re.sub(r"\[[\s\d,]+\]", lambda found: " ".join(found[0].split()), text) + "\n"


def describe(value: Any) -> str:
    """Return a value in a few words, for an error.

    Example:
        >>> import torch
        >>> describe(torch.ones(3, 2)), describe({"a": 1}), describe("x" * 90)[:8]
        ('a float32 tensor of shape (3, 2)', 'a mapping of 1', "'xxxxxxx")
    """
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
