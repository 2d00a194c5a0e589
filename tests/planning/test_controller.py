"""The controller: which gates are drawn, and when they move."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import residual_network

from guyot.costs.complexity import Complexity
from guyot.gates.calibration import most_probable
from guyot.planning.benefits import SideSums
from guyot.planning.config import Dials, DiscoveryConfig
from guyot.planning.controller import _FORGET, DECIDE_EVERY, Controller
from guyot.planning.dynamics import Phases

NET = residual_network(4, (3, 5), pixels=8)
INDEX = NET.index


def controller_of(
    total: int = 2_000, weight_decay: float | None = None, **settings: object
) -> Controller:
    config = DiscoveryConfig(round_to=1, **settings)
    return Controller(NET, Dials(nu=0.5, target=None), Phases(total), config, weight_decay)


def test_a_group_that_nothing_is_on_in_is_measured_at_its_most_probable_unit() -> None:
    controller = controller_of()
    theta = torch.full_like(controller.state.theta, 0.9)
    theta[INDEX.units(1)] = torch.tensor([0.2, 0.4, 0.3])
    controller.state = replace(controller.state, theta=theta)
    drawn = controller.sample(torch.Generator(), steps=2)
    assert drawn.shape == (2, INDEX.total)
    assert drawn[:, INDEX.units(1)].tolist() == 2 * [[0, 1, 0]]
    assert drawn[:, INDEX.units(0)].all() and drawn[:, INDEX.units(2)].all()


def test_what_was_removed_is_not_measured_in_the_place_of_what_is_left() -> None:
    controller = controller_of()
    theta, alive = controller.state.theta.clone(), controller.state.alive.clone()
    theta[INDEX.units(1)] = 0
    alive[INDEX.units(1)] = torch.tensor([False, False, True])
    controller.state = replace(controller.state, theta=theta, alive=alive)
    probable = most_probable(theta, alive, NET)
    for gates in (controller.sample(torch.Generator())[0], probable):
        assert gates[INDEX.units(1)].tolist() == [0, 0, 1]


def test_gates_that_are_drawn_at_random_may_leave_a_group_empty() -> None:
    controller = controller_of(estimator="two-sided", epsilon=0.0, sharpness=1.0)
    theta = torch.full_like(controller.state.theta, 0.9)
    theta[INDEX.units(1)] = 0.0
    controller.state = replace(controller.state, theta=theta)
    assert not controller.sample(torch.Generator())[:, INDEX.units(1)].any()


@given(st.integers(100, 30_000), st.integers(1, 400), st.integers(0, 50))
def test_spans_cover_discovery_and_removals_come_where_gates_move(
    total: int, removals: int, skip: int
) -> None:
    controller = controller_of(total, removals=removals)
    start, stop = controller.phases.discovery_start, controller.phases.discovery_stop
    skip = min(skip, stop - start - 1)
    controller.state = replace(controller.state, skip=skip)
    stop -= skip
    step, spans = start, list[tuple[int, int]]()
    while step < stop:
        first, last = controller.span(step)
        assert first == step and all(controller.span(s) == (first, last) for s in (first, last))
        assert last - first < controller.every <= DECIDE_EVERY
        spans.append((first, last))
        step = last + 1
    assert step == stop and spans[0] == (start, start)
    ends = {last for _, last in spans}
    assert all(s in ends for s in range(start, stop) if controller.removing(s))


@pytest.mark.parametrize(("total", "every"), [(100, 1), (400, 3), (1_000, 7), (10_000, 10)])
def test_short_runs_move_their_gates_more_often(total: int, every: int) -> None:
    controller = controller_of(total)
    assert controller.every == every
    assert controller.phases.horizon // controller.every >= min(20, controller.phases.horizon)


def test_what_is_removed_is_gone_but_each_group_keeps_its_best_unit() -> None:
    controller = controller_of()
    earned = torch.linspace(0.0, 1.0, INDEX.total)
    earned[INDEX.units(0)] = torch.tensor([0.1, 0.9, 0.3, 0.2])
    controller.price()
    controller.learn(SideSums.from_sample(-earned, torch.ones(INDEX.total), 1))
    score = controller.gate_values.benefit - 0.5 * controller.gate_values.price
    removable = torch.zeros(INDEX.total, dtype=torch.bool)
    removable[INDEX.units(0)] = True  # the stream, which nothing can do without
    removable[INDEX.units(1).start] = True
    before = controller.state.theta.clone()
    controller.remove(removable)
    best = int(score[INDEX.units(0)].argmax())
    assert controller.state.alive[INDEX.units(0)].nonzero().flatten().tolist() == [best]
    assert controller.state.alive[INDEX.units(1)].tolist() == [False, True, True]
    assert controller.state.alive[INDEX.units(2)].all()
    assert torch.equal(controller.state.theta, before * controller.state.alive)
    controller.remove(removable)  # what is gone stays gone
    assert controller.state.alive[INDEX.units(1)].tolist() == [False, True, True]


def test_the_bound_of_gradients_forgets_slowly_and_skips_what_is_not_finite() -> None:
    controller = controller_of()
    norm = torch.arange(float(INDEX.total))
    first = torch.full((INDEX.total,), 4.0)
    controller.take_norms(norm, first)
    assert torch.equal(controller.state.norm, norm) and torch.equal(controller.state.bound, first)
    second = torch.full((INDEX.total,), 1.0)
    second[0], second[1] = 8.0, float("inf")
    controller.take_norms(2 * norm, second)
    assert torch.equal(controller.state.norm, 2 * norm)
    bound = controller.state.bound
    assert (float(bound[0]), float(bound[1])) == (8.0, 4.0)
    assert torch.allclose(bound[2:], torch.tensor(4 * _FORGET)) and 0.9 < _FORGET < 1


def test_what_is_certified_may_go_and_what_was_never_measured_may_not() -> None:
    controller = controller_of(weight_decay=0.1)
    nothing = torch.zeros(INDEX.total)
    earned = torch.full((INDEX.total,), 0.1)
    sums = SideSums.from_sample(-earned, torch.ones(INDEX.total), 1)
    assert not controller.advance(sums, 200).any()
    controller.take_norms(nothing, nothing)  # no gradient was seen yet
    assert not controller.advance(sums, 210).any()
    bound = torch.linspace(1e-6, 0.3, INDEX.total)
    controller.take_norms(torch.linspace(0.3, 0.0, INDEX.total), bound)
    removable = controller.advance(sums, 220)
    state, price = controller.state, controller.nu * controller.state.prices
    expected = (state.norm * bound < price) & (state.theta * bound.square() < 0.1 * price)
    assert torch.equal(removable, expected) and 0 < int(removable.sum()) < INDEX.total
    assert not controller_of().advance(sums, 220).any()  # the proof is for weight decay of SGD


def test_what_has_been_zero_for_the_patience_may_go() -> None:
    """One unit costs more than it earns; it may go `patience` of discovery after it reached 0."""
    controller = controller_of(theta0=0.5, patience=0.05)
    earned = torch.full((INDEX.total,), 100.0)
    useless = INDEX.units(1).start
    earned[useless] = -100.0
    sums = SideSums.from_sample(-earned, torch.ones(INDEX.total), 1)
    reached, removable = 0, torch.zeros(INDEX.total, dtype=torch.bool)
    for step in range(200, 800):
        removable = controller.advance(sums, step)
        if removable.any():
            break
        reached = reached or step * bool(controller.state.theta[useless] == 0)
    assert removable.nonzero().flatten().tolist() == [useless]
    assert reached > 200 and step - reached == 0.05 * 600 - 1


def test_after_surgery_everything_is_about_the_smaller_network() -> None:
    dials = Dials(nu=0.5, target=None, alpha=0.7, beta=0.4)
    config = DiscoveryConfig(round_to=1)
    controller = Controller(NET, dials, Phases(2_000), config, None)
    controller.price()
    ones = torch.ones(INDEX.total)
    left = ones.clone()
    left[INDEX.units(0).start], left[INDEX.units(2).start] = 0, 0
    cost = controller.complexity.expected(left)
    kept = left.nonzero().flatten()
    small = residual_network(3, (3, 4), pixels=8)
    controller.learn(SideSums.from_sample(-torch.arange(float(INDEX.total)), ones, 1))
    before = controller.gate_values
    controller.select(small, kept)
    assert controller.structures is small and controller.quanta == (1, 1, 1)
    assert torch.equal(controller.gate_values.theta, before.theta[kept])
    full = torch.ones(small.index.total)
    controller.decide(full.bool())
    assert controller.expected == pytest.approx(float(cost), rel=1e-6)
    fresh = Complexity(small, 0.7, 0.4, controller.full)
    controller.price()
    assert torch.allclose(controller.gate_values.price, fresh.prices(full).float())
    assert torch.allclose(controller.gate_values.benefit, before.benefit[kept])
    chosen = controller.choose()
    assert chosen.mask.all() and chosen.attained == pytest.approx(float(cost), rel=1e-6)
