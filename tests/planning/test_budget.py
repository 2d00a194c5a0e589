"""A whole discovery on synthetic noisy benefits: the budget is met and the gates decide."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from oracles import gate_values, residual_network

from guyot.core.errors import MisconfiguredError
from guyot.planning import budget as budgets
from guyot.planning.benefits import SideSums
from guyot.planning.budget import Budget, BudgetState
from guyot.planning.config import Dials, DiscoveryConfig
from guyot.planning.controller import Controller
from guyot.planning.dynamics import Phases, speed, step
from guyot.planning.evidence import Evidence
from guyot.planning.vectors import GateValues

NET = residual_network(16, (16,) * 9, pixels=8)  # the shape of a ResNet-20


@dataclass
class Outcome:
    theta: torch.Tensor
    expected: list[float]
    wanted: list[float]
    nu: list[float]


def simulate(
    target: float | None = 0.5,
    steps: int = 1500,
    noise: float = 3.0,
    seed: int = 0,
    quantum: int = 1,
    commitment: float = 10.0,
) -> Outcome:
    """Let a controller move gates whose benefits rise up to threefold as others of a group leave.

    Intrinsic benefits are log-normal about 0.3 nats times the price; gradients carry Student-t
    noise (3 degrees of freedom) of `noise` times that; the weights adapt to theta.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    phases = Phases(steps, commitment_max=commitment)
    dials = Dials(nu=0.5 if target is None else None, target=target, beta=0.0)
    config = DiscoveryConfig(round_to=quantum, epsilon=0.03, seed=seed, estimator="two-sided")
    controller = Controller(NET, dials, phases, config, weight_decay=None)
    controller.price()
    index, reference = NET.index, controller.state.reference
    adapted = torch.ones(index.total)
    base = 0.3 * reference * torch.randn(index.total, generator=generator).exp()
    tails = torch.distributions.StudentT(3.0)
    group = index.group_of_gate
    sizes = torch.bincount(group).float()
    outcome, evidence = Outcome(controller.state.theta, [], [], []), Evidence(index.total, "cpu")
    for t in range(phases.discovery_start, phases.discovery_stop):
        gate = controller.sample(generator)[0]
        kept = torch.zeros(len(sizes)).index_add(0, group, gate)
        others = ((kept[group] - gate) / (sizes[group] - 1).clamp(min=1)).clamp(max=1)
        others[index.layer_slice] = gate[index.layer_slice].mean()
        present = torch.ones(index.total)
        for i in range(index.layers):
            present[index.units(i + 1)] = gate[index.layer(i)]
        true = base * adapted * present * (3 - 2 * others)
        noisy = noise * 0.17 * reference * present * tails.sample((index.total,))
        gradient = -true * (1.5 - gate) + noisy
        evidence.add(gradient, gate, 1, lambda values: values)
        if controller.deciding(t):
            removable = controller.advance(evidence.take().sums, t)
            if controller.removing(t):
                controller.remove(removable)
        theta = controller.state.theta
        adapted += (theta.clamp(min=0.02) / 0.9 - adapted) * 10 / phases.discovery_steps
        outcome.expected.append(controller.expected)
        if (budget := controller.state.budget) is not None:
            path = Budget(dials.target, phases, config.theta0, config.max_speed)
            outcome.wanted.append(path.path(budget.initial or controller.expected, t + 1))
        outcome.nu.append(controller.nu)
    outcome.theta = controller.state.theta
    return outcome


def polarised(theta: torch.Tensor) -> float:
    """Share of the remaining gates that are at 0.95 or above."""
    remaining = theta[theta > 0]
    return float((remaining >= 0.95).float().mean())


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"target": 0.3},
        {"noise": 10.0, "seed": 1},
        {"steps": 400, "seed": 2},
        {"quantum": 4, "seed": 3},
    ],
    ids=str,
)
def test_budget_is_met_and_gates_decide(case: dict) -> None:
    outcome = simulate(**case)
    target = case.get("target", 0.5)
    assert abs(outcome.expected[-1] / target - 1) < 0.01
    assert polarised(outcome.theta) >= 0.9
    assert ((outcome.theta == 0) | (outcome.theta > 0.95)).float().mean() > 0.95


def test_the_path_is_followed_without_oscillation() -> None:
    outcome = simulate()
    on_path = range(30, int(0.74 * len(outcome.expected)))
    errors = [outcome.expected[t] - outcome.wanted[t] for t in on_path]
    assert max(map(abs, errors)) < 0.01
    rises = [max(0.0, outcome.expected[t + 1] - outcome.expected[t]) for t in on_path]
    assert sum(rises) < 0.02


