"""Axes of plots: a scale maps values to places, ticks are round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, stop], linearly or logarithmically.

    Example:
        >>> Scale(0, 10, 100, 200)(5), Scale(1, 100, 0, 2, log=True)(10)
        (150.0, 1.0)
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Place a value; pixels."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten, in [low, high].

    Example:
        >>> ticks(0, 1), ticks(3, 97, 4)
        ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [20.0, 40.0, 60.0, 80.0])
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(math.log(m * power / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times powers of ten in [low, high]; only powers when these are many.

    Example:
        >>> log_ticks(0.04, 3)
        [0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    values = [round(factor * 10.0**decade, 12) for decade in decades for factor in factors]
    return [value for value in values if low <= value <= high]


def around(values: Iterable[float], *, margin: float = 0.08, least: float = 0.0) -> Point:
    """Return a range that holds the values with some space, at least `least` wide.

    Example:
        >>> around([1.0, 2.0], margin=0.5)
        (0.5, 2.5)
    """
    values = list(values)
    low, high = min(values), max(values)
    space = max(margin * (high - low), (least - (high - low)) / 2)
    return low - space, high + space


def path(points: Sequence[Point]) -> str:
    """Write an SVG path through the points, to a tenth of a pixel.

    Example:
        >>> path([(0, 1), (2.04, 3)])
        'M0 1L2 3'
    """
    return "M" + "L".join(f"{_short(x)} {_short(y)}" for x, y in points) if points else ""


def steps(points: Sequence[Point]) -> list[Point]:
    """Return corners of the step function that keeps a value until the next point.

    Example:
        >>> steps([(0, 1), (2, 3)])
        [(0, 1), (2, 1), (2, 3)]
    """
    result: list[Point] = []
    for x, y in points:
        if result:
            result.append((x, result[-1][1]))
        result.append((x, y))
    return result


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
