"""How long something really takes on a device: the one stopwatch of the package.

Several things to time take turns, every other round backwards, so that what else the machine does,
and a drift of its speed, meets all of them alike. Each run of a step has two times:

- *wall*: from before it to after the device is done.
- *busy*: how long the device worked for it. On a CPU with one thread this is the thread's CPU time,
  which other programs hardly change. On an accelerator it is the time between two events on the
  device. On a CPU with several threads nothing tells it from wall time.

`torch.utils.benchmark` has neither turns nor two clocks; see `docs/decisions.md`.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from guyot.core.inputs import evaluation_mode

Step = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)

LEAST_ROUNDS = 5
REPORTED_BATCHES = (1, 64)
"""Samples per forward pass of which every run reports the latency."""
FAR_APART = 0.5
"""Quartiles further apart than this share of the median are not to be relied on."""


class Span(NamedTuple):
    """Seconds that one run of a step took."""

    wall: float
    busy: float


class Clock:
    """Tells moments of the device's work; this one by the time on the wall."""

    name = "time on the wall"

    def mark(self) -> Any:
        """Note the moment at which all that was asked of the device so far is done."""
        return time.perf_counter()

    def seconds(self, start: Any, stop: Any) -> float:
        """Return the seconds between two moments; call `wait` before."""
        return stop - start

    def wait(self) -> None:
        """Return when the device is idle."""


class ThreadClock(Clock):
    """Tells moments by the CPU time of this thread, which must do all the work."""

    name = "CPU time of the thread"

    def mark(self) -> float:
        """Note the CPU time so far."""
        return time.thread_time()


class EventClock(Clock):
    """Tells moments by events on an accelerator.

    Args:
        device: the accelerator.
    """

    name = "events on the device"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.Event:
        """Put an event behind all that was asked of the device."""
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.Event, stop: torch.Event) -> float:
        """Return the seconds between two events; they have a resolution of half a microsecond."""
        return start.elapsed_time(stop) / 1000

    def wait(self) -> None:
        """Return when the device is idle."""
        torch.accelerator.synchronize(self._device)


def clock_of(device: torch.device | str) -> Clock:
    """Return the clock that other programs change least, for torch's present threads."""
    device = torch.device(device)
    if device.type != "cpu":
        return EventClock(device)
    exact = time.get_clock_info("thread_time").resolution <= 1e-6
    return ThreadClock() if torch.get_num_threads() == 1 and exact else Clock()


def rounds(
    steps: Mapping[Key, Step],
    clock: Clock,
    seconds: float,
    *,
    warm_up: int = 1,
    least: int = LEAST_ROUNDS,
) -> Iterator[dict[Key, Span]]:
    """Yield the times of all steps, round after round.

    Args:
        steps: what to time, by name.
        clock: of the device that they use.
        seconds: when to stop; a round that is then under way is given up.
        warm_up: rounds that are run first and not yielded; they count as `seconds`.
        least: rounds that are yielded whatever time they take; 0: there may be none.
    """
    end = time.perf_counter() + seconds
    order = list(steps)
    must = warm_up + least if least else 0
    for number in itertools.count():
        times: dict[Key, Span] = {}
        for key in order[:: 1 - 2 * (number % 2)]:
            if number >= must and time.perf_counter() > end:
                return
            times[key] = timed(steps[key], clock)
        if number >= warm_up:
            yield times


def timed(step: Step, clock: Clock) -> Span:
    """Run a step once and return what it took."""
    clock.wait()
    began, start = time.perf_counter(), clock.mark()
    step()
    stop = clock.mark()
    clock.wait()
    return Span(time.perf_counter() - began, clock.seconds(start, stop))


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of a batch, milliseconds.

    Attributes:
        median: on the wall, of the repetitions.
        low: first quartile.
        high: third quartile.
        repetitions: how many were timed.
        busy: median of the time that the device worked for it; None where only the wall tells.

    Example:
        >>> Latency(2.0, 1.9, 2.2, 50).steady, Latency(2.0, 1.5, 3.5, 50, busy=1.5).steady
        (True, False)
    """

    median: float
    low: float
    high: float
    repetitions: int
    busy: float | None = None

    @classmethod
    def of(cls, spans: Sequence[Span], clock: Clock) -> Latency:
        """Summarise two or more repetitions that were taken with a clock."""
        low, median, high = statistics.quantiles(
            (1000 * span.wall for span in spans), n=4, method="inclusive"
        )
        busy = 1000 * statistics.median(span.busy for span in spans)
        return cls(median, low, high, len(spans), None if type(clock) is Clock else busy)

    @property
    def steady(self) -> bool:
        """Say whether the quartiles are close enough to rely on the median."""
        return self.high - self.low <= FAR_APART * self.median


def measure_batches(
    models: Mapping[str, nn.Module],
    example: Tensor,
    batches: Iterable[int] = REPORTED_BATCHES,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, dict[int, Latency]]:
    """Return the latency of some networks by name and batch size, see `measure`.

    Args:
        models: networks by name.
        example: samples, of which the first one is repeated.
        batches: numbers of samples per pass.
        stop: asked before each of them; True leaves out what is left.
    """
    times: dict[str, dict[int, Latency]] = {name: {} for name in models}
    for batch in batches:
        if not stop():
            for name, latency in measure(models, example, batch).items():
                times[name][batch] = latency
    return times


def measure(
    models: Mapping[str, nn.Module],
    example: Tensor,
    batch_size: int,
    *,
    seconds: float = 2.0,
) -> dict[str, Latency]:
    """Time forward passes in evaluation mode, float32, `channels_last`, in turns.

    Args:
        models: networks by name, all on one device; their modes come back afterwards.
        example: samples, of which the first one is repeated.
        batch_size: samples per pass.
        seconds: about how long to measure; at least 5 repetitions of each.

    Returns:
        Latency by name.
    """
    device = next(next(iter(models.values())).parameters()).device
    images = example[:1].to(device).expand(batch_size, *example.shape[1:]).contiguous()
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    steps = {name: partial(model, images) for name, model in models.items()}
    clock = clock_of(device)
    with contextlib.ExitStack() as modes, torch.inference_mode():
        for model in models.values():
            modes.enter_context(evaluation_mode(model))
        taken = list(rounds(steps, clock, seconds, warm_up=3))
    return {name: Latency.of([times[name] for times in taken], clock) for name in models}
