"""Latency tables: polynomials are exact, fits recover what made the times, files round-trip."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES, counted, gates_of, random_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import all_gates, enumerated_mean, gate_values, residual_network
from torch import nn

from guyot.core.errors import MisconfiguredError
from guyot.core.types import KeepPlan, Kernel, Structures
from guyot.costs.complexity import Complexity, Cost
from guyot.costs.latency import (
    LatencyTable,
    Measurement,
    Rate,
    cross_validate,
    fit,
    latency_of,
    nonnegative,
    work_of,
)
from guyot.costs.polynomial import Polynomial, macs_of, params_of
from guyot.planning.candidates import SearchSpace
from guyot.planning.choice import choose
from guyot.structures import find_structures
from guyot.surgery import operate, present
from guyot.surgery.plan import shrink_structures


def structures_of(name: str, batch: int = 2) -> tuple[nn.Module, Structures]:
    case = CASES[name]
    model = case.build().eval()
    return model, find_structures(model, (case.inputs(batch),), verify=False)


def measurement(structures: Structures, plan: KeepPlan) -> Measurement:
    left = zip(structures.groups, present(structures, plan), strict=True)
    widths = {group.name: int(mask.sum()) for group, mask in left if not bool(mask.all())}
    return Measurement(widths, tuple(structures.layers[n].name for n in plan.removed_layers))


def some_table(structures: Structures, batch: int = 2, seed: int = 0) -> LatencyTable:
    generator = np.random.default_rng(seed)
    rates = {
        kernel.name: Rate(*(generator.random(3) * (1e-2, 1e-6, 1e-5)))
        for kernel in structures.kernels
    }
    return LatencyTable(rates, batch, full=1.0, constant=0.03)


def small_network() -> Structures:
    """The residual network of the oracles with a kernel for every operation."""
    structures = residual_network()
    kernels = tuple(
        Kernel(op.name, (op.axes,), (op.axes[:1], op.axes[1:]), (f"{op.name}.weight",), op.layers)
        for op in structures.operations
    )
    return replace(structures, kernels=kernels)


# -- what kernels compute and move ---------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_work_is_that_of_the_really_cut_network(name: str, seed: int) -> None:
    """MACs by PyTorch's counter, elements by the tensors that go in and out of its modules."""
    model, structures = structures_of(name)
    plan = random_plan(structures, seed)
    work = work_of(structures, measurement(structures, plan), batch=3)
    blocks = {module for module in model.modules() if list(module.children())}
    operate(model, structures, plan)
    inputs, moved, calls = CASES[name].inputs(3), {}, {}

    def seen(module: nn.Module, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        if module in blocks:  # its branch has gone, with the addition
            assert result is given[0] and names[module] not in work
            return
        tensors = [*module.parameters(), *module.buffers()]
        read = sum(t.numel() for t in tensors if t.dim() > 0)
        moved[names[module]] = (
            moved.get(names[module], 0) + read + given[0].numel() + result.numel()
        )
        calls[names[module]] = calls.get(names[module], 0) + 1

    names = {module: n for n, module in model.named_modules() if not list(module.children())}
    for module in names:
        if not isinstance(module, nn.Flatten | nn.Identity):
            module.register_forward_hook(seen)
    assert sum(macs for _, macs, _ in work.values()) == 3 * counted(model, inputs)
    assert moved
    for module, count in calls.items():
        kernels, _, elements = work[module]
        assert (kernels, elements) == (count, moved[module]), module


def test_views_are_no_kernels_and_a_removed_layer_takes_its_addition_along() -> None:
    _, structures = structures_of("cifar")
    names = [kernel.name for kernel in structures.kernels]
    assert "flatten" not in names and "fc" in names
    block = [kernel for kernel in structures.kernels if kernel.name == "stages.0.0"]
    assert [kernel.layers for kernel in block] == [(0,)]
    relus = [kernel for kernel in structures.kernels if kernel.name == "stages.0.0.relu"]
    assert [kernel.layers for kernel in relus] == [(0,), ()]  # the block still runs the second
    relus = [kernel for kernel in structures.kernels if kernel.name == "stages.1.0.relu"]
    assert [kernel.layers for kernel in relus] == [(1,), ()]


# -- the polynomial ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_polynomial_is_exact_for_cut_networks(name: str) -> None:
    _, structures = structures_of(name)
    table = some_table(structures)
    polynomial = Polynomial(latency_of(structures, table), structures.index)
    for seed in range(3):
        plan = random_plan(structures, seed)
        work = work_of(structures, measurement(structures, plan), table.batch)
        time = table.constant + sum(
            kernels * rate.fixed + macs * rate.per_mac + elements * rate.per_element
            for module, (kernels, macs, elements) in work.items()
            for rate in [table.operators[module]]
        )
        gates = gates_of(structures, plan)
        assert float(polynomial.expected(gates)) == pytest.approx(time, rel=1e-12)
        left = shrink_structures(structures, plan).structures
        assert table.milliseconds(left) == pytest.approx(time, rel=1e-12)


def test_expectation_is_the_mean_over_all_gates() -> None:
    structures = small_network()
    complexity = Complexity(structures, Cost(latency=1, table=some_table(structures)))
    theta = torch.rand(structures.index.total, dtype=torch.float64)
    mean = enumerated_mean(complexity.latency, theta)
    torch.testing.assert_close(complexity.latency(theta), mean, rtol=1e-12, atol=0)
    full = complexity.latency(torch.ones_like(theta))
    torch.testing.assert_close(complexity.expected(theta), mean / full, rtol=1e-12, atol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_no_structure_has_a_negative_price(seed: int) -> None:
    structures = small_network()
    table = some_table(structures, seed=seed)
    theta = torch.rand(structures.index.total, generator=torch.Generator().manual_seed(seed))
    assert (Complexity(structures, Cost(latency=1, table=table)).prices(theta) >= 0).all()


def test_a_layer_pays_for_its_fixed_costs_and_its_units_do_not() -> None:
    structures = small_network()
    names = {kernel.name for kernel in structures.kernels}
    fixed = LatencyTable(dict.fromkeys(names, Rate(fixed=1.0)), batch=1, full=6.0)
    prices = Complexity(structures, Cost(latency=1, table=fixed)).reference_prices()
    assert (prices[: structures.index.offsets[-1]] == 0).all()
    assert prices[structures.index.layer_slice].tolist() == pytest.approx([2 / 6, 2 / 6])


# -- one cost of several -------------------------------------------------------------------------


def test_a_cost_is_the_weighted_mean_of_shares() -> None:
    structures = small_network()
    table = some_table(structures)
    cost = Complexity(structures, Cost(macs=1, params=2, latency=5, table=table))
    ones = torch.ones(structures.index.total)
    for gate in itertools.islice(all_gates(structures.index.total), 0, None, 5):
        shares = [float(part(gate) / part(ones)) for part in (cost.macs, cost.params, cost.latency)]
        mean = (shares[0] + 2 * shares[1] + 5 * shares[2]) / 8
        assert float(cost.expected(gate)) == pytest.approx(mean, rel=1e-12)
        only = Complexity(structures, Cost(latency=3, table=table))
        assert float(only.expected(gate)) == pytest.approx(shares[2], rel=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 0.5, 2 / 3, 1.0])
def test_the_dial_alpha_is_bit_identical_to_its_formula(alpha: float) -> None:
    """alpha M / M_full + (1 - alpha) P / P_full, rounded as it always was."""
    for structures in (small_network(), residual_network(5, (3, 4, 7))):
        cost = Complexity(structures, alpha)
        weights = (
            (macs_of(structures), alpha / cost.full.macs if alpha > 0 else 0.0),
            (params_of(structures), (1 - alpha) / cost.full.params if alpha < 1 else 0.0),
        )
        monomials = [
            replace(m, coefficient=m.coefficient * weight) for ms, weight in weights for m in ms
        ]
        plain = Polynomial(monomials, structures.index)
        assert cost.normalised.monomials == plain.monomials
        theta = torch.rand(structures.index.total).requires_grad_()
        assert torch.equal(cost.expected(theta), plain.expected(theta))
        (gradient,) = torch.autograd.grad(plain.expected(theta), theta)
        assert torch.equal(cost.gradient(theta), gradient)


def test_settling_meets_a_target_in_milliseconds() -> None:
    structures = residual_network(24, (24,) * 6, pixels=16)
    kernels = tuple(Kernel(op.name, (op.axes,), (), (), op.layers) for op in structures.operations)
    structures = replace(structures, kernels=kernels)
    rates = {kernel.name: Rate(0.02, 5e-7) for kernel in kernels}
    table = LatencyTable(rates, batch=1, full=1.0)
    table = replace(table, full=table.milliseconds(structures))
    cost = Complexity(structures, Cost(latency=1, table=table))
    total, target = structures.index.total, table.share(0.6 * table.full)
    benefit = torch.rand(total, generator=torch.Generator().manual_seed(0))
    theta = torch.full((total,), 0.5)
    gates = gate_values(theta, benefit, cost.prices(theta))
    found = choose(SearchSpace(structures, cost, [4] * 7), gates, target=target)
    assert found.within
    assert float(cost.latency(found.mask)) == pytest.approx(0.6 * table.full, rel=0.011)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "macs=0.0, params=0.0, latency=0.0 weigh nothing.*at least one of them above 0"),
        ({"macs": -1.0}, "macs=-1.0.*weights of 0 or more"),
        ({"params": math.inf}, "params=inf.*weights of 0 or more"),
        ({"latency": 1.0}, r"latency=1.0 without a latency table.*LatencyTable.load\(file\)"),
        (
            {"macs": 1.0, "table": LatencyTable({"a": Rate(1.0)}, 1, 1.0)},
            "latency=0.0 with a latency table: give both.*or neither",
        ),
    ],
)
def test_bad_costs(weights: dict, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        Cost(**weights)


# -- fitting -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), unknowns=st.integers(1, 4), equations=st.integers(1, 8))
def test_nonnegative_least_squares(seed: int, unknowns: int, equations: int) -> None:
    draw = np.random.default_rng(seed)
    matrix, values = draw.normal(size=(equations, unknowns)), draw.normal(size=equations)
    scale = 10.0 ** draw.integers(-6, 6, size=unknowns)  # MACs, elements and calls differ as much
    found = nonnegative(matrix * scale, values) * scale
    assert (found >= 0).all()
    slope = matrix.T @ (values - matrix @ found)  # Karush, Kuhn and Tucker
    assert (slope < 1e-6).all() and np.allclose(slope[found > 0], 0, atol=1e-6)


def test_columns_without_anything_get_nothing() -> None:
    assert nonnegative(np.array([[0.0, 2.0], [0.0, 1.0]]), np.array([2.0, 1.0])).tolist() == [0, 1]


def test_fitting_without_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MisconfiguredError, match=r"'scipy.*pip install 'guyot\[latency\]'"):
        nonnegative(np.ones((2, 1)), np.ones(2))


