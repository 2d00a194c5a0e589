"""Rounding to a network: against brute force over all widths and layers."""

from __future__ import annotations

from functools import cache
from itertools import count as count_from
from itertools import islice, product
from math import inf
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import counted, gate_values, residual_network, unit_group

from guyot.core.errors import MisconfiguredError
from guyot.core.types import Fixed, Layer, Operation, Structures, TensorShape, Units
from guyot.costs.complexity import Complexity
from guyot.planning import search
from guyot.planning.candidates import Ranking, SearchSpace, Sizes, levels_of
from guyot.planning.choice import Choice, choose, trim

NET = residual_network(stream=4, inner=(6, 6), pixels=16)
INDEX = NET.index
COSTS = Complexity(NET)
FULL = counted(NET, torch.ones(INDEX.total))[0]


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    theta = torch.rand(INDEX.total, generator=g)
    price = COSTS.prices(theta)
    return theta, price * torch.rand(INDEX.total, generator=g) * 2, price


def chosen(
    theta: torch.Tensor,
    benefit: torch.Tensor,
    price: torch.Tensor,
    quanta: list[int],
    target: float | None = None,
    **known: torch.Tensor,
) -> Choice:
    space = SearchSpace(NET, COSTS, quanta)
    return choose(space, gate_values(theta, benefit, price, **known), target=target)


def widths(mask: torch.Tensor) -> list[int]:
    return [int(mask[INDEX.units(g)].sum()) for g in range(len(NET.groups))]


@cache
def every_cost(quantum: int) -> list[float]:
    """C^ of every network, all widths by all layers."""
    found = []
    levels = [levels_of(group.size, quantum) for group in NET.groups]
    for on in product((False, True), repeat=len(NET.layers)):
        inner = [levels[i + 1] if kept else [0] for i, kept in enumerate(on)]
        for network in product(levels[0], *inner):
            gate = torch.zeros(INDEX.total)
            for g, width in enumerate(network):
                gate[INDEX.offsets[g] : INDEX.offsets[g] + width] = 1
            gate[INDEX.layer_slice] = torch.tensor(on).float()
            found.append(counted(NET, gate)[0] / FULL)
    return found


def test_levels() -> None:
    assert levels_of(16, 4) == [4, 8, 12, 16]
    assert levels_of(10, 4) == [4, 8, 10]
    assert levels_of(2, 4) == [2]


def test_decided_gates_with_exact_widths_are_kept_as_they_are() -> None:
    mask = torch.ones(INDEX.total)
    mask[[1, 5, 7, 12]] = 0
    result = chosen(mask, torch.rand(INDEX.total), torch.ones(INDEX.total), [1, 1, 1])
    assert torch.equal(result.mask.float(), mask)
    assert result.attained == pytest.approx(counted(NET, mask)[0] / FULL)


@pytest.mark.parametrize(("worth", "expected"), [(1.5, 4), (0.5, 2)])
def test_width_goes_to_the_better_neighbour(worth: float, expected: int) -> None:
    theta, ones = torch.ones(INDEX.total), torch.ones(INDEX.total)
    theta[INDEX.units(1)] = torch.tensor([0.9, 0.6, 0.2, 0.3, 0.8, 0.1])
    result = chosen(theta, worth * ones, ones, [1, 2, 1])
    assert widths(result.mask)[1] == expected
    best = [0, 4, 1, 3, 2, 5][:expected]
    assert result.mask[INDEX.units(1)].nonzero().flatten().tolist() == sorted(best)


