"""Copies that follow the model, runs that end early, and what must not be mixed."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from cases import CASES
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from guyot import (
    Discovery,
    DiscoveryConfig,
    GuyotWarning,
    MisconfiguredError,
    SequenceError,
)

CASE = CASES["cifar"]
STEPS = 100


def start() -> tuple[nn.Module, torch.optim.Optimizer, Discovery]:
    torch.manual_seed(0)
    model = CASE.build().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    config = DiscoveryConfig(round_to=1)
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


def test_models_with_gates_of_another_run_are_refused() -> None:
    model, optimizer, discovery = start()
    train(model, optimizer, discovery, 20)
    with pytest.raises(MisconfiguredError, match=r"gates of another Discovery: call abandon\(\)"):
        Discovery(model, (CASE.inputs(),), optimizer, total_steps=STEPS, target=0.5)
    discovery.abandon()
    Discovery(model, (CASE.inputs(),), optimizer, total_steps=STEPS, target=0.5)


def test_training_in_evaluation_mode_teaches_gates_nothing() -> None:
    model, optimizer, discovery = start()
    train(model, optimizer, discovery, 12)
    before = discovery.keep_probs
    model.eval()
    with pytest.warns(GuyotWarning, match="no gradient reached the gates at step 12"):
        train(model, optimizer, discovery, 1)
    assert all(torch.equal(before[name], value) for name, value in discovery.keep_probs.items())


@pytest.mark.parametrize("dials", [{"target": 0.5}, {"nu": 0.5}])
def test_layers_alone(dials: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = CASE.build().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    discovery = Discovery(
        model,
        (CASE.inputs(),),
        optimizer,
        total_steps=STEPS,
        config=DiscoveryConfig(units=False),
        **dials,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuyotWarning)
        train(model, optimizer, discovery, STEPS)
        discovery.finish()
    gone = [name for removal in discovery.removals for name in removal.layers]
    assert len(gone) + len(discovery.structures.layers) == len(discovery.original.layers)
    assert not discovery.original.groups


def test_the_settled_network_is_the_chosen_one() -> None:
    """Units that go but fill no quantum are zeros when discovery ends."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    inputs, labels = torch.randn(16, 7), torch.randint(3, (16,))
    config = DiscoveryConfig(round_to=16)
    discovery = Discovery(model, (inputs,), optimizer, total_steps=STEPS, nu=1e-6, config=config)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        discovery.step()
    removable = torch.zeros(discovery.structures.index.total, dtype=torch.bool)
    removable[:3] = True
    discovery._controller.remove(removable)
    chosen = discovery._controller.choose().mask
    assert 16 < int(chosen[:32].sum()) < 32 and not chosen[:3].any()
    assert discovery._gates is not None
    discovery._gates.probable.copy_(chosen)
    masked = model.eval()(inputs)
    discovery.settle()
    assert model[0].out_features == 32
    assert torch.allclose(model(inputs), masked, atol=1e-6)


def test_what_is_no_copy_is_refused() -> None:
    _, _, discovery = start()
    with pytest.raises(MisconfiguredError, match=r"Linear is no copy of .*: \w.* has shape"):
        discovery.follow(nn.Linear(2, 2))


def test_copies_have_a_mode_of_their_own() -> None:
    """A deep copy during discovery has the gates of its own mode, whatever the model does."""
    model, optimizer, discovery = start()
    train(model, optimizer, discovery, 20)
    assert discovery._gates is not None
    discovery._gates.sampled[::2] = 0
    discovery._gates.probable[1::3] = 0
    x = CASE.inputs()
    for module in model.modules():  # only gates may depend on the mode
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = None
    expected = {mode: model.train(mode)(x) for mode in (True, False)}
    assert not torch.equal(expected[True], expected[False])
    double = copy.deepcopy(model)
    for mode in (True, False):
        model.train(not mode)
        assert torch.equal(double.train(mode)(x), expected[mode])
        assert torch.equal(model(x), expected[not mode])


def test_a_copied_part_decides_for_itself() -> None:
    model, optimizer, discovery = start()
    train(model, optimizer, discovery, 20)
    assert discovery._gates is not None
    discovery._gates.sampled.fill_(0)
    part = next(m for m in model.modules() if type(m).__name__ == "Linear")
    double = copy.deepcopy(part)
    x = torch.ones(1, part.in_features)
    assert torch.equal(double.train()(x)[0], part.bias)
    assert not torch.equal(double.eval()(x)[0], part.bias)
    model.eval()
    assert torch.equal(double.train()(x)[0], part.bias)
    discovery.abandon()
    assert not any("_gated_model" in module.__dict__ for module in model.modules())


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
    kinds = tuple({type(m) for m in CASE.build().modules()})
    assert all(isinstance(m, kinds) and "_gated_model" not in m.__dict__ for m in model.modules())
    with pytest.raises(SequenceError, match="after finish"):
        discovery.step()
