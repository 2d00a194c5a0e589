"""Loss, score, MACs, parameters and step time over epochs: panels above one another."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from guyot.core.metric import Metric
from guyot.report.history import History
from guyot.report.page.scale import Point, Scale, around, log_ticks, path, steps, ticks
from guyot.report.page.style import Style
from guyot.report.table import count_text

_PANEL, _BOTTOM = 118, 34
_LOG_RANGE = 20
_OUTLIER = 4
_DOTS = 12
_EARLY = 3
"""Scores of the first third may lie below the axis, so that the others are not squashed."""


@dataclass(frozen=True)
class Quantity:
    """Something that is measured over time.

    Attributes:
        key: in the page's data.
        title: with its unit.
        event: whose lines hold it.
        value: of a line, given the run; None: not measured.
        text: of a value, as a reader wants it.
        stepped: it keeps its value until the next line.
        zero: the axis begins at 0.
        note: what a second, thin line shows.
        metric: if it is a score.
        other: value of the second line.
    """

    key: str
    title: str
    event: str
    value: Callable[[History, Any], float | None]
    text: Callable[[float], str]
    stepped: bool = False
    zero: bool = False
    note: str = ""
    metric: Metric | None = None
    other: Callable[[History, Any], float | None] | None = None


def percent(value: float) -> str:
    """Write a share.

    Example:
        >>> percent(0.5)
        '50.0 %'
    """
    return f"{100 * value:.1f} %"


def _left(key: str, title: str, **more: Any) -> Quantity:
    """Describe what is left of a count, as a share."""

    def share(run: History, line: Any) -> float:
        return line[key] / run.network[key]

    title = f"{title}, share of the full network"
    return Quantity(key, title, "steps", share, percent, stepped=True, zero=True, **more)


def score_text(metric: Metric) -> Callable[[float], str]:
    """Return what writes a score.

    Example:
        >>> from guyot.core.metric import ACCURACY, R2
        >>> score_text(ACCURACY)(0.5), score_text(R2)(0.5)
        ('50.0 %', '0.500')
    """
    return percent if metric.percent else partial(metric.text, digits=3)


def quantities(metric: Metric) -> tuple[Quantity, ...]:
    """Return what is drawn of runs with these scores."""
    loss = f"Training loss, {metric.unit}"
    score = Quantity(
        metric.key,
        f"Validation {metric.name}",
        "epoch",
        lambda _, x: x[f"validation_{metric.key}"],
        score_text(metric),
        note="thin: on training batches",
        metric=metric,
        other=lambda _, x: x[metric.key],
    )
    measured = Quantity("loss", loss, "steps", lambda _, x: x.get("loss"), "{:.3g}".format)
    return (measured, score, *_COSTS)


_COSTS = (
    _left(
        "macs",
        "MACs",
        note="thin: complexity that the keep probabilities expect",
        other=lambda _, x: x["expected_complexity"],
    ),
    _left("params", "Parameters"),
    Quantity(
        "time",
        "Time of a training step, milliseconds",
        "steps",
        lambda _, x: None if x["seconds"] is None else 1000 * x["seconds"],
        "{:.3g} ms".format,
        zero=True,
    ),
)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    place: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One run in one panel: main and second line as SVG paths, and where its marker stands."""

    style: Style
    line: str
    thin: str
    dots: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """One quantity over time.

    Attributes:
        quantity: which.
        top: its upper edge.
        height: of the plotting area.
        ticks: of the vertical axis.
        curves: of the runs.
        clipped: says which values lie outside; empty when none do.
    """

    quantity: Quantity
    top: float
    height: float
    ticks: Sequence[Tick]
    curves: Sequence[Curve]
    clipped: str


@dataclass(frozen=True)
class Places:
    """Places of the panels, in pixels.

    Attributes:
        key: tells the layout from others of the page.
        width: of all.
        left: of the plotting area.
        right: of the plotting area.
        top: of the first panel.
        gap: between two panels.
        count: of the ticks of the axis below.
        below: hints stand on a line of their own.
    """

    key: str
    width: int
    left: int
    right: int
    top: int
    gap: int
    count: int
    below: bool = False


LAYOUTS = (
    Places("wide", 1120, 74, 1104, top=40, gap=30, count=10),
    Places("phone", 358, 50, 348, top=56, gap=48, count=5, below=True),
)


@dataclass(frozen=True)
class Curves:
    """All panels, the axis below, and the phases when all runs share them.

    Attributes:
        layout: where everything stands.
        unit: of the axis: epoch or step.
        height: of all.
        last: value at the right end.
        panels: above one another.
        ticks: of the axis.
        phases: name, start and end of each.
    """

    layout: Places
    unit: str
    height: float
    last: float
    panels: Sequence[Panel]
    ticks: Sequence[Tick]
    phases: Sequence[tuple[str, float, float]]


def points(run: History, quantity: Quantity, *, second: bool = False) -> list[Point]:
    """Return (epoch or step, value) of every line that has the value."""
    value = quantity.other if second else quantity.value
    if value is None:
        return []
    per_epoch = _per_epoch(run)
    found = [(line["step"] / per_epoch, value(run, line)) for line in run.of(quantity.event)]
    return [(x, y) for x, y in found if y is not None]


