"""Mistakes in calling `Discovery`: each an error or a warning that names the way out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASES
from torch import Tensor, nn

from guyot import (
    Checkpointer,
    Cost,
    Discovery,
    DiscoveryConfig,
    Distillation,
    GuyotWarning,
    MisconfiguredError,
    Recorder,
    SequenceError,
    UnsupportedError,
    find_structures,
    save,
    shrink,
)

CASE = CASES["mlp"]


def discover(model: nn.Module | None = None, inputs: Any = None, **dials: Any) -> Discovery:
    model = model or CASE.build()
    inputs = (CASE.inputs(),) if inputs is None else inputs
    optimizer = dials.pop("optimizer", None) or torch.optim.SGD(model.parameters(), 0.1)
    if not dials.keys() & {"nu", "target"}:
        dials["nu"] = 0.3
    return Discovery(model, inputs, optimizer, **{"total_steps": 100, **dials})


def train(discovery: Discovery, steps: int, spoil: int | None = None) -> None:
    for step in range(steps):
        discovery.optimizer_under_test.zero_grad()
        loss = discovery.model(CASE.inputs(8)).square().mean()
        (loss * torch.nan if step == spoil else loss).backward()
        if step == spoil:
            for parameter in discovery.model.parameters():
                parameter.grad.zero_()
        discovery.optimizer_under_test.step()
        discovery.step()


def watched(**dials: Any) -> Discovery:
    model = CASE.build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    discovery = discover(model, optimizer=optimizer, **dials)
    discovery.optimizer_under_test = optimizer
    return discovery


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"nu": -0.1}, r"nu=-0\.1: .*0 or more"),
        ({"nu": float("nan")}, r"nu=nan: .*0 or more"),
        ({"nu": float("inf")}, r"nu=inf: .*0 or more"),
        ({"nu": None, "target": None}, r"nu=None and target=None: give one of them"),
        ({"nu": 0.1, "target": 0.5}, r"nu=0\.1 and target=0\.5: give one of them"),
        ({"target": 0.0}, r"target=0\.0: give the share.*between 0 and 1"),
        ({"target": 1.0}, r"target=1\.0: give the share"),
        ({"target": -2.0}, r"target=-2\.0: give the share"),
        ({"target": float("nan")}, r"target=nan: give the share"),
        ({"alpha": -0.1}, r"alpha=-0\.1: give a number from 0 to 1: 1 counts MACs only"),
        ({"alpha": 1.1}, r"alpha=1\.1: give a number"),
        ({"alpha": float("nan")}, r"alpha=nan: give a number"),
        ({"beta": -0.1}, r"beta=-0\.1: give .*whole layers only"),
        ({"beta": 7.0}, r"beta=7\.0: give a number"),
        ({"total_steps": 0}, r"total_steps=0 is too small.*at least 100 steps"),
        ({"total_steps": 80}, r"total_steps=80 is too small.*at least 100 steps"),
        ({"total_steps": -5}, r"total_steps=-5 is too small"),
        ({"target": 0.01}, r"target=0\.01 is below 0\.\d+, the least.*larger target"),
        ({"config": DiscoveryConfig(round_to={"nope": 8})}, r"round_to='nope' matches no group"),
        ({"total_steps": float("inf")}, r"total_steps=inf: give the number of optimiser steps"),
        ({"total_steps": "200"}, r"total_steps='200': give the number"),
        ({"total_steps": 200.5}, r"total_steps=200\.5: give the number"),
        ({"alpha": [1]}, r"alpha=\[1\]: give a number from 0 to 1"),
        ({"beta": None}, r"beta=None: give a number from 0 to 1"),
        ({"target": [0.5]}, r"target=\[0\.5\]: give the share"),
        ({"config": {"round_to": 8}}, r"config=\{'round_to': 8\}: give a guyot\.DiscoveryConfig"),
        ({"config": DiscoveryConfig(warmup=0.7)}, r"warmup=0\.7 and discovery_end=0\.4.*order"),
        ({"config": DiscoveryConfig(warmup=-0.1)}, r"warmup=-0\.1"),
        ({"config": DiscoveryConfig(ignore=("*",))}, r"no prunable structure"),
        ({"config": DiscoveryConfig(units=False)}, r"no prunable structure"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dials(dials: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        discover(**dials)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("theta0", 1.5, r"theta0=1\.5: give a probability"),
        ("theta0", 0.0, r"theta0=0\.0: give a probability"),
        ("epsilon", 0.7, r"epsilon=0\.7: give a probability below 1/2"),
        ("epsilon", -0.1, r"epsilon=-0\.1"),
        ("max_speed", 0.0, r"max_speed=0\.0: give a positive"),
        ("patience", -1.0, r"patience=-1\.0: give a share"),
        ("round_to", 0, r"round_to=0: a width comes in multiples of 1"),
        ("round_to", "8", r"round_to='8': a width comes in multiples of 1.* give a whole number"),
        ("round_to", {"*": 2.5}, r"round_to=\{'\*': 2\.5\}: a width"),
        ("tie", "a,b", r"tie='a,b': give a list of sets of patterns"),
        ("removals", 0, r"removals=0: give how many"),
        ("sharpness", -1.0, r"sharpness=-1\.0: give 1 or more"),
        ("estimator", "guess", r"estimator='guess': choose two-sided"),
        ("decay", 1.5, r"decay=1\.5: give 0 or more and below 1"),
    ],
)
def test_config(name: str, value: Any, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        DiscoveryConfig(**{name: value})


def batch_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: discover(lambda x: x, optimizer=1), r"model=<function.*: give the network itself"),
        (lambda: find_structures("resnet", torch.ones(2)), r"model='resnet': give the network"),
        (lambda: discover(optimizer="sgd"), r"optimizer='sgd': give an optimizer of torch"),
        (lambda: discover(optimizer=[1]), r"optimizer=1: give an optimizer of torch"),
        (lambda: shrunk(stages="3"), r"stages='3': give how many times to cut"),
        (lambda: shrunk(stages=0), r"stages=0: give how many times to cut"),
        (lambda: shrunk(batches=3), r"batches=3: give a list of batches"),
        (lambda: shrunk(loss=nn.MSELoss()), r"loss=MSELoss\(\): give a function of the model"),
        (lambda: shrunk(loss=lambda m, b: 1.0), r"loss\(model, batch\) returned 1\.0: return the"),
        (
            lambda: shrunk(loss=lambda m, b: m(b).square()),
            r"returned a tensor of shape \(8, 3\): return the mean loss",
        ),
        (
            lambda: shrunk(loss=lambda m, b: torch.ones(())),
            r"returned a tensor of shape \(\) without a gradient: return the mean",
        ),
        (lambda: shrunk(config={}), r"config=\{\}: give a guyot\.DiscoveryConfig"),
        (lambda: Distillation(CASE.build(), weight="half"), r"weight='half': give the teacher's"),
        (lambda: Distillation(CASE.build(), temperature=None), r"temperature=None: give a posit"),
        (lambda: Cost(macs="1"), r"macs=1, params=0\.0, latency=0\.0 weigh nothing"),
        (lambda: Recorder(CASE.build()), r"discovery=Sequential\(.*: give the Discovery"),
        (lambda: Recorder(discover()).note(loss="low"), r"loss='low': give the mean loss"),
        (lambda: Recorder(discover()).note(accuracy="98"), r"accuracy='98': give a share from 0"),
        (lambda: Recorder(discover(), steps_per_epoch="9"), r"steps_per_epoch='9': give the numb"),
        (
            lambda: save("folder", CASE.build(), CASE.inputs(), None),
            r"structure=None: give discovery\.structure",
        ),
        (lambda: Checkpointer("folder", CASE.build(), keep="2"), r"keep='2': give how many"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_values_of_another_kind(call: Callable[[], object], message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        call()


def shrunk(**choices: Any) -> object:
    batches = [CASE.inputs(8)]
    given = {"batches": batches, "loss": batch_loss, "target": 0.5, **choices}
    given.setdefault("config", DiscoveryConfig(round_to=1))
    return shrink(CASE.build(), CASE.inputs(), **given)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.randn(4, 9),), r"does not run on example_inputs of shapes \[\(4, 9\)\]"),
        ((torch.randn(4, 7), torch.randn(4)), r"does not run on example_inputs"),
        ((torch.randn(4, 7, device="meta"),), r"example input 0 is on meta and the model on cpu"),
        ((torch.tensor(1.0),), r"example input 0 is a scalar; dimension 0 must be the batch"),
        (([1, 2],), r"holds no tensor"),
        ((), r"holds no tensor"),
    ],
    ids=["shape", "too many", "device", "scalar", "lists", "none"],
)
def test_inputs(inputs: Any, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        discover(inputs=inputs)


def test_model_without_weights() -> None:
    with torch.device("meta"):
        model = CASE.build()
    with pytest.raises(MisconfiguredError, match=r"meta device and has no weights.*to_empty"):
        discover(model)


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x) if x.sum() > 0 else self.two(-x)


def test_control_flow_that_depends_on_data() -> None:
    with pytest.raises(UnsupportedError, match=r"cannot trace DataDependent: .*control flow"):
        discover(DataDependent())


def test_model_without_hidden_units() -> None:
    with pytest.raises(MisconfiguredError, match=r"no prunable structure.*hidden layer"):
        discover(nn.Sequential(nn.Linear(7, 3)))
    with pytest.raises(MisconfiguredError, match=r"no prunable structure.*hidden layer"):
        discover(nn.Linear(7, 3))


def test_model_without_parameters() -> None:
    with pytest.raises(MisconfiguredError, match="has no parameters"):
        find_structures(nn.ReLU(), (torch.ones(2, 3),))


def test_optimizer_of_another_model() -> None:
    model = CASE.build()
    stranger = torch.optim.SGD(copy.deepcopy(model).parameters(), 0.1)
    message = r"optimizer does not hold \d+ of the model's parameters, e\.g\. 0\.weight"
    with pytest.raises(MisconfiguredError, match=message):
        discover(model, optimizer=stranger)
    half = torch.optim.SGD(model[3].parameters(), 0.1)
    with pytest.raises(MisconfiguredError, match=message):
        discover(model, optimizer=half)
    for module in (model[0], model[1], model[5]):
        module.requires_grad_(False)
    discover(model, optimizer=half)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (torch.optim.Adafactor, r"Adafactor keeps 'row_var' of shape \(4, 1\)"),
        (torch.optim.LBFGS, "LBFGS keeps 'old_dirs', a list"),
    ],
)
def test_optimizers_with_state_that_cannot_be_sliced_are_refused(
    optimizer: Callable[..., torch.optim.Optimizer], message: str
) -> None:
    model = CASE.build()
    made = optimizer(model.parameters())
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(UnsupportedError, match=f"{message}.*use an optimiser with elementwise"):
        discover(model, optimizer=made, nu=1e3)
    assert made.state_dict() == before
    discover(model, optimizer=made, nu=0.0)  # nothing will be removed


def test_optimizers_that_began_are_looked_at() -> None:
    model = CASE.build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.state[model[0].weight]["blocks"] = torch.ones(3)
    with pytest.raises(UnsupportedError, match=r"SGD keeps 'blocks' of shape \(3,\) for"):
        discover(model, optimizer=optimizer, nu=1e3)


class Secretive(torch.optim.SGD):
    """Cannot be copied, so that its state shows only when it is there."""

    def __getstate__(self) -> dict[str, object]:
        raise AssertionError("it was copied")

    def step(self, closure: Callable[[], float] | None = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["rows"] = torch.ones(len(parameter), 1)


def test_other_optimizers_are_refused_at_the_first_removal() -> None:
    model = CASE.build()
    optimizer = Secretive(model.parameters(), 0.1)
    discovery = discover(model, optimizer=optimizer, nu=1e3)

    def train_on() -> None:
        for _ in range(100):
            optimizer.zero_grad()
            model(CASE.inputs()).square().mean().backward()
            optimizer.step()
            discovery.step()

    with pytest.raises(UnsupportedError, match="Secretive keeps 'rows'"):
        train_on()


def test_step_out_of_turn() -> None:
    discovery = watched()
    with pytest.raises(SequenceError, match=r"before optimizer\.step\(\), at step 0: call it once"):
        discovery.step()
    train(discovery, 1)
    with pytest.raises(SequenceError, match="called twice"):
        discovery.step()
    train(discovery, 14)
    with pytest.raises(SequenceError, match=r"called twice.*at step 15"):
        discovery.step()
    train(discovery, 1)


def test_sharding_after_the_constructor_is_refused() -> None:
    discovery = watched()
    train(discovery, 2)
    next(discovery.model.parameters()).device_mesh = "as a DTensor has"
    with pytest.raises(UnsupportedError, match=r"0\.weight is sharded over processes"):
        train(discovery, 1)


def test_after_finish() -> None:
    discovery = watched()
    train(discovery, 5)
    with pytest.warns(
        GuyotWarning, match=r"nothing was removed: gates begin at step 10 .* after 5;"
    ):
        discovery.finish()
    discovery.optimizer_under_test.step()
    with pytest.raises(SequenceError, match=r"step\(\) after finish\(\): make a new Discovery"):
        discovery.step()
    with pytest.raises(SequenceError, match=r"finish\(\) was called twice"):
        discovery.finish()


def test_a_target_that_was_not_pursued_is_said() -> None:
    discovery = watched(target=0.5, config=DiscoveryConfig(round_to=1))
    train(discovery, 3)
    with pytest.warns(GuyotWarning, match="target=0.5|nothing was removed"):
        discovery.finish()


@pytest.mark.parametrize("estimator", ["two-sided", "straight-through", "taylor"])
def test_gradients_that_are_not_finite_are_skipped(estimator: str) -> None:
    discovery = watched(config=DiscoveryConfig(estimator=estimator))
    train(discovery, 20)
    before = discovery.keep_probs
    with pytest.warns(GuyotWarning, match=r"NaN or inf .* at step 20 \(1 step so far\)"):
        train(discovery, 1, spoil=0)
    after = discovery.keep_probs
    assert discovery.skipped == 1
    assert all(torch.equal(before[name], after[name]) for name in before)
    train(discovery, 20)
    assert discovery.skipped == 1

    for told in (discovery.keep_probs, discovery.benefits, discovery.prices):
        assert all(bool(value.isfinite().all()) for value in told.values())
    assert any(not torch.equal(before[name], discovery.keep_probs[name]) for name in before)


def test_skipped_steps_are_counted_when_the_gates_move() -> None:
    discovery = watched(total_steps=2_000, config=DiscoveryConfig(warmup=0.01))
    train(discovery, 31)
    first, last = discovery._controller.span(31)
    assert last - first == 9
    train(discovery, last - 31, spoil=0)
    assert discovery.skipped == 0
    with pytest.warns(GuyotWarning, match=rf"between steps {first} and {last} \(1 step so far\)"):
        train(discovery, 1)
    assert discovery.skipped == 1


def test_refusal_leaves_no_trace() -> None:
    model = CASE.build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(MisconfiguredError, match="target"):
        discover(model, optimizer=optimizer, target=0.01)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_finish_in_the_middle_of_discovery_says_so() -> None:
    discovery = watched(target=0.7, config=DiscoveryConfig(round_to=1))
    train(discovery, 25)
    undecided = discovery.undecided
    assert undecided
    said = rf"finish\(\) came at step 25 of .*until step 40, so {undecided} undecided gates were"
    with pytest.warns(GuyotWarning, match=said):
        discovery.finish()
