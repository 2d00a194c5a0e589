"""A user's own loop with `Discovery` in it."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, counted
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from guyot import Discovery, DiscoveryConfig, GuyotWarning
from guyot.discovery.checks import warn_missed

EXACT = DiscoveryConfig(round_to=1)
STEPS = 100


def batches(name: str, steps: int = STEPS, size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    """Random inputs with labels that a fixed linear teacher gives; the same ones every time."""
    generator = torch.Generator().manual_seed(3)
    shape = CASES[name].shape[1:]
    features = torch.Size(shape).numel()
    teacher = torch.randn(features, 3, generator=generator)
    for _ in range(steps):
        x = torch.randn(size, *shape, generator=generator)
        yield x, (x.flatten(1) @ teacher).argmax(1)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(model(x).flatten(1)[:, :3], y)


class Run:
    """A model, an optimiser and a loop; the discovery is optional."""

    def __init__(
        self,
        name: str = "cifar",
        *,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        steps: int = STEPS,
        prepare: Callable[[nn.Module], nn.Module] = lambda model: model,
        **dials: Any,
    ) -> None:
        inputs = CASES[name].inputs()
        torch.manual_seed(0)
        self.name, self.steps = name, steps
        self.model = prepare(CASES[name].build()).train()
        make = optimizer or (lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3))
        self.optimizer = make(self.model.parameters())
        self.discovery: Discovery | None = None
        if dials:
            dials = {"config": EXACT, "total_steps": steps, **dials}
            self.discovery = Discovery(self.model, (inputs,), self.optimizer, **dials)

    def backward(self, x: Tensor, y: Tensor) -> None:
        loss_of(self.model, x, y).backward()

    def train(self, after: Callable[[int], None] = lambda step: None) -> nn.Module:
        for step, (x, y) in enumerate(batches(self.name, self.steps)):
            self.optimizer.zero_grad()
            self.backward(x, y)
            self.optimizer.step()
            if self.discovery is not None:
                self.discovery.step()
            after(step)
        return self.model if self.discovery is None else self.discovery.finish()


def assert_identical(model: nn.Module, other: nn.Module) -> None:
    left, right = model.state_dict(), other.state_dict()
    assert list(left) == list(right)
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def assert_plain(model: nn.Module, classes: set[type]) -> None:
    """No gates, no parametrisations, no class of guyot that the user did not bring along."""
    for module in model.modules():
        assert not parametrize.is_parametrized(module)
        assert isinstance(module, (*classes, nn.Identity))
    assert all(p.is_leaf and isinstance(p, nn.Parameter) for p in model.parameters())


@pytest.mark.parametrize("name", ["cifar", "tokens"])
def test_nu_zero_is_plain_training(name: str) -> None:
    plain = Run(name).train()
    with pytest.warns(GuyotWarning, match=r"nothing was removed, no gate.*: nu=1e-300 is less"):
        assert_identical(plain, Run(name, nu=1e-300).train())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # plain training was asked for: nothing to tell
        assert_identical(plain, Run(name, nu=0.0).train())


@pytest.mark.parametrize("name", ["cifar", "mobile", "tokens", "flat_cnn"])
@pytest.mark.parametrize("nu", [1e6, 1e300])
def test_a_huge_nu_leaves_a_path(name: str, nu: float) -> None:
    """Never an empty network: outputs still depend on inputs, and the run names the floor."""
    run = Run(name, nu=nu)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = run.train()
    said = [str(warning.message) for warning in caught]
    assert any(re.search(r"everything that could go is gone: 0\.\d+ of the comp", s) for s in said)
    assert not run.discovery.structures.layers
    assert all(group.size >= 1 for group in run.discovery.structures.groups)
    assert 0 < run.discovery.macs < 0.2 * run.discovery.full_macs
    x = CASES[name].inputs().requires_grad_()
    output = model.eval()(x)
    assert output.isfinite().all() and output.shape[-1] == 3
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    with torch.no_grad():  # small positive weights, which no ReLU cuts off, show the path
        for parameter in model.parameters():
            parameter.fill_(0.1)
    x = 0.1 * x.detach().abs()
    model(x.requires_grad_()).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_a_target_that_is_passed_on_the_way_is_told() -> None:
    """Structures that raise the loss go, whatever nu; the widths are not to blame."""

    class Harmed(Run):
        def backward(self, x: Tensor, y: Tensor) -> None:
            self.model(x).square().mean().backward()

    dials = {"target": 0.9, "beta": 0.8, "config": replace(EXACT, estimator="two-sided")}
    run = Harmed(steps=150, optimizer=lambda p: torch.optim.SGD(p, 1e-9), **dials)
    with pytest.warns(GuyotWarning, match=r"target=0.9 .* 0\.8\d+ was all that was left .* raised"):
        run.train()
    assert run.discovery.macs < 0.89 * run.discovery.full_macs


def test_random_numbers_are_left_alone() -> None:
    def with_dropout(model: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.2), model)

    plain = Run(prepare=with_dropout).train()
    assert_identical(plain, Run(prepare=with_dropout, nu=0.0).train())


@pytest.mark.filterwarnings("ignore:nothing was removed")
def test_without_a_plan_nothing_changes() -> None:
    """With prices far below every benefit gates are drawn, but nothing is ever removed."""
    config = DiscoveryConfig(theta0=1.0, epsilon=0.0, round_to=1, removals=1)
    run = Run(nu=1e-6, config=config)
    discovery = run.discovery
    run.steps = discovery._controller.phases.discovery_start + 3
    run.train()
    assert not discovery.removals
    plain = Run()
    plain.steps = run.steps
    assert_identical(plain.train(), run.model)


def test_a_target_that_was_missed_says_what_would_help() -> None:
    with pytest.warns(GuyotWarning, match=r"0\.3900 .* widths .*1 or 8\); a smaller round_to"):
        warn_missed(0.4, 0.39, (8, 1, 8), left=True)
    with pytest.warns(GuyotWarning, match=r"closest that the units and layers that are") as said:
        warn_missed(0.4, 0.39, (1, 1), left=True)
    assert "round_to" not in str(said[0].message)


@pytest.mark.parametrize("name", ["cifar", "mobile", "dense", "flat_cnn"])
@pytest.mark.parametrize("target", [0.6, 0.3])
def test_target_is_met(name: str, target: float) -> None:
    run = Run(name, target=target)
    classes = {type(module) for module in run.model.modules()}
    x = CASES[name].inputs()
    full = counted(run.model, x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = run.train()
    discovery = run.discovery
    share = counted(model, x) / full
    said = [str(w.message) for w in caught if issubclass(w.category, GuyotWarning)]
    short = any(
        f"target={target} was not met" in text and "all that was left" in text for text in said
    )
    assert share <= 1.01 * target
    assert share >= (0.9 if short else 0.99) * target
    assert short == (share < 0.99 * target)
    assert share == pytest.approx(discovery.attained, abs=1e-6)
    assert 0.7 <= (discovery.polarised or 0) <= 1
    assert discovery.macs == counted(model, x)
    assert discovery.full_macs == full
    assert discovery.params == sum(p.numel() for p in model.parameters())
    assert_plain(model, classes)
    loss_of(model, *next(batches(name))).backward()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_target_in_parameters(alpha: float) -> None:
    run = Run(target=0.5, alpha=alpha)
    x = CASES["cifar"].inputs()
    full = counted(run.model, x), sum(p.numel() for p in run.model.parameters())
    model = run.train()
    left = counted(model, x), sum(p.numel() for p in model.parameters())
    share = alpha * left[0] / full[0] + (1 - alpha) * left[1] / full[1]
    assert share == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("kind", ["two-sided", "straight-through", "taylor"])
def test_every_estimator_ends_plain(kind: str) -> None:
    run = Run(target=0.5, config=DiscoveryConfig(estimator=kind, round_to=1))
    classes = {type(module) for module in run.model.modules()}
    model = run.train()
    assert run.discovery.attained == pytest.approx(0.5, rel=0.01)
    assert_plain(model, classes)


@pytest.mark.parametrize("units", [True, False])
def test_units_only_or_layers_only(units: bool) -> None:
    config = DiscoveryConfig(units=units, layers=not units, round_to=1)
    run = Run("mobile", nu=50.0, config=config)
    blocks = len(run.discovery.original.layers)
    shapes = {name: p.shape for name, p in run.model.named_parameters()}
    model = run.train()
    left = dict(model.named_parameters())
    if units:
        assert left.keys() == shapes.keys()
        assert blocks == 0
        assert all(not removal.layers for removal in run.discovery.removals)
    else:
        assert left.keys() < shapes.keys()
        assert all(p.shape == shapes[name] for name, p in left.items())
        assert all(not removal.units for removal in run.discovery.removals)


def test_everything_may_go() -> None:
    """When the last gate is gone there is nothing left to decide, and training goes on."""
    config = DiscoveryConfig(units=False, round_to=1)
    run = Run("tokens", nu=100.0, config=config)
    model = run.train()
    assert not run.discovery.structures.layers
    kinds = [type(module) for module in CASES["tokens"].build()]
    assert all(isinstance(module, kind) for module, kind in zip(model, kinds, strict=True))
    assert [name for name, _ in model.named_parameters()] == [
        f"{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")
    ]


def test_frozen_structures_stay() -> None:
    config = DiscoveryConfig(freeze=("stages.1.0*", "conv1"), round_to=1)
    run = Run(nu=100.0, config=config)
    names = {group.name for group in run.discovery.original.groups}
    assert names == {"stages.0.0.conv1", "stages.2.0.conv1", "stages.2.0.conv2"}
    assert {layer.name for layer in run.discovery.original.layers} == {"stages.0.0", "stages.2.0"}
    shape = run.model.stages[1][0].conv1.weight.shape
    assert run.train().stages[1][0].conv1.weight.shape == shape


def test_records_of_removals_add_up() -> None:
    run = Run("mobile", target=0.3)
    discovery = run.discovery
    original = discovery.original
    seen: dict[str, set[int]] = {group.name: set() for group in original.groups}
    macs = [discovery.macs]

    def after(_: int) -> None:
        widths = {group.name: group.size for group in discovery.structures.groups}
        gone = {layer for removal in discovery.removals for layer in removal.layers}
        for group in original.groups:
            units = {u for r in discovery.removals for u in r.units.get(group.name, ())}
            assert units >= seen[group.name], "a unit returned"
            seen[group.name] = units
            if group.name in widths:
                assert widths[group.name] == group.size - len(units), group.name
        assert not gone & {layer.name for layer in discovery.structures.layers}
        macs.append(discovery.macs)

    model = run.train(after)
    assert macs == sorted(macs, reverse=True)
    assert [r.macs for r in discovery.removals] == sorted({*macs[1:]} - {macs[0]}, reverse=True)
    assert [r.step for r in discovery.removals] == sorted(r.step for r in discovery.removals)
    listed = [(n, u) for r in discovery.removals for n, units in r.units.items() for u in units]
    assert len(listed) == len(set(listed)), "a unit went twice"
    assert discovery.removals[-1].macs == counted(model, CASES["mobile"].inputs())


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda p: torch.optim.AdamW(p, 1e-2),
        lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.5),
    ],
    ids=["nesterov", "adamw", "rmsprop"],
)
def test_optimizer_state_follows(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    run = Run(target=0.4, optimizer=optimizer)
    before = dict(run.model.named_parameters())

    def after(_: int) -> None:
        held = {p for group in run.optimizer.param_groups for p in group["params"]}
        assert held == set(run.model.parameters())
        assert set(run.optimizer.state) == held
        for parameter, state in run.optimizer.state.items():
            for value in state.values():
                assert not isinstance(value, Tensor) or value.shape in (parameter.shape, ())

    model = run.train(after)
    assert run.discovery.removals
    assert all(p is before[name] for name, p in model.named_parameters())


def test_scheduler_clipping_and_accumulation() -> None:
    run = Run(target=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, run.steps)
    for x, y in batches("cifar", run.steps, size=32):
        run.optimizer.zero_grad()
        for part, labels in zip(x.chunk(4), y.chunk(4), strict=True):
            (loss_of(run.model, part, labels) / 4).backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 0.5)
        run.optimizer.step()
        run.discovery.step()
        schedule.step()
    run.discovery.finish()
    assert run.discovery.attained == pytest.approx(0.5, rel=0.01)
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


class ClosureRun(Run):
    """Lightning's way: the optimiser calls a closure that makes the gradients."""

    def train(self, after: Callable[[int], None] = lambda step: None) -> nn.Module:
        for x, y in batches(self.name, self.steps):

            def closure(x: Tensor = x, y: Tensor = y) -> float:
                self.optimizer.zero_grad()
                loss = loss_of(self.model, x, y)
                loss.backward()
                return float(loss)

            self.optimizer.step(closure)
            assert self.discovery is not None
            self.discovery.step()
        assert self.discovery is not None
        return self.discovery.finish()


