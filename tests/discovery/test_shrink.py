"""Cutting a trained network down without training it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import guyot
from guyot import DiscoveryConfig, GuyotWarning, MisconfiguredError
from guyot.discovery.shrink import shrink
from guyot.gates.bank import Gates
from guyot.planning.benefits import Homes, SideMeans, SideSums, curvature, fisher, with_branches
from guyot.structures import find_structures

EXACT = DiscoveryConfig(round_to=1)
EXAMPLE = (torch.zeros(2, 5),)


class Block(nn.Module):
    """A residual branch with BatchNorm behind what reads its hidden units."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(8, width), nn.BatchNorm1d(width)
        self.second, self.last = nn.Linear(width, 8, bias=False), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.second(torch.relu(self.norm(self.first(x)))))


class Net(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (40, 80, 40)) -> None:
        super().__init__()
        self.stem, self.dropout = nn.Linear(5, 8), nn.Dropout(0.1)
        self.blocks = nn.Sequential(*map(Block, widths))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.blocks(self.dropout(self.stem(x)))))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batches(count: int = 20) -> list[tuple[Tensor, Tensor]]:
    """Three classes that no linear function of the inputs tells apart."""
    x = torch.randn(count, 64, 5, generator=torch.Generator().manual_seed(1))
    y = torch.stack([x[..., 0] * x[..., 1], x[..., 2] * x[..., 3], x[..., 4]], -1).argmax(-1)
    return list(zip(x, y, strict=True))


@torch.no_grad()
def nothing(_: Net) -> None:
    """Let all of a network work."""


@torch.no_grad()
def much(model: Net) -> None:
    """Let the second branch and half of the units of the others give nothing."""
    for parameter in model.blocks[1].last.parameters():
        parameter.zero_()
    model.blocks[0].second.weight[:, :20] = 0
    model.blocks[2].second.weight[:, 20:] = 0


def trained(
    useless: Callable[[Net], None] = nothing, widths: tuple[int, ...] = (40, 80, 40)
) -> Net:
    """A network after some steps, after each of which something in it was made useless."""
    torch.manual_seed(0)
    model = Net(widths)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for batch in batches() * 8:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        useless(model)
    return model.eval()


def total_loss(model: nn.Module) -> float:
    with torch.no_grad():
        return sum(float(loss(model, batch)) for batch in batches())


@pytest.mark.parametrize("stages", [1, 3])
def test_what_contributes_nothing_goes_first(stages: int) -> None:
    """Three quarters of the MACs go and the loss stays."""
    model = trained(much)
    before = total_loss(model)
    found = shrink(model, EXAMPLE, batches(), loss, target=0.268, config=EXACT, stages=stages)
    assert found.structure["removed_layers"] == ["blocks.1"]
    assert found.attained == pytest.approx(0.268, rel=0.01)
    assert found.params == sum(p.numel() for p in model.parameters())
    assert total_loss(model) < 1.1 * before


@pytest.mark.parametrize("stages", [1, 3])
def test_a_target_is_met_and_the_structure_can_be_rebuilt(stages: int) -> None:
    model = trained()
    found = shrink(model, EXAMPLE, batches(), loss, target=0.6, stages=stages, config=EXACT)
    assert found.attained == pytest.approx(0.6, rel=0.01)
    assert len(found.removals) <= stages
    assert found.removals[-1].macs == found.macs
    fresh = guyot.rebuild(Net(), EXAMPLE, found.structure)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in model.parameters()]
    fresh.load_state_dict(model.state_dict())


