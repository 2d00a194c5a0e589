"""Turns, limits and both times of the one stopwatch, with clocks that tick as told."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
import torch

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


def test_shares_are_of_work_where_both_know_it() -> None:
    wall, both = Latency(4.0, 4.0, 4.0, 5), Latency(6.0, 6.0, 6.0, 5, busy=3.0)
    assert both.over(wall) == 1.5 and wall.over(both) == pytest.approx(2 / 3)
    assert both.over(Latency(60.0, 1.0, 90.0, 5, busy=12.0)) == 0.25


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_time_the_device_and_not_the_host() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")
    clock = clock_of("cuda")
    steps = {"product": lambda: matrix @ matrix, "nap": lambda: time.sleep(0.02)}
    taken = list(rounds(steps, clock, 0.5))
    assert all(0 < times["product"].busy <= times["product"].wall for times in taken)
