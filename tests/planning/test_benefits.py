"""Estimators against exact differences, enumerated over all gates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_gates, enumerated_mean, exact_benefit, probability

from guyot.core.errors import MisconfiguredError
from guyot.planning.benefits import (
    SideMeans,
    SideSums,
    benefit,
    first_order_taylor,
    straight_through,
    two_sided,
)
from guyot.planning.config import ESTIMATORS

Loss = Callable[[torch.Tensor], torch.Tensor]


def gradient_of(loss: Loss, gate: torch.Tensor) -> torch.Tensor:
    at = gate.clone().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


def quadratic(n: int, seed: int) -> Loss:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    b = torch.randn(n, generator=generator, dtype=torch.float64)
    return lambda gate: gate @ (a @ gate) + b @ gate


def mean_sides(loss: Loss, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """E[C'_j | xi_j = 1] and E[C'_j | xi_j = 0], by enumeration, each (gates,)."""
    one, zero = torch.zeros_like(theta), torch.zeros_like(theta)
    for gate in all_gates(len(theta)):
        weighted = probability(gate, theta) * gradient_of(loss, gate)
        one += weighted * gate / theta
        zero += weighted * (1 - gate) / (1 - theta)
    return one, zero


def exact_means(loss: Loss, theta: torch.Tensor) -> SideMeans:
    """Means that are the exact conditional means."""
    one, zero = mean_sides(loss, theta)
    ones = torch.ones_like(theta).float()
    sums = SideSums(one.float(), ones, zero.float(), ones)
    return SideMeans.start(len(theta)).updated(sums, decay=0.96)


def sampled(loss: Loss, theta: torch.Tensor, steps: int, decay: float = 0.96) -> SideMeans:
    generator = torch.Generator().manual_seed(0)
    means = SideMeans.start(len(theta))
    for _ in range(steps):
        gate = torch.bernoulli(theta, generator=generator)
        sums = SideSums.from_sample(gradient_of(loss, gate).float(), gate.float())
        means = means.updated(sums, decay)
    return means


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.lists(st.floats(0.05, 0.95), min_size=2, max_size=5),
)
def test_two_sided_is_exact_for_quadratic_losses(seed: int, thetas: list[float]) -> None:
    theta = torch.tensor(thetas, dtype=torch.float64)
    loss = quadratic(len(theta), seed)
    exact = torch.stack([exact_benefit(loss, theta, j) for j in range(len(theta))])
    estimate = two_sided(exact_means(loss, theta), theta)
    torch.testing.assert_close(estimate.double(), exact, rtol=1e-4, atol=1e-4)


def test_the_others_are_biased_as_documented() -> None:
    theta = torch.tensor([0.2, 0.7, 0.9], dtype=torch.float64)
    loss = quadratic(3, seed=1)
    exact = torch.stack([exact_benefit(loss, theta, j) for j in range(3)])
    one, zero = mean_sides(loss, theta)
    means = exact_means(loss, theta)
    straight = straight_through(means, theta)
    torch.testing.assert_close(
        straight.double() - exact, (theta - 0.5) * (zero - one), rtol=1e-4, atol=1e-4
    )
    taylor = first_order_taylor(means, theta)
    torch.testing.assert_close(taylor.double() - exact, -(one - zero) / 2, rtol=1e-4, atol=1e-4)
    assert (straight - exact).abs().min() > 1e-2 and (taylor - exact).abs().min() > 1e-2


def relu_net(seed: int = 0) -> Loss:
    """Cross-entropy of a tiny ReLU network whose 4 hidden units are gated at the readers."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 3, generator=g, dtype=torch.float64)
    y = torch.randint(3, (64,), generator=g)
    w1 = torch.randn(4, 3, generator=g, dtype=torch.float64)
    w2 = 0.5 * torch.randn(4, 4, generator=g, dtype=torch.float64)
    w3 = torch.randn(3, 4, generator=g, dtype=torch.float64)

    def loss(gate: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(torch.relu(x @ w1.T) @ (w2 * gate[:4]).T)
        return torch.nn.functional.cross_entropy(hidden @ (w3 * gate[4:]).T, y)

    return loss


def test_two_sided_on_a_relu_net() -> None:
    """Samples converge to the trapezoid (z-bound), and that is close to the exact difference."""
    loss = relu_net()
    theta = torch.full((8,), 0.6, dtype=torch.float64)
    exact = torch.stack([exact_benefit(loss, theta, j) for j in range(8)])
    one, zero = mean_sides(loss, theta)
    trapezoid = -(one + zero) / 2
    assert (trapezoid - exact).norm() < 0.2 * exact.norm()
    taylor = -one
    assert (trapezoid - exact).norm() < 0.5 * (taylor - exact).norm()

    decay = 0.9995
    means = sampled(loss, theta, steps=3000, decay=decay)
    second = torch.zeros(2, 8, dtype=torch.float64)
    for gate in all_gates(8):
        squares = probability(gate, theta) * gradient_of(loss, gate) ** 2
        second += torch.stack([squares * gate / theta, squares * (1 - gate) / (1 - theta)])
    variance = second - torch.stack([one, zero]) ** 2
    n1, n0 = (  # effective samples, (sum w)**2 / sum w**2 of weights that fall by `decay`
        (w**2 * (1 + decay) / (1 - decay) / (1 - (1 - w) ** 2)).double()
        for w in (means.weight_one, means.weight_zero)
    )
    sigma = 0.5 * (variance[0] / n1 + variance[1] / n0).sqrt()
    assert ((two_sided(means, theta) - trapezoid).abs() < 5 * sigma + 1e-6).all()
    assert (sigma < 0.05).all()


def test_straight_through_is_its_formula_and_taylor_ignores_zero() -> None:
    sums = SideSums(*(torch.tensor([v]) for v in (2.0, 1.0, 4.0, 1.0)))
    theta = torch.tensor([0.25])
    means = SideMeans.start(1).updated(sums, decay=0.96)
    found = {name: benefit(name, means, theta).item() for name in ESTIMATORS}
    expected = {"two-sided": -3.0, "straight-through": -3.5, "taylor": -2.0}
    assert found == pytest.approx(expected)


def test_one_side_stands_in_until_the_other_is_sampled() -> None:
    means, theta = SideMeans.start(2), torch.full((2,), 0.5)
    assert torch.equal(two_sided(means, theta), torch.zeros(2))
    sums = SideSums.from_sample(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0]))
    means = means.updated(sums, decay=0.96)
    torch.testing.assert_close(two_sided(means, theta), torch.tensor([-1.0, -3.0]))
    sums = SideSums.from_sample(torch.tensor([5.0, 4.0]), torch.tensor([0.0, 0.0]))
    assert two_sided(means.updated(sums, 0.96), theta)[0].item() == pytest.approx(-3.0)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30), st.floats(0, 0.99))
