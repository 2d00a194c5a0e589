"""Own times add up, networks are left as they were, and predictions go with what is measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from cases import CASES
from torch import nn

import guyot
from guyot import Cost, Discovery
from guyot.app.models import resnet
from guyot.core.errors import MisconfiguredError
from guyot.costs import profiling
from guyot.costs.latency import LatencyTable
from guyot.costs.latency.fit import Measurement, cross_validate
from guyot.costs.profiling import Stopwatch, _named, profile, variants
from guyot.costs.timing import Clock, Latency, Span
from guyot.structures import find_structures


class Ticks(Clock):
    def __init__(self, now: list[float]) -> None:
        self.now = now

    def mark(self) -> float:
        return self.now[0]


class Sleeper(nn.Module):
    """Takes exactly so many ticks of a clock."""

    def __init__(self, ticks: int, now: list[float]) -> None:
        super().__init__()
        self.ticks, self.now = ticks, now

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.now[0] += self.ticks
        return x


class Parent(nn.Module):
    def __init__(self, now: list[float]) -> None:
        super().__init__()
        self.now, self.first, self.second = now, Sleeper(3, now), Sleeper(40, now)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.now[0] += 500
        return self.second(self.first(self.first(x)))


def test_own_times_are_exact_and_leave_no_trace() -> None:
    now = [0.0]
    model = nn.Sequential(Parent(now), Sleeper(7000, now))
    before = {module: dict(vars(module)) for module in model.modules()}
    watch = Stopwatch(model, Ticks(now))
    own = watch.run(torch.zeros(1))
    assert own == {"(root)": 0, "0": 500, "0.first": 6, "0.second": 40, "1": 7000}
    assert {module: dict(vars(module)) for module in model.modules()} == before
    assert watch.medians() == {}  # the first pass warms up
    for sleep in (7000, 9000, 8000):
        model[1].ticks = sleep
        watch.run(torch.zeros(1))
    assert watch.medians() == {"(root)": 0, "0": 500, "0.first": 6, "0.second": 40, "1": 8000}


def test_a_pass_that_fails_leaves_no_trace_either() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    watch = Stopwatch(model, Ticks([0.0]))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        watch.run(torch.zeros(1, 7))
    assert "forward" not in vars(model[0])
    assert watch.run(torch.zeros(1, 3)).keys() == {"(root)", "0"}


def test_variants_are_networks_cut_down_for_real() -> None:
    case = CASES["cifar"]
    model = case.build()
    structures = find_structures(model, (case.inputs(1),), verify=False)
    found = list(variants(model, structures, quantum=2))
    assert not found[0].measurement.widths and not found[0].measurement.removed_layers
    assert any(v.measurement.removed_layers for v in found)
    for variant in found:
        widths, modules = variant.measurement.widths, dict(variant.model.named_modules())
        assert all(width % 2 == 0 for width in widths.values())
        for name, width in widths.items():
            if name in modules:
                assert modules[name].out_channels == width
        for layer in variant.measurement.removed_layers:
            assert f"{layer}.conv1" not in modules
        assert variant.model(case.inputs(1)).shape == (1, 3)
    assert model.conv1.out_channels == 6 and model.training


def test_variants_follow_their_seed_and_the_first_ones_keep_all_layers() -> None:
    case = CASES["cifar"]
    model = case.build()
    structures = find_structures(model, (case.inputs(1),), verify=False)

    def cuts(**seed: int) -> list[Measurement]:
        return [variant.measurement for variant in variants(model, structures, **seed)]

    first = cuts()
    assert first == cuts(seed=0) != cuts(seed=1)
    deep = len(profiling.UNIFORM) + profiling.RANDOM
    gone = [len(cut.removed_layers) for cut in first]
    assert len(gone) == deep + profiling.SHALLOW
    assert sum(gone[:deep]) == 0 < sum(gone[deep:]) < 0.7 * len(structures.layers) * len(gone)


def test_variants_of_attention_lose_whole_heads() -> None:
    model = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    structures = find_structures(model, (torch.ones(1, 5, 16),))
    for variant in variants(model, structures, quantum=2):
        assert variant.model(torch.ones(2, 3, 16)).shape == (2, 3, 16)


@pytest.mark.parametrize(
    ("size", "quantum", "expected"),
    [
        (16, 4, [4, 8, 12, 16]),
        (7, 1, [1, 2, 3, 4, 5, 6, 7]),
        (20, 2, [6, 8, 10, 12, 14, 16, 18, 20]),
        (10, 4, [4, 8, 10]),
        (3, 8, [3]),
    ],
)
def test_widths_worth_timing(size: int, quantum: int, expected: list[int]) -> None:
    assert profiling._levels(size, quantum) == expected


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return self.last((self.first(x) * scale).relu())


@pytest.mark.filterwarnings("ignore:the quartiles")
def test_a_profile_says_what_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def quantum(device: torch.device, dtype: torch.dtype, *, batch: int) -> int:
        asked.append((device.type, dtype, batch))
        return 4

    monkeypatch.setattr(profiling, "measure_quantum", quantum)
    inputs = {"x": torch.randn(3, 4).double(), "scale": torch.ones(1).double()}
    found = profile(Scaled().double(), inputs, seconds=0.0)
    assert asked == [("cpu", torch.float64, 3)]
    assert found.table.quantum == 4 and found.table.batch == 3
    assert {width for m in found.measurements for width in m.widths.values()} == {4, 8, 12}
    assert all({"first", "last"} <= m.operators.keys() for m in found.measurements)
    where = found.table.where
    assert where["device"].startswith("cpu (") and where["dtype"] == "float64"
    assert where["torch"] == torch.__version__
    assert where["clock"] == profiling.clock_of("cpu").name


WORK = {
    nn.Conv2d: lambda layer, y: y.numel() * layer.weight[0].numel(),
    nn.Linear: lambda layer, y: y.numel() * layer.in_features,
    nn.BatchNorm2d: lambda layer, y: 20 * y.numel(),
    nn.ReLU: lambda layer, y: 10 * y.numel(),
}
"""Seconds that a module takes on a machine that does one thing a second."""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    """Time passes only where modules compute."""
    now = [0.0]

    def slowed(kind: type[nn.Module]) -> Callable[..., torch.Tensor]:
        forward = kind.forward

        def taking(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
            y = forward(self, x)
            if not torch.compiler.is_compiling():
                now[0] += WORK[kind](self, y)
            return y

        return taking

    for kind in WORK:
        monkeypatch.setattr(kind, "forward", slowed(kind))
    clock = Ticks(now)
    monkeypatch.setattr("guyot.costs.profiling.clock_of", lambda device: clock)
    return clock


def test_prediction_goes_with_measurement(machine: Ticks, tmp_path: Path) -> None:
    model = resnet(20)
    found = profile(model, (torch.randn(1, 3, 32, 32),), seconds=0.0, quantum=8)
    assert found.cross_validation is not None and found.cross_validation.correlation > 0.99
    table = found.table
    assert table.batch == 1 and table.quantum == 8
    assert table.where["threads"] == str(torch.get_num_threads())
    assert table.input_shapes == ((1, 3, 32, 32),)
    before = machine.now[0]
    with torch.inference_mode():
        model(torch.randn(1, 3, 32, 32))
    taken = 1000 * (machine.now[0] - before)
    assert found.measurements[0].milliseconds == taken
    assert sum(found.measurements[0].operators.values()) == pytest.approx(taken)
    assert table.full == pytest.approx(taken, rel=0.02)
    low, high = re.findall(r"[\d.]+(?:e\+\d+)?", table.where["quartiles"])
    assert float(low) == float(high) == pytest.approx(taken, rel=1e-3)
    narrow = found.measurements[3].milliseconds
    assert narrow is not None and narrow < taken
    table.check(find_structures(resnet(20), (torch.zeros(4, 3, 32, 32),), verify=False))
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


def test_where_operators_cannot_be_told_apart_whole_networks_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def as_wide_as_long(step: partial, clock: Clock) -> Span:
        seconds = float(sum(p.numel() for p in step.func.parameters()))
        return Span(seconds, seconds)

    monkeypatch.setattr(profiling, "timed", as_wide_as_long)
    block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 16), block, nn.Linear(16, 3))
    found = profile(model, (torch.randn(1, 5, 8),), seconds=0.0, quantum=4)
    assert not any(m.operators for m in found.measurements)
    assert len(set(found.table.operators.values())) == 1
    assert found.cross_validation is not None
    assert _named([], found.structures) == []


def test_networks_of_equal_latency_give_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "timed", lambda step, clock: Span(1.0, 1.0))
    block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    with pytest.raises(MisconfiguredError, match="measured networks do not take longer the wider"):
        profile(block, (torch.randn(1, 5, 16),), seconds=0.0, quantum=4)


def test_folds_that_teach_nothing_do_not_stop_a_profile() -> None:
    case = CASES["cifar"]
    structures = find_structures(case.build(), (case.inputs(1),), verify=False)
    first, *_, last = (layer.name for layer in structures.layers)
    measured = [
        Measurement(milliseconds=3.0),
        Measurement(removed_layers=(first,), milliseconds=1.0),
        Measurement(removed_layers=(last,), milliseconds=4.0),
    ]
    found = cross_validate(structures, measured, batch=1)
    assert found.predicted[0] == pytest.approx(3.5)


def latency_run(model: nn.Module, table: LatencyTable, **dials: float) -> Discovery:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, labels = torch.randn(32, 3, 8, 8), torch.randint(3, (32,))
    discovery = Discovery(
        model,
        (images,),
        optimizer,
        total_steps=150,
        alpha=Cost(latency=1, table=table),
        config=guyot.DiscoveryConfig(round_to=2),
        **dials,
    )
    for _ in range(150):
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
    discovery.finish()
    return discovery


def test_a_discovery_meets_a_latency() -> None:
    torch.manual_seed(0)
    model = resnet(14, 3, widths=(8, 8, 8))
    full = find_structures(model, (torch.zeros(1, 3, 8, 8),), verify=False)
    rates = {kernel.name: guyot.costs.latency.Rate(0.01, 1e-7, 1e-7) for kernel in full.kernels}
    table = LatencyTable(rates, batch=1, full=1.0, input_shapes=((1, 3, 8, 8),))
    before = table.milliseconds(full)
    discovery = latency_run(model, table, target=0.5)
    after = table.milliseconds(discovery.structures)
    assert discovery.attained == pytest.approx(after / before)
    assert after / before == pytest.approx(0.5, abs=0.06)
    assert any(removal.layers for removal in discovery.removals)
    assert discovery.macs < discovery.full_macs


def test_a_discovery_refuses_the_table_of_another_network() -> None:
    table = LatencyTable({"features.0": guyot.costs.latency.Rate(1.0)}, batch=1, full=1.0)
    with pytest.raises(MisconfiguredError, match=r"times features.0, which this network does not"):
        latency_run(resnet(8, 3, widths=(4, 4, 4)), table, target=0.5)


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Latency, "steady", False)
    with pytest.warns(guyot.GuyotWarning, match=r"quartiles .* ms, are far apart: measure again"):
        profile(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), (torch.ones(1, 4),), seconds=0.0)