@pytest.mark.parametrize(
    ("benefit", "expected"),
    [
        ([9.0, 9.0, 9.0, 9.0, 0.5, 0.6], 4),  # what the larger width adds costs more than it earns
        ([9.0, 9.0, 9.0, 9.0, 1.0, 1.0], 4),  # or as much
        ([0.1, 0.1, 0.1, 0.1, 1.5, 1.5], 6),  # what the smaller width loses does not count
    ],
)
def test_only_the_units_between_two_widths_decide(benefit: list[float], expected: int) -> None:
    theta, ones = torch.ones(INDEX.total), torch.ones(INDEX.total)
    theta[INDEX.units(1)] = torch.tensor([0.9, 0.9, 0.8, 0.7, 0.6, 0.2])
    theta[INDEX.layer(1)] = 0.5
    worth = ones.clone()
    worth[INDEX.units(1)] = torch.tensor(benefit)
    result = chosen(theta, worth, ones, [1, 2, 1])
    assert widths(result.mask) == [4, expected, 6]  # a layer of 1/2 stays


def test_ties_in_theta_go_by_benefit_per_price() -> None:
    theta, price = torch.ones(INDEX.total), torch.ones(INDEX.total)
    theta[INDEX.units(1)] = torch.tensor([0.7, 0.7, 0.4, 0.7, 0.7, 0.7])
    benefit = torch.ones(INDEX.total)
    benefit[INDEX.units(1)] = torch.tensor([0.3, 0.9, 9.0, 0.8, 0.2, 0.7])
    benefit[INDEX.units(1)][2] = -9.0
    result = chosen(theta, benefit, price, [1, 4, 1])
    # five of 0.7: 4 or all 6, where the sixth costs more than it earns
    assert result.mask[INDEX.units(1)].nonzero().flatten().tolist() == [0, 1, 3, 5]


def test_a_dead_interior_takes_its_layer_a_dead_stream_keeps_a_quantum() -> None:
    theta, ones = torch.ones(INDEX.total), torch.ones(INDEX.total)
    theta[INDEX.units(1)] = 0.4
    theta[INDEX.units(0)] = 0.1
    result = chosen(theta, ones, ones, [2, 2, 2])
    assert widths(result.mask) == [2, 0, 6]
    assert result.mask[INDEX.layer_slice].tolist() == [False, True]


def test_a_kept_layer_keeps_a_quantum_and_a_removed_one_nothing() -> None:
    theta, ones = torch.ones(INDEX.total), torch.ones(INDEX.total)
    theta[INDEX.units(1)] = 0.0
    theta[INDEX.units(1).start] = 0.5
    theta[INDEX.layer(1)] = 0.2
    result = chosen(theta, 0 * ones, ones, [1, 3, 3])
    assert widths(result.mask) == [4, 3, 0]
    # lost: the second layer as a whole; its units are not counted again
    lost = chosen(theta, ones, ones, [1, 3, 3]).lost
    assert lost == pytest.approx(1 + 3)


def nested() -> Structures:
    """An outer layer (0) around an inner one (1), each with its own group."""
    tensors = (
        TensorShape("outer", (Units(0), Fixed(4)), (0,), trainable=True),
        TensorShape("inner", (Units(1), Fixed(4)), (0, 1), trainable=True),
        TensorShape("head", (Fixed(4), Fixed(2)), (), trainable=True),
    )
    operations = tuple(Operation(t.name, t.axes, t.layers) for t in tensors)
    layers = (
        Layer("outer", ("outer",), "outer", 1, ("outer", "inner")),
        Layer("inner", ("inner",), "inner", 1, ("inner",)),
    )
    groups = (unit_group("u", 2, ("outer", 0)), unit_group("v", 2, ("inner", 0)))
    return Structures(groups, layers, tensors, operations)


def test_nested_layers_go_together_but_a_dead_inner_group_takes_only_the_inner_one() -> None:
    net, ones = nested(), torch.ones(6)
    space = SearchSpace(net, Complexity(net), [1, 1])
    theta = torch.tensor([1.0, 1, 1, 1, 0, 1])
    assert not choose(space, gate_values(theta, ones, ones)).mask.any()
    theta = torch.tensor([1.0, 1, 0, 0, 1, 1])
    assert choose(space, gate_values(theta, ones, ones)).mask.tolist() == [1, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("quantum", [1, 2])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), target=st.floats(0.1, 0.95))
