"""Estimators against exact differences, enumerated over all gates."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_gates, enumerated_mean, exact_benefit, probability, residual_network
from torch import Tensor

from guyot.core.errors import MisconfiguredError
from guyot.planning.benefits import (
    Homes,
    LayerMeans,
    SideMeans,
    SideSums,
    benefit,
    first_order_taylor,
    fisher,
    straight_through,
    two_sided,
    with_branches,
)
from guyot.planning.config import ESTIMATORS
from guyot.planning.evidence import Evidence

Loss = Callable[[Tensor], Tensor]


def gradient_of(loss: Loss, gate: Tensor) -> Tensor:
    at = gate.clone().requires_grad_()
    return torch.autograd.grad(loss(at), at)[0]


def quadratic(n: int, seed: int) -> Loss:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    b = torch.randn(n, generator=generator, dtype=torch.float64)
    return lambda gate: gate @ (a @ gate) + b @ gate


def mean_sides(loss: Loss, theta: Tensor) -> tuple[Tensor, Tensor]:
    """E[C'_j | xi_j = 1] and E[C'_j | xi_j = 0], by enumeration, each (gates,)."""
    one, zero = torch.zeros_like(theta), torch.zeros_like(theta)
    for gate in all_gates(len(theta)):
        weighted = probability(gate, theta) * gradient_of(loss, gate)
        one += weighted * gate / theta
        zero += weighted * (1 - gate) / (1 - theta)
    return one, zero


def sums_of(one: Tensor, count_one: Tensor, zero: Tensor, count_zero: Tensor) -> SideSums:
    """Sums without squares."""
    return SideSums(one, count_one, zero, count_zero, one * 0, zero * 0, predictions=1)


def exact_means(loss: Loss, theta: Tensor) -> SideMeans:
    """Means that are the exact conditional means."""
    one, zero = mean_sides(loss, theta)
    ones = torch.ones_like(theta).float()
    sums = sums_of(one.float(), ones, zero.float(), ones)
    return SideMeans.start(len(theta)).updated(sums, decay=0.96)


def sampled(loss: Loss, theta: Tensor, steps: int, decay: float = 0.96) -> SideMeans:
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

    def loss(gate: Tensor) -> Tensor:
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


def test_straight_through_is_its_formula_and_one_sided_ones_ignore_zero() -> None:
    sums = sums_of(*(torch.tensor([v]) for v in (2.0, 1.0, 4.0, 1.0)))
    theta = torch.tensor([0.25])
    means = SideMeans.start(1).updated(sums, decay=0.96)
    found = {name: benefit(name, means, theta).item() for name in ESTIMATORS}
    expected = {"two-sided": -3.0, "fisher": -2.0, "straight-through": -3.5, "taylor": -2.0}
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
    sums = sums_of(*(torch.tensor(v) for v in ([4.0, 4.0], [2.0, 4.0], [2.0, 0], [2.0, 0])))
    means = SideMeans.start(2).updated(sums, decay=0.9)
    assert two_sided(means, torch.ones(2)).tolist() == pytest.approx([-(2 + 1) / 2, -1.0])
    assert means.weight_one[1].item() == pytest.approx(1 - 0.9**4)


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
    sums = sums_of(torch.zeros(9), torch.ones(9), torch.full((9,), -2.0), torch.ones(9))
    means = SideMeans.start(9).updated(sums, decay=0.96)
    torch.testing.assert_close(two_sided(means, theta) - 1.0, torch.zeros(9))
    torch.testing.assert_close(straight_through(means, theta) - 1.0, 1 - 2 * theta)


def draws(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (n, 4), weights (4,) and outputs drawn from a Gaussian model of unit variance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.6, -0.4, 0.2, 0.1], dtype=torch.float64)
    return x, weights, x @ weights + torch.randn(n, generator=generator, dtype=torch.float64)


def per_sample(x: Tensor, weights: Tensor, y: Tensor) -> Tensor:
    """d/dxi at xi = 1 of every sample's (y - sum xi w x)**2 / 2, shape (samples, gates)."""
    return -(y - x @ weights)[:, None] * x * weights


def test_fisher_is_exact_where_the_model_is_right() -> None:
    """Slope and Fisher information of single samples against the exact difference."""
    x, weights, y = draws(400_000)
    g = per_sample(x, weights, y)
    estimate = -g.mean(0) + g.var(0) / 2

    def loss(gate: Tensor) -> Tensor:
        return (y - x @ (gate * weights)).square().mean() / 2

    ones = torch.ones(4, dtype=torch.float64)
    exact = torch.stack([loss(ones - unit) - loss(ones) for unit in torch.eye(4).double()])
    error = (g.square() / 2).std(0) / len(x) ** 0.5
    assert ((estimate - exact).abs() < 5 * error).all()
    assert (exact > 20 * error).all()