def phases(run: History) -> list[tuple[str, float, float]]:
    """Return name, first and last epoch or step of the phases."""
    total, per_epoch = run.network["steps"], _per_epoch(run)
    if "discovery" not in run.network:
        return []
    start, stop = run.network["discovery"]
    if run.snapshots and run.snapshots[-1]["step"] < stop and run.status == "finished":
        stop = run.snapshots[-1]["step"]  # everything was decided earlier
    bounds = [0, start, stop, total]
    names = ("warm-up", "discovery", "fine-tuning")
    return [
        (name, bounds[i] / per_epoch, bounds[i + 1] / per_epoch) for i, name in enumerate(names)
    ]


def unit_of(runs: Sequence[History]) -> str:
    """Return what the axis counts: steps where nobody knows how long an epoch is."""
    return "epoch" if all(run.network["steps_per_epoch"] for run in runs) else "step"


def _per_epoch(run: History) -> int:
    return run.network["steps_per_epoch"] or 1


def curves(runs: Sequence[History], styles: Sequence[Style], layout: Places) -> Curves:
    """Lay the panels out."""
    last = max(run.network["steps"] / _per_epoch(run) for run in runs)
    across = Scale(0, last, layout.left, layout.right)
    panels: list[Panel] = []
    top = layout.top
    for quantity in quantities(runs[0].metric):
        lines = [points(run, quantity) for run in runs]
        if any(lines):
            panels.append(_panel(quantity, runs, styles, across, float(top)))
            top += _PANEL + layout.gap
    shared = {tuple(phases(run)) for run in runs if phases(run)}
    bands = (
        [(n, across(a), across(b)) for n, a, b in next(iter(shared))] if len(shared) == 1 else []
    )
    return Curves(
        layout,
        unit_of(runs),
        top - layout.gap + _BOTTOM,
        last,
        panels,
        [Tick(across(value), f"{value:g}") for value in ticks(0, last, layout.count)],
        bands,
    )


def limits(quantity: Quantity, lines: Sequence[Sequence[Point]]) -> tuple[float, float, bool]:
    """Return range of the vertical axis for some curves, and whether it is logarithmic."""
    found = [[y for _, y in line] for line in lines if line]
    low, high = min(map(min, found)), max(map(max, found))
    if quantity.key == "loss" and low > 0 and high > _LOG_RANGE * low:
        return low / 1.15, high * 1.15, True
    if quantity.zero:
        usual = max(max(_OUTLIER * statistics.median(line), line[-1]) for line in found)
        return 0.0, 1.06 * min(high, usual), False
    if quantity.metric is not None:
        low = max(low, min(min(line[len(line) // _EARLY :]) for line in found))
        low, high = around([low, high], least=0.02)
        return low, min(high, quantity.metric.high or high), False
    return *around([low, high], least=0.02), False


def _panel(
    quantity: Quantity,
    runs: Sequence[History],
    styles: Sequence[Style],
    across: Scale,
    top: float,
) -> Panel:
    main = [points(run, quantity) for run in runs]
    thin = [points(run, quantity, second=True) for run in runs]
    low, high, log = limits(quantity, [*main, *thin])
    up = Scale(low, high, top + _PANEL, top, log)
    values = [y for line in (*main, *thin) for _, y in line]
    above, below = sum(y > high for y in values), sum(y < low for y in values)
    outside = [
        *([f"{above} above {quantity.text(high)}"] if above else []),
        *([f"{below} below {quantity.text(low)}"] if below else []),
    ]

    def drawn(run: Style, line: Sequence[Point], other: Sequence[Point]) -> Curve:
        placed = [(across(x), up(y)) for x, y in line]
        second = [(across(x), up(y)) for x, y in other]
        dots = placed if len(placed) <= _DOTS else placed[-1:]
        dots = [(x, y) for x, y in dots if top <= y <= top + _PANEL]
        return Curve(run, path(steps(placed) if quantity.stepped else placed), path(second), dots)

    values_at = log_ticks(low, high) if log else ticks(low, high, 4)
    shares = quantity.text is percent
    return Panel(
        quantity,
        top,
        _PANEL,
        [Tick(up(v), tick_text(v, shares=shares)) for v in values_at],
        [drawn(*curve) for curve in zip(styles, main, thin, strict=True)],
        f"{' and '.join(outside)} not shown" if outside else "",
    )


def tick_text(value: float, *, shares: bool) -> str:
    """Write a tick's label, which is shorter than the value itself."""
    return f"{100 * value:g} %" if shares else f"{value:g}"


def readouts(runs: Sequence[History]) -> list[dict[str, Any]]:
    """Return what the cursor reads in every panel: epochs and values in words, per run."""
    result: list[dict[str, Any]] = []
    for quantity in quantities(runs[0].metric):
        found = [points(run, quantity) for run in runs]
        if not any(found):
            continue
        result.append(
            {
                "title": quantity.title.partition(",")[0],
                "x": [[round(x, 4) for x, _ in line] for line in found],
                "text": [
                    [_words(run, quantity, y) for _, y in line]
                    for run, line in zip(runs, found, strict=True)
                ],
            }
        )
    return result


def _words(run: History, quantity: Quantity, value: float) -> str:
    if quantity.key in ("macs", "params"):
        return f"{count_text(round(value * run.network[quantity.key]))} ({percent(value)})"
    return quantity.text(value)
