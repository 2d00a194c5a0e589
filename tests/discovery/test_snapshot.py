"""A run that stops at any step and goes on in a new `Discovery` is the run that never stopped."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loops import STEPS, Run, batch, same
from torch import Tensor

from guyot import DiscoveryConfig, GuyotWarning, MisconfiguredError, SequenceError
from guyot.core.trees import difference


@pytest.fixture(scope="module")
def states() -> dict[int, dict[str, Any]]:
    """States of one run after some steps."""
    run, taken, before = Run("cifar"), {}, 0
    for step in (5, 9, 30, 35):
        run.train(before, step)
        taken[step], before = copy.deepcopy(run.states()["discovery"]), step
    return taken


@pytest.fixture(scope="module")
def fresh() -> Iterator[Run]:
    """A run that has not begun, and must not have at the end."""
    run = Run("cifar")
    before = copy.deepcopy(run.states())
    yield run
    assert same(run.states(), before)


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("cifar", "sgd"),
        pytest.param("tokens", "adamw", marks=pytest.mark.slow),
        pytest.param("mobile", "adamw", marks=pytest.mark.slow),
    ],
)
def test_a_run_in_pieces_is_the_whole_run(name: str, optimizer: str) -> None:
    """Pieces end in warm-up, at the first gates, around removals, at settling, and after it."""
    whole = Run(name, optimizer)
    whole.train(0, STEPS)
    removals = [removal.step for removal in whole.discovery.removals]
    assert removals
    stops = sorted({4, 10, 11, removals[0], removals[0] + 1, removals[-1], 39, 40, 80})
    pieces, start = Run(name, optimizer), 0
    for stop in stops:
        pieces.train(start, stop)
        states = copy.deepcopy(pieces.states())
        pieces, start = Run(name, optimizer), stop
        pieces.load(states)
        assert same(pieces.states(), states)
    pieces.train(start, STEPS)
    assert same(pieces.states(), whole.states())
    for one, other in ((whole.model, pieces.model), (whole.average, pieces.average)):
        for (where, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
            assert mine.stride() == theirs.stride(), where
    assert same(whole.discovery.finish().state_dict(), pieces.discovery.finish().state_dict())
    assert whole.discovery.removals == pieces.discovery.removals
    assert whole.discovery.structure == pieces.discovery.structure


@pytest.mark.parametrize("nu", [pytest.param(0.5, marks=pytest.mark.slow), 0.0])
def test_runs_with_a_price_go_on(nu: float) -> None:
    dials: dict[str, Any] = {"target": None, "nu": nu}
    whole, pieces = Run("cifar", **dials), Run("cifar", **dials)
    whole.train(0, STEPS)
    pieces.train(0, 30)
    stopped, pieces = pieces, Run("cifar", **dials)
    pieces.load(copy.deepcopy(stopped.states()))
    pieces.train(30, STEPS)
    assert same(pieces.states(), whole.states())


def test_a_finished_run_comes_back_finished() -> None:
    run = Run("cifar")
    run.train(0, STEPS)
    run.discovery.finish()
    again = Run("cifar")
    again.load(run.states())
    assert same(again.states(), run.states())
    with pytest.raises(SequenceError, match="after finish"):
        again.discovery.step()


def test_the_state_is_tensors_and_plain_values(states: dict[int, dict[str, Any]]) -> None:
    def leaves(tree: Any) -> Iterator[Any]:
        if isinstance(tree, dict):
            assert all(type(key) is str for key in tree)
            for value in tree.values():
                yield from leaves(value)
        elif isinstance(tree, list | tuple):
            for value in tree:
                yield from leaves(value)
        else:
            yield tree

    found = {type(leaf) for leaf in leaves(states[30])}
    assert found <= {Tensor, int, float, bool, str, type(None)}


def test_states_are_taken_between_steps() -> None:
    run = Run("cifar")
    run.train(0, 12)
    run.model(batch("cifar", 12)[0]).sum().backward()
    run.optimizer.step()
    with pytest.raises(SequenceError, match=r"between optimizer.step\(\) and step\(\).*step 12"):
        run.discovery.state_dict()
    run.discovery.step()
    with pytest.raises(SequenceError, match=r"load_state_dict\(\) after step 13: make"):
        run.discovery.load_state_dict(run.discovery.state_dict())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"target": 0.5}, r"another run: target is 0.4, expected 0.5; build"),
        ({"target": None, "nu": 0.4}, r"another run: nu is None, expected 0.4"),
        ({"total_steps": 200}, r"another run: total_steps is 100, expected 200"),
        ({"config": DiscoveryConfig(round_to=2)}, r"another run: config.round_to is 1, expected 2"),
        ({"name": "mobile"}, r"another run: groups\..* is missing"),
    ],
)
def test_states_of_another_run_are_refused(
    states: dict[int, dict[str, Any]], other: dict[str, Any], message: str
) -> None:
    run = Run(**({"name": "cifar"} | other))
    before = copy.deepcopy(run.states())
    with pytest.raises(MisconfiguredError, match=message):
        run.discovery.load_state_dict(states[30])
    assert same(run.states(), before)


def change(state: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for key in parents:
        state = state[key]
    if value is KeyError:
        del state[last]
    else:
        state[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 7, "has version 7 and this guyot reads 5"),
        ("version", None, "has version None"),
        ("run", 3, r"another run: the state is 3, expected a mapping"),
        ("removals", "none", "removals is no list"),
        ("removals", [{"step": 1}], "is no removal.*units"),
        ("removals", [3], "is no removal"),
        ("controller.theta", torch.ones(3), r"controller.theta is a float32 tensor of shape \(3,"),
        ("controller.alive", KeyError, "controller.alive is missing"),
        ("controller.plan", torch.ones(3), r"controller.plan is a float32 tensor of shape \(3,\)"),
        ("controller.estimator.mean_one", [1.0], "controller.estimator.mean_one is a list of 1"),
        ("controller.budget.nu", "much", "controller.budget.nu is 'much'"),
        ("generator", torch.ones(2), r"generator is a float32 tensor of shape \(2,\)"),
        ("generator", torch.zeros_like(torch.get_rng_state()), "generator is no state of a gen"),
        ("gates", None, "gates is unexpected"),
        ("counters.settled", "yes", "counters.settled is 'yes', expected False"),
        ("counters.extra", 1, "counters.extra is unexpected"),
    ],
)
def test_broken_states_change_nothing(
    states: dict[int, dict[str, Any]], fresh: Run, path: str, value: Any, message: str
) -> None:
    state = copy.deepcopy(states[30])
    change(state, path, value)
    with pytest.raises(MisconfiguredError, match=message):
        fresh.discovery.load_state_dict(state)


@pytest.mark.parametrize(
    ("removal", "message"),
    [
        ({"units": {"conv9": [0]}}, r"takes units of 'conv9', but the network has \["),
        ({"units": {"conv1": [99]}}, "takes 1 units of 'conv1', 0 of which are among its 6"),
        ({"units": {"conv1": [0, 0]}}, "takes 2 units of 'conv1', 1 of which"),
        ({"units": {"conv1": [0, 1, 2, 3, 4, 5]}}, "takes 6 units of 'conv1', 6 of which"),
        ({"units": {"conv1": []}}, "takes 0 units of 'conv1'"),
        ({"layers": ["stages.9"]}, r"takes the layer 'stages.9', but the network has"),
    ],
)
def test_removals_of_what_is_not_there_change_nothing(
    states: dict[int, dict[str, Any]], fresh: Run, removal: dict[str, Any], message: str
) -> None:
    state = copy.deepcopy(states[9])
    state["removals"] = [{"step": 1, "units": {}, "layers": [], "macs": 1} | removal]
    with pytest.raises(MisconfiguredError, match=message):
        fresh.discovery.load_state_dict(state)


def test_removals_that_leave_another_size_are_refused(states: dict[int, dict[str, Any]]) -> None:
    state = copy.deepcopy(states[35])
    state["removals"][0]["macs"] += 1
    with pytest.raises(
        MisconfiguredError, match=r"repeating the removal of step \d+ left \d+ MACs"
    ):
        Run("cifar").discovery.load_state_dict(state)


def test_all_settings_count(states: dict[int, dict[str, Any]]) -> None:
    """A field that is added to the configuration is compared as well."""
    assert set(states[5]["run"]["config"]) == {f.name for f in dataclasses.fields(DiscoveryConfig)}


def test_trees_say_how_they_differ() -> None:
    tree = {"a": [1, {"b": torch.ones(2)}], "c": (1, 2)}
    assert difference(tree, {"a": [9, {"b": torch.zeros(2)}], "c": [3, 4]}) is None
    assert difference(tree, tree, values=True) is None
    assert difference({"c": (1, 2)}, {"c": [1, 2]}, values=True) is None
    assert difference(tree, {**tree, "c": (1,)}) == "c has 1 entries, expected 2"
    wrong = {**tree, "a": [1, {"b": torch.ones(2).long()}]}
    assert difference(tree, wrong) == (
        "a[1].b is a int64 tensor of shape (2,), expected a float32 tensor of shape (2,)"
    )
    assert difference({"x": 1}, {"x": True}, values=True) == "x is True, expected 1"
    assert difference({"x": 1}, {"x": None}) == "x is None, expected 1"
    assert difference({"x": None}, {"x": 1.5}) is None
    assert difference({"x": None}, {"x": "text"}) == "x is 'text', expected None"


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuyotWarning)
        yield
