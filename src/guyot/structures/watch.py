"""Watch where in the source of its methods a module adds tensors and states lengths.

While the model runs once, every addition and every call that states lengths notes the exact
expression that made it.
"""

from __future__ import annotations

import inspect
import itertools
from collections import defaultdict
from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from guyot.core.types import Place
from guyot.surgery import SHAPING, author_function

_SUMS = {"__add__", "__radd__", "__iadd__", "add", "add_"}


class Event(NamedTuple):
    """One operator that ran.

    Attributes:
        name: of the kind: "add", or what states lengths.
        place: where; None when it was not in a method of the module.
    """

    name: str
    place: Place | None


class Watch(TorchFunctionMode):
    """Notes additions and calls that state lengths while a model runs.

    Args:
        model: what runs.

    Attributes:
        events: qualified name of a module -> what its methods did, in order.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {module: name for name, module in model.named_modules()}
        self.events: dict[str, list[Event]] = defaultdict(list)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _SUMS:
            tensors = {id(arg) for arg in args[:2] if isinstance(arg, Tensor)}
            if len(tensors) == 2:
                self._note("add", _caller())
        elif name in SHAPING:
            self._note("split" if name == "split_with_sizes" else name, _caller())
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, frame: FrameType | None) -> None:
        """Find the innermost method of a module of the model that runs."""
        inner: FrameType | None = None
        while frame is not None:
            code = frame.f_code
            module = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            if isinstance(module, nn.Module) and module in self._names:
                function = author_function(type(module), code.co_name)
                if function is not None and function.__code__ is code:
                    place = _place(code, inner or frame)
                    self.events[self._names[module]].append(Event(name, place))
                    return
            if inner is None and "<locals>" in code.co_qualname:
                inner = frame
            frame = frame.f_back


def _caller() -> FrameType | None:
    """The frame that called the function that asks."""
    frame = inspect.currentframe()
    inner = None if frame is None else frame.f_back
    return None if inner is None else inner.f_back


def _place(method: CodeType, frame: FrameType) -> Place | None:
    """Return where a frame stands, if that is in the text of a method."""
    code = frame.f_code
    inside = f"{method.co_qualname}.<locals>."
    if code is not method and not code.co_qualname.startswith(inside):
        return None
    positions = itertools.islice(code.co_positions(), frame.f_lasti // 2, None)
    first, last, column, end = next(positions, (None,) * 4)
    if first is None or last is None or column is None or end is None:
        return None
    return Place(method.co_name, method.co_filename, (first, column, last, end))
