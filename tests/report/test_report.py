import dataclasses
import re

import pytest
import torch
from torch import nn

from guyot import find_structures
from guyot.app.models import digits_resnet
from guyot.report import Latency, Network, Outcome, Width, lines, measure, to_dict, widths


class Counted(nn.Module):
    """Notes every call, with what the world looked like."""

    def __init__(self, name: str, calls: list[tuple[str, bool, tuple[int, ...]]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.name, self.calls = name, calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = (self.name, self.training, tuple(x.shape))
        self.calls.append(state)
        assert not torch.is_grad_enabled()
        return x


def test_latency_is_measured_in_turns_and_leaves_no_trace():
    calls: list[tuple[str, bool, tuple[int, ...]]] = []
    models = {name: Counted(name, calls) for name in ("a", "b")}
    models["b"].eval()
    found = measure(models, torch.randn(2, 3, 4, 5), 7, seconds=0.0)
    assert models["a"].training and not models["b"].training
    assert {call[1:] for call in calls} == {(False, (7, 3, 4, 5))}
    there, back = ["a", "b"], ["b", "a"]
    assert [call[0] for call in calls] == (there + back) * 4  # 3 rounds warm up
    for latency in found.values():
        assert latency.repetitions == 5
        assert 0 <= latency.low <= latency.median <= latency.high


def test_latency_is_the_time_of_each_network_in_milliseconds(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]

    class Taking(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now[0] += self.out_features
            return x

    monkeypatch.setattr("guyot.costs.timing.time.perf_counter", lambda: now[0])
    found = measure(
        {"large": Taking(1, 8), "small": Taking(1, 3)}, torch.randn(1, 1, 2, 2), 2, seconds=0.0
    )
    for name, seconds in (("large", 8), ("small", 3)):
        latency = found[name]
        assert latency.low == latency.median == latency.high == 1000 * seconds


def test_widths_follow_the_network():
    structures = find_structures(digits_resnet(), (torch.randn(2, 1, 8, 8),))
    found = widths(
        structures, {"units": {"stages.1.1.conv1": [0, 5, 7]}, "removed_layers": ["stages.2.1"]}
    )
    assert {width.name: (width.before, width.after) for width in found} == {
        "conv1": (16, 16),
        "stages.0.0.conv1": (16, 16),
        "stages.0.1.conv1": (16, 16),
        "stages.1.0.conv1": (32, 32),
        "stages.1.0.conv2": (32, 32),
        "stages.1.1.conv1": (32, 3),
        "stages.2.0.conv1": (64, 64),
        "stages.2.0.conv2": (64, 64),
        "stages.2.1.conv1": (64, 0),
    }


OUTCOME = Outcome(
    model="resnet20",
    data="cifar10",
    image_shape=(3, 32, 32),
    before=Network(40_813_184, 272_474, {1: Latency(2.0, 1.9, 2.2, 50)}),
    after=Network(20_400_000, 99_000, {1: Latency(1.5, 1.4, 1.6, 50)}, 0.9123),
    validation_score=0.92,
    layers=("stages.0.0", "stages.0.1", "stages.2.1"),
    removed_layers=("stages.0.1",),
    widths=(
        Width("conv1", 16, 16),
        Width("stages.0.0.conv1", 16, 8),
        Width("stages.0.1.conv1", 16, 0),
        Width("stages.2.1.conv1", 64, 40),
        Width("stages.2.1.conv2", 64, 56),
    ),
    epochs=60,
    seconds=1234.5,
    device="cpu",
    threads=2,
)


TABLE = """\
model resnet20, data cifar10, images 3x32x32

                                  before  =>                after  share
MACs of one image                 40.8 M  =>               20.4 M   0.50
parameters                         272 k  =>               99.0 k   0.36
latency, batch 1     2.00 ms (1.90-2.20)  =>  1.50 ms (1.40-1.60)   0.75
test accuracy                          -  =>               91.23%
validation accuracy                                        92.00%
residual branches                      3  =>                    2   0.67

widths per block
(root)      conv1 16
stages.0.0  conv1 16 => 8
stages.0.1  conv1 16 => gone
stages.2.1  conv1 64 => 40, conv2 64 => 56
removed layers: stages.0.1

1 MAC = 1 multiply-accumulate = 2 FLOPs. Latency: one forward pass in float32 on
cpu, 2 threads; median and quartiles of at least 50 passes, in turns. The
network before was never trained alone (--baseline full does that)."""


def test_the_table():
    assert "\n".join(lines(OUTCOME)) == TABLE


def test_a_busy_machine_is_told_and_the_time_at_work_is_shown():
    before, after = Latency(9.0, 4.0, 20.0, 50, busy=4.0), Latency(3.0, 2.9, 3.1, 50, busy=1.0)
    busy = dataclasses.replace(
        OUTCOME,
        before=dataclasses.replace(OUTCOME.before, latency={1: before, 64: after}),
        after=dataclasses.replace(OUTCOME.after, latency={1: after, 64: after}),
    )
    text = "\n".join(lines(busy))
    assert re.search(
        r"latency, batch 1 +9.00 ms \(4.00-20.0\)  => +3.00 ms \(2.90-3.10\)$", text, re.MULTILINE
    )
    assert re.search(r"^CPU time, batch 1 +4.00 ms  => +1.00 ms +0.25$", text, re.MULTILINE)
    assert "quartiles at batch 1 are far apart" in " ".join(lines(busy))
    assert "far apart" not in "\n".join(lines(OUTCOME))


def test_a_stopped_run_says_so_and_shows_what_it_has():
    stopped = dataclasses.replace(
        OUTCOME,
        before=dataclasses.replace(OUTCOME.before, latency={}),
        after=dataclasses.replace(OUTCOME.after, latency={}, test_score=None),
        interrupted="discovery",
    )
    text = "\n".join(lines(stopped))
    assert "interrupted during discovery" in text
    assert "ms" not in text and "never trained" not in text
    assert to_dict(stopped)["status"] == "interrupted"


def test_nothing_removed_is_said():
    same = dataclasses.replace(OUTCOME, widths=(Width("conv1", 16, 16),), removed_layers=())
    assert "every unit and layer is still there" in lines(same)


def test_layers_without_units_of_their_own_are_listed():
    only = dataclasses.replace(OUTCOME, widths=(Width("conv1", 16, 16),))
    assert "removed layers: stages.0.1" in lines(only)


@pytest.mark.parametrize("count", [1, 40])
def test_lines_fit_the_screen(count: int):
    many = tuple(Width(f"features.denseblock1.layer{n}.conv1", 128, n + 1) for n in range(count))
    deep = dataclasses.replace(
        OUTCOME, widths=many, removed_layers=tuple(f"stages.{n}.conv" for n in range(count))
    )
    assert max(len(line) for line in lines(deep)) <= 80
