"""Turns, limits and both times of the one stopwatch, with clocks that tick as told."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from guyot.costs.profiling import Stopwatch
from guyot.costs.timing import Clock, EventClock, Latency, Span, ThreadClock, clock_of, rounds


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noting(calls: list[str]) -> dict[str, Callable[[], object]]:
    return {name: lambda name=name: calls.append(name) for name in ("a", "b", "c")}


def test_every_other_round_runs_backwards() -> None:
    calls: list[str] = []
    taken = list(rounds(noting(calls), Clock(), 0.0, warm_up=1, least=2))
    assert "".join(calls) == "abc" + "cba" + "abc"
    assert [sorted(times) for times in taken] == [["a", "b", "c"]] * 2


def test_rounds_stop_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    calls: list[str] = []
    taken = list(rounds(noting(calls), Clock(), 40.0, least=0))
    assert taken and len(calls) < 40 / 4
    assert len(calls) >= 3 * (1 + len(taken))  # what began and did not end is left out


def test_no_time_gives_no_round_unless_some_are_asked_for() -> None:
    assert list(rounds(noting([]), Clock(), -1.0, least=0)) == []
    assert len(list(rounds(noting([]), Clock(), -1.0, least=3))) == 3


def test_a_thread_that_waits_is_not_busy(one_thread: None) -> None:
    clock = clock_of("cpu")
    assert isinstance(clock, ThreadClock)
    (times,) = rounds({"nap": lambda: time.sleep(0.05)}, clock, -1.0, warm_up=0, least=1)
    assert times["nap"].wall >= 0.05 > 5 * times["nap"].busy
    (times,) = rounds({"sum": lambda: sum(range(10**6))}, clock, -1.0, warm_up=0, least=1)
    assert 0 < times["sum"].busy <= times["sum"].wall


def test_the_clock_of_a_device() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert type(clock_of("cpu")) is Clock
    finally:
        torch.set_num_threads(threads)
    assert isinstance(clock_of("cuda"), EventClock)


def test_latency_keeps_quartiles_of_the_wall_and_the_median_of_work() -> None:
    spans = [
        Span(wall / 1000, busy / 1000)
        for wall, busy in zip((5, 1, 3, 2, 4), (1, 1, 2, 9, 1), strict=True)
    ]
    found = Latency.of(spans, ThreadClock())
    assert (found.low, found.median, found.high) == pytest.approx((2, 3, 4))
    assert found.busy == pytest.approx(1) and found.repetitions == 5
    assert Latency.of(spans, Clock()).busy is None


def test_an_accelerator_is_timed_by_events_once_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An accelerator that gets its work at once and does it when somebody waits."""
    queue: list[Callable[[], None]] = []
    now = [0.0]

    class Event:
        def __init__(self, device: torch.device, *, enable_timing: bool) -> None:
            assert (device.type, enable_timing) == ("cuda", True)
            self.at = math.nan

        def record(self) -> None:
            queue.append(lambda: setattr(self, "at", now[0]))

        def elapsed_time(self, other: Event) -> float:
            return 1000 * (other.at - self.at)  # milliseconds

    def synchronize(device: torch.device) -> None:
        for work in queue:
            work()
        queue.clear()

    def kernel(seconds: float) -> None:
        queue.append(lambda: now.__setitem__(0, now[0] + seconds))

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    clock = clock_of("cuda:0")
    steps = {"short": partial(kernel, 2.0), "long": partial(kernel, 30.0)}
    for times in rounds(steps, clock, -1.0, least=2):
        assert times["short"].busy == pytest.approx(2) and times["long"].busy == pytest.approx(30)
        assert max(times["short"].wall, times["long"].wall) < 1
    network = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity()))
    network[0].forward = lambda x: kernel(5.0) or x
    network[1][0].forward = lambda x: kernel(70.0) or x
    own = Stopwatch(network, clock).run(torch.zeros(1))
    assert own == pytest.approx({"(root)": 0, "0": 5, "1": 0, "1.0": 70})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_time_the_device_and_not_the_host() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    clock = clock_of("cuda")
    steps = {"product": lambda: matrix @ matrix, "nap": lambda: time.sleep(0.02)}
    taken = list(rounds(steps, clock, 0.5))
    assert all(0 < times["product"].busy <= times["product"].wall for times in taken)
