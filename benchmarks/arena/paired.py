"""Paired differences by seed, with Student's t."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import mean, stdev


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, the half width of its 95 % interval, and a two-sided p.

    ``half`` and ``p`` are those of Student's t with ``count - 1`` degrees of freedom; with fewer
    than two pairs nothing is known of them (inf and 1).
    """

    mean: float
    half: float
    p: float
    count: int


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The differences ``ours - theirs`` of runs with the same seeds."""
    from scipy.stats import t

    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    count = len(differences)
    if not count:
        return Difference(float("nan"), inf, 1.0, 0)
    middle = mean(differences)
    if count < 2:
        return Difference(middle, inf, 1.0, count)
    error = stdev(differences) / sqrt(count)
    if error == 0:
        return Difference(middle, 0.0, 1.0 if middle == 0 else 0.0, count)
    return Difference(
        middle,
        float(t.ppf(0.975, count - 1)) * error,
        float(2 * t.sf(abs(middle / error), count - 1)),
        count,
    )
