"""Copies that follow the model, and runs that end early."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from guyot import Discovery, DiscoveryConfig, MisconfiguredError, SequenceError

CASE = CASES["cifar"]
STEPS = 100


def start() -> tuple[nn.Module, torch.optim.Optimizer, Discovery]:
    torch.manual_seed(0)
    model = CASE.build().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    config = DiscoveryConfig(quantum=1)
    discovery = Discovery(
        model, (CASE.inputs(),), optimizer, total_steps=STEPS, target=0.5, config=config
    )
    return model, optimizer, discovery


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, discovery: Discovery, steps: int
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(CASE.inputs()).square().mean().backward()
        optimizer.step()
        discovery.step()


def test_an_average_follows() -> None:
    model, optimizer, discovery = start()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    discovery.follow(average)
    for _ in range(STEPS):
        train(model, optimizer, discovery, 1)
        average.update_parameters(model)
    discovery.finish()
    assert discovery.removals
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert shapes == {name: t.shape for name, t in average.module.state_dict().items()}
    for mine, averaged in zip(model.parameters(), average.module.parameters(), strict=True):
        assert (mine - averaged).abs().max() < 0.1 * (1 + mine.abs().max())


def test_an_average_that_does_not_change_equals_the_model() -> None:
    """With a decay of 0 the copy is the model after every step, surgery included."""
    model, optimizer, discovery = start()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.0))
    discovery.follow(average)
    for _ in range(STEPS):
        train(model, optimizer, discovery, 1)
        average.update_parameters(model)
        for mine, averaged in zip(model.parameters(), average.module.parameters(), strict=True):
            assert torch.equal(mine, averaged)


def test_what_is_no_copy_is_refused() -> None:
    _, _, discovery = start()
    with pytest.raises(MisconfiguredError, match=r"Linear is no copy of .*: \w.* has shape"):
        discovery.follow(nn.Linear(2, 2))


def test_abandoning_keeps_shapes_and_masks_weights() -> None:
    model, optimizer, discovery = start()
    train(model, optimizer, discovery, 55)
    inputs = CASE.inputs()
    with discovery.evaluation():
        masked = copy.deepcopy(model)(inputs)
    shapes = [parameter.shape for parameter in model.parameters()]
    left = discovery.abandon()
    assert left is model
    assert [parameter.shape for parameter in model.parameters()] == shapes
    assert torch.equal(model.eval()(inputs), masked)
    assert {type(m) for m in model.modules()} == {type(m) for m in CASE.build().modules()}
    with pytest.raises(SequenceError, match="after finish"):
        discovery.step()