def test_target_is_met_whenever_it_can_be(quantum: int, seed: int, target: float) -> None:
    theta, benefit, price = random_case(seed)
    result = chosen(theta, benefit, price, [quantum] * 3, target)
    possible = min(abs(cost - target) for cost in every_cost(quantum)) <= 0.01 * target
    assert result.attained == pytest.approx(counted(NET, result.mask)[0] / FULL)
    assert result.within == (abs(result.attained - target) <= 0.01 * target)
    if possible:
        assert result.within
    for g, width in enumerate(widths(result.mask)):
        allowed = [*levels_of(NET.groups[g].size, quantum)]
        removed = g > 0 and not result.mask[INDEX.layer(g - 1)]
        assert width in ([0] if removed else allowed)


def least_lost(
    theta: torch.Tensor, benefit: torch.Tensor, price: torch.Tensor, target: float
) -> float:
    """The least benefit that a network of NET within the tolerance loses: of all, one by one."""
    order = [
        sorted(
            range(INDEX.units(g).start, INDEX.units(g).stop),
            key=lambda u: (float(theta[u]), float(benefit[u] / price[u])),
            reverse=True,
        )
        for g in range(len(NET.groups))
    ]
    least = inf
    for on in product((False, True), repeat=len(NET.layers)):
        inner = [range(1, NET.groups[i + 1].size + 1) if kept else [0] for i, kept in enumerate(on)]
        for network in product(range(1, NET.groups[0].size + 1), *inner):
            gate, lost = torch.zeros(INDEX.total), 0.0
            for g, width in enumerate(network):
                gate[order[g][:width]] = 1
                if width:
                    lost += float(benefit[order[g][width:]].sum())
            gate[INDEX.layer_slice] = torch.tensor(on).float()
            lost += sum(float(benefit[INDEX.layer(i)]) for i, kept in enumerate(on) if not kept)
            if abs(counted(NET, gate)[0] / FULL - target) <= 0.01 * target:
                least = min(least, lost)
    return least


def possible_cases(count: int) -> list[tuple[int, float]]:
    """Seeds and targets that some network meets."""
    random = Random(0)
    cases = ((random.randrange(10_000), random.uniform(0.1, 0.95)) for _ in count_from(0))
    costs = every_cost(1)
    met = ((s, t) for s, t in cases if min(abs(cost - t) for cost in costs) <= 0.01 * t)
    return list(islice(met, count))


def test_of_few_networks_the_one_that_loses_least_is_found() -> None:
    for seed, target in possible_cases(8):
        case = random_case(seed)
        found = chosen(*case, [1] * 3, target)
        assert found.within
        assert found.lost == pytest.approx(least_lost(*case, target), rel=1e-5)


def test_local_steps_find_nearly_what_all_networks_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = possible_cases(40)
    best = [chosen(*random_case(seed), [1] * 3, target).lost for seed, target in cases]
    monkeypatch.setattr(search, "_FEW", 0)
    found = [chosen(*random_case(seed), [1] * 3, target) for seed, target in cases]
    assert sum(choice.within for choice in found) >= 39
    gaps = [c.lost - least for c, least in zip(found, best, strict=True) if c.within]
    assert min(gaps) >= -1e-5
    assert sum(gaps) <= 0.2 * sum(best)


def test_quanta_and_layers_are_taken_by_probability_then_by_benefit_per_price() -> None:
    theta = torch.full((INDEX.total,), 0.5)
    theta[INDEX.units(2)] = torch.tensor([0.9, 0.9, 0.2, 0.2, 0.7, 0.1])
    theta[INDEX.layer(1)] = 0.8
    benefit, price = torch.ones(INDEX.total), torch.full((INDEX.total,), 2.0)
    benefit[INDEX.units(1)] = 3.0
    benefit[INDEX.layer(0)], price[INDEX.layer(0)] = 1.0, 0.1
    space = SearchSpace(NET, COSTS, [4, 2, 2])
    ranking = Ranking(space, gate_values(theta, benefit, price), nu=0.5)
    low = space.smallest
    high = Sizes(space.top, torch.ones(2, dtype=torch.bool))
    # groups 0, 1 and 2, then layers: 1 (0.8), quanta of 0.5 by their ratio, 0.45 and 0.15
    assert ranking.items(low, high).tolist() == [4, 3, 1, 1, 2, 2]


