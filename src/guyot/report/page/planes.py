"""Scores against MACs and against parameters: where the runs ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from guyot.core.metric import Metric
from guyot.report.history import History
from guyot.report.page.curves import Tick, score_text, tick_text
from guyot.report.page.labels import Label, label
from guyot.report.page.scale import Point, Scale, around, log_ticks, path, steps, ticks
from guyot.report.page.style import Style
from guyot.report.table import count_text

_LOG_RANGE = 12
"""How many times the least cost the largest one is on a linear axis, at most."""


class End(NamedTuple):
    """Where a run ended."""

    run: int
    cost: int
    score: float


@dataclass(frozen=True)
class Mark:
    """A run in a plane: the place of its end, its name, and what the pointer reads."""

    run: int
    x: float
    y: float
    label: Label
    name: str
    style: Style
    words: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Plane:
    """Score against a cost.

    Attributes:
        cost: "MACs of one image" or "parameters".
        score: which one.
        marks: of the runs that have a score.
        across: ticks of the cost.
        up: ticks of the score.
        full: where the full networks are; None when there are several.
        fronts: SVG path of the best score at most so much cost, for runs that compare.
    """

    width, height = 540, 342
    left, right, top, bottom = 64, 522, 26, 296

    cost: str
    score: str
    marks: Sequence[Mark]
    across: Sequence[Tick]
    up: Sequence[Tick]
    full: Tick | None
    fronts: str


COSTS: tuple[str, ...] = ("macs", "params")


def cost_title(runs: Sequence[History], cost: str) -> str:
    """Return what a cost is called."""
    return "parameters" if cost == "params" else f"MACs of one {runs[0].sample}"


def part_of(runs: Sequence[History]) -> str:
    """Return on which data to compare: on test data where all that ended were tested."""
    tested = all(run.test_score is not None for run in runs if run.status == "finished")
    return "test" if tested else "validation"


def score_title(runs: Sequence[History]) -> str:
    """Return what the scores that are compared are called."""
    return f"{part_of(runs)} {runs[0].metric.name}"


def ends(runs: Sequence[History], cost: str) -> list[End]:
    """Return cost ("macs" or "params") and score of the finished runs."""
    key = f"{part_of(runs)}_score"
    ended = [(number, run) for number, run in enumerate(runs) if run.status == "finished"]
    found = [(number, run, getattr(run, key)) for number, run in ended]
    return [End(n, getattr(run, cost), value) for n, run, value in found if value is not None]


def front(ends: Sequence[End], metric: Metric) -> list[End]:
    """Return the ends that no other one beats in both, by rising cost.

    Example:
        >>> from guyot.core.metric import ACCURACY
        >>> front([End(0, 3, 0.9), End(1, 1, 0.7), End(2, 2, 0.95), End(3, 4, 0.95)], ACCURACY)
        [End(run=1, cost=1, score=0.7), End(run=2, cost=2, score=0.95)]
    """
    result: list[End] = []
    sign = -1 if metric.higher else 1
    for end in sorted(ends, key=lambda end: (end.cost, sign * end.score)):
        if not result or metric.better(end.score, result[-1].score):
            result.append(end)
    return result


def fronts(found: Sequence[End], runs: Sequence[History]) -> list[list[End]]:
    """Return the front of all that compare: runs on the same data, and members of one family.

    The members of a family share the beginning of their training, so they are no independent
    runs and have a front of their own.
    """
    groups: dict[object, list[End]] = {}
    for end in found:
        run = runs[end.run]
        groups.setdefault((run.config["data"], run.family), []).append(end)
    return [front(group, runs[0].metric) for group in groups.values()]


def planes(runs: Sequence[History], styles: Sequence[Style]) -> list[Plane]:
    """Return both planes; none unless two runs or more are finished and have a score."""
    found = [(key, ends(runs, key)) for key in COSTS]
    return [_plane(key, end, runs, styles) for key, end in found if len(end) > 1]


def _plane(
    key: str, found: Sequence[End], runs: Sequence[History], styles: Sequence[Style]
) -> Plane:
    title, metric = cost_title(runs, key), runs[0].metric
    left, right, top, bottom = Plane.left, Plane.right, Plane.top, Plane.bottom
    full = {runs[end.run].network[key] for end in found}
    costs = [*full, *(end.cost for end in found)]
    across = cost_scale(costs, left, right)
    up = Scale(*score_range(metric, [end.score for end in found]), bottom, top)
    drawn: list[list[Point]] = []
    for best in fronts(found, runs):
        corners = steps([(across(end.cost), up(end.score)) for end in best])
        drawn.append([*corners, (right, corners[-1][1])])
    lines = [
        (min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1)
        for corners in drawn
        for (a, b), (c, d) in pairwise(corners)
    ]
    places = [(across(end.cost), up(end.score)) for end in found]
    names = [runs[end.run].name for end in found]
    labels = label(places, names, (left + 2, top, Plane.width, bottom - 2), lines)
    score = score_title(runs)
    marks: list[Mark] = []
    for end, (x, y), place, name in zip(found, places, labels, names, strict=True):
        words = [(score, score_text(metric)(end.score)), (title, count_text(end.cost))]
        marks.append(Mark(end.run, x, y, place, name, styles[end.run], words))
    return Plane(
        title,
        score,
        marks,
        [Tick(across(v), count_text(round(v)) if v else "0") for v in cost_ticks(across)],
        [Tick(up(v), tick_text(v, shares=metric.percent)) for v in ticks(up.low, up.high, 5)],
        Tick(across(min(full)), "full network") if len(full) == 1 else None,
        "".join(map(path, drawn)),
    )


def score_range(metric: Metric, scores: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis for scores."""
    low, high = around(scores, margin=0.15, least=0.01)
    return low, high if metric.high is None else min(high, metric.high)


def cost_scale(costs: Sequence[float], start: float, stop: float) -> Scale:
    """Return the axis of costs: logarithmic where a linear one would squash the small ones.

    Example:
        >>> cost_scale([10, 50], 0, 1).log, cost_scale([10, 500], 0, 1).log
        (False, True)
    """
    low, high = min(costs), max(costs)
    if low > 0 and high > _LOG_RANGE * low:
        return Scale(low / 1.3, high * 1.15, start, stop, log=True)
    return Scale(0, 1.06 * high, start, stop)


def cost_ticks(across: Scale) -> list[float]:
    """Return the ticks of an axis of costs."""
    if across.log:
        return log_ticks(across.low, across.high)
    return ticks(0, across.high, 5)


def left_out(runs: Sequence[History]) -> str:
    """Say which runs have no mark, and why; empty when all have one."""
    words = {"unfinished": "not finished", "interrupted": "stopped", "failed": "failed"}
    found = [f"{run.name} ({words[run.status]})" for run in runs if run.status in words]
    return f"Not shown: {', '.join(found)}." if found else ""
