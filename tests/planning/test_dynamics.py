"""The step, the phases, the conditions for removal, and the hyper-prior behind the prices."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize

from guyot.core.errors import MisconfiguredError
from guyot.planning.dynamics import Phase, Phases, ZeroSteps, certified, sample, speed, step


def test_no_benefit_reaches_zero_in_one_horizon() -> None:
    theta, ones, zero = torch.tensor([0.9, 0.1]), torch.ones(2), torch.tensor([0.0, 2.0])
    for _ in range(50):
        theta = step(theta, speed(zero, ones, ones), theta0=0.9, horizon=50)
    torch.testing.assert_close(theta, torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_scaling_nats_changes_nothing() -> None:
    b, c, r = torch.rand(9), torch.rand(9), torch.rand(9) + 0.1
    torch.testing.assert_close(speed(b, c, r), speed(7 * b, 7 * c, 7 * r))


def test_gates_that_do_not_move() -> None:
    nan, inf = float("nan"), float("inf")
    benefit = torch.tensor([1.0, nan, inf, 0.5, 5.0])
    reference = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    assert speed(benefit, torch.ones(5), reference).tolist() == [0, 0, 0, -0.5, 2]


def test_commitment_adds_its_strength_towards_the_plan() -> None:
    ones, plan = torch.ones(3), torch.tensor([True, False, True])
    benefit = torch.tensor([0.0, 0.0, 3.5])
    assert speed(benefit, ones, ones, 2.0, 0.5, plan).tolist() == [-0.5, -1.5, 2.5]


def test_commitment_takes_every_gate_to_its_plan() -> None:
    """Default phases: with a constant plan even the fastest opposite drift is overcome."""
    phases, ones = Phases(2000), torch.ones(4)
    theta = torch.tensor([0.0, 1.0, 0.5, 0.5])
    plan = torch.tensor([True, False, True, False])
    against = torch.where(plan, -100.0, 100.0)
    for t in range(phases.discovery_start, phases.discovery_stop):
        mu = phases.commitment(t)
        theta = step(theta, speed(against, ones, ones, 2.0, mu, plan), 0.9, phases.horizon)
        if mu == 0:
            assert phases.progress(t) <= 0.75 + 1e-9
    assert torch.equal(theta, plan.float())


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
    st.floats(-1e6, 1e6),
    st.floats(0, 1e3),
    st.integers(1, 1000),
)
def test_step_stays_in_the_cube_and_is_bounded(
    thetas: list[float], benefit: float, price: float, horizon: int
) -> None:
    theta = torch.tensor(thetas)
    ones = torch.ones_like(theta)
    moved = step(theta, speed(benefit * ones, price * ones, ones), 0.9, horizon)
    assert ((moved >= 0) & (moved <= 1)).all()
    assert ((moved - theta).abs() <= 2 * 0.9 / horizon + 1e-6).all()
    assert ((moved - theta) * (benefit - price) >= 0).all()


def test_samples_have_the_clamped_probabilities() -> None:
    n, epsilon = 20_000, 0.05
    theta = torch.tensor([0.0, 0.3, 1.0]).repeat_interleave(n)
    gates = sample(theta, epsilon, torch.Generator().manual_seed(3))
    assert set(gates.tolist()) == {0.0, 1.0}
    for mean, p in zip(gates.view(3, n).mean(1).tolist(), (epsilon, 0.3, 1 - epsilon), strict=True):
        assert abs(mean - p) < 5 * (p * (1 - p) / n) ** 0.5
    again = sample(theta, epsilon, torch.Generator().manual_seed(3))
    assert torch.equal(gates, again)


@given(st.integers(100, 100_000))
def test_phases_cover_the_run_in_order(total: int) -> None:
    phases = Phases(total)
    assert phases.at(0) is Phase.WARM_UP
    assert phases.at(phases.discovery_start - 1) is Phase.WARM_UP
    assert phases.at(phases.discovery_start) is Phase.DISCOVERY
    assert phases.at(phases.discovery_stop - 1) is Phase.DISCOVERY
    assert phases.at(total - 1) is Phase.FINE_TUNE
    mus = [phases.commitment(t) for t in range(0, total, max(1, total // 50))]
    assert mus[0] == 0 and mus == sorted(mus) and mus[-1] == phases.commitment_max


def test_phases_without_warmup() -> None:
    assert Phases(1000, warmup=0).at(0) is Phase.DISCOVERY


@given(st.floats(0, 0.4), st.floats(0.45, 0.95), st.integers(1, 200))
@example(0.3, 0.5, 1)
def test_smallest_run_is_what_the_error_says(warmup: float, end: float, shortest: int) -> None:
    def phases(total: int) -> Phases:
        return Phases(total, warmup=warmup, discovery_end=end, shortest=shortest)

    if 0 < warmup < 1e-3:
        return
    with pytest.raises(MisconfiguredError, match="total_steps=1 is too small") as caught:
        phases(1)
    enough = int(str(caught.value).rsplit("at least ", 1)[1].split()[0])
    for total in (enough, enough + 1):
        found = phases(total)
        lengths = [found.discovery_stop - found.discovery_start, total - found.discovery_stop]
        assert min(lengths + [found.discovery_start] * (warmup > 0)) >= shortest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": 0.7}, "warmup=0.7 and discovery_end=0.4 are out of order"),
        ({"discovery_end": 1.0}, "discovery_end=1.0 are out of order"),
        ({"commit": 0.0}, "commit=0.0 is out of range"),
        ({"commit": 1.0}, "commit=1.0 is out of range"),
    ],
)
def test_bad_phases(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        Phases(1000, **arguments)


def test_only_zeros_that_still_fall_are_counted() -> None:
    price = torch.ones(3)
    theta = torch.tensor([0.0, 0.0, 0.1])
    low, high = torch.zeros(3), torch.tensor([0.0, 2.0, 0.0])
    zeros, counts = ZeroSteps.start(3), []
    for benefit in (low, high, low, low):
        zeros = zeros.updated(theta, benefit, price)
        counts.append(zeros.steps.tolist())
    assert counts == [[1, 1, 0], [2, 0, 0], [3, 1, 0], [4, 2, 0]]
    other = ZeroSteps.start(1).restored(zeros.select(torch.tensor([1])).state_dict())
    assert other.updated(theta[:1], low[:1], price[:1]).steps.tolist() == [3]
    assert other.updated(torch.tensor([0.1]), low[:1], price[:1]).steps.tolist() == [0]
    assert other.updated(theta[:1], price[:1], price[:1]).steps.tolist() == [0], "it does not fall"


def worst_flow(
    theta: float, norm: float, price: float, bound: float, decay: float, speeds: tuple[float, float]
) -> tuple[float, float]:
    """The fastest growth the bounds allow, dtheta = G||w|| - c, d||w|| = theta G - lambda ||w||."""
    dt = 0.01 / (decay + bound + price)
    for _ in range(200_000):
        up = (bound * norm - price) * speeds[0]
        norm += dt * (theta * bound - decay * norm) * speeds[1]
        theta = min(1.0, max(0.0, theta + dt * up))
        if theta == 0 and norm * bound < 0.05 * price:
            break
    return theta, norm


@settings(max_examples=15, deadline=None)
@given(
    st.floats(0, 0.999),
    st.floats(0, 0.999),
    st.floats(0.1, 2.0),
    st.floats(0.3, 3.0),
    st.floats(0.1, 1.0),
    st.floats(0.3, 3.0),
)
def test_from_certified_points_the_flow_always_ends_at_zero(
    a: float, b: float, price: float, bound: float, decay: float, ratio: float
) -> None:
    theta, norm = min(1.0, a * decay * price / bound**2), b * price / bound
    vectors = [torch.tensor([x], dtype=torch.float64) for x in (theta, norm, bound, price)]
    assert bool(certified(*vectors, weight_decay=decay))
    end, rest = worst_flow(theta, norm, price, bound, decay, (1.0, ratio))
    assert end == 0
    assert rest <= 0.05 * price / bound


def test_outside_the_certified_set_the_flow_can_come_back() -> None:
    price, bound, decay = 0.2, 1.0, 0.1
    assert worst_flow(0.9, 0.5, price, bound, decay, (1.0, 1.0))[0] > 0.9
    outside = [torch.tensor([x]) for x in (0.9, 0.5, bound, price)]
    assert not bool(certified(*outside, weight_decay=decay))


def test_certified_edges() -> None:
    theta, norm = torch.tensor([0.0, 0.5, 0.0]), torch.tensor([0.1, 5.0, 3.0])
    bound, price = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])
    # free structures are never certified; without any gradient everything is; large norms are not
    assert certified(theta, norm, bound, price, 0.1).tolist() == [False, True, False]
    # the set is open: on its border the gate may stay where it is
    ones, zero = torch.ones(1), torch.zeros(1)
    assert not certified(zero, ones, ones, ones, 1.0).item()
    assert not certified(ones, zero, ones, ones, 1.0).item()


def hyper_prior(pi: float, gamma: float) -> float:
    return (gamma - 1) / (math.log(gamma) * (1 + (gamma - 1) * pi))


@given(st.floats(1.01, 50))
def test_hyper_prior_is_a_density(gamma: float) -> None:
    mass = integrate.quad(lambda pi: hyper_prior(pi, gamma), 0, 1)[0]
    assert mass == pytest.approx(1, abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.floats(1.05, 50), st.lists(st.floats(0.02, 0.98), min_size=2, max_size=2))
def test_minimising_over_the_prior_leaves_the_price(gamma: float, thetas: list[float]) -> None:
    """min over pi of KL(Bern(theta) || Bern(pi)) - log p(pi | gamma) = theta log gamma + const."""

    def least(theta: float) -> float:
        def objective(pi: float) -> float:
            kl = theta * math.log(theta / pi) + (1 - theta) * math.log((1 - theta) / (1 - pi))
            return kl - math.log(hyper_prior(pi, gamma))

        found = optimize.minimize_scalar(
            objective, bounds=(1e-9, 1 - 1e-9), method="bounded", options={"xatol": 1e-10}
        )
        assert found.x == pytest.approx(theta / (gamma - (gamma - 1) * theta), abs=1e-4)
        return found.fun

    first, second = thetas
    assert least(first) - least(second) == pytest.approx(
        (first - second) * math.log(gamma), abs=1e-6
    )
