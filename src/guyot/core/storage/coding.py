"""Trees as JSON, beside their tensors.

JSON has no tuples, no keys but strings, no NaN; one-entry objects whose key begins with $
stand for them:

    {"$tensor": "optimizer.state.0.exp_avg", "strides": [9, 1, 3]}  strides: if not contiguous
    {"$tuple": [0.9, 0.999]}
    {"$items": [[0, "a"], [1, "b"]]}                                a dict with other keys
    {"$counter": [[30, 1], [60, 1]]}                                a `collections.Counter`
    {"$float": "nan"}                                               or "inf", "-inf"
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guyot.core.errors import UnsupportedError
from guyot.core.trees import describe


def encoded(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return plain data for JSON, and put tensors aside by name."""
    if isinstance(tree, Tensor):
        name = path if path not in tensors else f"{path}#{len(tensors)}"
        tensors[name] = tree
        entry: dict[str, Any] = {"$tensor": name}
        if not tree.is_contiguous() and _dense(tree.shape, tree.stride()):
            entry["strides"] = list(tree.stride())
        return entry
    if isinstance(tree, np.generic):
        tree = tree.item()
    if tree is None or isinstance(tree, bool | int | str):
        return tree
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else {"$float": repr(tree)}
    if isinstance(tree, Mapping):
        keyed = all(isinstance(key, str) and not key.startswith("$") for key in tree)
        items = [
            (key if keyed else encoded(key, path, tensors), encoded(v, f"{path}.{key}", tensors))
            for key, v in tree.items()
        ]
        if isinstance(tree, Counter):
            return {"$counter": items}
        return dict(items) if keyed else {"$items": items}
    if isinstance(tree, list | tuple):
        values = [encoded(value, f"{path}.{n}", tensors) for n, value in enumerate(tree)]
        return values if isinstance(tree, list) else {"$tuple": values}
    raise UnsupportedError(
        f"{path} is a {type(tree).__name__}: a checkpoint holds tensors, numbers, strings, None, "
        "and dicts, lists and tuples of them"
    )


class Malformed(Exception):
    """JSON that `encoded` does not write."""


def laid_out(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """Return the same tensor with other strides."""
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def decoded(
    data: Any, tensors: Mapping[str, Any], lay: Callable[[Any, Sequence[int]], Any] = laid_out
) -> Any:
    """Return the tree that `encoded` wrote.

    Args:
        data: plain data.
        tensors: by name, or what stands for them and has their shapes.
        lay: gives one of them strides.
    """
    if isinstance(data, list):
        return [decoded(value, tensors, lay) for value in data]
    if not isinstance(data, dict):
        return data
    tags = [key for key in data if key.startswith("$")]
    if not tags:
        return {key: decoded(value, tensors, lay) for key, value in data.items()}
    value = data[tags[0]]
    match tags[0]:
        case "$tensor" if set(data) <= {"$tensor", "strides"}:
            return _tensor(value, data.get("strides"), tensors, lay)
        case "$tuple" if len(data) == 1 and isinstance(value, list):
            return tuple(decoded(item, tensors, lay) for item in value)
        case "$items" | "$counter" if len(data) == 1 and isinstance(value, list):
            kind = dict if tags[0] == "$items" else Counter
            with contextlib.suppress(TypeError, ValueError):
                pairs = ((decoded(k, tensors, lay), decoded(v, tensors, lay)) for k, v in value)
                return kind({_key(key): item for key, item in pairs})
        case "$float" if value in ("nan", "inf", "-inf") and len(data) == 1:
            return float(value)
        case _:
            pass
    raise Malformed(f"{describe(data)} with {tags[0]!r}: {describe(value)}")


def _key(key: Any) -> Any:
    if isinstance(key, str | int | float | bool | tuple | None):
        return key
    raise TypeError


def _tensor(name: Any, strides: Any, tensors: Mapping[str, Any], lay: Callable[..., Any]) -> Any:
    if not isinstance(name, str) or name not in tensors:
        raise Malformed(f"the tensor {describe(name)} is not in the file beside it")
    tensor = tensors[name]
    if strides is None:
        return tensor
    if (
        not isinstance(strides, list)
        or len(strides) != len(tensor.shape)
        or not all(type(stride) is int and 0 <= stride < 2**62 for stride in strides)
        or not _dense(tensor.shape, strides)
    ):
        raise Malformed(f"{describe(strides)} as strides of {describe(tensor)}")
    return lay(tensor, strides)


def _dense(shape: Iterable[int], strides: Iterable[int]) -> bool:
    """Return whether no two entries share memory and none is skipped."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return expected > 0
