"""What a sweep tries, and what it makes of a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from guyot.app.config import RunConfig
from guyot.app.settings import AT_LEAST_1
from guyot.core.condition import did_you_mean, require
from guyot.core.errors import MisconfiguredError
from guyot.planning.config import DIALS

_COSTS = ("macs", "params", "latency")


@dataclass(frozen=True)
class Sweep:
    """What to try.

    Attributes:
        base: what all trials have in common.
        grid: dial -> values; all combinations are tried.
        ranges: dial -> lowest and highest value of a search; empty for a grid.
        trials: how many a search makes.
        objectives: of the score (on validation data, called by its metric, such as accuracy), macs,
            params, latency (batch 1, ms); empty: the score and macs.

    Raises:
        MisconfiguredError: nothing to try, an unknown dial or objective, or a bad range.
    """

    base: RunConfig
    grid: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    ranges: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]]
    )
    trials: int = 20
    objectives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = (self.base.metric.key, *_COSTS)
        if not self.objectives:
            object.__setattr__(self, "objectives", known[:2])
        if unknown := [name for name in self.objectives if name not in known]:
            raise MisconfiguredError(
                f"objective={unknown[0]!r} is unknown: choose among {', '.join(known)}"
                f"{did_you_mean(unknown[0], known)}"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise MisconfiguredError(f"objective={self.objectives}: give each at most once")
        varied = {*self.grid, *self.ranges}
        if not varied or not varied <= set(DIALS) or bool(self.grid) == bool(self.ranges):
            raise MisconfiguredError(
                "nothing to sweep over: give values, such as target=0.3,0.5,0.7, for a grid, or "
                "ranges, such as nu=0.1..2, for a search, not both"
            )
        if len({"nu", "target"} & varied) != 1:
            raise MisconfiguredError("give values of nu or of target, and not of both")
        for name, (low, high) in self.ranges.items():
            if not low < high:
                raise MisconfiguredError(f"{name}={low:g}..{high:g}: the first must be less")
        require("trials", self.trials, AT_LEAST_1)
        for _ in self.configs():  # every one is valid
            pass

    @property
    def directions(self) -> list[str]:
        """Return for each objective whether to maximize or minimize it, in Optuna's words."""
        best = self.base.metric.key if self.base.metric.higher else ""
        return ["maximize" if name == best else "minimize" for name in self.objectives]

    def config(self, values: Mapping[str, float]) -> RunConfig:
        """The trial with these dials."""
        other = {"nu": "target", "target": "nu"}
        free: dict[str, Any] = {other[name]: None for name in values if name in other}
        return replace(self.base, **(free | dict(values)))

    def configs(self) -> list[dict[str, float]]:
        """The dials of all trials of a grid; of a search the corners of the ranges."""
        axes = self.grid or self.ranges
        found = [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]
        for values in found:
            self.config(values)
        return found


def trial_name(config: RunConfig) -> str:
    """The name of a trial: a hash of its configuration.

    Example:
        >>> trial_name(RunConfig.of("digits")) == trial_name(RunConfig.of("digits", target=0.5))
        True
    """
    text = json.dumps(config.to_dict(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def objective(result: Mapping[str, Any], name: str) -> float:
    """The value of an objective in a `result.json`."""
    after = result["after"]
    if name == "latency":
        return float(after["latency"]["1"]["median"])
    return float(after[name] if name in _COSTS else result[f"validation_{name}"])