def test_from_a_network_every_value_of_every_variable_is_one_change_away() -> None:
    space = SearchSpace(NET, COSTS, [2, 3, 2])
    sizes = Sizes(torch.tensor([0, 1, 1]), torch.tensor([True, False]))
    one = torch.tensor([True, True])
    bounds = search.Bounds(Sizes(torch.tensor([0, 0, 0]), ~one), Sizes(space.top, one))
    level, on = sizes.level.tolist(), sizes.on.tolist()

    def changed(sizes: Sizes, variable: torch.Tensor) -> set[tuple[int, tuple, tuple]]:
        rows = zip(variable.tolist(), sizes.level.tolist(), sizes.on.tolist(), strict=True)
        return {(v, tuple(a), tuple(b)) for v, a, b in rows}

    others = {(g, k) for g in range(3) for k in range(int(space.top[g]) + 1)} - set(
        enumerate(level)
    )
    expected = {(g, (*level[:g], k, *level[g + 1 :]), tuple(on)) for g, k in others}
    flips = {(3, tuple(level), (False, False)), (4, tuple(level), (True, True))}
    assert changed(*search._all_changes(sizes, bounds)) == expected | flips
    small = {(g, a, b) for g, a, b in expected if abs(a[g] - level[g]) == 1}
    assert changed(*search._small_changes(sizes, bounds)) == small | flips


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7])
def test_realistic_targets_are_met(target: float) -> None:
    net = residual_network(stream=16, inner=(16,) * 6, pixels=16)
    costs, n = Complexity(net), net.index.total
    space = SearchSpace(net, costs, [1] * 7)
    for seed in range(10):
        theta = torch.rand(n, generator=torch.Generator().manual_seed(seed))
        price = costs.prices(theta)
        benefit = price * 2 * theta.flip(0)
        assert choose(space, gate_values(theta, benefit, price), target=target).within


def test_target_prefers_what_earns_more_for_its_price() -> None:
    theta = torch.full((INDEX.total,), 0.5)
    theta[INDEX.units(0)] = 1
    theta[INDEX.layer_slice] = 1
    price = COSTS.prices(torch.ones(INDEX.total))
    benefit = price.clone()
    benefit[INDEX.units(1)] *= 3
    target = 1 - 5 * float(price[INDEX.units(1)][0])
    result = chosen(theta, benefit, price, [1, 1, 1], target)
    assert result.within and widths(result.mask)[1] > widths(result.mask)[2]
    assert result.lost <= 5.01 * float(price[INDEX.units(2)][0])


def test_decided_gates_are_overturned_only_for_the_target() -> None:
    theta = torch.ones(INDEX.total)
    theta[INDEX.units(2)] = torch.tensor([1, 1, 0.6, 0.5, 0.4, 0])
    price = COSTS.prices(torch.ones(INDEX.total))
    low, high = theta.clone(), theta.clone()
    low[INDEX.units(2)] = torch.tensor([1, 1, 1, 0, 0, 0.0])
    near = chosen(theta, price, price, [1, 1, 1], float(COSTS.expected(low)))
    assert near.mask.tolist() == low.bool().tolist()
    far = chosen(high, price, price, [1, 1, 1], 0.4)
    nearest = min(abs(cost - 0.4) for cost in every_cost(1))
    assert abs(far.attained - 0.4) <= max(0.004, nearest + 1e-9)


