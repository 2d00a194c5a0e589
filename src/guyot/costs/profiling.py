"""Measure what the operators of a network take on this machine, at several widths, in place.

The network is cut down to other widths and to fewer layers, really, and every copy predicts in
turns. In some passes each module's own time is taken: the time its `forward` takes without that of
the modules inside it. So an operator is measured where it runs, with the caches as its
predecessor left them, and the own times add up to the pass. In other passes only the whole is
timed. `guyot.costs.latency.fit` makes a table of both.
"""

from __future__ import annotations

import copy
import itertools
import platform
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import lcm
from statistics import median
from typing import Any

import torch
from torch import nn

from guyot.core.axis import best
from guyot.core.inputs import Inputs, arguments, check_weights, tensors_of
from guyot.core.locate import unwrap
from guyot.core.types import KeepPlan, Structures
from guyot.core.warning import warn
from guyot.costs.latency import CrossValidation, LatencyTable, Measurement, cross_validate, fit
from guyot.costs.quantum import measure_quantum
from guyot.costs.timing import Clock, Latency, Span, clock_of, rounds, timed
from guyot.structures import find_structures
from guyot.structures.kernels import ROOT
from guyot.surgery import operate, present

UNIFORM = (1.0, 0.75, 0.5, 0.25)
"""Shares of the widths of the first networks that are timed."""

RANDOM = 6
"""How many networks with a random width for every group follow."""

SHALLOW = 8
"""How many networks with random widths and without random layers follow."""


@dataclass(frozen=True)
class Variant:
    """A network cut down from another.

    Attributes:
        model: the network, in evaluation mode.
        measurement: its widths and removed layers, times still to come.
    """

    model: nn.Module
    measurement: Measurement


@dataclass(frozen=True)
class Profile:
    """What `profile` found.

    Attributes:
        table: for a `guyot.Cost`.
        measurements: what it was fitted to.
        cross_validation: measured and predicted latency of the cut networks, each predicted by a
            fit to others; None if nothing can be cut.
        structures: of the network.
    """

    table: LatencyTable
    measurements: tuple[Measurement, ...]
    cross_validation: CrossValidation | None
    structures: Structures

    @classmethod
    def of(
        cls,
        structures: Structures,
        measurements: Sequence[Measurement],
        *,
        batch: int,
        **about: Any,
    ) -> Profile:
        """Fit a table to measurements; arguments as those of `guyot.costs.latency.fit`."""
        table = fit(structures, measurements, batch=batch, **about)
        cut = [m for m in measurements if m.milliseconds and (m.widths or m.removed_layers)]
        checked = cross_validate(structures, measurements, batch=batch) if len(cut) > 1 else None
        return cls(table, tuple(measurements), checked, structures)


def variants(
    model: nn.Module, structures: Structures, *, quantum: int = 1, seed: int = 0
) -> Iterator[Variant]:
    """Yield the full network and smaller ones, for a profiler of one's own.

    Widths are multiples of `quantum` (and full ones) from a quarter of the full width on.

    Args:
        model: the full network; it is copied.
        structures: what it is made of.
        quantum: of the widths.
        seed: of the random networks.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> structures = find_structures(mlp, (torch.ones(1, 8),))
        >>> [v.measurement.widths for v in variants(mlp, structures, quantum=4)][:4]
        [{}, {'0': 12}, {'0': 8}, {'0': 4}]
    """
    draw = random.Random(seed)
    levels = [
        _levels(group.size, lcm(quantum, structures.blocks_of(group) * group.multiple))
        for group in structures.groups
    ]
    sizes = [group.size for group in structures.groups]
    for share in UNIFORM:
        close = [_nearest(ls, share * n) for ls, n in zip(levels, sizes, strict=True)]
        yield _cut(model, structures, close, ())
    for number in range(RANDOM + SHALLOW):
        layers = range(len(structures.layers))
        rate = 0.7 * draw.random() if number >= RANDOM else 0.0
        gone = [layer for layer in layers if draw.random() < rate]
        yield _cut(model, structures, [draw.choice(ls) for ls in levels], gone)