def timed(structures: Structures, table: LatencyTable, overhead: bool) -> list[Measurement]:
    """What a noiseless machine would measure: a third more as a whole, 0.05 ms for any pass."""
    result = []
    for seed in range(10):
        plan = random_plan(structures, seed, layers=seed > 4) if seed else KeepPlan()
        network = measurement(structures, plan)
        operators = {
            module: kernels * rate.fixed + macs * rate.per_mac + elements * rate.per_element
            for module, (kernels, macs, elements) in work_of(structures, network, 2).items()
            for rate in [table.operators[module]]
        }
        total = 4 / 3 * sum(operators.values()) + 0.05 if overhead else None
        result.append(replace(network, milliseconds=total, operators=operators))
    return result


@pytest.mark.parametrize("name", ["cifar", "mobile", "tokens"])
@pytest.mark.parametrize("overhead", [False, True])
def test_a_fit_predicts_networks_it_has_not_seen(name: str, overhead: bool) -> None:
    _, structures = structures_of(name)
    truth = replace(some_table(structures), constant=0.0)
    found = fit(structures, timed(structures, truth, overhead), batch=2, where={"device": "paper"})
    assert found.where == {"device": "paper"} and found.input_shapes == structures.input_shapes
    assert found.constant == pytest.approx(0.05 if overhead else 0.0, abs=1e-6)
    for seed in range(20, 24):
        left = shrink_structures(structures, random_plan(structures, seed)).structures
        time = truth.milliseconds(left) * (4 / 3 if overhead else 1) + (0.05 if overhead else 0)
        assert found.milliseconds(left) == pytest.approx(time, rel=1e-3)
    assert found.full == pytest.approx(found.milliseconds(structures))
    if overhead:
        agreed = cross_validate(structures, timed(structures, truth, True), batch=2)
        assert len(agreed.errors) == 9 and agreed.median_error < 1e-2
        assert agreed.correlation > 0.999


