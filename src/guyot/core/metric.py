"""What says how good a network is: accuracy, R², or bits per character."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A score of a network on data that it was not trained on.

    Attributes:
        key: in files and as an objective: `test_KEY` is the score on test data.
        name: for people.
        higher: whether a higher score is better.
        percent: it is a share, and written in percent.
        unit: of the loss that is trained.
        low: the worst score there is, or None.
        high: the highest score there is, or None.
    """

    key: str
    name: str
    higher: bool
    percent: bool
    unit: str
    low: float | None
    high: float | None

    def text(self, value: float, digits: int = 4) -> str:
        """Write a score; a share in percent has two digits fewer after the point.

        Example:
            >>> ACCURACY.text(0.9345), ACCURACY.text(0.9345, 3), R2.text(0.9345, 3)
            ('93.45%', '93.5%', '0.934')
        """
        return f"{value:.{max(0, digits - 2)}%}" if self.percent else f"{value:.{digits}f}"

    def difference(self, value: float) -> str:
        """Write how far two scores are apart.

        Example:
            >>> ACCURACY.difference(-0.0123), BITS.difference(0.0123), R2.difference(-0.0001)
            ('-1.2 points', '+0.012', '+0.000')
        """
        return f"{100 * value:+z.1f} points" if self.percent else f"{value:+z.3f}"

    def better(self, one: float, other: float) -> bool:
        """Say whether the first score is better than the second."""
        return one > other if self.higher else one < other


ACCURACY = Metric("accuracy", "accuracy", True, True, "nats", 0.0, 1.0)
R2 = Metric("r2", "R²", True, False, "mean squared error of the scaled target", None, 1.0)
BITS = Metric("bits", "bits per character", False, False, "nats", 0.0, None)

METRICS = {metric.key: metric for metric in (ACCURACY, R2, BITS)}


def filed(values: Mapping[str, Any], metric: Metric) -> dict[str, Any]:
    """Return figures as they stand in files, where scores are called by their metric.

    Example:
        >>> filed({"test_score": 0.8, "macs": 3}, R2)
        {'test_r2': 0.8, 'macs': 3}
    """
    names = {f"{prefix}score": f"{prefix}{metric.key}" for prefix in ("", "validation_", "test_")}
    return {names.get(name, name): value for name, value in values.items()}
