"""Why each thing went: what it earned and what it cost when it was decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from guyot.report.history import History, Line

COLUMNS = (
    "what",
    "went",
    "at step",
    "benefit of one",
    "price of one",
    "benefit of one that stayed",
)
_HALF = 50
"""Percent."""
_MANY = 40
"""Rows that are shown at once."""


@dataclass(frozen=True)
class Reasons:
    """A row for every layer that went, and for every group that lost units.

    Attributes:
        rows: with the columns `COLUMNS`.
    """

    rows: Sequence[Sequence[str]]

    @property
    def shown(self) -> bool:
        """Say whether the table is short enough to be open at once."""
        return len(self.rows) <= _MANY


def reasons(run: History) -> Reasons | None:
    """Return what went and why; None: nothing went, or nothing was written down before."""
    layers = [_layer(run, number, step) for number, step in _gone_layers(run)]
    groups = [_group(run, number) for number in range(len(run.groups))]
    rows = [row for row in (*layers, *groups) if row]
    return Reasons(rows) if rows else None


def _gone_layers(run: History) -> list[tuple[int, int]]:
    return [(run.layers.index(name), step) for name, step in run.gone_layers.items()]


def _decided(run: History, step: int, theta: Callable[[Line], float]) -> Line | None:
    """Return the last snapshot before a removal in which a keep probability was one half or more.

    Prices fall once the target is reached, so those of the removal itself say little.
    """
    before = [line for line in run.snapshots if line["step"] < step and theta(line) >= 0]
    likely = [line for line in before if theta(line) >= _HALF]
    return (likely or before or [None])[-1]


def _layer(run: History, number: int, step: int) -> list[str]:
    found = _decided(run, step, lambda line: line["layers"]["theta"][number])
    name = f"layer {run.layers[number]}"
    if found is None:
        return [name, "whole", str(step), "–", "–", "–"]
    values = found["layers"]
    benefit, price = values["benefit"][number], values["price"][number]
    return [name, "whole", str(step), _nats(benefit), _nats(price), "–"]


def _group(run: History, number: int) -> list[str]:
    """Return the row of a group; empty when it lost no units but those of a layer around it."""
    group = run.groups[number]
    name, rows = group["name"], list(group["rows"])
    went: dict[int, int] = {}
    for removal in run.removals:
        went.update(dict.fromkeys(removal["units"].get(name, ()), removal["step"]))
    if not went:
        return []
    earned: list[float] = []
    prices: list[float] = []
    last: Line | None = None
    for place, unit in enumerate(rows):
        if unit in went:
            theta = partial(_theta, number=number, place=place)
            if (decided := _decided(run, went[unit], theta)) is not None:
                earned.append(decided["benefit"][number][place])
                prices.append(decided["price"][number])
                last = max(last, decided, key=_step) if last else decided
    steps = sorted(set(went.values()))
    stayed = [
        last["benefit"][number][place]
        for place, unit in enumerate(rows)
        if last and unit not in went
    ]
    return [
        name,
        f"{len(went)} of {group['size']} units",
        str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}",
        _nats(fmean(earned)) if earned else "–",
        _nats(fmean(prices)) if prices else "–",
        _nats(fmean(stayed)) if stayed else "–",
    ]


def _theta(line: Line, number: int, place: int) -> float:
    return line["theta"][number][place]


def _step(line: Line) -> int:
    return line["step"]


def _nats(value: float) -> str:
    """Write nats with two significant digits.

    Example:
        >>> _nats(0.0001234), _nats(0)
        ('0.00012', '0')
    """
    return f"{value:.2g}"