@pytest.mark.parametrize("batch", [8, 64])
def test_fisher_of_batches_is_that_of_single_samples(batch: int) -> None:
    """B Var of a batch's gradient against per-sample gradients, by the documented variance."""
    decay, ones = 0.999, torch.ones(4)
    x, weights, y = draws(batch * 4000)
    g = per_sample(x, weights, y)
    means = SideMeans.start(4)
    for mean in g.view(-1, batch, 4).mean(1).float():
        means = means.updated(SideSums.from_sample(mean, ones, batch), decay)
    n, var = (1 + decay) / (1 - decay), g.var(0) / batch
    sigma = (var / n + (batch * var) ** 2 / (2 * n)).sqrt()
    assert ((fisher(means, ones) - (g.var(0) / 2 - g.mean(0))).abs() < 5 * sigma).all()
    assert (sigma < 0.1 * g.var(0)).all()


def test_fisher_of_few_samples_is_low_as_documented() -> None:
    """Many gates with the same noise, B Var / 2 = 1: after k samples of a long window 1 - 1/k."""
    torch.manual_seed(0)
    means, ones = SideMeans.start(20_000), torch.ones(20_000)
    for k in range(1, 6):
        means = means.updated(SideSums.from_sample(torch.randn(20_000), ones, 2), decay=0.999)
        assert fisher(means, ones).mean().item() == pytest.approx(1 - 1 / k, abs=0.05)


def test_fisher_of_ranks_takes_the_mean_off_after_squares_were_averaged() -> None:
    """Two ranks of 4 predictions each."""
    torch.manual_seed(0)
    ones, means = torch.ones(3), SideMeans.start(3)
    gradients = torch.randn(50, 2, 3)
    for of_ranks in gradients:
        evidence = Evidence(3, "cpu")
        rows = [of_ranks, 0 * of_ranks, 0 * of_ranks + 1, 4 * of_ranks**2, 0 * of_ranks]
        every = torch.cat([*(row.mean(0) for row in rows), torch.tensor([4.0])])
        evidence.add(of_ranks[0], ones, 4, lambda _, every=every: every)
        means = means.updated(evidence.take().sums, decay=0.9)
    w = 0.9 ** torch.arange(49.0, -1, -1)[:, None]
    mean = (w * gradients.mean(1)).sum(0) / w.sum()
    square = (w * 4 * gradients.square().mean(1)).sum(0) / w.sum()
    expected = (square - 4 * mean.square()) / 2 - mean
    torch.testing.assert_close(fisher(means, ones), expected, rtol=1e-4, atol=1e-5)


def test_fisher_remembers_a_gate_that_is_off_and_expands_about_0_one_that_never_was_on() -> None:
    torch.manual_seed(0)
    means, on = SideMeans.start(2), torch.tensor([1.0, 0.0])
    for g in torch.randn(3000, 2):
        means = means.updated(SideSums.from_sample(g - 1, on, 4), decay=0.99)
    before = fisher(means, on)
    assert before.tolist() == pytest.approx([1 + 2, 1 - 2], abs=0.6)
    for g in torch.randn(100, 2):
        means = means.updated(SideSums.from_sample(100 * g, torch.zeros(2), 4), decay=0.99)
    assert fisher(means, on)[0] == before[0]


def test_enumeration_is_a_probability() -> None:
    theta = torch.rand(4, dtype=torch.float64)
    assert float(enumerated_mean(lambda g: g.new_ones(()), theta)) == pytest.approx(1.0)


def test_bad_arguments() -> None:
    with pytest.raises(MisconfiguredError, match=r"sums of shape \(2,\).*call select"):
        SideMeans.start(3).updated(SideSums.from_sample(torch.ones(2), torch.ones(2)), 0.96)
    with pytest.raises(MisconfiguredError, match=r"state of the gates has entries \['mean'\]"):
        SideMeans.start(3).restored({"mean": torch.ones(3)})


def test_units_of_a_branch_add_up_to_it_when_they_are_few() -> None:
    net = residual_network(4, (3, 5), pixels=8)
    index, homes = net.index, Homes.of(net)
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        found = torch.randn(index.total, generator=draw)
        on = torch.rand(index.total, generator=draw) < 0.5
        expected = found.clone()
        for layer, group in enumerate((1, 2)):
            units = range(index.units(group).start, index.units(group).stop)
            kept = [u for u in units if on[u]]
            missing = float(found[index.layer(layer)]) - sum(max(0, float(found[u])) for u in kept)
            if kept and missing > 0:
                expected[units.start : units.stop] += missing / len(kept) ** 2
        assert torch.allclose(with_branches(found, on, homes), expected, atol=1e-6)


def test_one_measurement_of_a_layer_takes_the_place_of_the_estimate() -> None:
    means = LayerMeans.start(3).updated(torch.tensor([1]), torch.tensor([2.0]))
    assert means.over(torch.tensor([5.0, 6.0, 7.0])).tolist() == [5, 2, 7]
