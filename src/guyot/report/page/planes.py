"""Accuracy against MACs and against parameters: where the runs ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from guyot.report.history import History
from guyot.report.page.curves import Tick, percent
from guyot.report.page.labels import Label, label
from guyot.report.page.scale import Scale, around, path, steps, ticks
from guyot.report.page.style import Style
from guyot.report.table import count_text

WIDTH, HEIGHT = 540, 342
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 18, 26, 46


@dataclass(frozen=True)
class Mark:
    """Where a run ended."""

    run: int
    x: float
    y: float
    label: Label
    name: str
    style: Style
    words: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Plane:
    """Accuracy against a cost.

    Attributes:
        cost: "MACs of one image" or "parameters".
        marks: of the runs that have an accuracy.
        full: where the full networks are; empty when there are several.
        front: SVG path of the best accuracy at most so much cost.
    """

    cost: str
    accuracy: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    marks: Sequence[Mark]
    across: Sequence[Tick]
    up: Sequence[Tick]
    full: Tick | None
    front: str


@dataclass(frozen=True)
class Ends:
    """Cost and accuracy at which every run ended; runs without accuracy are left out."""

    numbers: Sequence[int]
    costs: Sequence[int]
    accuracies: Sequence[float]
    accuracy: str


COSTS: tuple[tuple[str, str, Callable[[History], int]], ...] = (
    ("macs", "MACs of one image", lambda run: run.macs),
    ("params", "parameters", lambda run: run.params),
)


def ends(runs: Sequence[History], cost: Callable[[History], int]) -> Ends:
    """Test accuracy where all runs have one, else validation accuracy."""
    tested = all(run.test_accuracy is not None for run in runs)
    accuracies = [run.test_accuracy if tested else run.validation_accuracy for run in runs]
    known = [
        (number, cost(run), accuracy)
        for number, (run, accuracy) in enumerate(zip(runs, accuracies, strict=True))
        if accuracy is not None
    ]
    return Ends(
        [number for number, _, _ in known],
        [cost for _, cost, _ in known],
        [accuracy for _, _, accuracy in known],
        "test accuracy" if tested else "validation accuracy",
    )


def front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Places that no other one beats in both, by rising cost.

    Example:
        >>> front([3, 1, 2, 4], [0.9, 0.7, 0.95, 0.95])
        [1, 2]
    """
    best = float("-inf")
    result: list[int] = []
    for place in sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i])):
        if accuracies[place] > best:
            best = accuracies[place]
            result.append(place)
    return result


def planes(runs: Sequence[History], styles: Sequence[Style]) -> list[Plane]:
    """Both planes; none unless two runs or more have an accuracy."""
    found = [(key, title, ends(runs, cost)) for key, title, cost in COSTS]
    return [
        _plane(key, title, end, runs, styles) for key, title, end in found if len(end.costs) > 1
    ]


def _plane(
    key: str, title: str, end: Ends, runs: Sequence[History], styles: Sequence[Style]
) -> Plane:
    full = {runs[number].network[key] for number in end.numbers}
    across = Scale(0, 1.06 * max(*full, *end.costs), _LEFT, WIDTH - _RIGHT)
    low, high = around(end.accuracies, margin=0.15, least=0.01)
    up = Scale(low, min(high, 1.0), HEIGHT - _BOTTOM, _TOP)
    best = [(across(end.costs[i]), up(end.accuracies[i])) for i in front(end.costs, end.accuracies)]
    corners = [*steps(best), (WIDTH - _RIGHT, best[-1][1])]
    lines = [
        (min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1)
        for (a, b), (c, d) in pairwise(corners)
    ]
    places = [(across(x), up(y)) for x, y in zip(end.costs, end.accuracies, strict=True)]
    names = [runs[number].name for number in end.numbers]
    labels = label(places, names, (_LEFT + 2, _TOP, WIDTH, HEIGHT - _BOTTOM - 2), lines)
    return Plane(
        title,
        end.accuracy,
        WIDTH,
        HEIGHT,
        _LEFT,
        WIDTH - _RIGHT,
        _TOP,
        HEIGHT - _BOTTOM,
        [
            Mark(
                number,
                x,
                y,
                place,
                runs[number].name,
                styles[number],
                [(end.accuracy, percent(accuracy)), (title, count_text(cost))],
            )
            for number, (x, y), place, accuracy, cost in zip(
                end.numbers, places, labels, end.accuracies, end.costs, strict=True
            )
        ],
        [
            Tick(across(value), count_text(round(value)) if value else "0")
            for value in ticks(0, across.high, 5)
        ],
        [Tick(up(value), f"{100 * value:g} %") for value in ticks(up.low, up.high, 5)],
        Tick(across(min(full)), "full network") if len(full) == 1 else None,
        path(corners),
    )