def test_of_two_layers_that_cost_as_much_the_one_whose_absence_costs_less_goes() -> None:
    rises = {}
    for name in ("blocks.0", "blocks.2"):
        model = trained().train()
        model.dropout.eval()
        for parameter in model.get_submodule(name).last.parameters():
            nn.init.zeros_(parameter)
        rises[name] = total_loss(model)
    assert abs(rises["blocks.0"] - rises["blocks.2"]) > 0.01
    config, target = DiscoveryConfig(units=False), 1 - 40 * 16 / 2624
    found = shrink(trained(), EXAMPLE, batches(8), loss, target=target, config=config, stages=1)
    assert found.structure["removed_layers"] == [min(rises, key=lambda name: rises[name])]


class Sign(nn.Module):
    """A residual branch that adds a multiple of one number of the stream to another."""

    def __init__(self, source: int, destination: int, gain: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16, bias=False), nn.Linear(16, 4, bias=False)
        with torch.no_grad():
            self.first.weight.zero_()[:2, source] = torch.tensor([1.0, -1.0])
            self.second.weight.zero_()[destination, :2] = torch.tensor([gain, -gain])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(x)))


class Twins(nn.Module):
    """Two branches that say the same, one of which is enough, and one that says something else."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Sign(0, 2, 5.0), Sign(1, 3, 0.5), Sign(0, 2, 5.0))

    def forward(self, x: Tensor) -> Tensor:
        sure, unsure = torch.tanh(self.blocks(x)[:, 2:]).unbind(-1)
        return (
            torch.stack([6 * sure, -6 * sure], -1)[:, :, None]
            + torch.stack([unsure, -unsure], -1)[:, None]
        )


@pytest.mark.parametrize("stages", [1, None])
def test_layers_that_stand_in_for_each_other_do_not_go_together(stages: int | None) -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        of_signs = (x[:, 0] < 0).long() * 2 + (x[:, 1] < 0).long()
        return F.cross_entropy(model(x).flatten(1), of_signs)

    torch.manual_seed(0)
    inputs = [F.pad(torch.randn(64, 2), (0, 2)) for _ in range(10)]
    model = Twins()
    config = DiscoveryConfig(units=False)
    with torch.no_grad():
        before = float(loss(model, inputs[0]))
    found = shrink(model, (inputs[0],), inputs, loss, target=1 / 3, stages=stages, config=config)
    assert set(found.structure["removed_layers"]) in ({f"blocks.{k}", "blocks.1"} for k in (0, 2))
    with torch.no_grad():
        assert float(loss(model, inputs[0])) < before + 0.4


@pytest.mark.parametrize(("layers", "stages"), [(True, [1, 4, 7]), (False, [1, 1, 2])])
def test_every_stage_keeps_four_fifths_or_half_without_layers(
    layers: bool, stages: list[int]
) -> None:
    shares = {target: list[float]() for target in (0.9, 0.5, 0.25)}
    config = replace(EXACT, layers=layers)
    for target, found in shares.items():
        removals = shrink(trained(), EXAMPLE, batches(10), loss, target=target, config=config)
        found += [removal.macs / 2624 for removal in removals.removals]
    assert [len(found) for found in shares.values()] == stages
    for target, found in shares.items():
        steps = [after / before for before, after in pairwise([1.0, *found])]
        assert steps == pytest.approx([target ** (1 / len(found))] * len(found), abs=0.04)


def test_measuring_leaves_no_trace() -> None:
    model = trained()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.blocks[0].train()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    with pytest.raises(MisconfiguredError, match="NaN or infinite"):
        shrink(model, EXAMPLE, batches(), lambda m, b: loss(m, b) * torch.nan, target=0.5)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all((p.grad == 1).all() for p in model.parameters())
    assert {type(m) for m in model.modules()} == {type(m) for m in Net().modules()}


def test_statistics_are_means_over_the_batches() -> None:
    model = trained()
    shrink(model, EXAMPLE, batches(), loss, target=0.7, config=EXACT)
    norm = model.blocks[0].norm
    means = [model.blocks[0].first(model.stem(x)).mean(0) for x, _ in batches()]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0).detach())
    assert norm.momentum == 0.1 and not norm.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": 0}, r"stages=0: give how many times to cut"),
        ({"target": 1.5}, r"target=1\.5: give the share"),
        ({"target": 0.01}, r"target=0\.01 is below 0\.\d+, the least"),
        ({"batches": iter(())}, r"only once: give list\(batches\)"),
        ({"batches": []}, r"batches is empty"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    given = {"batches": batches(), "loss": loss, "target": 0.5} | change
    with pytest.raises(MisconfiguredError, match=message):
        shrink(trained(), EXAMPLE, given.pop("batches"), given.pop("loss"), **given)


def test_a_missed_target_is_said() -> None:
    config = DiscoveryConfig(round_to=40, layers=False)
    with pytest.warns(GuyotWarning, match=r"target=0\.9 was not met"):
        shrink(trained(), EXAMPLE, batches(), loss, target=0.9, config=config)


def test_a_last_unit_before_a_normalisation_is_worth_its_branch() -> None:
    """Its Fisher benefit is 0, since the output does not depend on its scale."""

    @torch.no_grad()
    def second_unit(model: Net) -> None:
        model.blocks[1].second.weight[:, 1] = 0

    model = trained(second_unit, widths=(40, 2, 40)).train()
    model.dropout.eval()
    structures = find_structures(model, EXAMPLE)
    gates = Gates(structures, torch.device("cpu"))
    gates.attach(model)
    number = next(n for n, g in enumerate(structures.groups) if g.name == "blocks.1.first")
    unit = structures.index.units(number).start
    gates.sampled[unit + 1] = 0
    means = SideMeans.start(structures.index.total)
    for batch in batches():
        gates.zero_grad()
        loss(model, batch).backward()
        sums = SideSums.from_sample(gates.gradient, gates.sampled, gates.predictions)
        means = means.updated(sums, decay=0.99)
    benefit = fisher(means, gates.sampled)
    layer = structures.index.layer(structures.home_of(structures.groups[number]))
    assert benefit[layer] > 1e-3
    assert abs(float(benefit[unit])) < 1e-2 * float(benefit[layer])
    found = with_branches(benefit, gates.sampled > 0, Homes.of(structures))
    assert found[unit] == pytest.approx(float(benefit[layer]), rel=2e-2)


def test_a_slope_is_no_reason_to_keep_a_unit() -> None:
    """What would lower the loss at once after a cut is no part of what a unit is worth."""
    sampled, means = torch.ones(2), SideMeans.start(2)
    for sign in (1.0, -1.0) * 50:
        noise = torch.tensor([0.1, 0.2]) * sign
        slope = torch.tensor([0.3, -0.3])
        sums = SideSums.from_sample(noise + slope, sampled, 8.0)
        means = means.updated(sums, decay=0.99)
    first, second = fisher(means, sampled)
    assert first < 0 < second
    torch.testing.assert_close(
        curvature(means), torch.tensor([8 * 0.1**2, 8 * 0.2**2]) / 2, rtol=0.02, atol=0
    )


def test_units_of_a_branch_share_what_it_earns_beyond_them() -> None:
    structures = find_structures(Net((4, 5, 6)), EXAMPLE)
    index, homes = structures.index, [structures.home_of(g) for g in structures.groups]
    number = next(n for n, home in enumerate(homes) if home == 1)
    units, on = index.units(number), torch.ones(index.total, dtype=torch.bool)
    benefit = torch.zeros(index.total)
    benefit[units] = torch.tensor([1.0, 2.0, 3.0, -1.0, 4.0])
    benefit[index.layer(1)] = 20.0
    on[units.start + 4] = False  # three of those that are on contribute 6, the branch 20
    shared = with_branches(benefit, on, Homes.of(structures))[units]
    torch.testing.assert_close(shared, benefit[units] + 14 / 16)
    benefit[index.layer(1)] = 5.0
    assert torch.equal(with_branches(benefit, on, Homes.of(structures)), benefit)
