"""Constructor calls of PyTorch's own modules, read off their attributes and checked."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from guyot.core.errors import UnsupportedError
from guyot.results.codegen.markup import literal, number

_SHORT = {"channels": "", "features": "", "size": ""}


def constructor(module: nn.Module) -> str | None:
    """Return the expression that makes a module like this one, with marked numbers.

    Only for modules of `torch.nn` that have their own `forward` (or a subclass that inherits it);
    None when the attributes do not tell how the module was made.

    Example:
        >>> from guyot.results.codegen.markup import plain
        >>> plain(constructor(nn.Conv2d(3, 8, 3, padding=1, bias=False)) or "")
        'nn.Conv2d(3, 8, 3, padding=1, bias=False)'
    """
    kind = _public(type(module))
    if kind is None or (list(module.children()) and kind is not nn.MultiheadAttention):
        return None
    for folded in (True, False):
        arguments = _arguments(module, kind, folded)
        if arguments is not None and _same(module, kind, arguments):
            with contextlib.suppress(UnsupportedError):
                return _expression(kind, arguments)
    return None


def _public(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Return the class of `torch.nn` whose `forward` the class has."""
    for base in kind.__mro__:
        if getattr(nn, base.__name__, None) is base and base is not nn.Module:
            return base if base.forward is kind.forward else None
    return None


def _arguments(
    module: nn.Module, kind: type[nn.Module], folded: bool
) -> dict[inspect.Parameter, Any] | None:
    """Return the constructor's arguments that differ from their defaults."""
    found: dict[inspect.Parameter, Any] = {}
    for parameter in inspect.signature(kind).parameters.values():
        required = parameter.default is inspect.Parameter.empty
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if several or (required and not hasattr(module, parameter.name)):
            return None
        if parameter.name in ("device", "dtype") or not hasattr(module, parameter.name):
            continue
        value = getattr(module, parameter.name)
        if parameter.name == "bias" and not isinstance(value, bool):
            value = value is not None
        if folded and isinstance(value, tuple) and value and len({*value}) == 1:
            value = value[0]
        if required or value != parameter.default:
            found[parameter] = value
    if kind is nn.MultiheadAttention:
        found = {p: v for p, v in found.items() if p.name not in ("kdim", "vdim")}
        if module.in_proj_bias is None:
            found[inspect.signature(kind).parameters["bias"]] = False
    return found


def _same(
    module: nn.Module, kind: type[nn.Module], arguments: Mapping[inspect.Parameter, Any]
) -> bool:
    """Tell whether a module made with these arguments is like the given one."""
    try:
        with torch.device("meta"):
            made = kind(**{parameter.name: value for parameter, value in arguments.items()})
    except (TypeError, ValueError, RuntimeError, AssertionError):
        return False
    kinds = (bool, int, float, str, tuple, type(None))
    plain = all(
        getattr(module, name, ...) == value
        for name, value in vars(made).items()
        if isinstance(value, kinds) and not name.startswith("_") and name != "training"
    )
    shapes = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in each.state_dict().items()}
        for each in (made, module)
    ]
    return plain and shapes[0] == shapes[1]


def _expression(kind: type[nn.Module], arguments: Mapping[inspect.Parameter, Any]) -> str:
    texts = [
        written(value, parameter.name)
        if parameter.default is inspect.Parameter.empty
        else f"{parameter.name}={written(value, parameter.name)}"
        for parameter, value in arguments.items()
    ]
    return f"nn.{kind.__name__}({', '.join(texts)})"


def written(value: Any, hint: str = "") -> str:
    """Return a value as an expression, with marked integers.

    Example:
        >>> from guyot.results.codegen.markup import plain
        >>> plain(written([2, 0.5, float("inf"), torch.float32, None]))
        '[2, 0.5, float("inf"), torch.float32, None]'
    """
    match value:
        case bool() | None:
            return repr(value)
        case str():
            return str.__repr__(value)
        case int():
            return number("_".join(_SHORT.get(part, part) for part in hint.split("_")), value)
        case float():
            return literal(value)
        case list():
            return f"[{', '.join(written(item, hint) for item in value)}]"
        case tuple():
            comma = "," * (len(value) == 1)
            return f"({', '.join(written(item, hint) for item in value)}{comma})"
        case torch.device():
            return f'torch.device("{value}")'
        case torch.dtype() | torch.memory_format() | torch.layout():
            return str(value)  # torch.float32, torch.channels_last, torch.strided
        case _:
            raise UnsupportedError(
                f"a value of type {type(value).__name__} cannot be written as source code: export "
                "the model as pt2 or onnx"
            )
