"""What layers earn, measured by forward passes while a network trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guyot import Discovery, DiscoveryConfig
from guyot.discovery.layer_benefits import layer_benefits, untouched
from guyot.gates.bank import Gates
from guyot.planning.benefits import LayerMeans, benefit
from guyot.structures import find_structures

CONFIG = DiscoveryConfig(estimator="fisher", round_to=1, warmup=0.1, discovery_end=0.9)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.3)
        self.second = nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.drop(torch.relu(self.norm(self.first(x)))))


def network(blocks: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *(Block() for _ in range(blocks)), nn.Linear(6, 3))


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    return x, (x[:, :3] * x[:, 1:]).argmax(1)


def discovery_of(model: nn.Module, steps: int = 100, config: DiscoveryConfig = CONFIG) -> Discovery:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return Discovery(model, (batch()[0],), optimizer, total_steps=steps, target=0.5, config=config)


def train(discovery: Discovery, steps: int, *, closure: bool = True) -> list[float]:
    x, y = batch()
    losses: list[float] = []

    def loss() -> Tensor:
        return F.cross_entropy(discovery.model(x), y)

    for _ in range(steps):
        value = loss()
        value.backward()
        discovery._optimizers.each[0].step()
        discovery._optimizers.each[0].zero_grad()
        discovery.step(loss=loss if closure else None)
        losses.append(float(value.detach()))
    return losses


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_measurement_is_the_difference_of_two_losses(in_turn: bool) -> None:
    model, (x, y) = network().train(), batch()
    structures = find_structures(model, (x,))
    gates = Gates(structures, torch.device("cpu"))
    gates.attach(model)
    where = torch.arange(structures.index.total)[structures.index.layer_slice]
    gates.sampled[where[1]] = 0  # one that is off is tried on

    def loss(net: nn.Module = model) -> Tensor:
        return F.cross_entropy(net(x), y)

    torch.manual_seed(7)
    found = layer_benefits(gates, where, loss, in_turn=in_turn)
    gates.detach()

    def plain(gone: set[int]) -> float:
        net = copy.deepcopy(model)
        for number in gone:
            net[1 + number] = nn.Identity()
        torch.manual_seed(7)
        # dropout of what is gone draws numbers too
        drawn = {n: copy.deepcopy(model[1 + n]) for n in gone}
        for n, block in drawn.items():
            block.second.weight.data.zero_(), block.second.bias.data.zero_()
            net[1 + n] = block
        with torch.no_grad():
            return float(loss(net))

    expected = [plain({0, 1}) - plain({1}), plain({1}) - plain(set()), plain({1, 2}) - plain({1})]
    if in_turn:  # the first is off for the second, and the second on for the third
        expected[1:] = [plain({0, 1}) - plain({0}), plain({0, 2}) - plain({0})]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-4)
    assert gates.sampled[where].tolist() == [1, 0, 1]


def test_a_measurement_leaves_no_trace() -> None:
    """A run in which every measurement is thrown away trains as one that is measured."""

    def trained(measured: Callable[[Discovery], None]) -> list[float]:
        discovery = discovery_of(network(), 400)  # prices do not matter in so few steps
        measured(discovery)
        return train(discovery, 80)

    def nowhere(discovery: Discovery) -> None:
        discovery._controller.layers_due = lambda step: torch.zeros(0, dtype=torch.int64)

    def as_if_nothing(discovery: Discovery) -> None:
        discovery._controller.take_layers = lambda gates, rises: None

    assert trained(nowhere) == trained(as_if_nothing)


def test_buffers_come_back_after_an_error() -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.named_buffers()}

    def failing() -> None:
        with untouched(model):
            model(batch()[0])
            raise ValueError("no loss")

    with pytest.raises(ValueError, match="no loss"):
        failing()
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())


def test_every_layer_has_its_turn_and_what_it_earns_is_seen() -> None:
    discovery = discovery_of(network(5), 300, CONFIG)
    train(discovery, 29)
    assert not discovery._controller.state.layers.count.any()  # there are no gates yet
    train(discovery, 51)
    index, state = discovery.structures.index, discovery._controller.state
    counts = state.layers.count[index.layer_slice]
    assert counts.min() >= 2 and counts.max() - counts.min() <= 1
    assert not state.layers.count[: index.layer_slice.start].any()
    earned = torch.stack([discovery.benefits[f"layer {n + 1}"] for n in range(5)])
    assert torch.equal(earned, state.layers.mean[index.layer_slice])


def test_layers_that_are_not_measured_are_drawn_and_estimated_from_both_sides() -> None:
    discovery = discovery_of(network(), 400)
    sample, seen = discovery._controller.sample, [0, 0]

    def noted(generator: torch.Generator, steps: int) -> Tensor:
        state, drawn = discovery._controller.state, sample(generator, steps)
        units = discovery.structures.index.layer_slice.start
        likely = (state.theta >= 0.5) & state.alive
        for row in drawn:  # units are where they are likely
            assert torch.equal(row[:units] == 1, likely[:units])
        seen[0] += drawn[:, units:].numel()
        seen[1] += int(drawn[:, units:].sum())
        return drawn

    discovery._controller.sample = noted
    train(discovery, 140, closure=False)
    assert 0 < seen[1] < seen[0]
    layers = discovery.structures.index.layer_slice
    state = discovery._controller.state
    expected = benefit("two-sided", state.estimator, state.theta)[layers]
    found = discovery._controller.gate_values.benefit[layers]
    assert torch.equal(found, expected) and not state.layers.count.any()


def test_layers_that_are_measured_are_not_drawn() -> None:
    discovery = discovery_of(network(), 400)
    train(discovery, 42)
    index, state = discovery.structures.index, discovery._controller.state
    assert state.layers.count[index.layer_slice].tolist() == [1, 1, 1]  # all at once
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        assert discovery._controller.sample(generator).all()


def test_means_forget_and_survive_what_is_not_finite() -> None:
    means, gate = LayerMeans.start(3), torch.tensor([1])
    for rise in (1.0, 3.0, float("nan"), float("inf")):
        means = means.updated(gate, torch.tensor([rise]))
    assert means.mean.tolist() == [0, 2, 0] and means.count.tolist() == [0, 2, 0]
    for _ in range(100):
        means = means.updated(gate, torch.tensor([5.0]))
    assert means.mean[1] == pytest.approx(5)
    assert means.over(torch.full((3,), 9.0)).tolist() == pytest.approx([9, 5, 9])


def test_a_resumed_run_measures_as_one_in_one_piece() -> None:
    first = discovery_of(network())
    train(first, 37)
    second = discovery_of(network())
    second.load_state_dict(first.state_dict())
    second.model.load_state_dict(first.model.state_dict())
    second._optimizers.each[0].load_state_dict(
        copy.deepcopy(first._optimizers.each[0].state_dict())
    )
    losses: list[list[float]] = []
    for discovery in (first, second):
        torch.manual_seed(3)
        losses.append(train(discovery, 23))
    assert losses[0] == losses[1]
    means = [d._controller.state.layers for d in (first, second)]
    assert torch.equal(means[0].mean, means[1].mean) and int(means[0].count.sum()) > 9


class WithLoss(nn.Module):
    """A model that returns its loss by name, or as an attribute, when it is given labels."""

    def __init__(self, *, mapping: bool) -> None:
        super().__init__()
        self.net, self.mapping = network(), mapping

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.net(x)
        if labels is None:
            return logits
        loss = F.cross_entropy(logits, labels)
        return {"loss": loss} if self.mapping else SimpleNamespace(loss=loss)


@pytest.mark.parametrize("mapping", [True, False])
def test_a_model_that_returns_its_loss_needs_no_closure(mapping: bool) -> None:
    model, (x, y) = WithLoss(mapping=mapping), batch()
    discovery = discovery_of(model, 300)
    copies: list[nn.Module] = []
    for _ in range(80):
        output = model(x, labels=y)
        (output["loss"] if mapping else output.loss).backward()
        discovery._optimizers.each[0].step()
        discovery._optimizers.each[0].zero_grad()
        discovery.step()
        copies = [copy.deepcopy(model)]
    index, state = discovery.structures.index, discovery._controller.state
    assert state.layers.count[index.layer_slice].min() > 1
    copies[0].train()(x, labels=y)  # a copy is watched by nobody
    discovery.finish()
    assert not model._forward_hooks