def test_fixed_nu_polarises_as_well_and_needs_the_commitment_for_it() -> None:
    assert polarised(simulate(target=None).theta) >= 0.9
    assert polarised(simulate(target=None, commitment=0.0).theta) < 0.9


def test_better_structures_stay() -> None:
    """The kept units earn more for their price than the dropped ones of surviving layers."""
    outcome = simulate(noise=10.0)
    index = NET.index
    base = torch.randn(index.total, generator=torch.Generator().manual_seed(0))
    alive = torch.ones(index.total, dtype=torch.bool)
    for i in range(index.layers):
        alive[index.units(i + 1)] = bool(outcome.theta[index.layer(i)] > 0.5)
    alive[index.layer_slice] = False
    kept = outcome.theta > 0.5
    assert base[alive & kept].mean() > base[alive & ~kept].mean() + 0.5


def slope_case(benefit: torch.Tensor, theta: torch.Tensor | None = None) -> GateValues:
    n = len(benefit)
    theta = torch.full((n,), 0.9) if theta is None else theta
    return gate_values(theta, benefit, torch.ones(n) / n)


def test_nu_rises_while_complexity_is_too_high_and_falls_when_too_low() -> None:
    nus = {}
    gates = slope_case(torch.linspace(0.0, 0.2, 8))
    for name, expected in (("high", 0.95), ("low", 0.4)):
        budget = Budget(0.5, Phases(1000))
        first = state = budget.update(BudgetState(), 100, gates, expected=0.9)
        for t in range(101, 140):
            state = budget.update(state, t, gates, expected)
        nus[name] = state.nu / first.nu
    assert nus["high"] > 1.2 and nus["low"] < 0.8


def test_negative_benefits_do_not_confuse_the_search() -> None:
    """A third of the b below 0: C^ still follows the path, step by step."""
    phases = Phases(1000)
    start, arrival = phases.discovery_start, phases.discovery_stop - phases.discovery_steps // 4
    benefit = (torch.randn(300, generator=torch.Generator().manual_seed(0)) + 0.4) / 300
    budget, state, theta = Budget(0.5, phases), BudgetState(), torch.full((300,), 0.9)
    expected = [float(theta.mean())]
    for t in range(start, arrival):
        gates = slope_case(benefit, theta)
        state = budget.update(state, t, gates, expected[-1])
        drift = speed(benefit, state.nu * gates.price, state.scale * gates.reference_price)
        theta = step(theta, drift, 0.9, phases.horizon)
        expected.append(float(theta.mean()))
    path = [budget.path(state.initial, t) for t in range(start, arrival)]
    errors = [abs(expected[t] - path[t]) for t in range(50, arrival - start)]
    assert max(errors) < 0.03
    assert errors[-1] < 0.005


def test_the_path_is_smooth_and_reaches_the_target_when_gates_commit() -> None:
    phases = Phases(1000)
    budget = Budget(0.5, phases)
    start, arrival = phases.discovery_start, phases.discovery_stop - phases.discovery_steps // 4
    path = [budget.path(0.9, t) for t in range(start, phases.discovery_stop)]
    assert path[0] == 0.9 and path[arrival - start :] == [0.5] * (phases.discovery_stop - arrival)
    assert path == sorted(path, reverse=True)
    steepest = max(a - b for a, b in itertools.pairwise(path))
    assert steepest == pytest.approx(1.5 * 0.4 / (arrival - start), rel=1e-2)


def test_state_round_trip() -> None:
    budget, gates = Budget(0.5, Phases(1000)), slope_case(torch.linspace(0.0, 0.2, 8))
    state = BudgetState()
    for t in range(100, 120):
        state = budget.update(state, t, gates, expected=0.9)
    again = BudgetState().restored(state.state_dict())
    assert again == state
    assert budget.update(again, 120, gates, 0.8) == budget.update(state, 120, gates, 0.8)


PHASES = Phases(1000)
RATE, SCALE_RATE = budgets._RATE / PHASES.horizon, budgets._SCALE_RATE / PHASES.horizon


def told(now: int, state: BudgetState, expected: float, ahead: int = 1) -> BudgetState:
    gates = slope_case(torch.linspace(0.0, 0.2, 8))
    return Budget(0.5, PHASES).update(state, now, gates, expected, ahead)