def test_a_closure_makes_no_difference() -> None:
    plain, closed = Run(target=0.4), ClosureRun(target=0.4)
    plain.train()
    closed.train()
    assert plain.discovery is not None and closed.discovery is not None
    assert closed.discovery.removals == plain.discovery.removals
    state = closed.model.state_dict()
    assert all(torch.equal(state[n], v) for n, v in plain.model.state_dict().items())


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    runs = [Run("tokens", nu=0.3) for _ in range(2)]
    for x, y in batches("tokens", 30):
        for run, parts in zip(runs, (1, 4), strict=True):
            run.optimizer.zero_grad()
            for part, labels in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (loss_of(run.model, part, labels) / parts).backward()
            run.optimizer.step()
            run.discovery.step()
    for name, theta in runs[0].discovery.keep_probs.items():
        torch.testing.assert_close(runs[1].discovery.keep_probs[name], theta, rtol=1e-3, atol=1e-3)


def test_autocast_and_channels_last() -> None:
    run = Run(target=0.5, prepare=lambda model: model.to(memory_format=torch.channels_last))

    def backward(x: Tensor, y: Tensor) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(run.model, x.to(memory_format=torch.channels_last), y)
        loss.backward()

    run.backward = backward
    model = run.train()
    assert run.discovery.attained == pytest.approx(0.5, rel=0.01)
    for parameter in model.parameters():
        assert parameter.dtype is torch.float32
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last)