@pytest.mark.parametrize("target", [None, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("quantum", [1, 2, 4])
def test_what_was_removed_never_returns(target: float | None, quantum: int) -> None:
    for seed in range(5):
        theta, benefit, price = random_case(seed)
        alive = torch.rand(INDEX.total, generator=torch.Generator().manual_seed(seed)) > 0.3
        theta = torch.where(alive, theta, 0)
        benefit = torch.where(alive, benefit, 100.0)
        result = chosen(theta, benefit, price, [quantum] * 3, target, alive=alive)
        assert not (result.mask & ~alive).any()
        assert result.lost < 50


def test_a_level_may_hold_a_unit_that_was_removed() -> None:
    """Five of six left, quantum 3: all five stay, and the sixth is paid for."""
    theta, alive = torch.ones(INDEX.total), torch.ones(INDEX.total, dtype=torch.bool)
    alive[INDEX.units(1).start] = False
    ones = torch.ones(INDEX.total)
    result = chosen(theta, 2 * ones, ones, [1, 3, 1], alive=alive)
    assert widths(result.mask)[1] == 5
    assert result.attained == pytest.approx(1.0)


def test_the_least_is_the_cheapest_network() -> None:
    for quantum in (1, 2, 3):
        lowest = min(every_cost(quantum))
        assert SearchSpace(NET, COSTS, [quantum] * 3).least == pytest.approx(lowest, rel=1e-12)
    result = chosen(*random_case(0), [2, 2, 2], 0.001)
    assert not result.within
    assert result.attained == pytest.approx(SearchSpace(NET, COSTS, [2, 2, 2]).least)


@pytest.mark.parametrize("quanta", [[1, 1], [1, 0, 1]])
def test_bad_quanta(quanta: list[int]) -> None:
    with pytest.raises(MisconfiguredError, match=r"does not fit.*3 groups"):
        SearchSpace(NET, COSTS, quanta)


@pytest.mark.parametrize(
    ("each", "gone", "expected"),
    [
        (0.5, 3, [4, 6, 3]),  # three units that lose 1.5 go before one that loses 1
        (1.0, 3, [4, 6, 3]),  # of equal losses per cost, the larger step
        (2.0, 3, [4, 3, 6]),
        (0.5, 1, [4, 5, 6]),  # three would go below the target
    ],
)
def test_trimming_loses_least_for_what_it_saves(
    each: float, gone: int, expected: list[int]
) -> None:
    """Units of the first block go one by one, those of the second in threes."""
    benefit = torch.full((INDEX.total,), 100.0)
    benefit[INDEX.units(1)] = 1.0
    benefit[INDEX.units(2)] = each
    ones = torch.ones(INDEX.total)
    left = ones.clone()
    left[INDEX.units(1)][:gone] = 0
    target = counted(NET, left)[0] / FULL
    result = trim(SearchSpace(NET, COSTS, [4, 1, 3]), gate_values(ones, benefit, ones), target)
    assert result.within and result.attained == pytest.approx(target)
    assert widths(result.mask) == expected
    assert result.lost == pytest.approx((6 - expected[1]) + (6 - expected[2]) * each)


def test_trimming_passes_below_the_target_by_the_smallest_step() -> None:
    """Half of the first block is less than the whole second one, which contributes nothing."""
    benefit = torch.full((INDEX.total,), 100.0)
    benefit[INDEX.units(2)] = 0.0
    benefit[INDEX.layer_slice.start + 1] = 0.0
    ones = torch.ones(INDEX.total)
    left = ones.clone()
    left[INDEX.units(1)][:3] = 0
    smaller = counted(NET, left)[0] / FULL
    result = trim(
        SearchSpace(NET, COSTS, [4, 3, 6]), gate_values(ones, benefit, ones), (1 + smaller) / 2
    )
    assert widths(result.mask) == [4, 3, 6]
    assert not result.within and result.attained == pytest.approx(smaller)