@pytest.mark.parametrize("price", [1.0, 1e-3])
def test_the_first_nu_is_what_a_price_earns_on_average(price: float) -> None:
    gates = slope_case(torch.linspace(-0.1, 0.2, 8))
    gates = replace(gates, price=price * gates.price, reference_price=price * gates.reference_price)
    state = Budget(0.5, PHASES).update(BudgetState(), 100, gates, expected=0.9)
    first = float(gates.benefit.abs().sum()) / price
    assert abs(math.log(state.nu / first)) <= RATE * (1 + 1e-6)
    assert (state.initial, state.last) == (0.9, 100)


def test_benefits_of_nothing_begin_at_a_millionth() -> None:
    state = Budget(0.5, PHASES).update(BudgetState(), 100, slope_case(torch.zeros(8)), expected=0.9)
    assert abs(math.log(state.nu / 1e-6)) <= RATE * (1 + 1e-6)


@pytest.mark.parametrize("steps", [1, 5, 10**6])
def test_nu_changes_by_so_much_in_a_step_and_its_unit_follows(steps: int) -> None:
    """Where C^ is much too high, nu rises as fast as it may."""
    before = BudgetState(nu=0.01, scale=0.01, initial=0.9, last=150 - steps)
    state = told(150, before, expected=1.0)
    rise = min(1.0, steps * RATE)
    assert math.log(state.nu / 0.01) == pytest.approx(rise, rel=1e-6)
    assert math.log(state.scale / 0.01) == pytest.approx(rise * min(1.0, steps * SCALE_RATE))
    assert (state.initial, state.last) == (0.9, 150)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("expected", [0.86, 0.87])
def test_complexity_changes_by_what_the_path_wants(steps: int, expected: float) -> None:
    """Along the path, and a share of what is missing to it: that of the steps in tau."""
    budget, gates = Budget(0.5, PHASES), slope_case(torch.linspace(0.0, 0.2, 8))
    now, before = 150, BudgetState(nu=0.75, scale=0.8, initial=0.9, last=150 - steps)
    state = budget.update(before, now, gates, expected, ahead=steps)
    tau = max(0.02 * PHASES.discovery_steps, 2 * steps, 2)
    path = [budget.path(0.9, step) for step in (now, now + steps)]
    wanted = path[1] - path[0] + steps * (path[0] - expected) / tau
    drift = speed(gates.benefit, state.nu * gates.price, 0.8 * gates.reference_price)
    moved = step(gates.theta, drift, 0.9, PHASES.horizon, steps)
    assert abs(math.log(state.nu / 0.75)) < RATE * steps, "not at a bound"
    change = float((gates.gradient * gates.alive) @ (moved - gates.theta))
    assert change == pytest.approx(wanted, rel=2e-2)


def test_nu_is_constant_from_the_step_on_at_which_gates_commit() -> None:
    before = BudgetState(nu=0.3, scale=0.2, initial=0.9, last=300)
    first = next(now for now in itertools.count(100) if PHASES.progress(now) >= 1 - PHASES.commit)
    assert PHASES.progress(first) == 1 - PHASES.commit
    for now in (first, first + 20):
        assert told(now, before, expected=0.7) == BudgetState(0.2, 0.2, 0.9, now)
    assert told(first - 1, before, expected=0.7).nu != 0.2


@pytest.mark.parametrize("target", [0.0, 1.0, -0.2, 50, "0.5"])
def test_bad_target(target: Any) -> None:
    with pytest.raises(MisconfiguredError, match=r"target=.*share of the complexity"):
        Dials(None, target)


def test_gates_are_still_only_while_all_that_are_left_are_one() -> None:
    """A discovery may end early after such steps, and after no others."""
    config = DiscoveryConfig(round_to=1, estimator="two-sided")
    controller = Controller(NET, Dials(nu=0.5, target=None), Phases(1000), config, None)
    controller.price()
    every = torch.ones(NET.index.total)

    def advance(step: int) -> int:
        gradient = -100 * controller.state.reference  # keeping every gate pays
        controller.advance(SideSums.from_sample(gradient, every), step)
        return controller.state.still

    assert advance(1) == 0  # theta is below 1
    controller.decide(every.bool())
    assert [advance(2), advance(3)] == [1, 2]
    controller.decide(torch.arange(len(every)) > 0)
    assert advance(4) == 3  # what was removed does not count
