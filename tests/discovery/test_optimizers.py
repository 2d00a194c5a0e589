"""Several optimisers share a model's parameters: each is sliced, and the discovery steps once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from guyot import Checkpointer, Discovery, DiscoveryConfig, GuyotWarning, MisconfiguredError
from guyot.discovery.snapshot import identity
from guyot.gates.bank import Gates
from guyot.structures import find_structures

STEPS = 100
X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Block(), Block(), nn.Linear(8, 3))


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.dim() == 2]


def others(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.dim() != 2]


def muon_and_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.Muon(matrices(model), 0.01), torch.optim.AdamW(others(model), 0.01)]


class Run:
    """A loop with a number of optimisers."""

    def __init__(self, make: Callable[[nn.Module], list[torch.optim.Optimizer]]) -> None:
        self.model = network()
        self.optimizers = make(self.model)
        self.discovery = Discovery(
            self.model,
            (X,),
            self.optimizers,
            total_steps=STEPS,
            target=0.4,
            config=DiscoveryConfig(round_to=1, removals=6),
        )

    def train(self, steps: Iterator[int] | range, scale: float | None = None) -> None:
        for _ in steps:
            (functional.cross_entropy(self.model(X), Y) * (scale or 1)).backward()
            for parameter in self.model.parameters():
                assert parameter.grad is not None
                parameter.grad /= scale or 1
            for optimizer in self.optimizers:
                optimizer.step()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            self.discovery.step(grad_scale=scale)


def states_fit(run: Run) -> bool:
    """The optimisers hold the model's parameters and states of their shapes, and nothing else."""
    held = [p for optimizer in run.optimizers for g in optimizer.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in run.model.parameters()}
    return all(
        value.shape == parameter.shape
        for optimizer in run.optimizers
        for parameter, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, Tensor) and value.dim()
    )


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_muon_and_adamw_shrink_together() -> None:
    run = Run(muon_and_adamw)
    for step in range(STEPS):
        run.train(range(step, step + 1))
        assert states_fit(run)
    run.discovery.finish()
    assert len(run.discovery.removals) > 1
    assert run.discovery.attained == pytest.approx(0.4, rel=0.05)
    assert all(optimizer.state for optimizer in run.optimizers)


def test_two_optimizers_are_as_one_with_two_groups() -> None:
    def two(model: nn.Module) -> list[torch.optim.Optimizer]:
        groups = matrices(model), others(model)
        return [torch.optim.SGD(group, 0.05, momentum=0.9, weight_decay=1e-3) for group in groups]

    def one(model: nn.Module) -> list[torch.optim.Optimizer]:
        groups = [{"params": matrices(model)}, {"params": others(model)}]
        return [torch.optim.SGD(groups, 0.05, momentum=0.9, weight_decay=1e-3)]

    runs = Run(two), Run(one)
    for run in runs:
        run.train(range(STEPS))
        assert run.discovery.removals
    structures = [run.discovery.structure for run in runs]
    assert structures[0] == structures[1]
    assert same(runs[0].discovery.finish(), runs[1].discovery.finish())


def test_a_run_with_two_resumes(tmp_path: Path) -> None:
    def start() -> tuple[Run, Checkpointer]:
        run = Run(muon_and_adamw)
        muon, adamw = run.optimizers
        return run, Checkpointer(tmp_path, run.model, run.discovery, muon=muon, adamw=adamw)

    whole, checkpoints = start()
    whole.train(range(30))
    assert whole.discovery.removals
    checkpoints.save(30)
    whole.train(range(30, STEPS))
    resumed, checkpoints = start()
    assert checkpoints.resume() == {}
    assert states_fit(resumed)
    resumed.train(range(30, STEPS))
    assert resumed.discovery.removals == whole.discovery.removals
    assert same(resumed.model, whole.model)


def test_every_parameter_is_held_once() -> None:
    def made(optimizers: Any) -> Discovery:
        return Discovery(model, (X,), optimizers, total_steps=STEPS, target=0.5)

    model = network()
    muon, adamw = muon_and_adamw(model)
    with pytest.raises(
        MisconfiguredError, match=r"the optimizer does not hold 6 .* 0\.bias.* give a list"
    ):
        made(muon)
    with pytest.raises(
        MisconfiguredError, match=r"the optimizers \(none\) do not hold 12 of the model's"
    ):
        made([])
    twice = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(MisconfiguredError, match=r"6 of .* two of the .*\(AdamW, SGD\).* 0\.bias"):
        made([adamw, twice])
    found = made(iter([muon, adamw]))
    assert identity(found.original, found._controller)["total_steps"] == STEPS


def test_steps_come_after_all_optimizers() -> None:
    """A step() after each of them learns nothing the second time, and says so."""
    run = Run(muon_and_adamw)
    run.train(range(10))
    functional.cross_entropy(run.model(X), Y).backward()
    run.optimizers[0].step()
    run.discovery.step()
    run.optimizers[1].step()
    with pytest.warns(GuyotWarning, match=r"a loss\.backward\(\) for every step\(\)"):
        run.discovery.step()


def test_each_may_clip_its_gradients_by_a_factor_of_its_own() -> None:
    model = network().double()
    gates = Gates(find_structures(model, (X.double(),)), torch.device("cpu"))
    gates.attach(model)
    functional.cross_entropy(model(X.double()), Y).backward()
    active, ones = gates.gradient, torch.ones_like(gates.gradient)
    plain = gates.norms([gates.squares(model.parameters())], active, ones)
    for factor, parameters in ((1e-3, matrices(model)), (50.0, others(model))):
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad *= factor
    parts = [gates.squares(parameters) for parameters in (matrices(model), others(model))]
    clipped = gates.norms(parts, active, ones)
    assert bool(plain.gradient[gates.structures.index.layer_slice].all())
    torch.testing.assert_close(clipped, plain, rtol=1e-4, atol=1e-8)


def test_gradients_of_unknown_scale_certify_nothing() -> None:
    """Biases that are 0 do not tell by what their gradients were multiplied."""
    model = network()
    nn.init.zeros_(model[2].down.bias)
    gates = Gates(find_structures(model, (X,)), torch.device("cpu"))
    gates.attach(model)
    functional.cross_entropy(model(X), Y).backward()
    bias = [model[2].down.bias]
    rest = [p for p in model.parameters() if p is not bias[0]]
    parts = [gates.squares(parameters) for parameters in (rest, bias)]
    norms = gates.norms(parts, gates.gradient, torch.ones_like(gates.gradient))
    layers = norms.gradient[gates.structures.index.layer_slice]
    assert layers[0] > 1e20 and layers[1] < 1e3


def test_a_loss_scale_makes_no_difference() -> None:
    def sgd(model: nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)]

    plain, scaled = Run(sgd), Run(sgd)
    plain.train(range(STEPS))
    scaled.train(range(STEPS), scale=2.0**12)
    assert plain.discovery.removals == scaled.discovery.removals
    assert same(plain.model, scaled.model)
    bounds = [run.discovery.state_dict()["controller"]["bound"] for run in (plain, scaled)]
    assert bool(bounds[0].any())
    assert torch.equal(*bounds)
