"""Which types of numbers a user sees under autocast.

A branch that goes may have turned what it is added to into another type: bfloat16 + float32 is
float32. Only types and shapes are computed here, no numbers, so it takes little time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.inputs import Inputs, call_model, changed, copied, tensors_of
from guyot.core.torch_private import Moving, has_forward_hooks, weightless
from guyot.structures.verify.behaviour import changes, plain_attributes

Types = Mapping[str, Sequence[torch.dtype]]
"""Types of the tensors that modules with hooks return and that plain attributes get, by name.

"" stands for the model's outputs.
"""


def types_seen(model: nn.Module, inputs: Inputs) -> Types | None:
    """Return the types that a training step under autocast shows, of a model on the CPU.

    None where the step does not run without numbers.

    Example:
        >>> types_seen(nn.Linear(2, 2), (torch.ones(1, 2),))
        {'': [torch.bfloat16]}
    """
    seen: dict[str, list[torch.dtype]] = {}
    mode = weightless()

    def imagined(tensor: Tensor) -> Tensor:
        single = torch.float32 if tensor.dtype is torch.float64 else tensor.dtype
        with mode:
            return torch.empty(tensor.shape, dtype=single)

    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(tensor): imagined(tensor) for tensor in tensors}
    try:
        twin = copied(model, memo)
        for module in twin.modules():
            if isinstance(module, Moving):
                module.moved(lambda tensor: tensor.float())
        for name, module in twin.named_modules():
            if name and has_forward_hooks(module):
                module.register_forward_hook(_noting(seen, name))
        modules = dict(twin.named_modules())
        before = {name: plain_attributes(module) for name, module in modules.items()}
        given = changed(inputs, imagined)
        with mode, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            outputs = call_model(twin.train(), given)
    except Exception:  # noqa: BLE001  (whatever a user's forward raises)
        return None
    for name, module in modules.items():
        for key, (_, value) in changes(before[name], module).items():
            seen[f"{name}.{key}".removeprefix(".")] = _types(value)
    return {"": _types(outputs), **seen}


def _noting(seen: dict[str, list[torch.dtype]], name: str) -> Callable[..., None]:
    def note(_: nn.Module, __: Any, output: Any) -> None:
        seen[name] = _types(output)

    return note


def _types(value: Any) -> list[torch.dtype]:
    return [tensor.dtype for tensor in tensors_of(value)]


def other_types(before: Types, after: Types | None) -> str | None:
    """Return what a cut network shows in another type than before; None if nothing.

    Example:
        >>> other_types({"": [torch.float32]}, {"": [torch.bfloat16]})
        'under autocast an output is torch.bfloat16 instead of torch.float32'
    """
    if after is None:
        return "under autocast the model's own forward does not run without it"
    for name, types in after.items():
        for one, two in zip(before.get(name, types), types, strict=False):
            if one is not two:
                return f"under autocast {name or 'an output'} is {two} instead of {one}"
    return None