def test_times_of_whole_networks_alone_give_one_rate_for_all() -> None:
    _, structures = structures_of("cifar")
    names = {kernel.name for kernel in structures.kernels}
    truth = LatencyTable(dict.fromkeys(names, Rate(0.01, 1e-6, 1e-5)), batch=2, full=1.0)
    networks = [replace(m, operators={}) for m in timed(structures, truth, True)]
    found = fit(structures, networks, batch=2)
    assert len(set(found.operators.values())) == 1
    rate = found.operators["fc"]
    expected = Rate(0.01 * 4 / 3, 1e-6 * 4 / 3, 1e-5 * 4 / 3)
    assert (rate.fixed, rate.per_mac, rate.per_element) == pytest.approx(
        (expected.fixed, expected.per_mac, expected.per_element), rel=1e-6
    )
    one = fit(structures, [Measurement(milliseconds=2.0)], batch=2)
    assert one.full == pytest.approx(2.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_three_networks_set_the_scale_and_four_the_overheads_too(count: int) -> None:
    """Each pass takes 0.05 ms, each kernel 0.1 ms more than it says, and all of it a third more."""
    _, structures = structures_of("cifar")
    truth = replace(some_table(structures), constant=0.0)
    networks = [
        replace(
            network,
            milliseconds=4 / 3 * sum(network.operators.values())
            + 0.1 * sum(kernels for kernels, _, _ in work_of(structures, network, 2).values())
            + 0.05,
        )
        for network in timed(structures, truth, False)
    ]
    taught = networks[:: 3 if count == 4 else 4][:count]  # of different depth
    found = fit(structures, [*(replace(n, milliseconds=None) for n in networks), *taught], batch=2)
    rates = fit(structures, timed(structures, truth, False), batch=2).operators
    if count == 4:
        assert found.constant == pytest.approx(0.05, abs=1e-4)
        for name, rate in rates.items():
            assert found.operators[name].fixed == pytest.approx(4 / 3 * rate.fixed + 0.1, rel=1e-3)
    else:
        assert found.constant == 0
        assert len({round(found.operators[n].fixed / r.fixed, 6) for n, r in rates.items()}) == 1
        assert found.operators["fc"].fixed > 4 / 3 * rates["fc"].fixed


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Measurement(), "none of the 1 measurements holds a time: give milliseconds or operators"),
        (Measurement({"stem": 4}), "gives stem the width 4, the network has no such group"),
        (Measurement({"conv1": 99}), "gives conv1 the width 99, the network has 6"),
        (Measurement({}, ("attic",)), "has the layers attic removed, which the network does not"),
        (Measurement(operators={"attic": 1.0}), "time attic, which this network does not have"),
    ],
)
def test_measurements_of_another_network(network: Measurement, message: str) -> None:
    _, structures = structures_of("cifar")
    with pytest.raises(MisconfiguredError, match=message):
        fit(structures, [network], batch=1)


