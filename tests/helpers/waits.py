"""Which calls would wait for a device, if tensors were on one."""

from __future__ import annotations

from typing import Any, Self

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OPERATORS = frozenset(
    {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
)
"""Operators that read what a device computed, whoever calls them."""


class Waits(TorchFunctionMode):
    """Note what would wait for a device, in Python (`found`) or in an operator (`inside`)."""

    NAMES = frozenset(
        {"cpu", "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside: list[str] = []
        self._operators = _Operators(self.inside)

    def __enter__(self) -> Self:
        self._operators.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._operators.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if (name := getattr(func, "__name__", "")) in self.NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in OPERATORS:
            self._found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
