"""A cut network beside the masked one, in all that a user sees."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.inputs import Inputs, call_model, changed, copied, tensors_of
from guyot.core.locate import named_tensors
from guyot.core.types import KeepPlan, Structures
from guyot.structures.verify.behaviour import Calm
from guyot.structures.verify.replay import reader_masks
from guyot.surgery import masks_of, operate
from guyot.surgery.stand_ins import Passing


def masked(model: nn.Module, structures: Structures, plan: KeepPlan) -> nn.Module:
    """A copy whose weights do not read what a plan leaves out."""
    module = copied(model)
    with torch.no_grad():
        named = named_tensors(module)
        for name, mask in reader_masks(structures, masks_of(structures, plan)).items():
            named[name].mul_(mask)
        for number in plan.removed_layers:
            for name in structures.layers[number].writers:
                named[name].zero_()
    return module


def outputs(model: nn.Module, inputs: Inputs, training: bool) -> list[Tensor]:
    model.train(training)
    torch.manual_seed(0)
    with Calm():
        return tensors_of(call_model(model, changed(inputs, Tensor.clone)))


def step(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """A training step that leaves gradients; what the network says in it."""
    found = outputs(model, inputs, training=True)
    generator = torch.Generator().manual_seed(1)
    weighted = (
        (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
        for out in found
        if out.requires_grad
    )
    torch.stack([*weighted]).sum().backward()
    return [out.detach() for out in found]


def plain(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Numbers among the attributes of every module: lengths are others, counts are not."""
    return {
        name: {
            key: vars(module)[key]
            for key in ("logged", "calls", "seen", "backs", "scale", "temperature", "training")
            if isinstance(vars(module).get(key), (int, float))
        }
        for name, module in model.named_modules()
        if not isinstance(module, Passing)  # the module that it stands for is gone
    }


def close(left: Tensor, right: Tensor, rounded: bool = False) -> bool:
    """Equal up to rounding in float64, or of what is rounded to float32 on the way."""
    tolerance = 1e-5 if rounded or left.dtype is torch.float32 else 1e-8
    return left.shape == right.shape and bool(
        ((left - right).abs() <= tolerance * (1 + right.abs().max() if right.numel() else 1)).all()
    )


def differences(
    model: nn.Module, inputs: Inputs, structures: Structures, plan: KeepPlan
) -> list[str]:
    """What differs between the cut and the masked network."""
    full = masked(model, structures, plan)
    cut = copied(model)
    operate(cut, structures, plan)
    wrong: list[str] = []

    def compare(what: str, left: list[Tensor], right: list[Tensor]) -> None:
        same = len(left) == len(right) and all(map(close, left, right))
        wrong.extend([] if same else [what])

    with torch.no_grad():
        whole = outputs(cut, inputs, False)
        compare("outputs", whole, outputs(full, inputs, False))
    if _works(copy.deepcopy, full):
        compare("outputs of a copy", outputs(copy.deepcopy(cut), inputs, False), whole)
    if _works(pickle.dumps, full):
        loaded = pickle.loads(pickle.dumps(cut))  # noqa: S301  (it was just made)
        compare("outputs of a pickle", outputs(loaded, inputs, False), whole)
        stream = io.BytesIO()
        torch.save(cut, stream)
        stream.seek(0)
        saved = torch.load(stream, weights_only=False)
        compare("outputs of a file", outputs(saved, inputs, False), whole)
    compare("training", step(cut, inputs), step(full, inputs))
    wrong += [
        f"attributes of {name}"
        for name, (values, expected) in _both(plain(cut), plain(full)).items()
        if values != expected
    ]
    operate(full, structures, plan)  # gradients and buffers are sliced as weights are
    if full.state_dict().keys() != cut.state_dict().keys():
        wrong.append("names")
    for name, (one, two) in _both(dict(cut.named_buffers()), dict(full.named_buffers())).items():
        compare(f"buffer {name}", [one], [two])
    parameters = _both(dict(cut.named_parameters()), dict(full.named_parameters()))
    for name, (one, two) in parameters.items():
        if one.grad is None or two.grad is None:
            nothing = one.grad is None and (two.grad is None or not bool(two.grad.any()))
            wrong += [] if nothing else [f"which gradients are None: {name}"]
        else:
            compare(f"gradient of {name}", [one.grad], [two.grad])
    return wrong


def _both(left: dict[str, Any], right: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (left[name], right[name]) for name in left.keys() & right.keys()}


def _works(function: Callable[[nn.Module], object], model: nn.Module) -> bool:
    """Say whether it can be done with a network that ran, as not with all norms of weights."""
    try:
        function(model)
    except Exception:  # noqa: BLE001  (whatever PyTorch raises)
        return False
    return True


def perturb(model: nn.Module) -> None:
    """Random weights near the model's own, so that no zero hides an error behind it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype) - 0.5
            parameter.add_(noise * (spread if spread > 1e-3 else 0.3))


def doubled(inputs: Inputs) -> Inputs:
    """The inputs in float64."""
    return changed(inputs, lambda x: x.double() if x.is_floating_point() else x)
