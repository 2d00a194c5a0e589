"""What a captured CUDA graph does, on the CPU: the same operators on the same memory, no Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Captured(TorchDispatchMode):
    """Run some passes, note their operators, and repeat them into the memory of the first run."""

    def __init__(self, passes: Callable[[], object]) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        with self:
            passes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self._calls:
            read = {memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and memory(old) not in read:
                    old.copy_(new)


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
