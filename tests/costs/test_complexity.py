"""Expected costs are enumerated means; prices are their derivatives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_gates, counted, enumerated_mean, residual_network, unit_group

from guyot.core.errors import MisconfiguredError
from guyot.core.types import (
    Concat,
    Fixed,
    GateIndex,
    Layer,
    Operation,
    Product,
    Structures,
    TensorShape,
    Units,
)
from guyot.costs.complexity import Complexity, Totals
from guyot.costs.polynomial import (
    Monomial,
    Polynomial,
    macs_of,
    merge,
    monomials_of,
    widths_of,
)


def knotted() -> Structures:
    """Products, concatenations, the same group three times in a product, nested layers."""
    mixed = Concat((Units(0), Fixed(3), Units(1), Units(0)))
    layers = tuple(Layer(f"l{i}", (), "", 1, ()) for i in range(3))
    tensors = (
        TensorShape("square", (Units(0), Units(0)), (), trainable=True),
        TensorShape("cube", (Units(0), mixed, Product((Units(0), Fixed(2)))), (0,), trainable=True),
        TensorShape("nested", (Units(1), Product((Units(0), Units(1)))), (0, 1), trainable=True),
        TensorShape("buffer", (Units(0),), (2,), trainable=False),
        TensorShape("plain", (Units(0), Fixed(5)), (), trainable=True),
    )
    operations = (
        Operation("a", (mixed, mixed, Fixed(2)), (0,)),
        Operation("b", (Units(0), Units(1), Fixed(7)), (0, 1, 1)),
        Operation("c", (Product((Units(1), Units(1))), Units(1), Units(0)), (2,)),
        Operation("d", (Fixed(11),), ()),
    )
    groups = (unit_group("u", 3, ("square", 0)), unit_group("v", 2, ("nested", 0)))
    return Structures(groups, layers, tensors, operations)


NETWORKS = {"knotted": knotted(), "residual": residual_network()}


def some_theta(structures: Structures, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(structures.index.total, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_expectation_is_the_mean_over_all_gates(name: str) -> None:
    structures = NETWORKS[name]
    complexity = Complexity(structures)
    for seed in range(2):
        theta = some_theta(structures, seed)
        macs = enumerated_mean(lambda g: counted(structures, g)[0], theta)
        params = enumerated_mean(lambda g: counted(structures, g)[1], theta)
        torch.testing.assert_close(complexity.macs(theta), macs, rtol=1e-12, atol=0)
        torch.testing.assert_close(complexity.params(theta), params, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_mask_is_counted_exactly(name: str) -> None:
    structures = NETWORKS[name]
    complexity = Complexity(structures)
    for gate in list(all_gates(structures.index.total))[::7]:
        exact = counted(structures, gate)
        assert (float(complexity.macs(gate)), float(complexity.params(gate))) == exact


@pytest.mark.parametrize("name", NETWORKS)
def test_widths_and_masks_agree(name: str) -> None:
    structures = NETWORKS[name]
    polynomial = Polynomial(macs_of(structures), structures.index)
    gates = torch.stack(list(all_gates(structures.index.total))[::5])
    groups = range(len(structures.groups))
    widths = torch.stack([gates[:, structures.index.units(g)].sum(-1) for g in groups], dim=-1)
    exact = [float(polynomial.expected(gate)) for gate in gates]
    assert polynomial.at(widths, gates[:, structures.index.layer_slice]).tolist() == exact


@pytest.mark.parametrize("name", NETWORKS)
def test_affine_in_every_theta(name: str) -> None:
    structures = NETWORKS[name]
    complexity = Complexity(structures, alpha=0.3)
    theta = some_theta(structures)
    for j in range(len(theta)):
        at = []
        for value in (0.0, 0.35, 1.0):
            moved = theta.clone()
            moved[j] = value
            at.append(complexity.expected(moved))
        torch.testing.assert_close(at[1], 0.65 * at[0] + 0.35 * at[2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 0.4), (0.3, 1.0)])
def test_prices_are_derivatives_of_the_cost(name: str, alpha: float, beta: float) -> None:
    structures = NETWORKS[name]
    complexity = Complexity(structures, alpha, beta)
    theta = some_theta(structures)
    index = structures.index

    def with_gate(layer: int, value: float) -> torch.Tensor:
        moved = theta.clone()
        moved[index.layer(layer)] = value
        return complexity.expected(moved)

    shares = [with_gate(i, 1) - with_gate(i, 0) for i in range(index.layers)]

    def cost(t: torch.Tensor) -> torch.Tensor:
        layers = torch.stack(shares) @ t[index.layer_slice]
        return (1 - beta) * complexity.expected(t) + beta * layers

    prices, h = complexity.prices(theta), 1e-2
    for j in range(len(theta)):
        ends = [
            theta + sign * h * torch.eye(len(theta), dtype=torch.float64)[j] for sign in (1, -1)
        ]
        difference = (cost(ends[0]) - cost(ends[1])) / (2 * h)
        torch.testing.assert_close(prices[j], difference, rtol=1e-8, atol=1e-10)


def test_price_is_the_difference_a_structure_makes() -> None:
    structures = NETWORKS["residual"]
    theta = some_theta(structures)
    prices = Complexity(structures).prices(theta)
    full = counted(structures, torch.ones(structures.index.total))[0]
    for j in range(len(theta)):
        on, off = theta.clone(), theta.clone()
        on[j], off[j] = 1, 0
        difference = enumerated_mean(lambda g: counted(structures, g)[0], on) - enumerated_mean(
            lambda g: counted(structures, g)[0], off
        )
        torch.testing.assert_close(prices[j], difference / full, rtol=1e-10, atol=1e-14)


def test_beta_discounts_units_and_never_layers() -> None:
    structures = NETWORKS["residual"]
    theta, units = some_theta(structures), slice(0, structures.index.offsets[-1])
    plain = Complexity(structures).prices(theta)
    layers_only = Complexity(structures, beta=1.0).prices(theta)
    assert (layers_only[units] == 0).all()
    assert torch.equal(
        layers_only[structures.index.layer_slice], plain[structures.index.layer_slice]
    )
    assert (plain > 0).all()


def test_beta_means_nothing_where_there_are_no_layers() -> None:
    operation = Operation("fc", (Fixed(3), Units(0)), ())
    structures = Structures((unit_group("hidden", 4),), (), (), (operation,))
    theta = torch.full((4,), 0.5)
    for beta in (0.0, 0.8, 1.0):
        assert (Complexity(structures, beta=beta).prices(theta) == 1 / 4).all()


def test_normalisation_refers_to_the_original_network() -> None:
    small, full = residual_network(2), Complexity(residual_network(4), alpha=0.5)
    shrunk = Complexity(small, 0.5, full=full.full)
    ones = torch.ones(small.index.total)
    expected = (
        0.5 * shrunk.macs(ones) / full.full.macs + 0.5 * shrunk.params(ones) / full.full.params
    )
    torch.testing.assert_close(shrunk.expected(ones), expected)
    assert float(full.expected(torch.ones(full.index.total))) == pytest.approx(1, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    theta=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    power=st.integers(1, 6),
)
def test_moments_of_a_sum_of_bernoullis(theta: list[float], power: int) -> None:
    at = torch.tensor(theta, dtype=torch.float64)
    polynomial = Polynomial(monomials_of((Units(0),) * power), GateIndex((len(theta),), layers=0))
    mean = enumerated_mean(lambda g: g.sum() ** power, at)
    torch.testing.assert_close(polynomial.expected(at), mean, rtol=1e-9, atol=1e-9)


def test_expansion_and_merging() -> None:
    axis = Concat((Fixed(3), Product((Units(0), Fixed(4))), Units(0)))
    assert widths_of(axis) == {(): 3, ((0, 1),): 5}
    assert merge([*monomials_of((Units(0),)), Monomial(-1, ((0, 1),), ())]) == ()


def test_gradient_reaches_theta() -> None:
    structures = NETWORKS["knotted"]
    theta = some_theta(structures)
    assert torch.autograd.gradcheck(Complexity(structures, 0.5).expected, theta.requires_grad_())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"full": Totals(0, 9)}, "0 MACs.*use alpha=0"),
        ({"alpha": 0.5, "full": Totals(9, 0)}, "0 trainable parameters.*use alpha=1"),
    ],
)
def test_nothing_to_measure_by(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        Complexity(NETWORKS["residual"], **arguments)


def test_theta_of_another_network() -> None:
    with pytest.raises(MisconfiguredError, match=r"theta has shape \(3,\)"):
        Complexity(NETWORKS["residual"]).expected(torch.ones(3))