def _levels(size: int, quantum: int) -> list[int]:
    """Return widths worth timing."""
    least = max(1, size // 4)
    return sorted({w for w in range(quantum, size, quantum) if w >= least} | {size})


def _nearest(levels: Sequence[int], width: float) -> int:
    return min(levels, key=lambda level: abs(level - width))


def _cut(
    model: nn.Module, structures: Structures, widths: Sequence[int], gone: Sequence[int]
) -> Variant:
    kept = {
        n: best(torch.zeros(group.size), width, structures.blocks_of(group))
        for n, (group, width) in enumerate(zip(structures.groups, widths, strict=True))
        if width < group.size
    }
    plan = KeepPlan(kept, frozenset(gone))
    smaller = copy.deepcopy(model).eval()
    operate(smaller, structures, plan)
    left = zip(structures.groups, present(structures, plan), strict=True)
    named = {group.name: int(mask.sum()) for group, mask in left if not bool(mask.all())}
    removed = tuple(structures.layers[layer].name for layer in gone)
    return Variant(smaller, Measurement(named, removed))


def profile(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    seconds: float = 20.0,
    quantum: int | None = None,
) -> Profile:
    """Measure a network's operators on the device it is on, with torch's present threads.

    The number of threads, the dtype, the memory format and the batch (dimension 0 of the inputs)
    are part of the question. The times are those that the device works, see `guyot.costs.timing`.

    Args:
        model: the full network; it is not changed. Some twenty copies, most of them smaller, exist
            at a time.
        example_inputs: what it predicts from: arguments, or a mapping of keyword arguments.
        seconds: about how long to measure, after finding the structures; at least five rounds.
        quantum: multiple of channels for widths; None: measured, for predictions of this batch.

    Warns:
        GuyotWarning: the quartiles of the full network's latency are far apart.

    Raises:
        MisconfiguredError: the inputs do not fit the model.
        UnsupportedError: the model cannot be traced.
    """
    model = unwrap(model)
    check_weights(model)
    structures = find_structures(model, example_inputs)
    parameter = next(model.parameters())
    batch = len(tensors_of(example_inputs)[0])
    if quantum is None:
        quantum = measure_quantum(parameter.device, parameter.dtype, batch=batch)
    found = list(variants(model, structures, quantum=quantum))
    clock = clock_of(parameter.device)
    measurements, full = _measured(found, example_inputs, clock, seconds)
    measurements = _named(measurements, structures)
    where = _where(parameter, clock) | {"quartiles": f"{full.low:.4g} to {full.high:.4g} ms"}
    if not full.steady:
        warn(
            f"the quartiles of the full network's latency, {where['quartiles']}, are far apart: "
            "measure again when nothing else uses the machine",
        )
    return Profile.of(structures, measurements, batch=batch, quantum=quantum, where=where)


def _where(parameter: torch.Tensor, clock: Clock) -> dict[str, str]:
    """Say what the times belong to."""
    device = parameter.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({name})",
        "threads": str(torch.get_num_threads()),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "clock": clock.name,
        "torch": torch.__version__,
    }


def _measured(
    found: Sequence[Variant], inputs: Inputs, clock: Clock, seconds: float
) -> tuple[list[Measurement], Latency]:
    """Return medians over rounds in which every network is timed as a whole and within.

    The latency is that of the first network.
    """
    args, kwargs = arguments(found[0].model, inputs)
    watches = [Stopwatch(variant.model, clock) for variant in found]
    whole: list[list[float]] = [[] for _ in found]

    def predict(number: int) -> None:
        step = partial(found[number].model, *args, **kwargs)
        whole[number].append(timed(step, clock).busy)
        watches[number].run(*args, **kwargs)

    with torch.inference_mode():
        for _ in rounds({n: partial(predict, n) for n in range(len(found))}, clock, seconds):
            pass
    measurements = [
        replace(
            variant.measurement,
            milliseconds=1000 * median(whole[number][1:]),  # the first round warms up
            operators={name: 1000 * value for name, value in watches[number].medians().items()},
        )
        for number, variant in enumerate(found)
    ]
    return measurements, Latency.of([Span(busy, busy) for busy in whole[0][1:]], clock)


def _named(measurements: Sequence[Measurement], structures: Structures) -> list[Measurement]:
    """Keep the times of modules that have kernels.

    If one with MACs has no time (a fused path went past its `forward`), single operators tell
    nothing, and only the times of whole networks are left.
    """
    names = {kernel.name for kernel in structures.kernels}
    counted = {kernel.name for kernel in structures.kernels if kernel.macs}
    fused = any(counted - m.operators.keys() for m in measurements if not m.removed_layers)
    return [
        replace(m, operators={} if fused else {n: t for n, t in m.operators.items() if n in names})
        for m in measurements
    ]


class Stopwatch:
    """Takes the own time of every module of a network: without that of the modules inside it.

    Args:
        model: the network; between runs it is as it was.
        clock: of the device that it is on.
    """

    def __init__(self, model: nn.Module, clock: Clock) -> None:
        self._model, self._clock = model, clock
        self._reading = self._shortest()
        self._runs: list[dict[str, float]] = []
        self._calls: list[tuple[str, int, Any, Any]] = []
        self._depth = 0
        self._timed = {
            module: self._wrapped(name or ROOT, module.forward)
            for name, module in model.named_modules()
        }

    def _shortest(self) -> float:
        """Return the seconds that reading the clock adds."""
        marks = [self._clock.mark() for _ in range(100)]
        self._clock.wait()
        return min(self._clock.seconds(*pair) for pair in itertools.pairwise(marks))

    def run(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Make one forward pass; return seconds by module, added up over its calls."""
        self._calls.clear()
        self._depth = 0
        try:
            for module, forward in self._timed.items():
                module.__dict__["forward"] = forward
            self._model(*args, **kwargs)
        finally:
            for module in self._timed:
                module.__dict__.pop("forward", None)
        self._clock.wait()
        self._runs.append(self._own())
        return self._runs[-1]

    def medians(self) -> dict[str, float]:
        """Return the median of each module over the runs; the first run warms up."""
        taken: dict[str, list[float]] = defaultdict(list)
        for own in self._runs[1:]:
            for name, seconds in own.items():
                taken[name].append(seconds)
        return {name: median(values) for name, values in taken.items()}

    def _own(self) -> dict[str, float]:
        """Add up own times of the calls, which are listed as they ended: inner ones first."""
        own: dict[str, float] = defaultdict(float)
        inside: dict[int, float] = defaultdict(float)
        for name, depth, start, stop in self._calls:
            taken = self._clock.seconds(start, stop)
            own[name] += max(0.0, taken - inside.pop(depth + 1, 0.0) - self._reading)
            inside[depth] += taken + self._reading
        return dict(own)

    def _wrapped(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            depth = self._depth
            self._depth += 1
            start = self._clock.mark()
            result = forward(*args, **kwargs)
            self._calls.append((name, depth, start, self._clock.mark()))
            self._depth = depth
            return result

        return timed
