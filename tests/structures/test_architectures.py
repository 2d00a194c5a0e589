"""Random architectures that are cut at random: a cut network is the masked one in every respect."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import architecture
from cases import random_plan
from torch import Tensor, nn

from guyot import find_structures
from guyot.core.inputs import copied, tensors_of
from guyot.core.locate import named_tensors
from guyot.core.types import KeepPlan, Structures
from guyot.structures.verify.behaviour import Calm
from guyot.structures.verify.replay import reader_masks
from guyot.surgery import masks_of, operate

QUICK, ALL, CUTS = 6, 300, 2
Inputs = tuple[Tensor, ...]


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
        return tensors_of(model(*inputs))


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
            for key in ("logged", "calls", "seen", "scale", "temperature", "training")
            if isinstance(vars(module).get(key), (int, float))
        }
        for name, module in model.named_modules()
    }


def close(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and bool(
        ((left - right).abs() <= 1e-8 * (1 + right.abs().max() if right.numel() else 1)).all()
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
    if _works(copy.deepcopy, model):
        compare("outputs of a copy", outputs(copy.deepcopy(cut), inputs, False), whole)
    if _works(pickle.dumps, model):
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
    """Say whether PyTorch can do it with the whole network, as not with all norms of weights."""
    try:
        function(model)
    except Exception:  # noqa: BLE001  (whatever PyTorch raises)
        return False
    return True


def examined(seed: int, found: Counter[str]) -> dict[int, list[str]]:
    """Cut the network of a seed some times; for every cut what went wrong."""
    model, inputs = architecture(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structures = find_structures(model, inputs)
        found["nets"] += bool(structures.groups or structures.layers)
        found["groups"] += len(structures.groups)
        found["layers"] += len(structures.layers)
        plans = [random_plan(structures, seed=number) for number in range(CUTS)]
        found["cuts"] += len(plans)
        results = {n: differences(model, inputs, structures, p) for n, p in enumerate(plans)}
    return {number: wrong for number, wrong in results.items() if wrong}


@pytest.mark.parametrize("seed", range(QUICK))
def test_cuts_of_a_random_architecture(seed: int) -> None:
    found: Counter[str] = Counter()
    assert not examined(seed, found)
    assert found["nets"]


@pytest.mark.slow
def test_cuts_of_many_random_architectures() -> None:
    """Not one mismatch, and nearly all have something that can go."""
    found: Counter[str] = Counter()
    wrong = {seed: bad for seed in range(ALL) if (bad := examined(seed, found))}
    assert not wrong
    assert found["nets"] >= 0.95 * ALL and found["groups"] > 2 * ALL and found["layers"] > ALL / 2