def test_grad_scaler_may_skip_a_step() -> None:
    run = Run(nu=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step, (x, y) in enumerate(batches("cifar", run.steps)):
        run.optimizer.zero_grad()
        loss = loss_of(run.model, x, y)
        scaler.scale(loss * torch.inf if step == 30 else loss).backward()
        scale = scaler.get_scale()
        scaler.step(run.optimizer)
        scaler.update()
        if step == 30:
            with pytest.warns(GuyotWarning, match="NaN or inf"):
                run.discovery.step(grad_scale=scale)
        else:
            run.discovery.step(grad_scale=scale)
    assert run.discovery.skipped == 1
    assert all(theta.isfinite().all() for theta in run.discovery.keep_probs.values())


@pytest.mark.parametrize("name", ["tokens", pytest.param("cifar", marks=pytest.mark.slow)])
def test_compiled_models_go_on_after_removals(name: str) -> None:
    torch._dynamo.reset()
    config = DiscoveryConfig(round_to=1, removals=3)
    run = Run(
        name,
        target=0.5,
        config=config,
        prepare=lambda model: torch.compile(model, backend="aot_eager"),
    )
    compiled = run.train()
    assert len(run.discovery.removals) > 1
    assert run.discovery.attained == pytest.approx(0.5, rel=0.01)
    assert not hasattr(compiled, "_orig_mod")
    x = CASES[name].inputs()
    torch.testing.assert_close(run.model.eval()(x), compiled.eval()(x), rtol=1e-4, atol=1e-5)


def test_what_it_tells() -> None:
    run = Run(nu=0.2)
    discovery = run.discovery
    phases = []

    def after(_: int) -> None:
        phases.append(discovery.phase.value)
        assert 0 < discovery.expected_complexity <= 1 + 1e-6
        assert discovery.logical_macs <= discovery.macs <= discovery.full_macs
        sizes = {group.name: (group.size,) for group in discovery.structures.groups}
        sizes.update({f"layer {layer.name}": () for layer in discovery.structures.layers})
        for told in (discovery.keep_probs, discovery.prices, discovery.benefits):
            assert {name: tuple(value.shape) for name, value in told.items()} == sizes
        assert all(((p >= 0) & (p <= 1)).all() for p in discovery.keep_probs.values())

    run.train(after)
    assert list(dict.fromkeys(phases)) == ["warm-up", "discovery", "fine-tune"]
    assert discovery.undecided == 0


def test_evaluation_puts_everything_back() -> None:
    run = Run(nu=0.5)
    x = CASES["cifar"].inputs(32)
    run.steps = 30
    checked = []

    def after(step: int) -> None:
        if step % 10 != 5:
            return
        state = copy.deepcopy(run.model.state_dict())
        modes = [module.training for module in run.model.modules()]
        momenta = [m.momentum for m in run.model.modules() if isinstance(m, nn.BatchNorm2d)]
        with run.discovery.evaluation([x[:16], x[16:]]) as model:
            assert not model.training
            with torch.no_grad():
                first, second = model(x), model(x)
            assert torch.equal(first, second)
        assert [module.training for module in run.model.modules()] == modes
        assert momenta == [m.momentum for m in run.model.modules() if isinstance(m, nn.BatchNorm2d)]
        for name, value in run.model.state_dict().items():
            assert torch.equal(value, state[name]), name
        checked.append(step)

    run.train(after)
    assert checked == [5, 15, 25]


def test_evaluation_does_not_change_training() -> None:
    plain, looked_at = Run(nu=0.5), Run(nu=0.5)
    x = CASES["cifar"].inputs(16)

    def look(step: int) -> None:
        if step % 7 == 0:
            with looked_at.discovery.evaluation([x]) as model, torch.no_grad():
                model(x)

    assert_identical(plain.train(), looked_at.train(look))