def test_running_mean_counts_samples_of_its_side(values: list[float], decay: float) -> None:
    means = SideMeans.start(1)
    for k, value in enumerate(values):
        means = means.updated(SideSums.from_sample(torch.tensor([value]), torch.ones(1)), decay)
        for _ in range(k % 3):  # samples of the other side change nothing
            other = SideSums.from_sample(torch.tensor([100.0]), torch.zeros(1))
            means = means.updated(other, decay)
    weights = [decay ** (len(values) - 1 - k) for k in range(len(values))]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    found = first_order_taylor(means, torch.ones(1)).item()
    assert found == pytest.approx(-mean, abs=2e-4)


def test_several_samples_at_once_weigh_as_several_in_a_row() -> None:
    sums = SideSums(*(torch.tensor(v) for v in ([4.0, 4.0], [2.0, 4.0], [2.0, 0], [2.0, 0])))
    means = SideMeans.start(2).updated(sums, decay=0.9)
    assert two_sided(means, torch.ones(2)).tolist() == pytest.approx([-(2 + 1) / 2, -1.0])
    assert means.weight_one[1].item() == pytest.approx(1 - 0.9**4)


def test_nan_is_noticed() -> None:
    gate = torch.tensor([1.0, 0.0])
    assert SideSums.from_sample(torch.tensor([1.0, 2.0]), gate).finite
    for bad in (float("nan"), float("inf")):
        assert not SideSums.from_sample(torch.tensor([1.0, bad]), gate).finite


def test_select_and_state_round_trip() -> None:
    loss, theta = quadratic(5, 0), torch.full((5,), 0.5, dtype=torch.float64)
    means = sampled(loss, theta, 20)
    expected = two_sided(means, theta.float())
    kept = torch.tensor([0, 3])
    less = means.select(kept)
    other = SideMeans.start(2).restored(less.state_dict())
    assert torch.equal(two_sided(other, torch.ones(2)), expected[kept])
    less.mean_one.add_(1)  # the state is a copy
    assert torch.equal(two_sided(other, torch.ones(2)), expected[kept])


def test_straight_through_has_a_stable_interior_equilibrium_two_sided_has_none() -> None:
    """One gate, C = xi**2 - 2 xi, price 1: exactly at the break-even of the two-sided rule."""
    theta = torch.linspace(0.1, 0.9, 9)
    sums = SideSums(torch.zeros(9), torch.ones(9), torch.full((9,), -2.0), torch.ones(9))
    means = SideMeans.start(9).updated(sums, decay=0.96)
    torch.testing.assert_close(two_sided(means, theta) - 1.0, torch.zeros(9))
    torch.testing.assert_close(straight_through(means, theta) - 1.0, 1 - 2 * theta)


def test_enumeration_is_a_probability() -> None:
    theta = torch.rand(4, dtype=torch.float64)
    assert float(enumerated_mean(lambda g: g.new_ones(()), theta)) == pytest.approx(1.0)


def test_bad_arguments() -> None:
    with pytest.raises(MisconfiguredError, match=r"sums of shape \(2,\).*call select"):
        SideMeans.start(3).updated(SideSums.from_sample(torch.ones(2), torch.ones(2)), 0.96)
    with pytest.raises(MisconfiguredError, match=r"state of the gates has entries \['mean'\]"):
        SideMeans.start(3).restored({"mean": torch.ones(3)})
