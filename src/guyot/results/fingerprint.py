"""What a network computes, in some hundred numbers, so that a rebuilt one can be compared with it.

Inputs are described by shapes and dtypes, see `described`. From that `inputs_like` makes the same
inputs every time, on every machine, without random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.errors import MisconfiguredError
from guyot.core.inputs import call_model, changed, evaluation_mode, tensors_of
from guyot.core.torch_private import pytree
from guyot.core.warning import warn

_VALUES, _SUMS = 48, 8
"""Entries of an output that are kept, and weighted sums over all of them."""

_SAME, _OTHER = 1e-4, 2e-2
"""Differences that kernels explain, relative to the largest output: on the same kind of device in
float32 or float64, and otherwise."""


def described(inputs: Any) -> Any:
    """Describe inputs as plain data: a tensor is its shape and dtype.

    Raises:
        MisconfiguredError: they hold something that is neither a tensor nor plain data.
    """
    if isinstance(inputs, Tensor):
        dtype = str(inputs.dtype).removeprefix("torch.")
        return {"tensor": list(inputs.shape), "dtype": dtype}
    if isinstance(inputs, Mapping):
        return {name: described(value) for name, value in inputs.items()}
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return [described(value) for value in inputs]
    if isinstance(inputs, str | int | float | bool | None):
        return inputs
    raise MisconfiguredError(
        f"example_inputs holds a {type(inputs).__name__}: give tensors, numbers, strings, None, "
        "and lists and mappings of them"
    )


def inputs_like(description: Any) -> Any:
    """Make inputs from what `described` gave: waves, and ones for indices and masks."""
    if isinstance(description, dict) and description.keys() == {"tensor", "dtype"}:
        dtype = getattr(torch, str(description["dtype"]), None)
        if not isinstance(dtype, torch.dtype):
            raise MisconfiguredError(
                f"structure.json names the dtype {description['dtype']!r}, which PyTorch does not "
                "have: load it with the version that saved it"
            )
        sizes = description["tensor"]
        if not dtype.is_floating_point:
            return torch.ones(sizes, dtype=dtype)
        return (2 * _wave(math.prod(sizes), 0)).reshape(sizes).to(dtype)
    if isinstance(description, dict):
        return {name: inputs_like(value) for name, value in description.items()}
    if isinstance(description, list):
        return tuple(inputs_like(value) for value in description)
    return description


def fingerprint_of(model: nn.Module, description: Any) -> dict[str, Any] | None:
    """Return what a network computes in evaluation mode, as plain data.

    Args:
        model: whose mode is as before afterwards.
        description: of its inputs.

    Warns:
        GuyotWarning: there is no fingerprint, since the network does not run on inputs made from
            the description, or gives other outputs every time.
    """
    try:
        first, second = (_outputs(model, description) for _ in range(2))
    except Exception as error:  # noqa: BLE001 - a forward may raise anything
        _warn(f"it does not run on inputs made from their shapes ({type(error).__name__}: {error})")
        return None
    device = _device(model).type
    made = {"device": device, "scale": _scale(first), "outputs": [_summary(x) for x in first]}
    if _gap(made, second, _SAME) is not None:
        _warn("its outputs differ from call to call in evaluation mode")
        return None
    return made


def unlike(model: nn.Module, description: Any, saved: Mapping[str, Any]) -> str | None:
    """Say in what a network computes something else than the one of a fingerprint; None: nothing.

    Args:
        model: was rebuilt.
        description: of its inputs.
        saved: what `fingerprint_of` gave.
    """
    outputs = _outputs(model, description)
    exact = all(x.dtype in (torch.float32, torch.float64) for x in outputs)
    exact = exact and saved["device"] == _device(model).type
    return _gap(saved, outputs, _SAME if exact else _OTHER)


def _gap(saved: Mapping[str, Any], outputs: Sequence[Tensor], tolerance: float) -> str | None:
    shapes = [list(x.shape) for x in outputs], [list(one["shape"]) for one in saved["outputs"]]
    if shapes[0] != shapes[1]:
        return f"outputs of shapes {shapes[0]} instead of {shapes[1]}"
    for number, (output, one) in enumerate(zip(outputs, saved["outputs"], strict=True)):
        values = _summary(output)["values"]
        if len(values) != len(one["values"]):
            return f"output {number} has another fingerprint"
        for found, kept in zip(values, one["values"], strict=True):
            if (found is None) != (kept is None):
                return f"output {number} is finite in other places"
            if found is not None and abs(found - kept) > tolerance * saved["scale"]:
                return f"output {number} is {found:.6g} where {kept:.6g} was saved"
    return None


@torch.no_grad()
def _outputs(model: nn.Module, description: Any) -> list[Tensor]:
    inputs = changed(inputs_like(description), lambda tensor: tensor.to(_device(model)))
    with evaluation_mode(model):
        return tensors_of(pytree().tree_leaves(call_model(model, inputs)))


def _summary(output: Tensor) -> dict[str, Any]:
    """Return some entries of an output, and weighted sums in which every entry counts."""
    flat = output.detach().cpu().double().flatten()
    count = len(flat)
    places = torch.linspace(0, max(0, count - 1), min(_VALUES, count)).round().long()
    sums = [
        (flat * _wave(count, 1 + number)).sum() / max(1, count) ** 0.5 for number in range(_SUMS)
    ]
    values = [*flat[places].tolist(), *(float(total) for total in sums)]
    kept = [value if math.isfinite(value) else None for value in values]
    return {"shape": list(output.shape), "values": kept}


def _scale(outputs: Sequence[Tensor]) -> float:
    """Return the largest finite entry of all outputs, at least a tiny one."""
    finite = [x.detach().double().abs().nan_to_num(0, 0, 0).max() for x in outputs if x.numel()]
    return max([1e-12, *(float(x) for x in finite)])


def _wave(count: int, number: int) -> Tensor:
    """Return numbers in [-1, 1] that look random and are the same everywhere; float64."""
    place = torch.arange(1, count + 1, dtype=torch.float64)
    return torch.sin(place * (1.2345 + 0.7071 * number) + 0.001 * (place * 17.31 % 97) * number)


def _device(model: nn.Module) -> torch.device:
    tensor = next(iter(model.parameters()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _warn(reason: str) -> None:
    warn(
        f"the network is saved without a fingerprint, so guyot.load cannot compare what it "
        f"rebuilds with it: {reason}",
    )