def test_one_network_agrees_with_nothing() -> None:
    _, structures = structures_of("cifar")
    with pytest.raises(MisconfiguredError, match=r"0 of the 1 measurements.*measure at least 2"):
        cross_validate(structures, [Measurement(milliseconds=1.0)], batch=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wide": 1}, "this is no measurement.*give widths, removed_layers, milliseconds"),
        ({"milliseconds": "fast"}, "this is no measurement"),
        ({"milliseconds": -1.0}, r"gives the times \[-1.0\]: give milliseconds, 0 or more"),
        ([1], "this is no measurement"),
    ],
)
def test_measurements_from_elsewhere(values: dict, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        Measurement.from_dict(values)


def test_a_measurement_that_took_no_time_is_one() -> None:
    values = {"removed_layers": ["a"], "operators": {"b": 0.0}, "milliseconds": 0.0}
    made = Measurement.from_dict(values)
    assert made == Measurement(removed_layers=("a",), operators={"b": 0.0}, milliseconds=0.0)
    with pytest.raises(MisconfiguredError, match=r"gives the times \[-1, 0.0\]"):
        Measurement.from_dict({"operators": {"b": -1}})


# -- tables and files ----------------------------------------------------------------------------


def test_file_round_trip(tmp_path: Path) -> None:
    _, structures = structures_of("mobile")
    table = replace(
        some_table(structures), quantum=4, input_shapes=((1, 3, 6, 6),), where={"device": "cpu"}
    )
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    table.check(structures)


def test_a_fused_runtime_names_fewer_operators() -> None:
    _, structures = structures_of("cifar")
    table = some_table(structures)
    convolutions = {name: rate for name, rate in table.operators.items() if "bn" not in name}
    fused = replace(table, operators=convolutions)
    fused.check(structures)
    assert 0 < fused.milliseconds(structures) < table.milliseconds(structures)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operators": {}}, "every operator of the latency table takes no time"),
        ({"operators": {"a": Rate(-1.0)}}, "gives a as .-1.0, 0.0, 0.0.: every time must be"),
        ({"constant": math.nan}, "gives constant as .nan,.: every time must be"),
        ({"batch": 0}, "batch=0 and quantum=1 of a latency table: give 1 or more"),
    ],
)
def test_bad_tables(change: dict, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        replace(LatencyTable({"a": Rate(1.0)}, 1, 1.0), **change)


def test_a_table_may_be_a_link_but_no_pipe(tmp_path: Path) -> None:
    table = LatencyTable({"a": Rate(1.0)}, 1, 1.0)
    table.save(tmp_path / "table.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "link.json") == table
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(MisconfiguredError, match=r"pipe.json' cannot be read .it is no regular"):
        LatencyTable.load(tmp_path / "pipe.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "'.*table.json' cannot be read .*write one with `guyot profile`"),
        ("{", "'.*table.json' cannot be read"),
        ("[1]", "format='list' of a latency table is unknown"),
        ('{"format": 7}', "format=7 of a latency table is unknown, this version reads format 1"),
        ('{"format": 1}', "this is no latency table .'operators'.: write one with"),
        ('{"format": 1, "operators": {"a": {"slow": 1}}}', "this is no latency table"),
    ],
)
def test_bad_files(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "table.json").write_text(text)
    with pytest.raises(MisconfiguredError, match=message):
        LatencyTable.load(tmp_path / "table.json")


def test_tables_of_another_network() -> None:
    _, structures = structures_of("cifar")
    table = some_table(structures)
    extra = replace(table, operators={**table.operators, "attic": Rate(1.0)})
    with pytest.raises(MisconfiguredError, match="times attic, which this network does not have"):
        extra.check(structures)
    less = replace(table, operators={n: r for n, r in table.operators.items() if n != "fc"})
    with pytest.raises(MisconfiguredError, match="does not time fc, which has MACs"):
        less.check(structures)
    larger = replace(table, input_shapes=((1, 3, 16, 16),))
    with pytest.raises(MisconfiguredError, match=r"inputs of 3x16x16 and.* with 3x8x8: measure"):
        larger.check(structures)


def test_shares() -> None:
    table = LatencyTable({"a": Rate(1.0)}, batch=1, full=4.0)
    assert table.share(1.0) == 0.25
    for milliseconds in (0.0, -1.0, 4.0, 9.0):
        with pytest.raises(MisconfiguredError, match=r"the full network takes 4 ms .* give less"):
            table.share(milliseconds)


def test_the_file_is_readable_json(tmp_path: Path) -> None:
    LatencyTable({"conv1": Rate(0.5, 1e-6)}, batch=1, full=1.0).save(tmp_path / "table.json")
    values = json.loads((tmp_path / "table.json").read_text())
    assert values["operators"]["conv1"] == {"fixed": 0.5, "per_mac": 1e-06, "per_element": 0.0}
